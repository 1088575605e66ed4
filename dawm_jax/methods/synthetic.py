"""Synthetic transitions or expansions from generated windows, and the buffer they live in."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import struct

from dawm_jax.models.world_model import Imagined
from dawm_jax.types import Condition, Expansion, Statistics, Transition, UserError

TARGET_RULES = ("amplified", "max_fraction")
# What a buffer holds: both name their fields alike.
Rows = Transition | Expansion


def target_return(
    return_to_go: jax.Array, statistics: Statistics, *, rule: str, factor: float
) -> jax.Array:
    """The scaled return-to-go that a generated window aims at, [B].

    Args:
      return_to_go: [B] of the windows' real starts, scaled.
      statistics: of the training data.
      rule: "amplified" asks for the start's own return plus (factor - 1) of its
        magnitude, never more than the data's best; "max_fraction" asks every start for
        that fraction of the data's best return, counted from the data's worst.
      factor: of the rule.

    Raises:
      UserError: an unknown rule.
    """
    if rule == "amplified":
        wanted = return_to_go + (factor - 1.0) * jnp.abs(return_to_go)
        # A factor below 1 asks for less; only asking for more is bounded by the data.
        return jnp.minimum(wanted, jnp.maximum(statistics.return_high, return_to_go))
    if rule == "max_fraction":
        span = statistics.return_high - statistics.return_low
        return jnp.full_like(return_to_go, statistics.return_low + factor * span)
    raise UserError(f"target rule: expected one of {', '.join(TARGET_RULES)}, got {rule!r}")


def complete(
    imagined: Imagined,
    first_action: jax.Array,
    infer: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[Transition, jax.Array]:
    """Generated windows of states as one-step transitions.

    The first action is the real one; the inverse dynamics model supplies the rest,
    a_{t+k} = f(s_{t+k}, s_{t+k+1}) for k >= 1 (DAWM, section 3.2).

    Args:
      imagined: [B] generated windows.
      first_action: [B, A].
      infer: (state, next_state) -> action.

    Returns:
      See `to_transitions`.
    """
    chex.assert_rank(imagined.states, 3)
    later = infer(imagined.states[:, 1:-1], imagined.states[:, 2:])
    actions = jnp.concatenate([first_action[:, None], later], axis=1)
    return to_transitions(imagined._replace(actions=actions))


def to_transitions(imagined: Imagined) -> tuple[Transition, jax.Array]:
    """Generated windows with their actions as one-step transitions.

    Returns:
      Transitions [B * H] and valid [B * H] bool: steps after a termination are not.
    """
    chex.assert_rank([imagined.states, imagined.rewards, imagined.terminated], [3, 2, 2])
    chex.assert_equal_shape([imagined.rewards, imagined.terminated])
    assert imagined.actions is not None
    transitions = Transition(
        observation=imagined.states[:, :-1],
        action=imagined.actions,
        reward=imagined.rewards,
        terminated=imagined.terminated,
        next_observation=imagined.states[:, 1:],
    )
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), transitions)
    return flat, _exists(imagined).reshape(-1)


def to_expansions(imagined: Imagined, condition: Condition) -> tuple[Expansion, jax.Array]:
    """Generated windows as expansions of their real starts (DWM, section 3.3).

    Returns:
      Expansions [B] and valid [B, H] bool: steps after a termination are not.
    """
    expansions = Expansion(
        observation=condition.state,
        action=condition.action,
        reward=imagined.rewards,
        terminated=imagined.terminated,
        next_observation=imagined.states[:, 1:],
    )
    return expansions, _exists(imagined)


def first_steps(transitions: Rows, valid: jax.Array, *, horizon: int) -> tuple[Rows, jax.Array]:
    """Of the transitions of windows, [B * H], only each one's first, whose action is real."""
    return jax.tree.map(lambda x: x[::horizon], (transitions, valid))


def _exists(imagined: Imagined) -> jax.Array:
    """Which steps are not after a termination, [B, H] bool."""
    return jnp.cumsum(imagined.terminated, axis=1) - imagined.terminated == 0


def rollout(
    key: jax.Array,
    condition: Condition,
    *,
    sample: Callable[[jax.Array, Condition], Imagined],
    infer: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[Transition, jax.Array]:
    """Generates windows from `condition` and completes their actions; see `complete`."""
    return complete(sample(key, condition), condition.action, infer)


@struct.dataclass
class Buffer:
    """A ring of the latest synthetic transitions or expansions.

    Attributes:
      transitions: [capacity, ...].
      written: int32, rows ever added.
    """

    transitions: Rows
    written: jax.Array


def empty_buffer(
    capacity: int, state_size: int, action_size: int, *, horizon: int | None = None
) -> Buffer:
    """A buffer of zeros, nothing written; with a horizon it holds expansions."""
    zeros = lambda *size: jnp.zeros((capacity, *size))
    kind, steps = (Transition, ()) if horizon is None else (Expansion, (horizon,))
    rows = kind(
        zeros(state_size),
        zeros(action_size),
        zeros(*steps),
        zeros(*steps),
        zeros(*steps, state_size),
    )
    return Buffer(rows, jnp.int32(0))


def add(buffer: Buffer, transitions: Rows, valid: jax.Array) -> Buffer:
    """Writes the valid rows, oldest ones overwritten; at most `capacity` rows at a time.

    An expansion is valid when any of its steps is.
    """
    valid = valid.reshape(len(valid), -1).any(axis=1)
    capacity = buffer.transitions.reward.shape[0]
    position = buffer.written + jnp.cumsum(valid) - 1
    # Rows that are not valid aim past the end, where a scatter drops them.
    slot = jnp.where(valid, position % capacity, capacity)
    stored = jax.tree.map(
        lambda ring, new: ring.at[slot].set(new, mode="drop"), buffer.transitions, transitions
    )
    return Buffer(stored, buffer.written + valid.sum(dtype=jnp.int32))


def draw_rows(key: jax.Array, buffer: Buffer, shape: tuple[int, ...]) -> Rows:
    """Rows drawn uniformly with replacement from what the buffer holds."""
    capacity = buffer.transitions.reward.shape[0]
    filled = jnp.minimum(buffer.written, capacity)
    rows = jax.random.randint(key, shape, 0, jnp.maximum(filled, 1))
    return jax.tree.map(lambda ring: ring[rows], buffer.transitions)
