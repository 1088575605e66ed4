"""What the agents with critics share: targets and the critics' loss.

A target is a function of a batch and of a value of states. Each algorithm defines the value,
so the same TD3+BC or IQL learns from one-step transitions or from value expansions.
"""

from typing import Protocol

import chex
import jax
import jax.numpy as jnp

from dawm_jax.agents.base import AgentTask
from dawm_jax.models.networks import Critics
from dawm_jax.types import Expansion, Metrics, Params, Rows, Transition


class ValueFn(Protocol):
    """The value of states, from which a target bootstraps."""

    def __call__(self, observation: jax.Array, /) -> jax.Array:
        """Standardised observations [B, ..., S] -> values [B, ...]."""


class TargetFn(Protocol):
    """The target of the critics."""

    def __call__(self, batch: Rows, value: ValueFn) -> jax.Array:
        """The target of Q(s, a) for every row.

        Args:
          batch: rows [B].
          value: value of the states that the target bootstraps from.

        Returns:
          [B].
        """


def make_target(
    task: AgentTask, *, return_lambda: float, reward_scale: float | jax.Array = 1.0
) -> TargetFn:
    """The target for the rows of a task: one-step for transitions, lambda-return for expansions.

    Args:
      task: gives the type of the rows and the discount.
      return_lambda: lambda of `expansion_target`; without effect on transitions.
      reward_scale: multiplies the rewards.

    Returns:
      The target. It raises TypeError on rows of another type than `task.rows`.
    """

    def target(batch: Rows, value: ValueFn) -> jax.Array:
        if not isinstance(batch, task.rows):
            raise TypeError(f"expected {task.rows.__name__}, got {type(batch).__name__}")
        if isinstance(batch, Expansion):
            return expansion_target(
                batch,
                value,
                discount=task.discount,
                return_lambda=return_lambda,
                reward_scale=reward_scale,
            )
        return one_step_target(batch, value, discount=task.discount, reward_scale=reward_scale)

    return target


def one_step_target(
    batch: Transition,
    value: ValueFn,
    *,
    discount: float,
    reward_scale: float | jax.Array = 1.0,
) -> jax.Array:
    """r_t + gamma_t (1 - terminated_t) V(s_{t+1}), [B].

    gamma_t is `batch.discount` where the rows are returns over several steps, else gamma.

    Args:
      batch: transitions [B].
      value: value of states.
      discount: gamma.
      reward_scale: multiplies the rewards.
    """
    chex.assert_rank([batch.reward, batch.terminated], 1)
    next_value = value(batch.next_observation)
    discount_t = (discount if batch.discount is None else batch.discount) * (1.0 - batch.terminated)
    return reward_scale * batch.reward + discount_t * next_value


def expansion_target(
    batch: Expansion,
    value: ValueFn,
    *,
    discount: float,
    return_lambda: float,
    reward_scale: float | jax.Array = 1.0,
) -> jax.Array:
    """The lambda-return over the steps that count, [B] (DWM, section 3.3).

    With G_n = sum_{h<n} gamma^h r_h + gamma^n V(s_n), the n-step return, and N = `steps`, it is
    (1 - lambda) sum_{n<N} lambda^(n-1) G_n + lambda^(N-1) G_N; lambda = 1 is G_N alone, and
    N = 1 the target of a transition, `one_step_target`. A termination ends rewards and bootstraps
    of every n-step return beyond it. Nothing of the steps from N on enters the target.

    Args:
      batch: expansions [B].
      value: value of states. If lambda is 1, only the value of state N is computed.
      discount: gamma.
      return_lambda: lambda, a Python number in [0, 1].
      reward_scale: multiplies the rewards.
    """
    chex.assert_rank([batch.reward, batch.terminated, batch.next_observation], [2, 2, 3])
    chex.assert_rank(batch.steps, 1)
    horizon = batch.reward.shape[1]
    last = batch.steps[:, None] - 1
    index = jnp.arange(horizon, dtype=last.dtype)[None]
    continues = 1.0 - batch.terminated
    # Step h is weighted by (gamma lambda)^h, and by 0 after a termination.
    alive = jnp.cumprod(continues, axis=1)
    alive_before = jnp.concatenate([jnp.ones_like(alive[:, :1]), alive[:, :-1]], axis=1)
    weight = (discount * return_lambda) ** index.astype(continues.dtype) * alive_before
    rewards = jnp.where(index <= last, weight * reward_scale * batch.reward, 0.0).sum(1)
    bootstrap = weight * discount * continues
    if return_lambda == 1.0 or horizon == 1:
        state = jnp.take_along_axis(batch.next_observation, last[..., None], axis=1)[:, 0]
        return rewards + jnp.take_along_axis(bootstrap, last, axis=1)[:, 0] * value(state)
    values = bootstrap * value(batch.next_observation)
    between = jnp.where(index < last, values, 0.0).sum(1)
    final = jnp.take_along_axis(values, last, axis=1)[:, 0]
    return rewards + (1.0 - return_lambda) * between + final


def critic_loss(
    critics: Params, batch: Rows, target: jax.Array, *, network: Critics
) -> tuple[jax.Array, Metrics]:
    """Sum over the critics of the mean squared TD error, and metrics.

    TD3, algorithm 1; IQL, eq. 6.

    Args:
      critics: parameters of the ensemble.
      batch: rows [B].
      target: [B] target of Q(s, a).
      network: the ensemble of Q functions.
    """
    q = network.apply(critics, batch.observation, batch.action)
    value = jnp.square(q - target[None]).mean(1).sum()
    return value, {"critic_loss": value, "q_mean": q.mean()}
