"""Datasets: every source gives the same arrays, every bad input one clear line."""

import json
import os
import pathlib
import socket
import types

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from dawm_jax.data import dataset as data
from dawm_jax.types import UserError

_STATE_SIZE, _ACTION_SIZE = 3, 2
_ARRAYS = (
    "observations",
    "actions",
    "rewards",
    "next_observations",
    "terminations",
    "truncations",
)
# (steps, how the recorder closed the episode)
_EPISODES = ((4, "terminated"), (3, "truncated"), (2, "open"), (3, "terminated"))


@pytest.fixture(autouse=True)
def _private_folders(tmp_path, monkeypatch):
    """No test reads or writes the user's datasets, and none reaches the network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    for name in ("MINARI_REMOTE", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)

    def refuse(*args, **kwargs):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)


def _episodes(seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    episodes = []
    for steps, end in _EPISODES:
        episode = {
            "observations": rng.normal(size=(steps + 1, _STATE_SIZE)).astype(np.float32),
            "actions": rng.uniform(-1, 1, (steps, _ACTION_SIZE)).astype(np.float32),
            "rewards": rng.normal(size=steps).astype(np.float32),
            "terminations": np.zeros(steps, bool),
            "truncations": np.zeros(steps, bool),
        }
        episode["terminations"][-1] = end == "terminated"
        episode["truncations"][-1] = end == "truncated"
        episodes.append(episode)
    return episodes


def _join(episodes, pick) -> np.ndarray:
    return np.concatenate([pick(episode) for episode in episodes])


def _expected(episodes) -> dict[str, np.ndarray]:
    """What a loader must give: an open episode counts as cut."""
    cut = [np.zeros(steps, bool) for steps, _ in _EPISODES]
    for (_, end), flags in zip(_EPISODES, cut, strict=True):
        flags[-1] = end != "terminated"
    return {
        "observations": _join(episodes, lambda e: e["observations"][:-1]),
        "actions": _join(episodes, lambda e: e["actions"]),
        "rewards": _join(episodes, lambda e: e["rewards"]),
        "next_observations": _join(episodes, lambda e: e["observations"][1:]),
        "terminations": _join(episodes, lambda e: e["terminations"]),
        "truncations": np.concatenate(cut),
    }


def _d4rl_arrays(episodes) -> dict[str, np.ndarray]:
    expected = _expected(episodes)
    return {
        "observations": expected["observations"],
        "actions": expected["actions"],
        "rewards": expected["rewards"],
        "next_observations": expected["next_observations"],
        "terminals": expected["terminations"],
        "timeouts": expected["truncations"],
    }


def _write_hdf5(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> str:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return str(path)


def _write_minari(
    episodes, name="test/tiny-v0", action_space=None, observation_space=None, actions=None
) -> str:
    minari.create_dataset_from_buffers(
        name,
        [
            EpisodeBuffer(
                observations=list(e["observations"]),
                actions=list(e["actions"]),
                rewards=list(e["rewards"]),
                terminations=list(e["terminations"]),
                truncations=list(e["truncations"]),
            )
            for e in episodes
        ],
        action_space=action_space or gym.spaces.Box(-1, 1, (_ACTION_SIZE,), np.float32),
        observation_space=observation_space
        or gym.spaces.Box(-np.inf, np.inf, (_STATE_SIZE,), np.float32),
    )
    return name


def _assert_arrays(dataset, expected):
    for name in _ARRAYS:
        np.testing.assert_array_equal(getattr(dataset, name), expected[name], err_msg=name)
    for name in _ARRAYS[:4]:
        assert getattr(dataset, name).dtype == np.float32, name


def _assert_one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


# --- the three sources --------------------------------------------------------------------


def test_bundled_dataset_is_hopper():
    dataset = data.load_dataset("bundled/hopper/medium-v0")
    assert dataset.environment == "Hopper-v5"
    assert dataset.observations.shape == (len(dataset), 11)
    assert dataset.next_observations.shape == (len(dataset), 11)
    assert dataset.actions.shape == (len(dataset), 3)
    assert not (dataset.terminations & dataset.truncations).any()
    assert dataset.episode_ends[-1] == len(dataset) - 1
    # Inside an episode the successor is the next row.
    inside = np.setdiff1d(np.arange(len(dataset)), dataset.episode_ends)
    np.testing.assert_array_equal(
        dataset.next_observations[inside], dataset.observations[inside + 1]
    )
    # Gymnasium's Hopper ends at a height below 0.7 or an angle beyond 0.2 (or, rarely, at a
    # state or velocity of 100), never elsewhere.
    height, angle = dataset.next_observations[:, 0], dataset.next_observations[:, 1]
    fallen = (height < 0.7) | (np.abs(angle) > 0.2)
    np.testing.assert_array_equal(fallen, dataset.terminations)


def test_minari_reads_what_was_recorded():
    episodes = _episodes()
    dataset = data.load_dataset(_write_minari(episodes))
    _assert_arrays(dataset, _expected(episodes))
    assert dataset.environment is None


def test_d4rl_reads_what_was_recorded(tmp_path):
    episodes = _episodes()
    name = _write_hdf5(tmp_path / "tiny.hdf5", _d4rl_arrays(episodes))
    _assert_arrays(data.load_dataset(name), _expected(episodes))


def test_minari_and_d4rl_give_identical_arrays(tmp_path):
    episodes = _episodes()
    minari_set = data.load_dataset(_write_minari(episodes))
    d4rl = data.load_dataset(_write_hdf5(tmp_path / "tiny.hdf5", _d4rl_arrays(episodes)))
    for name in _ARRAYS:
        np.testing.assert_array_equal(getattr(minari_set, name), getattr(d4rl, name))


class _Drift(gym.Env):
    """State grows by the action; ends by itself above 1, which constant actions reach."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (_STATE_SIZE,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (_ACTION_SIZE,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._state = np.zeros(_STATE_SIZE, np.float32)
        return self._state.copy(), {}

    def step(self, action):
        self._state = self._state + np.float32(action.sum())
        return self._state.copy(), float(self._state[0]), bool(self._state[0] > 1), False, {}


def test_minari_collector_with_an_episode_left_open():
    collector = minari.DataCollector(gym.wrappers.TimeLimit(_Drift(), 3))
    # Ends by itself at step 2, times out at step 3, is left open after 2 steps.
    for rate, steps in ((0.4, 2), (0.1, 3), (0.1, 2)):
        collector.reset()
        for _ in range(steps):
            collector.step(np.full(_ACTION_SIZE, rate, np.float32))
    collector.create_dataset("test/drift-v0")
    collector.close()

    dataset = data.load_dataset("test/drift-v0")
    sizes = np.float32([0.8, 0.8, 0.2, 0.2, 0.2, 0.2, 0.2])
    starts = [0, 2, 5]
    after = np.concatenate([np.cumsum(part) for part in np.split(sizes, starts[1:])])
    before = after - sizes
    np.testing.assert_allclose(dataset.observations, np.tile(before[:, None], 3), atol=1e-6)
    np.testing.assert_allclose(dataset.next_observations, np.tile(after[:, None], 3), atol=1e-6)
    np.testing.assert_allclose(dataset.rewards, after, atol=1e-6)
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminations), [1])
    np.testing.assert_array_equal(np.flatnonzero(dataset.truncations), [4, 6])


def test_minari_environment_is_the_recorded_one():
    buffer = EpisodeBuffer(
        observations=[np.zeros(11)] * 3,
        actions=[np.zeros(3, np.float32)] * 2,
        rewards=[1.0, 2.0],
        terminations=[False, True],
        truncations=[False, False],
    )
    minari.create_dataset_from_buffers("test/hopper-v0", [buffer], env="Hopper-v5")
    assert data.load_dataset("test/hopper-v0").environment == "Hopper-v5"
    # Also from the flat copy.
    assert data.load_dataset("test/hopper-v0").environment == "Hopper-v5"


# --- D4RL's flat arrays -------------------------------------------------------------------


def test_terminal_and_timeout_at_once_is_a_termination(tmp_path):
    episodes = _episodes()
    arrays = _d4rl_arrays(episodes)
    arrays["timeouts"] = arrays["timeouts"] | arrays["terminals"]
    name = _write_hdf5(tmp_path / "tiny.hdf5", arrays)
    _assert_arrays(data.load_dataset(name), _expected(episodes))


def test_without_timeouts_only_terminals_and_the_file_end_episodes(tmp_path):
    arrays = _d4rl_arrays(_episodes())
    del arrays["timeouts"]
    arrays = {name: array[:9] for name, array in arrays.items()}  # ends inside an episode
    dataset = data.load_dataset(_write_hdf5(tmp_path / "tiny.hdf5", arrays))
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminations), [3])
    np.testing.assert_array_equal(np.flatnonzero(dataset.truncations), [8])
    np.testing.assert_array_equal(dataset.next_observations, arrays["next_observations"])


@pytest.mark.parametrize("float_flags", [False, True])
def test_without_next_observations_cut_ends_lose_their_last_step(tmp_path, float_flags):
    """Episodes of 4 (ended), 3 (cut), 2 (cut) and 3 (ended) steps: rows 6 and 8 go."""
    episodes = _episodes()
    expected, arrays = _expected(episodes), _d4rl_arrays(episodes)
    del arrays["next_observations"]
    if float_flags:  # some files store flags as numbers, one column wide
        for name in ("terminals", "timeouts"):
            arrays[name] = arrays[name].astype(np.float32)[:, None]
    dataset = data.load_dataset(_write_hdf5(tmp_path / "tiny.hdf5", arrays))

    kept = np.array([0, 1, 2, 3, 4, 5, 7, 9, 10, 11])
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(dataset, name), expected[name][kept])
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminations), [3, 9])
    np.testing.assert_array_equal(np.flatnonzero(dataset.truncations), [5, 6])
    following = np.array([1, 2, 3, -1, 5, 6, 8, 10, 11, -1])
    real = following >= 0
    np.testing.assert_array_equal(
        dataset.next_observations[real], expected["observations"][following[real]]
    )
    # After a terminal step the line through the last two states goes on.
    for row, last in ((3, 3), (9, 11)):
        line = 2 * expected["observations"][last] - expected["observations"][last - 1]
        np.testing.assert_array_equal(dataset.next_observations[row], line)


def test_without_next_observations_a_one_step_episode():
    """A lone terminal step stays put; a lone cut step is dropped."""
    observations = np.arange(6, dtype=np.float32)[:, None]
    dataset = data.from_flat_arrays(
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


def test_episode_returns():
    episodes = _episodes()
    arrays = _d4rl_arrays(episodes)
    dataset = data.from_flat_arrays("tiny", **arrays)
    np.testing.assert_array_equal(dataset.episode_ends, np.cumsum([4, 3, 2, 3]) - 1)
    np.testing.assert_allclose(
        dataset.episode_returns, [e["rewards"].astype(np.float64).sum() for e in episodes]
    )


# --- the flat copy ------------------------------------------------------------------------


def _sources(tmp_path):
    return {
        "minari": lambda episodes: _write_minari(episodes),
        "d4rl": lambda episodes: _write_hdf5(tmp_path / "tiny.hdf5", _d4rl_arrays(episodes)),
    }


def _copies(tmp_path) -> list[pathlib.Path]:
    return sorted((tmp_path / "cache").rglob("*.npz"))


@pytest.mark.parametrize("source", ["minari", "d4rl"])
def test_second_load_reads_the_flat_copy(tmp_path, monkeypatch, source):
    episodes = _episodes()
    name = _sources(tmp_path)[source](episodes)
    data.load_dataset(name)
    assert len(_copies(tmp_path)) == 1

    def refuse(*args, **kwargs):
        raise AssertionError("read again")

    monkeypatch.setattr(data, "_read_d4rl", refuse)
    monkeypatch.setattr(data, "_read_minari", refuse)
    _assert_arrays(data.load_dataset(name), _expected(episodes))
    with pytest.raises(AssertionError, match="read again"):
        data.load_dataset(name, cache=False)


@pytest.mark.parametrize("source", ["minari", "d4rl"])
def test_changed_data_is_read_again(tmp_path, source):
    name = _sources(tmp_path)[source](_episodes())
    data.load_dataset(name)
    if source == "minari":
        minari.delete_dataset(name)
    _sources(tmp_path)[source](_episodes(seed=1))
    _assert_arrays(data.load_dataset(name), _expected(_episodes(seed=1)))


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
    episodes = _episodes()
    name = _write_hdf5(tmp_path / "tiny.hdf5", _d4rl_arrays(episodes))
    data.load_dataset(name)
    (copy,) = _copies(tmp_path)
    good = copy.read_bytes()
    copy.write_bytes(damage(good))
    _assert_arrays(data.load_dataset(name), _expected(episodes))
    assert "is damaged" in caplog.text
    # It was replaced by a good one.
    caplog.clear()
    _assert_arrays(data.load_dataset(name), _expected(episodes))
    assert not caplog.text


def test_unwritable_cache_only_warns(tmp_path, monkeypatch, caplog):
    blocker = tmp_path / "blocker"
    blocker.write_text("a file where a folder should be: refused to every user, root too")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocker))
    episodes = _episodes()
    name = _write_hdf5(tmp_path / "tiny.hdf5", _d4rl_arrays(episodes))
    _assert_arrays(data.load_dataset(name), _expected(episodes))
    assert "no cached copy" in caplog.text


def test_failed_write_leaves_nothing(tmp_path, monkeypatch, caplog):
    """A full disk: no half-written copy, no temporary file, the data is loaded."""

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    episodes = _episodes()
    name = _write_hdf5(tmp_path / "tiny.hdf5", _d4rl_arrays(episodes))
    _assert_arrays(data.load_dataset(name), _expected(episodes))
    assert "No space left" in caplog.text
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("successors", ["next row", "own array"])
def test_flat_copy_round_trip(tmp_path, successors):
    arrays = _d4rl_arrays(_episodes())
    if successors == "own array":  # an episode whose successor is not the next row
        arrays["next_observations"] = arrays["next_observations"] + np.float32(0.5)
    dataset = data.from_flat_arrays("tiny", **arrays)
    data.write_flat(dataset, tmp_path / "copy.npz", compress=True)
    again = data.read_flat(tmp_path / "copy.npz", "tiny")
    for name in _ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(dataset, name))
    assert ("next_observations" in np.load(tmp_path / "copy.npz")) == (successors == "own array")


# --- bad input ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no such thing", "unknown dataset"),
        ("mujoco/hopper/medium", "unknown dataset"),  # no version
        ("", "unknown dataset"),
        ("bundled/nothing-v0", "unknown bundled dataset"),
        ("missing.hdf5", "not found"),
        ("/nowhere/at/all", "not found"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(UserError) as error:
        data.load_dataset(name)
    _assert_one_line(error, message, name)


def test_no_network_is_one_clear_line():
    with pytest.raises(UserError) as error:
        data.load_dataset("mujoco/hopper/medium-v0")
    _assert_one_line(error, "mujoco/hopper/medium-v0", "could not be downloaded", "unreachable")


def _broken(change):
    def build(folder):
        arrays = _d4rl_arrays(_episodes())
        change(arrays)
        return _write_hdf5(folder / "broken.hdf5", arrays)

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
        data.load_dataset(name)
    _assert_one_line(error, message, name)
    assert _copies(tmp_path) == []  # bad data is never kept


def test_d4rl_group_instead_of_an_array(tmp_path):
    arrays = _d4rl_arrays(_episodes())
    del arrays["observations"]
    path = tmp_path / "group.hdf5"
    _write_hdf5(path, arrays)
    with h5py.File(path, "a") as file:
        file["observations/camera"] = np.zeros((12, 3))
    with pytest.raises(UserError) as error:
        data.load_dataset(str(path))
    _assert_one_line(error, "observations", str(path))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_truncated_hdf5(tmp_path, share):
    name = _write_hdf5(tmp_path / "cut.hdf5", _d4rl_arrays(_episodes()))
    os.truncate(name, int(share * os.path.getsize(name)))
    with pytest.raises(UserError) as error:
        data.load_dataset(name)
    _assert_one_line(error, "not a readable HDF5 file", name)


_WIDE = gym.spaces.Box(np.linspace(-9, -1, 60), np.linspace(1, 9, 60), dtype=np.float64)


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ({"action_space": gym.spaces.Discrete(2)}, "flat Box space of actions"),
        (
            {"observation_space": gym.spaces.Dict(state=_WIDE, goal=_WIDE)},
            "flat Box space of observations",
        ),
        ({"observation_space": gym.spaces.Tuple((_WIDE,))}, "flat Box space of observations"),
        (
            {"observation_space": gym.spaces.Box(0, 1, (4, 4, 3))},
            "flat Box space of observations",
        ),
    ],
    ids=["discrete", "dict", "tuple", "image"],
)
def test_minari_other_spaces(spaces, message):
    """A space's text spans several lines once it has many bounds; the error does not."""
    action_space = spaces.get("action_space", gym.spaces.Box(-1, 1, (2,)))
    observation_space = spaces.get("observation_space", gym.spaces.Box(-1, 1, (3,)))
    steps = [(observation_space.sample(), action_space.sample()) for _ in range(3)]
    import jax

    stack = lambda items: jax.tree.map(lambda *leaves: list(leaves), *items)
    buffer = EpisodeBuffer(
        observations=stack([observation for observation, _ in steps]),
        actions=stack([action for _, action in steps[:2]]),
        rewards=[0.0, 0.0],
        terminations=[False, True],
        truncations=[False, False],
    )
    minari.create_dataset_from_buffers(
        "test/other-v0", [buffer], action_space=action_space, observation_space=observation_space
    )
    with pytest.raises(UserError) as error:
        data.load_dataset("test/other-v0")
    _assert_one_line(error, message, "test/other-v0")


def test_damaged_minari_data(tmp_path):
    name = _write_minari(_episodes())
    (file,) = (tmp_path / "minari").rglob("main_data.hdf5")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(UserError) as error:
        data.load_dataset(name)
    _assert_one_line(error, name, "minari download --force")


def test_damaged_minari_metadata(tmp_path):
    name = _write_minari(_episodes())
    (file,) = (tmp_path / "minari").rglob("metadata.json")
    file.unlink()
    with pytest.raises(UserError) as error:
        data.load_dataset(name)
    _assert_one_line(error, name, "minari download --force")


def _episode(steps: int, **changes):
    fields = {
        "observations": np.zeros((steps + 1, _STATE_SIZE)),
        "actions": np.zeros((steps, _ACTION_SIZE)),
        "rewards": np.zeros(steps),
        "terminations": np.arange(steps) == steps - 1,
        "truncations": np.zeros(steps, bool),
    }
    return types.SimpleNamespace(**{**fields, **changes})


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ([], "no episodes"),
        ([_episode(3), _episode(0)], "episode 1 is empty"),
        ([_episode(1), _episode(1), _episode(1)], "have one step"),
        ([_episode(3, rewards=np.array([0.0, np.nan, 0.0]))], "rewards, the first at step 1"),
    ],
    ids=["none", "empty episode", "one step each", "nan"],
)
def test_bad_episodes(episodes, message):
    with pytest.raises(UserError) as error:
        data.from_episodes("test/bad-v0", episodes)
    _assert_one_line(error, message, "test/bad-v0")


# --- action bounds ------------------------------------------------------------------------


def _with_actions(actions):
    arrays = _d4rl_arrays(_episodes())
    arrays["actions"] = np.asarray(actions, np.float32)
    return data.from_flat_arrays("tiny", **arrays)


def test_actions_are_scaled_to_the_unit_box():
    low, high = np.float32([-2.0, 1.0]), np.float32([4.0, 1.5])
    rows = [low, high, (low + high) / 2, low + 0.25 * (high - low)] * 3
    scaled = data.scale_actions(_with_actions(rows), low, high)
    expected = np.float32([[-1, -1], [1, 1], [0, 0], [-0.5, -0.5]] * 3)
    np.testing.assert_array_equal(scaled, expected)  # all powers of two: exact
    assert scaled.dtype == np.float32


def test_rounding_outside_the_bounds_is_clipped():
    rows = np.full((12, _ACTION_SIZE), 1.0005)
    ones = np.ones(_ACTION_SIZE, np.float32)
    np.testing.assert_array_equal(data.scale_actions(_with_actions(rows), -ones, ones), 1.0)


def test_actions_outside_the_bounds():
    rows = np.zeros((12, _ACTION_SIZE))
    rows[3, 1] = -1.5
    ones = np.ones(_ACTION_SIZE, np.float32)
    with pytest.raises(UserError) as error:
        data.scale_actions(_with_actions(rows), -ones, ones)
    _assert_one_line(error, "tiny", "exceed the environment's bounds by 0.5")


def test_other_number_of_actions():
    ones = np.ones(5, np.float32)
    with pytest.raises(UserError) as error:
        data.scale_actions(_with_actions(np.zeros((12, _ACTION_SIZE))), -ones, ones)
    _assert_one_line(error, "tiny", "2 action dimensions", "5")


def test_describe_names_the_numbers():
    dataset = data.from_flat_arrays("tiny", **_d4rl_arrays(_episodes()))
    text = data.describe(dataset)
    assert "12 transitions in 4 episodes" in text
    assert "2 terminations" in text and "2 time-outs" in text
    mean = np.mean([e["rewards"].sum() for e in _episodes()])
    assert f"return {mean:.0f} " in text


def test_meta_is_json(tmp_path):
    """The copy's environment survives as JSON, so that no pickle is ever loaded."""
    dataset = data.from_flat_arrays("tiny", **_d4rl_arrays(_episodes()))
    data.write_flat(dataset, tmp_path / "copy.npz", compress=False)
    with np.load(tmp_path / "copy.npz", allow_pickle=False) as file:
        assert json.loads(str(file["meta"])) == {"environment": None}


# --- the best episodes --------------------------------------------------------------------


def ranked_dataset():
    """Five episodes of 1 to 5 steps; row i's reward is i, its observation twice that."""
    lengths = [3, 1, 5, 2, 4]
    ends = np.cumsum(lengths) - 1
    rows = np.arange(15, dtype=np.float32)
    rewards = rows.copy()
    rewards[4] = 100.0  # lifts the third episode above the later ones
    truncations = np.isin(np.arange(15), ends)
    return data.OfflineDataset(
        name="ranked",
        observations=2 * rows[:, None],
        actions=rows[:, None] / 15,
        rewards=rewards,
        next_observations=2 * rows[:, None] + 1,
        terminations=np.zeros(15, bool),
        truncations=truncations,
    )


@pytest.mark.parametrize("fraction, kept", [(0.2, [2]), (0.25, [2, 4]), (0.6, [2, 3, 4])])
def test_the_top_episodes_are_those_of_the_highest_returns(fraction, kept):
    """Whole episodes, in their order, the share rounded up."""
    dataset = ranked_dataset()
    top = data.top_episodes(dataset, fraction)
    starts = np.concatenate([[0], dataset.episode_ends[:-1] + 1])
    rows = np.concatenate([np.arange(starts[i], dataset.episode_ends[i] + 1) for i in kept])
    for name in ("observations", "actions", "rewards", "next_observations", "truncations"):
        np.testing.assert_array_equal(getattr(top, name), getattr(dataset, name)[rows])
    np.testing.assert_array_equal(top.episode_returns, dataset.episode_returns[kept])
    left_out = np.delete(dataset.episode_returns, kept)
    assert top.episode_returns.min() >= left_out.max()


def test_all_episodes_are_the_dataset_itself():
    dataset = ranked_dataset()
    assert data.top_episodes(dataset, 1.0) is dataset


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5])
def test_a_share_outside_0_to_1_is_refused(fraction):
    with pytest.raises(UserError, match=r"top_fraction: expected above 0 and at most 1"):
        data.top_episodes(ranked_dataset(), fraction)
