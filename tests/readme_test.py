"""README.md and docs/ agree with what the repository holds."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
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


def test_a_table_that_cannot_be_made_is_one_line():
    program = (
        "import sys; sys.path.insert(0, 'launch'); import tables\n"
        "block = tables.Block('README.md', 'gains', lambda: {}['absent'])\n"
        "print(tables.update(block, check=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "README.md: gains cannot be made: KeyError: 'absent'\n"


def _rows(document, block):
    """Cells of the rows of a generated table, without its header."""
    text = (_ROOT / document).read_text()
    begin, end = (text.index(f"<!-- {mark} {block} -->") for mark in ("begin", "end"))
    lines = [line for line in text[begin:end].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def _score(folder):
    """Mean over seeds and the last five evaluations, straight from results.json."""
    results = json.loads(
        (_ROOT / "results" / "protocol" / "main" / folder / "results.json").read_text()
    )
    low, high = results["references"]
    returns = np.array([point["return_per_seed"] for point in results["curve"][-5:]])
    return 100 * (returns.mean() - low) / (high - low)


def test_the_gains_are_those_of_the_scores():
    """Each gain of README.md is the ratio of two averages over nine, seven and two tasks."""
    developed = ["hopper-medium", "walker2d-medium"]
    others = [
        f"{task}-{tier}"
        for task in ("halfcheetah", "hopper", "walker2d")
        for tier in ("medium", "medium-replay", "medium-expert")
        if f"{task}-{tier}" not in developed
    ]
    names = {"DAWM": "dawm", "DWM": "dwm", "TD3+BC": "td3_bc", "IQL": "iql"}
    rows = _rows("README.md", "gains")
    assert len(rows) == 4
    for mine, other, *gains in rows:
        agent = names[mine.split(",")[0].removeprefix("DAWM-")]
        rival = "dwm" if other.startswith("DWM-") else "real"
        for tasks, gain in zip(([*developed, *others], others, developed), gains, strict=True):
            averages = [
                np.mean([_score(f"{task}-{source}-{agent}") for task in tasks])
                for source in ("dawm", rival)
            ]
            expected = 100 * (averages[0] / averages[1] - 1)
            assert gain.split(" ")[0] == f"{expected:+.1f}", (mine, other, tasks)


@pytest.mark.parametrize("document", _DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document):
    """Every link, and every path in backquotes that begins with a folder of the repository."""
    text = document.read_text()
    links = [document.parent / path for path in re.findall(r"\]\((?!\w+:)([\w./-]+)", text)]
    folders = "configs|dawm_jax|docs|launch|results|tests"
    paths = re.findall(rf"`(?:[\w ]* )?((?:{folders})/[\w./-]*\w)", text)
    missing = [path for path in [*links, *(_ROOT / path for path in paths)] if not path.exists()]
    assert not missing
