"""Regressions on actions: the inverse dynamics model, and the cloned policy.

The inverse dynamics model tells which action led from s_t to s_{t+1}. It is trained on real
pairs by regression (Decision Diffuser, 2211.15657, eq. 6), and infers the actions of generated
states. Without the next state among its inputs the same model is a policy cloned from the data.

The network sees the next state as the change of the state, in units of the data's changes: a step
changes positions by a small part of their spread, and the action shows in these changes.

Where the world model generates the first columns of the observation alone (`models.derived`),
actions are inferred from these columns: the others are inferred themselves.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dawm_jax.data import normalizer as normalizing
from dawm_jax.data import replay as replays
from dawm_jax.data.replay import Replay
from dawm_jax.models import optim, regression
from dawm_jax.models.base import FitSettings, MeanFn, ShardFn
from dawm_jax.models.networks import TanhMlp
from dawm_jax.models.optim import TrainState
from dawm_jax.runtime.settings import redefault, setting
from dawm_jax.types import Metrics, Normalizer, Params, Transition

# Fields of a transition that the action is inferred from.
BOTH_STATES = ("observation", "next_observation")
STATE = ("observation",)


@dataclasses.dataclass(frozen=True)
class Settings(FitSettings):
    """The inverse dynamics model, or the cloned policy, and its training."""

    steps: int = redefault(FitSettings, "steps", 100_000, quick=8_000, smoke=20)
    batch_size: int = redefault(
        FitSettings, "batch_size", 256, smoke=16, help="transitions of a minibatch"
    )
    checkpoint_steps: int = redefault(
        FitSettings, "checkpoint_steps", 20_000, quick=2_000, smoke=10
    )
    log_steps: int = redefault(FitSettings, "log_steps", 2_000, quick=500, smoke=5)
    hidden: tuple[int, ...] = setting(
        (512, 512, 512),
        "units of the hidden layers",
        quick=(256, 256, 256),
        smoke=(16,),
        at_least=1,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ActionModel:
    """A deterministic model of the action of a transition; a `Trainable`.

    Attributes:
      settings: section of the model and its training.
      network: MLP from the concatenated inputs to the action.
      inputs: fields of a transition that the action is inferred from, standardised states.
      normalizer: constants fitted on the training data, of the observation columns that the
        action is inferred from (`normalizer.leading`).
    """

    settings: Settings
    network: TanhMlp
    inputs: tuple[str, ...]
    normalizer: Normalizer

    def init(self, key: jax.Array) -> TrainState:
        """A fresh training state; `key` is consumed."""
        state_size = self.normalizer.observation_mean.shape[0]
        state = jnp.zeros((1, state_size), jnp.float32)
        params = self.network.init(key, *[state] * len(self.inputs))
        return optim.init_state(params, regression.optimizer(self.settings))

    def step(
        self, state: TrainState, key: jax.Array, replay: Replay, *, shard: ShardFn, mean: MeanFn
    ) -> tuple[TrainState, Metrics]:
        """See `Trainable`."""
        return regression.step(
            state,
            key,
            replay,
            loss=self.loss,
            settings=self.settings,
            shard=shard,
            mean=mean,
        )

    def infer(self, params: Params, *states: jax.Array) -> jax.Array:
        """Actions in [-1, 1], [..., A], from the standardised states [..., S] of `inputs`."""
        size = self.normalizer.observation_mean.shape[0]
        state, *following = (observation[..., :size] for observation in states)
        changes = [normalizing.normalise_change(self.normalizer, s - state) for s in following]
        return self.network.apply(params, state, *changes)

    def loss(self, params: Params, batch: Transition) -> tuple[jax.Array, Metrics]:
        """Mean squared error of the action, a scalar, and metrics."""
        value = jnp.square(self._inferred(params, batch) - batch.action).mean()
        return value, {"loss": value}

    def errors(self, params: Params, replay: Replay, rows: jax.Array) -> Metrics:
        """Squared error per action dimension, in the environment's units squared.

        Returns:
          `mse` [A]; `baseline_mse` [A], of always answering the rows' mean action.
        """
        batch = replays.gather_transitions(replay, rows)
        half_range = (self.normalizer.action_high - self.normalizer.action_low) / 2
        action, scale = self._inferred(params, batch), jnp.square(half_range)
        return {
            "mse": jnp.square(action - batch.action).mean(0) * scale,
            "baseline_mse": batch.action.var(0) * scale,
        }

    def _inferred(self, params: Params, batch: Transition) -> jax.Array:
        return self.infer(params, *(getattr(batch, name) for name in self.inputs))


def make(settings: Settings, normalizer: Normalizer, *, state_columns: int = 0) -> ActionModel:
    """The inverse dynamics model: (s, s') -> a.

    Args:
      settings: of the model and its training.
      normalizer: constants fitted on the training data.
      state_columns: first observation columns that the action is inferred from; 0: all.
    """
    return _make(settings, normalizing.leading(normalizer, state_columns), BOTH_STATES)


def make_policy(settings: Settings, normalizer: Normalizer) -> ActionModel:
    """A policy cloned from the data: s -> a."""
    return _make(settings, normalizer, STATE)


def _make(settings: Settings, normalizer: Normalizer, inputs: tuple[str, ...]) -> ActionModel:
    network = TanhMlp(settings.hidden, normalizer.action_low.shape[0])
    return ActionModel(settings, network, inputs, normalizer)
