"""Curves and areas against hand computation."""

import dataclasses

import numpy as np
import pytest

from dawm_jax.robustness import report
from dawm_jax.robustness.curves import Curve, normalised_area
from dawm_jax.robustness.sweeps import Sweep

FACTORS = Sweep("gravity", (0.1, 0.5, 1.0, 1.1, 5.0), "factor of gravity")
NOISE = Sweep("action", (0.0, 0.1, 0.4), "action noise")


def curve(*models, sweep=NOISE):
    return Curve("data", "Task-v0", "method", sweep, None, tuple(map(np.asarray, models)))


@pytest.mark.parametrize("sweep", [FACTORS, NOISE])
def test_the_area_of_a_constant_is_the_constant(sweep):
    np.testing.assert_allclose(normalised_area(np.full(len(sweep.values), 7.0), sweep), 7.0)


def test_the_area_along_factors_is_the_mean_over_their_logarithm():
    """The integral of log x over log x from a to b, divided by the width, is the middle."""
    values = np.log(FACTORS.values)
    np.testing.assert_allclose(normalised_area(values, FACTORS), (values[0] + values[-1]) / 2)


def test_the_area_along_noise_is_the_trapezoidal_rule():
    # (10 + 6) / 2 * 0.1 + (6 + 0) / 2 * 0.3 = 0.8 + 0.9, over a width of 0.4.
    np.testing.assert_allclose(normalised_area(np.array([10.0, 6.0, 0.0]), NOISE), 1.7 / 0.4)


def test_a_value_on_the_line_between_its_neighbours_changes_no_area():
    wide = Sweep("action", (0.0, 0.4), "action noise")
    line = np.array([8.0, 6.0, 0.0])
    np.testing.assert_allclose(normalised_area(line, NOISE), normalised_area(line[[0, 2]], wide))


def test_seeds_are_pooled_and_resampled():
    one, other = [[10.0, 6.0, 0.0], [20.0, 8.0, 2.0]], [[30.0, 10.0, 4.0]]
    found = curve(one, other)
    assert found.num_seeds == 3
    np.testing.assert_allclose(found.mean, [20.0, 8.0, 2.0])
    np.testing.assert_allclose(found.area, (14 * 0.1 + 5 * 0.3) / 0.4)
    np.testing.assert_allclose(found.kept, found.area / 20.0)
    low, high = found.band
    # Two world models: a sample that draws one twice is the end of the interval.
    assert (low >= [10.0, 6.0, 0.0]).all() and (high <= [30.0, 10.0, 4.0]).all()
    assert (low < found.mean).all() and (found.mean < high).all()
    assert found.area_interval[0] < found.area < found.area_interval[1]


def test_one_seed_has_no_interval_and_a_negative_return_no_share():
    found = curve([[-10.0, -20.0, -30.0]])
    assert found.band is None and found.area_interval is None
    assert found.kept is None


def test_the_overview_has_a_row_for_each_change_and_a_column_for_each_method():
    other = dataclasses.replace(curve([[4.0, 2.0, 0.0]]), method="other")
    along = [curve([[10.0, 6.0, 0.0]]), curve([[-1.0] * 5], sweep=FACTORS)]
    curves = [*along, other, dataclasses.replace(other, sweep=FACTORS, models=(np.ones((2, 5)),))]
    header, _, *rows = report.overview(curves).splitlines()
    assert header == "| change | method | other |"
    # Areas by hand: 1.7 / 0.4 = 4.25, 0.6 / 0.4 = 1.5; kept 4.25 / 10 and 1.5 / 4.
    assert rows[0] == "| action noise | 4 (42 %) | 2 (38 %) |"
    assert rows[1] == "| factor of gravity | -1 (n/a) | 1 (n/a; 100 %) |"
