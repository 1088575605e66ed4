"""What an agent lives through: a ring of time steps of several copies of its environment.

A row of the ring is one time step of all copies, so that row t + 1 holds the successors of row t.
Letters: n copies, T rows of the ring.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from dawm_jax.data import ring_buffer
from dawm_jax.data.replay import DrawSteps, Replay
from dawm_jax.data.ring_buffer import Buffer
from dawm_jax.types import Transition


class LivedStep(NamedTuple):
    """One time step of n copies; observations standardised, actions in [-1, 1], raw rewards."""

    observation: jax.Array  # [n, S]
    action: jax.Array  # [n, A]
    reward: jax.Array  # [n]
    terminated: jax.Array  # [n], 0 or 1
    next_observation: jax.Array  # [n, S], the true successor also at an episode's end
    ended: jax.Array  # [n] bool, whether it is the last step of its episode


def empty(*, turns: int, copies: int, state_size: int, action_size: int) -> Buffer[LivedStep]:
    """A ring of `turns` time steps in which nothing is written."""
    row = LivedStep(
        observation=jnp.zeros((copies, state_size)),
        action=jnp.zeros((copies, action_size)),
        reward=jnp.zeros(copies),
        terminated=jnp.zeros(copies),
        next_observation=jnp.zeros((copies, state_size)),
        ended=jnp.zeros(copies, jnp.bool_),
    )
    return ring_buffer.empty(turns, row)


def remember(buffer: Buffer[LivedStep], step: LivedStep) -> Buffer[LivedStep]:
    """Writes one time step over the oldest one."""
    rows = jax.tree.map(lambda leaf: leaf[None], step)
    return ring_buffer.add(buffer, rows, jnp.ones((1,), jnp.bool_))


def draw(
    key: jax.Array, buffer: Buffer[LivedStep], shape: tuple[int, ...], *, next_action: bool = False
) -> Transition:
    """Transitions drawn uniformly with replacement from what was lived through.

    Args:
      key: random number generator state, the key is consumed.
      buffer: the ring; if nothing is written, the transitions are 0.
      shape: leading axes of the result.
      next_action: also fills `next_action` and `next_action_known`. The action after the newest
        step and after an episode's last step is not known; the step's own action stands for it.
    """
    rows = buffer.rows
    turns, copies = rows.reward.shape
    filled = jnp.minimum(buffer.written, turns)
    key_turn, key_copy = jax.random.split(key)
    turn = jax.random.randint(key_turn, shape, 0, jnp.maximum(filled, 1))
    copy = jax.random.randint(key_copy, shape, 0, copies)
    found = Transition(
        *(
            leaf[turn, copy]
            for leaf in (
                rows.observation,
                rows.action,
                rows.reward,
                rows.terminated,
                rows.next_observation,
            )
        )
    )
    if not next_action:
        return found
    newest = (buffer.written - 1) % turns
    known = ~rows.ended[turn, copy] & (turn != newest)
    following = jnp.where(known, (turn + 1) % turns, turn)
    return found._replace(
        next_action=rows.action[following, copy],
        next_action_known=known.astype(found.action.dtype),
    )


# --- a replay of the dataset and what was lived through -----------------------------------


@struct.dataclass
class MixedSteps:
    """Draws steps of the dataset and, after them, steps of ended online episodes.

    Attributes:
      known: [n T] int32, indices of the online steps; those of ended episodes are first.
      num_known: [] int32, number of steps of ended episodes; while it is 0, the dataset alone is
        drawn from.
      num_offline: training steps of the dataset.
      online_fraction: share of the drawn steps that are online, rounded to whole steps.
      offline: how the steps of the dataset are drawn; None: uniformly.
    """

    known: jax.Array
    num_known: jax.Array
    offline: DrawSteps | None
    num_offline: int = struct.field(pytree_node=False)
    online_fraction: float = struct.field(pytree_node=False)

    def draw(self, key: jax.Array, num: int) -> jax.Array:
        """See `DrawSteps`."""
        key_offline, key_online = jax.random.split(key)
        if self.offline is None:
            offline = jax.random.randint(key_offline, (num,), 0, self.num_offline)
        else:
            offline = self.offline.draw(key_offline, num)
        drawn = jax.random.randint(key_online, (num,), 0, jnp.maximum(self.num_known, 1))
        num_online = jnp.where(self.num_known > 0, round(self.online_fraction * num), 0)
        is_online = jnp.arange(num) >= num - num_online
        return jnp.where(is_online, self.known[drawn], offline)


def mixed_replay(
    offline: Replay,
    buffer: Buffer[LivedStep],
    *,
    online_fraction: float,
    discount: float,
    timeout_value: str,
    return_scale: jax.Array,
) -> Replay:
    """The dataset followed by the ring's steps, as a replay that models are fitted to.

    An online step's return-to-go is known once its episode has ended: only those are drawn. An
    episode whose first steps were overwritten counts from its oldest step that is left.

    Args:
      offline: the dataset.
      buffer: the ring.
      online_fraction: see `MixedSteps`.
      discount: gamma of the return-to-go.
      timeout_value: see `replay.returns_to_go`.
      return_scale: [] divisor of the return-to-go.
    """
    turns, copies = buffer.rows.reward.shape
    filled = jnp.minimum(buffer.written, turns)
    oldest = jnp.where(buffer.written > turns, buffer.written % turns, 0)
    rows = jax.tree.map(lambda leaf: jnp.roll(leaf, -oldest, axis=0), buffer.rows)
    returns, last, known = _episodes(rows, filled, discount=discount, timeout_value=timeout_value)
    # Copy by copy, so that the steps of an episode follow one another.
    by_copy = lambda leaf: jnp.swapaxes(leaf, 0, 1).reshape(turns * copies, *leaf.shape[2:])
    first = len(offline) + turns * jnp.arange(copies, dtype=jnp.int32)
    lived = Transition(
        *map(
            by_copy,
            (
                rows.observation,
                rows.action,
                rows.reward,
                rows.terminated,
                rows.next_observation,
            ),
        )
    )
    is_known = by_copy(known)
    order = jnp.argsort(~is_known, stable=True).astype(jnp.int32)
    join = lambda a, b: jnp.concatenate([a, b])
    steps = lambda offline_steps: MixedSteps(
        known=order + len(offline),
        num_known=is_known.sum(dtype=jnp.int32),
        offline=offline_steps,
        num_offline=offline.num_train,
        online_fraction=online_fraction,
    )
    return Replay(
        transitions=jax.tree.map(join, offline.transitions, lived),
        episode_end=join(offline.episode_end, by_copy(last + first[None])),
        return_to_go=join(offline.return_to_go, by_copy(returns / return_scale)),
        num_train=offline.num_train,
        starts=steps(offline.starts),
        fitted=steps(offline.fitted),
    )


def _episodes(
    rows: LivedStep, filled: jax.Array, *, discount: float, timeout_value: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns-to-go, last row of the episode, and whether it has ended, of rows in time order.

    Args:
      rows: [T, n, ...], the oldest first.
      filled: [] int32, rows that are written.
      discount: gamma.
      timeout_value: see `replay.returns_to_go`.

    Returns:
      [T, n] in raw units, [T, n] int32 and [T, n] bool. Returns of episodes that have not ended
      lack what follows the newest row.
    """
    turns, copies = rows.reward.shape

    def average(
        carry: tuple[jax.Array, jax.Array], row: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        reward, ended = row
        total, count = carry[0] + reward, carry[1] + 1.0
        return (jnp.where(ended, 0.0, total), jnp.where(ended, 0.0, count)), total / count

    zeros = jnp.zeros(copies)
    after = jnp.zeros((turns, copies))
    if timeout_value == "average":
        _, means = jax.lax.scan(average, (zeros, zeros), (rows.reward, rows.ended))
        after = jnp.where(rows.terminated > 0, 0.0, means / (1.0 - discount))

    def backwards(
        carry: tuple[jax.Array, jax.Array, jax.Array],
        row: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
        following, last, known = carry
        index, reward, ended, value = row
        is_last = ended | (index == filled - 1)
        following = reward + discount * jnp.where(is_last, jnp.where(ended, value, 0.0), following)
        last = jnp.where(is_last, index, last)
        known = (ended | (known & ~is_last)) & (index < filled)
        return (following, last, known), (following, last, known)

    index = jnp.arange(turns, dtype=jnp.int32)
    start = (zeros, jnp.full(copies, turns - 1, jnp.int32), jnp.zeros(copies, jnp.bool_))
    _, found = jax.lax.scan(backwards, start, (index, rows.reward, rows.ended, after), reverse=True)
    return found
