"""The gradient step of the models that learn from single transitions."""

from typing import Protocol

import jax
import optax

from dawm_jax.data import replay as replays
from dawm_jax.data.replay import Replay
from dawm_jax.models import optim
from dawm_jax.models.base import FitSettings, MeanFn, ShardFn
from dawm_jax.models.optim import TrainState
from dawm_jax.types import Metrics, Params, Transition


class TransitionLoss(Protocol):
    """A loss over single transitions."""

    def __call__(self, params: Params, batch: Transition) -> tuple[jax.Array, Metrics]:
        """Parameters and transitions [B, ...] -> a scalar, and metrics."""


def optimizer(settings: FitSettings) -> optax.GradientTransformation:
    """Adam as the settings say, without a warm-up."""
    return optim.adam(
        settings.learning_rate, schedule=settings.schedule, total_steps=settings.steps
    )


def step(
    state: TrainState,
    key: jax.Array,
    replay: Replay,
    *,
    loss: TransitionLoss,
    settings: FitSettings,
    shard: ShardFn,
    mean: MeanFn,
) -> tuple[TrainState, Metrics]:
    """One gradient step on transitions drawn from the training rows.

    Args:
      state: training state of the model.
      key: random number generator state, the key is consumed.
      replay: the dataset.
      loss: loss that is minimised.
      settings: how the model is fitted.
      shard: spreads the drawn rows over devices.
      mean: averages gradients and metrics over devices.

    Returns:
      The next state, and the metrics of `loss`.
    """
    rows = replay.draw_fitted(key, settings.batch_size)
    batch = replays.gather_transitions(replay, shard(rows))
    return optim.fit_step(
        state,
        lambda params: loss(params, batch),
        optimizer(settings),
        ema_decay=settings.ema_decay,
        mean=mean,
    )
