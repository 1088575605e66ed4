"""Scores by hand, intervals by SciPy."""

import numpy as np
import pytest
from scipy import stats

from dawm_jax.envs import scores


@pytest.mark.parametrize(
    ("environment", "low", "high"),
    # D4RL's infos.py, REF_MIN_SCORE and REF_MAX_SCORE.
    [
        ("Hopper-v5", -20.272305, 3234.3),
        ("HalfCheetah-v5", -280.178953, 12135.0),
        ("Walker2d-v4", 1.629008, 4592.3),
        ("Ant-v5", -325.6, 3879.7),
    ],
)
def test_normalised_score_ends_at_d4rls_references(environment, low, high):
    returns = np.array([low, high, (low + high) / 2])
    # Doubles of a few thousand: absolute rounding of 1e-12, a hundred of them is 1e-10.
    np.testing.assert_allclose(
        scores.normalised_score(environment, returns), [0.0, 100.0, 50.0], atol=1e-10
    )


def test_normalised_score_by_hand():
    # 100 * (1500 + 20.272305) / (3234.3 + 20.272305)
    score = scores.normalised_score("Hopper-v5", np.array([[1500.0]]))
    np.testing.assert_allclose(score, [[46.711892148]], rtol=1e-10)


def test_no_score_without_references():
    for other in ("Pendulum-v1", "HopperLike-v0", "Hopper-Custom-v0", "other/Hopper-v5"):
        assert scores.normalised_score(other, np.zeros(3)) is None
        assert scores.reference_returns(other) is None


@pytest.mark.parametrize("count", [2, 5, 30])
def test_confidence_interval_is_scipys(count):
    values = np.random.default_rng(count).normal(50.0, 10.0, count)
    expected = stats.t.interval(
        0.95, df=count - 1, loc=values.mean(), scale=stats.sem(values, ddof=1)
    )
    np.testing.assert_allclose(scores.confidence_interval(values), expected, rtol=1e-12)


def test_no_interval_from_one_seed():
    assert scores.confidence_interval(np.array([3.0])) is None


def test_the_mean_height_is_the_area_divided_by_its_width():
    """The trapezoidal rule by hand, and exact on straight lines whatever the positions."""
    values = np.array([[1.0, 0.0], [3.0, 4.0], [5.0, 2.0]])
    found = scores.mean_height(values, np.array([0.0, 1.0, 4.0]))
    np.testing.assert_allclose(found, [(2.0 + 12.0) / 4.0, (2.0 + 9.0) / 4.0])
    at = np.sort(np.random.default_rng(0).uniform(size=9))
    line = 3.0 - 2.0 * at
    np.testing.assert_allclose(scores.mean_height(line, at), (line[0] + line[-1]) / 2)
    np.testing.assert_array_equal(scores.mean_height(values[:1], np.array([7.0])), values[0])
