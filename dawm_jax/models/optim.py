"""Optimisers, the one gradient step, moving averages, and the scan of updates."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dawm_jax.types import Metrics, Params, UserError

State = TypeVar("State")
Tree = TypeVar("Tree")


@struct.dataclass
class TrainState:
    """A network in training.

    Attributes:
      params: what the optimiser moves.
      average: exponential moving average of `params`, which is used after training.
      opt_state: state of the optimiser.
    """

    params: Params
    average: Params
    opt_state: optax.OptState


def adam(
    learning_rate: float, *, schedule: str, total_steps: int, warmup_steps: int = 0
) -> optax.GradientTransformation:
    """Adam under a learning-rate schedule.

    Args:
      learning_rate: the peak.
      schedule: "constant", or "cosine" to 0 at `total_steps`.
      total_steps: gradient steps of the whole training.
      warmup_steps: gradient steps of linear growth from 0.

    Raises:
      UserError: an unknown schedule.
    """
    if schedule not in ("constant", "cosine"):
        raise UserError(f"schedule: expected 'constant' or 'cosine', got {schedule!r}")
    rate = optax.constant_schedule(learning_rate)
    if schedule == "cosine":
        rate = optax.cosine_decay_schedule(learning_rate, max(total_steps - warmup_steps, 1))
    if warmup_steps:
        warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        rate = optax.join_schedules([warmup, rate], [warmup_steps])
    return optax.adam(rate)


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh training state; the average starts as a copy of the parameters."""
    return TrainState(
        params=params,
        average=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
    )


def _keep(tree: Tree) -> Tree:
    return tree


def gradient_step(
    loss: Callable[[Params], tuple[jax.Array, Metrics]],
    params: Params,
    opt_state: optax.OptState,
    optimizer: optax.GradientTransformation,
    *,
    mean: Callable[[tuple[Params, Metrics]], tuple[Params, Metrics]] = _keep,
) -> tuple[Params, optax.OptState, Metrics]:
    """One step of `optimizer` along the gradient of `loss`.

    Args:
      loss: params -> (scalar, metrics).
      params: parameters at which the gradient is taken.
      opt_state: state of `optimizer`.
      optimizer: an optax transformation.
      mean: averages gradients and metrics over devices, where each sees a part of the batch.

    Returns:
      New parameters, new optimiser state and the metrics of `loss`.
    """
    gradients, metrics = jax.grad(loss, has_aux=True)(params)
    gradients, metrics = mean((gradients, metrics))
    # Optax raises decay rates to its integer count of steps, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, metrics


def fit_step(
    state: TrainState,
    loss: Callable[[Params], tuple[jax.Array, Metrics]],
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    mean: Callable[[tuple[Params, Metrics]], tuple[Params, Metrics]] = _keep,
) -> tuple[TrainState, Metrics]:
    """`gradient_step` on a TrainState, followed by its moving average."""
    params, opt_state, metrics = gradient_step(
        loss, state.params, state.opt_state, optimizer, mean=mean
    )
    average = optax.incremental_update(params, state.average, 1.0 - ema_decay)
    return TrainState(params, average, opt_state), metrics


def scan_steps(
    step: Callable[[State, jax.Array], tuple[State, Metrics]],
    state: State,
    first_step: int | jax.Array,
    num_steps: int,
) -> tuple[State, Metrics]:
    """Runs `state, metrics = step(state, index)` for consecutive indices in one scan.

    A step draws its random numbers from `fold_in(key, index)`, so that how the steps are
    grouped into calls, or where a run is resumed, changes nothing.

    Args:
      step: one training step.
      state: state before the first step.
      first_step: index of the first step.
      num_steps: a Python number.

    Returns:
      The last state and each metric's mean over the steps.
    """
    state, metrics = jax.lax.scan(step, state, first_step + jnp.arange(num_steps))
    return state, jax.tree.map(lambda x: x.mean(0), metrics)
