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


def test_the_gains_in_words_are_those_of_the_table():
    """Every gain of the sentence of README.md stands in a row of its two methods."""
    readme = (_ROOT / "README.md").read_text()
    begin, end = (readme.index(f"<!-- {mark} gains -->") for mark in ("begin", "end"))
    sentence = " ".join(readme[begin:end].split())
    lines = (_ROOT / "docs" / "results.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    table = {(row[0], row[1]): row[5] for row in rows if len(row) == 7}
    scores = {
        name: dict(zip(("Hopper", "Walker2d"), map(float, found), strict=True))
        for name, *found in re.findall(
            r"^\| (.+?) \| ([\d.]+) \(.*?\) \| ([\d.]+) \(", readme, re.M
        )
    }
    found = 0
    for part in re.sub(r"^.*?seeds: |\. The highest.*", "", sentence).split("; "):
        mine, *others = re.split(r",? against ", part)
        for text in others:
            pattern = r"(.+?)(?: on real data)? (([+-]).* % \(.*?\))(?: but (\w+) on (.*))?$"
            other, gain, sign, direction, where = re.match(pattern, text).groups()
            name, other = (text.replace(" (", ", ").rstrip(")") for text in (mine, other))
            assert table[name, other] == gain
            falls = {task for task, x in scores[name].items() if x < scores[other][task]}
            opposite = falls if sign == "+" else set(scores[name]) - falls
            assert opposite == set(where.split(" and ") if where else ())
            assert direction == ({"+": "lower", "-": "higher"}[sign] if where else None)
            found += 1
    assert found


@pytest.mark.parametrize("document", _DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document):
    """Every link, and every path in backquotes that begins with a folder of the repository."""
    text = document.read_text()
    links = [document.parent / path for path in re.findall(r"\]\((?!\w+:)([\w./-]+)", text)]
    folders = "configs|dawm_jax|docs|launch|results|tests"
    paths = re.findall(rf"`(?:[\w ]* )?((?:{folders})/[\w./-]*\w)", text)
    missing = [path for path in [*links, *(_ROOT / path for path in paths)] if not path.exists()]
    assert not missing
