"""An offline dataset as flat float32 arrays on the host, and the checks that every dataset passes.

Every mistake in the data is a `UserError`: one line with what was expected, what there is and
how to fix it.
"""

import dataclasses
import functools
import hashlib
import logging
from typing import TypeVar

import jax
import numpy as np

from dawm_jax.envs.recorded import Recorded
from dawm_jax.envs.tasks import References
from dawm_jax.types import UserError

_log = logging.getLogger(__name__)

# Losses square values and returns: the squares of larger numbers come near the end of float32.
_LARGEST = 1e15
# A column whose range spans fewer float32 numbers than this may lose values in float32.
_COARSE = 1000
# Actions are float32 outputs of policies. An excess over the bounds up to this share of the half
# range is rounding; a larger one means that the actions are of another environment.
_ACTION_TOLERANCE = 1e-3

ArrayT = TypeVar("ArrayT", np.ndarray, jax.Array)


@dataclasses.dataclass(frozen=True)
class OfflineDataset:
    """Whole episodes, one after the other, as flat host arrays.

    Attributes:
      name: the name that the dataset was loaded by.
      observations: [N, S] float32.
      actions: [N, A] float32, in the environment's units.
      rewards: [N] float32.
      next_observations: [N, S] float32, the true successor also at an episode's end.
      terminations: [N] bool, the environment ended the episode.
      truncations: [N] bool, the episode was cut (a time-out, or the end of the data).
      environment: Gymnasium id that the data name as their origin, or None.
      recorded: what that environment was made of beyond its id, or None if it is unknown.
      references: returns of scores 0 and 100 that the data's metadata name, or None.
      notes: what was odd in the data as it was read, one line each.
    """

    name: str
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    environment: str | None = None
    recorded: Recorded | None = None
    references: References | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def episode_ends(self) -> np.ndarray:
        """Index of the last step of every episode, [episodes]."""
        return np.flatnonzero(self.terminations | self.truncations)

    @property
    def episode_returns(self) -> np.ndarray:
        """Undiscounted return of every episode, [episodes], float64."""
        starts = np.concatenate([[0], self.episode_ends[:-1] + 1])
        return np.add.reduceat(self.rewards.astype(np.float64), starts)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of what a run trains on, 64 hexadecimal digits.

        For each of observations, actions, rewards, next_observations, terminations and
        truncations, in this order, the hash takes the line "NAME DTYPE SHAPE" and the array's
        bytes: float32, little-endian, or bool, in C order. 0 and -0 are the same.
        """
        digest = hashlib.sha256()
        for field in dataclasses.fields(self):
            array = getattr(self, field.name)
            if isinstance(array, np.ndarray):
                digest.update(f"{field.name} {array.dtype} {array.shape}\n".encode())
                # The sum turns -0 into 0, as does a copy that stores each state once.
                plain = array if array.dtype == bool else array + np.zeros((), array.dtype)
                digest.update(np.ascontiguousarray(plain, plain.dtype.newbyteorder("<")).data)
        return digest.hexdigest()


def random_episodes(dataset: OfflineDataset, count: int, *, seed: int) -> OfflineDataset:
    """Some episodes, drawn without replacement, in the order of the dataset.

    Args:
      dataset: whole episodes.
      count: number of episodes to keep; 0 keeps all.
      seed: of the draw. The first episodes of a draw do not depend on `count`: fewer episodes
        are a part of more.

    Raises:
      UserError: `count` exceeds the number of episodes.
    """
    available = len(dataset.episode_ends)
    if count > available:
        raise UserError(
            f"config.episodes: expected at most {available:,}, the episodes of {dataset.name}, "
            f"got {count:,}; 0 uses all"
        )
    if count == 0:
        return dataset
    order = np.random.default_rng(seed).permutation(available)
    return _keep_episodes(dataset, order[:count], f"{count:,} of {available:,} episodes")


def top_episodes(dataset: OfflineDataset, fraction: float) -> OfflineDataset:
    """The episodes with the highest undiscounted returns, in the order of the dataset.

    Args:
      dataset: whole episodes.
      fraction: share of the episodes to keep; their number is rounded up.

    Raises:
      UserError: `fraction` is not above 0 and at most 1.
    """
    if not 0.0 < fraction <= 1.0:
        raise UserError(f"config.top_fraction: expected above 0 and at most 1, got {fraction}")
    if fraction == 1.0:
        return dataset
    best = np.argsort(-dataset.episode_returns, kind="stable")
    count = int(np.ceil(fraction * len(best)))
    return _keep_episodes(dataset, best[:count], f"best {100 * fraction:g} % of episodes")


def _keep_episodes(dataset: OfflineDataset, episodes: np.ndarray, words: str) -> OfflineDataset:
    """The given episodes in the order of the dataset; `words` are added to the name."""
    ends = dataset.episode_ends
    kept = np.zeros(len(ends), bool)
    kept[episodes] = True
    rows = np.repeat(kept, np.diff(ends, prepend=-1))
    arrays = {
        field.name: getattr(dataset, field.name)[rows]
        for field in dataclasses.fields(dataset)
        if isinstance(getattr(dataset, field.name), np.ndarray)
    }
    return dataclasses.replace(dataset, name=f"{dataset.name}, {words}", **arrays)


def describe(dataset: OfflineDataset) -> str:
    """One line about a dataset, for the log: its size, returns and ends of episodes."""
    returns = dataset.episode_returns
    return (
        f"{dataset.name}: {len(dataset):,} transitions in {len(returns):,} episodes, "
        f"return {returns.mean():.0f} ± {returns.std():.0f}, "
        f"{int(dataset.terminations.sum()):,} terminations, "
        f"{int(dataset.truncations.sum()):,} time-outs"
    )


# --- checks -------------------------------------------------------------------------------


def validate(dataset: OfflineDataset) -> OfflineDataset:
    """Returns `dataset` unchanged if a model can be trained on it.

    Raises:
      UserError: it is empty, its shapes differ, a number is not finite or too large for
        float32, its last episode has no end, or no episode has more than one step.
    """
    name, steps = dataset.name, len(dataset)
    if steps == 0:
        raise UserError(f"dataset {name} is empty: expected at least one transition")
    for field in ("observations", "actions", "next_observations"):
        check_vectors(getattr(dataset, field), steps, field, name)
    if dataset.next_observations.shape != dataset.observations.shape:
        raise UserError(
            f"dataset {name}: expected next_observations of shape "
            f"{list(dataset.observations.shape)} like observations, got "
            f"{list(dataset.next_observations.shape)}; repair the data"
        )
    for field in ("observations", "actions", "rewards", "next_observations"):
        _check_numbers(getattr(dataset, field), field, name)
    ends = dataset.episode_ends
    if len(ends) == 0 or ends[-1] != steps - 1:
        raise UserError(f"dataset {name}: the last episode has no end; mark it as a time-out")
    if len(ends) == steps:
        raise UserError(
            f"dataset {name}: all {steps} episodes have one step, but a world model needs "
            "sequences; check the terminals and timeouts arrays, and that consecutive rows are "
            "consecutive steps"
        )
    _check_returns(dataset)
    return dataset


def check_vectors(array: np.ndarray, steps: int, field: str, name: str) -> None:
    """Checks that an array has one flat, non-empty vector per step.

    Args:
      array: the array.
      steps: expected length of its first axis.
      field: what it holds, for the message.
      name: of the dataset, for the message.

    Raises:
      UserError: the array has another shape.
    """
    if array.ndim != 2 or len(array) != steps or array.shape[1] == 0:
        raise UserError(
            f"dataset {name}: expected {field} of shape [{steps}, size], got "
            f"{list(array.shape)}; only flat vector spaces are supported"
        )


def _check_numbers(array: np.ndarray, field: str, name: str) -> None:
    bad = ~np.isfinite(array)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise UserError(
            f"dataset {name}: expected finite numbers, got {int(bad.sum())} NaN or "
            f"infinite values in {field}, the first at step {row}; repair the data"
        )
    if (largest := float(np.abs(array).max())) > _LARGEST:
        raise UserError(
            f"dataset {name}: expected numbers of at most {_LARGEST:g} in {field}, got "
            f"{largest:g}: float32 cannot hold its square; scale or repair the data"
        )


def _check_returns(dataset: OfflineDataset) -> None:
    starts = np.concatenate([[0], dataset.episode_ends[:-1] + 1])
    sums = np.add.reduceat(np.abs(dataset.rewards.astype(np.float64)), starts)
    if (largest := float(sums.max())) > _LARGEST:
        raise UserError(
            f"dataset {dataset.name}: expected rewards of an episode that add up to at most "
            f"{_LARGEST:g}, got {largest:g} in episode {int(sums.argmax())}: float32 cannot hold "
            "its square; scale the rewards"
        )


def float32_notes(array: np.ndarray, field: str) -> tuple[str, ...]:
    """One line about columns that keep few of their distinct values in float32; () if none.

    Args:
      array: [N] or [N, size], in the data's precision.
      field: what it holds, for the line.
    """
    if len(array) == 0 or array.dtype.itemsize < 4 or array.dtype == np.float32:
        return ()
    columns = array.reshape(len(array), -1)
    low, high = (columns.min(0).astype(np.float64), columns.max(0).astype(np.float64))
    with np.errstate(over="ignore", invalid="ignore"):
        magnitude = np.maximum(np.abs(low), np.abs(high)).astype(np.float32)
        spans = (high - low) / np.spacing(magnitude)
    coarse = np.flatnonzero((high > low) & (spans < _COARSE))
    lost = [int(i) for i in coarse if _loses_values(columns[:, i])]
    if not lost:
        return ()
    where = f"columns {shortened(lost)} of {field}" if array.ndim == 2 else field
    return (
        f"{where}: float32 keeps less than half of the distinct values, because their spread is "
        "small beside their size; subtract an offset before the data is stored",
    )


def _loses_values(column: np.ndarray) -> bool:
    kept = len(np.unique(column.astype(np.float32)))
    return 2 * kept <= len(np.unique(column))


def shortened(numbers: list[int], limit: int = 8) -> str:
    """Some numbers as text: "3, 5, 8" or "0, 1, 2, 3, 4, 5, 6, 7 and 12 more"."""
    text = ", ".join(map(str, numbers[:limit]))
    return text if len(numbers) <= limit else f"{text} and {len(numbers) - limit} more"


# --- actions ------------------------------------------------------------------------------


def to_unit_range(actions: ArrayT, low: ArrayT, high: ArrayT) -> ArrayT:
    """Maps [low, high] to [-1, 1]; the shapes of the arrays must broadcast."""
    return 2.0 * (actions - low) / (high - low) - 1.0


def scale_actions(
    dataset: OfflineDataset, low: np.ndarray, high: np.ndarray, *, clip: bool = False
) -> np.ndarray:
    """The dataset's actions mapped from [low, high] to [-1, 1], [N, A] float32.

    Args:
      dataset: with actions in the environment's units.
      low: [A] bounds of the environment's actions.
      high: [A].
      clip: clips actions outside the bounds, and logs how many they are.

    Raises:
      UserError: an action lies outside the bounds and `clip` is False, or the number of
        dimensions differs.
    """
    if low.shape != dataset.actions.shape[1:]:
        raise UserError(
            f"dataset {dataset.name} has {dataset.actions.shape[1]} action dimensions, the "
            f"environment {low.size}; set --config.environment to the dataset's environment"
        )
    scaled = to_unit_range(dataset.actions, low, high)
    excess = np.abs(scaled).max(axis=1) - 1.0
    outside, largest = int((excess > _ACTION_TOLERANCE).sum()), float(excess.max())
    what = (
        f"actions exceed the environment's bounds by {largest:.3g} of the half range, at "
        f"{outside:,} of {len(dataset):,} steps"
    )
    if outside and not clip:
        raise UserError(
            f"dataset {dataset.name}: {what}; --config.clip_actions=True clips them, or set "
            "--config.environment to the dataset's environment"
        )
    if outside:
        _log.warning("dataset %s: %s; these are clipped", dataset.name, what)
    return np.clip(scaled, -1.0, 1.0).astype(np.float32)
