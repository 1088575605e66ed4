"""What soft actor-critics share: networks, state, and the steps of critics and temperature.

SAC (Haarnoja et al. 2018, 1812.05905) and RLPD (2302.02948), which differ in the critics' target,
in the value that the policy climbs, and in how they draw noise.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dawm_jax.agents import td
from dawm_jax.models import optim
from dawm_jax.models.networks import Critics, Mlp
from dawm_jax.types import Metrics, Params, Rows


class Networks(NamedTuple):
    """The policy (mean and log standard deviation in one output) and the critics."""

    actor: Mlp
    critics: Critics


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
        functools.partial(td.critic_loss, batch=batch, target=target, networks=networks),
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


def temperature_step(
    state: State, surplus: jax.Array, optimizer: optax.GradientTransformation
) -> State:
    """One step on log(temperature) times the surplus.

    That is SAC's eq. 18 with the logarithm of the temperature in place of the temperature, as in
    the authors' code.

    Args:
      state: state of the agent.
      surplus: [] entropy of the policy less the entropy that it aims at.
      optimizer: of the logarithm of the temperature.
    """
    log_temperature, temperature_opt, _ = optim.gradient_step(
        lambda log_temperature: (log_temperature * surplus, {}),
        state.log_temperature,
        state.temperature_opt,
        optimizer,
    )
    return dataclasses.replace(
        state, log_temperature=log_temperature, temperature_opt=temperature_opt
    )
