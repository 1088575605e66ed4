"""Minari datasets: what was recorded is read, and every mistake is one clear line."""

import json
import os
import types

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import tiny_data as tiny
from minari.data_collector import EpisodeBuffer

from dawm_jax.data import minari_source
from dawm_jax.data.load import load_dataset
from dawm_jax.envs import simulate
from dawm_jax.envs.recorded import Recorded
from dawm_jax.envs.tasks import References
from dawm_jax.types import UserError


def test_minari_reads_what_was_recorded():
    episodes = tiny.make_episodes()
    dataset = load_dataset(tiny.write_minari(episodes))
    tiny.assert_arrays(dataset, tiny.expected_arrays(episodes))
    assert dataset.environment is None


class _Drift(gym.Env):
    """State grows by the action; ends by itself above 1, which constant actions reach."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (tiny.STATE_SIZE,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (tiny.ACTION_SIZE,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._state = np.zeros(tiny.STATE_SIZE, np.float32)
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
            collector.step(np.full(tiny.ACTION_SIZE, rate, np.float32))
    collector.create_dataset("test/drift-v0")
    collector.close()

    dataset = load_dataset("test/drift-v0")
    sizes = np.float32([0.8, 0.8, 0.2, 0.2, 0.2, 0.2, 0.2])
    starts = [0, 2, 5]
    after = np.concatenate([np.cumsum(part) for part in np.split(sizes, starts[1:])])
    before = after - sizes
    np.testing.assert_allclose(dataset.observations, np.tile(before[:, None], 3), atol=1e-6)
    np.testing.assert_allclose(dataset.next_observations, np.tile(after[:, None], 3), atol=1e-6)
    np.testing.assert_allclose(dataset.rewards, after, atol=1e-6)
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminations), [1])
    np.testing.assert_array_equal(np.flatnonzero(dataset.truncations), [4, 6])


class _Goals(_Drift):
    """Nested dictionaries of observations."""

    observation_space = gym.spaces.Dict(
        {
            "state": _Drift.observation_space,
            "goal": gym.spaces.Dict({"b": gym.spaces.Box(-1, 1, (2, 1)), "a": _Drift.action_space}),
        }
    )

    def reset(self, *, seed=None, options=None):
        state, info = super().reset(seed=seed)
        return self._with_goal(state), info

    def step(self, action):
        state, *rest = super().step(action)
        return self._with_goal(state), *rest

    def _with_goal(self, state):
        a = np.full(tiny.ACTION_SIZE, 0.5, np.float32)
        return {"state": state, "goal": {"b": np.float32([[0.1], [0.2]]), "a": a}}


def test_dictionaries_of_observations_are_vectors_as_in_the_environment(register):
    """The dataset's rows equal what the simulator of the same environment returns."""
    name = register("DawmGoals-v0", f"{__name__}:_Goals", max_episode_steps=3)
    collector = minari.DataCollector(gym.make(name))
    action = np.full(tiny.ACTION_SIZE, 0.1, np.float32)
    collector.reset()
    for _ in range(3):
        collector.step(action)
    collector.create_dataset("test/goals-v0")
    collector.close()
    dataset = load_dataset("test/goals-v0")
    simulator = simulate.make_simulator(name, 1)
    expected = [simulator.reset(0, 0)]
    expected += [simulator.step(np.arange(1), action[None]).observations[0] for _ in range(3)]
    simulator.close()
    np.testing.assert_allclose(dataset.observations, expected[:-1])
    np.testing.assert_allclose(dataset.next_observations, expected[1:])
    goal = [0.5] * tiny.ACTION_SIZE + [0.1, 0.2]
    np.testing.assert_allclose(dataset.observations[0], goal + [0.0] * tiny.STATE_SIZE)


class _Unsorted(_Goals):
    observation_space = gym.spaces.Dict(
        [("z", gym.spaces.Box(-9, 9, (1,))), ("b", gym.spaces.Box(-9, 9, (2,)))]
    )

    def _with_goal(self, state):
        return {"z": np.float32([3]), "b": np.float32([1, 2])}


def test_keys_that_an_environment_does_not_sort(register):
    """Minari stores no order of keys: the simulator and the data both sort them."""
    name = register("DawmUnsorted-v0", f"{__name__}:_Unsorted", max_episode_steps=2)
    collector = minari.DataCollector(gym.make(name))
    collector.reset()
    for _ in range(2):
        collector.step(np.zeros(tiny.ACTION_SIZE, np.float32))
    collector.create_dataset("test/unsorted-v0")
    collector.close()
    simulator = simulate.make_simulator(name, 1)
    np.testing.assert_array_equal(simulator.reset(0, 0), [1, 2, 3])
    simulator.close()
    np.testing.assert_array_equal(load_dataset("test/unsorted-v0").observations[0], [1, 2, 3])


def test_minari_environment_is_the_recorded_one():
    buffer = EpisodeBuffer(
        observations=[np.zeros(11)] * 3,
        actions=[np.zeros(3, np.float32)] * 2,
        rewards=[1.0, 2.0],
        terminations=[False, True],
        truncations=[False, False],
    )
    minari.create_dataset_from_buffers("test/hopper-v0", [buffer], env="Hopper-v5")
    for _ in range(2):  # the second time from the flat copy
        dataset = load_dataset("test/hopper-v0")
        assert dataset.environment == "Hopper-v5"
        assert dataset.recorded == Recorded({}, (), 1000)
        assert dataset.references is None


def _hopper(name, env, **metadata):
    """A Minari dataset that names `env` as its origin."""
    size = env.observation_space.shape[0]
    buffer = EpisodeBuffer(
        observations=list(np.arange(3 * size, dtype=np.float64).reshape(3, size)),
        actions=[np.zeros(3, np.float32)] * 2,
        rewards=[1.0, 2.0],
        terminations=[False, True],
        truncations=[False, False],
    )
    minari.create_dataset_from_buffers(name, [buffer], env=env, **metadata)
    env.close()
    return load_dataset(name)


def test_keyword_arguments_wrappers_and_limit_are_read():
    env = gym.make(
        "Hopper-v5", terminate_when_unhealthy=False, max_episode_steps=50, render_mode="rgb_array"
    )
    dataset = _hopper("test/kwargs-v0", gym.wrappers.TimeAwareObservation(env))
    assert dataset.recorded == Recorded(
        {"terminate_when_unhealthy": False}, ("TimeAwareObservation",), 50
    )


def test_references_are_minaris():
    dataset = _hopper("test/refs-v0", gym.make("Hopper-v5"), ref_min_score=-3.0, ref_max_score=7.5)
    assert dataset.references == References(-3.0, 7.5)


@pytest.mark.parametrize(
    "found",
    [{}, {"ref_min_score": 1}, {"ref_min_score": "1", "ref_max_score": 2}]
    + [
        {"ref_min_score": low, "ref_max_score": high}
        for low, high in ((2, 2), (3, 2), (0, float("inf")), (float("nan"), 2), (0, 10**400))
    ],
)
def test_references_that_give_no_score_are_none(found):
    assert minari_source._references(found) is None


# --- bad input ----------------------------------------------------------------------------


def test_no_network_is_one_clear_line():
    with pytest.raises(UserError) as error:
        load_dataset("mujoco/hopper/medium-v0")
    tiny.assert_one_line(error, "mujoco/hopper/medium-v0", "could not be downloaded", "unreachable")


_WIDE = gym.spaces.Box(np.linspace(-9, -1, 60), np.linspace(1, 9, 60), dtype=np.float64)


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ({"action_space": gym.spaces.Discrete(2)}, "flat Box space of actions"),
        (
            {"observation_space": gym.spaces.Dict(state=_WIDE, kind=gym.spaces.Discrete(9))},
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
        load_dataset("test/other-v0")
    tiny.assert_one_line(error, message, "test/other-v0")


def test_damaged_minari_data(tmp_path):
    name = tiny.write_minari(tiny.make_episodes())
    (file,) = (tmp_path / "minari").rglob("main_data.hdf5")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(UserError) as error:
        load_dataset(name)
    tiny.assert_one_line(error, name, str(tmp_path / "minari" / name), "record it again")


def _metadata(change):
    def damage(folder):
        file = folder / "metadata.json"
        found = json.loads(file.read_text())
        change(found)
        file.write_text(json.dumps(found))

    return damage


def _content(text):
    return lambda folder: (folder / "metadata.json").write_bytes(text)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "metadata.json").unlink(),
        _content(b"null"),
        _content(b"[1]"),
        _content(b"{"),
        _content(b"\xff\xfe"),
        _metadata(lambda found: found.pop("data_format")),
        _metadata(lambda found: found.pop("dataset_id")),
        _metadata(lambda found: found.update(minari_version="~=0.4.1")),
        _metadata(lambda found: found.update(env_spec="{}")),
        _metadata(lambda found: found.update(env_spec=3)),
        _metadata(lambda found: found.update(action_space="{}")),
        _metadata(lambda found: found.update(total_episodes=9)),
        _metadata(lambda found: found.update(total_episodes="x")),
        lambda folder: (folder / "main_data.hdf5").unlink(),
    ],
)
def test_damaged_minari_metadata(tmp_path, damage):
    name = tiny.write_minari(tiny.make_episodes())
    damage(tmp_path / "minari" / name / "data")
    with pytest.raises(UserError) as error:
        load_dataset(name)
    tiny.assert_one_line(error, name, "record it again")
    assert "minari download" not in str(error.value)  # no server has it


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("mujoco/hopper/medium-v0", "run: minari download --force mujoco/hopper/medium-v0"),
        ("dawm/hopper/medium-v1", "the next run collects it again"),
        ("local/hopper/mine-v0", "record it again"),
    ],
)
def test_advice_on_damage_is_what_can_help(tmp_path, name, advice):
    (tmp_path / "minari" / name / "data").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        load_dataset(name)
    tiny.assert_one_line(error, name, advice)


def test_a_downloaded_dataset_can_be_downloaded_again(tmp_path):
    """The server's client leaves a folder beside what it downloads."""
    name = "someone/hopper/mine-v0"
    (tmp_path / "minari" / name / "data").mkdir(parents=True)
    (tmp_path / "minari" / "someone" / ".cache" / "huggingface").mkdir(parents=True)
    with pytest.raises(UserError, match=f"run: minari download --force {name}"):
        load_dataset(name)


def _replace(field, value):
    def damage(file):
        del file["episode_1"][field]
        if value is not None:
            file["episode_1"][field] = value

    return damage


def _group(file):
    del file["episode_1/actions"]
    file.create_group("episode_1/actions")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_replace("actions", None), "cannot be read"),
        (_group, "cannot be read"),
        (_replace("rewards", 3.0), "cannot be read"),
        (_replace("rewards", h5py.Empty("f4")), "cannot be read"),
        (lambda file: file.pop("episode_2"), "cannot be read"),
        (_replace("observations", np.zeros(4)), "episode 1: expected observations of shape [4,"),
        (_replace("observations", np.zeros((3, 3))), "episode 1: expected observations of shape"),
        (_replace("observations", np.zeros((9, 3))), "episode 1: expected observations of shape"),
        (_replace("observations", np.zeros((4, 5))), "observations of one size, got 3 in episode"),
        (_replace("rewards", np.zeros((3, 1))), "episode 1: expected rewards of shape [3]"),
        (_replace("rewards", np.array([b"a"] * 3)), "episode 1: expected numbers in rewards"),
        (_replace("rewards", np.full(3, 1e30)), "rewards"),
        (_replace("actions", np.zeros((3, 2), int)), "episode 1: expected continuous actions"),
        (_replace("actions", np.zeros(3)), "episode 1: expected actions of shape [3, size]"),
        (_replace("terminations", np.array([0, np.nan, 0])), "0 or 1 in terminations, got nan"),
        (_replace("truncations", np.array([0, 2, 0])), "0 or 1 in truncations, got 2"),
    ],
)
def test_malformed_episodes(tmp_path, damage, message):
    name = tiny.write_minari(tiny.make_episodes())
    with h5py.File(tmp_path / "minari" / name / "data" / "main_data.hdf5", "a") as file:
        damage(file)
    with pytest.raises(UserError) as error:
        load_dataset(name)
    tiny.assert_one_line(error, name, message)


def test_integer_actions_are_discrete_in_minari_as_in_hdf5():
    episodes = tiny.make_episodes()
    for episode in episodes:
        episode["actions"] = np.zeros_like(episode["actions"], np.int64)
    name = tiny.write_minari(episodes, action_space=gym.spaces.Box(-1, 1, (2,), np.int64))
    with pytest.raises(UserError) as error:
        load_dataset(name)
    tiny.assert_one_line(error, name, "discrete", "int64")


# --- the folder of all datasets -------------------------------------------------------------


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", "~/mm")
    assert not minari_source.is_local("test/tiny-v0")
    name = tiny.write_minari(tiny.make_episodes())
    assert minari_source.is_local(name)
    assert (tmp_path / "home" / "mm" / name / "data").is_dir()
    assert not (tmp_path / "~").exists()
    assert len(load_dataset(name)) == 12


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    blocker = tmp_path / "blocker"
    blocker.write_text("a file where a folder should be: refused to every user, root too")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(blocker / "minari"))
    for call in (load_dataset, minari_source.is_local):
        with pytest.raises(UserError) as error:
            call("test/tiny-v0")
        tiny.assert_one_line(error, str(blocker), "MINARI_DATASETS_PATH")


def _episode(steps: int, **changes):
    fields = {
        "observations": np.zeros((steps + 1, tiny.STATE_SIZE)),
        "actions": np.zeros((steps, tiny.ACTION_SIZE)),
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
        minari_source.from_episodes("test/bad-v0", episodes)
    tiny.assert_one_line(error, message, "test/bad-v0")
