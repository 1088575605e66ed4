"""Fits a `Normalizer` on the training data, and converts to and from its units.

Works on the host and inside jit; nothing relies on rank promotion.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dawm_jax.data.dataset import OfflineDataset, to_unit_range
from dawm_jax.types import Normalizer, Transition

# The constant of TD3+BC (2106.06860).
STD_FLOOR = 1e-3
# Keeps columns that never change finite; small against the changes of standardised states.
CHANGE_STD_FLOOR = 1e-5
# The range that a dataset of equal returns gets. IQL multiplies rewards by 1000 / range, so that
# this value leaves the rewards as they are.
_NO_RETURN_RANGE = 1000.0
# Returns that differ by less than this share of their largest magnitude are equal up to rounding.
_EQUAL_RETURNS = 1e-6
# Smallest range of returns that differ, as a share of their largest magnitude. Divided by a smaller
# range, IQL's returns would exceed a million.
_RANGE_FLOOR = 1e-3


def fit(
    dataset: OfflineDataset,
    train: np.ndarray,
    return_to_go: np.ndarray,
    *,
    return_scale: float,
    action_low: np.ndarray,
    action_high: np.ndarray,
) -> Normalizer:
    """The constants of the training rows.

    Args:
      dataset: whole episodes in raw units. `return_range` is of all episodes, everything else of
        the training rows.
      train: [rows] indices of the training rows.
      return_to_go: [rows] of the training rows, divided by `return_scale`.
      return_scale: see `Normalizer`.
      action_low: [A] bounds of the environment's actions.
      action_high: [A].
    """
    observations = dataset.observations[train].astype(np.float64)
    rewards = dataset.rewards[train].astype(np.float64)
    next_observations = dataset.next_observations[train].astype(np.float64)
    low = np.minimum(observations.min(0), next_observations.min(0))
    high = np.maximum(observations.max(0), next_observations.max(0))
    observation_std = column_scales(observations, constant=low == high)
    changes = (next_observations - observations) / observation_std
    constants = {
        "observation_mean": observations.mean(0),
        "observation_std": observation_std,
        "observation_low": low,
        "observation_high": high,
        "change_mean": changes.mean(0),
        "change_std": changes.std(0) + CHANGE_STD_FLOOR,
        "change_low": changes.min(0),
        "change_high": changes.max(0),
        "reward_mean": rewards.mean(),
        "reward_std": rewards.std() + STD_FLOOR,
        "reward_low": rewards.min(),
        "reward_high": rewards.max(),
        "return_scale": return_scale,
        "return_low": return_to_go.min(),
        "return_high": return_to_go.max(),
        "return_range": return_range(dataset.episode_returns),
        "action_low": action_low,
        "action_high": action_high,
    }
    return Normalizer(**{key: jnp.asarray(x, jnp.float32) for key, x in constants.items()})


def column_scales(values: np.ndarray, *, constant: np.ndarray) -> np.ndarray:
    """What columns are divided by: their standard deviation plus `STD_FLOOR`, constant ones 1.

    A simulator may change what the data keep constant, such as the contact forces of a body that
    never touched the ground. In units of `STD_FLOOR` a change of 1 would be a thousand.

    Args:
      values: [N, ...] values, raw units.
      constant: [...] bool, which columns never change.

    Returns:
      [...] float64, above 0.
    """
    return np.where(constant, 1.0, values.std(0, dtype=np.float64) + STD_FLOOR)


def return_range(returns: np.ndarray) -> float:
    """Largest minus smallest undiscounted return of episodes [episodes], always above 0.

    Returns that are equal up to rounding get `_NO_RETURN_RANGE`, and others at least
    `_RANGE_FLOOR` of their largest magnitude.
    """
    found, magnitude = float(np.ptp(returns)), float(np.abs(returns).max())
    if found <= _EQUAL_RETURNS * magnitude:
        return _NO_RETURN_RANGE
    return max(found, _RANGE_FLOOR * magnitude)


def leading(normalizer: Normalizer, columns: int) -> Normalizer:
    """The constants of the first observation columns.

    Args:
      normalizer: of all S columns.
      columns: how many; 0, or S and more, is all.
    """
    if not 0 < columns < normalizer.observation_mean.shape[0]:
        return normalizer
    names = [
        field.name
        for field in dataclasses.fields(normalizer)
        if field.name.startswith(("observation_", "change_"))
    ]
    first = {name: getattr(normalizer, name)[:columns] for name in names}
    return dataclasses.replace(normalizer, **first)


def normalise_observation(normalizer: Normalizer, observation: jax.Array) -> jax.Array:
    """Raw observations [..., S] in standardised units."""
    return _standardise(observation, normalizer.observation_mean, normalizer.observation_std)


def denormalise_observation(normalizer: Normalizer, observation: jax.Array) -> jax.Array:
    """Standardised observations [..., S] in raw units."""
    return _unstandardise(observation, normalizer.observation_mean, normalizer.observation_std)


def normalise_change(normalizer: Normalizer, change: jax.Array) -> jax.Array:
    """Changes of standardised states [..., S], standardised by the data's one-step changes."""
    return _standardise(change, normalizer.change_mean, normalizer.change_std)


def denormalise_change(normalizer: Normalizer, change: jax.Array) -> jax.Array:
    """Inverts `normalise_change`."""
    return _unstandardise(change, normalizer.change_mean, normalizer.change_std)


def _standardise(values: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Values [..., S] in units of `std` [S] about `mean` [S]."""
    return (values - _along_last(mean, values)) / _along_last(std, values)


def _unstandardise(values: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Inverts `_standardise`."""
    return values * _along_last(std, values) + _along_last(mean, values)


def normalise_action(normalizer: Normalizer, action: jax.Array) -> jax.Array:
    """Actions [..., A] from the environment's units to [-1, 1]."""
    low, high = (
        _along_last(bound, action) for bound in (normalizer.action_low, normalizer.action_high)
    )
    return to_unit_range(action, low, high)


def denormalise_action(normalizer: Normalizer, action: jax.Array) -> jax.Array:
    """Actions [..., A] from [-1, 1] to the environment's units."""
    half_range = _along_last((normalizer.action_high - normalizer.action_low) / 2, action)
    return _along_last(normalizer.action_low, action) + (action + 1.0) * half_range


def raw_windows(
    normalizer: Normalizer, transitions: Transition, valid: jax.Array, *, num_windows: int
) -> tuple[Transition, jax.Array]:
    """Generated transitions as windows in the environment's units, without next actions.

    Args:
      normalizer: of the training data.
      transitions: [B * H, ...], the H steps of a window one after the other.
      valid: [B * H] bool.
      num_windows: B.

    Returns:
      Transitions [B, H, ...] and valid [B, H].
    """
    raw = transitions._replace(
        observation=denormalise_observation(normalizer, transitions.observation),
        action=denormalise_action(normalizer, transitions.action),
        next_observation=denormalise_observation(normalizer, transitions.next_observation),
        next_action=None,
        next_action_known=None,
    )
    return jax.tree.map(lambda x: x.reshape(num_windows, -1, *x.shape[1:]), (raw, valid))


def _along_last(vector: jax.Array, like: jax.Array) -> jax.Array:
    """`vector` with leading axes of size 1, so that it has the rank of `like`."""
    return vector.reshape((1,) * (like.ndim - 1) + (-1,))
