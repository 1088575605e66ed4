"""Tables of quality reports: docs/quality.md and docs/results.md."""

import pathlib
from collections.abc import Callable, Mapping, Sequence

import experiments
from _raw import RESULTS, read

from dawm_jax.quality.types import QualityReport, Summary
from dawm_jax.runtime.markdown import number, table


def few_quality() -> str:
    """Quality reports of world models of few episodes, trained on a CPU, and of all episodes."""
    folders = {
        f"{count} episodes": RESULTS
        / "studies"
        / "few-cpu"
        / f"hopper-medium-dawm-td3_bc-{count}-episodes"
        for count in experiments.EPISODES
    }
    paths = {name: folder / "quality" / "quality.json" for name, folder in folders.items()}
    paths["all episodes"] = RESULTS / "quality" / "hopper-medium-200k" / "quality.json"
    return _quality({name: path for name, path in paths.items() if path.exists()})


def quality() -> str:
    """Measures of the quality reports, each run beside the data's own numbers."""
    paths = sorted((RESULTS / "quality").glob("*/quality.json"))
    return _quality({path.parent.name: path for path in paths})


def _quality(paths: Mapping[str, pathlib.Path]) -> str:
    """One row for each measure, two columns for each report.

    Args:
      paths: of quality.json by name.
    """
    reports = {name: QualityReport.from_json(read(path)) for name, path in paths.items()}
    header = ["", *(cell for name in reports for cell in (name, "data"))]
    rows = [
        [label, *(cell for report in reports.values() for cell in cells(report))]
        for label, cells in _QUALITY_ROWS
    ]
    return table(header, rows)


Cells = Callable[[QualityReport], Sequence[str]]


def _dynamics(report: QualityReport) -> Sequence[str]:
    synthetic, real = report.synthetic.simulator, report.real.simulator
    return [
        _mean_and_median(synthetic.dynamics.all_steps if synthetic else None),
        _mean_and_median(real.dynamics if real else None),
    ]


def _rewards(report: QualityReport) -> Sequence[str]:
    synthetic, real = report.synthetic.simulator, report.real.simulator
    return [
        _mean_and_median(synthetic.reward.all_steps if synthetic else None),
        _mean_and_median(real.reward if real else None),
    ]


def _inferred_actions(report: QualityReport) -> Sequence[str]:
    errors, real = report.synthetic.inverse_dynamics, report.real.simulator
    simulated = errors and errors.simulator
    return [
        number(simulated.real_pairs.mean if simulated else None),
        number(real.dynamics.mean if real else None),
    ]


def _ks(report: QualityReport) -> Sequence[str]:
    return [number(part.distribution.ks.mean) for part in (report.synthetic, report.real)]


def _auc(report: QualityReport) -> Sequence[str]:
    found = [part.distribution.discriminator_auc for part in (report.synthetic, report.real)]
    return [
        number(auc.mean if auc else None)
        + (f" ± {auc.std:.2g}" if auc and auc.std is not None else "")
        for auc in found
    ]


def _step_size(report: QualityReport) -> Sequence[str]:
    return [number(part.step_size) for part in (report.synthetic, report.real)]


def _termination_rate(report: QualityReport) -> Sequence[str]:
    return [number(part.termination_rate) for part in (report.synthetic, report.real)]


def _timing(report: QualityReport) -> Sequence[str]:
    timing = report.synthetic.simulator and report.synthetic.simulator.timing
    if not timing:
        return ["-", ""]
    counts = [timing.on_time, timing.late, timing.early, timing.missed, timing.false]
    counts.append(timing.windows - sum(counts))
    return [f"{' / '.join(map(str, counts))} of {timing.windows:,}", ""]


def _mean_and_median(summary: Summary | None) -> str:
    return f"{number(summary.mean)} ({number(summary.median)})" if summary else "-"


_QUALITY_ROWS: tuple[tuple[str, Cells], ...] = (
    ("dynamics error of one step: mean (median)", _dynamics),
    ("reward error of one step: mean (median)", _rewards),
    ("dynamics error of real pairs with inferred actions: mean", _inferred_actions),
    ("Kolmogorov-Smirnov statistic: mean over (s, a, r)", _ks),
    ("AUC of a classifier of (s, a, r, s' - s); .5: generated and real look alike", _auc),
    ("squared change of the state in one step", _step_size),
    ("termination rate", _termination_rate),
    ("windows near an end: on time / late / early / missed / false / neither", _timing),
)
