"""Registered tasks: which ids are theirs, names for files, and a new task in one object."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from minari.dataset import minari_dataset

from dawm_jax.envs import scores, simulate
from dawm_jax.envs.tasks import TASKS, BatchPhysics, References, Task, find_task, task_name


@pytest.mark.parametrize("task", list(TASKS), ids=lambda task: task.name)
def test_names_are_those_of_files_and_datasets(task):
    assert task_name(task.environment) == task.name
    assert find_task(task.environment) is task
    if ":" not in task.environment:  # else a package that need not be installed registers it
        assert task.environment in gym.registry
    assert task.dataset in ("", "bundled/hopper/medium-v0")


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ("Hopper-v5", "hopper"),
        ("Hopper-v4", "hopper"),
        ("package.module:Hopper-v5", "hopper"),
        ("Hopper-Custom-v0", None),
        ("HopperLike-v0", None),
        ("hopper-v5", None),
        ("other/Hopper-v5", None),
        ("Pendulum-v1", None),
        ("", None),
    ],
)
def test_which_ids_are_versions_of_a_task(environment, name):
    task = find_task(environment)
    assert (None if task is None else task.name) == name


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ("Hopper-v5", "hopper"),
        ("Walker2d-v4", "walker2d"),
        ("Hopper-Custom-v0", "hopper-custom"),
        ("customenvs:Point-v0", "point"),
        ("a.b:name space/Réach_2.1-v10", "name-space-r-ach_2-1"),
        ("WithoutVersion", "withoutversion"),
        ("../../etc-v0", "etc"),
        ("..", "task"),
        ("", "task"),
    ],
)
def test_task_names_are_safe_in_paths_and_minari_ids(environment, name):
    assert task_name(environment) == name
    assert minari_dataset.parse_dataset_id(f"dawm/{name}/random-v1")


def test_a_registered_task_has_scores_and_a_fast_simulator(register):
    """Hopper without terminations, of which nothing but this object is known."""
    name = register(
        "DawmToy-v0",
        lambda: HopperEnv(terminate_when_unhealthy=False, healthy_reward=0.0),
        max_episode_steps=20,
    )
    physics = BatchPhysics(velocity_limit=10.0, control_cost=1e-3, healthy=None)
    TASKS.register(Task("dawmtoy", name, References(random=10.0, expert=30.0), physics))
    try:
        np.testing.assert_array_equal(
            scores.normalised_score("DawmToy-v3", np.array([10, 20, 30])), [0, 50, 100]
        )
        fast, plain = simulate.make_simulator(name, 2), gym.make(name)
        assert isinstance(fast, simulate._BatchSimulator)
        np.testing.assert_array_equal(fast.reset(1, seed=4), plain.reset(seed=4)[0])
        for t in range(20):
            action = np.full(3, 0.1 * (t % 7), np.float32)
            steps = fast.step(np.array([1]), action[None])
            observation, reward, terminated, truncated, _ = plain.step(action)
            np.testing.assert_array_equal(steps.observations[0], observation)
            assert steps.rewards[0] == reward
            assert (steps.terminated[0], steps.truncated[0]) == (terminated, truncated)
        assert truncated
        fast.close()
        plain.close()
    finally:
        TASKS.unregister("dawmtoy")
    assert find_task(name) is None


def test_physics_are_of_one_version_only():
    """Hopper-v4 pays other rewards, so Gymnasium steps it."""
    assert simulate._batch_physics("Hopper-v5") is not None
    assert simulate._batch_physics("Hopper-v4") is None
