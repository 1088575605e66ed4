"""A tiny dataset of four episodes, in memory and as files of every source."""

import pathlib

import gymnasium as gym
import h5py
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

STATE_SIZE, ACTION_SIZE = 3, 2
ARRAYS = (
    "observations",
    "actions",
    "rewards",
    "next_observations",
    "terminations",
    "truncations",
)
# (steps, how the recorder closed the episode)
EPISODES = ((4, "terminated"), (3, "truncated"), (2, "open"), (3, "terminated"))


def make_episodes(seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    episodes = []
    for steps, end in EPISODES:
        episode = {
            "observations": rng.normal(size=(steps + 1, STATE_SIZE)).astype(np.float32),
            "actions": rng.uniform(-1, 1, (steps, ACTION_SIZE)).astype(np.float32),
            "rewards": rng.normal(size=steps).astype(np.float32),
            "terminations": np.zeros(steps, bool),
            "truncations": np.zeros(steps, bool),
        }
        episode["terminations"][-1] = end == "terminated"
        episode["truncations"][-1] = end == "truncated"
        episodes.append(episode)
    return episodes


def join(episodes, pick) -> np.ndarray:
    return np.concatenate([pick(episode) for episode in episodes])


def expected_arrays(episodes) -> dict[str, np.ndarray]:
    """What a loader must give: an open episode counts as cut."""
    cut = [np.zeros(steps, bool) for steps, _ in EPISODES]
    for (_, end), flags in zip(EPISODES, cut, strict=True):
        flags[-1] = end != "terminated"
    return {
        "observations": join(episodes, lambda e: e["observations"][:-1]),
        "actions": join(episodes, lambda e: e["actions"]),
        "rewards": join(episodes, lambda e: e["rewards"]),
        "next_observations": join(episodes, lambda e: e["observations"][1:]),
        "terminations": join(episodes, lambda e: e["terminations"]),
        "truncations": np.concatenate(cut),
    }


def d4rl_arrays(episodes) -> dict[str, np.ndarray]:
    expected = expected_arrays(episodes)
    return {
        "observations": expected["observations"],
        "actions": expected["actions"],
        "rewards": expected["rewards"],
        "next_observations": expected["next_observations"],
        "terminals": expected["terminations"],
        "timeouts": expected["truncations"],
    }


def write_hdf5(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> str:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return str(path)


def write_minari(
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
        action_space=action_space or gym.spaces.Box(-1, 1, (ACTION_SIZE,), np.float32),
        observation_space=observation_space
        or gym.spaces.Box(-np.inf, np.inf, (STATE_SIZE,), np.float32),
    )
    return name


def assert_arrays(dataset, expected):
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(dataset, name), expected[name], err_msg=name)
    for name in ARRAYS[:4]:
        assert getattr(dataset, name).dtype == np.float32, name


def assert_one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
