"""What every command does with its flags and with what goes wrong, on a command of four lines."""

import os
import pathlib
import re
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
flags.DEFINE_string("workdir", None, "Folder")
def main():
    from dawm_jax.types import UserError
    if _DO.value == "log":
        cli.log.info("done")
    elif _DO.value == "mistake":
        raise UserError("expected this, got that")
    elif _DO.value == "missing":
        open("/nowhere/file")
    elif _DO.value == "devices":
        import jax
        jax.devices()
    elif _DO.value == "full":
        raise OSError(28, "No space left on device")
    elif _DO.value == "rename":
        import os
        os.rename("/nowhere/a", "/nowhere/b")
    elif _DO.value == "memory":
        raise MemoryError("an array of 1 PiB")
    elif _DO.value == "device memory":
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\\nmore")
    elif _DO.value == "fault":
        {}["first\\nsecond"]
    else:
        raise KeyboardInterrupt
cli.run(main, __doc__)
'''


def run(tmp_path, *arguments, **variables):
    script = tmp_path / "command.py"
    script.write_text(_COMMAND)
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(_ROOT), **variables},
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
        (["--do=missing", "--workdir=run"], 1, "/nowhere/file: No such file or directory"),
        (["--do=full", "--workdir=run"], 1, "No space left on device"),
        (["--do=rename"], 1, "/nowhere/a to /nowhere/b: No such file or directory"),
        (["--do=memory"], 1, "memory does not suffice (MemoryError: an array of 1 PiB); lower"),
        (["--do=device memory"], 1, "memory does not suffice (RuntimeError: RESOURCE_EXHAUSTED"),
        (
            ["--do=fault"],
            1,
            "unexpected error: KeyError: 'first",
        ),
        (["--do=log", "--debug=maybe"], 2, "flag --debug=maybe"),
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


def test_the_traceback_of_what_is_unforeseen_is_kept_in_the_workdir(tmp_path):
    for count in (1, 2):
        result = run(tmp_path, "--do=fault", f"--workdir={tmp_path}")
        assert result.returncode == 1 and result.stderr.count("\n") == 1
        assert f"the traceback is in {tmp_path}/error.log; run with --debug" in result.stderr
        content = (tmp_path / "error.log").read_text()
        assert content.count("Traceback") == content.count("--do=fault") == count


def test_a_link_in_the_place_of_the_traceback_is_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("text")
    (tmp_path / "run" / "error.log").symlink_to(tmp_path / "precious")
    result = run(tmp_path, "--do=fault", f"--workdir={tmp_path}/run")
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    path = pathlib.Path(re.search("the traceback is in ([^;]+);", result.stderr)[1])
    assert "Traceback" in path.read_text() and path.name != "error.log"
    path.unlink()
    assert (tmp_path / "precious").read_text() == "text"


def test_without_a_workdir_the_traceback_is_in_a_temporary_file(tmp_path):
    result = run(tmp_path, "--do=fault", "--workdir=/nowhere")
    path = pathlib.Path(re.search("the traceback is in ([^;]+);", result.stderr)[1])
    assert "Traceback" in path.read_text() and "KeyError" in path.read_text()
    path.unlink()


@pytest.mark.parametrize("what", ["fault", "mistake", "missing"])
def test_debug_shows_the_traceback_before_the_line(tmp_path, what):
    result = run(tmp_path, f"--do={what}", "--debug")
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("dawm_jax: ")


def test_debug_shows_the_traceback_of_a_wrong_flag(tmp_path):
    result = run(tmp_path, "--do=log", "--times=0", "--debug")
    assert result.returncode == 2 and "Traceback" in result.stderr


def test_a_command_runs_without_a_cache(tmp_path):
    result = run(tmp_path, "--do=log", HOME="/proc/nowhere", XDG_CACHE_HOME="")
    assert result.returncode == 0
    first, last = result.stderr.splitlines()
    assert "no cache in ~/.cache" in first and last.endswith("  done")


def test_a_platform_that_is_not_there_is_one_line(tmp_path):
    """Whatever the command was doing when JAX failed."""
    result = run(tmp_path, "--do=devices", JAX_PLATFORMS="nonsense")
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("dawm_jax: JAX_PLATFORMS=nonsense: JAX cannot use this")
