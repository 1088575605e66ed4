"""The command line, as a person types it: help, and one line for every mistake."""

import os
import pathlib
import subprocess
import sys

import pytest

from dawm_jax import main

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*arguments, cwd=_ROOT):
    return subprocess.run(
        [sys.executable, "-m", "dawm_jax.main", *arguments],
        cwd=cwd,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_help_shows_examples_and_every_field():
    result = run("--help")
    assert result.returncode == 0
    assert "python -m dawm_jax.main --config=configs/hopper.py:quick" in result.stdout
    # All fields, under the names that the command line takes.
    for field in main._flatten_fields():
        if field != "variant":
            assert f"--config.{field}=" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        (["--config=configs/hoper.py"], "no file configs/hoper.py; expected one of"),
        (["--config=configs/hopper.py:fast"], "unknown variant 'fast'"),
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
        "--config=configs/hopper.py:smoke",
        "--config.dataset=bundled/hopper/large",
        f"--workdir={tmp_path}",
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("dawm_jax: unknown bundled dataset 'bundled/hopper/large'")


def test_configurations_load_from_anywhere(tmp_path):
    result = run(
        f"--config={_ROOT}/configs/walker2d.py:smoke",
        "--config.dataset=/nowhere/data.hdf5",
        f"--workdir={tmp_path}/run",
        cwd=tmp_path,
    )
    assert result.returncode == 1
    assert "dataset file not found" in result.stderr
