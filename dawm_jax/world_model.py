"""The world model: a diffusion over future states, rewards and terminations.

A window of H steps is H + 1 tokens. Token k > 0 holds what the k-th step arrives at,
  (s_{t+k}, r_{t+k-1}, d_{t+k-1}),
all standardised. Terminations are rare, so that a standardised one is a large number, which
the loss cannot overlook. Token 0 is the known (s_t, 0, 0): it
is written into the sample before every evaluation and never counts in the loss. Actions
after a_t are not modelled (DAWM, section 3; DWM, section 3.2).

Other methods diffuse other tokens by the same functions, see `Layout`: the actions too, or
the states alone.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dawm_jax import diffusion, networks
from dawm_jax.learner import Metrics, Params
from dawm_jax.networks import TemporalUNet
from dawm_jax.types import Condition, Statistics, Window

# Channels beside the state: reward and termination.
EXTRA_CHANNELS = 2


class Layout(NamedTuple):
    """The channels of a token beside its state, in this order.

    Attributes:
      actions: token k also holds a_{t+k}; the last one's, which no step takes, is 0.
      outcomes: reward and termination.
    """

    actions: bool = False
    outcomes: bool = True

    def channels(self, state_size: int, action_size: int) -> int:
        """Of a token."""
        return state_size + self.actions * action_size + self.outcomes * EXTRA_CHANNELS


DAWM = Layout()
JOINT = Layout(actions=True)
STATES = Layout(outcomes=False)


class Draws(NamedTuple):
    """The random numbers of one training step, so that the loss itself is deterministic."""

    step: jax.Array  # [B] int32, diffusion step
    noise: jax.Array  # [B, H + 1, channels]
    conditioned: jax.Array  # [B], 0 where the return-to-go is dropped


class Imagined(NamedTuple):
    """A generated window, rewards in raw units."""

    states: jax.Array  # [B, H + 1, S], standardised
    rewards: jax.Array  # [B, H]
    terminated: jax.Array  # [B, H], 0 or 1
    actions: jax.Array | None = None  # [B, H, A], where they were generated too


def init(
    key: jax.Array,
    *,
    network: TemporalUNet,
    horizon: int,
    state_size: int,
    action_size: int,
    layout: Layout = DAWM,
) -> Params:
    """Parameters of the denoiser; `key` is consumed."""
    return networks.init_in_one_draw(
        network,
        key,
        jnp.zeros((1, horizon + 1, layout.channels(state_size, action_size))),
        jnp.zeros(1),
        jnp.zeros((1, action_size)),
        jnp.zeros(1),
        jnp.ones(1),
    )


def to_tokens(window: Window, statistics: Statistics, layout: Layout = DAWM) -> jax.Array:
    """Windows as clean tokens, [B, H + 1, channels]."""
    parts = [window.states]
    if layout.actions:
        assert window.actions is not None
        parts.append(jnp.pad(window.actions, ((0, 0), (0, 1), (0, 0))))
    if layout.outcomes:
        reward = (window.rewards - statistics.reward_mean) / statistics.reward_std
        ended = (window.terminated - statistics.termination_rate) / statistics.termination_std
        parts.append(jnp.pad(jnp.stack([reward, ended], axis=-1), ((0, 0), (1, 0), (0, 0))))
    return jnp.concatenate(parts, axis=-1)


def token_mask(window: Window, layout: Layout) -> jax.Array:
    """Which values of the tokens after the first are data, [B, H, 1 or channels]."""
    arrived = window.mask[..., None]
    if not layout.actions:
        return arrived
    assert window.actions is not None
    # A token's action exists where the next step does.
    acted = jnp.pad(arrived[:, 1:], ((0, 0), (0, 1), (0, 0)))
    state_size, action_size = window.states.shape[-1], window.actions.shape[-1]
    parts = [(arrived, state_size), (acted, action_size), (arrived, EXTRA_CHANNELS)]
    return jnp.concatenate([jnp.repeat(part, size, axis=-1) for part, size in parts], axis=-1)


def from_tokens(tokens: jax.Array, statistics: Statistics, layout: Layout = DAWM) -> Imagined:
    """Inverts `to_tokens`, with outcomes; terminations are cut halfway between 0 and 1."""
    reward, ended = tokens[:, 1:, -2], tokens[:, 1:, -1]
    state_size = statistics.observation_mean.shape[0]
    actions = tokens[:, :-1, state_size:-EXTRA_CHANNELS] if layout.actions else None
    return Imagined(
        actions=actions,
        states=tokens[..., :state_size],
        rewards=reward * statistics.reward_std + statistics.reward_mean,
        terminated=(
            ended > (0.5 - statistics.termination_rate) / statistics.termination_std
        ).astype(jnp.float32),
    )


def draw(
    key: jax.Array,
    *,
    batch_size: int,
    horizon: int,
    channels: int,
    num_steps: int,
    condition_dropout: float,
) -> Draws:
    """The randomness of one step's loss; `key` is consumed."""
    key_step, key_noise, key_dropout = jax.random.split(key, 3)
    kept = jax.random.bernoulli(key_dropout, 1.0 - condition_dropout, (batch_size,))
    return Draws(
        step=jax.random.randint(key_step, (batch_size,), 0, num_steps),
        noise=jax.random.normal(key_noise, (batch_size, horizon + 1, channels)),
        conditioned=kept.astype(jnp.float32),
    )


def loss(
    params: Params,
    window: Window,
    draws: Draws,
    *,
    network: TemporalUNet,
    alpha_bar: jax.Array,
    prediction: str,
    statistics: Statistics,
    layout: Layout = DAWM,
) -> tuple[jax.Array, Metrics]:
    """Denoising loss (DDPM, eq. 14, for the chosen prediction), masked to real steps.

    The normaliser is the number of tokens, not the mask's sum: the loss of a batch is then
    exactly the mean of its parts' losses, whatever device holds which part.

    Returns:
      A scalar, and metrics.
    """
    x0 = to_tokens(window, statistics, layout)
    chex.assert_equal_shape([x0, draws.noise])
    alpha_bar_k = alpha_bar[draws.step][:, None, None]
    x = _clamp(diffusion.add_noise(x0, draws.noise, alpha_bar_k), x0[:, 0])
    output = network.apply(
        params, x, draws.step, window.action, window.return_to_go, draws.conditioned
    )
    target = diffusion.prediction_target(prediction, x0, draws.noise, alpha_bar_k)
    squared = jnp.square(output - target)[:, 1:] * token_mask(window, layout)
    value = squared.mean()
    return value, {"loss": value}


def denoising_errors(
    params: Params,
    window: Window,
    noise: jax.Array,
    *,
    levels: tuple[int, ...],
    network: TemporalUNet,
    alpha_bar: jax.Array,
    prediction: str,
    statistics: Statistics,
    layout: Layout = DAWM,
) -> jax.Array:
    """Mean squared error of the predicted x_0 at some diffusion steps, [levels].

    In normalised units, over real steps only: the network's health by noise level.
    """
    x0 = to_tokens(window, statistics, layout)
    ones = jnp.ones(len(x0))
    mask = jnp.broadcast_to(token_mask(window, layout), x0[:, 1:].shape)
    weight = mask / mask.sum()

    def error(step):
        x = _clamp(diffusion.add_noise(x0, noise, alpha_bar[step]), x0[:, 0])
        output = network.apply(
            params, x, jnp.full(len(x0), step), window.action, window.return_to_go, ones
        )
        predicted = diffusion.predicted_x0(prediction, output, x, alpha_bar[step])
        return jnp.sum(jnp.square(predicted - x0)[:, 1:] * weight)

    return jax.lax.map(error, jnp.asarray(levels))


def sample(
    params: Params,
    key: jax.Array,
    condition: Condition,
    *,
    statistics: Statistics,
    layout: Layout = DAWM,
    **settings: Any,
) -> Imagined:
    """Generates windows, with outcomes; `settings` are those of `sample_tokens`."""
    tokens = sample_tokens(params, key, condition, statistics=statistics, layout=layout, **settings)
    return from_tokens(tokens, statistics, layout)


def sample_tokens(
    params: Params,
    key: jax.Array,
    condition: Condition,
    *,
    network: TemporalUNet,
    alpha_bar: jax.Array,
    prediction: str,
    statistics: Statistics,
    horizon: int,
    num_steps: int,
    guidance: float,
    eta: float,
    temperature: float,
    layout: Layout = DAWM,
) -> jax.Array:
    """Generates a window from each condition by DDIM, as tokens [B, H + 1, channels].

    Args:
      params: of the denoiser, the averaged ones.
      key: random number generator state, the key is consumed.
      condition: where to start and what return to aim at, leading axis B.
      network: the denoiser.
      alpha_bar: [K] the schedule it was trained with.
      prediction: what it predicts.
      statistics: of the training data.
      horizon: H.
      num_steps: DDIM steps.
      guidance: weight of classifier-free guidance, see `diffusion.guide`.
      eta: DDIM's stochasticity.
      temperature: standard deviation of the noise.
      layout: of the tokens.

    Returns:
      Tokens whose first state (and action) is bit for bit the given one.
    """
    batch = len(condition.state)
    known = [condition.state, condition.action] if layout.actions else [condition.state]
    known.append(jnp.zeros((batch, layout.outcomes * EXTRA_CHANNELS)))
    first = jnp.concatenate(known, axis=-1)
    low, high = token_bounds(statistics, layout)

    def denoise(x, step, condition, conditioned):
        steps = jnp.full(len(x), step)
        return network.apply(
            params, x, steps, condition.action, condition.return_to_go, conditioned
        )

    return diffusion.ddim_sample(
        diffusion.guide(denoise, condition, weight=guidance),
        key,
        (batch, horizon + 1, first.shape[-1]),
        alpha_bar=alpha_bar,
        num_steps=num_steps,
        prediction=prediction,
        eta=eta,
        temperature=temperature,
        clamp=functools.partial(_clamp, first=first),
        clip=lambda x: jnp.clip(x, low[None, None], high[None, None]),
    )


def _clamp(x: jax.Array, first: jax.Array) -> jax.Array:
    """Writes the known first token into a sample."""
    return x.at[:, 0].set(first)


def token_bounds(statistics: Statistics, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest clean token of the data, [channels] each; actions in [-1, 1]."""

    def bound(observation, action, reward, ended):
        parts = [(observation - statistics.observation_mean) / statistics.observation_std]
        if layout.actions:
            parts.append(jnp.full(statistics.action_low.shape, action))
        if layout.outcomes:
            reward = (reward - statistics.reward_mean) / statistics.reward_std
            ended = (ended - statistics.termination_rate) / statistics.termination_std
            parts.append(jnp.stack([reward, ended]))
        return jnp.concatenate(parts)

    return (
        bound(statistics.observation_low, -1.0, statistics.reward_low, 0.0),
        bound(statistics.observation_high, 1.0, statistics.reward_high, 1.0),
    )
