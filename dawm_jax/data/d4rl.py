"""D4RL files: one HDF5 file with flat arrays of all episodes."""

import os
import pathlib

import numpy as np

from dawm_jax.data.dataset import OfflineDataset, check_vectors, validate
from dawm_jax.data.sources import SOURCES
from dawm_jax.types import UserError, first_line

_REQUIRED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations")


class D4rlSource:
    """Reads a D4RL v2 file, given its path."""

    name = "d4rl"
    priority = 10

    def matches(self, name: str) -> bool:
        return name.endswith((".hdf5", ".h5")) or name.startswith(os.path.sep)

    def fetch(self, name: str) -> tuple[pathlib.Path, ...]:
        path = pathlib.Path(name).expanduser()
        if not path.is_file():
            raise UserError(
                f"dataset file not found: expected a D4RL HDF5 file at {path}; check the path"
            )
        return (path,)

    def load(self, name: str) -> OfflineDataset:
        arrays = _read_arrays(pathlib.Path(name).expanduser())
        _check_continuous(arrays["actions"], name)
        return from_flat_arrays(
            name,
            arrays["observations"],
            arrays["actions"],
            arrays["rewards"],
            arrays["terminals"],
            timeouts=arrays.get("timeouts"),
            next_observations=arrays.get("next_observations"),
        )


SOURCES.register(D4rlSource())


def from_flat_arrays(
    name: str,
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    terminals: np.ndarray,
    timeouts: np.ndarray | None = None,
    next_observations: np.ndarray | None = None,
) -> OfflineDataset:
    """A dataset from D4RL's flat arrays.

    A terminal step is a termination even when `timeouts` marks it too. The last step of the
    arrays ends its episode as a time-out.

    Without `next_observations` the successor of a step is the next row. Two kinds of steps have
    no successor in the arrays. The last step of a cut episode is dropped. The state after a
    terminal step is extrapolated linearly; no value bootstraps from it.

    Args:
      name: of the dataset.
      observations: [N, S].
      actions: [N, A].
      rewards: [N] or [N, 1].
      terminals: [N] or [N, 1], non-zero where the environment ended the episode.
      timeouts: like `terminals`, non-zero where the episode was cut; None: nowhere.
      next_observations: [N, S], or None.

    Raises:
      UserError: array lengths differ, or the result is not a valid dataset.
    """
    vectors = {
        "observations": observations,
        "actions": actions,
        "next_observations": next_observations,
    }
    _check_lengths(name, list(vectors.values()), [rewards, terminals, timeouts])
    for field, array in vectors.items():
        if array is not None:
            check_vectors(array, len(observations), field, name)
    terminations, truncations = _ends(terminals, timeouts)
    observations = np.asarray(observations, np.float32)
    keep = np.ones_like(terminations)
    if next_observations is None and len(observations):
        next_observations = _next_rows(observations, terminations, truncations)
        keep = ~truncations
        # The step before a dropped one becomes the cut end of its episode.
        truncations = np.concatenate([truncations[1:], [False]]) & ~terminations
    return validate(
        OfflineDataset(
            name=name,
            observations=observations[keep],
            actions=np.asarray(actions, np.float32)[keep],
            rewards=np.asarray(rewards, np.float32).reshape(-1)[keep],
            next_observations=np.asarray(next_observations, np.float32)[keep],
            terminations=terminations[keep],
            truncations=truncations[keep],
        )
    )


def _read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The file's arrays by their D4RL names; all required ones are there and numeric."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            stored = [
                key for key in _REQUIRED + _OPTIONAL if isinstance(file.get(key), h5py.Dataset)
            ]
            if missing := [key for key in _REQUIRED if key not in stored]:
                raise UserError(
                    f"{path}: expected the D4RL arrays {', '.join(_REQUIRED)}, "
                    f"got no {', '.join(missing)}"
                )
            arrays = {key: file[key][()] for key in stored}
    except OSError as error:
        raise UserError(f"{path}: not a readable HDF5 file ({first_line(error)})") from error
    for key, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise UserError(f"{path}: expected numbers in {key}, got {array.dtype}")
    return arrays


def _check_continuous(actions: np.ndarray, name: str) -> None:
    if np.issubdtype(actions.dtype, np.integer) or actions.ndim == 1:
        raise UserError(
            f"dataset {name}: expected continuous actions [N, size], got {actions.dtype} of "
            f"shape {list(actions.shape)}; discrete actions are not supported"
        )


def _check_lengths(
    name: str, vectors: list[np.ndarray | None], scalars: list[np.ndarray | None]
) -> None:
    """Scalars may be stored as a column: their length is their number of elements."""
    lengths = {len(array) for array in vectors if array is not None}
    lengths |= {np.size(array) for array in scalars if array is not None}
    if len(lengths) > 1:
        raise UserError(f"dataset {name}: arrays differ in length: {sorted(lengths)}")


def _ends(terminals: np.ndarray, timeouts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Terminations and truncations, [N] bool each; no step has both, and the last has one."""
    terminations = np.asarray(terminals).reshape(-1).astype(bool)
    truncations = np.zeros_like(terminations)
    if timeouts is not None:
        truncations = np.asarray(timeouts).reshape(-1).astype(bool) & ~terminations
    if len(truncations) and not terminations[-1]:
        truncations[-1] = True
    return terminations, truncations


def _next_rows(
    observations: np.ndarray, terminations: np.ndarray, truncations: np.ndarray
) -> np.ndarray:
    """The next row as successor, extrapolated after a terminal step, [N, S]."""
    next_observations = np.concatenate([observations[1:], observations[-1:]])
    starts = np.concatenate([[True], (terminations | truncations)[:-1]])
    previous = np.where(starts[:, None], observations, np.roll(observations, 1, axis=0))
    extrapolated = 2 * observations - previous
    return np.where(terminations[:, None], extrapolated, next_observations)
