"""What decays while agents are fine-tuned: the shares of a minibatch, and the pull of the data."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Counts(NamedTuple):
    """Rows of a minibatch by where they come from; they sum to its size."""

    offline: jax.Array  # [] int32, of the dataset
    generated: jax.Array  # [] int32
    online: jax.Array  # [] int32, lived through


class Most(NamedTuple):
    """The most rows of each kind that any minibatch of a training has."""

    offline: int
    generated: int
    online: int


def progress(step: jax.Array, *, first: int, last: int) -> jax.Array:
    """How far a training is between two steps, 0 before `first`, 1 from `last` on, [] float32."""
    passed = (step - first).astype(jnp.float32) / max(last - first, 1)
    return jnp.clip(passed, 0.0, 1.0)


def pull(done: jax.Array, *, decay: float) -> jax.Array:
    """decay ** done: 1 at the beginning and `decay` at the end, [] float32.

    Args:
      done: [] in [0, 1].
      decay: above 0 and at most 1.
    """
    return jnp.asarray(decay, jnp.float32) ** done


def counts(done: jax.Array, *, offline: float, generated: float, decay: float, size: int) -> Counts:
    """Rows of each kind at a point of the training.

    The shares of offline and generated rows are those given times 1 - decay * done, rounded to
    whole rows; all other rows are online.

    Args:
      done: [] in [0, 1].
      offline: share of rows of the dataset at first.
      generated: share of generated rows at first.
      decay: part of both shares that is gone in the end, in [0, 1].
      size: rows of a minibatch.
    """
    kept = 1.0 - decay * done
    whole = lambda share: jnp.round(share * size * kept).astype(jnp.int32)
    num_offline = whole(offline)
    num_generated = jnp.minimum(whole(generated), size - num_offline)
    return Counts(num_offline, num_generated, size - num_offline - num_generated)


def most(*, offline: float, generated: float, decay: float, size: int) -> Most:
    """The most rows of each kind that `counts` gives at any point, for sizes of arrays.

    It computes numbers and cannot be called inside jit. The arguments are those of `counts`.
    """
    first, last = (
        counts(jnp.float32(done), offline=offline, generated=generated, decay=decay, size=size)
        for done in (0.0, 1.0)
    )
    # Rounding keeps the order of numbers: offline and generated rows never grow.
    return Most(int(first.offline), int(first.generated), int(last.online))


def select(numbers: Counts, limits: Most, *, size: int) -> jax.Array:
    """Which of the drawn rows a minibatch is made of, [size] int32.

    The drawn rows are `limits.offline` offline ones, then `limits.generated` generated and
    `limits.online` online ones. The minibatch has the first `numbers` of each, in this order.
    """
    index = jnp.arange(size, dtype=jnp.int32)
    in_generated = index - numbers.offline
    in_online = in_generated - numbers.generated
    return jnp.where(
        in_generated < 0,
        index,
        jnp.where(
            in_online < 0,
            limits.offline + in_generated,
            limits.offline + limits.generated + in_online,
        ),
    )
