"""A comparison of runs as Markdown and CSV; `write` adds the figures."""

import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dawm_jax.report import (
    cells,
    figures,
    fine_tuning,
    over_tasks,
    published,
    runs,
    spreadsheet,
    statistics,
)
from dawm_jax.report.over_tasks import Aggregate, Comparison
from dawm_jax.report.runs import MethodResult, Run
from dawm_jax.runtime import markdown
from dawm_jax.types import UserError

_BY_TASK = (
    "Normalised scores are 100 (return - random) / (expert - random) with D4RL's reference "
    f'returns. "Last" is the mean of a seed\'s last {runs.LAST} evaluations (of the only one for '
    'a method that plans). "Best" is the evaluation of a run with the highest mean: it is chosen '
    "on the simulator and is biased upwards. Brackets hold the 95 % interval of the mean by "
    "Student's t over seeds; where a method has several world models on a task, by bootstrap over "
    "world models and their seeds."
)
_OVER_TASKS = (
    "Means of each task, their average, and the interquartile mean over all runs with its 95 % "
    "interval by stratified bootstrap. Only rows with the same tasks can be compared."
)
_AGAINST = (
    "On the tasks of both methods, after as many updates: the probability that a run of the "
    "first method scores higher than a run of the other, and the gain of the first method's "
    "average (100 % times the ratio of the averages less one), each with its 95 % interval by "
    "stratified bootstrap. It draws seeds within tasks; where a method has several world models "
    "on a task, it draws world models first. The last column draws tasks too: its interval is that "
    "of other tasks of the same kind, for which two or three tasks are few. An interval without "
    "width is n/a, and the values by task follow: where every run of one method scores higher than "
    "every run of the other on each task, all bootstrap samples are alike."
)


def write(found: Sequence[Run], out: pathlib.Path, *, reference: str) -> str:
    """Writes report.md, tables named report and fine_tuning, and the figures.

    A figure of which no run has anything is left out, and so is fine_tuning.csv.

    Args:
      found: finished runs.
      out: folder; files of these names are replaced.
      reference: registered name of the method to compare with the others.

    Returns:
      The Markdown.

    Raises:
      UserError: the folder cannot be written.
    """
    results = runs.group(run for run in found if not _begins_anew(run))
    tuned = fine_tuning.results(found)
    text = report(found, results, tuned, reference=reference)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.md").write_text(text)
        (out / "report.csv").write_text(csv_text(results))
        figures.plot(results, out / "report.png")
        figures.plot_curves(results, out / "curves.png")
        figures.plot_profiles(results, out / "profiles.png")
        figures.plot_episodes(results, out / "episodes.png")
        figures.plot_curves(tuned, out / "fine_tuning.png", unit="environment steps")
        tuned_csv = out / "fine_tuning.csv"
        if tuned:
            tuned_csv.write_text(fine_tuning.csv_text(tuned))
        else:
            tuned_csv.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror})") from error
    return text


def _begins_anew(run: Run) -> bool:
    """Whether fine-tuning put new agents in the place of those trained offline."""
    online = run.results.online
    return online is not None and online.fresh_agent


# --- text ---------------------------------------------------------------------------------


def report(
    found: Sequence[Run],
    results: list[MethodResult],
    tuned: list[MethodResult],
    *,
    reference: str,
) -> str:
    """The whole report.

    Args:
      found: finished runs.
      results: of their offline trainings, but for agents that fine-tuning began anew.
      tuned: of their fine-tuning; a report without these does not speak of fine-tuning.
      reference: registered name of the method to compare with the others.
    """
    parts = [
        "# Comparison",
        *([summary(results, reference=reference)] if results else []),
        *(["## Fine-tuning", fine_tuning.section(tuned, reference=reference)] if tuned else []),
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
        aggregate_table(results),
        f"{heading} {label} against the others",
        _AGAINST,
        comparison_table(results, reference, label),
    ]
    return "\n\n".join(parts)


def runs_table(found: Iterable[Run]) -> str:
    """One row per run: what ran, its scores, its duration, its device and its source.

    The column of successes is left out where no environment calls an episode a success.
    """
    found = list(found)
    success = any(run.success is not None for run in found)
    header = (
        "dataset",
        "method",
        "updates",
        "seeds",
        "score, final",
        "score, best",
        "return, final",
        *(["success, final"] if success else []),
        "training s",
        "device",
        "commit",
    )
    return markdown.table(header, (_run_row(run, success=success) for run in found))


def _run_row(run: Run, *, success: bool) -> list[str]:
    succeeded = "" if run.success is None else f"{100.0 * run.success:.0f} %"
    found = run.results
    return [
        markdown.shorten_path(run.task),
        run.label,
        f"{found.updates:,}",
        str(run.num_seeds),
        _mean_over_seeds(run.scores(run.curve[-1])),
        _mean_over_seeds(run.scores(run.best)),
        _mean_over_seeds(run.curve[-1], digits=0),
        *([succeeded] if success else []),
        f"{found.training_seconds:.0f}",
        found.device,
        found.commit or "",
    ]


def _task_table(results: Iterable[MethodResult]) -> str:
    header = ["task", "method", "updates", "seeds", "score, last", "score, best"]
    header += ["return, last", "return, best"]

    def row(result: MethodResult) -> list[str]:
        scores = [cells.mean_with_interval(result, values) for values in (result.last, result.best)]
        returns = [
            cells.mean_with_interval(result, values, digits=0)
            for values in (result.last_return, result.best_return)
        ]
        identity = [markdown.shorten_path(result.task), result.method, f"{result.updates:,}"]
        return [*identity, str(result.num_seeds), *scores, *returns]

    return markdown.table(header, map(row, results))


def aggregate_table(results: list[MethodResult]) -> str:
    """One row per method: its means of each task, and over tasks."""

    def row(found: Aggregate) -> list[str]:
        means = [*found.by_task, found.average, found.iqm]
        interval = cells.interval(found.iqm_interval, found.seeds)
        return [found.method, str(found.tasks), str(found.seeds), *map(_score, means), interval]

    tasks = map(markdown.shorten_path, over_tasks.scored_tasks(results))
    header = ("method", "tasks", "seeds", *tasks, "average", "interquartile mean", "95 % interval")
    return markdown.table(header, map(row, over_tasks.aggregates(results)))


def comparison_table(results: list[MethodResult], reference: str, label: str) -> str:
    """One row per agent of the reference method and other method.

    Args:
      results: results of all methods.
      reference: registered name of the method to compare with the others.
      label: its name in tables.
    """
    header = ("method", "against", "tasks", "seeds", "probability of improvement", "gain")
    rows = [
        [
            found.method,
            found.other,
            str(len(found.tasks)),
            str(found.seeds),
            _probability(found),
            cells.gain(found.gain),
            _interval_of_tasks(found),
        ]
        for found in over_tasks.comparisons(results, reference)
    ]
    return (
        markdown.table((*header, "gain, tasks drawn too"), rows)
        if rows
        else f"No other method has a task in common with {label}."
    )


def _probability(found: Comparison) -> str:
    interval = found.probability_interval
    text = cells.interval(interval, found.seeds, digits=2)
    if interval is not None and statistics.is_degenerate(interval):
        by_task = zip(found.tasks, found.probability_by_task, strict=True)
        text += "".join(f"; {markdown.shorten_path(task)}: {x:.2f}" for task, x in by_task)
    return f"{found.probability:.2f} ({text})"


def _interval_of_tasks(found: Comparison) -> str:
    if len(found.tasks) == 1:
        return "one task"
    if found.gain.value is None or (found.gain_interval_of_tasks is None and found.seeds > 1):
        return ""
    return cells.interval(found.gain_interval_of_tasks, found.seeds)


def _published(results: Iterable[MethodResult]) -> str:
    """Published scores beside the runs' own, and whether the two can be compared."""
    # Published scores are of all episodes, played in the unchanged environment.
    results = [r for r in results if not r.episodes and not r.runs[0].results.environment_kwargs]
    # The names of published methods have no share of real data; theirs is 0.
    own = {(r.task, r.method.removesuffix(", 0 % real")): r.last for r in results}
    datasets = {r.task: r.runs[0].results.dataset for r in results}
    names = {r.task: published.task_of(r.environment, datasets[r.task]) for r in results}
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
        if name is not None and not published.is_same_data(datasets[task])
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
    kinds = ("score_last", "score_best", "return_last", "return_best")
    return spreadsheet.text(
        [*spreadsheet.IDENTITY, *spreadsheet.columns(*kinds)],
        ([*spreadsheet.identity(result), *_numbers(result)] for result in results),
    )


def _numbers(result: MethodResult) -> Iterator[spreadsheet.Cell]:
    for values in (result.last, result.best, result.last_return, result.best_return):
        yield from spreadsheet.mean_with_interval(result, values)


def _mean_over_seeds(values: np.ndarray | None, *, digits: int = 1) -> str:
    """Mean over the seeds of one run with its interval in brackets, "" without values."""
    return "" if values is None else cells.mean([values], digits)


def _mean_of(values: np.ndarray | None) -> float | None:
    return None if values is None else float(values.mean())


def _score(value: float | None) -> str:
    return markdown.number(value, ".1f", missing="")
