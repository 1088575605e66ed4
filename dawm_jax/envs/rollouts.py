"""Whole episodes of policies in a simulator."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dawm_jax.envs.guard import GuardedSimulator, episode_limit
from dawm_jax.envs.perturbed import Physics
from dawm_jax.envs.simulate import make_simulator
from dawm_jax.runtime.stopping import StopFlag


class PolicyFn(Protocol):
    """Several policies, each of which acts in as many episodes."""

    def __call__(self, observations: np.ndarray, /) -> np.ndarray:
        """Actions of one step.

        Args:
          observations: [policies, episodes, S] float32, raw units.

        Returns:
          [policies, episodes, A] in the environment's units.
        """


class Outcome(NamedTuple):
    """How whole episodes ended."""

    returns: np.ndarray  # [policies, episodes] float64, undiscounted
    # [policies, episodes] bool, whether any step of the episode was a success; None: the
    # environment does not say.
    succeeded: np.ndarray | None = None


class Report(Protocol):
    """Shows how far an evaluation is."""

    def __call__(self, step: int, limit: int, running: int, /) -> None:
        """Called after every time step.

        Args:
          step: time steps that were made.
          limit: the largest number of time steps.
          running: number of episodes that did not end.
        """


def _no_report(step: int, limit: int, running: int, /) -> None:
    pass


def reset_seeds(
    seed: int, run_seed: int, evaluation: int, *, num_policies: int, num_episodes: int
) -> np.ndarray:
    """Seeds of the resets of one evaluation, each episode's own.

    Row p depends on (seed, run_seed, evaluation, p) alone: it is the same in a resumed run and with
    any number of policies, and a longer row begins with a shorter one.

    Args:
      seed: of all evaluations.
      run_seed: root seed of the run, so that runs with other root seeds have other start states.
      evaluation: number of the evaluation in its run.
      num_policies: number of rows.
      num_episodes: per policy.

    Returns:
      [num_policies, num_episodes] uint32.
    """
    rows = [
        np.random.SeedSequence((seed, run_seed, evaluation, policy)).generate_state(num_episodes)
        for policy in range(num_policies)
    ]
    return np.stack(rows)


def run_episodes(
    policy: PolicyFn,
    environment: str,
    *,
    seeds: np.ndarray,
    environment_kwargs: Mapping[str, Any] | None = None,
    physics: Sequence[Physics] | None = None,
    max_steps: int = 0,
    stop: StopFlag | None = None,
    report: Report = _no_report,
) -> Outcome:
    """Undiscounted returns of whole episodes, and which of them succeeded.

    The policies are called once per time step with all episodes in one batch. A finished
    episode stays in the batch, and its simulator is not stepped any more.

    Args:
      policy: all policies.
      environment: Gymnasium id.
      seeds: [policies, episodes] whole numbers at least 0, of each episode's reset.
      environment_kwargs: keyword arguments of `gym.make`; None: none.
      physics: of each episode of a policy, [episodes]; None: unchanged in all.
      max_steps: episodes are cut after so many steps; 0: the environment's limit alone.
      stop: looked at before every time step.
      report: shows how far the evaluation is.

    Raises:
      UserError: the environment cannot be made, is not continuous control, has no time limit
        where `max_steps` is 0, has no model of the physics, raises an exception, or returns
        numbers that are not finite.
      Interrupted: `stop` was set.
    """
    stop = stop or StopFlag()
    limit = episode_limit(environment, environment_kwargs, max_steps=max_steps)
    total = seeds.size
    simulator = GuardedSimulator(
        make_simulator(
            environment,
            total,
            kwargs=environment_kwargs,
            physics=None if physics is None else [*physics] * len(seeds),
        ),
        environment,
    )
    try:
        observations = np.stack(
            [simulator.reset(i, int(seed)) for i, seed in enumerate(seeds.flat)]
        ).astype(np.float32)
        returns = np.zeros(total)
        succeeded: np.ndarray | None = None
        active = np.arange(total)
        for step in range(limit):
            stop.check(f"an evaluation at step {step:,}")
            actions = np.asarray(policy(observations.reshape(*seeds.shape, -1))).reshape(total, -1)
            steps = simulator.step(active, actions[active])
            observations[active] = steps.observations
            returns[active] += steps.rewards
            if steps.succeeded is not None:
                succeeded = np.zeros(total, bool) if succeeded is None else succeeded
                succeeded[active] |= steps.succeeded
            active = active[~(steps.terminated | steps.truncated)]
            report(step + 1, limit, len(active))
            if not len(active):
                break
    finally:
        simulator.close()
    return Outcome(
        returns.reshape(seeds.shape),
        None if succeeded is None else succeeded.reshape(seeds.shape),
    )
