"""Ctrl-C during the imports of a command."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from dawm_jax.runtime import interrupts

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["python", "-m", "dawm_jax.main", "--config=hopper"], True),
        (["python", "-X", "dev", "-m", "dawm_jax.quality"], False),
        (["python", "/usr/bin/dawm-jax", "--config=hopper"], True),
        (["python", "/usr/bin/dawm-jax-report", "runs"], True),
        (["python", "-m", "pytest", "-m", "dawm_jax.main"], False),
        (["python", "train.py", "dawm-jax"], False),
        (["python", "-c", "import dawm_jax"], False),
        (["python"], False),
    ],
)
def test_what_is_a_command(argv, expected):
    assert interrupts._is_command(argv) == expected


def test_a_program_that_imports_the_package_keeps_its_handler():
    before = signal.getsignal(signal.SIGINT)
    interrupts.quiet_imports()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("module", ["main", "generate", "quality", "report"])
def test_ctrl_c_while_a_command_imports_is_one_line(tmp_path, module):
    """The import of JAX waits here until the signal came."""
    (tmp_path / "jax.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", f"dawm_jax.{module}", "--workdir=x", "--dataset_id=a/b-v0", "x"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{_ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if module == "report" and result.returncode == 2:
        pytest.skip("refused before JAX is imported")
    assert (result.returncode, result.stderr) == (130, "dawm_jax: interrupted\n")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("JAX_ENABLE_X64", "nonsense"), ("JAX_LOGGING_LEVEL", "loud")],
)
def test_a_variable_that_jax_refuses_is_one_line(variable, value):
    def refused(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "dawm_jax.main", "--config=hopper:smoke", *arguments],
            env={**os.environ, "PYTHONPATH": str(_ROOT), variable: value},
            capture_output=True,
            text=True,
            timeout=120,
        )

    result = refused()
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("dawm_jax: JAX refuses a variable of the environment (")
    assert value in result.stderr and variable in result.stderr.upper()
    assert "Traceback" in refused("--debug").stderr
