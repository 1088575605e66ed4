"""Transitions to evaluate, as windows of NumPy arrays, and their rows in a dataset."""

from typing import NamedTuple

import jax
import numpy as np

from dawm_jax.data.dataset import OfflineDataset

# A dataset whose longest episode has at most as many steps is a dataset of generated windows.
# DWM's longest windows have 32 states. Real episodes are longer.
_LONGEST_WINDOW = 32


class Steps(NamedTuple):
    """Environment steps with leading axes [...], raw units."""

    observation: np.ndarray  # [..., S]
    action: np.ndarray  # [..., A]
    reward: np.ndarray  # [...]
    terminated: np.ndarray  # [...] bool
    next_observation: np.ndarray  # [..., S]


class Windows(NamedTuple):
    """Windows of H steps. Single transitions are windows of one step."""

    steps: Steps  # [B, H, ...]
    valid: np.ndarray  # [B, H] bool: the step exists

    def rows(self, mask: np.ndarray) -> Steps:
        """The steps [n] where a mask [B, H] is set."""
        return jax.tree.map(lambda x: x[mask], self.steps)

    @property
    def generated(self) -> np.ndarray:
        """Mask of the valid steps whose state and action are generated, [B, H] bool.

        The first step of a window of several steps has a real state and a real action.
        """
        horizon = self.valid.shape[1]
        return self.valid if horizon == 1 else self.valid & (np.arange(horizon) > 0)[None]


def dataset_steps(dataset: OfflineDataset, rows: np.ndarray) -> Steps:
    """The dataset's steps at the indices `rows`, which may have any shape."""
    return Steps(
        dataset.observations[rows],
        dataset.actions[rows],
        dataset.rewards[rows],
        dataset.terminations[rows],
        dataset.next_observations[rows],
    )


def dataset_windows(dataset: OfflineDataset, *, limit: int, seed: int) -> Windows:
    """A random sample of a dataset as windows.

    Args:
      dataset: its episodes are the windows if none has more than 32 steps; otherwise its
        transitions are taken as single ones.
      limit: largest number of transitions; of longer windows at least one is taken.
      seed: seed of the sample.
    """
    rng = np.random.default_rng(seed)
    ends = dataset.episode_ends
    first = np.concatenate([[0], ends[:-1] + 1])
    longest = int((ends - first).max()) + 1
    if longest > _LONGEST_WINDOW:
        first = ends = sample_rows(rng, np.arange(len(dataset)), limit)
        longest = 1
    else:
        kept = sample_rows(rng, np.arange(len(ends)), max(limit // longest, 1))
        first, ends = first[kept], ends[kept]
    rows = first[:, None] + np.arange(longest)[None]
    steps = dataset_steps(dataset, np.minimum(rows, ends[:, None]))
    return Windows(steps, rows <= ends[:, None])


def real_window_rows(
    dataset: OfflineDataset, starts: np.ndarray, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the real windows from the rows `starts` [B].

    Returns:
      Rows [B, H], where the last row of the episode repeats after its end, and a mask [B, H]
      of the steps that exist.
    """
    ends = dataset.episode_ends
    last = ends[np.searchsorted(ends, starts)][:, None]
    rows = starts[:, None] + np.arange(horizon)[None]
    return np.minimum(rows, last), rows <= last


def rows_before_terminations(dataset: OfflineDataset, rows: np.ndarray, horizon: int) -> np.ndarray:
    """Those of the rows [n] from which a window of `horizon` steps reaches a termination."""
    reached, _ = real_window_rows(dataset, rows, horizon)
    return rows[dataset.terminations[reached[:, -1]]]


def sample_rows(rng: np.random.Generator, rows: np.ndarray, size: int) -> np.ndarray:
    """At most `size` of the rows [n], without replacement; all of them if n <= `size`."""
    return rows if len(rows) <= size else rng.choice(rows, size, replace=False)
