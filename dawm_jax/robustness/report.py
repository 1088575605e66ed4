"""The Markdown of a robustness report."""

from collections.abc import Sequence

from dawm_jax.report import cells
from dawm_jax.robustness.curves import Curve
from dawm_jax.robustness.store import EpisodeProtocol
from dawm_jax.robustness.sweeps import Sweep
from dawm_jax.runtime import markdown

_ABOUT = (
    "Policies that were trained without the change, in environments with it. {episodes} episodes "
    "of each seed in each column (--seed={seed}), with the same start states in all columns. "
    "Cells are means over seeds; brackets hold their 95 % interval by bootstrap over seeds, or "
    "over world models and their seeds. *Area* is the mean along the axis, the area below the "
    "curve divided by the axis's width; the axis of a factor is logarithmic. *Kept* is the area "
    "in per cent of the unchanged value. An interval without width is n/a."
)
_OVERVIEW = "The area of each change, and in brackets its 95 % interval and the share that is kept."


def report(curves: Sequence[Curve], protocol: EpisodeProtocol) -> str:
    """The whole report: one table for each task and change.

    Args:
      curves: of all tasks, methods and changes.
      protocol: of their returns.
    """
    parts = ["# Robustness", _ABOUT.format(episodes=protocol.episodes, seed=protocol.seed)]
    for task, environment in dict.fromkeys((own.task, own.environment) for own in curves):
        mine = [own for own in curves if (own.task, own.environment) == (task, environment)]
        parts += [f"## {markdown.shorten_path(task)}, {environment}", quantity(mine[0])]
        parts += ["### All changes", _OVERVIEW, overview(mine)]
        for sweep in dict.fromkeys(own.sweep for own in mine):
            along = [own for own in mine if own.sweep == sweep]
            parts += [f"### {sweep.label}", _table(along, sweep)]
    return "\n\n".join(parts) + "\n"


def overview(curves: Sequence[Curve]) -> str:
    """Areas of one task: one row for each change, one column for each method.

    Args:
      curves: of the task, each method along the same changes.
    """
    methods = list(dict.fromkeys(own.method for own in curves))
    rows: dict[str, list[str]] = {}
    for own in curves:
        digits, interval = 0 if own.references is None else 1, own.area_interval
        notes = [] if interval is None else [cells.span(interval, digits=digits)]
        text = f"{own.area:.{digits}f} ({'; '.join([*notes, _kept(own)])})"
        rows.setdefault(own.sweep.label, []).append(text)
    return markdown.table(("change", *methods), ([label, *row] for label, row in rows.items()))


def quantity(curve: Curve) -> str:
    """What the values of a curve are, with the references of scores."""
    if curve.references is None:
        return "Values are undiscounted returns: the task has no reference returns."
    low, high = curve.references
    return (
        f"Values are normalised scores: 0 is a return of {low:.1f}, 100 one of {high:.1f}. Both "
        "references are returns in the unchanged environment, in every column."
    )


def _table(curves: Sequence[Curve], sweep: Sweep) -> str:
    columns = [f"{value:g}" for value in sweep.values]
    return markdown.table(("method", "seeds", *columns, "area", "kept"), map(_row, curves))


def _row(curve: Curve) -> list[str]:
    digits = 0 if curve.references is None else 1
    band = curve.band
    intervals = [None] * len(curve.mean) if band is None else list(zip(*band, strict=True))
    along = [_cell(*pair, digits) for pair in zip(curve.mean, intervals, strict=True)]
    area = _cell(curve.area, curve.area_interval, digits)
    return [curve.method, str(curve.num_seeds), *along, area, _kept(curve)]


def _cell(mean: float, interval: tuple[float, float] | None, digits: int) -> str:
    text = f"{mean:.{digits}f}"
    return text if interval is None else f"{text} ({cells.span(interval, digits=digits)})"


def _kept(curve: Curve) -> str:
    return "n/a" if curve.kept is None else f"{100 * curve.kept:.0f} %"
