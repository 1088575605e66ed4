"""Numbers of a comparison as CSV, unrounded."""

import csv
import io
from collections.abc import Iterable, Sequence

import numpy as np

from dawm_jax.report import statistics
from dawm_jax.report.runs import MethodResult
from dawm_jax.runtime import markdown

Cell = str | float
IDENTITY = ("task", "environment", "method", "source", "agent", "updates", "seeds")
_PARTS = ("mean", "low", "high")


def text(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """The header and the rows as the text of a CSV file."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    return out.getvalue()


def identity(result: MethodResult) -> list[Cell]:
    """The cells below IDENTITY."""
    task = markdown.shorten_path(result.task)
    names = [task, result.environment, result.method, result.source, result.agent]
    return [*names, result.updates, result.num_seeds]


def columns(*kinds: str) -> list[str]:
    """Headers of `mean_with_interval` for each kind of value."""
    return [f"{kind}_{part}" for kind in kinds for part in _PARTS]


def mean_with_interval(result: MethodResult, values: np.ndarray | None) -> list[Cell]:
    """Mean over the seeds of a result and both ends of its interval; what is unknown is "".

    Args:
      result: whose world models the seeds belong to.
      values: [seeds], one of the result's arrays.
    """
    if values is None:
        return [""] * len(_PARTS)
    interval = statistics.mean_interval(result.by_model(values))
    return [float(values.mean()), *(interval or ("", ""))]
