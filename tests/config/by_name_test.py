"""--config=hopper:quick: names of tasks and configuration files on a command line."""

import pathlib

import ml_collections
import pytest

from dawm_jax.config import by_name, schema
from dawm_jax.runtime import run_folder

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
        # Configurations of runs.
        (["--config=runs/a/config.json"], [f"--config={FILE}:runs/a/config.json"]),
        (["--config", "config.json"], ["--config", f"{FILE}:config.json"]),
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
    with pytest.raises(ValueError, match=r"expected one of .*hopper") as error:
        by_name.get_config(name)
    assert "\n" not in str(error.value)
    assert repr(name.partition(":")[0]) in str(error.value)


def test_unknown_variants():
    with pytest.raises(ValueError, match="unknown variant 'fast'"):
        by_name.get_config("hopper:fast")


def test_the_configuration_of_a_run(tmp_path):
    """Settings, also those that were not defaults, with their types: flags can change them."""
    config = schema.replace(
        schema.parse(schema.get_config("smoke")), {"td3_bc.tau": 0.03, "rollout.guidance": 2.0}
    )
    run_folder.write_config(tmp_path, schema.to_dict(config))
    stored = by_name.get_config(f"{tmp_path}/config.json")
    assert schema.parse(stored) == config
    assert stored.is_locked
    assert stored.to_dict() == ml_collections.ConfigDict(schema.to_dict(config)).to_dict()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none/config.json", "none is not a run: expected a config.json in it"),
        ("config.json:quick", "without a variant, got 'quick'"),
    ],
)
def test_configurations_that_no_run_has(tmp_path, name, message):
    with pytest.raises(ValueError, match=message) as error:
        by_name.get_config(f"{tmp_path}/{name}")
    assert "\n" not in str(error.value)


def test_runs_of_the_results_can_be_trained_again():
    """This version accepts the settings of every run that the tables are made from."""
    paths = sorted((ROOT / "results").rglob("config.json"))
    assert len(paths) > 100
    for path in paths:
        by_name.get_config(str(path))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_files_of_the_repository_agree_with_the_names(path):
    scope = {}
    exec(compile(path.read_text(), path, "exec"), scope)
    for variant in ("", "quick", "medium-replay,smoke"):
        config = scope["get_config"](variant)
        assert config.to_dict() == by_name.get_config(f"{path.stem}:{variant}").to_dict()
