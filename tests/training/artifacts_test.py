"""What is said of values that have run away, and which panels curves.png has."""

import logging

import pytest

from dawm_jax.runtime.metrics import MetricsFile
from dawm_jax.training import artifacts


@pytest.fixture(name="log")
def _log(tmp_path):
    return MetricsFile(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    ("smallest", "largest", "q_mean", "warns"),
    [
        # Returns of one sign, of both, and of any scale.
        (0.0, 300.0, 449.0, False),
        (0.0, 300.0, 451.0, True),
        (-400.0, -20.0, -300.0, False),
        (-400.0, -20.0, 0.0, False),
        (-400.0, -20.0, 181.0, True),
        (-100.0, 50.0, 99.0, False),
        (-100.0, 50.0, 101.0, True),
        (0.0, 3e-6, 4e-6, False),
        (0.0, 3e-6, 5e-6, True),
        (0.0, 0.0, 0.001, False),
        (0.0, 0.0, -0.001, False),
        (7.0, 7.0, 10.0, False),
    ],
)
def test_values_that_have_run_away(log, caplog, smallest, largest, q_mean, warns):
    caplog.set_level(logging.WARNING)
    log.append("agent", "train", 1, {"q_mean": q_mean})
    found = artifacts._check_values(log, smallest, largest)
    assert found == {"q_mean": q_mean, "largest_return_to_go": largest}
    assert ("the values have run away" in caplog.text) == warns


def test_without_a_critic_nothing_is_checked(log):
    assert artifacts._check_values(log, 0.0, 1.0) is None
    log.append("agent", "train", 1, {"cloning_mse": 0.5})
    assert artifacts._check_values(log, 0.0, 1.0) is None


@pytest.mark.parametrize("models", [(), ("world_model",), ("world_model", "inverse_dynamics")])
def test_curves_have_a_panel_for_what_was_trained_and_no_empty_one(
    log, tmp_path, monkeypatch, models
):
    from matplotlib import pyplot as plt

    for step in (1, 2):
        for stage in models:
            log.append(stage, "train", step, {"loss": 0.5})
        log.append("agent", "train", step, {"q_mean": 1.0})
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    results = {
        "environment": "Hopper-v5",
        "dataset": "x",
        "agent": "td3_bc",
        "agent_label": "TD3+BC",
        "curve": [{"update": 2, "return_per_seed": [1.0, 2.0]}],
        "stages": dict.fromkeys([*models, "agent"]),
        "value_check": None,
    }
    artifacts.plot_curves(tmp_path / "curves.png", log, results)
    axes = [axis for axis in drawn[0].axes if axis.axison]
    assert len(axes) == 2 + len(models)
    assert all(axis.lines and axis.get_title() for axis in axes)
