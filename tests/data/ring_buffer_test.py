"""The ring buffer against Python lists, for rows of several types."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dawm_jax.data import ring_buffer
from dawm_jax.types import Expansion, Transition


def numbered(numbers):
    """Transitions that carry their number in every field."""
    x = jnp.asarray(numbers, jnp.float32)
    return Transition(
        observation=jnp.stack([x, x + 0.25], 1),
        action=-x[:, None],
        reward=x,
        terminated=x % 2,
        next_observation=jnp.stack([x + 1, x + 2], 1),
    )


def shapes_of(rows):
    """The shapes of one row, given several."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)


def empty(capacity):
    return ring_buffer.empty(capacity, shapes_of(numbered([0])))


def assert_rows_equal(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_buffer_equals_python_list():
    """Fills, wraps, overwrites the oldest, drops what is not valid."""
    capacity, rows = 7, 5
    rng = np.random.default_rng(0)
    add = jax.jit(ring_buffer.add)
    buffer = empty(capacity)
    kept, number = [], 0
    for trial in range(12):
        # All, none, and then any rows are valid.
        valid = np.full(rows, trial == 0) if trial < 2 else rng.random(rows) < 0.6
        numbers = np.arange(number, number + rows) + 1
        number += rows
        buffer = add(buffer, numbered(numbers), jnp.asarray(valid))
        kept += list(numbers[valid])
        assert int(buffer.written) == len(kept)
        # Transition i of all ever added lies in slot i % capacity, until i + capacity.
        slots = np.zeros(capacity, np.float32)
        for index, each in enumerate(kept):
            slots[index % capacity] = each
        assert set(slots[slots > 0]) == set(kept[-capacity:])
        written = lambda rows, slots=slots: jax.tree.map(lambda x: np.array(x)[slots > 0], rows)
        assert_rows_equal(written(buffer.rows), written(numbered(slots)))
        np.testing.assert_array_equal(np.array(buffer.rows.reward)[slots == 0], 0.0)
    assert len(kept) > 3 * capacity


def test_a_full_write_replaces_everything():
    buffer = empty(4)
    for first in (1, 11):
        buffer = ring_buffer.add(buffer, numbered(np.arange(first, first + 4)), jnp.ones(4, bool))
    np.testing.assert_array_equal(buffer.rows.reward, [11, 12, 13, 14])


@pytest.mark.parametrize("written", [3, 8, 11])
def test_draws_are_uniform_over_what_was_written(written):
    """Every written row about equally often (chi-square), no other row ever; rows stay whole."""
    capacity, draws = 8, 4000
    buffer = empty(capacity)
    for number in range(written):
        buffer = ring_buffer.add(buffer, numbered([number + 1]), jnp.ones(1, bool))
    drawn = ring_buffer.draw_rows(jax.random.key(1), buffer, (2, draws // 2))
    assert drawn.observation.shape == (2, draws // 2, 2)
    numbers = np.array(drawn.reward).ravel()
    flat = jax.tree.map(lambda x: x.reshape(draws, *x.shape[2:]), drawn)
    assert_rows_equal(flat, numbered(numbers))
    values, counts = np.unique(numbers, return_counts=True)
    np.testing.assert_array_equal(values, np.arange(max(written - capacity, 0), written) + 1)
    # The key is fixed; a wrong distribution has p far below this.
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


# --- other rows ---------------------------------------------------------------------------


def test_an_expansion_is_written_if_any_of_its_steps_is_valid():
    horizon, x = 3, jnp.arange(4.0)
    steps = jnp.broadcast_to(x[:, None], (4, horizon))
    length = jnp.full(4, horizon, jnp.int32)
    rows = Expansion(x[:, None], -x[:, None], steps, steps, steps[..., None], length)
    valid = jnp.array([[0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 1, 1]], bool)
    buffer = ring_buffer.add(ring_buffer.empty(5, shapes_of(rows)), rows, valid)
    assert int(buffer.written) == 3
    assert isinstance(buffer.rows, Expansion)
    np.testing.assert_array_equal(buffer.rows.observation[:, 0], [1, 2, 3, 0, 0])
    assert buffer.rows.next_observation.shape == (5, horizon, 1)


def test_optional_fields_are_kept_when_they_are_given():
    rows = numbered([1, 2])
    rows = rows._replace(next_action=-rows.action, next_action_known=jnp.ones(2))
    buffer = ring_buffer.add(ring_buffer.empty(3, shapes_of(rows)), rows, jnp.ones(2, bool))
    drawn = ring_buffer.draw_rows(jax.random.key(0), buffer, (20,))
    np.testing.assert_array_equal(drawn.next_action, -drawn.action)
    assert empty(3).rows.next_action is None
    assert "next_action" not in empty(3).transitions


def test_any_named_tuple_is_a_row():
    class Pair(NamedTuple):
        left: jax.Array  # [2]
        right: jax.Array  # []

    shape = Pair(jax.ShapeDtypeStruct((2,), jnp.int32), jax.ShapeDtypeStruct((), jnp.bool_))
    buffer = ring_buffer.empty(2, shape)
    assert (buffer.rows.left.dtype, buffer.rows.right.dtype) == (jnp.int32, jnp.bool_)
    buffer = ring_buffer.add(buffer, Pair(jnp.ones((1, 2), int), jnp.ones(1, bool)), jnp.ones(1))
    assert_rows_equal(buffer.rows, Pair(np.array([[1, 1], [0, 0]]), np.array([True, False])))
