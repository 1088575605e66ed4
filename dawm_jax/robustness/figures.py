"""The figure of a robustness report."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dawm_jax.report import figures
from dawm_jax.robustness.curves import Curve
from dawm_jax.robustness.sweeps import Sweep
from dawm_jax.runtime import markdown

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_COLUMNS = 4
_TICKS = (0.1, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.4, 2.0, 5.0)  # others would overlap


def plot(curves: Sequence[Curve], path: pathlib.Path) -> None:
    """One block of panels a task, one panel a change, one line with its interval a method.

    Args:
      curves: of all tasks, methods and changes.
      path: of the PNG file.
    """
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys((own.task, own.environment) for own in curves))
    sweeps = list(dict.fromkeys(own.sweep for own in curves))
    methods = list(dict.fromkeys(own.method for own in curves))
    columns = min(_COLUMNS, len(sweeps))
    rows = -(-len(sweeps) // columns)
    figure = Figure(figsize=(3.8 * columns, 3.0 * rows * len(tasks) + 0.6), layout="constrained")
    panels = figure.subplots(rows * len(tasks), columns, squeeze=False)
    for block, task in zip(np.split(panels, len(tasks)), tasks, strict=True):
        for axis in block.flat[len(sweeps) :]:
            axis.set_axis_off()
        for axis, sweep in zip(block.flat, sweeps, strict=False):
            axis.sharey(block[0, 0])
            along = [o for o in curves if (o.task, o.environment) == task and o.sweep == sweep]
            for own in along:
                figures.plot_line(
                    axis,
                    sweep.values,
                    own.mean,
                    own.band,
                    colour=f"C{methods.index(own.method) % 10}",
                    label=own.method,
                    marker="o",
                )
            _set_axis(axis, sweep)
            axis.set_ylabel("return" if along[0].references is None else "normalised score")
        block[0, 0].set_title(markdown.shorten_path(task[0]), loc="left", fontsize="medium")
    lines = {label: line for axis in panels.flat for line, label in _labelled(axis)}
    figure.legend(lines.values(), lines, loc="outside upper center", ncols=min(len(lines), 4))
    # The format is named because the path may be a temporary one without a suffix.
    figure.savefig(path, dpi=110, format="png")


def _labelled(axis: "Axes") -> Iterable[tuple["Artist", str]]:
    return zip(*axis.get_legend_handles_labels(), strict=True)


def _set_axis(axis: "Axes", sweep: Sweep) -> None:
    axis.axvline(sweep.unchanged, color="grey", linestyle=":", linewidth=1)
    if sweep.is_factor:
        axis.set_xscale("log")
        ticks = [value for value in sweep.values if value in _TICKS]
        axis.set_xticks(ticks, [f"{value:g}" for value in ticks])
        axis.minorticks_off()
    axis.set_xlabel(sweep.label)
    axis.grid(alpha=0.3)
