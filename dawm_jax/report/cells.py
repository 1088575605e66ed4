"""Numbers of a comparison as the text of a table's cell, with their intervals in brackets."""

from collections.abc import Sequence

import numpy as np

from dawm_jax.report import statistics
from dawm_jax.report.runs import MethodResult


def mean_with_interval(result: MethodResult, values: np.ndarray | None, *, digits: int = 1) -> str:
    """Mean over the seeds of a result with its interval in brackets, "" without values.

    Args:
      result: whose world models the seeds belong to.
      values: [seeds], one of the result's arrays.
      digits: after the decimal point.
    """
    return "" if values is None else mean(result.by_model(values), digits)


def mean(models: Sequence[np.ndarray], digits: int) -> str:
    """Mean over all seeds with its interval in brackets; the mean alone of one seed.

    Args:
      models: of each world model, values of its seeds.
      digits: after the decimal point.
    """
    values, found = np.concatenate(models), statistics.mean_interval(models)
    text = f"{values.mean():.{digits}f}"
    return f"{text} ({interval(found, len(values), digits=digits)})" if found else text


def gain(value: float | None, found: statistics.Interval | None, seeds: int) -> str:
    """A gain in per cent with its interval in brackets, "" where bootstrap samples have none.

    Args:
      value: of the averages; None or NaN where the other average is not positive.
      found: its interval.
      seeds: fewest seeds of a method on a task.
    """
    if value is None or np.isnan(value) or (found is None and seeds > 1):
        return ""
    return f"{value:+.1f} % ({interval(found, seeds)})"


def gain_over(models: statistics.Models, others: statistics.Models) -> str:
    """The gain of an average over another one with its 95 % interval, as `gain` writes it.

    Args:
      models: of each task, values of the seeds of each world model.
      others: of the same tasks, those of the other method.
    """
    mine, theirs = statistics.pooled(models), statistics.pooled(others)
    found = statistics.bootstrap_interval(statistics.gain, models, others)
    return gain(statistics.gain(mine, theirs), found, min(map(len, [*mine, *theirs])))


def interval(found: statistics.Interval | None, seeds: int, *, digits: int = 1) -> str:
    """An interval, of which one seed has none."""
    if found is None:
        assert seeds == 1
        return "one seed"
    return span(found, digits=digits)


def span(found: statistics.Interval, *, digits: int) -> str:
    """Both ends of an interval, n/a without width."""
    if statistics.is_degenerate(found):
        return "n/a"
    return f"{found[0]:.{digits}f} to {found[1]:.{digits}f}"
