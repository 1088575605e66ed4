"""Markdown of a quality report and of a sampler ablation.

`rows` gives the measures of a report as text, each with a `Measure` by which a caller selects it.
"""

import enum
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dawm_jax.quality.types import (
    AblationMetrics,
    AblationReport,
    Calibration,
    InverseDynamicsErrors,
    PrecisionRecall,
    QualityReport,
    RealSimulatorErrors,
    SimulatorErrors,
    StepErrors,
    Summary,
    TwoSampleAuc,
)
from dawm_jax.runtime.markdown import number, table


class Measure(enum.Enum):
    """The rows of a report's table. A row is absent if it was not measured."""

    DYNAMICS_ERROR = enum.auto()
    REWARD_ERROR = enum.auto()
    ACTION_ERROR = enum.auto()
    INFERRED_AUC = enum.auto()
    INFERRED_REAL_PAIRS = enum.auto()
    INFERRED_LATER_STEPS = enum.auto()
    KS_MEAN = enum.auto()
    KS_LARGEST = enum.auto()
    CORRELATION_SIMILARITY = enum.auto()
    CLASSIFIER_AUC = enum.auto()
    STATE_AUC = enum.auto()
    NEAREST_DISTANCE = enum.auto()
    STEP_SIZE = enum.auto()
    MEAN_REWARD = enum.auto()
    TERMINATION_RATE = enum.auto()
    TERMINATIONS = enum.auto()
    TERMINATIONS_NEAR_END = enum.auto()
    TERMINATION_TIMING = enum.auto()
    TARGET_RETURN = enum.auto()
    WINDOW_RETURN = enum.auto()
    RETURN_CORRELATION = enum.auto()
    RETURN_SLOPE = enum.auto()
    REAL_RETURN_CORRELATION = enum.auto()


class Row(NamedTuple):
    """A row of a report's table.

    Attributes:
      measure: what the row shows.
      label: the measure in words.
      synthetic: value of the synthetic transitions.
      real: value of the real data; empty if there is none.
    """

    measure: Measure
    label: str
    synthetic: str
    real: str


class MetricText(NamedTuple):
    """A metric of an ablation in words, and its text at one value of a setting."""

    label: str
    text: str


def quality_markdown(report: QualityReport) -> str:
    """A quality report as Markdown."""
    about, synthetic = report.about, report.synthetic
    head = f"# Quality of {about.synthetic}\n\nAgainst {about.reference}"
    head += f" ({about.environment}), {synthetic.transitions:,} transitions"
    if synthetic.windows:
        head += f" in {synthetic.windows:,} windows"
    parts = [f"{head}, commit {about.commit}."]
    parts += [f"**Note:** {note}." for note in about.notes]
    cells = [(row.label, row.synthetic, row.real) for row in rows(report)]
    parts.append(table(("", "synthetic", "real"), cells))
    if synthetic.simulator and synthetic.simulator.dynamics.by_step and report.real.simulator:
        parts.append(_steps_table(synthetic.simulator, report.real.simulator))
    parts.append(_legend(report))
    return "\n\n".join(parts) + "\n"


def rows(report: QualityReport) -> tuple[Row, ...]:
    """The measures of a report as text, in the order of the table."""
    return (
        *_simulator_rows(report),
        *_inverse_dynamics_rows(report),
        *_distribution_rows(report),
        *_termination_rows(report),
        *_calibration_rows(report.synthetic.calibration),
    )


def ablation_markdown(report: AblationReport) -> str:
    """A sampler ablation as Markdown."""
    about = report.about
    settings = about.settings or {}
    rule = {"target_rule": settings["target_rule"]} if "target_rule" in settings else {}
    own = {**rule, **{series.setting: f"{series.own:g}" for series in report.series}}
    own_text = ", ".join(f"{name} {value}" for name, value in own.items())
    parts = [
        f"# Sampler settings and the quality of {about.synthetic}",
        f"Against {about.reference} ({about.environment}), commit {about.commit}. "
        f"One setting at a time differs from the run's own ({own_text}). Each value has "
        f"{report.windows:,} windows, and half as many that start before terminations, with the "
        "same starts and noise. The first rows repeat the run's own settings with other starts "
        "and noise: differences within their spread are noise.",
    ]
    header = ("", *(metric.label for metric in metric_texts(report.repeats[0])))
    parts.append(table(header, _ablation_rows(report)))
    return "\n\n".join(parts) + "\n"


def metric_texts(metrics: AblationMetrics) -> tuple[MetricText, ...]:
    """The metrics that the table of an ablation shows."""
    return (
        MetricText("dynamics error", number(metrics.dynamics_error)),
        MetricText("reward error", number(metrics.reward_error)),
        MetricText("KS, mean", number(metrics.ks_mean)),
        MetricText(
            "AUC of a classifier",
            _with_std(metrics.discriminator_auc, metrics.discriminator_auc_std),
        ),
        MetricText("change of the state", number(metrics.step_size)),
        MetricText("novelty", number(metrics.novelty)),
        MetricText("termination recall", number(metrics.termination_recall)),
        MetricText("termination precision", number(metrics.termination_precision)),
        MetricText("generated return", number(metrics.generated_return)),
    )


def _ablation_rows(report: AblationReport) -> Iterator[list[str]]:
    cells = lambda metrics: [metric.text for metric in metric_texts(metrics)]
    for metrics in report.repeats:
        yield ["own settings", *cells(metrics)]
    for series in report.series:
        for point in series.points:
            own = " (own)" if point.value == series.own else ""
            yield [f"{series.setting} {point.value:g}{own}", *cells(point.metrics)]


# --- rows of the table --------------------------------------------------------------------


def _simulator_rows(report: QualityReport) -> Iterator[Row]:
    synthetic, real = report.synthetic.simulator, report.real.simulator
    if synthetic is None or real is None:
        return
    yield Row(
        Measure.DYNAMICS_ERROR,
        "dynamics error of one step, mean (median)",
        _mean_median(synthetic.dynamics.all_steps),
        _mean_median(real.dynamics),
    )
    yield Row(
        Measure.REWARD_ERROR,
        "reward error of one step, mean (median)",
        _mean_median(synthetic.reward.all_steps),
        _mean_median(real.reward),
    )


def _inverse_dynamics_rows(report: QualityReport) -> Iterator[Row]:
    found, real = report.synthetic.inverse_dynamics, report.real.simulator
    if found is None:
        return
    yield _action_error_row(found)
    if found.discriminator_auc is not None:
        yield Row(
            Measure.INFERRED_AUC,
            "AUC of a classifier of (s, a, r, s' - s) of real pairs with inferred actions",
            _auc_text(found.discriminator_auc),
            _auc_text(report.real.distribution.discriminator_auc),
        )
    if found.simulator is None or real is None:
        return
    yield Row(
        Measure.INFERRED_REAL_PAIRS,
        "dynamics error of real pairs with inferred actions, mean",
        number(found.simulator.real_pairs.mean),
        number(real.dynamics.mean),
    )
    first, later = found.simulator.first_step, found.simulator.later_steps
    if first and later:
        yield Row(
            Measure.INFERRED_LATER_STEPS,
            "dynamics error of steps with inferred actions (real: the first step, "
            "whose action is real), mean",
            number(later.mean),
            number(first.mean),
        )


def _action_error_row(found: InverseDynamicsErrors) -> Row:
    return Row(
        Measure.ACTION_ERROR,
        "inferred actions on held-out real pairs, squared error by dimension "
        "(real: the mean action's)",
        ", ".join(map(number, found.mse)),
        ", ".join(map(number, found.mean_action_mse)),
    )


def _distribution_rows(report: QualityReport) -> Iterator[Row]:
    synthetic, real = report.synthetic, report.real
    found, floor = synthetic.distribution, real.distribution
    yield _number_row(
        Measure.KS_MEAN, "KS statistic, mean of (s, a, r)", found.ks.mean, floor.ks.mean
    )
    yield _number_row(
        Measure.KS_LARGEST,
        "KS statistic, largest of (s, a, r)",
        max(found.ks.columns),
        max(floor.ks.columns),
    )
    yield _number_row(
        Measure.CORRELATION_SIMILARITY,
        "correlation similarity of (s, a, r, s')",
        found.correlation_similarity,
        floor.correlation_similarity,
    )
    yield Row(
        Measure.CLASSIFIER_AUC,
        "AUC of a classifier of (s, a, r, s' - s), mean ± standard deviation of its fits; "
        ".5 cannot tell it from real",
        _auc_text(found.discriminator_auc),
        _auc_text(floor.discriminator_auc),
    )
    if found.state_auc is not None:
        yield Row(
            Measure.STATE_AUC,
            "AUC of a classifier of (s, r, s' - s), which does not see the action",
            _auc_text(found.state_auc),
            _auc_text(floor.state_auc),
        )
    yield _number_row(
        Measure.NEAREST_DISTANCE,
        "distance to the nearest real (s, a), median",
        synthetic.distances.q50,
        real.distances.q50,
    )
    yield _number_row(
        Measure.STEP_SIZE,
        "change of the state in a step, squared",
        synthetic.step_size,
        real.step_size,
    )
    yield _number_row(Measure.MEAN_REWARD, "mean reward", synthetic.mean_reward, real.mean_reward)


def _termination_rows(report: QualityReport) -> Iterator[Row]:
    yield _number_row(
        Measure.TERMINATION_RATE,
        "termination rate",
        report.synthetic.termination_rate,
        report.real.termination_rate,
    )
    found, real = report.synthetic.simulator, report.real.simulator
    if found is None or real is None:
        return
    yield Row(
        Measure.TERMINATIONS,
        "terminations at the right step: recall, precision",
        _recall_precision(found.termination),
        _recall_precision(real.termination),
    )
    timing = found.timing
    if timing is None or timing.windows != report.synthetic.windows:
        yield Row(
            Measure.TERMINATIONS_NEAR_END,
            "terminations of windows that start before a termination: recall, precision",
            _recall_precision(found.termination_near_end),
            "",
        )
    if timing is not None:
        yield Row(
            Measure.TERMINATION_TIMING,
            f"terminations of {timing.windows:,} windows: on time / late / early / missed / false "
            "(others: none on either side)",
            f"{timing.on_time} / {timing.late} / {timing.early} / {timing.missed} / {timing.false}",
            "",
        )


def _calibration_rows(found: Calibration | None) -> Iterator[Row]:
    if found is None:
        return
    generated, real = found.generated_on_target, found.real_on_target
    yield _number_row(
        Measure.TARGET_RETURN,
        "return-to-go asked for (real: the starts' own), mean",
        found.target_mean,
        found.own_mean,
    )
    yield _number_row(
        Measure.WINDOW_RETURN,
        f"discounted return of {found.steps} steps, mean",
        found.generated_mean,
        found.real_mean,
    )
    yield _number_row(
        Measure.RETURN_CORRELATION,
        "discounted return: correlation with the return-to-go asked for",
        generated.correlation,
        real.correlation,
    )
    yield _number_row(
        Measure.RETURN_SLOPE,
        "discounted return: slope on the return-to-go asked for",
        generated.slope,
        real.slope,
    )
    yield _number_row(
        Measure.REAL_RETURN_CORRELATION,
        "discounted return: correlation with the real windows' return",
        found.generated_on_real.correlation,
        1.0,
    )


def _number_row(measure: Measure, label: str, synthetic: float | None, real: float | None) -> Row:
    return Row(measure, label, number(synthetic), number(real))


# --- other parts --------------------------------------------------------------------------


def _steps_table(synthetic: SimulatorErrors, real: RealSimulatorErrors) -> str:
    cells = [*_step_rows("dynamics", synthetic.dynamics, real.dynamics)]
    cells += _step_rows("reward", synthetic.reward, real.reward)
    steps = range(len(cells[0]) - 2)
    return table(("generation step", *map(str, steps), "real"), cells)


def _step_rows(name: str, errors: StepErrors, floor: Summary) -> Iterable[list[str]]:
    assert errors.by_step is not None  # the caller asks only for windows
    by_step = errors.by_step
    yield [f"{name} error, mean", *map(number, by_step.mean), number(floor.mean)]
    yield [f"{name} error, median", *map(number, by_step.median), number(floor.median)]


def _legend(report: QualityReport) -> str:
    text = (
        "Real: the training data, or its held-out part where a sample is compared with the "
        "training data (KS, correlations, classifier, distances). Errors: squared, mean over "
        "dimensions, in units of the data's standard deviations."
    )
    real = report.real.simulator
    if real is not None:
        text += (
            " One simulator step is taken from each state with its action. The errors of the "
            "data's own steps are not zero: observations clip velocities "
            f"({100 * real.clipped_share:.1f} % of the data's steps; the others have a mean "
            f"error of {number(real.dynamics_unclipped.mean)}), are float32, and leave out the "
            "contact solver's warm start."
        )
    if report.synthetic.windows:
        text += (
            " KS, correlations, classifier and distances leave out the first step of a window, "
            "whose state and action are real."
        )
    return text


def _mean_median(summary: Summary) -> str:
    return f"{number(summary.mean)} ({number(summary.median)})"


def _recall_precision(found: PrecisionRecall) -> str:
    return f"{number(found.recall)} of {found.true}, {number(found.precision)} of {found.claimed}"


def _auc_text(auc: TwoSampleAuc | None) -> str:
    return number(None) if auc is None else _with_std(auc.mean, auc.std)


def _with_std(mean: float | None, std: float | None) -> str:
    """The mean, and the standard deviation with two digits where there is one."""
    return number(mean) if std is None else f"{number(mean)} ± {number(std, '.2g')}"
