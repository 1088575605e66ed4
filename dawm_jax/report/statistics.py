"""Summaries of scores over seeds and tasks, after Agarwal et al. 2021 (2108.13264).

Scores of a method are a list over tasks of arrays over seeds, [seeds] each. Tasks may have
different numbers of seeds. Definitions are those of the authors' library rliable.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

Scores = Sequence[np.ndarray]
Interval = tuple[float, float]


def average(scores: Scores) -> float:
    """Mean over tasks of the mean over seeds."""
    return float(np.mean([np.mean(task) for task in scores]))


def interquartile_mean(scores: Scores) -> float:
    """Mean of the middle half of the runs of all tasks together."""
    return float(stats.trim_mean(np.concatenate(scores), 0.25))


def probability_of_improvement(scores: Scores, others: Scores) -> float:
    """Probability that a run scores higher than a run of the other method on the same task.

    It is the mean over tasks of Mann-Whitney's U divided by the number of pairs. A tie counts
    one half.
    """
    return float(np.mean([_beats(x, y) for x, y in zip(scores, others, strict=True)]))


def _beats(scores: np.ndarray, others: np.ndarray) -> float:
    difference = scores[:, None] - others[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def gain(scores: Scores, others: Scores) -> float:
    """Gain of the average over the other method's average, in per cent of the latter.

    Returns:
      The gain, or NaN where the other method's average is not positive.
    """
    base = average(others)
    return 100.0 * (average(scores) / base - 1.0) if base > 0 else float("nan")


def bootstrap_interval(
    statistic: Callable[..., float],
    *methods: Scores,
    repeats: int = 2_000,
    seed: int = 0,
) -> Interval | None:
    """95 % percentile interval of `statistic(*methods)` by stratified bootstrap.

    Seeds are drawn with replacement within each task, so that every task keeps its weight.

    Args:
      statistic: takes as many `Scores` as there are `methods`.
      *methods: scores of each method.
      repeats: number of bootstrap samples.
      seed: seed of the draws.

    Returns:
      The interval, or None where a task has a single seed or where the statistic of a
      bootstrap sample is NaN.
    """
    if any(len(task) < 2 for scores in methods for task in scores):
        return None
    generator = np.random.default_rng(seed)

    def redraw(task: np.ndarray) -> np.ndarray:
        return task[generator.integers(len(task), size=len(task))]

    values = [
        statistic(*([redraw(task) for task in scores] for scores in methods))
        for _ in range(repeats)
    ]
    if not np.isfinite(values).all():
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def is_degenerate(interval: Interval) -> bool:
    """Whether the interval has no width, so that it says nothing about the uncertainty.

    Where every run of one method scores higher than every run of the other, each bootstrap
    sample has the same probability of improvement.
    """
    low, high = interval
    return bool(np.isclose(low, high, rtol=1e-9, atol=1e-12))
