"""What is said of values that have run away."""

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
