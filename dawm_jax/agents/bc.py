"""Behaviour cloning: a deterministic policy by regression on the data's actions.

On the best episodes only (`config.top_fraction`) it is the %BC of the offline literature
(Chen et al. 2021, 2106.01345, section 5).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dawm_jax.models import optim as learner
from dawm_jax.models.networks import TanhMlp
from dawm_jax.models.optim import Metrics, Params


@struct.dataclass
class State:
    """Everything that an update moves."""

    actor: Params
    actor_opt: optax.OptState


def init(
    key: jax.Array,
    *,
    network: TanhMlp,
    state_size: int,
    action_size: int,
    optimizer: optax.GradientTransformation,
) -> State:
    """A fresh policy. `key` is consumed."""
    del action_size  # the network's
    actor = network.init(key, jnp.zeros((1, state_size)))
    return State(actor, optimizer.init(actor))


def loss(actor: Params, batch: Any, *, network: TanhMlp) -> tuple[jax.Array, Metrics]:
    """mean (pi(s) - a)^2 over batch and dimensions, and metrics."""
    value = jnp.square(network.apply(actor, batch.observation) - batch.action).mean()
    return value, {"cloning_mse": value}


def update(
    state: State,
    batches: Any,
    key: jax.Array,
    *,
    network: TanhMlp,
    optimizer: optax.GradientTransformation,
) -> tuple[State, Metrics]:
    """One gradient step.

    Args:
      state: of the agent.
      batches: [1, B, ...] with `observation` and `action`.
      key: unused.
      network: the policy.
      optimizer: of the policy.

    Returns:
      The next state, and metrics.
    """
    del key
    batch = jax.tree.map(lambda leaf: leaf[0], batches)
    actor, actor_opt, metrics = learner.gradient_step(
        lambda params: loss(params, batch, network=network),
        state.actor,
        state.actor_opt,
        optimizer,
    )
    return State(actor, actor_opt), metrics


def act(state: State, observation: jax.Array, *, network: TanhMlp) -> jax.Array:
    """The policy: standardised [..., S] -> [..., A] in [-1, 1]."""
    return network.apply(state.actor, observation)
