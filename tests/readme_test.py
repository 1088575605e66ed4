"""README.md and docs/ agree with what the repository holds."""

import pathlib
import re
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_DOCUMENTS = [_ROOT / "README.md", _ROOT / "BUILD.md", *sorted((_ROOT / "docs").glob("*.md"))]


def test_generated_tables_come_from_results():
    check = subprocess.run(
        [sys.executable, "launch/tables.py", "--check"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stderr


@pytest.mark.parametrize("document", _DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document):
    """Every link, and every path in backquotes that begins with a folder of the repository."""
    text = document.read_text()
    links = [document.parent / path for path in re.findall(r"\]\((?!\w+:)([\w./-]+)", text)]
    folders = "configs|dawm_jax|docs|launch|results|tests"
    paths = re.findall(rf"`(?:[\w ]* )?((?:{folders})/[\w./-]*\w)", text)
    missing = [path for path in [*links, *(_ROOT / path for path in paths)] if not path.exists()]
    assert not missing
