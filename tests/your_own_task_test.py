"""The examples of docs/your-own-task.md run, from the environment to the report."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PAGE = (_ROOT / "docs" / "your-own-task.md").read_text()
_VALVE = "my_task:Valve-v0"


def python(folder, *arguments):
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": f"{_ROOT}{os.pathsep}{folder}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    """The files of the page, and data of the valve."""
    folder = tmp_path_factory.mktemp("task")
    files = dict(re.findall(r"^`(\w+\.py)`:\n\n```python\n(.*?)```", _PAGE, re.DOTALL | re.M))
    assert set(files) == {"my_task.py", "record.py", "my_config.py"}
    for name, text in files.items():
        (folder / name).write_text(text)
    assert f"python record.py {_VALVE} valve.npz 30\n" in _PAGE
    python(folder, "record.py", _VALVE, "valve.npz", "30")
    return folder


def train(folder, workdir, *flags, config="my_config.py"):
    fast = ("--config.agent=bc", "--config.training.real_fraction=1")
    arguments = (f"--config={config}:smoke", f"--workdir={workdir}", *fast, *flags)
    output = python(folder, "-m", "dawm_jax.main", *arguments)
    return json.loads((folder / workdir / "results.json").read_text()), output


def test_the_configuration_has_ten_lines():
    (text,) = re.findall(r"^`my_config\.py`:\n\n```python\n(.*?)```", _PAGE, re.DOTALL | re.M)
    assert len([line for line in text.splitlines() if line]) <= 10


def test_the_valve_is_recorded_trained_and_judged(folder):
    with np.load(folder / "valve.npz") as data:
        assert data["timeouts"].sum() == 30 and not data["terminals"].any()
        assert data["rewards"].min() < 0.0 < data["rewards"].max()
    results, output = train(folder, "runs/valve")
    assert results["environment"] == _VALVE and "score_mean" not in results["final"]
    assert "return" in output and "score" not in output
    report = ("runs/valve", "--out=report")
    assert "valve.npz" in python(folder, "-m", "dawm_jax.report", *report)
    noise = ("runs/valve", "--changes=observation,action", "--episodes=2", "--out=robustness")
    text = python(folder, "-m", "dawm_jax.robustness", *noise)
    assert "the task has no reference returns" in text and "action noise" in text


def test_references_make_scores(folder):
    """The page's registration, at the top level of its configuration file."""
    (registration,) = re.findall(r"```python\n(from dawm_jax\.envs\.tasks.*?)```", _PAGE, re.DOTALL)
    own = (folder / "my_config.py").read_text()
    (folder / "scored.py").write_text(f"{own}\n\n{registration}")
    results, _ = train(folder, "runs/scored", config="scored.py")
    final = results["final"]
    expected = 100 * (final["return_mean"] + 2.4) / (45.0 + 2.4)
    np.testing.assert_allclose(final["score_mean"], expected, rtol=1e-6)


@pytest.mark.parametrize("environment", ["Pendulum-v1", "InvertedPendulum-v5"])
def test_environments_of_gymnasium(folder, environment):
    python(folder, "record.py", environment, f"{environment}.npz", "12")
    results, _ = train(
        folder,
        f"runs/{environment}",
        f"--config.environment={environment}",
        f"--config.dataset={environment}.npz",
        "--config.evaluation.max_steps=20",
    )
    assert np.isfinite(results["final"]["return_mean"])


def test_a_class_that_is_not_registered_is_refused_in_one_line(folder):
    other = "--config.environment=my_task:Other"
    arguments = ("--config=my_config.py:smoke", other, "--workdir=runs/other")
    result = subprocess.run(
        [sys.executable, "-m", "dawm_jax.main", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{_ROOT}{os.pathsep}{folder}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "'my_task:Other' cannot be made" in result.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("environment", [_VALVE, "Pendulum-v1", "InvertedPendulum-v5"])
def test_the_whole_method_at_smoke_size(folder, environment):
    data = f"whole-{environment.rpartition(':')[2]}.npz"
    python(folder, "record.py", environment, data, "30")
    flags = (f"--config.environment={environment}", f"--config.dataset={data}")
    results, _ = train(
        folder,
        f"runs/whole-{data}",
        *flags,
        "--config.agent=td3_bc",
        "--config.training.real_fraction=0.5",
    )
    assert np.isfinite(results["final"]["return_mean"])
