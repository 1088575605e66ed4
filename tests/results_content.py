"""The content of results.json files that tests make up."""

from typing import Any


def results_content(**fields: Any) -> dict[str, Any]:
    """A Hopper run of one seed and one evaluation, with these fields in place of its own."""
    return {
        "environment": "Hopper-v5",
        "dataset": "dawm/hopper/medium-v0",
        "dataset_summary": "",
        "method": "dawm",
        "agent": "td3_bc",
        "variant": "smoke",
        "seed": 0,
        "num_seeds": 1,
        "seed_is": "agents",
        "updates": 1000,
        "real_fraction": 0.0,
        "top_fraction": 1.0,
        "horizon": 7,
        "target_return": {"rule": "amplified", "factor": 1.2},
        "rollout": {},
        "curve": [{"update": 1000, "return_per_seed": [1.0]}],
        "value_check": {"q_mean": 1.0, "largest_return_to_go": 2.0},
        "evaluation_seconds": 1.0,
        "stages": {"agent": stage_content()},
        "device": "1 x cpu",
        "versions": {},
        "commit": "abc",
        **fields,
    }


def stage_content(**fields: Any) -> dict[str, Any]:
    """A stage of such a run."""
    return {"steps": 1000, "seconds": 12.0, "compile_seconds": 0.0, **fields}
