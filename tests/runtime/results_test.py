"""results.json: what is written is what is read."""

import json

import numpy as np
import pytest
from results_content import results_content, stage_content

from dawm_jax.runtime import results

ONLINE = {
    "success": {
        "rate_per_seed": [0.5, 1.0],
        "rate_mean": 0.75,
        "rate_interval": [-2.4, 3.9],
        "curve": [{"step": 40, "rate_per_seed": [0.5, 1.0]}],
    },
    "settings": {"steps": 40, "fresh_agent": True, "updates_per_step": 2, "envs": 8},
    "updates": 64,
    "seconds_per_step": 0.25,
    "area": {"return_per_seed": [2.0, 4.0], "return_mean": 3.0},
}


def evaluation(*returns, scores=()):
    """An evaluation's fields, with intervals that stand for those of the writer."""
    found = {
        "return_per_seed": list(returns),
        "return_mean": float(np.mean(returns)),
        "return_interval": [0.0, 9.0],
        "episodes_per_seed": 3,
    }
    if scores:
        found |= {"score_per_seed": list(scores), "score_mean": float(np.mean(scores))}
        found |= {"score_interval": None}
    return found


def full_content():
    """Every field that a file can have."""
    points = [evaluation(5.0, 7.0, scores=(50.0, 70.0)), evaluation(1.0, 2.0, scores=(10.0, 20.0))]
    last = evaluation(3.0, 4.0)
    return results_content(
        environment_kwargs={"reset_noise_scale": 0.1},
        dataset_digest="ab",
        references=[0.0, 10.0],
        method_label="DAWM",
        agent_label="TD3+BC",
        num_seeds=2,
        return_steps=7,
        real_return_steps=1,
        episodes=5,
        rollout={"expand": False},
        settings={"td3_bc": {"tau": 0.02}},
        curve=[{"update": 10 * (i + 1), **point} for i, point in enumerate(points)],
        best=points[0],
        final=points[1],
        stages={
            "world_model": stage_content(steps_per_second=1000 / 12, trained_in="runs/a"),
            "agent": stage_content(steps_per_second=1000 / 12),
        },
        cpu="a processor",
        success={
            "rate_per_seed": [0.0, 1.0],
            "rate_mean": 0.5,
            "rate_interval": None,
            "curve": [{"update": 10, "rate_per_seed": [0.0, 1.0]}],
        },
        online={**ONLINE, "curve": [{"step": 40, **last}], "final": last},
    )


def test_what_is_written_is_what_is_read(tmp_path):
    content = full_content()
    results.write(tmp_path / "results.json", results.of_json(content))
    written = json.loads((tmp_path / "results.json").read_text())
    assert written.pop("results_digest")
    assert written == content
    again = results.read(tmp_path / "results.json")
    assert results.to_json(again) == content


def test_the_last_and_the_best_evaluation_are_those_of_the_curve():
    """Whatever the file says of them."""
    content = full_content()
    content["final"] = content["best"] = evaluation(100.0)
    found = results.of_json(content)
    assert (found.final.at, found.final.scores.mean) == (20, 15.0)
    assert (found.best.at, found.best.returns.mean) == (10, 6.0)


def test_an_altered_file_is_damaged(tmp_path):
    path = tmp_path / "results.json"
    results.write(path, results.of_json(full_content()))
    path.write_text(path.read_text().replace('"updates": 1000', '"updates": 1001'))
    with pytest.raises(ValueError, match="its content is not what was written"):
        results.read(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", 0.5, "seed = 0.5, expected a whole number"),
        ("seed", True, "seed = True, expected a finite number"),
        ("evaluation_seconds", float("inf"), "evaluation_seconds = inf, expected a finite"),
        ("references", [1.0], "expected two numbers"),
        ("commit", 3, "commit = 3, expected text"),
        ("stages", {"agent": 3}, "3 in place of an object with the field 'trained_in'"),
        ("curve", [{"update": 1, "return_per_seed": [[1.0]]}], "return_per_seed: expected"),
        ("curve", [{"update": 1, "return_per_seed": [{}]}], "return_per_seed: expected"),
        ("curve", [{"update": 1, "return_per_seed": [1.0, [2.0]]}], "inhomogeneous"),
        ("curve", [{"update": k, "return_per_seed": [1.0]} for k in (2, 1)], "increasing"),
        ("target_return", {"rule": "amplified"}, "no field 'factor'"),
    ],
)
def test_a_wrong_field_is_named(field, value, message):
    with pytest.raises(ValueError, match=message) as error:
        results.of_json(results_content(**{field: value}))
    assert "\n" not in str(error.value)
