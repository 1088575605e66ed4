"""The episodes of a run's policies in several conditions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dawm_jax.envs import rollouts, simulate
from dawm_jax.envs.noise import Noise, NoisyPolicy
from dawm_jax.envs.rollouts import PolicyFn, Report
from dawm_jax.robustness.sweeps import Level
from dawm_jax.runtime.stopping import StopFlag


@dataclasses.dataclass(frozen=True, eq=False)
class Policies:
    """The policies of a run, and what their episodes are played in.

    Attributes:
      act: actions of all seeds, [seeds, episodes, S] -> [seeds, episodes, A].
      num_seeds: number of seeds.
      root_seed: of the run, so that runs with other root seeds have other start states.
      environment: Gymnasium id.
      environment_kwargs: keyword arguments of `gym.make`.
      max_steps: episodes are cut after so many steps; 0: the environment's limit alone.
      observation_std: [S] standard deviations of the training data.
      action_low: [A].
      action_high: [A].
    """

    act: PolicyFn
    num_seeds: int
    root_seed: int
    environment: str
    environment_kwargs: Mapping[str, Any]
    max_steps: int
    observation_std: np.ndarray
    action_low: np.ndarray
    action_high: np.ndarray


def check(policies: Policies, levels: Sequence[Level]) -> None:
    """Raises UserError if the environment cannot be changed so; makes one copy for each level."""
    physics = tuple(dict.fromkeys(level.physics for level in levels))
    simulate.make_simulator(
        policies.environment, len(physics), kwargs=policies.environment_kwargs, physics=physics
    ).close()


def play(
    policies: Policies,
    levels: Sequence[Level],
    *,
    episodes: int,
    seed: int,
    stop: StopFlag,
    report: Report,
) -> np.ndarray:
    """Undiscounted returns of all episodes of all levels, which are stepped in one batch.

    Episode e of a seed has the same start state and the same standard normal noise in every level.

    Args:
      policies: of a run.
      levels: the conditions.
      episodes: of each seed in each level.
      seed: of start states and noise.
      stop: looked at before every time step.
      report: shows how far the episodes are.

    Returns:
      [levels, seeds, episodes] float64.

    Raises:
      UserError: see `rollouts.run_episodes`.
      Interrupted: `stop` was set.
    """
    starts = rollouts.reset_seeds(
        seed, policies.root_seed, 0, num_policies=policies.num_seeds, num_episodes=episodes
    )
    half_range = (policies.action_high - policies.action_low) / 2
    noise = Noise(
        observation=np.outer(
            [level.observation_noise for level in levels], policies.observation_std
        ),
        action=np.outer([level.action_noise for level in levels], half_range),
        action_low=policies.action_low,
        action_high=policies.action_high,
    )
    outcome = rollouts.run_episodes(
        NoisyPolicy(policies.act, noise, seed=seed),
        policies.environment,
        seeds=np.tile(starts, (1, len(levels))),
        environment_kwargs=policies.environment_kwargs,
        physics=[level.physics for level in levels for _ in range(episodes)],
        max_steps=policies.max_steps,
        stop=stop,
        report=report,
    )
    return outcome.returns.reshape(policies.num_seeds, len(levels), episodes).transpose(1, 0, 2)
