"""Reports to JSON and back, and files of version 0.1.0."""

import dataclasses
import json
import pathlib

import pytest

from dawm_jax.quality.types import (
    AblationMetrics,
    AblationReport,
    Point,
    QualityReport,
    Series,
    TerminationTiming,
    TwoSampleAuc,
)
from dawm_jax.types import UserError

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_METRICS = AblationMetrics(*[0.5] * 10, generated_return=None)


def through_json(content):
    return json.loads(json.dumps(content))


def test_a_quality_report_survives_json(report):
    assert report.synthetic.simulator.timing.steps_late
    assert QualityReport.from_json(through_json(report.to_json())) == report


def test_a_report_without_a_simulator_survives_json(report):
    report = dataclasses.replace(
        report,
        real=dataclasses.replace(report.real, simulator=None),
        synthetic=dataclasses.replace(
            report.synthetic, simulator=None, calibration=None, inverse_dynamics=None, windows=None
        ),
    )
    assert QualityReport.from_json(through_json(report.to_json())) == report


def test_an_ablation_survives_json(report):
    ablation = AblationReport(
        report.about,
        windows=10,
        repeats=(_METRICS, _METRICS),
        series=(Series("order", 2, (Point(1, _METRICS), Point(2, _METRICS))),),
    )
    assert AblationReport.from_json(through_json(ablation.to_json())) == ablation


def test_a_missing_field_is_none(report):
    stored = through_json(report.to_json())
    del stored["about"]["commit"], stored["synthetic"]["step_size"], stored["synthetic"]["windows"]
    found = QualityReport.from_json(stored)
    assert found.about.commit is found.synthetic.step_size is found.synthetic.windows is None


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("synthetic", "transitions", None, "transitions: expected int, got nothing"),
        ("synthetic", "mean_reward", "high", "mean_reward: expected float, got str"),
        ("real", "distances", 3, "distances: expected Quantiles, got int"),
    ],
)
def test_a_field_of_another_type_is_refused(report, part, name, value, message):
    stored = through_json(report.to_json())
    stored[part][name] = value
    with pytest.raises(UserError, match=message):
        QualityReport.from_json(stored)


@pytest.mark.parametrize("kind", [QualityReport, AblationReport])
def test_other_content_is_refused(kind):
    with pytest.raises(UserError, match="make the report anew") as error:
        kind.from_json({"score": 1.0})
    assert "\n" not in str(error.value)


def old_quality():
    """A quality.json of version 0.1.0, with every part."""
    summary = {"mean": 0.5, "median": 0.25}
    by_step = {"by_step": {"mean": [0.5, None], "median": [0.25, None]}, "later_steps": summary}
    agreement = {"claimed": 1, "true": 2, "precision": 1.0, "recall": 0.5}
    ks = {"mean": 0.2, "observation": [0.1, 0.2], "action": [0.3], "reward": 0.2}
    distribution = {"ks": ks, "correlation_similarity": 0.9, "discriminator_auc": 0.75}
    quantiles = {"q10": 1.0, "q50": 2.0, "q90": 3.0}
    line = {"correlation": None, "slope": 0.0}
    return {
        "judged": "x",
        "reference": "y",
        "environment": "Hopper-v5",
        "commit": "abc",
        "versions": {"jax": "0"},
        "seed": 0,
        "notes": [],
        "settings": {"guidance": 1.2, "target_rule": "amplified"},
        "floor": {
            **distribution,
            "rows": 5,
            "clipped_share": 0.1,
            "dynamics": summary,
            "dynamics_unclipped": summary,
            "reward": summary,
            "termination": agreement,
        },
        "transitions": 20,
        "windows": 10,
        "drawn": 10,
        "mean_reward": {"judged": 1.0, "real": 2.0},
        "step_size": {"judged": 3.0, "real": 4.0},
        "distribution": distribution,
        "novelty": {"judged": quantiles, "held_out": quantiles, "median_ratio": 1.0},
        "termination": {
            "rate": 0.1,
            "real_rate": 0.2,
            "all_windows": agreement,
            "ending": agreement,
            "timing": {
                "windows": 5,
                "steps_late": {"-1": 1, "0": 2},
                "mean_late": -0.5,
                "missed": 1,
                "false": 1,
            },
        },
        "dynamics": {**summary, **by_step},
        "reward": {**summary, **by_step},
        "calibration": {
            "windows": 9,
            "steps": 2,
            "target_mean": 1.0,
            "own_mean": 1.0,
            "generated_mean": 1.0,
            "real_mean": 1.0,
            "generated_on_target": line,
            "real_on_target": line,
            "generated_on_real": line,
        },
        "inverse_dynamics": {
            "pairs": 3,
            "mse": [0.1],
            "mean_action_mse": [0.2],
            "replay_real_pairs": summary,
            "replay_real_action": summary,
            "replay_inferred_action": summary,
        },
    }


def test_the_first_layout_is_read():
    found = QualityReport.from_json(old_quality())
    assert (found.about.synthetic, found.about.settings["guidance"]) == ("x", 1.2)
    assert (found.synthetic.mean_reward, found.real.mean_reward) == (1.0, 2.0)
    assert (found.synthetic.step_size, found.real.step_size) == (3.0, 4.0)
    assert (found.synthetic.termination_rate, found.real.termination_rate) == (0.1, 0.2)
    assert (found.synthetic.generated, found.synthetic.novelty) == (10, 1.0)
    # One fit has no spread.
    auc = TwoSampleAuc(mean=0.75, std=None, by_key=(0.75,))
    assert found.synthetic.distribution.discriminator_auc == auc
    simulator = found.synthetic.simulator
    assert simulator.timing == TerminationTiming(5, {-1: 1, 0: 2}, -0.5, 1, 1)
    assert (simulator.timing.on_time, simulator.timing.late, simulator.timing.early) == (2, 0, 1)
    assert simulator.dynamics.all_steps.mean == found.real.simulator.dynamics.mean == 0.5
    assert simulator.dynamics.by_step.mean == (0.5, None)
    assert found.synthetic.inverse_dynamics.simulator.first_step.median == 0.25
    assert found.synthetic.calibration.steps == 2
    assert QualityReport.from_json(through_json(found.to_json())) == found


def test_the_first_layout_of_a_dataset_without_a_simulator_is_read():
    stored = old_quality()
    for name in ("dynamics", "reward", "calibration", "inverse_dynamics", "settings", "step_size"):
        del stored[name]
    stored["floor"] = {name: stored["floor"][name] for name in ("ks", "correlation_similarity")}
    stored["termination"] = {"rate": 0.1, "real_rate": 0.2}
    stored["windows"] = None
    found = QualityReport.from_json(stored)
    assert found.real.simulator is found.synthetic.simulator is found.about.settings is None
    assert found.real.distribution.discriminator_auc is found.synthetic.step_size is None


def test_the_first_layout_of_an_ablation_is_read():
    metrics = {"dynamics_error": 0.1, "ks_mean": 0.2, "generated_return": 3.0}
    names = ("judged", "reference", "environment", "commit", "versions", "seed", "notes")
    stored = {name: old_quality()[name] for name in names} | {
        "settings": {"target_rule": "amplified", "guidance": 1.2},
        "windows": 8,
        "repeats": [metrics, metrics],
        "fields": {"guidance": [{"value": 1.0, **metrics}, {"value": 1.2, **metrics}]},
    }
    found = AblationReport.from_json(stored)
    assert (found.windows, len(found.repeats)) == (8, 2)
    (series,) = found.series
    assert (series.setting, series.own) == ("guidance", 1.2)
    assert [point.value for point in series.points] == [1.0, 1.2]
    assert series.points[0].metrics.generated_return == 3.0
    assert series.points[0].metrics.discriminator_auc is None


@pytest.mark.parametrize("path", sorted((_ROOT / "results" / "quality").glob("*/quality.json")))
def test_committed_reports_are_read(path):
    found = QualityReport.from_json(json.loads(path.read_text()))
    assert found.synthetic.simulator and found.real.simulator and found.synthetic.calibration
