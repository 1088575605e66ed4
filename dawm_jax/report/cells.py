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


def gain(found: statistics.Gain) -> str:
    """A gain in per cent with its interval in brackets, "" where bootstrap samples have none."""
    if found.value is None or (found.interval is None and found.seeds > 1):
        return ""
    return f"{found.value:+.1f} % ({interval(found.interval, found.seeds)})"


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
