"""Turns with a fake clock, memory of a known size, and a main program that cannot start."""

import functools

import numpy as np
import pytest

from dawm_jax.benchmark import measure
from dawm_jax.benchmark.measure import Candidate
from dawm_jax.types import UserError


def test_rates_by_hand_in_rotating_turns(clock):
    candidates = [
        Candidate("a", lambda: clock.spend("a", 0.5), 10),
        Candidate("b", lambda: clock.spend("b", 2.0), 10),
    ]
    reported = []
    rates = measure.in_turns(
        candidates,
        rounds=2,
        seconds=1.0,
        clock=clock,
        report=lambda *result: reported.append(result),
    )
    assert rates == {"a": [20.0, 20.0], "b": [5.0, 5.0]}
    # A turn is one call that is not counted, then as many as one second holds.
    assert clock.calls == ["a", "a", "a", "b", "b", "b", "b", "a", "a", "a"]
    assert reported == [(1, "a", 20.0), (2, "b", 5.0), (3, "b", 5.0), (4, "a", 20.0)]


def test_summary():
    found = measure.summary([3.0, 1.0, 2.0])
    assert (found["median"], found["low"], found["high"]) == (2.0, 1.0, 3.0)
    assert found["rounds"] == [3.0, 1.0, 2.0]


@pytest.mark.parametrize("seconds", [-1.0, 601.0, float("nan"), float("inf")])
def test_impossible_seconds_are_refused(seconds):
    with pytest.raises(ValueError, match="--seconds: expected 0 to 600"):
        measure.check_seconds(seconds)


def _hold(megabytes):
    def work():
        held = np.ones(megabytes * 2**17)  # writes every page
        return float(held[0])

    return measure.watch_memory(work)


def test_peak_memory_is_what_the_work_holds():
    found = measure.peak_memory(functools.partial(_hold, 300))
    assert found["device"] == 1.0
    assert 295 * 2**20 < found["host"] < 400 * 2**20


def test_a_program_that_cannot_start_is_reported():
    with pytest.raises(UserError, match=r"failed: .*--config: .*nowhere"):
        measure.seconds_to_first_step("--config=nowhere")
