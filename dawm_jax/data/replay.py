"""The replay: a normalised dataset on the device, and what is gathered from it inside jit."""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from dawm_jax.data import normalizer as normalizer_lib
from dawm_jax.data.dataset import OfflineDataset, scale_actions
from dawm_jax.types import Condition, Normalizer, Returns, Transition, UserError, Window

TIMEOUT_VALUES = ("zero", "average")
# Bounds an episode's weight in `weighted_starts` at e^5, 150 times that of the median return.
_LARGEST_EXPONENT = 5.0


class DrawSteps(Protocol):
    """Draws steps of a replay."""

    def draw(self, key: jax.Array, num: int) -> jax.Array:
        """Steps drawn with replacement, [num] int32; `key` is consumed."""


@struct.dataclass
class WeightedStarts:
    """Draws the starts of generated windows: an episode by its weight, then one of its steps.

    Attributes:
      first: [episodes] int32, first step of each training episode.
      length: [episodes] int32, its number of steps.
      cumulative: [episodes], probability that the episode or one before it is drawn; the last is
        exactly 1.
    """

    first: jax.Array
    length: jax.Array
    cumulative: jax.Array

    def draw(self, key: jax.Array, num: int) -> jax.Array:
        """Steps drawn with replacement, [num] int32; `key` is consumed."""
        key_episode, key_step = jax.random.split(key)
        share = jax.random.uniform(key_episode, (num,))  # below 1
        episode = jnp.searchsorted(self.cumulative, share, side="right")
        step = jax.random.randint(key_step, (num,), 0, self.length[episode])
        return self.first[episode] + step


@struct.dataclass
class Replay:
    """A dataset on the device, normalised, training episodes first.

    Attributes:
      transitions: [N, ...]; observations standardised, actions in [-1, 1], raw rewards.
      episode_end: [N] int32, index of the last step of the step's episode.
      return_to_go: [N], discounted to the episode's end, scaled.
      num_train: steps of the training episodes; the models never see the steps after them.
      starts: how the starts of generated windows are drawn; None: every training step is equally
        likely.
      fitted: how the steps of the models' minibatches are drawn; None: every training step is
        equally likely.
    """

    transitions: Transition
    episode_end: jax.Array
    return_to_go: jax.Array
    num_train: int = struct.field(pytree_node=False)
    starts: DrawSteps | None = None
    fitted: DrawSteps | None = None

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

    def draw_starts(self, key: jax.Array, num: int) -> jax.Array:
        """Training steps that windows start from, with replacement, [num]; `key` is consumed."""
        if self.starts is None:
            return jax.random.randint(key, (num,), 0, self.num_train)
        return self.starts.draw(key, num)

    def draw_fitted(self, key: jax.Array, num: int) -> jax.Array:
        """Steps of a minibatch of the models, with replacement, [num]; `key` is consumed."""
        if self.fitted is None:
            return jax.random.randint(key, (num,), 0, self.num_train)
        return self.fitted.draw(key, num)


# --- building -----------------------------------------------------------------------------


def build(
    dataset: OfflineDataset,
    *,
    action_low: np.ndarray,
    action_high: np.ndarray,
    discount: float,
    return_scale: float,
    timeout_value: str,
    held_out_fraction: float,
    start_weight: float = 0.0,
    clip_actions: bool = False,
) -> tuple[Replay, Normalizer]:
    """Fits the normaliser and puts the normalised dataset into device arrays.

    Args:
      dataset: whole episodes in raw units.
      action_low: [A] bounds of the environment's actions.
      action_high: [A].
      discount: gamma of the return-to-go.
      return_scale: divisor of the return-to-go; 0 takes the largest magnitude in the training
        data, so that the best step of the data has return-to-go 1.
      timeout_value: see `returns_to_go`.
      held_out_fraction: share of the episodes that the models are not trained on, for their
        diagnostics.
      start_weight: weight of `weighted_starts`; with 0 all training steps are equally likely.
      clip_actions: clips actions outside the bounds; False refuses them.

    Returns:
      The replay (training episodes first) and the normaliser of its training part.

    Raises:
      UserError: actions outside the bounds, or an option out of its range.
    """
    if not 0.0 <= held_out_fraction < 1.0:
        raise UserError(f"held_out_fraction: expected [0, 1), got {held_out_fraction}")
    actions = scale_actions(dataset, action_low, action_high, clip=clip_actions)
    return_to_go = returns_to_go(
        dataset.rewards,
        dataset.terminations,
        dataset.truncations,
        discount=discount,
        timeout_value=timeout_value,
    )
    order, num_train = split_episodes(dataset.episode_ends, held_out_fraction)
    train = order[:num_train]
    scale = return_scale or float(np.abs(return_to_go[train]).max()) or 1.0
    normalizer = normalizer_lib.fit(
        dataset,
        train,
        return_to_go[train] / scale,
        return_scale=scale,
        action_low=action_low,
        action_high=action_high,
    )
    ends = (dataset.terminations | dataset.truncations)[order]
    replay = Replay(
        transitions=_transitions(dataset, actions, order, normalizer),
        episode_end=jnp.asarray(_next_end(ends), jnp.int32),
        return_to_go=jnp.asarray(return_to_go[order] / scale, jnp.float32),
        num_train=num_train,
        starts=weighted_starts(dataset.rewards[train], ends[:num_train], weight=start_weight)
        if start_weight
        else None,
    )
    return replay, normalizer


def returns_to_go(
    rewards: np.ndarray,
    terminations: np.ndarray,
    truncations: np.ndarray,
    *,
    discount: float,
    timeout_value: str,
) -> np.ndarray:
    """Discounted return from each step to its episode's end, [N] float64.

    Within an episode of last step T, G_t = r_t + gamma G_{t+1} and G_{T+1} = V, where V is 0
    after a termination and set by `timeout_value` after a truncation.

    Args:
      rewards: [N] raw rewards of whole episodes, one after the other.
      terminations: [N] bool.
      truncations: [N] bool.
      discount: gamma.
      timeout_value: V of a truncated episode. "zero" is V = 0, as in the papers: the return of
        steps shortly before a time-out is then underestimated. "average" is the value of the
        episode's mean reward for ever, V = mean(r) / (1 - gamma).

    Raises:
      UserError: an unknown `timeout_value`.
    """
    if timeout_value not in TIMEOUT_VALUES:
        raise UserError(f"timeout_value: expected 'zero' or 'average', got {timeout_value!r}")
    rewards = rewards.astype(np.float64)
    ends = np.flatnonzero(terminations | truncations)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    carry = np.zeros(len(ends))
    if timeout_value == "average":
        mean_rewards = np.add.reduceat(rewards, starts) / lengths
        carry = np.where(~terminations[ends], mean_rewards / (1.0 - discount), 0.0)
    # Backwards through all episodes at once: the longest episode sets the number of Python steps.
    result = np.zeros_like(rewards)
    for back in range(lengths.max()):
        active = back < lengths
        rows = ends[active] - back
        carry = np.where(active, discount * carry, 0.0)
        carry[active] += rewards[rows]
        result[rows] = carry[active]
    return result


def weighted_starts(rewards: np.ndarray, ends: np.ndarray, *, weight: float) -> WeightedStarts:
    """Starts of generated windows, more often in episodes of high return.

    An episode of return R is drawn with a probability proportional to its length times
    exp(weight (R - median) / MAD), where MAD is the median of |R - median| over episodes, and 1
    where that is 0. The exponent is at most `_LARGEST_EXPONENT`.

    Args:
      rewards: [n] raw rewards of whole episodes, one after the other.
      ends: [n] bool, last steps of episodes.
      weight: how strongly returns count, above 0.
    """
    last = np.flatnonzero(ends)
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    returns = np.add.reduceat(rewards.astype(np.float64), first)
    distance = returns - np.median(returns)
    spread = np.median(np.abs(distance)) or 1.0
    exponent = np.minimum(weight * distance / spread, _LARGEST_EXPONENT)
    mass = np.cumsum(length * np.exp(exponent))
    return WeightedStarts(
        first=jnp.asarray(first, jnp.int32),
        length=jnp.asarray(length, jnp.int32),
        cumulative=jnp.asarray(mass / mass[-1], jnp.float32),
    )


def split_episodes(ends: np.ndarray, held_out_fraction: float) -> tuple[np.ndarray, int]:
    """Splits the episodes into training and held-out ones.

    The split depends only on the number of episodes, so that every seed holds out the same.

    Args:
      ends: [episodes] index of the last step of every episode.
      held_out_fraction: share of the episodes, rounded up; one episode is always trained on.

    Returns:
      The order of all rows that puts the held-out episodes last, [N], and the number of
      training rows.
    """
    episodes = len(ends)
    held_out = np.zeros(episodes, bool)
    count = min(int(np.ceil(held_out_fraction * episodes)), episodes - 1)
    held_out[np.random.default_rng(0).permutation(episodes)[:count]] = True
    lengths = np.diff(np.concatenate([[-1], ends]))
    rows_held_out = np.repeat(held_out, lengths)
    order = np.argsort(rows_held_out, kind="stable")
    return order, int((~rows_held_out).sum())


def _transitions(
    dataset: OfflineDataset, actions: np.ndarray, order: np.ndarray, normalizer: Normalizer
) -> Transition:
    """The rows `order` on the device; `actions` [N, A] are in [-1, 1] already."""
    mean, std = (np.asarray(x) for x in (normalizer.observation_mean, normalizer.observation_std))
    device = lambda x: jnp.asarray(x, jnp.float32)
    return Transition(
        observation=device((dataset.observations[order] - mean) / std),
        action=device(actions[order]),
        reward=device(dataset.rewards[order]),
        terminated=device(dataset.terminations[order]),
        next_observation=device((dataset.next_observations[order] - mean) / std),
    )


def _next_end(ends: np.ndarray) -> np.ndarray:
    """For every row the index of the first end at or after it, [N]; `ends` is [N] bool."""
    end_rows = np.flatnonzero(ends)
    return end_rows[np.searchsorted(end_rows, np.arange(len(ends)))]


# --- gathering ----------------------------------------------------------------------------


def gather_windows(replay: Replay, starts: jax.Array, *, horizon: int) -> Window:
    """Windows of `horizon` steps that begin at given steps and stay within their episode.

    Args:
      replay: the dataset.
      starts: [B] int32 step indices.
      horizon: H.

    Returns:
      A batch of windows; see `Window` for the padding.
    """
    steps = starts[:, None] + jnp.arange(horizon)[None]  # [B, H]
    ends = replay.episode_end[starts][:, None]
    mask = (steps <= ends).astype(jnp.float32)
    steps = jnp.minimum(steps, ends)
    data = replay.transitions
    first = data.observation[starts][:, None]
    return Window(
        states=jnp.concatenate([first, data.next_observation[steps]], axis=1),
        rewards=data.reward[steps] * mask,
        terminated=data.terminated[steps],
        mask=mask,
        action=data.action[starts],
        return_to_go=replay.return_to_go[starts],
        actions=data.action[steps],
    )


def gather_transitions(replay: Replay, rows: jax.Array, *, next_action: bool = False) -> Transition:
    """The transitions at given rows.

    Args:
      replay: the dataset.
      rows: int32 indices of any shape.
      next_action: also fills `next_action` and `next_action_known`, for agents that learn from
        the dataset's action in the next state.

    Returns:
      Transitions whose leading axes are those of `rows`.
    """
    transitions = jax.tree.map(lambda x: x[rows], replay.transitions)
    if not next_action:
        return transitions
    ends, actions = replay.episode_end[rows], replay.transitions.action
    return transitions._replace(
        next_action=actions[jnp.minimum(rows + 1, ends)],
        next_action_known=(rows < ends).astype(actions.dtype),
    )


def gather_returns(
    replay: Replay, rows: jax.Array, returns: Returns, *, next_action: bool = False
) -> Transition:
    """The transitions at given rows, each with the return over the steps from there on.

    The return ends with the episode. At a time-out the value bootstraps, as for one step.

    Args:
      replay: the dataset.
      rows: int32 indices of any shape.
      returns: steps and discount.
      next_action: also fills `next_action` and `next_action_known`, see `gather_transitions`.

    Returns:
      Transitions whose leading axes are those of `rows`.
    """
    data, ends = replay.transitions, replay.episode_end[rows]
    first = jax.tree.map(lambda x: x[rows], data)
    reward = first.reward
    for step in range(1, returns.steps):
        exists = rows + step <= ends
        later = data.reward[jnp.minimum(rows + step, ends)]
        reward += jnp.where(exists, returns.discount**step * later, 0.0)
    last = jnp.minimum(rows + returns.steps - 1, ends)
    final = gather_transitions(replay, last, next_action=next_action)
    return final._replace(
        observation=first.observation,
        action=first.action,
        reward=reward,
        discount=returns.discount ** (last - rows + 1).astype(reward.dtype),
    )


def gather_conditions(replay: Replay, starts: jax.Array) -> Condition:
    """State, action and return-to-go of given steps [B]."""
    data = replay.transitions
    return Condition(data.observation[starts], data.action[starts], replay.return_to_go[starts])
