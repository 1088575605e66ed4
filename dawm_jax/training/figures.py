"""The figure curves.png of a run's folder."""

import functools
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dawm_jax.agents.base import AGENTS
from dawm_jax.runtime import provenance
from dawm_jax.runtime.metrics import MetricsFile
from dawm_jax.runtime.results import Evaluation, Results

_log = logging.getLogger(__name__)


def plot_curves(path: pathlib.Path, log: MetricsFile, results: Results) -> None:
    """Draws the learning curve, each model's loss, and a metric of the agents' updates.

    Args:
      path: of the picture.
      log: metrics.jsonl of the run.
      results: the content of its results.json.
    """
    from matplotlib.figure import Figure

    models = [stage for stage in results.stages if stage not in ("agent", "online")]
    scores = functools.partial(_plot_scores, agent=results.agent_label)
    panels: list[Callable[[Any], None]] = [
        functools.partial(scores, curve=results.curve, unit="updates")
    ]
    if results.online is not None:
        curve = results.online.curve
        panels.append(functools.partial(scores, curve=curve, unit="environment steps"))
    panels += [functools.partial(_plot_loss, log=log, stage=stage) for stage in models]
    if "agent" in results.stages:
        panels.append(functools.partial(_plot_metric, log=log, results=results))
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 3.5 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False)
    for axis, draw in zip(grid.ravel(), panels, strict=False):
        draw(axis)
        axis.grid(alpha=0.3)
        axis.locator_params(axis="x", nbins=6)
    for axis in grid.ravel()[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(f"{results.environment}, {results.dataset}")
    with provenance.whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _plot_scores(axis: Any, *, agent: str, curve: Sequence[Evaluation], unit: str) -> None:
    """Every seed's score, or return without a score, and the mean over seeds."""
    scores = [point.scores.values for point in curve if point.scores is not None]
    name = "normalised score" if scores else "return"
    per_seed = np.stack(scores or [point.returns.values for point in curve])
    at = [point.at for point in curve]
    axis.plot(at, per_seed, color="tab:blue", alpha=0.3, linewidth=1)
    axis.plot(at, per_seed.mean(axis=1), color="tab:blue", marker="o")
    axis.set(title=f"{agent}: {name}, seeds and mean", xlabel=unit, ylabel=name)


def _plot_loss(axis: Any, log: MetricsFile, stage: str) -> None:
    steps, losses = _curve(log, stage, "loss")
    axis.plot(steps, losses)
    # The negative log-likelihood of a Gaussian model can be negative.
    axis.set_yscale("log" if min(losses, default=0) > 0 else "linear")
    axis.set(title=f"{stage.replace('_', ' ')}: loss", xlabel="steps")


def _curve(log: MetricsFile, stage: str, metric: str) -> tuple[list[int], list[float]]:
    """Steps of a stage and the values of a metric, where there are any."""
    entries = [e for e in log.lines(stage, "train") if isinstance(e.get(metric), int | float)]
    return [entry["step"] for entry in entries], [entry[metric] for entry in entries]


def _plot_metric(axis: Any, log: MetricsFile, results: Results) -> None:
    """The metric that the agent names, beside the data's largest return if it is a value."""
    metric = AGENTS.get(results.agent).curve
    steps, values = _curve(log, "agent", metric)
    if not steps:
        _log.warning("%s's updates report no metric %r to plot", results.agent_label, metric)
    axis.plot(steps, values)
    axis.set(title=f"{metric.replace('_', ' ')} of minibatches", xlabel="updates")
    if results.value_check is not None:
        limit = results.value_check.largest_return_to_go
        label = "largest return-to-go of data"
        axis.axhline(limit, color="tab:gray", linestyle="--", label=label)
        axis.legend()
