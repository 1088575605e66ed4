"""The timing of decisions and generation: arithmetic with a fake clock, and every case once."""

import numpy as np
import pytest

from configs import common
from dawm_jax.benchmark import latency_cases as speed
from dawm_jax.benchmark.latency_cases import Case, time_cases


class Clock:
    """Moves only when a call says so."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def spend(self, seconds):
        self.now += seconds
        self.calls.append(seconds)


def test_seconds_per_thousand_by_hand():
    clock = Clock()
    cases = [
        Case("decisions", "quick", 10, 10, lambda: clock.spend(0.5)),
        Case("decisions", "slow", 10, 10, lambda: clock.spend(5.0)),
    ]
    quick, slow = time_cases(cases, seconds=2.0, clock=clock)
    np.testing.assert_allclose(quick["seconds_per_1000"], 50.0)
    np.testing.assert_allclose(slow["seconds_per_1000"], 500.0)
    np.testing.assert_allclose(slow["turns"], [500.0] * 3)
    # Three turns of four calls, and of one; each begins with one that is not counted.
    assert (clock.calls.count(0.5), clock.calls.count(5.0)) == (12 + 3, 3 + 3)
    numbers = {"environment": "Hopper-v5", "device": "cpu", "cases": [quick, slow]}
    assert "| slow | 10 | 500 | 10 |" in speed.markdown(numbers)


def test_the_median_turn_counts():
    clock, durations = Clock(), iter([0.0, 3.0, 0.0, 9.0, 0.0, 6.0])
    case = Case("transitions", "varying", 1, 1_000, lambda: clock.spend(next(durations)))
    (found,) = time_cases([case], seconds=1.0, clock=clock)
    assert found["seconds_per_1000"] == pytest.approx(6.0)
    assert found["turns"] == pytest.approx([3.0, 9.0, 6.0])


def test_planners_are_those_of_the_configuration():
    for name, variant in (("as published", ""), ("fast", "fast-planner")):
        settings = speed.PLANNERS[f"Decision Diffuser, {name}"]
        planner = common.get_config(variant).planner
        assert settings == {field: planner[field] for field in settings}


@pytest.mark.slow
def test_every_case_runs(monkeypatch):
    config = common.get_config("smoke")
    config.world_model.update(multipliers=(1,), groups=4, diffusion_steps=4)
    short = {"horizon": 2, "diffusion_steps": 2, "sampling_steps": 1}
    monkeypatch.setattr(speed, "PLANNERS", {"planner": short})
    monkeypatch.setattr(speed, "_BATCHES", (2,))
    cases = speed.make_cases(config)
    assert [case.name for case in cases] == [
        "agent (td3_bc)",
        "planner",
        *speed.GENERATORS,
    ]
    assert np.shape(cases[0].call()) == np.shape(cases[1].call()) == (2, 3)
    for case in cases[2:]:
        rows, valid = case.call()
        assert np.size(valid) == case.units == 8 * config.horizon
        assert all(np.isfinite(leaf).all() for leaf in rows)
