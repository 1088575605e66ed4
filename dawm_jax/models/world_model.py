"""The world model: a diffusion over future states and rewards, and a classifier of ends.

A window of H steps is H + 1 tokens. Token k > 0 holds what the k-th step arrives at,
  (s_{t+k}, r_{t+k-1}),
standardised. Token 0 is the known (s_t, 0): it is written into the sample before every
evaluation and never counts in the loss. Actions after a_t are not modelled (DAWM, section 3;
DWM, section 3.2).

Terminations are not diffused: a classifier of (s, s'), trained on the same windows, reads them
off the generated states. They are one step in a thousand, and a denoiser hardly learns to place
them, although its states do fall when real ones would.

Other methods diffuse other tokens by the same functions, see `Layout`: the actions too, or
the states alone.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dawm_jax.models import diffusion, networks
from dawm_jax.models.networks import Mlp, TemporalUNet
from dawm_jax.models.optim import Metrics, Params
from dawm_jax.types import Condition, Statistics, Window


class Layout(NamedTuple):
    """The channels of a token beside its state, in this order.

    Attributes:
      actions: token k also holds a_{t+k}; the last one's, which no step takes, is 0.
      rewards: token k also holds r_{t+k-1}; terminations are then told from its states.
    """

    actions: bool = False
    rewards: bool = True

    def channels(self, state_size: int, action_size: int) -> int:
        """Of a token."""
        return state_size + self.actions * action_size + self.rewards


DAWM = Layout()
JOINT = Layout(actions=True)
STATES = Layout(rewards=False)


class Networks(NamedTuple):
    """The flax modules of a world model; its parameters are a dictionary of theirs.

    Attributes:
      denoiser: predicts the diffusion target of tokens.
      termination: (s, s') -> [1], the logit of a termination; unused without rewards.
    """

    denoiser: TemporalUNet
    termination: Mlp


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
    modules: Networks,
    horizon: int,
    state_size: int,
    action_size: int,
    layout: Layout = DAWM,
) -> Params:
    """Parameters of the denoiser and, with rewards, of the classifier; `key` is consumed."""
    key_denoiser, key_termination = jax.random.split(key)
    params = {}
    if layout.rewards:
        pair = jnp.zeros((1, 2 * state_size))
        params["termination"] = modules.termination.init(key_termination, pair)
    params["denoiser"] = networks.init_in_one_draw(
        modules.denoiser,
        key_denoiser,
        jnp.zeros((1, horizon + 1, layout.channels(state_size, action_size))),
        jnp.zeros(1),
        jnp.zeros((1, action_size)),
        jnp.zeros(1),
        jnp.ones(1),
    )
    return params


def to_tokens(window: Window, statistics: Statistics, layout: Layout = DAWM) -> jax.Array:
    """Windows as clean tokens, [B, H + 1, channels]."""
    parts = [window.states]
    if layout.actions:
        assert window.actions is not None
        parts.append(jnp.pad(window.actions, ((0, 0), (0, 1), (0, 0))))
    if layout.rewards:
        reward = (window.rewards - statistics.reward_mean) / statistics.reward_std
        parts.append(jnp.pad(reward, ((0, 0), (1, 0)))[..., None])
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
    parts = [(arrived, state_size), (acted, action_size), (arrived, layout.rewards)]
    return jnp.concatenate([jnp.repeat(part, size, axis=-1) for part, size in parts], axis=-1)


def from_tokens(
    tokens: jax.Array, terminated: jax.Array, statistics: Statistics, layout: Layout = DAWM
) -> Imagined:
    """Inverts `to_tokens`, with rewards; `terminated` [B, H] stands beside the tokens."""
    state_size = statistics.observation_mean.shape[0]
    return Imagined(
        states=tokens[..., :state_size],
        rewards=tokens[:, 1:, -1] * statistics.reward_std + statistics.reward_mean,
        terminated=terminated,
        actions=tokens[:, :-1, state_size:-1] if layout.actions else None,
    )


def termination_logits(params: Params, states: jax.Array, *, modules: Networks) -> jax.Array:
    """Logits that each step of windows ends its episode, [B, H + 1, S] -> [B, H]."""
    pairs = jnp.concatenate([states[:, :-1], states[:, 1:]], axis=-1)
    return modules.termination.apply(params["termination"], pairs)[..., 0]


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
    modules: Networks,
    alpha_bar: jax.Array,
    prediction: str,
    statistics: Statistics,
    layout: Layout = DAWM,
) -> tuple[jax.Array, Metrics]:
    """Denoising loss (DDPM, eq. 14, for the chosen prediction), masked to real steps.

    With rewards plus the classifier's cross-entropy, which no parameter shares with it. The
    normaliser is the number of tokens, not the mask's sum: the loss of a batch is then
    exactly the mean of its parts' losses, whatever device holds which part.

    Returns:
      A scalar, and metrics.
    """
    x0 = to_tokens(window, statistics, layout)
    chex.assert_equal_shape([x0, draws.noise])
    alpha_bar_k = alpha_bar[draws.step][:, None, None]
    x = _clamp(diffusion.add_noise(x0, draws.noise, alpha_bar_k), x0[:, 0])
    output = modules.denoiser.apply(
        params["denoiser"], x, draws.step, window.action, window.return_to_go, draws.conditioned
    )
    target = diffusion.prediction_target(prediction, x0, draws.noise, alpha_bar_k)
    squared = jnp.square(output - target)[:, 1:] * token_mask(window, layout)
    value = squared.mean()
    if not layout.rewards:
        return value, {"loss": value}
    ended = termination_loss(params, window, modules=modules)
    return value + ended, {"loss": value, "termination_loss": ended}


def termination_loss(params: Params, window: Window, *, modules: Networks) -> jax.Array:
    """Cross-entropy of the terminations of real steps, a scalar, normalised as `loss`."""
    logits = termination_logits(params, window.states, modules=modules)
    errors = optax.sigmoid_binary_cross_entropy(logits, window.terminated)
    return jnp.mean(errors * window.mask)


def denoising_errors(
    params: Params,
    window: Window,
    noise: jax.Array,
    *,
    levels: tuple[int, ...],
    modules: Networks,
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
        output = modules.denoiser.apply(
            params["denoiser"], x, jnp.full(len(x0), step), window.action, window.return_to_go, ones
        )
        predicted = diffusion.predicted_x0(prediction, output, x, alpha_bar[step])
        return jnp.sum(jnp.square(predicted - x0)[:, 1:] * weight)

    return jax.lax.map(error, jnp.asarray(levels))


def sample(
    params: Params,
    key: jax.Array,
    condition: Condition,
    *,
    modules: Networks,
    statistics: Statistics,
    layout: Layout = DAWM,
    **settings: Any,
) -> Imagined:
    """Generates windows with rewards; `settings` are the others of `sample_tokens`."""
    tokens = sample_tokens(
        params,
        key,
        condition,
        modules=modules,
        statistics=statistics,
        layout=layout,
        **settings,
    )
    states = tokens[..., : condition.state.shape[-1]]
    ended = termination_logits(params, states, modules=modules) > 0.0
    return from_tokens(tokens, ended.astype(jnp.float32), statistics, layout)


def sample_tokens(
    params: Params,
    key: jax.Array,
    condition: Condition,
    *,
    modules: Networks,
    alpha_bar: jax.Array,
    prediction: str,
    statistics: Statistics,
    horizon: int,
    num_steps: int,
    guidance: float,
    order: int,
    eta: float,
    temperature: float,
    layout: Layout = DAWM,
) -> jax.Array:
    """Generates a window from each condition by DDIM, as tokens [B, H + 1, channels].

    Args:
      params: of the world model, the averaged ones.
      key: random number generator state, the key is consumed.
      condition: where to start and what return to aim at, leading axis B.
      modules: of the world model.
      alpha_bar: [K] the schedule it was trained with.
      prediction: what it predicts.
      statistics: of the training data.
      horizon: H.
      num_steps: DDIM steps.
      guidance: weight of classifier-free guidance, see `diffusion.guide`.
      order: of the steps, 1 or 2, see `diffusion.ddim_sample`.
      eta: DDIM's stochasticity.
      temperature: standard deviation of the noise.
      layout: of the tokens.

    Returns:
      Tokens whose first state (and action) is bit for bit the given one.
    """
    batch = len(condition.state)
    known = [condition.state, condition.action] if layout.actions else [condition.state]
    known.append(jnp.zeros((batch, layout.rewards)))
    first = jnp.concatenate(known, axis=-1)
    low, high = token_bounds(statistics, layout)

    def denoise(x, step, condition, conditioned):
        steps = jnp.full(len(x), step)
        return modules.denoiser.apply(
            params["denoiser"], x, steps, condition.action, condition.return_to_go, conditioned
        )

    return diffusion.ddim_sample(
        diffusion.guide(denoise, condition, weight=guidance),
        key,
        (batch, horizon + 1, first.shape[-1]),
        alpha_bar=alpha_bar,
        num_steps=num_steps,
        prediction=prediction,
        order=order,
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

    def bound(observation, action, reward):
        parts = [(observation - statistics.observation_mean) / statistics.observation_std]
        if layout.actions:
            parts.append(jnp.full(statistics.action_low.shape, action))
        if layout.rewards:
            reward = (reward - statistics.reward_mean) / statistics.reward_std
            parts.append(reward[None])
        return jnp.concatenate(parts)

    return (
        bound(statistics.observation_low, -1.0, statistics.reward_low),
        bound(statistics.observation_high, 1.0, statistics.reward_high),
    )
