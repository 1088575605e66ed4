"""The metrics against SciPy, NumPy and windows worked out by hand."""

import numpy as np
import pytest
from scipy import spatial, stats

from dawm_jax.quality import metrics
from dawm_jax.quality.types import (
    LinearFit,
    PrecisionRecall,
    SummaryByStep,
    TerminationTiming,
)
from dawm_jax.quality.windows import Steps


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def make_steps(rng, size=200):
    observation, next_observation = rng.normal(3.0, 2.0, (2, size, 4))
    reward = rng.normal(-1.0, 0.5, size)
    return Steps(observation, rng.uniform(-1, 1, (size, 2)), reward, reward > 0, next_observation)


def test_columns_of_the_fitted_data_are_standardised(rng):
    data = make_steps(rng)
    data.observation[:, 1] = 7.0  # a constant dimension stays finite
    scales = metrics.fit_scales(data.observation, data.action, data.reward)
    table = metrics.columns(data, scales)
    assert table.shape == (200, 4 + 2 + 1 + 4)
    np.testing.assert_allclose(table[:, :7].mean(0), 0.0, atol=1e-9)
    np.testing.assert_allclose(table[:, [0, 2, 3, 4, 5, 6]].std(0), 1.0, rtol=5e-3)
    np.testing.assert_array_equal(table[:, 1], 0.0)
    # Successors are in the observations' units.
    expected = (data.next_observation[:, 0] - data.observation[:, 0].mean()) / (
        data.observation[:, 0].std() + 1e-3
    )
    np.testing.assert_allclose(table[:, 7], expected)


def test_scales_are_standard_deviations_and_1_for_constants(rng):
    values = np.concatenate([rng.normal(3.0, 2.0, (50, 2)), np.full((50, 1), 7.0)], axis=1)
    scales = metrics.fit_scales(values, values[:, :1], values[:, 2])
    expected = [*(values[:, :2].std(0) + 1e-3), 1.0]
    np.testing.assert_allclose(scales.observation_std, expected)
    np.testing.assert_allclose(scales.observation_mean, values.mean(0))
    assert scales.reward_std == 1.0


def test_clipped_rows_are_those_at_a_repeated_bound(rng):
    values = rng.normal(size=(500, 3))
    cut = np.clip(values, [-1.0, -np.inf, -np.inf], [np.inf, 1.5, np.inf])
    cut = np.concatenate([cut, np.full((500, 1), 2.0)], axis=1)  # a constant is not cut
    expected = (values[:, 0] < -1.0) | (values[:, 1] > 1.5)
    np.testing.assert_array_equal(metrics.clipped(cut), expected)
    assert not metrics.clipped(values).any()


def test_errors_are_in_units_of_the_standard_deviation():
    scales = metrics.Scales(np.zeros(2), np.array([1.0, 4.0]), np.zeros(1), np.ones(1), 0.0, 2.0)
    found = metrics.dynamics_error(np.array([[1.0, 2.0]]), np.array([[3.0, 10.0]]), scales)
    np.testing.assert_allclose(found, [(2.0**2 + 2.0**2) / 2])
    np.testing.assert_allclose(metrics.reward_error(np.array([5.0]), np.array([1.0]), scales), 4.0)


def test_steps_are_averaged_over_the_windows_that_reach_them():
    values = np.array([[1.0, 10.0], [3.0, 20.0], [8.0, 99.0]])
    valid = np.array([[True, True], [True, True], [True, False]])
    assert metrics.by_step(values, valid) == SummaryByStep((4.0, 15.0), (3.0, 15.0))
    nobody = metrics.by_step(values, valid & [True, False])
    assert nobody == SummaryByStep((4.0, None), (3.0, None))


def test_ks_is_scipys(rng):
    first, second = rng.normal(size=(300, 3)), rng.normal(0.3, 1.2, (170, 3))
    first[:60, 2] = second[:50, 2] = 1.0  # ties, within and between
    expected = [stats.ks_2samp(x, y).statistic for x, y in zip(first.T, second.T, strict=True)]
    np.testing.assert_allclose(metrics.ks_statistics(first, second), expected, rtol=1e-12)
    np.testing.assert_array_equal(metrics.ks_statistics(first, first), 0.0)
    np.testing.assert_array_equal(metrics.ks_statistics(first, first + 100), 1.0)


def test_correlation_similarity_is_numpys(rng):
    first = rng.normal(size=(400, 4)) @ rng.normal(size=(4, 4))
    second = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4))
    difference = np.corrcoef(first.T) - np.corrcoef(second.T)
    pairs = [abs(difference[i, j]) for i in range(4) for j in range(i)]
    expected = 1.0 - np.mean(pairs) / 2.0
    assert metrics.correlation_similarity(first, second) == pytest.approx(expected)
    assert metrics.correlation_similarity(first, first * 3 + 1) == pytest.approx(1.0)
    # Opposite: every pair is off by 2.
    line = np.stack([first[:, 0], first[:, 0]], axis=1)
    assert metrics.correlation_similarity(line, line * [1, -1]) == pytest.approx(0.0)


def test_a_constant_column_correlates_with_nothing(rng):
    first, second = rng.normal(size=(2, 50, 3))
    first[:, 0] = second[:, 0] = 4.0
    assert np.isfinite(metrics.correlation_similarity(first, second))
    assert metrics.correlation_similarity(first, first) == pytest.approx(1.0)


def _auc(mine, others):
    return stats.mannwhitneyu(mine, others).statistic / (len(mine) * len(others))


def test_the_discriminator_finds_what_gaussians_differ_in(rng):
    """The best score is the ratio of likelihoods; of a shift d its AUC is Phi(d / sqrt(2))."""
    first, second = rng.normal(size=(2, 6_000, 5))
    found = lambda first: metrics.two_sample_auc(first, second, state_size=2, num_keys=1).mean
    assert found(first) == pytest.approx(0.5, abs=0.03)
    first[:, 2] += 1.0
    assert found(first) == pytest.approx(stats.norm.cdf(1 / np.sqrt(2)), abs=0.03)
    assert found(first + 50.0) > 0.999


def test_the_discriminator_sees_what_no_column_shows(rng):
    """Equal columns, other steps: s' follows s in one table and not in the other."""
    first, second = rng.normal(size=(2, 6_000, 3))
    mix = np.sqrt(1 - 0.8**2)
    first[:, 2] = 0.8 * first[:, 0] + mix * first[:, 2]
    ratio = lambda x: np.log(
        stats.norm.pdf(x[:, 2], 0.8 * x[:, 0], mix) / stats.norm.pdf(x[:, 2], 0.0, 1.0)
    )
    best = _auc(ratio(first), ratio(second))
    assert best > 0.7
    found = metrics.two_sample_auc(first, second, state_size=1, num_keys=1)
    assert found.mean == pytest.approx(best, abs=0.03)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_discriminator_of_few_rows(rng, size):
    first, second = rng.normal(size=(2, size, 3))
    found = metrics.two_sample_auc(first, second, state_size=1, num_keys=1)
    assert 0.0 <= min(found.by_key) <= max(found.by_key) <= 1.0


def test_the_area_has_a_mean_and_a_spread_over_keys(rng):
    first, second = rng.normal(size=(2, 90, 3))
    found = metrics.two_sample_auc(first, second, state_size=1, num_keys=2)
    assert len(set(found.by_key)) == 2
    assert found.mean == pytest.approx(np.mean(found.by_key))
    assert found.std == pytest.approx(np.std(found.by_key, ddof=1))
    # A key gives the same fit in every call, whatever the number of keys.
    one = metrics.two_sample_auc(first, second, state_size=1, num_keys=1)
    assert (one.by_key, one.mean, one.std) == (found.by_key[:1], found.by_key[0], None)


def test_the_area_of_separate_tables_has_no_spread(rng):
    """Every fit separates them completely, so that all areas are 1."""
    first, second = rng.normal(size=(2, 90, 3))
    found = metrics.two_sample_auc(first + 50.0, second, state_size=1, num_keys=2)
    assert (found.mean, found.std) == (1.0, 0.0)


def test_the_area_of_equal_rows_is_a_half():
    """All scores are ties, whatever the fit."""
    table = np.ones((30, 3))
    found = metrics.two_sample_auc(table, table, state_size=1, num_keys=2)
    assert (found.mean, found.std) == (0.5, 0.0)


@pytest.mark.parametrize("size", [1, 64, 150])
def test_nearest_distance_is_a_trees(rng, size):
    points, queries = rng.normal(size=(500, 14)), rng.normal(size=(size, 14))
    expected, _ = spatial.cKDTree(points).query(queries)
    found = metrics.nearest_distances(queries, points, chunk=64)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_nearly_equal_points_far_from_the_origin_keep_their_distance(rng):
    points = rng.normal(size=(50, 3)) + 10.0
    moved = points[:5] + np.array([[1e-4, 0.0, 0.0]])
    np.testing.assert_allclose(metrics.nearest_distances(points[:5], points), 0.0, atol=1e-12)
    # A sum that cancels would be off by 1e-2 here.
    np.testing.assert_allclose(metrics.nearest_distances(moved, points), 1e-4, rtol=0.02)


def test_precision_and_recall():
    claimed = np.array([1, 1, 1, 0, 0, 0], bool)
    truth = np.array([1, 0, 0, 1, 0, 0], bool)
    found = metrics.precision_recall(claimed, truth)
    assert found == PrecisionRecall(3, 2, precision=pytest.approx(1 / 3), recall=0.5)
    none = metrics.precision_recall(np.zeros(3, bool), np.zeros(3, bool))
    assert none == PrecisionRecall(0, 0, precision=None, recall=None)


def ends(*steps):
    """Windows of five steps that are marked from a step on; None is never marked."""
    return np.array([[step is not None and k >= step for k in range(5)] for step in steps])


def test_termination_timing_of_windows_made_by_hand():
    truth = ends(1, 1, 3, 2, 4, None, None)
    claimed = ends(1, 3, 4, 0, None, 2, None)
    assert metrics.termination_timing(claimed, truth) == TerminationTiming(
        windows=7, steps_late={-2: 1, 0: 1, 1: 1, 2: 1}, mean_late=0.25, missed=1, false=1
    )
    nothing = metrics.termination_timing(ends(None), ends(None))
    assert nothing == TerminationTiming(1, {}, None, 0, 0)


def test_steps_until_the_first_end():
    expected = [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    np.testing.assert_array_equal(metrics.until_first(ends(2, None, 0)), np.array(expected, bool))


def test_discounted_returns_skip_what_is_not_valid():
    rewards = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    valid = np.array([[1, 1, 1], [1, 1, 0]], bool)
    found = metrics.discounted_returns(rewards, valid, 0.5)
    np.testing.assert_allclose(found, [1 + 1 + 1, 1 + 1])


def test_the_linear_fit_is_numpys(rng):
    x = rng.normal(5.0, 2.0, 100)
    y = -0.7 * x + rng.normal(size=100)
    found = metrics.linear_fit(x, y)
    assert found.slope == pytest.approx(np.polyfit(x, y, 1)[0])
    assert found.correlation == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert metrics.linear_fit(np.ones(5), x[:5]) == LinearFit(None, None)
    assert metrics.linear_fit(x, np.ones(100)) == LinearFit(None, 0.0)
