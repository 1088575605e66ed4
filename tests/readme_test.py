"""README.md says what the repository holds."""

import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_results_table_comes_from_results():
    check = subprocess.run(
        [sys.executable, "launch/update_readme.py", "--check"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout


def test_named_files_exist():
    text = (_ROOT / "README.md").read_text()
    for name in ("launch/run.sh", "launch/test.sh", "configs/hopper.py", "BUILD.md"):
        assert name in text
        assert (_ROOT / name).is_file()
