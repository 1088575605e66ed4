"""Whole episodes of policies in a simulator."""

from typing import Protocol

import numpy as np

from dawm_jax.envs.simulate import make_simulator


class PolicyFn(Protocol):
    """Several policies, each of which acts in as many episodes."""

    def __call__(self, observations: np.ndarray, /) -> np.ndarray:
        """Actions of one step.

        Args:
          observations: [policies, episodes, S] float32, raw units.

        Returns:
          [policies, episodes, A] in the environment's units.
        """


def run_episodes(
    policy: PolicyFn, environment: str, *, num_policies: int, num_episodes: int, seed: int
) -> np.ndarray:
    """Undiscounted returns of whole episodes.

    The policies are called once per time step with all episodes in one batch. A finished
    episode stays in the batch, and its simulator is not stepped any more. Episode i starts
    from the same state for every policy.

    Args:
      policy: all policies.
      environment: Gymnasium id.
      num_policies: size of the first axis of the policies' batch.
      num_episodes: per policy.
      seed: episode i is reset with seed + i.

    Returns:
      [num_policies, num_episodes] float64.

    Raises:
      UserError: the environment cannot be made or is not continuous control.
    """
    shape = (num_policies, num_episodes)
    total = num_policies * num_episodes
    simulator = make_simulator(environment, total)
    try:
        observations = np.stack(
            [simulator.reset(i, seed + i % num_episodes) for i in range(total)]
        ).astype(np.float32)
        returns = np.zeros(total)
        active = np.arange(total)
        while len(active):
            actions = np.asarray(policy(observations.reshape(*shape, -1))).reshape(total, -1)
            steps = simulator.step(active, actions[active])
            observations[active] = steps.observations
            returns[active] += steps.rewards
            active = active[~(steps.terminated | steps.truncated)]
    finally:
        simulator.close()
    return returns.reshape(shape)
