"""Synthetic transitions and their ring buffer against NumPy loops and Python lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dawm_jax.methods import synthetic as rollout
from dawm_jax.models.world_model import Imagined
from dawm_jax.types import Condition, Statistics, Transition, UserError

# --- target returns -----------------------------------------------------------------------


def statistics(low, high):
    """Only the range of returns matters here."""
    fields = dict.fromkeys(Statistics.__dataclass_fields__)
    return Statistics(
        **{**fields, "return_low": jnp.float32(low), "return_high": jnp.float32(high)}
    )


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.2, 3.0])
@pytest.mark.parametrize("low, high", [(0.1, 1.0), (-1.0, -0.2), (-1.0, 0.5)])
def test_amplified_equals_numpy(low, high, factor):
    """More is better also for negative returns, and never more than the data's best."""
    returns = np.linspace(low, high, 9, dtype=np.float32)
    actual = rollout.target_return(
        jnp.asarray(returns), statistics(low, high), rule="amplified", factor=factor
    )
    # Multiplying a negative return by the factor would ask for less.
    wanted = [r * factor if r > 0 else r * (2.0 - factor) for r in returns.astype(np.float64)]
    np.testing.assert_allclose(actual, np.minimum(wanted, high), rtol=1e-5, atol=1e-6)
    assert np.all(actual <= np.float32(high))
    if factor >= 1:
        assert np.all(actual >= returns)


def test_amplified_keeps_a_held_out_return_above_the_best():
    """A start beyond the training data's best is not asked for less than it has."""
    actual = rollout.target_return(
        jnp.array([1.3]), statistics(0.0, 1.0), rule="amplified", factor=1.2
    )
    np.testing.assert_allclose(actual, [1.3], rtol=1e-6)


@pytest.mark.parametrize("low, high", [(0.1, 1.0), (-1.0, -0.2)])
def test_max_fraction_equals_numpy(low, high):
    """0 is the data's worst, 1 its best, whatever the start."""
    for factor, expected in ((0.0, low), (1.0, high), (0.8, low + 0.8 * (high - low))):
        actual = rollout.target_return(
            jnp.array([-5.0, 0.0, 5.0]), statistics(low, high), rule="max_fraction", factor=factor
        )
        np.testing.assert_allclose(actual, np.full(3, expected), rtol=1e-6)


def test_unknown_rule():
    with pytest.raises(UserError, match="expected one of amplified, max_fraction, got 'best'"):
        rollout.target_return(jnp.zeros(1), statistics(0, 1), rule="best", factor=1.0)


# --- a world with known dynamics ----------------------------------------------------------

# s' = s + a / 2, so that a = 2 (s' - s). All values are multiples of 1/16: float32 is exact.
B, H, S = 4, 5, 2
TERMINAL = 3.0  # the world ends when the first coordinate passes this


def plan(step):
    """The action that the fake world takes in a window's step > 0."""
    return np.array([0.5, -0.25], np.float32) * (step % 3 - 0.5)


def fake_sample(key, condition):
    """A deterministic world model; like the diffusion model it goes on after the end."""
    del key
    state, states, rewards, terminated = condition.state, [condition.state], [], []
    for step in range(H):
        action = condition.action if step == 0 else jnp.broadcast_to(plan(step), (B, S))
        state = state + action / 2
        states.append(state)
        rewards.append(state[:, 0] + step)
        terminated.append((state[:, 0] > TERMINAL).astype(jnp.float32))
    stack = lambda leaves: jnp.stack(leaves, axis=1)
    return Imagined(stack(states), stack(rewards), stack(terminated))


def infer(state, next_state):
    return 2 * (next_state - state)


# The last three windows end: at once, in the first step to have passed, and later.
STATES = np.array([[0.0, 1.0], [2.75, 0.0], [3.0, 1.0], [2.9375, -1.0]], np.float32)
ACTIONS = np.array([[0.5, -1.0], [1.0, 0.25], [-0.5, 0.5], [0.0, 1.0]], np.float32)
CONDITION = Condition(jnp.asarray(STATES), jnp.asarray(ACTIONS), jnp.zeros(B))


def test_rollout_equals_numpy_loop():
    """Bit for bit: states, actions, rewards, terminations, and which steps exist."""
    actual, valid = rollout.rollout(jax.random.key(0), CONDITION, sample=fake_sample, infer=infer)
    expected, exists = [], []
    for state, first_action in zip(STATES, ACTIONS, strict=True):
        alive = True
        for step in range(H):
            action = first_action if step == 0 else plan(step)
            next_state = state + action / 2
            ended = next_state[0] > TERMINAL
            expected.append(
                Transition(state, action, next_state[0] + step, np.float32(ended), next_state)
            )
            exists.append(alive)
            alive = alive and not ended
            state = next_state
    assert 0 < np.sum(~np.array(exists)) < B * H - B  # some windows end, in their middle
    np.testing.assert_array_equal(valid, exists)
    for got, want in zip(
        actual, Transition(*map(np.stack, zip(*expected, strict=True))), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def test_first_action_is_the_real_one():
    """Also when the inverse dynamics model would say something else."""
    wrong = lambda state, next_state: jnp.full_like(state, 9.0)
    transitions, _ = rollout.complete(fake_sample(None, CONDITION), CONDITION.action, wrong)
    actions = np.array(transitions.action).reshape(B, H, S)
    np.testing.assert_array_equal(actions[:, 0], ACTIONS)
    assert np.all(actions[:, 1:] == 9.0)


def test_each_step_until_the_first_termination_is_valid():
    terminated = jnp.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]], jnp.float32)
    imagined = Imagined(jnp.zeros((5, 4, 1)), jnp.zeros((5, 3)), terminated)
    valid = rollout.complete(imagined, jnp.zeros((5, 1)), infer)[1]
    expected = [[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert valid.dtype == bool
    np.testing.assert_array_equal(valid.reshape(5, 3), np.array(expected, bool))


# --- the ring buffer ----------------------------------------------------------------------


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


def test_buffer_equals_python_list():
    """Fills, wraps, overwrites the oldest, drops what is not valid."""
    capacity, rows = 7, 5
    rng = np.random.default_rng(0)
    add = jax.jit(rollout.add)
    buffer = rollout.empty_buffer(capacity, 2, 1)
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
        expected = numbered(slots)
        for got, want in zip(buffer.transitions, expected, strict=True):
            np.testing.assert_array_equal(np.array(got)[slots > 0], np.array(want)[slots > 0])
        np.testing.assert_array_equal(np.array(buffer.transitions.reward)[slots == 0], 0.0)
    assert len(kept) > 3 * capacity


def test_a_full_write_replaces_everything():
    buffer = rollout.empty_buffer(4, 2, 1)
    for first in (1, 11):
        buffer = rollout.add(buffer, numbered(np.arange(first, first + 4)), jnp.ones(4, bool))
    np.testing.assert_array_equal(buffer.transitions.reward, [11, 12, 13, 14])


@pytest.mark.parametrize("written", [3, 8, 11])
def test_draws_are_uniform_over_what_was_written(written):
    """Every written row about equally often (chi-square), no other row ever; rows stay whole."""
    capacity, draws = 8, 4000
    buffer = rollout.empty_buffer(capacity, 2, 1)
    for number in range(written):
        buffer = rollout.add(buffer, numbered([number + 1]), jnp.ones(1, bool))
    drawn = rollout.draw_rows(jax.random.key(1), buffer, (2, draws // 2))
    assert drawn.observation.shape == (2, draws // 2, 2)
    numbers = np.array(drawn.reward).ravel()
    whole = numbered(numbers)
    for got, want in zip(drawn, whole, strict=True):
        np.testing.assert_array_equal(np.array(got).reshape(want.shape), want)
    values, counts = np.unique(numbers, return_counts=True)
    np.testing.assert_array_equal(values, np.arange(max(written - capacity, 0), written) + 1)
    # The key is fixed; a wrong distribution has p far below this.
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
