"""Summaries over seeds and tasks against loops and SciPy."""

import numpy as np
import pytest
import scipy.stats

from dawm_jax.report import statistics


def make_scores(seed, sizes=(8, 8, 12)):
    rng = np.random.default_rng(seed)
    return [rng.normal(10.0 * task, 3.0, size) for task, size in enumerate(sizes)]


def test_average_weighs_tasks_equally():
    assert statistics.average([np.array([1.0, 3.0]), np.array([10.0])]) == 6.0


def test_interquartile_mean_is_that_of_the_middle_half():
    scores = make_scores(0)
    everything = sorted(x for task in scores for x in task)
    quarter = len(everything) // 4
    expected = np.mean(everything[quarter:-quarter])
    np.testing.assert_allclose(statistics.interquartile_mean(scores), expected)


def test_probability_of_improvement_equals_mann_whitney():
    mine, others = make_scores(0), [task + 1.0 for task in make_scores(1, (5, 9, 8))]
    expected = [
        scipy.stats.mannwhitneyu(x, y).statistic / (len(x) * len(y))
        for x, y in zip(mine, others, strict=True)
    ]
    found = statistics.probability_of_improvement(mine, others)
    np.testing.assert_allclose(found, np.mean(expected))
    assert statistics.probability_of_improvement(mine, mine) == 0.5  # ties count half


def test_bootstrap_of_one_tasks_mean_equals_scipy():
    scores = [np.random.default_rng(2).normal(size=30)]
    low, high = statistics.bootstrap_interval(statistics.average, scores, repeats=4_000)
    expected = scipy.stats.bootstrap(
        (scores[0],), np.mean, n_resamples=4_000, method="percentile", random_state=1
    ).confidence_interval
    # Two bootstraps of 4,000 draws differ by a few hundredths of the interval.
    np.testing.assert_allclose([low, high], [expected.low, expected.high], atol=0.05)


def test_bootstrap_is_stratified():
    """Between constant tasks nothing varies, however far apart they are."""
    scores = [np.full(3, 0.0), np.full(3, 100.0)]
    assert statistics.bootstrap_interval(statistics.average, scores) == (50.0, 50.0)


@pytest.mark.parametrize("methods", [1, 2])
def test_one_seed_has_no_interval(methods):
    scores = [[np.array([1.0, 2.0]), np.array([3.0])]] * methods
    assert statistics.bootstrap_interval(lambda *all_scores: 0.0, *scores) is None


def test_gain_is_that_of_the_averages():
    mine, others = [np.array([30.0, 50.0]), np.array([20.0])], [np.array([10.0]), np.array([30.0])]
    np.testing.assert_allclose(statistics.gain(mine, others), 50.0)
    assert np.isnan(statistics.gain(mine, [np.array([-1.0]), np.array([1.0])]))


def test_a_statistic_without_a_value_has_no_interval():
    scores = [np.array([-1.0, 2.0, 3.0])]
    assert statistics.bootstrap_interval(statistics.gain, scores, scores) is None


def test_an_interval_without_width_is_degenerate():
    mine, others = [np.array([1.0, 2.0])], [np.array([3.0, 4.0])]
    probability = statistics.probability_of_improvement
    interval = statistics.bootstrap_interval(probability, mine, others)
    assert statistics.is_degenerate(interval)
    assert not statistics.is_degenerate((0.0, 0.1))
