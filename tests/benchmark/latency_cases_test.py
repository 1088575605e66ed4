"""Durations of decisions and generation: arithmetic with a fake clock, and every case once."""

import numpy as np
import pytest

from dawm_jax.benchmark import latency_cases, tables
from dawm_jax.benchmark.latency_cases import Case, time_cases
from dawm_jax.config import schema
from dawm_jax.methods.base import METHODS


def test_seconds_per_thousand_by_hand(clock):
    cases = [
        Case("decisions", "quick", 10, 10, lambda: clock.spend("quick", 0.5)),
        Case("decisions", "slow", 10, 10, lambda: clock.spend("slow", 5.0)),
    ]
    quick, slow = time_cases(cases, seconds=2.0, clock=clock)
    np.testing.assert_allclose(quick["seconds_per_1000"], 50.0)
    np.testing.assert_allclose(slow["seconds_per_1000"], 500.0)
    np.testing.assert_allclose(slow["turns"], [500.0] * 3)
    # Three turns of four calls, and of one; each begins with one that is not counted.
    assert (clock.calls.count("quick"), clock.calls.count("slow")) == (12 + 3, 3 + 3)
    numbers = {"environment": "Hopper-v5", "device": "cpu", "cases": [quick, slow]}
    assert "| slow | 10 | 500 | 500 to 500 | 10 |" in tables.latency_markdown(numbers)


def test_the_median_turn_counts(clock):
    durations = iter([0.0, 3.0, 0.0, 9.0, 0.0, 6.0])
    case = Case("transitions", "varying", 1, 1_000, lambda: clock.spend("", next(durations)))
    (found,) = time_cases([case], seconds=1.0, clock=clock)
    assert found["seconds_per_1000"] == pytest.approx(6.0)
    assert found["turns"] == pytest.approx([3.0, 9.0, 6.0])


def test_the_fast_planner_has_few_steps():
    published, fast = map(latency_cases.planner_settings, latency_cases.PLANNERS.values())
    assert (published["sampling_steps"], fast["sampling_steps"]) == (200, 3)
    assert published.keys() == fast.keys()


@pytest.mark.slow
def test_every_case_runs(config):
    config = schema.replace(config, {"world_model.diffusion_steps": 4, "agent": "bc"})
    short = {"horizon": 2, "diffusion_steps": 2, "sampling_steps": 1}
    cases = latency_cases.make_cases(config, planners={"short": short}, batches=(2,))
    generators = [spec.name for spec in METHODS if not spec.plans]
    assert {"dawm", "dwm", "joint", "one_step", "one_step_cloned"} <= set(generators)
    names = ["agent (bc)", "Decision Diffuser, short", *generators]
    assert [case.name for case in cases] == names
    assert np.shape(cases[0].call()) == np.shape(cases[1].call()) == (2, 3)
    for case in cases[2:]:
        rows, valid = case.call()
        assert np.size(valid) == case.units == 8 * config.horizon
        assert all(np.isfinite(leaf).all() for leaf in rows if leaf is not None)
