"""Diagnostics in words."""

import pytest

from dawm_jax.training.verdict import verdict

WORLD_MODEL = {
    "error_at_0": 0.001,
    "error_at_250": 0.01,
    "error_at_500": 0.0883,
    "error_at_749": 0.2,
    "error_at_999": 0.9,
}


@pytest.mark.parametrize(
    ("stage", "errors", "expected"),
    [
        (
            "inverse_dynamics",
            # (0.01 + 0.05) of a variance of (1 + 1)
            {"mse": [0.01, 0.05], "baseline_mse": [1.0, 1.0]},
            "inverse dynamics explains 97 % of the actions' variance",
        ),
        (
            "policy",
            {"mse": [0.001], "baseline_mse": [1.0]},
            "policy explains 99.9 % of the actions' variance",
        ),
        (
            "world_model",
            {"mse": [2.0], "baseline_mse": [1.0], "loss": 3.0},
            "world model explains nothing of the variance of the next step",
        ),
        (
            "policy",
            {"mse": [0.25], "baseline_mse": [0.0]},
            "policy has a squared error of 0.25, and the data have no variance",
        ),
        (
            "world_model",
            {**WORLD_MODEL, "termination_loss": 0.0012},
            "world model has a denoising error of 0.088 at mid noise (a guess of the mean has 1) "
            "and a cross-entropy of 0.0012 for terminations",
        ),
        (
            "world_model",
            {**WORLD_MODEL, "termination_loss": 0.0012, "derived_loss": 0.3012},
            "world model has a denoising error of 0.088 at mid noise (a guess of the mean has 1) "
            "and a cross-entropy of 0.0012 for terminations, and a squared error of 0.3 variances "
            "for the columns that follow from the state",
        ),
        (
            "planner",
            WORLD_MODEL,
            "planner has a denoising error of 0.088 at mid noise (a guess of the mean has 1)",
        ),
        ("mine", {"a": 0.5, "b": [1.0, 2.0], "c": 2.0}, "mine has a 0.5, c 2"),
        ("mine", {"b": [1.0]}, "mine has errors that metrics.jsonl lists"),
        (
            "policy",
            {"mse": [float("nan")], "baseline_mse": [1.0]},
            "policy explains nothing of the actions' variance",
        ),
    ],
)
def test_verdict(stage, errors, expected):
    rows = "on episodes held out of its training"
    assert verdict(stage, errors, held_out=True) == f"{expected}, {rows}"


def test_training_data_are_not_called_held_out():
    text = verdict("policy", {"mse": [0.1], "baseline_mse": [1.0]}, held_out=False)
    assert text.endswith(", on the episodes that it is trained on, as none is held out")
