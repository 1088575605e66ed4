"""The figures of a comparison of runs."""

import pathlib
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dawm_jax.report import over_tasks, runs, statistics
from dawm_jax.report.runs import MethodResult, Series
from dawm_jax.runtime import markdown

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NUM_THRESHOLDS = 101
# The pale colours of the second are hard to tell from the others.
_FEW_COLOURS, _MANY_COLOURS = "tab10", "tab20"
_MAX_COLUMNS = 3  # of panels of learning curves

Colour = tuple[float, float, float, float]
Band = tuple[np.ndarray, np.ndarray]


def plot(results: Sequence[MethodResult], path: pathlib.Path) -> None:
    """One panel per task: curves along the setting that a study varies, else one row a method.

    Without results there is no figure, and one that is there is deleted.
    """
    from matplotlib.figure import Figure

    if not results:
        path.unlink(missing_ok=True)
        return
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
        low, high = _bounds(result)
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
        if setting not in one.results[0].varied:
            mean = _last(one.results[0]).mean()
            axis.axhline(mean, linestyle="--", color="grey")
            axis.annotate(one.label, (0.01, mean), xycoords=("axes fraction", "data"))
            continue
        at = [values.index(_number(member, setting)) for member in one.results]
        _plot_means(axis, at, one.results, label=one.label)
    # Values stand at equal distances because most studies double them.
    axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axis.grid(alpha=0.3)
    axis.legend()


def _plot_means(
    axis: "Axes",
    at: Sequence[float],
    results: Sequence[MethodResult],
    *,
    label: str,
    colour: Colour | None = None,
) -> None:
    """A line of means with intervals at the positions [n]; without a colour Matplotlib's next."""
    means = [float(_last(result).mean()) for result in results]
    errors = np.abs(np.transpose([_bounds(result) for result in results]) - means)
    axis.errorbar(at, means, errors, marker="o", capsize=3, color=colour, label=label)


def _number(result: MethodResult, setting: str) -> float:
    return float(result.varied[setting])


def _bounds(result: MethodResult) -> tuple[float, float]:
    """The interval of the mean of what `_last` gives; for one seed both bounds are the mean."""
    values = _last(result)
    mean = float(values.mean())
    return statistics.mean_interval(result.by_model(values)) or (mean, mean)


def _last(result: MethodResult) -> np.ndarray:
    """Scores where the task has reference returns, else returns."""
    return result.last_return if result.last is None else result.last


# --- learning curves ----------------------------------------------------------------------


def plot_curves(
    results: Sequence[MethodResult], path: pathlib.Path, *, unit: str = "updates"
) -> None:
    """Means over seeds at every evaluation, with 95 % intervals by bootstrap; one panel a task.

    A result with one evaluation, as that of a method that plans, is a dashed line. All panels have
    one legend, below them. Without results there is no file.

    Args:
      results: of all methods.
      path: of the file.
      unit: of `MethodResult.evaluated`.
    """
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(result.task for result in results))
    if not tasks:
        path.unlink(missing_ok=True)
        return
    columns = min(_MAX_COLUMNS, len(tasks))
    figure = Figure(layout="constrained")
    panels = _panels(figure, len(tasks), columns=columns, size=(5.0, 3.6))
    colours = _colours(runs.method_names(results))
    lines: dict[str, Artist] = {}
    for axis, task in zip(panels, tasks, strict=True):
        own = [result for result in results if result.task == task]
        for result in own:
            _plot_curve(axis, result, colours[result.method])
        quantity = "return" if own[0].last is None else "normalised score"
        axis.set(title=markdown.shorten_path(task), xlabel=unit, ylabel=quantity)
        axis.grid(alpha=0.3)
        handles, labels = axis.get_legend_handles_labels()
        lines.update(zip(labels, handles, strict=True))
    ordered = [name for name in colours if name in lines]
    handles = [lines[name] for name in ordered]
    # One panel is as wide as some 60 small letters.
    labels = [textwrap.fill(name, 60) for name in ordered]
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small")
    figure.savefig(path, dpi=80)


def _plot_curve(axis: "Axes", result: MethodResult, colour: Colour) -> None:
    models = [result.by_model(result.curve)]
    mean = statistics.learning_curve(statistics.pooled(models))
    if len(mean) < 2:
        for level in mean:  # none where its runs were never evaluated at the same update
            axis.axhline(level, linestyle="--", color=colour, label=result.method)
        return
    band = statistics.bootstrap_band(statistics.learning_curve, models)
    plot_line(axis, result.evaluated, mean, band, colour=colour, label=result.method)


# --- few episodes -------------------------------------------------------------------------


def plot_episodes(results: Sequence[MethodResult], path: pathlib.Path) -> None:
    """Last scores with their intervals against the number of episodes that are used.

    One panel for each whole task, environment and agent of which there are results of several
    numbers of episodes. No file where there are none.
    """
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str, str], list[MethodResult]] = {}
    for result in results:
        key = result.whole_task, result.environment, result.agent_label
        panels.setdefault(key, []).append(result)
    panels = {key: own for key, own in panels.items() if len({one.episodes for one in own}) > 1}
    if not panels:
        path.unlink(missing_ok=True)
        return
    figure = Figure(layout="constrained")
    axes = _panels(figure, len(panels), columns=2, size=(5.5, 4.2))
    colours = _colours(runs.method_names(one for own in panels.values() for one in own))
    for axis, ((task, _, agent), own) in zip(axes, panels.items(), strict=True):
        _plot_episodes(axis, own, colours)
        quantity = "return" if own[0].last is None else "normalised score"
        axis.set(title=f"{markdown.shorten_path(task)}, {agent}", xlabel="episodes")
        axis.set_ylabel(quantity)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize="small")
    figure.savefig(path, dpi=80)


def _plot_episodes(
    axis: "Axes", results: Sequence[MethodResult], colours: dict[str, Colour]
) -> None:
    """One line for each method, at equal distances for each number of episodes; "all" is last."""
    counts = sorted({result.episodes for result in results}, key=lambda count: count or np.inf)
    names = runs.method_names(results)
    for index, name in enumerate(names):
        own = {result.episodes: result for result in results if result.method == name}
        used = [count for count in counts if count in own]
        # Lines stand a little beside each other: their intervals would cover each other.
        at = [counts.index(count) + 0.3 * ((index + 0.5) / len(names) - 0.5) for count in used]
        members = [own[count] for count in used]
        _plot_means(axis, at, members, label=name, colour=colours[name])
    axis.set_xticks(range(len(counts)), [f"{count:,}" if count else "all" for count in counts])
    axis.grid(alpha=0.3)


# --- performance profiles -----------------------------------------------------------------


def plot_profiles(results: Sequence[MethodResult], path: pathlib.Path) -> None:
    """Share of runs above each score, with 95 % intervals by bootstrap; no file without scores.

    Only methods with scores on the same, largest set of tasks can be compared and are drawn.
    """
    from matplotlib.figure import Figure

    tasks, methods = over_tasks.widest(list(results))
    if not tasks:
        path.unlink(missing_ok=True)
        return
    models = {method: over_tasks.scores(results, method, tasks) for method in methods}
    pools = {method: statistics.pooled(own) for method, own in models.items()}
    everything = np.concatenate([task for own in pools.values() for task in own])
    thresholds = np.linspace(min(0.0, everything.min()), everything.max(), _NUM_THRESHOLDS)
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axis, colours = figure.subplots(), _colours(runs.method_names(results))

    def profile(scores: statistics.Scores) -> np.ndarray:
        return statistics.performance_profile(scores, thresholds)

    for method in methods:
        colour = colours[method]
        band = statistics.bootstrap_band(profile, models[method])
        plot_line(axis, thresholds, profile(pools[method]), band, colour=colour, label=method)
    title = ", ".join(map(markdown.shorten_path, tasks))
    axis.set(title=title, xlabel="normalised score", ylabel="share of runs above it")
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    figure.savefig(path, dpi=110)


# --- lines and colours --------------------------------------------------------------------


def plot_line(
    axis: "Axes",
    at: ArrayLike,
    values: np.ndarray,
    band: Band | None,
    *,
    colour: Colour | str,
    label: str,
    marker: str = "",
) -> None:
    """A line with its interval.

    Args:
      axis: to draw on.
      at: [n] positions.
      values: [n].
      band: lower and upper bounds [n] each; None draws the line alone.
      colour: of both.
      label: in the legend.
      marker: of the values; "" is none.
    """
    axis.plot(at, values, color=colour, marker=marker, markersize=3, label=label)
    if band is not None:
        axis.fill_between(at, *band, color=colour, alpha=0.15, linewidth=0)


def _panels(
    figure: "Figure", count: int, *, columns: int, size: tuple[float, float]
) -> "list[Axes]":
    """Panels row by row, the last row with what is left; the figure gets their size.

    Args:
      figure: without panels.
      count: of panels.
      columns: at most.
      size: width and height of a panel in inches.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    figure.set_size_inches(size[0] * columns, size[1] * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[count:]:
        panel.remove()
    return list(panels[:count])


def _colours(methods: Sequence[str]) -> dict[str, Colour]:
    """A colour for each method; they repeat after twenty."""
    from matplotlib import colormaps

    few = colormaps[_FEW_COLOURS]
    palette = few if len(methods) <= few.N else colormaps[_MANY_COLOURS]
    return {method: palette(index % palette.N) for index, method in enumerate(methods)}
