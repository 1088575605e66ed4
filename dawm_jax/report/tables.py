"""A comparison of runs as Markdown, CSV and a figure."""

import csv
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dawm_jax.envs import evaluate
from dawm_jax.report import published
from dawm_jax.report import runs as comparison
from dawm_jax.report.runs import Entry
from dawm_jax.types import UserError

_LAST_BEST = (
    f'"Last" is the mean of a seed\'s last {comparison.LAST} evaluations (one, if it plans). '
    '"Best" is the best evaluation of a run: it is chosen on the simulator and flatters every '
    "method."
)


def write(runs: list[dict[str, Any]], out: pathlib.Path) -> str:
    """Writes report.md, report.csv (a row an entry) and report.png; returns the Markdown.

    Raises:
      UserError: the folder cannot be written.
    """
    entries = comparison.group(runs)
    text = markdown(runs, entries)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.md").write_text(text)
        (out / "report.csv").write_text(csv_text(entries))
        plot(entries, out / "report.png")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror})") from error
    return text


# --- text ---------------------------------------------------------------------------------


def markdown(runs: list[dict[str, Any]], entries: list[Entry]) -> str:
    """The whole report."""
    parts = [
        "# Comparison",
        summary(entries),
        "## Published scores",
        _published(entries),
        "## Runs",
        runs_table(runs),
    ]
    return "\n\n".join(parts) + "\n"


def summary(entries: list[Entry], *, heading: str = "##") -> str:
    """The methods by task, over tasks, and DAWM against each."""
    parts = [
        f"{heading} By task",
        "Normalised scores are 100 (return - random) / (expert - random) with D4RL's "
        f"references. {_LAST_BEST} Intervals of means are 95 % of Student's t over seeds.",
        _task_table(entries),
        f"{heading} Over tasks",
        "Average of the tasks' means, and the interquartile mean over all runs with its 95 % "
        "stratified bootstrap interval. Only rows of the same number of tasks compare.",
        _aggregate_table(entries),
        f"{heading} DAWM against the others",
        "On the tasks of both, after as many updates: the chance that a run of DAWM beats one of "
        "the other (95 % stratified bootstrap), and the gain of its average. The paper states "
        "gains over DWM of "
        f"{published.GAINS_OVER_DWM['td3_bc']} % (TD3+BC) and {published.GAINS_OVER_DWM['iql']} "
        "% (IQL).",
        _duel_table(entries),
    ]
    return "\n\n".join(parts)


def runs_table(runs: list[dict[str, Any]]) -> str:
    """One row a run: what ran, how well, how long, where."""
    header = (
        "dataset",
        "method",
        "updates",
        "seeds",
        "score, final",
        "95 % interval",
        "score, best",
        "return, final",
        "training s",
        "device",
        "commit",
    )
    return _table(header, (_run_row(run) for run in runs))


def _run_row(run: dict[str, Any]) -> list[str]:
    final, best = run["final"], run["best"]
    seconds = sum(stage["seconds"] for stage in run["stages"].values())
    return [
        _public(run["dataset"]),
        comparison.label(run),
        f"{run['updates']:,}",
        str(run["num_seeds"]),
        _number(final.get("score_mean")),
        _interval(final.get("score_interval")),
        _number(best.get("score_mean")),
        f"{final['return_mean']:.0f}",
        f"{seconds:.0f}",
        run["device"],
        str(run["commit"]),
    ]


def _task_table(entries: list[Entry]) -> str:
    header = ["task", "method", "updates", "seeds", "score, last", "score, best"]
    header += ["return, last", "return, best"]

    def row(entry):
        scores = [_mean(entry.last), _mean(entry.best)]
        returns = [_mean(entry.last_return, digits=0), _mean(entry.best_return, digits=0)]
        seeds = str(len(entry.last_return))
        return [_public(entry.task), entry.method, f"{entry.updates:,}", seeds, *scores, *returns]

    return _table(header, map(row, entries))


def _aggregate_table(entries: list[Entry]) -> str:
    rows = [
        [a.method, str(a.tasks), _number(a.average), _number(a.iqm), _interval(a.iqm_interval)]
        for a in comparison.aggregates(entries)
    ]
    return _table(("method", "tasks", "average", "interquartile mean", "95 % interval"), rows)


def _duel_table(entries: list[Entry]) -> str:
    rows = [
        [
            duel.method,
            duel.other,
            str(duel.tasks),
            f"{duel.probability:.2f}",
            _interval(duel.interval, digits=2),
            "" if duel.gain is None else f"{duel.gain:+.1f} %",
        ]
        for duel in comparison.duels(entries)
    ]
    header = ("method", "against", "tasks", "probability of improvement", "95 % interval", "gain")
    return _table(header, rows) if rows else "No other method has a task in common with DAWM."


def _published(entries: list[Entry]) -> str:
    """Published scores beside ours, for tasks that have them, and whether they may be compared."""
    own = {(entry.task, entry.method): entry.last for entry in entries}
    names = {e.task: published.task_of(e.environment, e.task) for e in entries}
    rows = [
        [_public(task), method, _number(_mean_of(own.get((task, method)))), *map(_number, scores)]
        for task, name in names.items()
        if name is not None
        for method, scores in published.scores_of(name).items()
    ]
    if not rows:
        return "None for these tasks."
    others = [
        _public(task) for task, name in names.items() if name and not published.is_same_data(task)
    ]
    parts = ["DWM's paper reports the best of a grid that was evaluated on the simulator."]
    if others:
        parts.append(
            f"**Not D4RL's data: {', '.join(others)}.** They were collected by other policies in "
            "another version of the simulator: the published scores show the order of magnitude "
            "and no more."
        )
    header = ("task", "method", "ours, last", *published.SOURCES)
    return "\n\n".join([*parts, _table(header, rows)])


def csv_text(entries: list[Entry]) -> str:
    """One row an entry, numbers unrounded; scores are empty without references."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    kinds = ("score_last", "score_best", "return_last", "return_best")
    columns = [f"{kind}_{part}" for kind in kinds for part in ("mean", "low", "high")]
    writer.writerow(
        ["task", "environment", "method", "source", "agent", "updates", "seeds", *columns]
    )
    for entry in entries:
        numbers: list[Any] = []
        for values in (entry.last, entry.best, entry.last_return, entry.best_return):
            interval = None if values is None else evaluate.confidence_interval(values)
            mean = _mean_of(values)
            numbers += ["" if mean is None else mean, *(interval or ("", ""))]
        identity = [_public(entry.task), entry.environment, entry.method, entry.source]
        writer.writerow([*identity, entry.agent, entry.updates, len(entry.last_return), *numbers])
    return out.getvalue()


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def _mean(values: np.ndarray | None, *, digits: int = 1) -> str:
    """Mean and its interval in brackets."""
    if values is None:
        return ""
    interval = evaluate.confidence_interval(values)
    text = f"{values.mean():.{digits}f}"
    return f"{text} ({_interval(interval, digits=digits)})" if interval else text


def _mean_of(values: np.ndarray | None) -> float | None:
    return None if values is None else float(values.mean())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _interval(interval: Sequence[float] | None, *, digits: int = 1) -> str:
    if not interval:
        return "one seed"
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def _public(name: str) -> str:
    """A dataset's name without the folders of whoever ran this."""
    return pathlib.Path(name).name if name.startswith(("/", "~")) else name


# --- figure -------------------------------------------------------------------------------


def plot(entries: list[Entry], path: pathlib.Path) -> None:
    """A panel a task: curves along the setting that a study varies, else a row an entry."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tasks = list(dict.fromkeys(entry.task for entry in entries))
    methods = list(dict.fromkeys(entry.method for entry in entries))
    setting = comparison.studied(entries)
    height = 4.0 if setting else 1.2 + 0.3 * len(methods)
    figure, grid = plt.subplots(
        len(tasks), figsize=(8, height * len(tasks)), squeeze=False, constrained_layout=True
    )
    for axis, task in zip(grid[:, 0], tasks, strict=True):
        own = [entry for entry in entries if entry.task == task]
        quantity = "return" if own[0].last is None else "normalised score, last evaluations"
        if setting:
            _plot_lines(axis, comparison.lines(own, setting), setting)
            axis.set(title=_public(task), xlabel=setting.replace("_", " "), ylabel=quantity)
        else:
            _plot_rows(axis, own)
            axis.set(title=_public(task), xlabel=quantity)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_rows(axis, entries: list[Entry]) -> None:
    """Every seed, mean and interval of the last score (or return)."""
    for row, entry in enumerate(entries):
        values = _last(entry)
        axis.scatter(values, np.full(len(values), row), color="tab:blue", alpha=0.3, s=14)
        low, high = evaluate.confidence_interval(values) or (values.mean(),) * 2
        axis.plot([low, high], [row, row], color="black")
        axis.scatter(values.mean(), row, color="black", s=24, zorder=3)
    axis.set_yticks(range(len(entries)), [entry.method for entry in entries])
    axis.set_ylim(len(entries) - 0.5, -0.5)  # the first on top
    axis.grid(axis="x", alpha=0.3)


def _plot_lines(axis, lines: list[comparison.Line], setting: str) -> None:
    """Means with intervals along the setting; what does not have it is a level."""
    values = sorted(
        {e.varied[setting] for line in lines for e in line.entries if setting in e.varied}
    )
    for line in lines:
        means = [_last(entry).mean() for entry in line.entries]
        if setting not in line.entries[0].varied:
            axis.axhline(means[0], linestyle="--", color="grey")
            axis.annotate(line.label, (0.01, means[0]), xycoords=("axes fraction", "data"))
            continue
        at = [values.index(entry.varied[setting]) for entry in line.entries]
        bounds = [
            evaluate.confidence_interval(_last(entry)) or (mean, mean)
            for entry, mean in zip(line.entries, means, strict=True)
        ]
        errors = np.abs(np.transpose(bounds) - means)
        axis.errorbar(at, means, errors, marker="o", capsize=3, label=line.label)
    # Equal steps: studies double their values more often than they add to them.
    axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axis.grid(alpha=0.3)
    axis.legend()


def _last(entry: Entry) -> np.ndarray:
    """Scores where the task has references, returns where not."""
    return entry.last_return if entry.last is None else entry.last
