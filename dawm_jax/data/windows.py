"""Device-side data: statistics, returns-to-go, and windows gathered inside jit."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from dawm_jax.data.dataset import OfflineDataset, scale_actions, to_unit_range
from dawm_jax.types import Condition, Statistics, Transition, UserError, Window

# TD3+BC's constant (Fujimoto & Gu 2021): it also keeps constant dimensions finite.
_STD_FLOOR = 1e-3


@struct.dataclass
class Replay:
    """A dataset on the device, normalised, training episodes first.

    Attributes:
      transitions: [N, ...]; observations standardised, actions in [-1, 1], raw rewards.
      episode_end: [N] int32, index of the last step of the step's episode.
      return_to_go: [N], discounted to the episode's end, scaled.
      num_train: steps of the training episodes; the rest are held out from the models.
    """

    transitions: Transition
    episode_end: jax.Array
    return_to_go: jax.Array
    num_train: int = struct.field(pytree_node=False)

    def __len__(self) -> int:
        return self.episode_end.shape[0]

    @property
    def state_size(self) -> int:
        """S."""
        return self.transitions.observation.shape[1]

    @property
    def action_size(self) -> int:
        """A."""
        return self.transitions.action.shape[1]


def returns_to_go(
    rewards: np.ndarray,
    terminations: np.ndarray,
    truncations: np.ndarray,
    *,
    discount: float,
    timeout_value: str,
) -> np.ndarray:
    """Discounted sum of rewards from each step to its episode's end, [N] float64.

    Args:
      rewards: [N] raw rewards of whole episodes, one after the other.
      terminations: [N] bool.
      truncations: [N] bool.
      discount: gamma.
      timeout_value: what a cut episode is worth after its end. "zero" sums what was seen,
        as the papers do: steps shortly before a time-out then look worse than they are.
        "average" goes on with the episode's mean reward for ever.

    Raises:
      UserError: an unknown `timeout_value`.
    """
    if timeout_value not in ("zero", "average"):
        raise UserError(f"timeout_value: expected 'zero' or 'average', got {timeout_value!r}")
    rewards = rewards.astype(np.float64)
    ends = np.flatnonzero(terminations | truncations)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    tails = np.zeros(len(ends))
    if timeout_value == "average":
        mean_rewards = np.add.reduceat(rewards, starts) / lengths
        tails = np.where(~terminations[ends], mean_rewards / (1.0 - discount), 0.0)
    # All episodes at once, backwards: the number of Python steps is the longest episode's.
    result = np.zeros_like(rewards)
    carry = tails
    for back in range(lengths.max()):
        alive = back < lengths
        rows = ends[alive] - back
        carry = np.where(alive, discount * carry, 0.0)
        carry[alive] += rewards[rows]
        result[rows] = carry[alive]
    return result


def build(
    dataset: OfflineDataset,
    *,
    action_low: np.ndarray,
    action_high: np.ndarray,
    discount: float,
    return_scale: float,
    timeout_value: str,
    held_out_fraction: float,
) -> tuple[Replay, Statistics]:
    """Fits the statistics and puts the normalised dataset into device arrays.

    Args:
      dataset: whole episodes in raw units.
      action_low: [A] bounds of the environment's actions.
      action_high: [A].
      discount: gamma of the return-to-go.
      return_scale: divisor of the return-to-go; 0 takes the largest magnitude in the
        training data, so that the best step of the data has return-to-go 1.
      timeout_value: see `returns_to_go`.
      held_out_fraction: share of episodes kept from the models, for their diagnostics.

    Returns:
      The replay (training episodes first) and the statistics of its training part.

    Raises:
      UserError: actions outside the bounds, or a bad option.
    """
    if not 0.0 <= held_out_fraction < 1.0:
        raise UserError(f"held_out_fraction: expected [0, 1), got {held_out_fraction}")
    actions = scale_actions(dataset, action_low, action_high)
    rtg = returns_to_go(
        dataset.rewards,
        dataset.terminations,
        dataset.truncations,
        discount=discount,
        timeout_value=timeout_value,
    )
    order, num_train = split_episodes(dataset.episode_ends, held_out_fraction)
    train = order[:num_train]
    scale = return_scale or float(np.abs(rtg[train]).max()) or 1.0
    statistics = _fit(dataset, train, rtg[train] / scale, scale, action_low, action_high)

    mean, std = (np.asarray(x) for x in (statistics.observation_mean, statistics.observation_std))
    standardise = lambda x: (x - mean) / std
    ends = (dataset.terminations | dataset.truncations)[order]
    end_rows = np.flatnonzero(ends)
    transitions = Transition(
        observation=standardise(dataset.observations[order]),
        action=actions[order],
        reward=dataset.rewards[order],
        terminated=dataset.terminations[order],
        next_observation=standardise(dataset.next_observations[order]),
    )
    replay = Replay(
        transitions=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), transitions),
        episode_end=jnp.asarray(
            end_rows[np.searchsorted(end_rows, np.arange(len(order)))], jnp.int32
        ),
        return_to_go=jnp.asarray(rtg[order] / scale, jnp.float32),
        num_train=num_train,
    )
    return replay, statistics


def gather_windows(replay: Replay, starts: jax.Array, *, horizon: int) -> Window:
    """Windows of `horizon` steps that begin at given steps and never leave their episode.

    Args:
      replay: the dataset.
      starts: [B] int32 step indices.
      horizon: H.

    Returns:
      A batch of windows; see `Window` for the padding.
    """
    steps = starts[:, None] + jnp.arange(horizon)[None]  # [B, H]
    ends = replay.episode_end[starts][:, None]
    exists = (steps <= ends).astype(jnp.float32)
    steps = jnp.minimum(steps, ends)
    data = replay.transitions
    first = data.observation[starts][:, None]
    return Window(
        states=jnp.concatenate([first, data.next_observation[steps]], axis=1),
        rewards=data.reward[steps] * exists,
        terminated=data.terminated[steps],
        mask=exists,
        action=data.action[starts],
        return_to_go=replay.return_to_go[starts],
        actions=data.action[steps],
    )


def gather_transitions(replay: Replay, rows: jax.Array) -> Transition:
    """The transitions at given rows."""
    return jax.tree.map(lambda x: x[rows], replay.transitions)


def gather_conditions(replay: Replay, starts: jax.Array) -> Condition:
    """State, action and return-to-go of given steps."""
    data = replay.transitions
    return Condition(data.observation[starts], data.action[starts], replay.return_to_go[starts])


def normalise_observation(statistics: Statistics, observation: jax.Array) -> jax.Array:
    """Raw observations [..., S] in standardised units."""
    mean = _along_last(statistics.observation_mean, observation)
    return (observation - mean) / _along_last(statistics.observation_std, observation)


def denormalise_observation(statistics: Statistics, observation: jax.Array) -> jax.Array:
    """Standardised observations [..., S] in raw units."""
    std = _along_last(statistics.observation_std, observation)
    return observation * std + _along_last(statistics.observation_mean, observation)


def normalise_action(statistics: Statistics, action: jax.Array) -> jax.Array:
    """Actions [..., A] from the environment's units to [-1, 1]."""
    bounds = (statistics.action_low, statistics.action_high)
    return to_unit_range(action, *(_along_last(bound, action) for bound in bounds))


def denormalise_action(statistics: Statistics, action: jax.Array) -> jax.Array:
    """Actions [..., A] from [-1, 1] to the environment's units."""
    half_range = _along_last((statistics.action_high - statistics.action_low) / 2, action)
    return _along_last(statistics.action_low, action) + (action + 1.0) * half_range


def raw_windows(
    statistics: Statistics, transitions: Transition, valid: jax.Array, *, num_windows: int
) -> tuple[Transition, jax.Array]:
    """Generated [B * H, ...] as windows [B, H, ...] in the environment's units."""
    raw = transitions._replace(
        observation=denormalise_observation(statistics, transitions.observation),
        action=denormalise_action(statistics, transitions.action),
        next_observation=denormalise_observation(statistics, transitions.next_observation),
    )
    return jax.tree.map(lambda x: x.reshape(num_windows, -1, *x.shape[1:]), (raw, valid))


def _along_last(vector: jax.Array, like: jax.Array) -> jax.Array:
    """A vector shaped to broadcast along the last axis of `like`, without rank promotion."""
    return vector.reshape((1,) * (like.ndim - 1) + (-1,))


def split_episodes(ends: np.ndarray, held_out_fraction: float) -> tuple[np.ndarray, int]:
    """Row order with the held-out episodes last, and the number of training rows."""
    episodes = len(ends)
    held_out = np.zeros(episodes, bool)
    count = min(int(np.ceil(held_out_fraction * episodes)), episodes - 1)
    # The split belongs to the dataset, not to a run: every seed holds out the same.
    held_out[np.random.default_rng(0).permutation(episodes)[:count]] = True
    lengths = np.diff(np.concatenate([[-1], ends]))
    rows_held_out = np.repeat(held_out, lengths)
    order = np.argsort(rows_held_out, kind="stable")
    return order, int((~rows_held_out).sum())


def _fit(dataset, train, rtg, scale, action_low, action_high) -> Statistics:
    observations = dataset.observations[train].astype(np.float64)
    rewards = dataset.rewards[train].astype(np.float64)
    successors = dataset.next_observations[train]
    returns = dataset.episode_returns
    values = {
        "observation_mean": observations.mean(0),
        "observation_std": observations.std(0) + _STD_FLOOR,
        "observation_low": np.minimum(observations.min(0), successors.min(0)),
        "observation_high": np.maximum(observations.max(0), successors.max(0)),
        "reward_mean": rewards.mean(),
        "reward_std": rewards.std() + _STD_FLOOR,
        "reward_low": rewards.min(),
        "reward_high": rewards.max(),
        "return_scale": scale,
        "return_low": rtg.min(),
        "return_high": rtg.max(),
        # A dataset of equal returns has no range; rewards are then left as they are.
        "return_range": np.ptp(returns) if np.ptp(returns) > 0 else 1000.0,
        "action_low": action_low,
        "action_high": action_high,
    }
    return Statistics(**{key: jnp.asarray(v, jnp.float32) for key, v in values.items()})
