"""A Gaussian one-step dynamics model: the classical world model that diffusion is held against.

One network predicts mean and log-variance of the change of the standardised state and of the
standardised reward, and the logit of a termination. Trained by maximum likelihood (PETS, Chua
et al. 2018, 1805.12114, section 4) on real transitions; windows come from feeding it its own
states, with the actions of a policy.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dawm_jax.models import world_model
from dawm_jax.models.networks import Mlp
from dawm_jax.models.optim import Metrics, Params
from dawm_jax.models.world_model import Imagined
from dawm_jax.types import Condition, Statistics, Transition

# Soft bounds of the log-variance, in standardised units (PETS bounds it in the same way).
_LOG_VARIANCE_BOUNDS = (-10.0, 0.5)


class Prediction(NamedTuple):
    """What follows a state and an action."""

    mean: jax.Array  # [B, S + 1], change of the standardised state, standardised reward
    log_variance: jax.Array  # [B, S + 1]
    logit: jax.Array  # [B], of a termination


def output_size(state_size: int) -> int:
    """Of the network: means, log-variances, and one logit."""
    return 2 * (state_size + 1) + 1


def init(key: jax.Array, *, network: Mlp, state_size: int, action_size: int) -> Params:
    """Parameters of the model; `key` is consumed."""
    return network.init(key, jnp.zeros((1, state_size + action_size)))


def predict(params: Params, state: jax.Array, action: jax.Array, *, network: Mlp) -> Prediction:
    """The distribution of the next step, from standardised [B, S] and [B, A]."""
    output = network.apply(params, jnp.concatenate([state, action], axis=-1))
    mean, raw, logit = jnp.split(output, [state.shape[-1] + 1, 2 * (state.shape[-1] + 1)], axis=-1)
    low, high = _LOG_VARIANCE_BOUNDS
    bounded = high - jax.nn.softplus(high - raw)
    return Prediction(mean, low + jax.nn.softplus(bounded - low), logit[..., 0])


def loss(
    params: Params, batch: Transition, *, network: Mlp, statistics: Statistics
) -> tuple[jax.Array, Metrics]:
    """Negative log-likelihood of state and reward, plus the termination's; and metrics.

    The Gaussian part is the mean over dimensions, without its constant.
    """
    predicted = predict(params, batch.observation, batch.action, network=network)
    error = jnp.square(_target(batch, statistics) - predicted.mean)
    gaussian = 0.5 * (error * jnp.exp(-predicted.log_variance) + predicted.log_variance).mean()
    ended = optax.sigmoid_binary_cross_entropy(predicted.logit, batch.terminated).mean()
    value = gaussian + ended
    return value, {"loss": value, "mse": error.mean(), "termination_loss": ended}


def errors(params: Params, batch: Transition, *, network: Mlp, statistics: Statistics) -> Metrics:
    """Held-out squared error of the means, standardised units, and the loss.

    Returns:
      `mse` [S + 1], the reward's last; `baseline_mse` [S + 1], of predicting no change and
      the mean reward; `loss` [].
    """
    target = _target(batch, statistics)
    predicted = predict(params, batch.observation, batch.action, network=network)
    return {
        "mse": jnp.square(target - predicted.mean).mean(0),
        "baseline_mse": jnp.square(target).mean(0),
        "loss": loss(params, batch, network=network, statistics=statistics)[0],
    }


def roll_out(
    key: jax.Array,
    condition: Condition,
    *,
    predict: Callable[[jax.Array, jax.Array], Prediction],
    act: Callable[[jax.Array], jax.Array],
    statistics: Statistics,
    horizon: int,
) -> Imagined:
    """Windows of `horizon` sampled steps: the first action is given, a policy takes the rest.

    Args:
      key: random number generator state, the key is consumed.
      condition: starts [B]; the return-to-go is not used.
      predict: (state, action) -> distribution of the next step.
      act: state -> action.
      statistics: of the training data; states and rewards stay within its bounds.
      horizon: H.
    """
    # DAWM's tokens are a state and a reward too.
    low, high = world_model.token_bounds(statistics, world_model.DAWM)

    def step(state_and_action, index):
        state, action = state_and_action
        predicted = predict(state, action)
        noise = jax.random.normal(jax.random.fold_in(key, index), predicted.mean.shape)
        change = predicted.mean + jnp.exp(0.5 * predicted.log_variance) * noise
        arrived = jnp.concatenate([state + change[:, :-1], change[:, -1:]], axis=-1)
        arrived = jnp.clip(arrived, low[None], high[None])
        following, reward = arrived[:, :-1], arrived[:, -1]
        ended = (predicted.logit > 0.0).astype(jnp.float32)
        return (following, act(following)), (following, action, reward, ended)

    start = (condition.state, condition.action)
    _, outputs = jax.lax.scan(step, start, jnp.arange(horizon))
    states, actions, rewards, ended = (jnp.moveaxis(leaf, 0, 1) for leaf in outputs)
    return Imagined(
        states=jnp.concatenate([condition.state[:, None], states], axis=1),
        rewards=rewards * statistics.reward_std + statistics.reward_mean,
        terminated=ended,
        actions=actions,
    )


def _target(batch: Transition, statistics: Statistics) -> jax.Array:
    """Change of the state and reward, standardised, [B, S + 1]."""
    reward = (batch.reward - statistics.reward_mean) / statistics.reward_std
    change = batch.next_observation - batch.observation
    return jnp.concatenate([change, reward[:, None]], axis=-1)
