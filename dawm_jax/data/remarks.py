"""What a user should know of data before training on them, one line each."""

import numpy as np

from dawm_jax.data.dataset import OfflineDataset, shortened
from dawm_jax.data.normalizer import STD_FLOOR
from dawm_jax.types import Normalizer

# Below this multiple of the floor, the floor takes more than a tenth of a column's spread.
_SWALLOWED = 10


def scales(normalizer: Normalizer) -> list[str]:
    """Lines about columns without spread, and about spreads that the normaliser's floor hides."""
    low, high = (np.asarray(x) for x in (normalizer.observation_low, normalizer.observation_high))
    constant = low == high
    small = ~constant & _is_small(np.asarray(normalizer.observation_std))
    lines = []
    if constant.any():
        lines.append(
            f"observation columns {_columns(constant)} are constant: networks cannot learn what "
            "they mean where the simulator changes them in the evaluation"
        )
    if small.any():
        lines.append(
            f"observation columns {_columns(small)} have a standard deviation near or below "
            f"{STD_FLOOR:g}, which is added to it: networks see little of them; scale them up"
        )
    if float(normalizer.reward_low) < float(normalizer.reward_high) and _is_small(
        np.asarray(normalizer.reward_std)
    ):
        spread = float(normalizer.reward_std) - STD_FLOOR
        lines.append(
            f"the rewards' standard deviation of {max(spread, 0.0):.1g} is near or below "
            f"{STD_FLOOR:g}, which is added to it: models see little of them; scale them up"
        )
    return lines


def long_episodes(dataset: OfflineDataset, environment: str, limit: int | None) -> list[str]:
    """A line if an episode is longer than the environment lets one be.

    Args:
      dataset: whole episodes.
      environment: Gymnasium id.
      limit: its time limit in steps; None: it has none.
    """
    lengths = np.diff(dataset.episode_ends, prepend=-1)
    longer = int((lengths > limit).sum()) if limit is not None else 0
    if not longer:
        return []
    return [
        f"{longer:,} of {len(lengths):,} episodes are longer than {environment}'s limit of "
        f"{limit:,} steps, the longest has {lengths.max():,}: check that the data mark time-outs"
    ]


def _is_small(std: np.ndarray) -> np.ndarray:
    return std - STD_FLOOR < _SWALLOWED * STD_FLOOR


def _columns(mask: np.ndarray) -> str:
    return shortened(np.flatnonzero(mask).tolist())
