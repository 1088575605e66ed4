"""The diagnostics of a model as one line of the log; metrics.jsonl has the numbers."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

# Stages whose models predict actions.
_ACTION_STAGES = ("inverse_dynamics", "policy")
_MAX_NUMBERS = 6


def verdict(stage: str, errors: Mapping[str, Any], *, held_out: bool) -> str:
    """What the errors of a model say.

    Args:
      stage: name of the model.
      errors: what its `errors` returned: numbers or lists of them by name.
      held_out: whether the rows were kept from the training.
    """
    held, trained = "episodes held out of its training", "the episodes that it is trained on"
    rows = held if held_out else f"{trained}, as none is held out"
    return f"{stage.replace('_', ' ')} {_says(stage, errors)}, on {rows}"


def _says(stage: str, errors: Mapping[str, Any]) -> str:
    if "mse" in errors and "baseline_mse" in errors:
        return _explained(stage, errors)
    noise = sorted(int(m[1]) for m in map(re.compile(r"error_at_(\d+)").fullmatch, errors) if m)
    if noise:
        middle = errors[f"error_at_{noise[len(noise) // 2]}"]
        text = f"has a denoising error of {middle:.2g} at mid noise (a guess of the mean has 1)"
        if "termination_loss" in errors:
            text += f" and a cross-entropy of {errors['termination_loss']:.2g} for terminations"
        if "derived_loss" in errors:
            text += (
                f", and a squared error of {errors['derived_loss']:.2g} variances for the columns "
                "that follow from the state"
            )
        if "return_moved" in errors:
            text += (
                f"; a target of the largest return instead of the smallest moves the return of a "
                f"window by {errors['return_moved']:.2g} standard deviations"
            )
        return text
    numbers = {name: value for name, value in errors.items() if np.ndim(value) == 0}
    shown = [f"{name} {value:.2g}" for name, value in list(numbers.items())[:_MAX_NUMBERS]]
    return "has " + (", ".join(shown) or "errors that metrics.jsonl lists")


def _explained(stage: str, errors: Mapping[str, Any]) -> str:
    """1 - squared error / variance, over all dimensions together."""
    error, variance = np.sum(errors["mse"]), np.sum(errors["baseline_mse"])
    what = "the actions' variance" if stage in _ACTION_STAGES else "the variance of the next step"
    if not variance > 0.0:
        return f"has a squared error of {error:.2g}, and the data have no variance"
    share = 100.0 * (1.0 - error / variance)
    if not share > 0.0:
        return f"explains nothing of {what}"
    return f"explains {share:.{1 if share > 99.0 else 0}f} % of {what}"
