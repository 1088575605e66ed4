"""Gaussian noise between a simulator and its policies."""

import dataclasses

import numpy as np

from dawm_jax.envs.rollouts import PolicyFn


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """Standard deviations of the noise in several conditions, in the environment's units.

    Attributes:
      observation: [conditions, S].
      action: [conditions, A].
      action_low: [A] bounds that noisy actions are clipped to.
      action_high: [A].
    """

    observation: np.ndarray
    action: np.ndarray
    action_low: np.ndarray
    action_high: np.ndarray


class NoisyPolicy:
    """A `rollouts.PolicyFn` that sees noisy observations and whose actions are noisy.

    Its episodes are those of the conditions one after the other, the same number in each. Episode e
    has the same standard normal numbers in every condition, so that differences between conditions
    are those of the standard deviations. Where a standard deviation is 0, observations and actions
    pass unchanged.

    Args:
      policy: the policy without noise.
      noise: of each condition.
      seed: of the noise.
    """

    def __init__(self, policy: PolicyFn, noise: Noise, *, seed: int):
        self._policy, self._noise, self._seed = policy, noise, seed
        self._step = 0

    def __call__(self, observations: np.ndarray, /) -> np.ndarray:
        """See `rollouts.PolicyFn`; observations [policies, conditions * episodes, S]."""
        noise = self._noise
        rng = np.random.default_rng((self._seed, self._step))
        self._step += 1
        seen = _add(observations, noise.observation, rng)
        actions = np.asarray(self._policy(seen.astype(np.float32)))
        moved = np.clip(_add(actions, noise.action, rng), noise.action_low, noise.action_high)
        silent = np.repeat(noise.action == 0.0, actions.shape[1] // len(noise.action), axis=0)
        return np.where(silent, actions, moved.astype(actions.dtype))


def _add(values: np.ndarray, deviations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values [policies, conditions * episodes, size] plus noise [conditions, size] of each."""
    policies, columns, size = values.shape
    conditions = len(deviations)
    drawn = rng.standard_normal((policies, 1, columns // conditions, size))
    return values + (deviations[:, None] * drawn).reshape(values.shape)
