"""--config=hopper:quick: names of tasks and configuration files on a command line."""

import pathlib

import pytest

from dawm_jax.config import by_name, schema

FILE = by_name.__file__
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--config=hopper"], [f"--config={FILE}:hopper"]),
        (["--config=hopper:quick"], [f"--config={FILE}:hopper:quick"]),
        (["-config=hopper:quick"], [f"-config={FILE}:hopper:quick"]),
        (["--config", "hopper"], ["--config", f"{FILE}:hopper"]),
        (["-config", "hopper:quick"], ["-config", f"{FILE}:hopper:quick"]),
        (["--config=hoper"], [f"--config={FILE}:hoper"]),
        # Paths stay.
        (["--config=configs/hopper.py:quick"], ["--config=configs/hopper.py:quick"]),
        (["--config=/a/b.py"], ["--config=/a/b.py"]),
        (["--config=mine.py:smoke"], ["--config=mine.py:smoke"]),
        (["--config=./hopper"], ["--config=./hopper"]),
        (["--config", "mine.py"], ["--config", "mine.py"]),
        (["--config=hopper:a/b.py"], [f"--config={FILE}:hopper:a/b.py"]),
        # Other flags, and values that look like one.
        (["--config.agent=hopper"], ["--config.agent=hopper"]),
        (["--config.dataset", "hopper"], ["--config.dataset", "hopper"]),
        (["--workdir=--config=hopper"], ["--workdir=--config=hopper"]),
        (["hopper"], ["hopper"]),
        (["--config="], ["--config="]),
        (["--config"], ["--config"]),
        ([], []),
    ],
)
def test_names_on_the_command_line(argv, expected):
    given = ["main.py", *argv]
    assert by_name.resolve(given) == ["main.py", *expected]
    assert given == ["main.py", *argv]  # not changed in place


def test_what_lies_in_the_current_folder(tmp_path, monkeypatch):
    """A task's name is a task; only another name may be that of a file without .py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "hopper").write_text("no configuration")
    (tmp_path / "walker2d").mkdir()
    (tmp_path / "mine").write_text("")
    task = lambda name: f"{FILE}:{name}"
    for value, expected in (
        ("hopper", task("hopper")),
        ("hopper:quick", task("hopper:quick")),
        ("walker2d", task("walker2d")),
        ("configs", task("configs")),  # a folder is no file: an unknown name
        ("mine", "mine"),
        ("mine:quick", "mine:quick"),
        ("./hopper", "./hopper"),
    ):
        assert by_name.resolve([f"--config={value}"]) == [f"--config={expected}"], value


@pytest.mark.parametrize("variant", ["", "smoke", "quick", "expert,quick"])
def test_configurations_by_name(variant):
    for name, environment in (("hopper", "Hopper-v5"), ("walker2d", "Walker2d-v5")):
        config = by_name.get_config(f"{name}:{variant}" if variant else name)
        expected = schema.get_config(variant, environment=environment)
        assert config.to_dict() == expected.to_dict()
        schema.parse(config)


@pytest.mark.parametrize("name", ["hoper", "", "Hopper-v5", "hopper.py", ":quick"])
def test_unknown_names(name):
    with pytest.raises(
        ValueError, match=r"expected a configuration file or one of .*hopper"
    ) as error:
        by_name.get_config(name)
    assert "\n" not in str(error.value)
    assert repr(name.partition(":")[0]) in str(error.value)


def test_unknown_variants():
    with pytest.raises(ValueError, match="unknown variant 'fast'"):
        by_name.get_config("hopper:fast")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_files_of_the_repository_agree_with_the_names(path):
    scope = {}
    exec(compile(path.read_text(), path, "exec"), scope)
    for variant in ("", "quick", "medium-replay,smoke"):
        config = scope["get_config"](variant)
        assert config.to_dict() == by_name.get_config(f"{path.stem}:{variant}").to_dict()
