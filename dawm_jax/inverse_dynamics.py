"""The inverse dynamics model: which action led from s_t to s_{t+1}.

Trained on real pairs by regression (Decision Diffuser, eq. 6); it fills in the actions of
generated states. States need not tell the action: of what they leave open the regression
answers the mean, and data completed by means have less variety than any policy. So a second
network learns the covariance about that mean, by maximum likelihood, and actions are drawn:
with the covariance, since what the states do tell, they tell of several dimensions together.
Without the next state among its inputs it is a cloned policy.
"""

import jax
import jax.numpy as jnp

from dawm_jax.learner import Metrics, Params
from dawm_jax.networks import GaussianActions
from dawm_jax.types import Transition

# Fields of a transition that the action is inferred from.
BOTH_STATES = ("observation", "next_observation")


def init(
    key: jax.Array,
    *,
    network: GaussianActions,
    state_size: int,
    inputs: tuple[str, ...] = BOTH_STATES,
) -> Params:
    """Parameters of the model; `key` is consumed."""
    return network.init(key, *[jnp.zeros((1, state_size))] * len(inputs))


def infer(params: Params, *states: jax.Array, network: GaussianActions) -> jax.Array:
    """Mean actions in [-1, 1] from standardised states: s and s', [..., S] each -> [..., A]."""
    return network.apply(params, *states)[0]


def sample(
    params: Params,
    key: jax.Array,
    *states: jax.Array,
    network: GaussianActions,
    temperature: float,
) -> jax.Array:
    """Actions in [-1, 1] drawn about their means; see `infer`.

    Args:
      params: of the model.
      key: random number generator state, the key is consumed.
      *states: standardised, [..., S] each.
      network: the model.
      temperature: multiplies the standard deviation; at 0 no draw is made.
    """
    mean, log_std, weights = network.apply(params, *states)
    if temperature == 0.0:
        return mean
    own = temperature * jnp.exp(log_std) * jax.random.normal(key, mean.shape)
    left = jnp.zeros_like(mean)
    for i in range(mean.shape[-1]):
        left = left.at[..., i].set(own[..., i] + (weights[..., i, :] * left).sum(-1))
    return jnp.clip(mean + left, -1.0, 1.0)


def loss(
    params: Params,
    batch: Transition,
    *,
    network: GaussianActions,
    inputs: tuple[str, ...] = BOTH_STATES,
) -> tuple[jax.Array, Metrics]:
    """Squared error of the mean, plus the likelihood of what it leaves; a scalar, and metrics.

    The second part, the negative log-likelihood without its constant, trains the covariance
    alone. Both are means over dimensions.
    """
    mean, log_std, weights = network.apply(params, *(getattr(batch, name) for name in inputs))
    error = jnp.square(batch.action - mean).mean()
    left = jax.lax.stop_gradient(batch.action - mean)
    own = left - (weights * left[..., None, :]).sum(-1)
    spread = (0.5 * jnp.square(own) * jnp.exp(-2.0 * log_std) + log_std).mean()
    return error + spread, {"loss": error, "spread_loss": spread}


def errors(
    params: Params,
    batch: Transition,
    *,
    network: GaussianActions,
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
      `mse` [A], of the means; `variance` [A], what the model says that is; `baseline_mse`
      [A], of always answering the batch's mean action.
    """
    mean, log_std, weights = network.apply(params, *(getattr(batch, name) for name in inputs))
    # left = (I - weights)^-1 own, and own is independent by dimension.
    factor = jnp.linalg.inv(jnp.broadcast_to(jnp.eye(mean.shape[-1]), weights.shape) - weights)
    variance = (jnp.square(factor) * jnp.exp(2.0 * log_std)[..., None, :]).sum(-1)
    scale = jnp.square(action_half_range)
    return {
        "mse": jnp.square(mean - batch.action).mean(0) * scale,
        "variance": variance.mean(0) * scale,
        "baseline_mse": batch.action.var(0) * scale,
    }
