"""A comparison of runs as Markdown, CSV and a figure."""

import csv
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dawm_jax.envs.scores import confidence_interval, normalised_score
from dawm_jax.report import published, runs, statistics
from dawm_jax.report.runs import Aggregate, Comparison, MethodResult, Run, Series
from dawm_jax.runtime import markdown
from dawm_jax.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BY_TASK = (
    "Normalised scores are 100 (return - random) / (expert - random) with D4RL's reference "
    f'returns. "Last" is the mean of a seed\'s last {runs.LAST} evaluations (of the only one for '
    'a method that plans). "Best" is the evaluation of a run with the highest mean: it is chosen '
    "on the simulator and is biased upwards. Brackets hold the 95 % interval of the mean by "
    "Student's t over seeds."
)
_OVER_TASKS = (
    "Average of the tasks' means, and interquartile mean over all runs with its 95 % interval by "
    "stratified bootstrap. Only rows with the same number of tasks can be compared."
)
_AGAINST = (
    "On the tasks of both methods, after as many updates: the probability that a run of the "
    "first method scores higher than a run of the other, and the gain of the first method's "
    "average, each with its 95 % interval by stratified bootstrap over seeds. Where the interval "
    "has no width, the values by task stand in its place: every run of one method then scores "
    "higher than every run of the other on each task."
)


def write(found: Sequence[Run], out: pathlib.Path, *, reference: str) -> str:
    """Writes report.md, report.csv and report.png.

    Args:
      found: finished runs.
      out: folder; files of these names are replaced.
      reference: registered name of the method to compare with the others.

    Returns:
      The Markdown.

    Raises:
      UserError: the folder cannot be written.
    """
    results = runs.group(found)
    text = report(found, results, reference=reference)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.md").write_text(text)
        (out / "report.csv").write_text(csv_text(results))
        plot(results, out / "report.png")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror})") from error
    return text


# --- text ---------------------------------------------------------------------------------


def report(found: Iterable[Run], results: list[MethodResult], *, reference: str) -> str:
    """The whole report."""
    parts = [
        "# Comparison",
        summary(results, reference=reference),
        "## Published scores",
        _published(results),
        "## Runs",
        runs_table(found),
    ]
    return "\n\n".join(parts) + "\n"


def summary(results: list[MethodResult], *, reference: str, heading: str = "##") -> str:
    """Scores by task, scores over tasks, and the reference method against every other.

    Args:
      results: results of all methods.
      reference: registered name of the method to compare with the others.
      heading: Markdown's mark of the headings.
    """
    label = next((r.method_label for r in results if r.source == reference), reference)
    parts = [
        f"{heading} By task",
        _BY_TASK,
        _task_table(results),
        f"{heading} Over tasks",
        _OVER_TASKS,
        _aggregate_table(results),
        f"{heading} {label} against the others",
        _AGAINST,
        _comparison_table(results, reference, label),
    ]
    return "\n\n".join(parts)


def runs_table(found: Iterable[Run]) -> str:
    """One row per run: what ran, its scores, its duration, its device and its source."""
    header = (
        "dataset",
        "method",
        "updates",
        "seeds",
        "score, final",
        "score, best",
        "return, final",
        "training s",
        "device",
        "commit",
    )
    return markdown.table(header, map(_run_row, found))


def _run_row(run: Run) -> list[str]:
    score = normalised_score(run.environment, run.curve[-1], run.references)
    best = normalised_score(run.environment, run.best, run.references)
    return [
        markdown.shorten_path(run.dataset),
        run.label,
        f"{run.updates:,}",
        str(run.num_seeds),
        mean_with_interval(score),
        mean_with_interval(best),
        mean_with_interval(run.curve[-1], digits=0),
        f"{run.seconds:.0f}",
        run.device,
        run.commit,
    ]


def _task_table(results: Iterable[MethodResult]) -> str:
    header = ["task", "method", "updates", "seeds", "score, last", "score, best"]
    header += ["return, last", "return, best"]

    def row(result: MethodResult) -> list[str]:
        scores = [mean_with_interval(result.last), mean_with_interval(result.best)]
        returns = [
            mean_with_interval(result.last_return, digits=0),
            mean_with_interval(result.best_return, digits=0),
        ]
        identity = [markdown.shorten_path(result.task), result.method, f"{result.updates:,}"]
        return [*identity, str(result.num_seeds), *scores, *returns]

    return markdown.table(header, map(row, results))


def _aggregate_table(results: list[MethodResult]) -> str:
    def row(found: Aggregate) -> list[str]:
        average, iqm = _score(found.average), _score(found.iqm)
        interval = _or_seeds(found.iqm_interval, found.seeds)
        return [found.method, str(found.tasks), str(found.seeds), average, iqm, interval]

    header = ("method", "tasks", "seeds", "average", "interquartile mean", "95 % interval")
    return markdown.table(header, map(row, runs.aggregates(results)))


def _comparison_table(results: list[MethodResult], reference: str, label: str) -> str:
    header = ("method", "against", "tasks", "seeds", "probability of improvement", "gain")
    rows = [
        [
            found.method,
            found.other,
            str(len(found.tasks)),
            str(found.seeds),
            _probability(found),
            gain_with_interval(found),
        ]
        for found in runs.comparisons(results, reference)
    ]
    return (
        markdown.table(header, rows)
        if rows
        else f"No other method has a task in common with {label}."
    )


def _probability(found: Comparison) -> str:
    interval = found.probability_interval
    text = f"{found.probability:.2f}"
    if interval is None or not statistics.is_degenerate(interval):
        return f"{text} ({_or_seeds(interval, found.seeds, digits=2)})"
    by_task = zip(found.tasks, found.probability_by_task, strict=True)
    return f"{text} ({'; '.join(f'{markdown.shorten_path(task)}: {x:.2f}' for task, x in by_task)})"


def gain_with_interval(found: Comparison) -> str:
    """The gain with its interval in brackets, "" where bootstrap samples have no gain."""
    if found.gain is None or (found.gain_interval is None and found.seeds > 1):
        return ""
    return f"{found.gain:+.1f} % ({_or_seeds(found.gain_interval, found.seeds)})"


def _published(results: Iterable[MethodResult]) -> str:
    """Published scores beside the runs' own, and whether the two can be compared."""
    results = list(results)
    own = {(result.task, result.method): result.last for result in results}
    names = {r.task: published.task_of(r.environment, r.task) for r in results}
    rows = [
        [
            markdown.shorten_path(task),
            score.method,
            *map(_score, (_mean_of(own.get((task, score.method))), score.dwm_paper, score.others)),
        ]
        for task, name in names.items()
        if name is not None
        for score in published.scores_of(name)
    ]
    if not rows:
        return "None for these tasks."
    parts = [
        "DWM's paper reports the best of a grid that was evaluated on the simulator. "
        f"DAWM's abstract reports gains over DWM of {_published_gains()}."
    ]
    others = [
        markdown.shorten_path(task)
        for task, name in names.items()
        if name is not None and not published.is_same_data(task)
    ]
    if others:
        parts.append(
            f"**Not D4RL's data: {', '.join(others)}.** Other policies collected these datasets in "
            "another version of the simulator, so that published scores give the order of "
            "magnitude only."
        )
    header = ("task", "method", "ours, last", *published.SOURCES)
    return "\n\n".join([*parts, markdown.table(header, rows)])


def _published_gains() -> str:
    gains = published.GAINS_OVER_DWM.items()
    return " and ".join(f"{gain} % ({agent})" for agent, gain in gains)


def csv_text(results: Iterable[MethodResult]) -> str:
    """One row per method and task, unrounded. Scores are empty without reference returns."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    kinds = ("score_last", "score_best", "return_last", "return_best")
    columns = [f"{kind}_{part}" for kind in kinds for part in ("mean", "low", "high")]
    identity = ["task", "environment", "method", "source", "agent", "updates", "seeds"]
    writer.writerow([*identity, *columns])
    for result in results:
        cells: list[str | float] = []
        for values in (result.last, result.best, result.last_return, result.best_return):
            mean = _mean_of(values)
            interval = None if values is None else confidence_interval(values)
            cells += ["" if mean is None else mean, *(interval or ("", ""))]
        names = [
            markdown.shorten_path(result.task),
            result.environment,
            result.method,
            result.source,
        ]
        writer.writerow([*names, result.agent, result.updates, result.num_seeds, *cells])
    return out.getvalue()


def mean_with_interval(values: np.ndarray | None, *, digits: int = 1) -> str:
    """Mean over seeds with its interval in brackets, "" without values."""
    if values is None:
        return ""
    interval = confidence_interval(values)
    text = f"{values.mean():.{digits}f}"
    return f"{text} ({_interval(interval, digits=digits)})" if interval else text


def _mean_of(values: np.ndarray | None) -> float | None:
    return None if values is None else float(values.mean())


def _score(value: float | None) -> str:
    return markdown.number(value, ".1f", missing="")


def _or_seeds(interval: statistics.Interval | None, seeds: int, *, digits: int = 1) -> str:
    """The interval, or the number of seeds where they are too few for one."""
    if interval is None:
        return "one seed" if seeds == 1 else f"{seeds} seeds"
    return _interval(interval, digits=digits)


def _interval(interval: statistics.Interval, *, digits: int) -> str:
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


# --- figure -------------------------------------------------------------------------------


def plot(results: Sequence[MethodResult], path: pathlib.Path) -> None:
    """One panel per task: curves along the setting that a study varies, else one row a method."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(result.task for result in results))
    setting = runs.studied(results)
    height = 4.0 if setting else 1.2 + 0.3 * len(runs.method_names(results))
    figure = Figure(figsize=(8, height * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), squeeze=False)[:, 0]
    for axis, task in zip(panels, tasks, strict=True):
        own = [result for result in results if result.task == task]
        quantity = "return" if own[0].last is None else "normalised score, last evaluations"
        axis.set_title(markdown.shorten_path(task))
        if setting:
            _plot_series(axis, runs.series(own, setting), setting)
            axis.set(xlabel=setting.replace("_", " "), ylabel=quantity)
        else:
            _plot_rows(axis, own)
            axis.set(xlabel=quantity)
    figure.savefig(path, dpi=110)


def _plot_rows(axis: "Axes", results: Sequence[MethodResult]) -> None:
    """Every seed, the mean and its interval, of the last score or return."""
    for row, result in enumerate(results):
        values = _last(result)
        axis.scatter(values, np.full(len(values), row), color="tab:blue", alpha=0.3, s=14)
        low, high = _bounds(values)
        axis.plot([low, high], [row, row], color="black")
        axis.scatter(values.mean(), row, color="black", s=24, zorder=3)
    axis.set_yticks(range(len(results)), [result.method for result in results])
    axis.set_ylim(len(results) - 0.5, -0.5)  # the first row on top
    axis.grid(axis="x", alpha=0.3)


def _plot_series(axis: "Axes", found: Sequence[Series], setting: str) -> None:
    """Means with intervals along the setting; a result without it is a dashed line."""
    along = [member for one in found for member in one.results if setting in member.varied]
    values = sorted({_number(member, setting) for member in along})
    for one in found:
        means = [float(_last(member).mean()) for member in one.results]
        if setting not in one.results[0].varied:
            axis.axhline(means[0], linestyle="--", color="grey")
            axis.annotate(one.label, (0.01, means[0]), xycoords=("axes fraction", "data"))
            continue
        at = [values.index(_number(member, setting)) for member in one.results]
        bounds = np.transpose([_bounds(_last(member)) for member in one.results])
        axis.errorbar(at, means, np.abs(bounds - means), marker="o", capsize=3, label=one.label)
    # Values stand at equal distances because most studies double them.
    axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axis.grid(alpha=0.3)
    axis.legend()


def _number(result: MethodResult, setting: str) -> float:
    return float(result.varied[setting])


def _bounds(values: np.ndarray) -> tuple[float, float]:
    """The interval of the mean, or twice the mean for one seed."""
    mean = float(values.mean())
    return confidence_interval(values) or (mean, mean)


def _last(result: MethodResult) -> np.ndarray:
    """Scores where the task has reference returns, else returns."""
    return result.last_return if result.last is None else result.last
