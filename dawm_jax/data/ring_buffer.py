"""A ring buffer of rows on the device, for use inside jit.

A row is a NamedTuple of arrays, such as a Transition or an Expansion.
"""

from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import struct

Row = TypeVar("Row", bound=tuple)


@struct.dataclass
class Buffer(Generic[Row]):
    """A ring of the rows written last.

    The arrays are kept by field name, without fields that are None. So checkpoints of a buffer
    do not change when its type of row gets a new optional field.

    Attributes:
      transitions: [capacity, ...] by name of the row's field.
      written: int32, number of rows ever added.
      row_type: class of the rows.
    """

    transitions: dict[str, jax.Array]
    written: jax.Array
    row_type: type[Row] = struct.field(pytree_node=False)

    @property
    def capacity(self) -> int:
        """Number of rows that the buffer holds when it is full."""
        return next(iter(self.transitions.values())).shape[0]

    @property
    def rows(self) -> Row:
        """All slots [capacity, ...]; those that were not written yet are 0."""
        return self.row_type(**self.transitions)


def empty(capacity: int, row: Row) -> Buffer[Row]:
    """A buffer of zeros in which nothing is written.

    Args:
      capacity: number of rows.
      row: shapes and types of one row, without a batch axis: a NamedTuple of
        jax.ShapeDtypeStruct or arrays; fields that are None stay None.
    """
    zeros = {
        name: jnp.zeros((capacity, *leaf.shape), leaf.dtype) for name, leaf in _fields(row).items()
    }
    return Buffer(zeros, jnp.int32(0), type(row))


def add(buffer: Buffer[Row], rows: Row, valid: jax.Array) -> Buffer[Row]:
    """Writes the valid rows over the oldest ones.

    Args:
      buffer: the ring.
      rows: [n, ...].
      valid: [n] or [n, H] bool; a row with any valid step is written. At most as many rows as the
        capacity may have one: which of two rows in one slot stays is undefined.
    """
    valid = valid.reshape(len(valid), -1).any(axis=1)
    position = buffer.written + jnp.cumsum(valid) - 1
    # The slot of an invalid row is past the end, where a scatter drops it.
    slot = jnp.where(valid, position % buffer.capacity, buffer.capacity)
    stored = jax.tree.map(
        lambda ring, new: ring.at[slot].set(new, mode="drop"), buffer.transitions, _fields(rows)
    )
    written = buffer.written + valid.sum(dtype=jnp.int32)
    return Buffer(stored, written, buffer.row_type)


def draw_rows(key: jax.Array, buffer: Buffer[Row], shape: tuple[int, ...]) -> Row:
    """Rows drawn uniformly with replacement from the written ones.

    Args:
      key: random number generator state, the key is consumed.
      buffer: the ring; if nothing is written, the rows are 0.
      shape: leading axes of the result.
    """
    filled = jnp.minimum(buffer.written, buffer.capacity)
    indices = jax.random.randint(key, shape, 0, jnp.maximum(filled, 1))
    return jax.tree.map(lambda ring: ring[indices], buffer.rows)


def _fields(row: Any) -> dict[str, Any]:
    """The fields of a NamedTuple that are not None."""
    return {name: leaf for name, leaf in row._asdict().items() if leaf is not None}
