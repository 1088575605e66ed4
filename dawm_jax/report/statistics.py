"""Summaries of scores over seeds, world models and tasks, after Agarwal et al. 2021 (2108.13264).

Scores of a method are a list over tasks of arrays over seeds, [seeds] each. Tasks may have
different numbers of seeds. Definitions are those of the authors' library rliable. `Models` keep the
seeds of each world model apart: a list over tasks of lists over world models of arrays [seeds].
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from dawm_jax.envs.scores import confidence_interval

Scores = Sequence[np.ndarray]
Models = Sequence[Sequence[np.ndarray]]
Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Gain:
    """The gain of an average over another one.

    Attributes:
      value: in per cent of the other average; None where that is not positive.
      interval: its 95 % interval; None where a task has a single seed or where an average of a
        bootstrap sample is not positive.
      seeds: fewest seeds of either method on a task.
    """

    value: float | None
    interval: Interval | None
    seeds: int


def pooled(models: Models) -> list[np.ndarray]:
    """Scores of the seeds of all world models together."""
    return [np.concatenate(task) for task in models]


def average(scores: Scores) -> float:
    """Mean over tasks of the mean over seeds."""
    return float(sum(task.sum() / task.size for task in scores) / len(scores))


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

    It is 100 (ratio of the averages - 1).

    Returns:
      The gain, or NaN where the other method's average is not positive.
    """
    base = average(others)
    return 100.0 * (average(scores) / base - 1.0) if base > 0 else float("nan")


def performance_profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Share of the runs that score higher than each threshold, mean over tasks, [thresholds]."""
    return np.mean([(task[:, None] > thresholds).mean(axis=0) for task in scores], axis=0)


def learning_curve(scores: Scores) -> np.ndarray:
    """Mean over seeds of one task's curves [seeds, evaluations], [evaluations]."""
    (curves,) = scores
    return np.asarray(curves.mean(axis=0))


# --- intervals ----------------------------------------------------------------------------


def bootstrap_band(
    statistic: Callable[..., float | np.ndarray],
    *methods: Models,
    resample_tasks: bool = False,
    repeats: int = 2_000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray] | None:
    """95 % percentile interval of each entry of `statistic(*methods)` by stratified bootstrap.

    Seeds are drawn with replacement within each task, so that every task keeps its weight. Where a
    task has several world models, these are drawn first, and then the seeds of each drawn one: the
    seeds of a world model share its errors. With n world models the drawn variance between them is
    (n - 1) / n of an unbiased estimate, so that the interval of two is too narrow. The world models
    of two methods are drawn independently also where the methods share them.

    Args:
      statistic: takes as many `Scores` as there are `methods`, and returns a number or an array.
      *methods: scores of each method, on the same tasks.
      resample_tasks: draws the tasks first, the same ones for all methods.
      repeats: number of bootstrap samples.
      seed: seed of the draws.

    Returns:
      Lower and upper bounds, or None where a task has a single seed or where the statistic of a
      bootstrap sample is NaN.
    """
    if any(sum(map(len, task)) < 2 for models in methods for task in models):
        return None
    generator = np.random.default_rng(seed)

    def drawn(count: int) -> np.ndarray:
        return generator.integers(count, size=count)

    def redraw(task: Sequence[np.ndarray]) -> np.ndarray:
        chosen = [task[i] for i in drawn(len(task))] if len(task) > 1 else task
        return np.concatenate([scores[drawn(len(scores))] for scores in chosen])

    def sample() -> float | np.ndarray:
        count = len(methods[0])
        tasks = drawn(count) if resample_tasks else range(count)
        return statistic(*([redraw(models[i]) for i in tasks] for models in methods))

    values = np.asarray([sample() for _ in range(repeats)])
    if not np.isfinite(values).all():
        return None
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    return low, high


def bootstrap_interval(
    statistic: Callable[..., float], *methods: Models, resample_tasks: bool = False
) -> Interval | None:
    """`bootstrap_band` of a number."""
    band = bootstrap_band(statistic, *methods, resample_tasks=resample_tasks)
    return None if band is None else (float(band[0]), float(band[1]))


def mean_interval(models: Sequence[np.ndarray]) -> Interval | None:
    """95 % interval of the mean over all seeds of one task.

    Args:
      models: scores of the seeds of each world model.

    Returns:
      Student's t over the seeds of one world model, the bootstrap over several; None for one seed.
    """
    if len(models) == 1:
        return confidence_interval(models[0])
    return bootstrap_interval(average, [models])


def gain_over(models: Models, others: Models) -> Gain:
    """The gain of one method's average over another's, see `gain`.

    Args:
      models: of each task, scores of the seeds of each world model.
      others: of the same tasks, those of the other method.
    """
    mine, theirs = pooled(models), pooled(others)
    value = gain(mine, theirs)
    return Gain(
        value=value if np.isfinite(value) else None,
        interval=bootstrap_interval(gain, models, others),
        seeds=min(map(len, [*mine, *theirs])),
    )


def is_degenerate(interval: Interval) -> bool:
    """Whether the interval has no width, so that it says nothing about the uncertainty.

    Where every run of one method scores higher than every run of the other, each bootstrap
    sample has the same probability of improvement.
    """
    low, high = interval
    return bool(np.isclose(low, high, rtol=1e-9, atol=1e-12))
