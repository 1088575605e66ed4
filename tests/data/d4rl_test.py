"""D4RL files: what was recorded is read, and every mistake is one clear line."""

import os

import h5py
import numpy as np
import pytest
import tiny_data as tiny

from dawm_jax.data.d4rl import from_flat_arrays
from dawm_jax.data.load import load_dataset
from dawm_jax.types import UserError


def test_d4rl_reads_what_was_recorded(tmp_path):
    episodes = tiny.make_episodes()
    name = tiny.write_hdf5(tmp_path / "tiny.hdf5", tiny.d4rl_arrays(episodes))
    tiny.assert_arrays(load_dataset(name), tiny.expected_arrays(episodes))


def test_terminal_and_timeout_at_once_is_a_termination(tmp_path):
    episodes = tiny.make_episodes()
    arrays = tiny.d4rl_arrays(episodes)
    arrays["timeouts"] = arrays["timeouts"] | arrays["terminals"]
    name = tiny.write_hdf5(tmp_path / "tiny.hdf5", arrays)
    tiny.assert_arrays(load_dataset(name), tiny.expected_arrays(episodes))


def test_without_timeouts_only_terminals_and_the_file_end_episodes(tmp_path):
    arrays = tiny.d4rl_arrays(tiny.make_episodes())
    del arrays["timeouts"]
    arrays = {name: array[:9] for name, array in arrays.items()}  # ends inside an episode
    dataset = load_dataset(tiny.write_hdf5(tmp_path / "tiny.hdf5", arrays))
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminations), [3])
    np.testing.assert_array_equal(np.flatnonzero(dataset.truncations), [8])
    np.testing.assert_array_equal(dataset.next_observations, arrays["next_observations"])


@pytest.mark.parametrize("float_flags", [False, True])
def test_without_next_observations_cut_ends_lose_their_last_step(tmp_path, float_flags):
    """Episodes of 4 (ended), 3 (cut), 2 (cut) and 3 (ended) steps: rows 6 and 8 go."""
    episodes = tiny.make_episodes()
    expected, arrays = tiny.expected_arrays(episodes), tiny.d4rl_arrays(episodes)
    del arrays["next_observations"]
    if float_flags:  # some files store flags as numbers, one column wide
        for name in ("terminals", "timeouts"):
            arrays[name] = arrays[name].astype(np.float32)[:, None]
    dataset = load_dataset(tiny.write_hdf5(tmp_path / "tiny.hdf5", arrays))

    kept = np.array([0, 1, 2, 3, 4, 5, 7, 9, 10, 11])
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(dataset, name), expected[name][kept])
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminations), [3, 9])
    np.testing.assert_array_equal(np.flatnonzero(dataset.truncations), [5, 6])
    next_rows = np.array([1, 2, 3, -1, 5, 6, 8, 10, 11, -1])
    real = next_rows >= 0
    np.testing.assert_array_equal(
        dataset.next_observations[real], expected["observations"][next_rows[real]]
    )
    # After a terminal step the line through the last two states continues.
    for row, last in ((3, 3), (9, 11)):
        line = 2 * expected["observations"][last] - expected["observations"][last - 1]
        np.testing.assert_array_equal(dataset.next_observations[row], line)


def test_without_next_observations_a_one_step_episode():
    """A lone terminal step stays put; a lone cut step is dropped."""
    observations = np.arange(6, dtype=np.float32)[:, None]
    dataset = from_flat_arrays(
        "tiny",
        observations,
        actions=observations,
        rewards=np.arange(6),
        terminals=np.array([0, 1, 1, 0, 0, 1]),
        timeouts=np.array([0, 0, 0, 1, 0, 0]),
    )
    np.testing.assert_array_equal(dataset.rewards, [0, 1, 2, 4, 5])
    np.testing.assert_array_equal(dataset.next_observations[:, 0], [1, 2, 2, 5, 6])
    np.testing.assert_array_equal(dataset.terminations, [0, 1, 1, 0, 1])
    assert not dataset.truncations.any()


# --- bad input ----------------------------------------------------------------------------


def _broken(change):
    def build(folder):
        arrays = tiny.d4rl_arrays(tiny.make_episodes())
        change(arrays)
        return tiny.write_hdf5(folder / "broken.hdf5", arrays)

    return build


def _set(name, index, value):
    def change(arrays):
        arrays[name][index] = value

    return _broken(change)


def _replace(**new):
    return _broken(lambda arrays: arrays.update(new))


def _drop(*names):
    return _broken(lambda arrays: [arrays.pop(name) for name in names])


def _empty(arrays):
    arrays.update({name: array[:0] for name, array in arrays.items()})


def _images(arrays):
    arrays["observations"] = np.zeros((12, 4, 4, 3), np.float32)
    del arrays["next_observations"]


def _scalar_observations(arrays):
    arrays["observations"] = np.zeros(12, np.float32)
    del arrays["next_observations"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(_drop("rewards", "terminals"), "got no rewards, terminals", id="missing"),
        pytest.param(_set("observations", (5, 1), np.nan), "observations, the first at step 5"),
        pytest.param(_set("actions", (7, 0), np.inf), "actions, the first at step 7"),
        pytest.param(_set("rewards", 2, -np.inf), "rewards, the first at step 2"),
        pytest.param(_set("next_observations", (4, 2), np.nan), "next_observations, the first at"),
        pytest.param(_replace(rewards=np.zeros(11)), "differ in length: [11, 12]", id="lengths"),
        pytest.param(_replace(rewards=np.zeros((12, 2))), "differ in length", id="reward columns"),
        pytest.param(_replace(timeouts=np.zeros(13, bool)), "differ in length", id="timeouts"),
        pytest.param(_replace(actions=np.zeros((12, 1), np.int64)), "discrete", id="integers"),
        pytest.param(_replace(actions=np.zeros(12, np.float32)), "discrete", id="action rank"),
        pytest.param(
            _replace(actions=np.zeros((12, 0), np.float32)), "actions of shape", id="no actions"
        ),
        pytest.param(_broken(_empty), "empty", id="empty"),
        pytest.param(_broken(_images), "observations of shape", id="images"),
        pytest.param(_broken(_scalar_observations), "observations of shape", id="scalars"),
        pytest.param(
            _replace(next_observations=np.zeros((12, 5))), "next_observations of shape", id="width"
        ),
        pytest.param(_replace(terminals=np.ones(12, bool)), "have one step", id="one step each"),
        pytest.param(
            _replace(observations=np.array([b"text"] * 12).reshape(12, 1)), "numbers", id="text"
        ),
    ],
)
@pytest.mark.filterwarnings("error")
def test_broken_d4rl_files(tmp_path, build, message):
    name = build(tmp_path)
    with pytest.raises(UserError) as error:
        load_dataset(name)
    tiny.assert_one_line(error, message, name)
    assert not list((tmp_path / "cache").rglob("*.npz"))  # bad data is never kept


def test_d4rl_group_instead_of_an_array(tmp_path):
    arrays = tiny.d4rl_arrays(tiny.make_episodes())
    del arrays["observations"]
    path = tmp_path / "group.hdf5"
    tiny.write_hdf5(path, arrays)
    with h5py.File(path, "a") as file:
        file["observations/camera"] = np.zeros((12, 3))
    with pytest.raises(UserError) as error:
        load_dataset(str(path))
    tiny.assert_one_line(error, "observations", str(path))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_truncated_hdf5(tmp_path, share):
    name = tiny.write_hdf5(tmp_path / "cut.hdf5", tiny.d4rl_arrays(tiny.make_episodes()))
    os.truncate(name, int(share * os.path.getsize(name)))
    with pytest.raises(UserError) as error:
        load_dataset(name)
    tiny.assert_one_line(error, "not a readable HDF5 file", name)
