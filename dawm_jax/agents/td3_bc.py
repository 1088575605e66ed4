"""TD3+BC (Fujimoto & Gu 2021): TD3 with a behaviour-cloning term in the actor's loss.

Networks are module-level constants of the algorithm's shape; parameters are explicit.
Observations are standardised and actions lie in [-1, 1].
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dawm_jax.agents import td
from dawm_jax.models import optim as learner
from dawm_jax.models.networks import Critics, TanhMlp
from dawm_jax.models.optim import Metrics, Params


class Networks(NamedTuple):
    """The policy, both critics, and the one critic that the policy follows."""

    actor: TanhMlp
    critics: Critics
    first_critic: Critics


@struct.dataclass
class State:
    """Everything that an update moves."""

    actor: Params
    critics: Params
    target_actor: Params
    target_critics: Params
    actor_opt: optax.OptState
    critic_opt: optax.OptState


def make_networks(hidden: tuple[int, ...], action_size: int) -> Networks:
    """Networks of the given hidden sizes."""
    return Networks(
        actor=TanhMlp(hidden, action_size),
        critics=Critics(hidden, members=2),
        first_critic=Critics(hidden, members=1),
    )


def init(
    key: jax.Array,
    *,
    networks: Networks,
    state_size: int,
    action_size: int,
    actor_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
) -> State:
    """A fresh agent; targets start as copies. `key` is consumed."""
    key_actor, key_critics = jax.random.split(key)
    observation, action = jnp.zeros((1, state_size)), jnp.zeros((1, action_size))
    actor = networks.actor.init(key_actor, observation)
    critics = networks.critics.init(key_critics, observation, action)
    return State(
        actor=actor,
        critics=critics,
        target_actor=jax.tree.map(jnp.copy, actor),
        target_critics=jax.tree.map(jnp.copy, critics),
        actor_opt=actor_optimizer.init(actor),
        critic_opt=critic_optimizer.init(critics),
    )


def smoothed_value(
    target_actor: Params,
    target_critics: Params,
    observation: jax.Array,
    noise: jax.Array,
    *,
    networks: Networks,
) -> jax.Array:
    """min_e Q_e(s, pi(s) + noise), what the target bootstraps from (TD3, algorithm 1).

    Args:
      target_actor: parameters.
      target_critics: parameters.
      observation: [B, ..., S].
      noise: [B, A] target-policy smoothing, already clipped; states of one row share it.
      networks: of the agent.

    Returns:
      [B, ...].
    """
    action = networks.actor.apply(target_actor, observation)
    noise = noise.reshape(len(noise), *(1,) * (observation.ndim - 2), -1)
    action = jnp.clip(action + noise, -1.0, 1.0)
    return networks.critics.apply(target_critics, observation, action).min(0)


def actor_loss(
    actor: Params, critics: Params, batch: Any, *, networks: Networks, alpha: float
) -> tuple[jax.Array, Metrics]:
    """-lambda mean Q_1(s, pi(s)) + mean (pi(s) - a)^2, lambda = alpha / mean |Q_1|.

    TD3+BC, eq. 5; no gradient flows through lambda.
    """
    action = networks.actor.apply(actor, batch.observation)
    first = jax.tree.map(lambda leaf: leaf[:1], critics)
    q = networks.first_critic.apply(first, batch.observation, action)[0]
    scale = alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
    cloning = jnp.square(action - batch.action).mean()
    value = -scale * q.mean() + cloning
    return value, {"actor_loss": value, "cloning_mse": cloning}


def update(
    state: State,
    batches: Any,
    key: jax.Array,
    *,
    networks: Networks,
    actor_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
    target: td.TargetFn,
    tau: float,
    alpha: float,
    policy_noise: float,
    noise_clip: float,
) -> tuple[State, Metrics]:
    """One delayed-policy cycle: a critic step on every batch, then one actor step.

    The delay is the number of batches. Writing the cycle out instead of branching on the
    step keeps the program free of conditionals, which cost a synchronisation on a GPU.

    Args:
      state: of the agent.
      batches: [delay, B, ...] of what `target` takes; the actor learns from the last batch.
      key: random number generator state, the key is consumed.
      networks: of the agent.
      actor_optimizer: of the policy.
      critic_optimizer: of both critics.
      target: of the critics.
      tau: share of the new parameters in the targets, once per cycle.
      alpha: weight of the value against the cloning term.
      policy_noise: standard deviation of the target action's noise.
      noise_clip: its bound.

    Returns:
      The next state, and metrics.
    """
    critics, critic_opt = state.critics, state.critic_opt
    noise = policy_noise * jax.random.normal(key, batches.action.shape)
    noise = jnp.clip(noise, -noise_clip, noise_clip)
    delay = batches.reward.shape[0]
    for index in range(delay):
        batch = jax.tree.map(lambda leaf, index=index: leaf[index], batches)
        value = functools.partial(
            smoothed_value,
            state.target_actor,
            state.target_critics,
            noise=noise[index],
            networks=networks,
        )
        critics, critic_opt, critic_metrics = learner.gradient_step(
            functools.partial(
                td.critic_loss, batch=batch, target=target(batch, value), networks=networks
            ),
            critics,
            critic_opt,
            critic_optimizer,
        )
    actor, actor_opt, actor_metrics = learner.gradient_step(
        lambda params: actor_loss(params, critics, batch, networks=networks, alpha=alpha),
        state.actor,
        state.actor_opt,
        actor_optimizer,
    )
    state = State(
        actor=actor,
        critics=critics,
        target_actor=optax.incremental_update(actor, state.target_actor, tau),
        target_critics=optax.incremental_update(critics, state.target_critics, tau),
        actor_opt=actor_opt,
        critic_opt=critic_opt,
    )
    return state, {**critic_metrics, **actor_metrics}


def act(state: State, observation: jax.Array, *, networks: Networks) -> jax.Array:
    """The deterministic policy: standardised [..., S] -> [..., A] in [-1, 1]."""
    return networks.actor.apply(state.actor, observation)
