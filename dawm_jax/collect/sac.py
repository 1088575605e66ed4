"""Soft actor-critic (Haarnoja et al. 2018, 1812.05905): the online agent that makes data.

The offline agents of the package learn from data that such policies collected. Written as
they are: pure functions over explicit parameters, actions in [-1, 1].
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from dawm_jax.agents import td
from dawm_jax.models import optim as learner
from dawm_jax.models.networks import Critics, Mlp
from dawm_jax.models.optim import Metrics, Params
from dawm_jax.types import Transition

# Bounds of the policy's log standard deviation, before squashing (the authors' values).
_LOG_STD_MIN, _LOG_STD_MAX = -20.0, 2.0


class Networks(NamedTuple):
    """The policy (mean and log standard deviation in one output) and both critics."""

    actor: Mlp
    critics: Critics


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


def make_networks(hidden: tuple[int, ...], action_size: int) -> Networks:
    """Networks of the given hidden sizes."""
    return Networks(Mlp(hidden, 2 * action_size), Critics(hidden, members=2))


def init(
    key: jax.Array,
    *,
    networks: Networks,
    state_size: int,
    action_size: int,
    actor_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
) -> State:
    """A fresh agent at temperature 1. `key` is consumed."""
    key_actor, key_critics = jax.random.split(key)
    observation, action = jnp.zeros((1, state_size)), jnp.zeros((1, action_size))
    actor = networks.actor.init(key_actor, observation)
    critics = networks.critics.init(key_critics, observation, action)
    log_temperature = jnp.zeros(())
    return State(
        actor=actor,
        critics=critics,
        target_critics=jax.tree.map(jnp.copy, critics),
        log_temperature=log_temperature,
        actor_opt=actor_optimizer.init(actor),
        critic_opt=critic_optimizer.init(critics),
        temperature_opt=critic_optimizer.init(log_temperature),
    )


def distribution(
    actor: Params, observation: jax.Array, *, networks: Networks
) -> tuple[jax.Array, jax.Array]:
    """Mean and log standard deviation before squashing, [..., S] -> twice [..., A]."""
    mean, log_std = jnp.split(networks.actor.apply(actor, observation), 2, axis=-1)
    return mean, jnp.clip(log_std, _LOG_STD_MIN, _LOG_STD_MAX)


def sample(
    actor: Params, observation: jax.Array, noise: jax.Array, *, networks: Networks
) -> tuple[jax.Array, jax.Array]:
    """An action and its log probability (appendix C, eq. 21).

    Args:
      actor: parameters.
      observation: [..., S].
      noise: [..., A] standard normal.
      networks: of the agent.

    Returns:
      Actions [..., A] in (-1, 1) and log densities [...].
    """
    mean, log_std = distribution(actor, observation, networks=networks)
    latent = mean + jnp.exp(log_std) * noise
    gaussian = -0.5 * jnp.square(noise) - log_std - 0.5 * np.log(2 * np.pi)
    # log(1 - tanh(u)^2) without its cancellation at large |u|
    squashing = 2.0 * (np.log(2.0) - latent - jax.nn.softplus(-2.0 * latent))
    return jnp.tanh(latent), (gaussian - squashing).sum(-1)


def act(actor: Params, observation: jax.Array, *, networks: Networks) -> jax.Array:
    """The deterministic action, [..., S] -> [..., A]."""
    return jnp.tanh(distribution(actor, observation, networks=networks)[0])


def td_target(
    state: State, batch: Transition, noise: jax.Array, *, networks: Networks, discount: float
) -> jax.Array:
    """r + gamma (1 - terminated) (min_e Q_e(s', a') - temperature log pi(a')), [B] (eq. 3)."""
    action, log_prob = sample(state.actor, batch.next_observation, noise, networks=networks)
    q = networks.critics.apply(state.target_critics, batch.next_observation, action).min(0)
    value = q - jnp.exp(state.log_temperature) * log_prob
    return batch.reward + discount * (1.0 - batch.terminated) * value


def actor_loss(
    actor: Params,
    critics: Params,
    log_temperature: jax.Array,
    observation: jax.Array,
    noise: jax.Array,
    *,
    networks: Networks,
) -> tuple[jax.Array, Metrics]:
    """mean (temperature log pi(a) - min_e Q_e(s, a)) over sampled actions (eq. 7)."""
    action, log_prob = sample(actor, observation, noise, networks=networks)
    q = networks.critics.apply(critics, observation, action).min(0)
    value = (jnp.exp(log_temperature) * log_prob - q).mean()
    return value, {"entropy": -log_prob.mean()}


def update(
    state: State,
    batches: Transition,
    key: jax.Array,
    *,
    networks: Networks,
    actor_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
    discount: float,
    tau: float,
) -> tuple[State, Metrics]:
    """One cycle: a critic step on every batch, then one actor and one temperature step.

    Args:
      state: of the agent.
      batches: [delay, B, ...] transitions; the actor learns from the last batch.
      key: random number generator state, the key is consumed.
      networks: of the agent.
      actor_optimizer: of the policy.
      critic_optimizer: of the critics and the temperature.
      discount: gamma.
      tau: share of the new parameters in the target critics, after every critic step.

    Returns:
      The next state, and metrics.
    """
    noise = jax.random.normal(key, (batches.reward.shape[0] + 1, *batches.action.shape[1:]))
    for index in range(batches.reward.shape[0]):
        batch = jax.tree.map(lambda leaf, index=index: leaf[index], batches)
        target = td_target(state, batch, noise[index], networks=networks, discount=discount)
        critics, critic_opt, critic_metrics = learner.gradient_step(
            functools.partial(td.critic_loss, batch=batch, target=target, networks=networks),
            state.critics,
            state.critic_opt,
            critic_optimizer,
        )
        state = dataclasses.replace(
            state,
            critics=critics,
            critic_opt=critic_opt,
            target_critics=optax.incremental_update(critics, state.target_critics, tau),
        )
    actor, actor_opt, actor_metrics = learner.gradient_step(
        lambda params: actor_loss(
            params,
            state.critics,
            state.log_temperature,
            batch.observation,
            noise[-1],
            networks=networks,
        ),
        state.actor,
        state.actor_opt,
        actor_optimizer,
    )
    # Eq. 18 with the authors' code's log temperature in place of the temperature; the target
    # entropy is minus the number of action dimensions.
    surplus = actor_metrics["entropy"] + batch.action.shape[-1]
    log_temperature, temperature_opt, _ = learner.gradient_step(
        lambda log_temperature: (log_temperature * surplus, {}),
        state.log_temperature,
        state.temperature_opt,
        critic_optimizer,
    )
    metrics = {**critic_metrics, **actor_metrics, "temperature": jnp.exp(state.log_temperature)}
    state = dataclasses.replace(
        state,
        actor=actor,
        actor_opt=actor_opt,
        log_temperature=log_temperature,
        temperature_opt=temperature_opt,
    )
    return state, metrics
