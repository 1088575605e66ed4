"""A dataset from flat arrays of all episodes with D4RL's names, and where its episodes end."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dawm_jax.data.dataset import OfflineDataset, check_vectors, float32_notes, validate
from dawm_jax.types import UserError, first_line

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")
_SCALARS = ("rewards", "terminals", "timeouts")
_FLAGS = ("terminals", "timeouts")
# A successor that was computed twice differs from the next row by rounding: by up to this share
# of its size, or of its column's root mean square.
_ROUNDING = 1e-6


def from_mapping(
    name: str, arrays: Mapping[str, ArrayLike], *, environment: str | None = None
) -> OfflineDataset:
    """`from_flat_arrays` of a dictionary; arrays of other names are ignored.

    Raises:
      UserError: an array is missing; see `from_flat_arrays`.
    """
    if missing := [key for key in REQUIRED if key not in arrays]:
        raise UserError(
            f"dataset {name}: expected the D4RL arrays {', '.join(REQUIRED)}, got no "
            f"{', '.join(missing)}"
        )
    known = {key: arrays[key] for key in (*REQUIRED, *OPTIONAL) if key in arrays}
    return from_flat_arrays(name, **known, environment=environment)


def from_flat_arrays(
    name: str,
    observations: ArrayLike,
    actions: ArrayLike,
    rewards: ArrayLike,
    terminals: ArrayLike,
    timeouts: ArrayLike | None = None,
    next_observations: ArrayLike | None = None,
    *,
    environment: str | None = None,
) -> OfflineDataset:
    """A dataset from D4RL's flat arrays.

    A terminal step is a termination even when `timeouts` marks it too. The last step of the
    arrays ends its episode as a time-out. So does every other step whose `next_observations` is
    not the next row's observation and that no flag ends; a note counts these steps.

    Without `next_observations` the successor of a step is the next row. Two kinds of steps have
    no successor in the arrays. The last step of a cut episode is dropped. The state after a
    terminal step is extrapolated linearly; no value bootstraps from it.

    Args:
      name: of the dataset.
      observations: [N, S].
      actions: [N, A] floats; [N] stands for A = 1.
      rewards: [N] or [N, 1].
      terminals: [N] or [N, 1], 1 where the environment ended the episode, else 0.
      timeouts: like `terminals`, 1 where the episode was cut; None: unknown.
      next_observations: [N, S], or None.
      environment: Gymnasium id of the data's environment, or None.

    Raises:
      UserError: arrays of other shapes or kinds, flags that are not 0 or 1, or the result is
        not a valid dataset.
    """
    given = {
        "observations": observations,
        "actions": actions,
        "rewards": rewards,
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": next_observations,
    }
    arrays = {key: _numbers(x, key, name) for key, x in given.items() if x is not None}
    arrays["actions"] = _continuous(arrays["actions"], name)
    _check_lengths(arrays, name)
    _check_shapes(arrays, name)
    ends = _ends(arrays, name)
    cast = (key for key in arrays if key not in (*_FLAGS, "next_observations"))
    notes = (*ends.notes, *(note for key in cast for note in float32_notes(arrays[key], key)))
    with np.errstate(over="ignore"):  # `validate` reports what becomes infinite
        arrays = {
            key: array if key in _FLAGS else np.asarray(array, np.float32)
            for key, array in arrays.items()
        }
    return validate(_assemble(name, arrays, ends, notes, environment))


class _Ends(NamedTuple):
    terminations: np.ndarray  # [N] bool
    truncations: np.ndarray  # [N] bool, never where `terminations` is
    notes: tuple[str, ...]


def _assemble(
    name: str,
    arrays: Mapping[str, np.ndarray],
    ends: _Ends,
    notes: tuple[str, ...],
    environment: str | None,
) -> OfflineDataset:
    """The dataset of float32 arrays, without the steps that have no successor."""
    terminations, truncations, _ = ends
    observations = arrays["observations"]
    keep = np.ones_like(terminations)
    next_observations = arrays.get("next_observations", observations)
    if "next_observations" not in arrays and len(observations):
        next_observations = _next_rows(observations, terminations, truncations)
        keep = ~truncations
        # The step before a dropped one becomes the cut end of its episode.
        truncations = np.concatenate([truncations[1:], [False]]) & ~terminations
    return OfflineDataset(
        name=name,
        observations=observations[keep],
        actions=arrays["actions"][keep],
        rewards=arrays["rewards"].reshape(-1)[keep],
        next_observations=next_observations[keep],
        terminations=terminations[keep],
        truncations=truncations[keep],
        environment=environment,
        notes=notes,
    )


def _next_rows(
    observations: np.ndarray, terminations: np.ndarray, truncations: np.ndarray
) -> np.ndarray:
    """The next row as successor, extrapolated after a terminal step, [N, S]."""
    next_observations = np.concatenate([observations[1:], observations[-1:]])
    starts = np.concatenate([[True], (terminations | truncations)[:-1]])
    previous = np.where(starts[:, None], observations, np.roll(observations, 1, axis=0))
    with np.errstate(over="ignore", invalid="ignore"):  # `validate` reports infinite values
        extrapolated = 2 * observations - previous
    return np.where(terminations[:, None], extrapolated, next_observations)


# --- where episodes end -------------------------------------------------------------------


def _ends(arrays: Mapping[str, np.ndarray], name: str) -> _Ends:
    """Terminations and truncations; the last step has one of them."""
    terminations = _flags(arrays["terminals"], "terminals", name)
    truncations = np.zeros_like(terminations)
    if "timeouts" in arrays:
        truncations = _flags(arrays["timeouts"], "timeouts", name) & ~terminations
    marked = int(truncations.sum())
    if len(truncations) and not terminations[-1]:
        truncations[-1] = True
    what = (
        f"timeouts marks {marked:,} steps" if "timeouts" in arrays else "there is no timeouts array"
    )
    if "next_observations" in arrays:
        cuts = _jumps(arrays) & ~(terminations | truncations)
        truncations = truncations | cuts
        return _Ends(terminations, truncations, _cut_notes(int(cuts.sum()), what))
    if marked or len(truncations) == 0:
        return _Ends(terminations, truncations, ())
    note = (
        f"{what} and no next_observations: which episodes a time limit cut is unknown, and such "
        "an episode runs on into the next one; add one of the two arrays"
    )
    return _Ends(terminations, truncations, (note,))


def _cut_notes(cuts: int, what: str) -> tuple[str, ...]:
    if not cuts:
        return ()
    return (
        f"{what}, but the next_observations of {cuts:,} unmarked steps are not the "
        "next row's observations: these steps count as time-outs",
    )


def _jumps(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which steps' next observation is not the next row's observation, [N] bool."""
    observations, successors = arrays["observations"], arrays["next_observations"]
    if observations.dtype != successors.dtype:  # one of them was rounded
        precision = min(
            (array.dtype for array in (observations, successors) if array.dtype.kind == "f"),
            key=lambda dtype: dtype.itemsize,
            default=np.dtype(np.float64),
        )
        with np.errstate(over="ignore"):
            observations, successors = observations.astype(precision), successors.astype(precision)
    jumps = np.zeros(len(observations), bool)
    rows = np.flatnonzero((successors[:-1] != observations[1:]).any(axis=1))
    if len(rows) == 0:
        return jumps
    columns = observations.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        difference = np.abs(successors[rows].astype(np.float64) - columns[rows + 1])
        size = np.maximum(np.abs(columns[rows + 1]), np.sqrt(np.mean(columns**2, axis=0))[None])
        # A NaN counts as no jump; `validate` reports it.
        jumps[rows] = (difference > _ROUNDING * size).any(axis=1)
    return jumps


def _flags(array: np.ndarray, field: str, name: str) -> np.ndarray:
    """The flags as [N] bool; UserError unless all are 0 or 1."""
    flat = array.reshape(-1)
    bad = np.flatnonzero((flat != 0) & (flat != 1))
    if len(bad):
        more = f" and {len(bad) - 1:,} other such values" if len(bad) > 1 else ""
        raise UserError(
            f"dataset {name}: expected 0 or 1 in {field}, got {flat[bad[0]]} at step {bad[0]}"
            f"{more}; repair the data"
        )
    return flat.astype(bool)


# --- checks -------------------------------------------------------------------------------


def _numbers(values: ArrayLike, field: str, name: str) -> np.ndarray:
    """`values` as an array of real numbers with at least one axis."""
    try:
        array = np.asarray(values)
    except Exception as error:  # ragged lists, and whatever foreign arrays raise
        raise UserError(f"dataset {name}: {field} is no array ({first_line(error)})") from error
    if array.dtype.kind not in "biuf":
        raise UserError(f"dataset {name}: expected numbers in {field}, got {array.dtype}")
    if array.ndim == 0:
        raise UserError(
            f"dataset {name}: expected {field} with one entry per step, got a single number"
        )
    return array


def _continuous(actions: np.ndarray, name: str) -> np.ndarray:
    """Actions [N, A]; UserError unless they are floats."""
    if actions.dtype.kind != "f":
        raise UserError(
            f"dataset {name}: expected continuous actions of floats [N, size], got {actions.dtype} "
            f"of shape {list(actions.shape)}; discrete actions are not supported, and continuous "
            "ones must be stored as floats"
        )
    return actions[:, None] if actions.ndim == 1 else actions


def _check_lengths(arrays: Mapping[str, np.ndarray], name: str) -> None:
    lengths = {key: len(array) for key, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise UserError(f"dataset {name}: arrays differ in length: {told}")


def _check_shapes(arrays: Mapping[str, np.ndarray], name: str) -> None:
    steps = len(arrays["observations"])
    for key, array in arrays.items():
        if key not in _SCALARS:
            check_vectors(array, steps, key, name)
        elif array.shape not in ((steps,), (steps, 1)):
            raise UserError(
                f"dataset {name}: expected {key} of shape [{steps}] or [{steps}, 1], got "
                f"{list(array.shape)}"
            )
    if "next_observations" in arrays:
        sizes = [arrays[key].shape[1] for key in ("observations", "next_observations")]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"dataset {name}: expected next_observations of shape [{steps}, {sizes[0]}] like "
                f"observations, got [{steps}, {sizes[1]}]; repair the data"
            )
