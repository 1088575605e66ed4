"""What soft actor-critics share: networks, state, and the steps of critics and policy.

SAC (Haarnoja et al. 2018, 1812.05905) and RLPD (2302.02948), which differ in the critics' target,
in the value that the policy climbs, and in how they draw noise.
"""

import dataclasses
import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dawm_jax.agents import td
from dawm_jax.models import optim, squashed_gaussian
from dawm_jax.models.networks import Critics, Mlp
from dawm_jax.types import Metrics, Params, Rows


class Networks(NamedTuple):
    """The policy (mean and log standard deviation in one output) and the critics."""

    actor: Mlp
    critics: Critics


class PoolFn(Protocol):
    """Combines the values of an ensemble."""

    def __call__(self, q: jax.Array, /) -> jax.Array:
        """Values of all critics [E, B] -> [B]."""


class Optimizers(NamedTuple):
    """One of each part of the state; the last is of the logarithm of the temperature."""

    actor: optax.GradientTransformation
    critics: optax.GradientTransformation
    temperature: optax.GradientTransformation


@struct.dataclass
class State:
    """Everything that an update moves."""

    actor: Params
    critics: Params
    target_critics: Params
    log_temperature: jax.Array  # []
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    temperature_opt: optax.OptState


def init(
    key: jax.Array,
    networks: Networks,
    optimizers: Optimizers,
    *,
    state_size: int,
    action_size: int,
) -> State:
    """A fresh agent at temperature 1; `key` is consumed."""
    key_actor, key_critics = jax.random.split(key)
    observation = jnp.zeros((1, state_size), jnp.float32)
    action = jnp.zeros((1, action_size), jnp.float32)
    actor = networks.actor.init(key_actor, observation)
    critics = networks.critics.init(key_critics, observation, action)
    log_temperature = jnp.zeros(())
    return State(
        actor=actor,
        critics=critics,
        target_critics=jax.tree.map(jnp.copy, critics),
        log_temperature=log_temperature,
        actor_opt=optimizers.actor.init(actor),
        critic_opt=optimizers.critics.init(critics),
        temperature_opt=optimizers.temperature.init(log_temperature),
    )


def critic_step(
    state: State,
    batch: Rows,
    target: jax.Array,
    *,
    networks: Networks,
    optimizer: optax.GradientTransformation,
    tau: float,
) -> tuple[State, Metrics]:
    """One gradient step of the critics, and one moving average of their targets.

    Args:
      state: state of the agent.
      batch: rows [B].
      target: [B] target of Q(s, a).
      networks: networks of the agent.
      optimizer: of the critics.
      tau: share of the new parameters in the target critics.
    """
    critics, critic_opt, metrics = optim.gradient_step(
        functools.partial(td.critic_loss, batch=batch, target=target, network=networks.critics),
        state.critics,
        state.critic_opt,
        optimizer,
    )
    state = dataclasses.replace(
        state,
        critics=critics,
        critic_opt=critic_opt,
        target_critics=optax.incremental_update(critics, state.target_critics, tau),
    )
    return state, metrics


def actor_loss(
    actor: Params,
    state: State,
    observation: jax.Array,
    noise: jax.Array,
    *,
    networks: Networks,
    pool: PoolFn,
) -> tuple[jax.Array, Metrics]:
    """mean (temperature log pi(a) - pool_e Q_e(s, a)) over drawn actions (SAC, eq. 7).

    Args:
      actor: parameters of the policy.
      state: gives the critics and the temperature.
      observation: [B, S].
      noise: [B, A] standard normal.
      networks: networks of the agent.
      pool: what the policy makes of the critics' values.
    """
    action, log_prob = squashed_gaussian.sample(networks.actor.apply(actor, observation), noise)
    q = pool(networks.critics.apply(state.critics, observation, action))
    value = (jnp.exp(state.log_temperature) * log_prob - q).mean()
    return value, {"actor_loss": value, "entropy": -log_prob.mean()}


def policy_step(
    state: State,
    observation: jax.Array,
    noise: jax.Array,
    *,
    networks: Networks,
    optimizers: Optimizers,
    pool: PoolFn,
    target_entropy: float,
) -> tuple[State, Metrics]:
    """One gradient step of the policy, and one on log(temperature) (entropy - target entropy).

    The second is SAC's eq. 18 with the logarithm of the temperature in place of the temperature,
    as in the authors' code.

    Args:
      state: state of the agent.
      observation: [B, S].
      noise: [B, A] standard normal noise of the actions.
      networks: networks of the agent.
      optimizers: of policy and temperature.
      pool: see `actor_loss`.
      target_entropy: of all dimensions of the action together.

    Returns:
      The next state, and metrics before the step.
    """
    actor, actor_opt, metrics = optim.gradient_step(
        lambda actor: actor_loss(actor, state, observation, noise, networks=networks, pool=pool),
        state.actor,
        state.actor_opt,
        optimizers.actor,
    )
    surplus = metrics["entropy"] - target_entropy
    log_temperature, temperature_opt, _ = optim.gradient_step(
        lambda log_temperature: (log_temperature * surplus, {}),
        state.log_temperature,
        state.temperature_opt,
        optimizers.temperature,
    )
    metrics = {**metrics, "temperature": jnp.exp(state.log_temperature)}
    state = dataclasses.replace(
        state,
        actor=actor,
        actor_opt=actor_opt,
        log_temperature=log_temperature,
        temperature_opt=temperature_opt,
    )
    return state, metrics


def act(actor: Params, observation: jax.Array, *, networks: Networks) -> jax.Array:
    """The deterministic action tanh(mean), [..., S] -> [..., A] in (-1, 1)."""
    output = networks.actor.apply(actor, observation)
    return jnp.tanh(squashed_gaussian.distribution(output)[0])
