"""What every command does with its flags and with what goes wrong, on a command of four lines."""

import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_COMMAND = '''"""Does what it is told."""
from absl import flags
from dawm_jax.runtime import cli
_DO = flags.DEFINE_string("do", None, "What to do", required=True)
flags.DEFINE_integer("times", 3, "How often", lower_bound=1)
flags.DEFINE_boolean("loudly", False, "With noise")
def main():
    from dawm_jax.types import UserError
    if _DO.value == "log":
        cli.log.info("done")
    elif _DO.value == "mistake":
        raise UserError("expected this, got that")
    elif _DO.value == "missing":
        open("/nowhere/file")
    else:
        raise KeyboardInterrupt
cli.run(main, __doc__)
'''


def run(tmp_path, *arguments):
    script = tmp_path / "command.py"
    script.write_text(_COMMAND)
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_help_names_flags_with_their_defaults(tmp_path):
    result = run(tmp_path, "--do=log", "--help")
    assert result.returncode == 0 and not result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == "Does what it is told.".split()
    assert ["--do", "What", "to", "do"] in lines
    assert ["--times=3", "How", "often"] in lines
    assert ["--loudly", "With", "noise"] in lines


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "--do is missing"),
        (["--do=log", "--time=2"], 2, "Unknown command line flag 'time'"),
        (["--do=log", "--times=0"], 2, "flag --times=0"),
        (["--do=log", "twice"], 2, "unexpected argument 'twice'"),
        (["--do=mistake"], 1, "expected this, got that"),
        (["--do=missing"], 1, "/nowhere/file: No such file or directory"),
        (["--do=interrupt"], 130, "interrupted"),
    ],
)
def test_what_goes_wrong_is_one_line(tmp_path, arguments, code, message):
    result = run(tmp_path, *arguments)
    assert result.returncode == code
    assert result.stderr.startswith(f"dawm_jax: {message}")
    assert result.stderr.count("\n") == 1


def test_the_log_goes_to_stderr(tmp_path):
    result = run(tmp_path, "--do=log")
    assert result.returncode == 0 and not result.stdout
    assert result.stderr.endswith("  done\n")
