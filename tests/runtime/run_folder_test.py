"""A run's folder: locked, claimed by a configuration, refused to others."""

import json

import pytest
from results_content import results_content

from dawm_jax.runtime import run_folder
from dawm_jax.runtime.run_folder import DatasetRecord
from dawm_jax.types import UserError

CONFIG = {"seed": 0, "sizes": {"hidden": (4, 4), "rate": 0.5}}


def own(workdir, config=CONFIG, **options):
    return run_folder.own(workdir, config, **options)


def test_a_new_folder_is_made_and_not_yet_claimed(tmp_path):
    workdir = tmp_path / "a" / "b"
    with own(workdir):
        assert workdir.is_dir() and not (workdir / "config.json").exists()
        run_folder.check_shared(workdir)
        run_folder.write_config(workdir, CONFIG)
    assert run_folder.read_config(workdir) == json.loads(json.dumps(CONFIG))
    with own(workdir):  # the same once more: a tuple is the list that JSON made of it
        pass


def test_another_configuration_is_refused_with_the_differences(tmp_path):
    run_folder.write_config(tmp_path, CONFIG)
    other = {"seed": 1, "sizes": {"hidden": (4, 4), "rate": 0.25}, "new": True}
    with pytest.raises(UserError) as error, own(tmp_path, other):
        pass
    message = str(error.value)
    assert "\n" not in message and "choose another --workdir" in message
    for part in ("seed: 0 there, 1 here", "sizes.rate: 0.5 there, 0.25 here", "new: None there"):
        assert part in message
    assert run_folder.read_config(tmp_path)["seed"] == 0


def test_many_differences_are_cut(tmp_path):
    run_folder.write_config(tmp_path, {f"n{index}": 0 for index in range(9)})
    with pytest.raises(UserError, match="; …\\)") as error:
        with own(tmp_path, {f"n{index}": 1 for index in range(9)}):
            pass
    assert "n3" in str(error.value) and "n4" not in str(error.value)


def test_an_older_configuration_is_compared_after_its_migration(tmp_path):
    run_folder.write_config(tmp_path, {"seed": 0, "rate": 0.5, "hidden": [4, 4]})

    def migrate(stored):
        return {
            "seed": stored["seed"],
            "sizes": {name: stored[name] for name in ("hidden", "rate")},
        }

    with own(tmp_path, migrate=migrate):
        pass
    with pytest.raises(UserError, match="holds a run of another configuration"), own(tmp_path):
        pass
    with pytest.raises(UserError, match=r"sizes\.rate: 0\.5 there, 0\.1 here"):
        with own(tmp_path, {**CONFIG, "sizes": {"hidden": (4, 4), "rate": 0.1}}, migrate=migrate):
            pass


def test_a_folder_in_use_is_refused_until_it_is_free(tmp_path):
    with own(tmp_path):
        with pytest.raises(UserError, match="in use by another run") as error, own(tmp_path):
            pass
    assert "\n" not in str(error.value)
    with own(tmp_path):
        pass


def test_a_failed_run_frees_the_folder(tmp_path):
    with pytest.raises(RuntimeError), own(tmp_path):
        raise RuntimeError
    with own(tmp_path):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .* choose another folder") as error:
        with own(tmp_path / "file" / "run"):
            pass
    assert "\n" not in str(error.value)


def test_a_folder_that_another_host_does_not_see(tmp_path):
    with pytest.raises(UserError, match="is not shared"):
        run_folder.check_shared(tmp_path)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"is not a run: expected a config\.json in it"):
        run_folder.read_config(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [("0.5", "0.4"), ('"seed"', '"reed"'), ("4,", "5,"), ('_digest": "', '_digest": "0')],
)
def test_another_character_in_the_configuration_is_noticed(tmp_path, old, new):
    run_folder.write_config(tmp_path, CONFIG)
    path = tmp_path / "config.json"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    message = (
        r"config\.json is damaged or was edited \(expected content .*, got .*\); restore it, or"
    )
    with pytest.raises(UserError, match=message) as error:
        run_folder.read_config(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=message), own(tmp_path):
        pass
    assert path.read_text() == text.replace(old, new)


def test_an_edit_that_is_meant_is_read(tmp_path):
    """As the message says: without the digest, which files of an older version lack too."""
    run_folder.write_config(tmp_path, CONFIG)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    assert list(stored)[-1] == "config_digest"
    del stored["config_digest"]
    path.write_text(json.dumps({**stored, "seed": 7}))
    assert run_folder.read_config(tmp_path) == {**stored, "seed": 7}


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"3", b"\xff\xfe"])
def test_a_damaged_configuration(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(UserError, match=r"config\.json.*restore it") as error:
        run_folder.read_config(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="restore it"), own(tmp_path):
        pass


def test_settings_of_reporting_may_change(tmp_path, caplog):
    """What is trained is the same; the new values are told and, once the run starts, stored."""
    caplog.set_level("INFO")
    old = {"seed": 0, "evaluation": {"episodes": 2, "seed": 5}, "tensorboard": False}
    new = {"seed": 0, "evaluation": {"episodes": 9, "seed": 5}, "tensorboard": True}
    run_folder.write_config(tmp_path, old)
    reporting = {"evaluation.episodes", "tensorboard"}
    with own(tmp_path, new, reporting=reporting):
        assert run_folder.read_config(tmp_path) == old
    assert "evaluation.episodes: 2 there, 9 here" in caplog.text
    assert "tensorboard: False there, True here" in caplog.text
    with pytest.raises(UserError) as error, own(tmp_path, {**new, "seed": 1}, reporting=reporting):
        pass
    assert "seed: 0 there, 1 here" in str(error.value)
    assert "tensorboard" not in str(error.value)


def test_a_dangling_link_is_named(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "absent")
    for workdir in (tmp_path / "run", tmp_path / "run" / "deeper"):
        with pytest.raises(UserError, match=r"run is a symbolic link to .*absent") as error:
            with own(workdir):
                pass
        assert "\n" not in str(error.value)


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("text")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="cannot be written"), own(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "text"


@pytest.mark.parametrize("name", ["results.json", "metrics.jsonl", "checkpoints/agent/40/x"])
def test_a_run_without_its_configuration_is_refused(tmp_path, name):
    """Its results would pass for those of any configuration."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    with pytest.raises(UserError, match=r"holds a run without its config\.json") as error:
        with own(tmp_path):
            pass
    assert "\n" not in str(error.value)


# --- the data -----------------------------------------------------------------------------

DATA = DatasetRecord("hopper", "ab" * 32, "hopper: 9 transitions")


def test_a_folder_belongs_to_its_data(tmp_path):
    assert not run_folder.check_dataset(tmp_path, DATA)
    run_folder.claim(tmp_path, CONFIG, DATA)
    assert run_folder.read_dataset(tmp_path) == DATA
    assert run_folder.check_dataset(tmp_path, DATA)
    other = DatasetRecord("hopper", "cd" * 32, "hopper: 8 transitions")
    with pytest.raises(UserError, match="not what the run was trained on") as error:
        run_folder.check_dataset(tmp_path, other)
    message = str(error.value)
    assert "\n" not in message and "9 transitions" in message and "8 transitions" in message
    # The same content under another name is the same data.
    assert run_folder.check_dataset(tmp_path, DatasetRecord("copy", DATA.digest, ""))


def test_a_run_of_an_older_version_is_claimed_without_a_record_of_its_data(tmp_path):
    run_folder.write_config(tmp_path, CONFIG)
    run_folder.claim(tmp_path, CONFIG, DATA)
    assert run_folder.read_dataset(tmp_path) is None


def test_results_name_the_data_where_the_record_is_lost(tmp_path):
    run_folder.write_config(tmp_path, CONFIG)
    content = results_content(dataset="hopper", dataset_digest="ab" * 32)
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert run_folder.check_dataset(tmp_path, DATA)
    (tmp_path / "results.json").write_text("null")
    assert not run_folder.check_dataset(tmp_path, DATA)


@pytest.mark.parametrize("text", [b"", b"{", b"null", b"42", b"[1]", b"{}", b"\xff\xfe"])
def test_a_damaged_record_of_the_data(tmp_path, text):
    run_folder.write_config(tmp_path, CONFIG)
    (tmp_path / "dataset.json").write_bytes(text)
    with pytest.raises(UserError, match=r"dataset\.json cannot be read.*restore it") as error:
        run_folder.check_dataset(tmp_path, DATA)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new"), [("9 tr", "8 tr"), ("abab", "abac"), ("_digest", "_digesd")]
)
def test_another_character_in_the_record_of_the_data_is_noticed(tmp_path, old, new):
    run_folder.claim(tmp_path, CONFIG, DATA)
    path = tmp_path / "dataset.json"
    text = path.read_text()
    path.write_text(text.replace(old, new, 1))
    assert path.read_text() != text
    with pytest.raises(UserError, match=r"dataset\.json cannot be read.*restore it") as error:
        run_folder.check_dataset(tmp_path, DATA)
    assert "\n" not in str(error.value)


def test_a_record_of_an_older_version_has_no_digest(tmp_path):
    run_folder.claim(tmp_path, CONFIG, DATA)
    path = tmp_path / "dataset.json"
    stored = json.loads(path.read_text())
    del stored["record_digest"]
    path.write_text(json.dumps(stored))
    assert run_folder.read_dataset(tmp_path) == DATA


def test_requests_to_stop_end_with_the_run(tmp_path):
    """That of a killed run does not stop the next one."""
    request = run_folder.stop_request(tmp_path)
    request.touch()
    with own(tmp_path):
        assert not request.exists()
        request.touch()
    assert not request.exists()
