"""The inverse dynamics model: which action led from s_t to s_{t+1}.

Trained on real pairs by regression (Decision Diffuser, eq. 6); it fills in the actions of
generated states. Without the next state among its inputs it is a cloned policy.
"""

import jax
import jax.numpy as jnp

from dawm_jax.models.networks import TanhMlp
from dawm_jax.models.optim import Metrics, Params
from dawm_jax.types import Transition

# Fields of a transition that the action is inferred from.
BOTH_STATES = ("observation", "next_observation")


def init(
    key: jax.Array, *, network: TanhMlp, state_size: int, inputs: tuple[str, ...] = BOTH_STATES
) -> Params:
    """Parameters of the model; `key` is consumed."""
    return network.init(key, *[jnp.zeros((1, state_size))] * len(inputs))


def infer(params: Params, *states: jax.Array, network: TanhMlp) -> jax.Array:
    """Actions in [-1, 1] from standardised states: s and s', [..., S] each -> [..., A]."""
    return network.apply(params, *states)


def loss(
    params: Params,
    batch: Transition,
    *,
    network: TanhMlp,
    inputs: tuple[str, ...] = BOTH_STATES,
) -> tuple[jax.Array, Metrics]:
    """Mean squared error of the action, a scalar, and metrics."""
    action = infer(params, *(getattr(batch, name) for name in inputs), network=network)
    value = jnp.square(action - batch.action).mean()
    return value, {"loss": value}


def errors(
    params: Params,
    batch: Transition,
    *,
    network: TanhMlp,
    action_half_range: jax.Array,
    inputs: tuple[str, ...] = BOTH_STATES,
) -> Metrics:
    """Held-out error per action dimension, raw units squared, beside the mean action's.

    Args:
      params: of the model.
      batch: held-out transitions.
      network: the model.
      action_half_range: [A], (high - low) / 2 of the environment's actions.
      inputs: what the model sees.

    Returns:
      `mse` [A]; `baseline_mse` [A], of always answering the batch's mean action.
    """
    action = infer(params, *(getattr(batch, name) for name in inputs), network=network)
    scale = jnp.square(action_half_range)
    return {
        "mse": jnp.square(action - batch.action).mean(0) * scale,
        "baseline_mse": batch.action.var(0) * scale,
    }
