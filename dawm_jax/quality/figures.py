"""Figures of a quality report and of a sampler ablation."""

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from dawm_jax.quality.evaluate import ReturnSamples
from dawm_jax.quality.types import (
    AblationMetrics,
    AblationReport,
    Distribution,
    QualityReport,
    Series,
    StepErrors,
    Summary,
    TerminationTiming,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Sharing: TypeAlias = bool | Literal["row", "col"]
_REAL, _SYNTHETIC = "tab:gray", "tab:blue"
# The rows of an ablation's figure: label, whether the axis is logarithmic, value.
_ABLATION_ROWS: tuple[tuple[str, bool, Callable[[AblationMetrics], float | None]], ...] = (
    ("dynamics error", True, lambda metrics: metrics.dynamics_error),
    ("reward error", True, lambda metrics: metrics.reward_error),
    ("KS, mean", False, lambda metrics: metrics.ks_mean),
    ("AUC of a classifier", False, lambda metrics: metrics.discriminator_auc),
    ("change of the state", False, lambda metrics: metrics.step_size),
    ("novelty", False, lambda metrics: metrics.novelty),
    ("termination recall", False, lambda metrics: metrics.termination_recall),
    ("termination precision", False, lambda metrics: metrics.termination_precision),
    ("generated return", False, lambda metrics: metrics.generated_return),
)


def plot_quality(
    path: pathlib.Path,
    report: QualityReport,
    *,
    distances: np.ndarray,
    real_distances: np.ndarray,
    returns: ReturnSamples | None,
) -> None:
    """Writes a PNG: errors by step, KS, terminations, returns, distances.

    Args:
      path: file to write.
      report: the numbers.
      distances: [n] from each generated (s, a) to the nearest real one.
      real_distances: [m] the same from held-out real (s, a).
      returns: returns of the windows; None for a dataset.
    """
    figure, grid = _subplots(2, 3, (14, 7.5))
    for axis, name in ((grid[0, 0], "dynamics"), (grid[0, 1], "reward")):
        axis.set(title=f"{name} error against the simulator", xlabel="generation step")
    synthetic, real = report.synthetic.simulator, report.real.simulator
    if synthetic is None or real is None:
        for axis in (grid[0, 0], grid[0, 1]):
            _say(axis, "no simulator for this environment")
    else:
        _plot_errors(grid[0, 0], synthetic.dynamics, real.dynamics)
        _plot_errors(grid[0, 1], synthetic.reward, real.reward)
    _plot_ks(grid[0, 2], report.synthetic.distribution, report.real.distribution)
    _plot_timing(grid[1, 0], synthetic.timing if synthetic else None)
    calibration = report.synthetic.calibration
    _plot_returns(grid[1, 1], returns, calibration.steps if calibration else None)
    _plot_distances(grid[1, 2], distances, real_distances)
    for axis in grid.ravel():
        axis.grid(alpha=0.3)
    figure.suptitle(f"{report.about.synthetic} ({report.about.environment})")
    _save(figure, path, dpi=110)


def plot_ablation(path: pathlib.Path, report: AblationReport) -> None:
    """Writes a PNG with one row per metric and one column per setting.

    The band is the range of the repeats, the dotted line is the run's own value.
    """
    rows = [row for row in _ABLATION_ROWS if row[2](report.repeats[0]) is not None]
    num_series = len(report.series)
    figure, grid = _subplots(
        len(rows), num_series, (3 * num_series, 1.7 * len(rows)), sharex="col", sharey="row"
    )
    for axes, (label, logarithmic, value) in zip(grid, rows, strict=True):
        axes[0].set_ylabel(label, fontsize="small")
        if logarithmic:
            axes[0].set_yscale("log")  # sharey="row" applies it to the whole row
        repeats = [v for metrics in report.repeats if (v := value(metrics)) is not None]
        for axis, series in zip(axes, report.series, strict=True):
            axis.axhspan(min(repeats), max(repeats), color=_REAL, alpha=0.3)
            _plot_series(axis, series, value)
    for axis, series in zip(grid[-1], report.series, strict=True):
        axis.set_xlabel(series.setting)
    figure.suptitle(
        f"{report.about.synthetic}: dotted the run's own setting, grey the range of "
        f"{len(report.repeats)} repeats"
    )
    _save(figure, path, dpi=90)


def _plot_series(
    axis: "Axes", series: Series, value: Callable[[AblationMetrics], float | None]
) -> None:
    found = [value(point.metrics) for point in series.points]
    axis.axvline(series.own, color=_REAL, linestyle=":")
    axis.plot(
        [point.value for point in series.points],
        [np.nan if v is None else v for v in found],
        color=_SYNTHETIC,
        marker="o",
        markersize=4,
    )
    axis.grid(alpha=0.3)


def _plot_errors(axis: "Axes", errors: StepErrors, floor: Summary) -> None:
    from matplotlib.ticker import MaxNLocator

    steps, all_steps = errors.by_step, errors.all_steps
    for kind, style, values in (
        ("mean", "-o", steps.mean if steps else (all_steps.mean,)),
        ("median", "--s", steps.median if steps else (all_steps.median,)),
    ):
        plotted = [np.nan if value is None else value for value in values]
        axis.semilogy(plotted, style, color=_SYNTHETIC, label=f"synthetic, {kind}")
    if floor.mean is not None:
        axis.axhline(floor.mean, color=_REAL, linestyle="--", label="real data, mean")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend()


def _plot_ks(axis: "Axes", synthetic: Distribution, real: Distribution) -> None:
    labels = [f"s{i}" for i in range(len(synthetic.ks.observation))]
    labels += [f"a{i}" for i in range(len(synthetic.ks.action))] + ["r"]
    axis.bar(labels, synthetic.ks.columns, color=_SYNTHETIC, label="synthetic")
    axis.plot(labels, real.ks.columns, "_", color="black", markersize=10, label="held-out real")
    axis.set(title="Kolmogorov-Smirnov statistic by dimension")
    axis.tick_params(axis="x", labelsize="small", rotation=90 if len(labels) > 20 else 0)
    axis.legend()


def _plot_timing(axis: "Axes", timing: TerminationTiming | None) -> None:
    axis.set(title="terminations: steps late", ylabel="windows")
    if timing is None:
        return _say(axis, "no windows, or no simulator")
    late = timing.steps_late
    delays = range(min(late, default=0), max(late, default=0) + 1)
    colours = ["tab:green" if delay == 0 else _SYNTHETIC for delay in delays]
    labels = [f"{delay:+d}" if delay else "0" for delay in delays]
    axis.bar(labels, [late.get(delay, 0) for delay in delays], color=colours)
    axis.bar(["missed", "false"], [timing.missed, timing.false], color="tab:red")
    axis.tick_params(axis="x", labelsize="small", rotation=45)
    return None


def _plot_returns(axis: "Axes", returns: ReturnSamples | None, steps: int | None) -> None:
    axis.set(title="return of a window")
    if returns is None or steps is None or not returns.target.size:
        return _say(axis, "no generated windows with a known real return")
    axis.set(
        title=f"discounted return of {steps} steps",
        xlabel="return-to-go asked for",
        ylabel="mean and middle half of each group",
    )
    # Up to ten groups of windows. Equal targets stay in one group: the target rule gives many
    # windows the data's best return.
    edges = np.unique(np.quantile(returns.target, np.linspace(0, 1, 11)))
    group = np.searchsorted(edges[1:-1], returns.target)
    members = [np.flatnonzero(group == g) for g in np.unique(group)]
    x = [returns.target[rows].mean() for rows in members]
    for found, label, colour in (
        (returns.real, "real windows from the same starts", _REAL),
        (returns.generated, "generated", _SYNTHETIC),
    ):
        values = [found[rows] for rows in members]
        axis.plot(x, [v.mean() for v in values], "-o", color=colour, label=label)
        low, high = zip(*(np.quantile(v, [0.25, 0.75]) for v in values), strict=True)
        axis.fill_between(x, low, high, color=colour, alpha=0.2)
    axis.legend(loc="upper right")
    return None


def _plot_distances(axis: "Axes", synthetic: np.ndarray, real: np.ndarray) -> None:
    largest = max(np.quantile(synthetic, 0.99), np.quantile(real, 0.99), 1e-9)
    bins = np.linspace(0, largest, 50).tolist()
    for values, label, colour in (
        (real, "held-out real", _REAL),
        (synthetic, "synthetic", _SYNTHETIC),
    ):
        axis.hist(values, bins, density=True, alpha=0.5, label=label, color=colour)
    axis.set(title="distance to the nearest real (s, a)", xlabel="standardised units")
    axis.legend(loc="upper right")


def _say(axis: "Axes", text: str) -> None:
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)


def _subplots(
    rows: int,
    columns: int,
    size: tuple[float, float],
    *,
    sharex: _Sharing = False,
    sharey: _Sharing = False,
) -> tuple["Figure", np.ndarray]:
    """A figure and its axes [rows, columns]. Matplotlib needs no display for it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False)


def _save(figure: "Figure", path: pathlib.Path, *, dpi: int) -> None:
    figure.savefig(path, dpi=dpi, format="png")
