"""A run's folder: locked, claimed by a configuration, refused to others."""

import json

import pytest

from dawm_jax.runtime import run_folder
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
        return {"seed": stored["seed"], "sizes": {name: stored[name] for name in ("hidden", "rate")}}

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
    with pytest.raises(UserError, match="cannot be written .* choose another folder") as error:
        with own(tmp_path / "file" / "run"):
            pass
    assert "\n" not in str(error.value)


def test_a_folder_that_another_host_does_not_see(tmp_path):
    with pytest.raises(UserError, match="is not shared"):
        run_folder.check_shared(tmp_path)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"is not a run: expected a config\.json in it"):
        run_folder.read_config(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"3", b"\xff\xfe"])
def test_a_damaged_configuration(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(UserError, match=r"config\.json.*restore it") as error:
        run_folder.read_config(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="restore it"), own(tmp_path):
        pass
