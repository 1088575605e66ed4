"""Scripted controllers as behaviour policies, for environments whose tasks a program can solve.

A controller reads the simulator, not only the observation. Each episode adds Gaussian noise to the
actions. The standard deviation of the noise is drawn for each episode, so that the data have nearly
direct and strongly perturbed episodes.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from dawm_jax.collect.episodes import Step, joined, limit_kwargs, reset_seed
from dawm_jax.data.minari_writer import Episode
from dawm_jax.envs import guard, simulate
from dawm_jax.envs.tasks import find_task
from dawm_jax.runtime.registry import Registry
from dawm_jax.runtime.stopping import Interrupted, StopFlag
from dawm_jax.types import UserError, first_line

# Largest standard deviation of an episode's noise, as a share of half the actions' range.
LARGEST_NOISE = 0.5


class Controller(Protocol):
    """Acts in one episode."""

    def act(self, info: Mapping[str, Any]) -> np.ndarray:
        """The action in environment units, [A]; `info` is that of the newest reset or step."""


class MakeController(Protocol):
    """Makes the controller of one episode."""

    def __call__(self, env: Any) -> Controller:
        """A controller of the Gymnasium environment `env`, which has just been reset."""


@dataclasses.dataclass(frozen=True)
class ControllerSpec:
    """A registered controller.

    Attributes:
      name: of the task that it solves, `envs.tasks.Task.name`.
      make: makes the controller of one episode.
    """

    name: str
    make: MakeController


CONTROLLERS: Registry[ControllerSpec] = Registry(
    "controller", setting="--env", rooms=("dawm_jax.collect",)
)


def find_controller(environment: str) -> ControllerSpec | None:
    """The controller for a Gymnasium id, or None."""
    task = find_task(environment)
    return CONTROLLERS.get(task.name) if task is not None and task.name in CONTROLLERS else None


def episodes(
    environment: str, *, steps: int, seed: int, max_steps: int = 0, stop: StopFlag | None = None
) -> Iterator[Episode]:
    """Whole episodes of the controller of an environment, in total at least `steps` steps.

    Args:
      environment: Gymnasium id.
      steps: lower bound of the total number of steps.
      seed: of resets and noise; the same seed gives the same episodes.
      max_steps: time limit of an episode; 0: the environment's.
      stop: looked at before every step.

    Yields:
      Episodes as Gymnasium returns them.

    Raises:
      UserError: no controller is registered for the environment, it cannot be made or has no time
        limit, or it raises an exception.
      Interrupted: `stop` was set.
    """
    spec = find_controller(environment)
    if spec is None:
        raise UserError(
            f"--tier=scripted: expected an environment with a controller "
            f"({', '.join(CONTROLLERS.names())}), got {environment}"
        )
    stop, kwargs = stop or StopFlag(), limit_kwargs(max_steps)
    guard.episode_limit(environment, kwargs, setting="--max_steps")
    env = simulate.make_environment(environment, kwargs)
    made = 0
    try:
        for index in range(steps):  # at most `steps` episodes, since each has at least one step
            if made >= steps:
                break
            try:
                episode = _episode(env, spec.make, seed, index, stop)
            except Interrupted:
                raise
            except Exception as error:  # packages of other versions raise errors of many kinds
                raise UserError(
                    f"environment {environment}: it or its controller raised {first_line(error)} "
                    f"in episode {index}; check the versions of the extra robotics"
                ) from error
            made += len(episode.rewards)
            yield episode
    finally:
        env.close()


def _episode(env: Any, make: MakeController, seed: int, index: int, stop: StopFlag) -> Episode:
    """One episode; its reset and noise depend on (seed, index) alone."""
    rng = np.random.default_rng((seed, index))
    low, high = env.action_space.low, env.action_space.high
    deviation = rng.uniform(0.0, LARGEST_NOISE) * (high - low) / 2
    observation, info = env.reset(seed=reset_seed(seed, index))
    controller = make(env)
    observations, rows, over = [observation], [], False
    while not over:
        stop.check("an episode of a controller")
        action = controller.act(info) + deviation * rng.standard_normal(low.shape)
        action = np.clip(action, low, high).astype(env.action_space.dtype)
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        rows.append(Step(action, float(reward), bool(terminated), bool(truncated)))
        over = bool(terminated or truncated)
    return joined(observations, rows)
