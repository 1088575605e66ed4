"""What the agents with critics share: targets and the critics' loss.

A target is a function of a batch and of a value of states, which each algorithm defines for
itself. So the same TD3+BC or IQL learns from one-step transitions, or from value expansions.
"""

from collections.abc import Callable
from typing import Any, Protocol

import chex
import jax
import jax.numpy as jnp

from dawm_jax.models.networks import Critics
from dawm_jax.models.optim import Metrics, Params
from dawm_jax.types import Expansion, Transition

# standardised observations [B, ..., S] -> their values [B, ...]
ValueFn = Callable[[jax.Array], jax.Array]
# (batch, value) -> what Q(s, a) should be, [B]
TargetFn = Callable[[Any, ValueFn], jax.Array]


class HasCritics(Protocol):
    """An agent's networks."""

    @property
    def critics(self) -> Critics:
        """The ensemble of Q functions."""


def one_step_target(
    batch: Transition,
    value: ValueFn,
    *,
    discount: float,
    reward_scale: float | jax.Array = 1.0,
) -> jax.Array:
    """r + gamma (1 - terminated) V(s'), [B].

    Args:
      batch: transitions [B].
      value: of states.
      discount: gamma.
      reward_scale: multiplies the rewards.
    """
    chex.assert_rank([batch.reward, batch.terminated], 1)
    following = value(batch.next_observation)
    return reward_scale * batch.reward + discount * (1.0 - batch.terminated) * following


def expansion_target(
    batch: Expansion,
    value: ValueFn,
    *,
    discount: float,
    return_lambda: float,
    reward_scale: float | jax.Array = 1.0,
) -> jax.Array:
    """The lambda-return over all horizons of generated steps, [B] (DWM, section 3.3).

    With G_n = sum_{h<n} gamma^h r_h + gamma^n V(s_n), the n-step return, it is
    (1 - lambda) sum_{n<H} lambda^(n-1) G_n + lambda^(H-1) G_H; lambda = 1 is G_H alone. A
    generated termination ends rewards and bootstraps of every n-step return beyond it.

    Args:
      batch: expansions [B].
      value: of states; asked for the last state only if lambda is 1.
      discount: gamma.
      return_lambda: lambda, a Python number in [0, 1].
      reward_scale: multiplies the rewards.
    """
    chex.assert_rank([batch.reward, batch.terminated, batch.next_observation], [2, 2, 3])
    horizon = batch.reward.shape[1]
    goes_on = 1.0 - batch.terminated
    # Step h weighs (gamma lambda)^h, and nothing after a termination before it.
    alive = jnp.cumprod(goes_on, axis=1)
    alive_before = jnp.concatenate([jnp.ones_like(alive[:, :1]), alive[:, :-1]], axis=1)
    weight = (discount * return_lambda) ** jnp.arange(horizon)[None] * alive_before
    rewards = (weight * reward_scale * batch.reward).sum(1)
    bootstrap = weight * discount * goes_on
    last = bootstrap[:, -1] * value(batch.next_observation[:, -1])
    if return_lambda == 1.0 or horizon == 1:
        return rewards + last
    between = (bootstrap[:, :-1] * value(batch.next_observation[:, :-1])).sum(1)
    return rewards + (1.0 - return_lambda) * between + last


def critic_loss(
    critics: Params, batch: Any, target: jax.Array, *, networks: HasCritics
) -> tuple[jax.Array, Metrics]:
    """Sum over the critics of the mean squared TD error, and metrics.

    TD3, algorithm 1; IQL, eq. 6.
    """
    q = networks.critics.apply(critics, batch.observation, batch.action)
    value = jnp.square(q - target[None]).mean(1).sum()
    return value, {"critic_loss": value, "q_mean": q.mean()}
