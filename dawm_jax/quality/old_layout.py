"""Files of version 0.1.0 in the layout of the dataclasses of `quality.types`.

Version 0.1.0 wrote quality.json and study.json with other names and nesting. Both functions
return content in the present layout as it is.
"""

from collections.abc import Mapping
from typing import Any

from dawm_jax.types import UserError

# Parsed JSON: the content is checked when it is decoded.
Json = Mapping[str, Any]


def quality_report(stored: Json) -> Json:
    """The content of a quality.json of either layout in the present layout.

    Raises:
      UserError: `stored` has neither layout.
    """
    if "about" in stored:
        return stored
    try:
        return {"about": _about(stored), "real": _real(stored), "synthetic": _synthetic(stored)}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"expected the content of a quality.json, but {error} is missing; make the report anew"
        ) from error


def ablation_report(stored: Json) -> Json:
    """The content of an ablation.json, or of a study.json, in the present layout.

    Raises:
      UserError: `stored` has neither layout.
    """
    if "about" in stored:
        return stored
    try:
        series = [
            {
                "setting": name,
                "own": stored["settings"][name],
                "points": [{"value": one["value"], "metrics": one} for one in points],
            }
            for name, points in stored["fields"].items()
        ]
        about = _about(stored)
        return {**stored, "about": about, "series": series}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"expected the content of an ablation.json, but {error} is missing; "
            "make the report anew"
        ) from error


def _about(stored: Json) -> Json:
    return {**stored, "synthetic": stored["judged"]}


def _real(stored: Json) -> Json:
    floor = stored["floor"]
    return {
        "mean_reward": stored["mean_reward"]["real"],
        "step_size": stored.get("step_size", {}).get("real"),
        "termination_rate": stored["termination"]["real_rate"],
        "distribution": _distribution(floor),
        "distances": stored["novelty"]["held_out"],
        "simulator": floor if "dynamics" in floor else None,
    }


def _synthetic(stored: Json) -> Json:
    return {
        "transitions": stored["transitions"],
        "windows": stored["windows"],
        "generated": stored["drawn"],
        "mean_reward": stored["mean_reward"]["judged"],
        "step_size": stored.get("step_size", {}).get("judged"),
        "termination_rate": stored["termination"]["rate"],
        "distribution": _distribution(stored["distribution"]),
        "distances": stored["novelty"]["judged"],
        "novelty": stored["novelty"]["median_ratio"],
        "simulator": _simulator(stored) if "dynamics" in stored else None,
        "calibration": stored.get("calibration"),
        "inverse_dynamics": _inverse_dynamics(stored.get("inverse_dynamics")),
    }


def _distribution(stored: Json) -> Json:
    auc = stored.get("discriminator_auc")
    one_key = None if auc is None else {"mean": auc, "std": None, "by_key": [auc]}
    return {**stored, "discriminator_auc": one_key}


def _simulator(stored: Json) -> Json:
    termination = stored["termination"]
    return {
        "dynamics": {**stored["dynamics"], "all_steps": stored["dynamics"]},
        "reward": {**stored["reward"], "all_steps": stored["reward"]},
        "termination": termination["all_windows"],
        "termination_near_end": termination["ending"],
        "timing": termination.get("timing"),
    }


def _inverse_dynamics(stored: Json | None) -> Json | None:
    if stored is None:
        return None
    simulator = {
        "real_pairs": stored.get("replay_real_pairs"),
        "first_step": stored.get("replay_real_action") or None,
        "later_steps": stored.get("replay_inferred_action"),
    }
    return {**stored, "simulator": simulator if "replay_real_pairs" in stored else None}
