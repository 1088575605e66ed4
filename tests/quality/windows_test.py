"""Windows of a dataset: their rows, their masks, their samples."""

import numpy as np

from dawm_jax.quality.windows import (
    Windows,
    dataset_steps,
    dataset_windows,
    real_window_rows,
    rows_before_terminations,
)


def test_short_episodes_are_windows(rollouts):
    dataset = rollouts("Hopper-v5", 60, limit=5)
    windows = dataset_windows(dataset, limit=10**6, seed=0)
    assert windows.valid.shape == (len(dataset.episode_ends), 5)
    assert windows.valid.sum() == len(dataset)
    np.testing.assert_array_equal(windows.rows(windows.valid).reward, dataset.rewards)
    assert windows.generated.sum() == len(dataset) - len(dataset.episode_ends)
    assert len(dataset_windows(dataset, limit=15, seed=0).valid) == 3


def test_long_episodes_are_single_steps(hopper):
    windows = dataset_windows(hopper, limit=100, seed=0)
    assert windows.valid.shape == (100, 1)
    assert windows.generated.all()
    rows = windows.rows(windows.valid)
    known = {(*s, *a) for s, a in zip(hopper.observations, hopper.actions, strict=True)}
    found = {(*s, *a) for s, a in zip(rows.observation, rows.action, strict=True)}
    assert found <= known and len(found) == 100


def test_the_first_step_of_a_window_is_not_generated(hopper):
    steps = dataset_steps(hopper, np.arange(6).reshape(2, 3))
    valid = np.array([[1, 1, 1], [1, 1, 0]], bool)
    np.testing.assert_array_equal(
        Windows(steps, valid).generated, np.array([[0, 1, 1], [0, 1, 0]], bool)
    )


def test_real_windows_stop_at_the_end_of_their_episode(hopper):
    end = hopper.episode_ends[0]
    rows, exists = real_window_rows(hopper, np.array([0, end - 1, end, end + 1]), 3)
    np.testing.assert_array_equal(
        rows, [[0, 1, 2], [end - 1, end, end], [end] * 3, [end + 1, end + 2, end + 3]]
    )
    np.testing.assert_array_equal(exists, np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1] * 3]) > 0)


def test_starts_before_terminations(hopper, reference):
    rows = rows_before_terminations(hopper, reference.train, 3)
    falls = np.flatnonzero(hopper.terminations)
    expected = {fall - back for fall in falls for back in range(3)} & set(reference.train.tolist())
    assert set(rows.tolist()) == expected
    assert len(set(rows.tolist())) == len(rows) > 0
