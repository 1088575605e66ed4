"""Summaries of scores over seeds and tasks, as Agarwal et al. 2021 (2108.13264) advise.

Scores are a list of tasks, each an array over that task's seeds. Tasks may have different
numbers of seeds.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

Scores = Sequence[np.ndarray]


def average(scores: Scores) -> float:
    """Mean over tasks of the mean over seeds."""
    return float(np.mean([np.mean(task) for task in scores]))


def interquartile_mean(scores: Scores) -> float:
    """Mean of the middle half of all runs of all tasks together."""
    return float(stats.trim_mean(np.concatenate(scores), 0.25))


def probability_of_improvement(scores: Scores, others: Scores) -> float:
    """Chance that a run beats one of the other method on the same task, a tie counting half.

    The mean over tasks of Mann-Whitney's U over the number of pairs.
    """
    return float(np.mean([_beats(x, y) for x, y in zip(scores, others, strict=True)]))


def _beats(scores: np.ndarray, others: np.ndarray) -> float:
    difference = scores[:, None] - others[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def bootstrap_interval(
    statistic: Callable[..., float],
    *methods: Scores,
    repeats: int = 2_000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """95 % percentile interval of `statistic(*methods)` by stratified bootstrap.

    Seeds are drawn with replacement within each task, so that tasks keep their weights.

    Returns:
      The interval, or None where some task has a single seed.
    """
    if any(len(task) < 2 for scores in methods for task in scores):
        return None
    generator = np.random.default_rng(seed)
    redraw = lambda task: task[generator.integers(len(task), size=len(task))]
    values = [
        statistic(*([redraw(task) for task in scores] for scores in methods))
        for _ in range(repeats)
    ]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
