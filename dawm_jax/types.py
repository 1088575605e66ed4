"""The types that cross module borders, and the one legend of dimension letters.

Dimension legend, used in every docstring of the package:
  B  batch            H  horizon: generated steps of a window (H + 1 states)
  S  state size       A  action size
  K  diffusion steps  E  ensemble members (critics)
  N  transitions in a dataset
"""

from typing import NamedTuple

import jax
from flax import struct


class UserError(ValueError):
    """A mistake in the input. Its message is one line: expected, got, fix."""


def one_line(value: object, limit: int = 200) -> str:
    """`value` as text for such a message, without line breaks, cut to `limit`."""
    text = " ".join(str(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def first_line(error: BaseException) -> str:
    """An exception's kind and the first line of what it says, for such a message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {one_line(lines[0])}" if lines else type(error).__name__


class Transition(NamedTuple):
    """One environment step (or a batch of them, with leading axes).

    `terminated` is 1 only where the environment ended the episode by itself. A time-out
    is not a termination: its `next_observation` is real and the value bootstraps from it.
    """

    observation: jax.Array  # [S]
    action: jax.Array  # [A]
    reward: jax.Array  # []
    terminated: jax.Array  # [], 0 or 1
    next_observation: jax.Array  # [S]


class Expansion(NamedTuple):
    """A real state and action with H generated steps after them (or a batch of them).

    A transition with a horizon: what DWM expands the critics' target with.
    """

    observation: jax.Array  # [S], real
    action: jax.Array  # [A], real
    reward: jax.Array  # [H]
    terminated: jax.Array  # [H], 0 or 1; steps after the first 1 count for nothing
    next_observation: jax.Array  # [H, S]


class Window(NamedTuple):
    """H consecutive steps of one episode: a training example of the world model.

    Past the episode's end the last state repeats (absorbing), rewards are 0 and `mask` is 0.
    """

    states: jax.Array  # [H + 1, S]
    rewards: jax.Array  # [H], rewards[k] is paid on arriving at states[k + 1]
    terminated: jax.Array  # [H], 1 where states[k + 1] is terminal
    mask: jax.Array  # [H], 1 where the step exists
    action: jax.Array  # [A], the first action
    return_to_go: jax.Array  # [], discounted, to the episode's end, scaled
    actions: jax.Array | None = None  # [H, A], of all steps, for models of actions


class Condition(NamedTuple):
    """What a generated window starts from and aims at."""

    state: jax.Array  # [S], normalised
    action: jax.Array  # [A], in [-1, 1]
    return_to_go: jax.Array  # [], scaled


@struct.dataclass
class Statistics:
    """What was fitted on the training data; stored in every checkpoint.

    Observations and rewards are standardised with these; returns-to-go are divided by
    `return_scale`; actions are mapped from [action_low, action_high] to [-1, 1].
    """

    observation_mean: jax.Array  # [S]
    observation_std: jax.Array  # [S], never 0
    observation_low: jax.Array  # [S], raw units
    observation_high: jax.Array  # [S]
    reward_mean: jax.Array  # []
    reward_std: jax.Array  # [], never 0
    reward_low: jax.Array  # []
    reward_high: jax.Array  # []
    return_scale: jax.Array  # [], > 0
    return_low: jax.Array  # [], scaled units
    return_high: jax.Array  # [], scaled units
    return_range: jax.Array  # [], max - min undiscounted return of all episodes, > 0
    action_low: jax.Array  # [A]
    action_high: jax.Array  # [A]
