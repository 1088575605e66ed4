"""Datasets in memory: their properties, action bounds, the best episodes."""

import dataclasses
import hashlib

import numpy as np
import pytest
import tiny_data as tiny

from dawm_jax.data import dataset as dataset_lib
from dawm_jax.data.d4rl import from_flat_arrays
from dawm_jax.types import UserError


def test_episode_returns():
    episodes = tiny.make_episodes()
    arrays = tiny.d4rl_arrays(episodes)
    dataset = from_flat_arrays("tiny", **arrays)
    np.testing.assert_array_equal(dataset.episode_ends, np.cumsum([4, 3, 2, 3]) - 1)
    np.testing.assert_allclose(
        dataset.episode_returns, [e["rewards"].astype(np.float64).sum() for e in episodes]
    )


def test_describe_names_the_numbers():
    dataset = from_flat_arrays("tiny", **tiny.d4rl_arrays(tiny.make_episodes()))
    text = dataset_lib.describe(dataset)
    assert "12 transitions in 4 episodes" in text
    assert "2 terminations" in text and "2 time-outs" in text
    mean = np.mean([e["rewards"].sum() for e in tiny.make_episodes()])
    assert f"return {mean:.0f} " in text


# --- action bounds ------------------------------------------------------------------------


def _with_actions(actions):
    arrays = tiny.d4rl_arrays(tiny.make_episodes())
    arrays["actions"] = np.asarray(actions, np.float32)
    return from_flat_arrays("tiny", **arrays)


def test_actions_are_scaled_to_the_unit_box():
    low, high = np.float32([-2.0, 1.0]), np.float32([4.0, 1.5])
    rows = [low, high, (low + high) / 2, low + 0.25 * (high - low)] * 3
    scaled = dataset_lib.scale_actions(_with_actions(rows), low, high)
    expected = np.float32([[-1, -1], [1, 1], [0, 0], [-0.5, -0.5]] * 3)
    np.testing.assert_array_equal(scaled, expected)  # all powers of two: exact
    assert scaled.dtype == np.float32


def test_rounding_outside_the_bounds_is_clipped():
    rows = np.full((12, tiny.ACTION_SIZE), 1.0005)
    ones = np.ones(tiny.ACTION_SIZE, np.float32)
    np.testing.assert_array_equal(dataset_lib.scale_actions(_with_actions(rows), -ones, ones), 1.0)


def test_actions_outside_the_bounds():
    rows = np.zeros((12, tiny.ACTION_SIZE))
    rows[3, 1] = -1.5
    ones = np.ones(tiny.ACTION_SIZE, np.float32)
    with pytest.raises(UserError) as error:
        dataset_lib.scale_actions(_with_actions(rows), -ones, ones)
    tiny.assert_one_line(
        error,
        "tiny",
        "exceed the environment's bounds by 0.5 of the half range, at 1 of 12 steps",
        "--config.clip_actions=True",
    )


def test_actions_outside_the_bounds_can_be_clipped(caplog):
    rows = np.zeros((12, tiny.ACTION_SIZE))
    rows[3, 1], rows[7] = -1.05, 1.05
    ones = np.ones(tiny.ACTION_SIZE, np.float32)
    scaled = dataset_lib.scale_actions(_with_actions(rows), -ones, ones, clip=True)
    np.testing.assert_array_equal(scaled, np.clip(rows, -1, 1))
    (record,) = caplog.records
    assert "at 2 of 12 steps; these are clipped" in record.getMessage()


def test_actions_within_the_bounds_are_clipped_without_a_word(caplog):
    ones = np.ones(tiny.ACTION_SIZE, np.float32)
    dataset = _with_actions(np.ones((12, tiny.ACTION_SIZE)))
    np.testing.assert_array_equal(dataset_lib.scale_actions(dataset, -ones, ones, clip=True), 1.0)
    assert not caplog.records


def test_other_number_of_actions():
    ones = np.ones(5, np.float32)
    with pytest.raises(UserError) as error:
        dataset_lib.scale_actions(_with_actions(np.zeros((12, tiny.ACTION_SIZE))), -ones, ones)
    tiny.assert_one_line(error, "tiny", "2 action dimensions", "5")


# --- the best episodes --------------------------------------------------------------------


def ranked_dataset():
    """Five episodes of 1 to 5 steps; row i's reward is i, its observation twice that."""
    lengths = [3, 1, 5, 2, 4]
    ends = np.cumsum(lengths) - 1
    rows = np.arange(15, dtype=np.float32)
    rewards = rows.copy()
    rewards[4] = 100.0  # lifts the third episode above the later ones
    truncations = np.isin(np.arange(15), ends)
    return dataset_lib.OfflineDataset(
        name="ranked",
        observations=2 * rows[:, None],
        actions=rows[:, None] / 15,
        rewards=rewards,
        next_observations=2 * rows[:, None] + 1,
        terminations=np.zeros(15, bool),
        truncations=truncations,
    )


@pytest.mark.parametrize("fraction, kept", [(0.2, [2]), (0.25, [2, 4]), (0.6, [2, 3, 4])])
def test_the_top_episodes_are_those_of_the_highest_returns(fraction, kept):
    """Whole episodes, in their order, the share rounded up."""
    dataset = ranked_dataset()
    top = dataset_lib.top_episodes(dataset, fraction)
    starts = np.concatenate([[0], dataset.episode_ends[:-1] + 1])
    rows = np.concatenate([np.arange(starts[i], dataset.episode_ends[i] + 1) for i in kept])
    for name in ("observations", "actions", "rewards", "next_observations", "truncations"):
        np.testing.assert_array_equal(getattr(top, name), getattr(dataset, name)[rows])
    np.testing.assert_array_equal(top.episode_returns, dataset.episode_returns[kept])
    left_out = np.delete(dataset.episode_returns, kept)
    assert top.episode_returns.min() >= left_out.max()


def test_all_episodes_are_the_dataset_itself():
    dataset = ranked_dataset()
    assert dataset_lib.top_episodes(dataset, 1.0) is dataset


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5])
def test_a_share_outside_0_to_1_is_refused(fraction):
    with pytest.raises(UserError, match=r"top_fraction: expected above 0 and at most 1"):
        dataset_lib.top_episodes(ranked_dataset(), fraction)


# --- some episodes ------------------------------------------------------------------------


def test_random_episodes_are_whole_and_fewer_are_a_part_of_more():
    dataset = ranked_dataset()
    returns = dataset.episode_returns.tolist()
    kept = {}
    for count in (1, 2, 4):
        some = dataset_lib.random_episodes(dataset, count, seed=3)
        kept[count] = some.episode_returns.tolist()
        assert len(kept[count]) == count
        places = [returns.index(value) for value in kept[count]]
        assert places == sorted(places)  # whole episodes, in the order of the dataset
    assert set(kept[1]) < set(kept[2]) < set(kept[4])


def test_another_seed_draws_other_episodes():
    drawn = {
        tuple(dataset_lib.random_episodes(ranked_dataset(), 2, seed=seed).episode_returns)
        for seed in range(20)
    }
    assert len(drawn) > 5  # of 10 pairs


def test_no_number_of_episodes_takes_all_and_too_many_are_refused():
    dataset = ranked_dataset()
    assert dataset_lib.random_episodes(dataset, 0, seed=0) is dataset
    with pytest.raises(UserError, match=r"config\.episodes: expected at most 5, .* got 6"):
        dataset_lib.random_episodes(dataset, 6, seed=0)


# --- the digest ---------------------------------------------------------------------------


def test_equal_content_has_an_equal_digest():
    dataset = ranked_dataset()
    copy = {f.name: getattr(dataset, f.name) for f in dataclasses.fields(dataset)}
    copy = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in copy.items()}
    assert dataset_lib.OfflineDataset(**{**copy, "name": "other"}).digest == dataset.digest
    zero = dataclasses.replace(dataset, observations=0 * dataset.observations)
    minus = dataclasses.replace(dataset, observations=-0.0 * dataset.observations)
    assert zero.digest == minus.digest != dataset.digest


def test_the_digest_is_that_of_named_little_endian_arrays():
    """Written out as the docstring says it, so that the digests of two versions compare."""
    dataset = ranked_dataset()
    digest = hashlib.sha256()
    for name in ("observations", "actions", "rewards", "next_observations"):
        array = getattr(dataset, name)
        digest.update(f"{name} float32 {array.shape}\n".encode() + array.astype("<f4").tobytes())
    for name in ("terminations", "truncations"):
        digest.update(f"{name} bool ({len(dataset)},)\n".encode())
        digest.update(getattr(dataset, name).astype("u1").tobytes())
    assert dataset.digest == digest.hexdigest()


@pytest.mark.parametrize(
    "field",
    [
        "observations",
        "actions",
        "rewards",
        "next_observations",
        "terminations",
        "truncations",
    ],
)
def test_a_change_of_any_array_changes_the_digest(field):
    dataset = ranked_dataset()
    array = getattr(dataset, field).copy()
    array[7] = ~array[7] if array.dtype == bool else np.nextafter(array[7], np.float32(100))
    assert dataclasses.replace(dataset, **{field: array}).digest != dataset.digest


def test_a_longer_or_reordered_dataset_has_another_digest():
    dataset = ranked_dataset()
    assert dataset_lib.top_episodes(dataset, 0.6).digest != dataset.digest
    swapped = dataclasses.replace(
        dataset, observations=dataset.next_observations, next_observations=dataset.observations
    )
    assert swapped.digest != dataset.digest
