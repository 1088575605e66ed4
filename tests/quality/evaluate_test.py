"""Evaluations whose results are known, against a few hundred real simulator steps."""

import dataclasses

import jax
import numpy as np
import pytest

from dawm_jax.quality.evaluate import (
    calibrate,
    evaluate_run,
    evaluate_windows,
    generate_windows,
)
from dawm_jax.quality.windows import Windows, dataset_steps, dataset_windows
from dawm_jax.types import UserError


def test_errors_grow_by_the_noise_that_is_added(hopper, reference):
    rng = np.random.default_rng(0)
    unclipped = (np.abs(hopper.observations) < 10.0).all(1)
    rows = dataset_steps(hopper, np.flatnonzero(unclipped)[:, None])
    valid = np.ones(rows.reward.shape, bool)
    for noise in (0.1, 0.3):
        draw = lambda like, noise=noise: noise * rng.normal(size=like.shape)
        noisy = rows._replace(
            next_observation=rows.next_observation
            + draw(rows.next_observation) * reference.scales.observation_std,
            reward=rows.reward + draw(rows.reward) * reference.scales.reward_std,
        )
        found = evaluate_windows(Windows(noisy, valid), reference).measures.simulator
        assert found.dynamics.all_steps.mean == pytest.approx(noise**2, rel=0.1)
        assert found.reward.all_steps.mean == pytest.approx(noise**2, rel=0.2)


def test_without_a_simulator_the_rest_is_measured(hopper, prepared):
    reference = prepared(hopper, "Pendulum-v1")
    assert reference.margin_scale is None
    assert "no simulator measures" in reference.notes[0]
    assert reference.measures.simulator is None
    windows = dataset_windows(hopper, limit=100, seed=0)
    found = evaluate_windows(windows, reference).measures
    assert found.simulator is None
    assert found.distribution.ks.mean < 0.3


def test_the_data_are_like_themselves(hopper, reference):
    windows = dataset_windows(hopper, limit=10**6, seed=0)
    found = evaluate_windows(windows, reference).measures
    assert found.windows is None and found.simulator.dynamics.by_step is None
    assert found.transitions == found.generated == len(hopper)
    assert found.distribution.ks.mean < 0.05
    assert found.distribution.correlation_similarity > 0.98
    assert found.distances.q50 == 0.0 < reference.measures.distances.q50
    change = (hopper.next_observations - hopper.observations) / reference.scales.observation_std
    assert found.step_size == pytest.approx(np.square(change).mean(), rel=1e-3)
    assert reference.measures.step_size == pytest.approx(found.step_size, rel=0.05)
    assert found.termination_rate == pytest.approx(hopper.terminations.mean())
    assert found.simulator.termination.recall == found.simulator.termination.precision == 1.0


def test_windows_of_their_real_steps_alone_are_refused(reference, hopper):
    rows = dataset_steps(hopper, np.arange(3)[:, None] + np.arange(4)[None])
    first = np.eye(4, dtype=bool)[[0] * 3]
    with pytest.raises(UserError, match="every window ends at its first step"):
        evaluate_windows(Windows(rows, first), reference)


def test_late_terminations_are_found(reference, hopper):
    """Windows around real falls, whose flags are moved one step later."""
    falls = np.flatnonzero(hopper.terminations)
    falls = falls[falls >= 3]
    real = dataset_steps(hopper, falls[:, None] + np.arange(-3, 1)[None])
    # After the fall the simulator continues from a fallen state.
    longer = jax.tree.map(lambda x: np.concatenate([x, x[:, -1:]], axis=1), real)
    late = longer._replace(terminated=np.eye(5, dtype=bool)[[4] * len(falls)])
    windows = Windows(late, np.ones((len(falls), 5), bool))
    found = evaluate_windows(windows, reference).measures.simulator
    assert found.termination.recall == 0.0
    assert found.timing.steps_late == {1: len(falls)}
    assert (found.timing.on_time, found.timing.late, found.timing.early) == (0, len(falls), 0)
    # Steps after the first true termination are not compared.
    assert found.termination_near_end.claimed == found.termination.claimed == 0


def test_a_run_that_repeats_its_data(hopper, reference, report):
    found = report.synthetic
    assert found.windows == 300
    assert found.simulator.dynamics.all_steps.median < 1e-10
    assert found.distribution.ks.mean < 0.1
    assert found.distances.q50 == 0.0 == found.novelty
    # Its windows end when the data end, and so does the simulator.
    near_end = found.simulator.termination_near_end
    assert near_end.recall == near_end.precision == 1.0
    assert near_end.true == found.simulator.timing.windows
    assert set(found.simulator.timing.steps_late) == {0}
    calibration = found.calibration
    assert calibration.generated_mean == pytest.approx(1.1 * calibration.real_mean, rel=1e-5)
    assert calibration.generated_on_real.slope == pytest.approx(1.1, rel=1e-4)
    assert calibration.target_mean == pytest.approx(calibration.own_mean, rel=1e-5)
    inverse = found.inverse_dynamics
    np.testing.assert_allclose(inverse.mse, 0.01, rtol=1e-4)
    np.testing.assert_allclose(
        inverse.mean_action_mse, hopper.actions[reference.held_out].var(0), rtol=1e-5
    )
    # Wrong actions lead elsewhere.
    dynamics = found.simulator.dynamics
    assert inverse.simulator.real_pairs.median > 100 * dynamics.all_steps.median
    assert inverse.simulator.first_step.mean == dynamics.by_step.mean[0]
    assert inverse.simulator.later_steps == dynamics.later_steps


def test_windows_do_not_depend_on_the_size_of_a_call(hopper, run_on):
    """Windows have the order of their starts, also from a last call that is not full."""
    starts = np.array([5, 90, 17, 44, 100])
    returns = np.arange(5.0)
    whole, parts = (
        generate_windows(
            run_on(hopper), hopper, starts, returns, jax.random.key(0), windows_per_call=size
        )
        for size in (5, 2)
    )
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    np.testing.assert_array_equal(parts.steps.observation[:, 0], hopper.observations[starts])


def test_generation_gets_the_returns_to_go_of_its_starts(hopper, run_on):
    asked = []

    def generate(key, observation, action, return_to_go):
        asked.append(return_to_go)
        return run_on(hopper).generate(key, observation, action, return_to_go)

    run = run_on(hopper, generate=generate)
    starts, returns = np.array([3, 1, 2]), np.array([30.0, 10.0, 20.0])
    generate_windows(run, hopper, starts, returns, jax.random.key(0), windows_per_call=2)
    # The second call is filled up with the first start.
    np.testing.assert_array_equal(asked, [[30.0, 10.0], [20.0, 30.0]])


def test_targets_are_the_discounted_returns_of_the_starts(hopper, run_on):
    run, ends = run_on(hopper), hopper.episode_ends
    starts = np.array([0, ends[0] + 1])
    rewards = hopper.rewards.astype(np.float64)
    expected = [
        (rewards[a : b + 1] * 0.99 ** np.arange(b + 1 - a)).sum()
        for a, b in zip(starts, ends[:2], strict=True)
    ]
    steps = dataset_steps(hopper, starts[:, None] + np.arange(4)[None])
    _, returns = calibrate(run, hopper, starts, Windows(steps, np.ones((2, 4), bool)))
    np.testing.assert_allclose(returns.target, expected, rtol=1e-12)


def test_a_cut_window_has_no_known_return(dataset_of, run_on):
    """An episode of three steps that is cut, one that ends, one of six steps that is cut."""
    size = 3 + 3 + 6
    ends = np.isin(np.arange(size), [2, 5, 11])
    terminated = np.arange(size) == 5
    zeros = np.zeros((size, 11))
    dataset = dataset_of(zeros, zeros[:, :3], np.ones(size), terminated, zeros, ends & ~terminated)
    starts = np.array([0, 3, 6, 7, 8, 9])
    run = run_on(dataset, target_return=lambda return_to_go: np.arange(6.0))
    windows = Windows(dataset_steps(dataset, np.zeros((6, 4), int)), np.ones((6, 4), bool))
    found, returns = calibrate(run, dataset, starts, windows)
    assert found.windows == 4
    np.testing.assert_array_equal(returns.target, [1, 2, 3, 4])
    np.testing.assert_allclose(returns.real[0], 1 + 0.99 + 0.99**2)


def test_the_same_seed_gives_the_same_measures(hopper, reference, run_on):
    measure = lambda seed: (
        evaluate_run(run_on(hopper), reference, num_windows=20, seed=seed).measures
    )
    first = measure(3)
    assert dataclasses.asdict(first) == dataclasses.asdict(measure(3))
    assert first.mean_reward != measure(4).mean_reward
