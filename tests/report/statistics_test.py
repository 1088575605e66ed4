"""Summaries over seeds and tasks against loops and SciPy."""

import itertools

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
    low, high = statistics.bootstrap_band(statistics.average, [scores], repeats=4_000)
    expected = scipy.stats.bootstrap(
        (scores[0],), np.mean, n_resamples=4_000, method="percentile", random_state=1
    ).confidence_interval
    # Two bootstraps of 4,000 draws differ by a few hundredths of the interval.
    np.testing.assert_allclose([low, high], [expected.low, expected.high], atol=0.05)


def test_bootstrap_is_stratified():
    """Between constant tasks nothing varies, however far apart they are."""
    scores = [[np.full(3, 0.0)], [np.full(3, 100.0)]]
    assert statistics.bootstrap_interval(statistics.average, scores) == (50.0, 50.0)


@pytest.mark.parametrize("methods", [1, 2])
def test_one_seed_has_no_interval(methods):
    scores = [[[np.array([1.0, 2.0])], [np.array([3.0])]]] * methods
    assert statistics.bootstrap_interval(lambda *all_scores: 0.0, *scores) is None


def test_gain_is_that_of_the_averages():
    mine, others = [np.array([30.0, 50.0]), np.array([20.0])], [np.array([10.0]), np.array([30.0])]
    np.testing.assert_allclose(statistics.gain(mine, others), 50.0)
    assert np.isnan(statistics.gain(mine, [np.array([-1.0]), np.array([1.0])]))


def test_a_statistic_without_a_value_has_no_interval():
    scores = [[np.array([-1.0, 2.0, 3.0])]]
    assert statistics.bootstrap_interval(statistics.gain, scores, scores) is None


def test_an_interval_without_width_is_degenerate():
    mine, others = [[np.array([1.0, 2.0])]], [[np.array([3.0, 4.0])]]
    probability = statistics.probability_of_improvement
    interval = statistics.bootstrap_interval(probability, mine, others)
    assert statistics.is_degenerate(interval)
    assert not statistics.is_degenerate((0.0, 0.1))


# --- world models, tasks and curves -------------------------------------------------------


def test_bootstrap_over_world_models_equals_the_sum_over_all_samples():
    """Two world models of two seeds: all samples can be counted."""
    models = [np.array([0.0, 1.0]), np.array([10.0, 13.0])]
    weights: dict[float, float] = {}
    for chosen in itertools.product(models, repeat=2):
        for draws in itertools.product(*(itertools.product(m, repeat=2) for m in chosen)):
            mean = float(np.mean(draws))
            weights[mean] = weights.get(mean, 0.0) + 1 / 64
    assert sum(weights.values()) == 1.0
    found = _samples(statistics.average, [models], repeats=20_000)
    for mean, weight in weights.items():
        np.testing.assert_allclose(np.mean(np.isclose(found, mean)), weight, atol=0.012)
    low, high = statistics.bootstrap_band(statistics.average, [models], repeats=20_000)
    np.testing.assert_allclose([low, high], np.percentile(found, [2.5, 97.5]))


def _samples(statistic, *methods, **options):
    """The statistic of every bootstrap sample."""
    found = []

    def recording(*scores):
        found.append(statistic(*scores))
        return found[-1]

    statistics.bootstrap_band(recording, *methods, **options)
    return np.array(found)


def test_the_variance_over_world_models_is_that_of_the_closed_form():
    """Of the mean: (n - 1) / n of the variance between models, over n, and that within them."""
    models = list(np.random.default_rng(0).normal(size=(4, 6)) + 5 * np.arange(4)[:, None])
    means, within = np.mean(models, axis=1), np.var(models, axis=1)
    expected = means.var() / 4 + within.mean() / (4 * 6)
    nested = _samples(statistics.average, [models], repeats=20_000).var()
    np.testing.assert_allclose(nested, expected, rtol=0.05)
    flat = _samples(statistics.average, [[np.concatenate(models)]], repeats=2_000).var()
    assert nested > 3 * flat


def test_both_methods_are_scored_on_the_same_drawn_tasks():
    """The methods differ by 1 on each task, whichever tasks are drawn."""
    mine = [[np.full(2, 10.0 * task)] for task in range(5)]
    others = [[task[0] - 1.0] for task in mine]
    difference = lambda x, y: statistics.average(x) - statistics.average(y)
    draw = {"resample_tasks": True}
    assert statistics.bootstrap_interval(difference, mine, others, **draw) == (1.0, 1.0)
    samples = _samples(statistics.average, mine, repeats=20_000, **draw)
    np.testing.assert_allclose(samples.var(), np.var([0, 10, 20, 30, 40]) / 5, rtol=0.05)


def test_interval_of_a_mean():
    values = np.array([1.0, 2.0, 4.0])
    expected = scipy.stats.t.interval(0.95, 2, values.mean(), scipy.stats.sem(values))
    np.testing.assert_allclose(statistics.mean_interval([values]), expected)
    assert statistics.mean_interval([values[:1]]) is None
    one_seed_each = statistics.mean_interval([values[:1], values[1:2]])
    assert one_seed_each == (1.0, 2.0)


def test_performance_profile_is_the_share_of_runs_above():
    """Tasks weigh alike, and a run at the threshold is not above it."""
    scores, thresholds = [np.array([1.0, 3.0, 3.0]), np.array([2.0])], np.array([0.0, 2.0, 3.0])
    found = statistics.performance_profile(scores, thresholds)
    np.testing.assert_allclose(found, [1.0, (2 / 3 + 0) / 2, 0.0])


def test_band_of_a_learning_curve_is_the_interval_of_each_evaluation():
    curves = np.random.default_rng(1).normal(size=(5, 3))
    low, high = statistics.bootstrap_band(statistics.learning_curve, [[curves]])
    for index in range(3):
        alone = statistics.bootstrap_interval(statistics.average, [[curves[:, index]]])
        np.testing.assert_allclose((low[index], high[index]), alone)
