"""Minari datasets: what was recorded is read, and every mistake is one clear line."""

import os
import types

import gymnasium as gym
import minari
import numpy as np
import pytest
import tiny_data as tiny
from minari.data_collector import EpisodeBuffer

from dawm_jax.data import minari_source
from dawm_jax.data.load import load_dataset
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


def test_minari_environment_is_the_recorded_one():
    buffer = EpisodeBuffer(
        observations=[np.zeros(11)] * 3,
        actions=[np.zeros(3, np.float32)] * 2,
        rewards=[1.0, 2.0],
        terminations=[False, True],
        truncations=[False, False],
    )
    minari.create_dataset_from_buffers("test/hopper-v0", [buffer], env="Hopper-v5")
    assert load_dataset("test/hopper-v0").environment == "Hopper-v5"
    # Also from the flat copy.
    assert load_dataset("test/hopper-v0").environment == "Hopper-v5"


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
        load_dataset("test/other-v0")
    tiny.assert_one_line(error, message, "test/other-v0")


def test_damaged_minari_data(tmp_path):
    name = tiny.write_minari(tiny.make_episodes())
    (file,) = (tmp_path / "minari").rglob("main_data.hdf5")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(UserError) as error:
        load_dataset(name)
    tiny.assert_one_line(error, name, "minari download --force")


def test_damaged_minari_metadata(tmp_path):
    name = tiny.write_minari(tiny.make_episodes())
    (file,) = (tmp_path / "minari").rglob("metadata.json")
    file.unlink()
    with pytest.raises(UserError) as error:
        load_dataset(name)
    tiny.assert_one_line(error, name, "minari download --force")


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
