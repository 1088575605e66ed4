"""Registered tasks, and names made of Gymnasium ids.

Any Gymnasium environment with flat observations and bounded continuous actions can be used. A
registered task adds scores (its reference returns), a faster simulator (its batch physics), or
a dataset that ships with the package. One file per task registers it: see hopper.py.
"""

import dataclasses
import re
from typing import NamedTuple, Protocol

import numpy as np

from dawm_jax.runtime.registry import Registry

_VERSION = re.compile(r"-v\d+$")


class References(NamedTuple):
    """Undiscounted returns of a whole episode that mark scores 0 and 100."""

    random: float  # of the policy that acts uniformly at random
    expert: float


class HealthyFn(Protocol):
    """Which of n states do not terminate the episode."""

    def __call__(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """[n] bool from MuJoCo's positions [n, nq] and velocities [n, nv], float64."""


@dataclasses.dataclass(frozen=True)
class BatchPhysics:
    """Observation, reward and termination of a Gymnasium v5 locomotion task, for n states at once.

    The observation is (qpos[1:], clipped qvel). The reward is the forward velocity, plus 1 in a
    healthy state if the task terminates, minus the control cost.

    Attributes:
      velocity_limit: observed velocities are clipped to [-limit, limit].
      control_cost: factor of the sum of squared actions.
      healthy: marks the states that do not terminate the episode; None: no state does.
    """

    velocity_limit: float
    control_cost: float
    healthy: HealthyFn | None


@dataclasses.dataclass(frozen=True)
class Task:
    """A registered task.

    Attributes:
      name: `task_name(environment)`; part of the names of datasets and folders.
      environment: Gymnasium id of the version that the package trains and evaluates in.
      references: returns that define the normalised score of all versions, or None.
      batch_physics: equals the simulation of exactly `environment`; None steps one Gymnasium
        environment per copy.
      dataset: name of a dataset that ships with the package, or "".
      tier: of the collected data that a configuration takes where no dataset ships.
      state_columns: default of `config.world_model.state_columns`: first observation columns,
        from which the others follow; 0: all.
    """

    name: str
    environment: str
    references: References | None = None
    batch_physics: BatchPhysics | None = None
    dataset: str = ""
    tier: str = "medium"
    state_columns: int = 0


TASKS: Registry[Task] = Registry("task", setting="config.environment", rooms=("dawm_jax.envs",))


def find_task(environment: str) -> Task | None:
    """The registered task that a Gymnasium id is a version of, or None.

    Hopper-v4 and Hopper-v5 are versions of Hopper; Hopper-Custom-v0 and other/Hopper-v5 are
    not.

    Args:
      environment: Gymnasium id, with or without a module to import ("module:Name-v0").
    """
    name = _unversioned(environment)
    return next((task for task in TASKS if _unversioned(task.environment) == name), None)


def task_name(environment: str) -> str:
    """A name for folders, files and datasets: "Hopper-v5" -> "hopper", "a:b/C-v0" -> "b-c".

    Args:
      environment: Gymnasium id, with or without a module to import.

    Returns:
      Lower-case letters, digits, "_" and "-", as in a Minari id; never empty, and no "-" at
      either end.
    """
    name = re.sub(r"[^a-z0-9_-]+", "-", _unversioned(environment).lower())
    return name.strip("-") or "task"


def _unversioned(environment: str) -> str:
    """The id without the module that Gymnasium imports first and without its version."""
    return _VERSION.sub("", environment.rpartition(":")[2])
