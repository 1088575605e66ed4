"""The command line, as a person types it: help, and one line for every mistake."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dawm_jax.config import schema
from dawm_jax.runtime import results
from dawm_jax.training import setup

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*arguments, cwd=_ROOT, **variables):
    return subprocess.run(
        [sys.executable, "-m", "dawm_jax.main", *arguments],
        cwd=cwd,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(_ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_help_shows_examples_and_every_field():
    result = run("--help")
    assert result.returncode == 0
    assert "python -m dawm_jax.main --config=configs/hopper.py:quick" in result.stdout
    # All settings, under the names that the command line takes.
    for name, _ in schema.fields():
        assert f"--{name}=" in result.stdout
    for flag in ("--config", "--workdir", "--num_processes"):
        assert f"  {flag} " in result.stdout


def test_help_with_a_file_that_fails_is_one_line(tmp_path):
    """Its settings cannot be listed; the name of no file and no task is passed over."""
    (tmp_path / "mine.py").write_text("1 / 0\n")
    result = run("--config=mine.py:quick", "--help", cwd=tmp_path)
    assert result.returncode == 2 and not result.stdout
    assert result.stderr == (
        "dawm_jax: --config=mine.py, line 1: ZeroDivisionError: division by zero\n"
    )
    assert run("--help", "--config=hoper", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        (
            ["--config=configs/hoper.py"],
            f"--config=configs/hoper.py: no such file in the current folder, {_ROOT}; expected a "
            "configuration file, or the name of a task: --config=ant",
        ),
        (["--config=hoper"], "expected one of "),
        (["--config", "hoper:quick"], "got 'hoper'"),
        (["--config=configs/hopper.py:fast"], "unknown variant 'fast'"),
        (["--config=hopper:fast"], "unknown variant 'fast'"),
        (
            ["--config=hopper:smoke", "--config.world_model.dim=8"],
            "unknown flag --config.world_model.dim: did you mean --config.unet.dim?",
        ),
        (
            ["--config=hopper:smoke", "--config.rollout.guidence=2"],
            "did you mean --config.rollout.guidance?",
        ),
        (
            ["--config=configs/hopper.py:smoke", "--config.agnet=iql"],
            "unknown flag --config.agnet: did you mean --config.agent?",
        ),
        (["--config=configs/hopper.py:smoke", "--workdri=x"], "workdir"),
        (["--config=configs/hopper.py:smoke", "--config.seed=1.5"], "seed"),
        (["--config=configs/hopper.py:smoke", "iql"], "unexpected argument 'iql'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.startswith("dawm_jax: ")
    assert result.stderr.count("\n") == 1


def test_a_mistake_in_a_value_is_one_line_after_the_log(tmp_path):
    result = run(
        "--config=hopper:smoke",
        "--config.dataset=bundled/hopper/large",
        f"--workdir={tmp_path}",
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("dawm_jax: unknown bundled dataset 'bundled/hopper/large'")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("agent=sac", "config.agent: expected one of bc, iql"),
        ("horizon=0", "config.horizon: expected a whole number at least 1, got 0"),
        ("world_model.learning_rate=nan", "config.world_model.learning_rate: expected a number"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path, setting, message):
    result = run("--config=hopper:smoke", f"--config.{setting}", f"--workdir={tmp_path}/run")
    assert result.returncode == 1
    assert result.stderr.startswith(f"dawm_jax: {message}")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("config", [f"{_ROOT}/configs/walker2d.py:smoke", "walker2d:smoke"])
def test_configurations_load_from_anywhere(tmp_path, config):
    """Whatever lies in the current folder."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "walker2d").write_text("no configuration")
    result = run(
        f"--config={config}",
        "--config.dataset=/nowhere/data.hdf5",
        f"--workdir={tmp_path}/run",
        cwd=tmp_path,
    )
    assert result.returncode == 1
    assert "dataset file not found" in result.stderr


def test_the_same_settings_have_the_same_default_folder():
    config = schema.parse(schema.get_config("quick"))
    folder = setup.default_workdir(config)
    assert folder.startswith("runs/hopper-quick-dawm-td3_bc-")
    assert setup.default_workdir(schema.parse(schema.get_config("quick"))) == folder
    other = schema.replace(config, {"rollout.guidance": 2.0})
    assert setup.default_workdir(other).rpartition("-")[0] == folder.rpartition("-")[0]
    assert setup.default_workdir(other) != folder
    plans = schema.replace(config, {"method": "decision_diffuser"})
    assert setup.default_workdir(plans).startswith("runs/hopper-quick-decision_diffuser-")
    assert "td3_bc" not in setup.default_workdir(plans)


def test_two_devices_give_the_same_scores_on_a_mesh_and_with_pmap(tmp_path):
    """Agents of pmap are sharded over the devices when they are evaluated."""
    returns = {}
    for mode in ("mesh", "pmap"):
        done = run(
            "--config=hopper:smoke",
            "--config.agent=bc",
            "--config.training.real_fraction=1",
            "--config.num_seeds=2",
            f"--config.parallel={mode}",
            f"--workdir={tmp_path / mode}",
            XLA_FLAGS="--xla_force_host_platform_device_count=2",
        )
        assert done.returncode == 0, done.stderr
        content = results.read(tmp_path / mode / results.FILE)
        assert content.device.startswith("2 x cpu")
        returns[mode] = [point.returns.values for point in content.curve]
    np.testing.assert_allclose(returns["pmap"], returns["mesh"], rtol=1e-4)
