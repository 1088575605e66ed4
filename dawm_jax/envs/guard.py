"""What an environment may do wrong, told in one line: endless episodes, NaN, exceptions."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from dawm_jax.envs import simulate
from dawm_jax.envs.simulate import Simulator, Steps
from dawm_jax.types import UserError, first_line

T = TypeVar("T")


def episode_limit(
    environment: str,
    kwargs: Mapping[str, Any] | None = None,
    *,
    max_steps: int = 0,
    setting: str = "--config.evaluation.max_steps",
) -> int:
    """Largest number of steps of an episode.

    Args:
      environment: Gymnasium id.
      kwargs: keyword arguments of `gym.make`; None: none.
      max_steps: episodes are cut after so many steps; 0: the environment's limit alone.
      setting: what the user sets `max_steps` with, for the message.

    Raises:
      UserError: neither the environment nor `max_steps` limits an episode, or the environment
        cannot be made.
    """
    env = simulate.make_environment(environment, kwargs)
    own = max(0, env.spec.max_episode_steps or 0)  # -1 turns the limit off
    env.close()
    if not own and not max_steps:
        raise UserError(
            f"environment {environment}: expected a time limit, as its episodes may never end; "
            f"set {setting} to a number of steps, or register it with max_episode_steps"
        )
    return min(limit for limit in (own, max_steps) if limit)


class GuardedSimulator:
    """A `Simulator` that raises UserError for what an environment does wrong.

    An exception of the environment, numbers that are not finite and wrong shapes become one line
    with the environment's id, the step and the seed of the reset.

    Args:
      simulator: the simulator to guard; closed by `close`.
      environment: its Gymnasium id.
    """

    def __init__(self, simulator: Simulator, environment: str):
        self._simulator, self._environment = simulator, environment
        self._state_size: int | None = None
        self._seeds: dict[int, int] = {}
        self._elapsed: dict[int, int] = {}

    def reset(self, index: int, seed: int) -> np.ndarray:
        """See `Simulator`."""
        self._seeds[index], self._elapsed[index] = seed, 0
        observation = self._call(lambda: self._simulator.reset(index, seed), [index])
        if self._state_size is None and observation.ndim == 1:
            self._state_size = len(observation)
        if observation.shape != (self._state_size,):
            self._refuse_shape("an observation", observation.shape, [index])
        self._check_finite("observation", observation[None], [index])
        return observation

    def step(self, indices: np.ndarray, actions: np.ndarray) -> Steps:
        """See `Simulator`."""
        copies = [int(index) for index in indices]
        for index in copies:
            self._elapsed[index] += 1
        self._check_finite("action, which the policy chose,", actions, copies)
        steps = self._call(lambda: self._simulator.step(indices, actions), copies)
        if steps.observations.shape != (len(copies), self._state_size):
            self._refuse_shape("an observation", steps.observations.shape[1:], copies)
        if steps.rewards.size != len(copies):
            self._refuse_shape("a reward", steps.rewards.shape[1:], copies)
        # Some environments return their reward as an array of one element.
        steps = steps._replace(rewards=steps.rewards.reshape(len(copies)))
        self._check_finite("observation", steps.observations, copies)
        self._check_finite("reward", steps.rewards[:, None], copies)
        return steps

    def close(self) -> None:
        """See `Simulator`."""
        self._simulator.close()

    def _call(self, function: Callable[[], T], copies: list[int]) -> T:
        try:
            return function()
        except Exception as error:
            raise UserError(
                f"environment {self._environment} raised {first_line(error)} {self._where(copies)}"
                "; mend the environment"
            ) from error

    def _check_finite(self, what: str, values: np.ndarray, copies: list[int]) -> None:
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            row = values[bad[0]]
            raise UserError(
                f"environment {self._environment}: expected finite numbers, got the {what} with "
                f"{row[~np.isfinite(row)][0]} {self._where([copies[bad[0]]])}"
            )

    def _refuse_shape(self, what: str, shape: tuple[int, ...], copies: list[int]) -> None:
        expected = f"[{self._state_size}]" if "observation" in what else "[]"
        raise UserError(
            f"environment {self._environment}: expected {what} of shape {expected}, got "
            f"{list(shape)} {self._where(copies)}"
        )

    def _where(self, copies: list[int]) -> str:
        """The step and the seed of the episodes that `copies` are in."""
        steps = sorted({self._elapsed[index] for index in copies})
        seeds = sorted({self._seeds[index] for index in copies})
        if steps == [0]:
            return f"in the reset with seed {seeds[0]}"
        step = (
            f"step {steps[0]:,}" if len(steps) == 1 else f"a step of {steps[0]:,} to {steps[-1]:,}"
        )
        seed = f"seed {seeds[0]}" if len(seeds) == 1 else f"a seed of {seeds[0]} to {seeds[-1]}"
        return f"at {step} of the episode that was reset with {seed}"
