"""Shares of minibatches and decays against closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dawm_jax.training import mixing


@pytest.mark.parametrize(
    "step, expected", [(0, 0.0), (100, 0.0), (150, 0.25), (300, 1.0), (999, 1)]
)
def test_progress_is_linear_between_two_steps(step, expected):
    assert mixing.progress(jnp.int32(step), first=100, last=300) == np.float32(expected)


@pytest.mark.parametrize("done", [0.0, 0.25, 0.5, 1.0])
def test_the_pull_decays_geometrically(done):
    pull = mixing.pull(jnp.float32(done), decay=0.04)
    np.testing.assert_allclose(pull, np.exp(done * np.log(0.04)), rtol=1e-6)


def test_without_a_decay_the_pull_stays_1():
    assert mixing.pull(jnp.float32(0.7), decay=1.0) == 1.0


@pytest.mark.parametrize(
    "done, expected",
    [(0.0, (64, 64, 128)), (0.5, (48, 48, 160)), (1.0, (32, 32, 192))],
)
def test_shares_decay_linearly(done, expected):
    found = mixing.counts(jnp.float32(done), offline=0.25, generated=0.25, decay=0.5, size=256)
    assert tuple(int(number) for number in found) == expected


shares = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20)).filter(any)


# No deadline: the first call compiles.
@settings(deadline=None, max_examples=50)
@given(shares, st.floats(0, 1), st.floats(0, 1), st.integers(1, 300))
def test_a_minibatch_has_exactly_its_rows(parts, decay, done, size):
    """The rows are recovered from an array that says where each drawn row comes from."""
    offline, generated, _ = (part / sum(parts) for part in parts)
    options = {"offline": offline, "generated": generated, "decay": decay, "size": size}
    numbers = mixing.counts(jnp.float32(done), **options)
    limits = mixing.most(**options)
    assert sum(int(number) for number in numbers) == size
    assert all(0 <= int(n) <= most for n, most in zip(numbers, limits, strict=True))
    kept = np.float32(1.0) - np.float32(decay) * np.float32(done)
    assert abs(int(numbers.offline) - offline * size * kept) <= 0.5 + 1e-3
    assert abs(int(numbers.generated) - generated * size * kept) <= 1.0 + 1e-3
    origin = np.repeat(["offline", "generated", "online"], limits)
    chosen = np.asarray(mixing.select(numbers, limits, size=size))
    assert len(set(chosen.tolist())) == size  # no drawn row is taken twice
    for name, number in numbers._asdict().items():
        assert (origin[chosen] == name).sum() == int(number)
