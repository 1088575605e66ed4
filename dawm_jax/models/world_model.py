"""The world model: a diffusion over future states and rewards, and a classifier of terminations.

A window of H steps is H + 1 tokens, see `models.tokens`. Token 0 is the known (s_t, 0): it is
written into the sample before every evaluation of the denoiser and never counts in the loss.
Actions after a_t are not modelled (DAWM, 2509.19538; DWM, 2402.03570, section 3.2).

Terminations are not diffused. A classifier of (s, s'), trained on the same windows, marks them in
the generated states. It recognises steps that terminate, and absorbed steps, which follow a
termination and leave the state as it is. Terminations are 0.1 to 0.2 % of the steps of a medium
dataset. A diffusion of terminations as one more channel of the tokens placed one in seven at the
step at which the simulator ends (Walker2d, no raw file).

Observation columns that follow from the state are not diffused either, see `models.derived`.

A `Layout` chooses other tokens for other methods: actions too, or states alone.
"""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dawm_jax.data import normalizer as normalizing
from dawm_jax.data import replay as replays
from dawm_jax.data.replay import Replay
from dawm_jax.models import derived, diffusion, optim
from dawm_jax.models.base import (
    DENOISERS,
    Denoiser,
    DenoiserCondition,
    FitSettings,
    MeanFn,
    ShardFn,
    TokenShape,
)
from dawm_jax.models.derived import DerivedColumns
from dawm_jax.models.diffusion import Process
from dawm_jax.models.networks import Mlp
from dawm_jax.models.optim import TrainState
from dawm_jax.models.sampler import Sampler
from dawm_jax.models.tokens import STATE_FORMS, Layout, Tokens
from dawm_jax.runtime.settings import Section, redefault, setting
from dawm_jax.types import Condition, GeneratedWindow, Metrics, Normalizer, Params, Window

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Noise levels of `errors`, from nearly clean to pure noise, as shares of K - 1.
_LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Windows of `return_moved`, and the least spread of their returns that it divides by.
_TARGET_WINDOWS = 256
_SMALLEST_SPREAD = 1e-6


@dataclasses.dataclass(frozen=True)
class Settings(FitSettings):
    """The diffusion model and its training; each denoiser has a section of its own."""

    steps: int = redefault(
        FitSettings, "steps", 200_000, quick=10_000, smoke=20, source="DWM: 2,000,000"
    )
    batch_size: int = redefault(
        FitSettings, "batch_size", 256, quick=128, smoke=16, help="windows of a minibatch"
    )
    learning_rate: float = redefault(FitSettings, "learning_rate", 1e-3, quick=4e-3)
    warmup_steps: int = setting(
        1_000, "gradient steps of linear growth of the learning rate", quick=100, at_least=0
    )
    ema_decay: float = redefault(FitSettings, "ema_decay", 0.999, quick=0.995)
    checkpoint_steps: int = redefault(FitSettings, "checkpoint_steps", 20_000, quick=500, smoke=10)
    log_steps: int = redefault(FitSettings, "log_steps", 1_000, quick=100, smoke=5)
    denoiser: str = setting(
        "temporal_resnet",
        "the network that predicts; its sizes are the section of its name",
        absent="unet",
    )
    states: str = setting(
        "changes",
        "what a token says of its state: its change since the token before, in units of the "
        "data's changes, or the standardised state itself",
        choices=STATE_FORMS,
        absent="absolute",
    )
    dtype: str = setting(
        "float32",
        "type of the denoiser's computation; parameters are float32",
        choices=tuple(_DTYPES),
    )
    termination_hidden: tuple[int, ...] = setting(
        (256, 256),
        "units of the hidden layers of the classifier of terminations",
        smoke=(16,),
        at_least=1,
    )
    state_columns: int = setting(
        0,
        "first observation columns that are generated, and that actions are inferred from; the "
        "others must follow from them, as contact forces do, and are inferred; 0 generates all",
        absent=0,
        at_least=0,
    )
    derived_hidden: tuple[int, ...] = setting(
        (256, 256),
        "units of the hidden layers of the regression of the other columns",
        absent=(256, 256),
        at_least=1,
    )
    diffusion_steps: int = setting(
        1_000,
        "diffusion steps K",
        at_least=1,
        source="DDPM 2006.11239",
    )
    prediction: str = setting(
        "v",
        "what the denoiser predicts: the noise, the clean tokens, or the velocity (DWM, DD: "
        "epsilon)",
        choices=diffusion.PREDICTIONS,
        source="2202.00512",
    )
    condition_dropout: float = setting(
        0.25,
        "share of returns-to-go that are hidden in training",
        at_least=0.0,
        below=1.0,
        source="DWM, DD",
    )


# --- the model ----------------------------------------------------------------------------


def _clamp(x: jax.Array, first: jax.Array) -> jax.Array:
    """Writes the known first token into a sample."""
    return x.at[:, 0].set(first)


class Draws(NamedTuple):
    """The random numbers of one training step, so that the loss itself is deterministic."""

    step: jax.Array  # [B] int32, diffusion step
    noise: jax.Array  # [B, H + 1, channels]
    conditioned: jax.Array  # [B], 0 where the return-to-go is dropped


class EndLogits(NamedTuple):
    """What the classifier says of steps (s, s'); a step is neither, one or the other."""

    terminates: jax.Array  # [B, H], logit that the step terminates its episode
    absorbed: jax.Array  # [B, H], logit that the episode had terminated before the step


@dataclasses.dataclass(frozen=True, eq=False)
class DiffusionWorldModel:
    """p(window | s_t, a_t, return-to-go) by diffusion; a `Trainable`.

    Its parameters are a dictionary: "denoiser" and, in a layout with rewards, "termination" and,
    where the state is a part of the observation, "derived".

    Attributes:
      settings: section of the model and its training.
      horizon: H.
      tokens: how windows are turned into tokens and back.
      denoiser: predicts the diffusion target of tokens.
      termination: (s, s') -> [2], see `end_logits`; not used without rewards.
      process: diffusion process.
      sampler: how windows are sampled.
      derived: infers the columns that tokens leave out; None if tokens hold all of them, or in a
        layout without rewards, whose states only tell actions.
    """

    settings: Settings
    horizon: int
    tokens: Tokens
    denoiser: Denoiser
    termination: Mlp
    process: Process
    sampler: Sampler
    derived: DerivedColumns | None = None

    @property
    def layout(self) -> Layout:
        """Channels of a token."""
        return self.tokens.layout

    @property
    def normalizer(self) -> Normalizer:
        """Constants fitted on the training data, of the columns that tokens hold."""
        return self.tokens.normalizer

    # --- training ---

    def init(self, key: jax.Array) -> TrainState:
        """A fresh training state; `key` is consumed."""
        key_denoiser, key_termination, key_derived = jax.random.split(key, 3)
        params = {}
        if self.layout.rewards:
            pair = jnp.zeros((1, 2 * self.tokens.state_size))
            params["termination"] = self.termination.init(key_termination, pair)
        if self.derived is not None:
            params["derived"] = self.derived.init(key_derived)
        params["denoiser"] = self.denoiser.init(key_denoiser)
        return optim.init_state(params, self._optimizer())

    def step(
        self, state: TrainState, key: jax.Array, replay: Replay, *, shard: ShardFn, mean: MeanFn
    ) -> tuple[TrainState, Metrics]:
        """See `Trainable`."""
        size = self.settings.batch_size
        key_starts, key_draws = jax.random.split(key)
        starts = replay.draw_fitted(key_starts, size)
        starts, draws = shard((starts, self.draw(key_draws, size)))
        window = replays.gather_windows(replay, starts, horizon=self.horizon)
        return optim.fit_step(
            state,
            lambda params: self.loss(params, window, draws),
            self._optimizer(),
            ema_decay=self.settings.ema_decay,
            mean=mean,
        )

    def draw(self, key: jax.Array, batch_size: int) -> Draws:
        """The random numbers of one loss of `batch_size` windows; `key` is consumed."""
        key_step, key_noise, key_dropout = jax.random.split(key, 3)
        keep_rate = 1.0 - self.settings.condition_dropout
        kept = jax.random.bernoulli(key_dropout, keep_rate, (batch_size,))
        return Draws(
            step=jax.random.randint(key_step, (batch_size,), 0, self.process.num_steps),
            noise=jax.random.normal(
                key_noise, (batch_size, self.horizon + 1, self.tokens.channels)
            ),
            conditioned=kept.astype(jnp.float32),
        )

    def loss(self, params: Params, window: Window, draws: Draws) -> tuple[jax.Array, Metrics]:
        """Denoising loss (DDPM, eq. 14, for the process's prediction), over known tokens.

        What follows a time-out is unknown: the denoiser sees noise there. In a layout with
        rewards the losses of the classifier and of the derived columns are added; they share no
        parameters with the denoiser. Sums are divided by the number of values B H C rather than of
        known ones, so that the mean of the losses of a batch's parts on several devices is the
        batch's loss.

        Args:
          params: parameters of the model.
          window: [B, ...] windows of the data.
          draws: random numbers for them.

        Returns:
          A scalar, and metrics.
        """
        x0 = self.tokens.encode(window)
        chex.assert_equal_shape([x0, draws.noise])
        alpha_bar = self.process.alpha_bar[draws.step][:, None, None]
        known = self.tokens.known(window)
        x = self._noisy(x0, draws.noise, alpha_bar, known)
        condition = DenoiserCondition(window.action, window.return_to_go, draws.conditioned)
        output = self._denoise(params, x, draws.step, condition)
        target = diffusion.prediction_target(self.process.prediction, x0, draws.noise, alpha_bar)
        squared = jnp.square(output - target)[:, 1:] * known
        value = squared.mean()
        if not self.layout.rewards:
            return value, {"loss": value}
        others = {"termination_loss": self.termination_loss(params, window)}
        if self.derived is not None:
            others["derived_loss"] = self.derived.loss(params["derived"], window)
        return value + sum(others.values()), {"loss": value, **others}

    def _denoise(
        self, params: Params, x: jax.Array, step: jax.Array, condition: DenoiserCondition
    ) -> jax.Array:
        """The denoiser's prediction at noisy tokens, [B, H + 1, C]."""
        return self.denoiser(params["denoiser"], self.tokens.denoiser_input(x), step, condition)

    def _noisy(
        self, x0: jax.Array, noise: jax.Array, alpha_bar: jax.Array, known: jax.Array
    ) -> jax.Array:
        """Noisy tokens, with the first one clean and noise alone where nothing is known."""
        x = diffusion.add_noise(x0, noise, alpha_bar)
        later = jnp.where(known > 0, x[:, 1:], noise[:, 1:])
        return jnp.concatenate([x0[:, :1], later], axis=1)

    def termination_loss(self, params: Params, window: Window) -> jax.Array:
        """Cross-entropies of both outputs of `end_logits`, a scalar, divided by B H.

        Whether a step terminates is learnt from real steps, whether it is absorbed from real and
        absorbed steps. What follows a time-out is neither.
        """
        logits = self.end_logits(params, window.states)
        entropy = optax.sigmoid_binary_cross_entropy
        terminates = entropy(logits.terminates, window.terminated) * window.mask
        known = jnp.maximum(window.mask, window.terminated)
        absorbed = entropy(logits.absorbed, 1.0 - window.mask) * known
        return jnp.mean(terminates + absorbed)

    def end_logits(self, params: Params, states: jax.Array) -> EndLogits:
        """The classifier's outputs for each step of windows, [B, H + 1, S] -> [B, H] each."""
        states = self.tokens.state_of(states)
        pairs = jnp.concatenate([states[:, :-1], states[:, 1:]], axis=-1)
        terminates, absorbed = jnp.split(
            self.termination.apply(params["termination"], pairs), 2, -1
        )
        return EndLogits(terminates[..., 0], absorbed[..., 0])

    def ends(self, params: Params, states: jax.Array) -> jax.Array:
        """Which steps of windows end their episode, [B, H + 1, S] -> [B, H] float32, 0 or 1.

        A step ends its episode if it terminates, or if the next step is absorbed.
        """
        logits = self.end_logits(params, states)
        next_absorbed = jnp.pad(logits.absorbed[:, 1:] > 0.0, ((0, 0), (0, 1)))
        return ((logits.terminates > 0.0) | next_absorbed).astype(jnp.float32)

    # --- diagnostics ---

    def errors(self, params: Params, replay: Replay, rows: jax.Array) -> Metrics:
        """Denoising errors at five noise levels; with rewards the other two as well.

        Returns:
          `error_at_{k}` [] for diffusion step k, see `denoising_errors`; `termination_loss` [],
          the classifier's; `return_moved` [], see `return_moved`; `derived_loss` [], of the derived
          columns, where there are some.
        """
        window = replays.gather_windows(replay, rows, horizon=self.horizon)
        shape = (len(rows), self.horizon + 1, self.tokens.channels)
        noise = jax.random.normal(jax.random.key(0), shape)
        levels = tuple(round(share * (self.process.num_steps - 1)) for share in _LEVELS)
        values = self.denoising_errors(params, window, noise, levels=levels)
        found = {f"error_at_{level}": values[index] for index, level in enumerate(levels)}
        if self.layout.rewards:
            found["termination_loss"] = self.termination_loss(params, window)
            found["return_moved"] = self.return_moved(params, window)
        if self.derived is not None:
            found["derived_loss"] = self.derived.loss(params["derived"], window)
        return found

    def return_moved(self, params: Params, window: Window) -> jax.Array:
        """How far the target return moves what is generated, a scalar.

        Windows are generated from the same noise towards the largest and towards the smallest
        return-to-go of the data. The result is the mean difference of their returns, the sums of
        the rewards of H steps, in standard deviations of the returns.

        Args:
          params: parameters of the model.
          window: [B, ...] windows of the data, at most `_TARGET_WINDOWS` of which are used.
        """
        starts = jax.tree.map(lambda leaf: leaf[:_TARGET_WINDOWS], window)

        def returns(target: jax.Array) -> jax.Array:
            targets = jnp.full_like(starts.return_to_go, target)
            condition = Condition(starts.states[:, 0], starts.action, targets)
            return self.sample(params, jax.random.key(0), condition).rewards.sum(axis=1)

        targets = jnp.stack([self.normalizer.return_low, self.normalizer.return_high])
        low, high = jax.lax.map(returns, targets)  # one program for both
        return (high - low).mean() / jnp.maximum(low.std(), _SMALLEST_SPREAD)

    def denoising_errors(
        self, params: Params, window: Window, noise: jax.Array, *, levels: tuple[int, ...]
    ) -> jax.Array:
        """Mean squared error of the predicted x_0 at some diffusion steps, [levels].

        Errors are in units of the tokens' standard deviations and over real steps only.

        Args:
          params: parameters of the model.
          window: [B, ...] windows of the data.
          noise: [B, H + 1, channels] standard normal.
          levels: diffusion steps.
        """
        x0 = self.tokens.encode(window)
        known = self.tokens.known(window)
        mask = jnp.broadcast_to(known * window.mask[..., None], x0[:, 1:].shape)
        weight = mask / mask.sum()
        ones = jnp.ones(len(x0))
        condition = DenoiserCondition(window.action, window.return_to_go, ones)

        def error(step: jax.Array) -> jax.Array:
            alpha_bar = self.process.alpha_bar[step]
            x = self._noisy(x0, noise, alpha_bar, known)
            steps = jnp.full(len(x0), step)
            output = self._denoise(params, x, steps, condition)
            predicted = diffusion.predicted_x0(self.process.prediction, output, x, alpha_bar)
            return jnp.sum(jnp.square(predicted - x0)[:, 1:] * weight)

        return jax.lax.map(error, jnp.asarray(levels))

    # --- generation ---

    def sample(self, params: Params, key: jax.Array, condition: Condition) -> GeneratedWindow:
        """Generates windows; only for layouts with rewards. See `sample_tokens`."""
        tokens = self.sample_tokens(params, key, condition)
        window = self.tokens.decode(tokens, self.ends(params, self.tokens.states(tokens)))
        if self.derived is None:
            return window
        states = self.derived.complete(params["derived"], window.states, condition.state)
        return window._replace(states=states)

    def sample_tokens(self, params: Params, key: jax.Array, condition: Condition) -> jax.Array:
        """Generates a window from each condition, as tokens [B, H + 1, channels].

        Args:
          params: averaged parameters of the model.
          key: random number generator state, the key is consumed.
          condition: start and target return of each window, leading axis B.

        Returns:
          Tokens whose first state (and action) is bit for bit the given one.
        """
        first = self.tokens.first(condition)

        def denoise(
            x: jax.Array, step: jax.Array, condition: Condition, conditioned: jax.Array
        ) -> jax.Array:
            known = DenoiserCondition(condition.action, condition.return_to_go, conditioned)
            return self._denoise(params, x, jnp.full(len(x), step), known)

        return self.sampler(
            self.sampler.guided(denoise, condition),
            key,
            (len(first), self.horizon + 1, first.shape[-1]),
            process=self.process,
            clamp=functools.partial(_clamp, first=first),
            clip=self.tokens.clip,
        )

    def _optimizer(self) -> optax.GradientTransformation:
        return optim.adam(
            self.settings.learning_rate,
            schedule=self.settings.schedule,
            total_steps=self.settings.steps,
            warmup_steps=self.settings.warmup_steps,
        )


def make(
    settings: Settings,
    *,
    denoiser_settings: Section,
    sampler: Sampler,
    horizon: int,
    layout: Layout,
    normalizer: Normalizer,
) -> DiffusionWorldModel:
    """The world model of the denoiser that `settings` names.

    Args:
      settings: section of the model and its training.
      denoiser_settings: section of the denoiser.
      sampler: how windows are sampled.
      horizon: H.
      layout: channels of a token.
      normalizer: constants fitted on the training data.

    Raises:
      UserError: an unknown denoiser, or more sampling steps than diffusion steps.
    """
    process = Process.cosine(settings.diffusion_steps, settings.prediction)
    sampler.check_steps(process)
    states = normalizing.leading(normalizer, settings.state_columns)
    tokens = Tokens(layout, states)
    shape = TokenShape(
        tokens=horizon + 1,
        inputs=tokens.inputs,
        channels=tokens.channels,
        action_size=normalizer.action_low.shape[0],
        # Only plans have no rewards. A plan starts from a state whose action is not chosen.
        on_action=layout.rewards,
    )
    denoiser = DENOISERS.get(settings.denoiser).make(
        denoiser_settings, shape, dtype=_DTYPES[settings.dtype]
    )
    return DiffusionWorldModel(
        settings=settings,
        horizon=horizon,
        tokens=tokens,
        denoiser=denoiser,
        termination=Mlp(settings.termination_hidden, 2),
        process=process,
        sampler=sampler,
        derived=(
            derived.make(settings.derived_hidden, normalizer, states) if layout.rewards else None
        ),
    )
