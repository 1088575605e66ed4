"""The dataset that ships with the package."""

import numpy as np

from dawm_jax.data.load import load_dataset


def test_bundled_dataset_is_hopper():
    dataset = load_dataset("bundled/hopper/medium-v0")
    assert dataset.environment == "Hopper-v5"
    assert dataset.observations.shape == (len(dataset), 11)
    assert dataset.next_observations.shape == (len(dataset), 11)
    assert dataset.actions.shape == (len(dataset), 3)
    assert not (dataset.terminations & dataset.truncations).any()
    assert dataset.episode_ends[-1] == len(dataset) - 1
    # Inside an episode the successor is the next row.
    inside = np.setdiff1d(np.arange(len(dataset)), dataset.episode_ends)
    np.testing.assert_array_equal(
        dataset.next_observations[inside], dataset.observations[inside + 1]
    )
    # Gymnasium's Hopper ends at a height below 0.7 or an angle beyond 0.2 (or, rarely, at a
    # state or velocity of 100), never elsewhere.
    height, angle = dataset.next_observations[:, 0], dataset.next_observations[:, 1]
    fallen = (height < 0.7) | (np.abs(angle) > 0.2)
    np.testing.assert_array_equal(fallen, dataset.terminations)
