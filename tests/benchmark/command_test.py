"""The commands from the outside: files, and one line for every mistake."""

import json
import subprocess
import sys

import pytest

from dawm_jax.benchmark import __main__ as command


def _run(module, *flags, cwd):
    return subprocess.run(
        [sys.executable, "-m", module, *flags], capture_output=True, text=True, cwd=cwd
    )


def test_the_benchmark(tmp_path):
    flags = ["--config=hopper:smoke", "--quick", "--stages=td3_bc", "--torch=", "--out=."]
    done = _run("dawm_jax.benchmark", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "benchmark.json").read_text())
    assert list(numbers["stages"]["td3_bc"]["sides"]) == ["jax"]
    assert (tmp_path / "table.md").read_text().strip() in done.stdout
    assert not (tmp_path / "ratios.png").exists()  # no other side to compare with
    assert "turns" in done.stderr and "left" in done.stderr


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        ("benchmark", ["--stages=training"], "--stages: expected some of denoiser_training"),
        ("benchmark.latency", ["--seconds=-1"], "--seconds: expected 0 to 600, got -1"),
        ("benchmark.latency", [], "--config is missing"),
    ],
)
def test_a_mistake_is_one_line(module, flags, message, tmp_path):
    if "seconds" in str(flags):
        flags = ["--config=hopper:smoke", *flags]
    done = _run(f"dawm_jax.{module}", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"dawm_jax: {message}") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_flags_of_the_configuration_are_passed_on():
    arguments = ["--quick", "--config", "hopper:smoke", "--out=x", "--config.agent=iql"]
    arguments += ["-config.rollout.real_actions_only", "--nogrowth"]
    assert command._config_flags(arguments) == [
        "--config",
        "hopper:smoke",
        "--config.agent=iql",
        "-config.rollout.real_actions_only",
    ]
