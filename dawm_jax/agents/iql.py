"""Implicit Q-learning (Kostrikov et al. 2022).

Observations are standardised, actions lie in [-1, 1], the target scales rewards.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dawm_jax.agents import td
from dawm_jax.models import optim as learner
from dawm_jax.models.networks import Critics, GaussianPolicy, Value
from dawm_jax.models.optim import Metrics, Params

# The official implementation's bounds of the policy's log standard deviation.
_LOG_STD_BOUNDS = (-5.0, 2.0)


class Networks(NamedTuple):
    """The policy, the state value, and both critics."""

    actor: GaussianPolicy
    value: Value
    critics: Critics


@struct.dataclass
class State:
    """Everything that an update moves."""

    actor: Params
    value: Params
    critics: Params
    target_critics: Params
    actor_opt: optax.OptState
    value_opt: optax.OptState
    critic_opt: optax.OptState


def make_networks(hidden: tuple[int, ...], action_size: int) -> Networks:
    """Networks of the given hidden sizes."""
    return Networks(
        actor=GaussianPolicy(hidden, action_size, *_LOG_STD_BOUNDS),
        value=Value(hidden),
        critics=Critics(hidden, members=2, orthogonal=True),
    )


def init(
    key: jax.Array,
    *,
    networks: Networks,
    state_size: int,
    action_size: int,
    actor_optimizer: optax.GradientTransformation,
    value_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
) -> State:
    """A fresh agent; the target starts as a copy. `key` is consumed."""
    key_actor, key_value, key_critics = jax.random.split(key, 3)
    observation, action = jnp.zeros((1, state_size)), jnp.zeros((1, action_size))
    actor = networks.actor.init(key_actor, observation)
    value = networks.value.init(key_value, observation)
    critics = networks.critics.init(key_critics, observation, action)
    return State(
        actor=actor,
        value=value,
        critics=critics,
        target_critics=jax.tree.map(jnp.copy, critics),
        actor_opt=actor_optimizer.init(actor),
        value_opt=value_optimizer.init(value),
        critic_opt=critic_optimizer.init(critics),
    )


def expectile_loss(difference: jax.Array, *, expectile: float) -> jax.Array:
    """|expectile - 1(u < 0)| u^2, elementwise (IQL, eq. 4)."""
    return jnp.where(difference > 0, expectile, 1.0 - expectile) * jnp.square(difference)


def value_loss(
    value: Params, q: jax.Array, batch: Any, *, networks: Networks, expectile: float
) -> tuple[jax.Array, Metrics]:
    """Expectile regression of V(s) on the target critics' min Q(s, a) (IQL, eq. 5)."""
    v = networks.value.apply(value, batch.observation)
    loss = expectile_loss(q - v, expectile=expectile).mean()
    return loss, {"value_loss": loss, "v_mean": v.mean()}


def actor_loss(
    actor: Params,
    advantage: jax.Array,
    batch: Any,
    *,
    networks: Networks,
    beta: float,
    max_weight: float,
) -> tuple[jax.Array, Metrics]:
    """-mean min(exp(beta advantage), max_weight) log pi(a | s) (IQL, eq. 7)."""
    mean, log_std = networks.actor.apply(actor, batch.observation)
    scaled = (batch.action - mean) * jnp.exp(-log_std)[None]
    log_prob = -(0.5 * jnp.square(scaled) + log_std[None] + 0.5 * jnp.log(2 * jnp.pi)).sum(-1)
    weight = jnp.minimum(jnp.exp(beta * advantage), max_weight)
    loss = -(weight * log_prob).mean()
    return loss, {"actor_loss": loss, "cloning_mse": jnp.square(batch.action - mean).mean()}


def update(
    state: State,
    batches: Any,
    key: jax.Array,
    *,
    networks: Networks,
    actor_optimizer: optax.GradientTransformation,
    value_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
    target: td.TargetFn,
    tau: float,
    expectile: float,
    beta: float,
    max_weight: float,
) -> tuple[State, Metrics]:
    """One update in the official order: value, policy, critics, target.

    Args:
      state: of the agent.
      batches: [1, B, ...] of what `target` takes, rewards in raw units.
      key: unused; IQL's update draws nothing.
      networks: of the agent.
      actor_optimizer: of the policy.
      value_optimizer: of the state value.
      critic_optimizer: of both critics.
      target: of the critics, in scaled reward units.
      tau: share of the new parameters in the target networks.
      expectile: of the value regression.
      beta: inverse temperature of the policy extraction.
      max_weight: cap of the exponentiated advantage.

    Returns:
      The next state, and metrics in scaled reward units.
    """
    del key
    batch = jax.tree.map(lambda leaf: leaf[0], batches)
    q = networks.critics.apply(state.target_critics, batch.observation, batch.action).min(0)
    value, value_opt, value_metrics = learner.gradient_step(
        lambda params: value_loss(params, q, batch, networks=networks, expectile=expectile),
        state.value,
        state.value_opt,
        value_optimizer,
    )
    advantage = q - networks.value.apply(value, batch.observation)
    actor, actor_opt, actor_metrics = learner.gradient_step(
        lambda params: actor_loss(
            params, advantage, batch, networks=networks, beta=beta, max_weight=max_weight
        ),
        state.actor,
        state.actor_opt,
        actor_optimizer,
    )
    wanted = target(batch, lambda observation: networks.value.apply(value, observation))
    critics, critic_opt, critic_metrics = learner.gradient_step(
        lambda params: td.critic_loss(params, batch, wanted, networks=networks),
        state.critics,
        state.critic_opt,
        critic_optimizer,
    )
    state = State(
        actor=actor,
        value=value,
        critics=critics,
        target_critics=optax.incremental_update(critics, state.target_critics, tau),
        actor_opt=actor_opt,
        value_opt=value_opt,
        critic_opt=critic_opt,
    )
    return state, {**value_metrics, **actor_metrics, **critic_metrics}


def act(state: State, observation: jax.Array, *, networks: Networks) -> jax.Array:
    """The policy's mean: standardised [..., S] -> [..., A] in [-1, 1]."""
    return networks.actor.apply(state.actor, observation)[0]
