"""The text of a report: rows by their measure."""

import dataclasses

from dawm_jax.quality.report import Measure, ablation_markdown, quality_markdown, rows
from dawm_jax.quality.types import (
    AblationMetrics,
    AblationReport,
    Point,
    Series,
    TerminationTiming,
    TwoSampleAuc,
)


def by_measure(report):
    return {row.measure: (row.synthetic, row.real) for row in rows(report)}


def with_auc(report, auc):
    distribution = dataclasses.replace(report.synthetic.distribution, discriminator_auc=auc)
    return dataclasses.replace(
        report, synthetic=dataclasses.replace(report.synthetic, distribution=distribution)
    )


def test_every_measure_has_one_row(report):
    measures = [row.measure for row in rows(report)]
    assert len(measures) == len(set(measures))
    assert set(measures) == set(Measure)


def test_cells_are_the_numbers_of_the_report(report):
    found = by_measure(report)
    assert found[Measure.MEAN_REWARD] == (
        f"{report.synthetic.mean_reward:.3g}",
        f"{report.real.mean_reward:.3g}",
    )
    assert found[Measure.ACTION_ERROR][0] == "0.01, 0.01, 0.01"
    assert found[Measure.REAL_RETURN_CORRELATION] == ("1", "1")


def test_the_timing_counts_windows(report):
    timing = TerminationTiming(
        windows=20, steps_late={-2: 1, -1: 2, 0: 3, 1: 4}, mean_late=-0.1, missed=5, false=6
    )
    simulator = dataclasses.replace(report.synthetic.simulator, timing=timing)
    changed = dataclasses.replace(
        report, synthetic=dataclasses.replace(report.synthetic, simulator=simulator)
    )
    assert by_measure(changed)[Measure.TERMINATION_TIMING][0] == "3 / 4 / 3 / 5 / 6"


def test_the_area_of_the_classifier_has_its_spread(report):
    cell = lambda auc: by_measure(with_auc(report, auc))[Measure.CLASSIFIER_AUC][0]
    assert cell(TwoSampleAuc(0.58123, 0.0123, (0.57, 0.59))) == "0.581 ± 0.012"
    assert cell(TwoSampleAuc(0.58123, None, (0.58123,))) == "0.581"
    assert cell(None) == "-"


def test_without_a_simulator_its_rows_are_absent(report):
    report = dataclasses.replace(
        report,
        real=dataclasses.replace(report.real, simulator=None),
        synthetic=dataclasses.replace(report.synthetic, simulator=None, calibration=None),
    )
    absent = {Measure.DYNAMICS_ERROR, Measure.TERMINATIONS, Measure.WINDOW_RETURN}
    assert not absent & set(by_measure(report))
    assert "generation step" not in quality_markdown(report)


def test_the_markdown_holds_all_rows_and_notes(report):
    text = quality_markdown(report)
    assert "**Note:** a note." in text
    for row in rows(report):
        assert f"| {row.label} | {row.synthetic} | {row.real} |" in text
    # One table of all measures, one of the errors at each of the four steps.
    assert "| generation step | 0 | 1 | 2 | 3 | real |" in text


def test_the_markdown_of_an_ablation(report):
    metrics = AblationMetrics(1.0, 0.0, 0.25, 0.1, 0.7, 0.02, 0.05, 1.0, 0.5, None, 20.0)
    series = (Series("sampling_steps", 2, (Point(2, metrics), Point(3, metrics))),)
    text = ablation_markdown(AblationReport(report.about, 10, (metrics, metrics), series))
    cells = "| 1 | 0.25 | 0.1 | 0.7 ± 0.02 | 0.05 | 1 | 0.5 | - | 20 |"
    assert text.count(f"| own settings {cells}") == 2
    assert f"| sampling_steps 2 (own) {cells}" in text
    assert f"| sampling_steps 3 {cells}" in text
