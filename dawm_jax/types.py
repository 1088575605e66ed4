"""The types that cross module borders, and the one legend of dimension letters.

Dimension legend, used in every docstring of the package:
  B  batch            H  horizon: generated steps of a window (H + 1 states)
  S  state size       A  action size
  K  diffusion steps  E  ensemble members (critics)
  N  transitions in a dataset
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
from flax import struct

# Parameters of one network: nested dictionaries of arrays, whose structure the network knows.
Params: TypeAlias = Any
# Parameters of all models of a run, by the name of each model.
ModelParams: TypeAlias = Mapping[str, Params]
# Named scalars of a training step, or of a scan of them.
Metrics: TypeAlias = dict[str, jax.Array]


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

    The row of a return over several steps has the fields of the first step, but for the discounted
    sum of their rewards, whether any of them terminated, the state after the last one, the action
    that follows there, and `discount`.

    `next_action` and `next_action_known` are None, unless an agent that learns from the dataset's
    next action asked for them.
    """

    observation: jax.Array  # [S]
    action: jax.Array  # [A]
    reward: jax.Array  # []
    terminated: jax.Array  # [], 0 or 1
    next_observation: jax.Array  # [S]
    next_action: jax.Array | None = None  # [A], the action of the episode's next step
    # [], 0 or 1; 0 at an episode's last step, where `next_action` repeats `action`
    next_action_known: jax.Array | None = None
    # [], gamma^n of a return over n steps: weight of the value of `next_observation`; None is gamma
    discount: jax.Array | None = None


class Expansion(NamedTuple):
    """A real state and action with up to H steps after them (or a batch of them).

    A transition with a horizon: what DWM expands the critics' target with. A real transition is
    an expansion of one step.
    """

    observation: jax.Array  # [S], real
    action: jax.Array  # [A], real
    reward: jax.Array  # [H]
    terminated: jax.Array  # [H], 0 or 1; steps after the first 1 count for nothing
    next_observation: jax.Array  # [H, S]
    steps: jax.Array  # [] int32, 1 to H: how many of the H steps count


# What an agent learns from.
Rows: TypeAlias = Transition | Expansion


@dataclasses.dataclass(frozen=True)
class Returns:
    """The returns that transitions are turned into.

    Attributes:
      steps: n: rewards that are summed, fewer where the episode or the window ends before.
      discount: gamma.
    """

    steps: int
    discount: float


class PolicyFn(Protocol):
    """A policy."""

    def __call__(self, state: jax.Array, /) -> jax.Array:
        """Standardised states [..., S] -> actions [..., A] in [-1, 1]."""


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


class GeneratedWindow(NamedTuple):
    """H generated steps after a real state (or a batch of them); rewards in raw units."""

    states: jax.Array  # [H + 1, S], standardised; states[0] is the real one
    rewards: jax.Array  # [H]
    terminated: jax.Array  # [H], 0 or 1
    actions: jax.Array | None = None  # [H, A] in [-1, 1], where the model generates actions


class Condition(NamedTuple):
    """What a generated window starts from and aims at."""

    state: jax.Array  # [S], normalised
    action: jax.Array  # [A], in [-1, 1]
    return_to_go: jax.Array  # [], scaled


@struct.dataclass
class Normalizer:
    """Constants fitted on the training data; stored in every checkpoint.

    Observations and rewards are standardised with these constants. Returns-to-go are divided
    by `return_scale`. Actions are mapped from [action_low, action_high] to [-1, 1].
    """

    observation_mean: jax.Array  # [S]
    observation_std: jax.Array  # [S], never 0
    observation_low: jax.Array  # [S], raw units
    observation_high: jax.Array  # [S]
    change_mean: jax.Array  # [S], of s_{t+1} - s_t of standardised states
    change_std: jax.Array  # [S], never 0
    change_low: jax.Array  # [S]
    change_high: jax.Array  # [S]
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
