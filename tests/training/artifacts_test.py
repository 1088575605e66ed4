"""What is said of values that have run away."""

import logging

import pytest
from results_content import results_content
from small_run import small_config

from dawm_jax.methods.base import METHODS
from dawm_jax.runtime import results
from dawm_jax.runtime.metrics import MetricsFile
from dawm_jax.runtime.results import ValueCheck
from dawm_jax.training import artifacts
from dawm_jax.types import UserError


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
    assert found == ValueCheck(q_mean, largest)
    assert ("the values have run away" in caplog.text) == warns


def test_without_a_critic_nothing_is_checked(log):
    assert artifacts._check_values(log, 0.0, 1.0) is None
    log.append("agent", "train", 1, {"cloning_mse": 0.5})
    assert artifacts._check_values(log, 0.0, 1.0) is None


_DATA = {"discount", "timeout_value", "return_scale", "held_out_fraction", "clip_actions"}


@pytest.mark.parametrize(
    ("changes", "sections"),
    [
        ({}, {"td3_bc", "world_model", "inverse_dynamics", "unet"}),
        ({"method": "dwm", "agent": "iql"}, {"iql", "world_model", "unet"}),
        ({"method": "one_step"}, {"td3_bc", "one_step"}),
        ({"training__real_fraction": 1.0, "agent": "bc"}, {"bc"}),
        (
            {"method": "decision_diffuser", "planner__denoiser": "transformer"},
            {"planner", "transformer", "world_model", "inverse_dynamics", "unet"},
        ),
    ],
)
def test_the_settings_are_those_of_what_ran(changes, sections):
    config = small_config(world_model__denoiser="unet", **changes)
    found = artifacts._settings(config, METHODS.get(config.method))
    assert set(found) == {*_DATA, "training", "evaluation", *sections}
    assert found["training"] == {"batch_size": config.training.batch_size}
    assert all(found[name] for name in sections)


def test_the_curve_of_a_fine_tuning_must_be_recorded(log, tmp_path):
    """Its step 0 is an evaluation of the offline training."""
    log.append("agent", "assess", 8, {"returns": [[1.0, 3.0]]})
    log.append("online", "assess", 40, {"returns": [[4.0, 6.0]]})

    def tuned(step, value):
        last = {"step": step, "return_per_seed": [value]}
        online = {
            "settings": {"steps": step, "fresh_agent": False, "updates_per_step": 1},
            "curve": [{"step": 0, "return_per_seed": [2.0]}, last],
            "updates": step,
            "seconds_per_step": 1.0,
        }
        offline = [{"update": 8, "return_per_seed": [2.0]}]
        return results.of_json(results_content(curve=offline, stages={}, online=online))

    artifacts.check_recorded(tuned(40, 5.0), tmp_path, log)
    for step, value in ((40, 6.0), (80, 5.0)):
        with pytest.raises(UserError, match=f"its evaluation at online step {step}"):
            artifacts.check_recorded(tuned(step, value), tmp_path, log)
