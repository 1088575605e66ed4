"""A new agent, denoiser, method, task and source are one file each, which nothing else names."""

import json
import pathlib
import subprocess
import sys

_PLUGINS = pathlib.Path(__file__).with_name("toy_plugins.py")


def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A command in its own process, so that the plug-ins are registered there alone."""
    result = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == code, result.stderr
    return result


def test_one_file_adds_one_of_each_kind_and_the_main_program_runs_it(tmp_path):
    workdir = tmp_path / "run"
    command = ("dawm_jax.main", f"--config={_PLUGINS}:smoke", f"--workdir={workdir}")
    result = run(*command, "--config.toy_mean.rate=0.5", "--config.toy_scaled.factor=3")
    assert "Mean action on 50% real and 50% Scaled DAWM data of toy://200" in result.stderr
    results = json.loads((workdir / "results.json").read_text())
    assert (results["agent_label"], results["method_label"]) == ("Mean action", "Scaled DAWM")
    # The task's references make scores of returns.
    final = results["final"]
    expected = 100 * (final["return_mean"] + 40) / 40
    assert abs(final["score_mean"] - expected) < 1e-6
    assert set(results["stages"]) == {"toy_model", "toy_inverse", "agent"}
    config = json.loads((workdir / "config.json").read_text())
    assert config["toy_mean"] == {"rate": 0.5} and config["toy_linear"] == {"scale": 0.01}
    # The same command finds the finished run; a report reads it without the plug-ins.
    run(*command, "--config.toy_mean.rate=0.5", "--config.toy_scaled.factor=3")
    run("dawm_jax.report", str(workdir), f"--out={tmp_path / 'report'}")
    assert "Scaled DAWM" in (tmp_path / "report" / "report.md").read_text()


def test_a_plugins_settings_are_checked_and_explained(tmp_path):
    command = ("dawm_jax.main", f"--config={_PLUGINS}:smoke", f"--workdir={tmp_path / 'run'}")
    refused = run(*command, "--config.toy_mean.rate=2", code=1).stderr
    assert "config.toy_mean.rate: expected a number above 0 and at most 1, got 2.0" in refused
    assert not (tmp_path / "run").exists()
