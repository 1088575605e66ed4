"""Flat files and the cached copies of datasets."""

import dataclasses
import json
import pathlib

import minari
import numpy as np
import pytest
import tiny_data as tiny

from dawm_jax.data import cache, flat_file
from dawm_jax.data.d4rl import D4rlSource, from_flat_arrays
from dawm_jax.data.load import load_dataset
from dawm_jax.data.minari_source import MinariSource
from dawm_jax.envs.perturbed import Physics
from dawm_jax.envs.recorded import Recorded
from dawm_jax.envs.tasks import References
from dawm_jax.runtime import paths


def _sources(tmp_path):
    return {
        "minari": lambda episodes: tiny.write_minari(episodes),
        "d4rl": lambda episodes: tiny.write_hdf5(
            tmp_path / "tiny.hdf5", tiny.d4rl_arrays(episodes)
        ),
    }


def _copies(tmp_path) -> list[pathlib.Path]:
    return sorted((tmp_path / "cache").rglob("*.npz"))


@pytest.mark.parametrize("source", ["minari", "d4rl"])
def test_second_load_reads_the_flat_copy(tmp_path, monkeypatch, source):
    episodes = tiny.make_episodes()
    name = _sources(tmp_path)[source](episodes)
    load_dataset(name)
    assert len(_copies(tmp_path)) == 1

    def refuse(*args, **kwargs):
        raise AssertionError("read again")

    monkeypatch.setattr(D4rlSource, "load", refuse)
    monkeypatch.setattr(MinariSource, "load", refuse)
    tiny.assert_arrays(load_dataset(name), tiny.expected_arrays(episodes))
    with pytest.raises(AssertionError, match="read again"):
        load_dataset(name, cache=False)


@pytest.mark.parametrize("source", ["minari", "d4rl"])
def test_changed_data_is_read_again(tmp_path, source):
    name = _sources(tmp_path)[source](tiny.make_episodes())
    load_dataset(name)
    if source == "minari":
        minari.delete_dataset(name)
    _sources(tmp_path)[source](tiny.make_episodes(seed=1))
    tiny.assert_arrays(load_dataset(name), tiny.expected_arrays(tiny.make_episodes(seed=1)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"not an archive",
        lambda content: content[: len(content) // 2],
        # The same length, one number of the first array changed: only the checksum sees it.
        lambda content: content[:200] + bytes([content[200] ^ 255]) + content[201:],
    ],
    ids=["empty", "garbage", "cut", "flipped"],
)
def test_damaged_copy_is_read_again(tmp_path, caplog, damage):
    episodes = tiny.make_episodes()
    name = tiny.write_hdf5(tmp_path / "tiny.hdf5", tiny.d4rl_arrays(episodes))
    load_dataset(name)
    (copy,) = _copies(tmp_path)
    good = copy.read_bytes()
    copy.write_bytes(damage(good))
    tiny.assert_arrays(load_dataset(name), tiny.expected_arrays(episodes))
    assert "is damaged" in caplog.text
    # It was replaced by a good one.
    caplog.clear()
    tiny.assert_arrays(load_dataset(name), tiny.expected_arrays(episodes))
    assert not caplog.text


@pytest.fixture(autouse=True)
def _warn_anew():
    """The cache warns once in a process."""
    paths._warn.cache_clear()


def test_unwritable_cache_only_warns(tmp_path, monkeypatch, caplog):
    blocker = tmp_path / "blocker"
    blocker.write_text("a file where a folder should be: refused to every user, root too")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocker))
    episodes = tiny.make_episodes()
    name = tiny.write_hdf5(tmp_path / "tiny.hdf5", tiny.d4rl_arrays(episodes))
    tiny.assert_arrays(load_dataset(name), tiny.expected_arrays(episodes))
    assert "no cache in" in caplog.text and str(blocker) in caplog.text


def test_a_user_without_a_home_folder_loads_without_a_cache(tmp_path, monkeypatch, caplog):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "expanduser", homeless)
    episodes = tiny.make_episodes()
    arrays = tiny.d4rl_arrays(episodes)
    files = (tmp_path / "tiny.hdf5",)
    tiny.write_hdf5(files[0], arrays)
    dataset = cache.cached("tiny", files, lambda name: from_flat_arrays(name, **arrays))
    tiny.assert_arrays(dataset, tiny.expected_arrays(episodes))
    assert "the home folder is not known" in caplog.text


def test_failed_write_leaves_nothing(tmp_path, monkeypatch, caplog):
    """A full disk: no half-written copy, no temporary file, the data is loaded."""

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    episodes = tiny.make_episodes()
    name = tiny.write_hdf5(tmp_path / "tiny.hdf5", tiny.d4rl_arrays(episodes))
    tiny.assert_arrays(load_dataset(name), tiny.expected_arrays(episodes))
    assert "No space left" in caplog.text
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


# --- flat files ---------------------------------------------------------------------------


@pytest.mark.parametrize("successors", ["next row", "own array"])
def test_flat_copy_round_trip(tmp_path, successors):
    dataset = from_flat_arrays("tiny", **tiny.d4rl_arrays(tiny.make_episodes()))
    if successors == "own array":  # a source whose successors are not the next rows
        moved = dataset.next_observations + np.float32(0.5)
        dataset = dataclasses.replace(dataset, next_observations=moved)
    flat_file.write(dataset, tmp_path / "copy.npz", compress=True)
    again = flat_file.read(tmp_path / "copy.npz", "tiny")
    for name in tiny.ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(dataset, name))
    assert ("next_observations" in np.load(tmp_path / "copy.npz")) == (successors == "own array")


def _with_origin():
    dataset = from_flat_arrays("tiny", **tiny.d4rl_arrays(tiny.make_episodes()))
    return dataclasses.replace(
        dataset,
        environment="Hopper-v5",
        recorded=Recorded(
            {"range": [0.7, float("inf")]}, ("FlattenObservation",), 50, Physics(mass=2.0)
        ),
        references=References(-3.0, 7.5),
        notes=("3 steps count as time-outs",),
    )


def test_the_origin_of_data_survives_the_copy(tmp_path):
    dataset = _with_origin()
    flat_file.write(dataset, tmp_path / "copy.npz", compress=False)
    again = flat_file.read(tmp_path / "copy.npz", "tiny")
    for field in ("environment", "recorded", "references", "notes"):
        assert getattr(again, field) == getattr(dataset, field), field


def test_meta_is_json(tmp_path):
    """The copy's origin survives as JSON, so that no pickle is ever loaded."""
    flat_file.write(_with_origin(), tmp_path / "copy.npz", compress=False)
    with np.load(tmp_path / "copy.npz", allow_pickle=False) as file:
        assert json.loads(str(file["meta"]))["environment"] == "Hopper-v5"


def test_notes_are_told_on_every_load(tmp_path, caplog):
    """A copy is read without the checks of the file: what they found is part of the copy."""
    arrays = tiny.d4rl_arrays(tiny.make_episodes())
    del arrays["timeouts"]
    name = tiny.write_hdf5(tmp_path / "tiny.hdf5", arrays)
    for _ in range(2):
        caplog.clear()
        load_dataset(name)
        assert caplog.text.count("count as time-outs") == 1
    assert len(_copies(tmp_path)) == 1
