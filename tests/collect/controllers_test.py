"""Scripted controllers: whole episodes, the same ones from the same seed, and shortest ways."""

import gymnasium as gym
import minari
import numpy as np
import pytest
import scipy.sparse.csgraph

from dawm_jax.collect import controllers, pointmaze, tiers
from dawm_jax.collect.controllers import CONTROLLERS, ControllerSpec
from dawm_jax.data.load import load_dataset
from dawm_jax.envs.tasks import TASKS, Task
from dawm_jax.runtime.stopping import Interrupted, StopFlag
from dawm_jax.types import UserError


class Line(gym.Env):
    """A point on a line; an episode ends at 1, which is a success. Dictionary observations."""

    observation_space = gym.spaces.Dict(
        {"position": gym.spaces.Box(-5, 5, (1,)), "goal": gym.spaces.Box(-5, 5, (2,))}
    )
    action_space = gym.spaces.Box(-0.5, 1.5, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = np.float32(self.np_random.uniform(-1, 0))
        return self._observation(), {"at": self.position}

    def step(self, action):
        self.position = np.float32(self.position + 0.2 * action[0])
        at_goal = self.position >= 1
        return self._observation(), -1.0, bool(at_goal), False, {"at": self.position}

    def _observation(self):
        return {"position": np.array([self.position]), "goal": np.float32([1.0, 2.0])}


class Towards:
    def __init__(self, env):
        self.env = env.unwrapped

    def act(self, info):
        assert info["at"] == self.env.position
        return np.array([1.0 - info["at"]])


@pytest.fixture(name="line")
def _line(register, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    name = register("DawmLine-v0", f"{__name__}:Line", max_episode_steps=40)
    TASKS.register(Task(name="dawmline", environment=name, tier="scripted"))
    CONTROLLERS.register(ControllerSpec(name="dawmline", make=Towards))
    yield name
    CONTROLLERS.unregister("dawmline")
    TASKS.unregister("dawmline")


def collected(name, steps=200, seed=0):
    return list(controllers.episodes(name, steps=steps, seed=seed))


def test_episodes_are_whole_and_enough(line):
    found = collected(line)
    lengths = [len(episode.rewards) for episode in found]
    assert sum(lengths) >= 200 > sum(lengths[:-1])
    for episode in found:
        ends = episode.terminations | episode.truncations
        assert ends[-1] and not ends[:-1].any()
        assert episode.observations.shape == (len(episode.rewards) + 1, 3)
        assert episode.actions.dtype == np.float32
        assert (episode.actions >= -0.5).all() and (episode.actions <= 1.5).all()
        # The dynamics of the environment, from the recorded actions; "goal" is sorted first.
        np.testing.assert_allclose(
            np.diff(episode.observations[:, 2]), 0.2 * episode.actions[:, 0], atol=1e-6
        )
        np.testing.assert_array_equal(episode.observations[:, :2], [[1.0, 2.0]] * (len(ends) + 1))


def test_the_same_seed_gives_the_same_episodes_and_another_others(line):
    first, again, other = collected(line), collected(line), collected(line, seed=1)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.observations, two.observations)
        np.testing.assert_array_equal(one.actions, two.actions)
    assert not np.array_equal(first[0].observations, other[0].observations)


def test_the_noise_differs_between_episodes(line):
    """Its deviation is uniform up to the largest; what is left of an action is the noise."""
    deviations = []
    for episode in collected(line, steps=4_000):
        noise = episode.actions[:, 0] - (1.0 - episode.observations[:-1, 2])
        inside = (episode.actions[:, 0] > -0.5) & (episode.actions[:, 0] < 1.5)
        if inside.sum() >= 5:
            deviations.append(noise[inside].std())
    assert min(deviations) < 0.1 < 0.25 < max(deviations)  # a half range is 1


def test_a_scripted_dataset_is_collected_on_first_use(line):
    dataset = load_dataset("dawm/dawmline/scripted-1k-v1")
    assert dataset.environment == line and len(dataset.rewards) >= 1_000
    assert (
        minari.load_dataset("dawm/dawmline/scripted-1k-v1").storage.metadata["algorithm_name"]
        == "scripted"
    )
    assert tiers.recipe_of("dawm/dawmline/medium-v1") is None  # there are no policies


def test_tiers_that_a_task_does_not_have(line):
    with pytest.raises(UserError, match="can collect random, scripted of this task, not medium"):
        load_dataset("dawm/dawmline/medium-10k-v1")
    with pytest.raises(UserError, match=r"can collect random, .*expert of this task, not scripted"):
        load_dataset("dawm/hopper/scripted-v1")


def test_without_a_controller(line):
    with pytest.raises(UserError, match=r"expected an environment with a controller .*dawmline"):
        collected("Hopper-v5")
    assert tiers.recipe_of("dawm/hopper/scripted-v1") is None


def test_a_controller_that_fails(line, monkeypatch):
    monkeypatch.setattr(Towards, "act", lambda self, info: info["missing"])
    with pytest.raises(UserError, match=r"its controller raised .*missing.* in episode 0"):
        collected(line)


def test_it_stops_between_steps(line):
    with pytest.raises(Interrupted):
        next(controllers.episodes(line, steps=100, seed=0, stop=StopFlag(15)))


# --- mazes --------------------------------------------------------------------------------


def test_ways_are_shortest_and_connected():
    """Lengths by SciPy's breadth-first search on the graph of free cells."""
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(20):
        walls = rng.random((6, 7)) < 0.3
        cells = walls.astype(int).tolist()
        number = {cell: index for index, cell in enumerate(np.ndindex(walls.shape))}
        graph = np.zeros((len(number), len(number)))
        for (row, column), index in number.items():
            for beside in ((row + 1, column), (row, column + 1)):
                if beside in number and not walls[row, column] and not walls[beside]:
                    graph[index, number[beside]] = 1
        lengths = scipy.sparse.csgraph.shortest_path(graph, directed=False, unweighted=True)
        free = [tuple(int(x) for x in cell) for cell in np.argwhere(~walls)]
        start, goal = (free[i] for i in rng.choice(len(free), 2, replace=False))
        expected = lengths[number[start], number[goal]]
        if np.isinf(expected):
            with pytest.raises(ValueError, match="no way"):
                pointmaze.shortest_way(cells, start, goal)
            continue
        way = pointmaze.shortest_way(cells, start, goal)
        assert way[0] == start and way[-1] == goal and len(way) == expected + 1
        assert (np.abs(np.diff(way, axis=0)).sum(axis=1) == 1).all()
        assert not any(walls[cell] for cell in way)
        compared += 1
    assert compared > 10


# --- the real environments ----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("module", "environment"),
    [
        ("gymnasium_robotics", "gymnasium_robotics:PointMaze_UMaze-v3"),
        ("ogbench", "ogbench:cube-single-singletask-v0"),
    ],
)
def test_the_controller_solves_its_task(module, environment):
    pytest.importorskip(module, reason=f"{module} is not installed: extra robotics")
    episode = next(controllers.episodes(environment, steps=1, seed=0))
    if module == "ogbench":
        assert episode.terminations[-1] and len(episode.rewards) < 150
    else:
        assert episode.rewards.sum() > 100  # of 300 steps, at the goal
