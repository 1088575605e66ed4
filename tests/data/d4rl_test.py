"""D4RL files: what was recorded is read, and every mistake is one clear line."""

import os
import pathlib
import pickle

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


# --- files that do not mark where a time limit cut ------------------------------------------


def _no_timeouts(arrays):
    del arrays["timeouts"]


def _none_marked(arrays):
    arrays["timeouts"][:] = False


def _one_marked(arrays):
    arrays["timeouts"][6] = True
    arrays["timeouts"][8] = False


@pytest.mark.parametrize("unmark", [_no_timeouts, _none_marked, _one_marked])
@pytest.mark.parametrize("other_precision", [False, True])
def test_steps_without_their_successor_are_time_outs(tmp_path, caplog, unmark, other_precision):
    """Episodes end at rows 3 (terminal), 6 (cut), 8 (cut) and 11 (terminal)."""
    episodes = tiny.make_episodes()
    arrays = tiny.d4rl_arrays(episodes)
    unmark(arrays)
    if other_precision:
        arrays["observations"] = arrays["observations"].astype(np.float64)
    dataset = load_dataset(tiny.write_hdf5(tmp_path / "tiny.hdf5", arrays))
    tiny.assert_arrays(dataset, tiny.expected_arrays(episodes))
    count = 1 if unmark is _one_marked else 2
    assert f"next_observations of {count} unmarked steps" in caplog.text
    assert len(caplog.records) == 1


def test_a_marked_file_is_read_without_a_warning(tmp_path, caplog):
    arrays = tiny.d4rl_arrays(tiny.make_episodes())
    load_dataset(tiny.write_hdf5(tmp_path / "tiny.hdf5", arrays))
    assert not caplog.records


def qlearning_dump(num_episodes=20, steps=100, dtype=np.float64):
    """What `d4rl.qlearning_dataset` returns: no timeouts, no last step of timed-out episodes."""
    rng = np.random.default_rng(0)
    walks = [
        (np.cumsum(rng.normal(0, 0.01, (steps + 1, 5)), 0) + rng.normal(0, 3, 5)).astype(dtype)
        for _ in range(num_episodes)
    ]
    rows = num_episodes * (steps - 1)
    return {
        "observations": np.concatenate([walk[: steps - 1] for walk in walks]),
        "next_observations": np.concatenate([walk[1:steps] for walk in walks]),
        "actions": rng.uniform(-1, 1, (rows, 2)),
        "rewards": rng.uniform(0, 1, rows),
        "terminals": np.zeros(rows, bool),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_qlearning_dump_keeps_its_episodes(tmp_path, caplog, dtype):
    arrays = qlearning_dump(dtype=dtype)
    dataset = load_dataset(tiny.write_hdf5(tmp_path / "dump.hdf5", arrays))
    np.testing.assert_array_equal(dataset.episode_ends, 99 * np.arange(1, 21) - 1)
    assert "next_observations of 19 unmarked steps" in caplog.text


def test_successors_that_were_computed_twice_are_no_cuts():
    """Rounding of the last digits: (x - mean) / std and back, in float32."""
    arrays = qlearning_dump(dtype=np.float32)
    mean, std = np.float32(0.37), np.float32(1.93)
    arrays["next_observations"] = (arrays["next_observations"] - mean) / std * std + mean
    exact = (arrays["next_observations"][:-1] == arrays["observations"][1:]).all(1)
    assert exact.mean() < 0.5
    assert len(from_flat_arrays("dump", **arrays).episode_ends) == 20


@pytest.mark.parametrize("marks", ["absent", "all false"])
def test_unknown_time_outs_are_told(tmp_path, caplog, marks):
    """Neither next_observations nor marks: nothing in the file says where episodes were cut."""
    arrays = tiny.d4rl_arrays(tiny.make_episodes())
    del arrays["next_observations"]
    arrays["timeouts"][:] = False
    if marks == "absent":
        del arrays["timeouts"]
    dataset = load_dataset(tiny.write_hdf5(tmp_path / "tiny.hdf5", arrays))
    np.testing.assert_array_equal(dataset.episode_ends, [3, 11])
    assert len(caplog.records) == 1
    assert "which episodes a time limit cut is unknown" in caplog.text


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


def _set_float_flag(field, value):
    def change(arrays):
        arrays[field] = arrays[field].astype(np.float64)
        arrays[field][5] = value

    return _broken(change)


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
        pytest.param(_replace(rewards=np.zeros(11)), "in length: observations 12", id="lengths"),
        pytest.param(_replace(rewards=np.zeros((12, 2))), "rewards of shape [12]", id="columns"),
        pytest.param(_replace(rewards=np.zeros((1, 12))), "differ in length", id="reward row"),
        pytest.param(_replace(terminals=np.zeros((6, 2))), "differ in length", id="folded flags"),
        pytest.param(_replace(timeouts=np.zeros(13, bool)), "differ in length", id="timeouts"),
        pytest.param(_replace(actions=np.zeros((12, 1), np.int64)), "discrete", id="integers"),
        pytest.param(_replace(actions=np.zeros(12, np.int64)), "discrete", id="integer rank"),
        pytest.param(_replace(actions=np.zeros((12, 2), bool)), "discrete", id="bool actions"),
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
        pytest.param(_replace(rewards=np.zeros(12, complex)), "numbers in rewards", id="complex"),
        pytest.param(
            _replace(observations=np.zeros(12, [("x", "f4")])), "numbers in obs", id="structs"
        ),
        pytest.param(_replace(rewards=np.float32(1)), "a single number", id="0-d rewards"),
        pytest.param(_replace(observations=np.float32(1)), "a single number", id="0-d"),
        *(
            pytest.param(
                _set_float_flag(field, value),
                f"0 or 1 in {field}, got {value}",
                id=f"{field} {value}",
            )
            for field in ("terminals", "timeouts")
            for value in (np.nan, 0.5, -1.0, 255.0)
        ),
        # float32 sums and squares of returns overflow long before the numbers themselves do.
        *(
            pytest.param(_replace(rewards=np.full(12, size)), "rewards", id=f"rewards of {size}")
            for size in (1e16, 1e30, 1e39)
        ),
        pytest.param(_replace(rewards=np.full(12, 3e14)), "add up to", id="large returns"),
        pytest.param(_set("observations", (5, 1), 1e20), "at most 1e+15", id="large state"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_broken_d4rl_files(tmp_path, build, message):
    name = build(tmp_path)
    with pytest.raises(UserError) as error:
        load_dataset(name)
    tiny.assert_one_line(error, message, name)
    assert not list((tmp_path / "cache").rglob("*.npz"))  # bad data is never kept


def _group(file, name):
    file[f"{name}/camera"] = np.zeros((12, 3))


def _dangling(file, name):
    file[name] = h5py.SoftLink("/nowhere")


def _external(file, name):
    file[name] = h5py.ExternalLink("missing.hdf5", "/rewards")


def _circle(file, name):
    file[name] = h5py.SoftLink("/" + name)


def _shapeless(file, name):
    file[name] = h5py.Empty("f4")


def _kind(file, name):
    file[name] = np.dtype("f4")


def _ragged(file, name):
    file.create_dataset(name, (12,), dtype=h5py.vlen_dtype(np.float32))


def _texts(file, name):
    file.create_dataset(name, data=["a"] * 12, dtype=h5py.string_dtype())


def _pointers(file, name):
    file.create_dataset(name, (12,), dtype=h5py.ref_dtype)


def _larger_than_memory(file, name):
    file.create_dataset(name, (2**50,), dtype="f4", chunks=(1024,))


def _larger_than_addresses(file, name):
    file.create_dataset(name, (2**40, 2**22), dtype="f4", chunks=(1024, 1))


@pytest.mark.parametrize("field", ["observations", "timeouts"])
@pytest.mark.parametrize(
    "put",
    [
        *(_group, _dangling, _external, _circle, _shapeless, _kind, _ragged, _texts, _pointers),
        *(_larger_than_memory, _larger_than_addresses),
    ],
)
def test_what_is_no_array_of_numbers(tmp_path, field, put):
    arrays = tiny.d4rl_arrays(tiny.make_episodes())
    del arrays[field]
    name = tiny.write_hdf5(tmp_path / "odd.hdf5", arrays)
    with h5py.File(name, "a") as file:
        put(file, field)
    with pytest.raises(UserError) as error:
        load_dataset(name)
    tiny.assert_one_line(error, name)


def test_a_damaged_chunk(tmp_path):
    arrays = tiny.d4rl_arrays(tiny.make_episodes())
    observations = arrays.pop("observations")
    path = tmp_path / "chunk.hdf5"
    tiny.write_hdf5(path, arrays)
    with h5py.File(path, "a") as file:
        stored = file.create_dataset("observations", data=observations, fletcher32=True)
        offset = stored.id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 5] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_dataset(str(path))
    tiny.assert_one_line(error, "not a readable HDF5 file", str(path))


@pytest.mark.parametrize("name", ["folder.hdf5", "/etc/passwd/x.hdf5", "x" * 300 + ".hdf5"])
def test_paths_that_cannot_be_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.hdf5").mkdir()
    with pytest.raises(UserError) as error:
        load_dataset(name)
    tiny.assert_one_line(error, name)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    """Not the run's folder, which the command names for other errors of the system."""
    name = tiny.write_hdf5(tmp_path / "tiny.hdf5", tiny.d4rl_arrays(tiny.make_episodes()))

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "is_file", refuse)
    with pytest.raises(UserError) as error:
        load_dataset(name)
    tiny.assert_one_line(error, name, "Permission denied")


# --- actions, precision, .npz ---------------------------------------------------------------


def test_one_action_may_be_a_flat_array(tmp_path):
    """As Pendulum and InvertedPendulum are often stored."""
    arrays = tiny.d4rl_arrays(tiny.make_episodes())
    arrays["actions"] = arrays["actions"][:, 0]
    dataset = load_dataset(tiny.write_hdf5(tmp_path / "tiny.hdf5", arrays))
    np.testing.assert_array_equal(dataset.actions, arrays["actions"][:, None])


def test_columns_that_float32_cannot_tell_apart_are_told(tmp_path, caplog):
    arrays = tiny.d4rl_arrays(tiny.make_episodes())
    for name in ("observations", "next_observations"):
        arrays[name] = arrays[name].astype(np.float64)
        arrays[name][:, 1] += 1.7e9  # seconds since 1970
    load_dataset(tiny.write_hdf5(tmp_path / "tiny.hdf5", arrays))
    (record,) = caplog.records
    assert "columns 1 of observations: float32 keeps less than half" in record.getMessage()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files_are_read_as_hdf5_files_are(tmp_path, save):
    episodes = tiny.make_episodes()
    path = tmp_path / "tiny.npz"
    save(path, **tiny.d4rl_arrays(episodes), infos=np.zeros(3))
    tiny.assert_arrays(load_dataset(str(path)), tiny.expected_arrays(episodes))
    assert not list((tmp_path / "cache").rglob("*.npz"))


def _objects(path, arrays):
    np.savez(path, **{**arrays, "rewards": np.array([{}] * 12, object)})


def _single(path, arrays):
    with path.open("wb") as file:
        np.save(file, arrays["observations"])


def _cut_archive(path, arrays):
    np.savez(path, **arrays)
    path.write_bytes(path.read_bytes()[:-200])


def _flipped(path, arrays):
    np.savez(path, **arrays)
    content = bytearray(path.read_bytes())
    content[200] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    "write",
    [
        *(_objects, _single, _cut_archive, _flipped),
        lambda path, arrays: np.savez(path, **{**arrays, "rewards": np.zeros(3)}),
        lambda path, arrays: np.savez(path, observations=arrays["observations"]),
        lambda path, arrays: path.write_bytes(pickle.dumps(arrays)),
        lambda path, arrays: path.write_text("two\nlines"),
        lambda path, arrays: path.write_bytes(b""),
        lambda path, arrays: None,
    ],
    ids=[
        *("objects", "single", "cut", "flipped", "lengths", "missing", "pickle", "text", "empty"),
        "absent",
    ],
)
def test_broken_npz_files(tmp_path, write):
    path = tmp_path / "broken.npz"
    write(path, tiny.d4rl_arrays(tiny.make_episodes()))
    with pytest.raises(UserError) as error:
        load_dataset(str(path))
    tiny.assert_one_line(error, str(path))
    assert "unsafe" not in str(error.value)  # NumPy's own advice is to load the pickle


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_truncated_hdf5(tmp_path, share):
    name = tiny.write_hdf5(tmp_path / "cut.hdf5", tiny.d4rl_arrays(tiny.make_episodes()))
    os.truncate(name, int(share * os.path.getsize(name)))
    with pytest.raises(UserError) as error:
        load_dataset(name)
    tiny.assert_one_line(error, "not a readable HDF5 file", name)
