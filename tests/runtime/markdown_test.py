"""Markdown tables, numbers as text, and names without private folders."""

import pytest

from dawm_jax.runtime import markdown


def test_table():
    assert markdown.table(("", "b"), [("x", "1"), ("y", "2")]) == (
        "|  | b |\n|---|---|\n| x | 1 |\n| y | 2 |"
    )


def test_a_row_of_another_width_is_refused():
    with pytest.raises(ValueError, match="expected 2 cells in a row, got 1"):
        markdown.table(("a", "b"), [("x",)])


def test_number():
    assert markdown.number(0.123456) == "0.123"
    assert markdown.number(12.34, ".1f") == "12.3"
    assert markdown.number(None) == "-"
    assert markdown.number(None, missing="") == ""


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A home folder with the current folder in it."""
    current = tmp_path / "home" / "project"
    current.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(current.parent))
    monkeypatch.chdir(current)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mujoco/hopper/medium-v0", "mujoco/hopper/medium-v0"),
        ("data/x.hdf5", "data/x.hdf5"),
        ("{root}/home/project/data/x.hdf5", "data/x.hdf5"),
        ("~/project/x.hdf5", "x.hdf5"),
        ("{root}/home/other/x.hdf5", "~/other/x.hdf5"),
        ("~/other/x.hdf5", "~/other/x.hdf5"),
        ("../other/x.hdf5", "~/other/x.hdf5"),
        ("{root}/shared/x.hdf5", "x.hdf5"),
        ("../../shared/x.hdf5", "x.hdf5"),
        # The name of another folder begins with the name of the home folder.
        ("{root}/home2/x.hdf5", "x.hdf5"),
    ],
)
def test_shorten_path(folders, name, expected):
    assert markdown.shorten_path(name.format(root=folders)) == expected
