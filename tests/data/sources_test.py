"""Sources of datasets: which one reads a name, and a new one."""

import numpy as np
import pytest
import tiny_data as tiny

from dawm_jax.data.d4rl import from_flat_arrays
from dawm_jax.data.load import load_dataset
from dawm_jax.data.sources import SOURCES, source_of
from dawm_jax.types import UserError


class _MemorySource:
    """Datasets of the tests: memory/<seed>."""

    name = "memory"
    priority = 5

    def matches(self, name):
        return name.startswith("memory/")

    def fetch(self, name):
        return ()

    def load(self, name):
        return from_flat_arrays(name, **tiny.d4rl_arrays(tiny.make_episodes(int(name[7:]))))


def test_a_registered_source_is_read_by_the_only_door(tmp_path):
    SOURCES.register(_MemorySource())
    try:
        dataset = load_dataset("memory/3")
        tiny.assert_arrays(dataset, tiny.expected_arrays(tiny.make_episodes(3)))
        assert dataset.name == "memory/3"
        assert not (tmp_path / "cache").exists()  # it names no files to cache by
    finally:
        SOURCES.unregister("memory")
    with pytest.raises(UserError, match="unknown dataset 'memory/3'"):
        load_dataset("memory/3")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("bundled/hopper/medium-v0", "bundled"),
        ("bundled/x.hdf5", "bundled"),
        ("/data/hopper.hdf5", "d4rl"),
        ("/data/hopper.npz", "flat_npz"),
        ("hopper.npz", "flat_npz"),
        ("memory:hopper", "arrays"),
        ("dawm/hopper/medium-v1.h5", "d4rl"),
        ("dawm/hopper/medium-v1", "tiers"),
        ("dawm/hopper/medium-v0", "minari"),
        ("mujoco/hopper/medium-v0", "minari"),
        ("anything else", "minari"),
    ],
)
def test_the_first_source_that_matches_a_name_reads_it(name, source):
    assert source_of(name).name == source


def test_minari_and_d4rl_give_identical_arrays(tmp_path):
    episodes = tiny.make_episodes()
    minari_set = load_dataset(tiny.write_minari(episodes))
    d4rl = load_dataset(tiny.write_hdf5(tmp_path / "tiny.hdf5", tiny.d4rl_arrays(episodes)))
    for name in tiny.ARRAYS:
        np.testing.assert_array_equal(getattr(minari_set, name), getattr(d4rl, name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no such thing", "unknown dataset"),
        ("mujoco/hopper/medium", "unknown dataset"),  # no version
        ("", "unknown dataset"),
        ("bundled/nothing-v0", "unknown bundled dataset"),
        ("missing.hdf5", "not found"),
        ("/nowhere/at/all", "not found"),
        ("missing.npz", "not found"),
        ("memory:mine", "pass them as dataset="),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(UserError) as error:
        load_dataset(name)
    tiny.assert_one_line(error, message, name)


def test_a_name_of_several_lines_is_refused_in_one():
    with pytest.raises(UserError) as error:
        load_dataset("two\nlines.hdf5")
    tiny.assert_one_line(error, "two\\nlines.hdf5")
