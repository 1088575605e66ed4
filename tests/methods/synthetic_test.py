"""Generated windows as rows, and the returns they aim at, against NumPy loops."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dawm_jax.methods import synthetic
from dawm_jax.methods.base import Generated
from dawm_jax.methods.synthetic import FirstSteps, MultiStep, TargetReturn
from dawm_jax.types import (
    Condition,
    GeneratedWindow,
    Normalizer,
    Returns,
    Transition,
    UserError,
)

# --- target returns -----------------------------------------------------------------------


def normalizer(low, high):
    """Only the range of returns matters here."""
    fields = dict.fromkeys(Normalizer.__dataclass_fields__)
    return Normalizer(
        **{**fields, "return_low": jnp.float32(low), "return_high": jnp.float32(high)}
    )


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.2, 3.0])
@pytest.mark.parametrize("low, high", [(0.1, 1.0), (-1.0, -0.2), (-1.0, 0.5)])
def test_amplified_equals_numpy(low, high, factor):
    """More is better also for negative returns, and never more than the data's best."""
    returns = np.linspace(low, high, 9, dtype=np.float32)
    actual = TargetReturn("amplified", factor, normalizer(low, high))(jnp.asarray(returns))
    # Multiplying a negative return by the factor would ask for less.
    wanted = [r * factor if r > 0 else r * (2.0 - factor) for r in returns.astype(np.float64)]
    np.testing.assert_allclose(actual, np.minimum(wanted, high), rtol=1e-5, atol=1e-6)
    assert np.all(actual <= np.float32(high))
    if factor >= 1:
        assert np.all(actual >= returns)


def test_amplified_keeps_a_held_out_return_above_the_best():
    """A start beyond the training data's best is not asked for less than it has."""
    actual = TargetReturn("amplified", 1.2, normalizer(0.0, 1.0))(jnp.array([1.3]))
    np.testing.assert_allclose(actual, [1.3], rtol=1e-6)


@pytest.mark.parametrize("low, high", [(0.1, 1.0), (-1.0, -0.2)])
def test_max_fraction_equals_numpy(low, high):
    """0 is the data's worst, 1 its best, whatever the start."""
    for factor, expected in ((0.0, low), (1.0, high), (0.8, low + 0.8 * (high - low))):
        target = TargetReturn("max_fraction", factor, normalizer(low, high))
        actual = target(jnp.array([-5.0, 0.0, 5.0]))
        np.testing.assert_allclose(actual, np.full(3, expected), rtol=1e-6)


def test_unknown_rule():
    with pytest.raises(UserError, match="expected one of amplified, max_fraction, got 'best'"):
        TargetReturn("best", 1.0, normalizer(0, 1))(jnp.zeros(1))


def test_aiming_changes_the_return_alone():
    condition = Condition(jnp.ones((2, 3)), jnp.ones((2, 1)), jnp.array([0.2, 0.4]))
    aimed = TargetReturn("max_fraction", 0.5, normalizer(0.0, 1.0)).aim(condition)
    np.testing.assert_array_equal(aimed.return_to_go, [0.5, 0.5])
    np.testing.assert_array_equal(aimed.state, condition.state)
    np.testing.assert_array_equal(aimed.action, condition.action)


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
    return GeneratedWindow(stack(states), stack(rewards), stack(terminated))


def infer(state, next_state):
    return 2 * (next_state - state)


# The last three windows end: at once, in the first step to have passed, and later.
STATES = np.array([[0.0, 1.0], [2.75, 0.0], [3.0, 1.0], [2.9375, -1.0]], np.float32)
ACTIONS = np.array([[0.5, -1.0], [1.0, 0.25], [-0.5, 0.5], [0.0, 1.0]], np.float32)
CONDITION = Condition(jnp.asarray(STATES), jnp.asarray(ACTIONS), jnp.zeros(B))


def generate(infer=infer, **options):
    """What DAWM makes of the fake world's windows."""
    window = synthetic.complete(fake_sample(None, CONDITION), CONDITION.action, infer)
    return synthetic.to_transitions(window, **options)


def test_transitions_equal_numpy_loop():
    """Bit for bit: states, actions, rewards, terminations, and which steps exist."""
    actual, valid = generate()
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
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *expected)
    jax.tree.map(np.testing.assert_array_equal, actual, stacked)


def test_first_action_is_the_real_one():
    """Also when the inverse dynamics model would say something else."""
    wrong = lambda state, next_state: jnp.full_like(state, 9.0)
    transitions, _ = generate(infer=wrong)
    actions = np.array(transitions.action).reshape(B, H, S)
    np.testing.assert_array_equal(actions[:, 0], ACTIONS)
    assert np.all(actions[:, 1:] == 9.0)


def test_each_step_until_the_first_termination_is_valid():
    terminated = jnp.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]], jnp.float32)
    window = GeneratedWindow(
        jnp.zeros((5, 4, 1)), jnp.zeros((5, 3)), terminated, jnp.zeros((5, 3, 1))
    )
    condition = Condition(jnp.zeros((5, 1)), jnp.zeros((5, 1)), jnp.zeros(5))
    expected = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1]], bool)
    for valid in (
        synthetic.to_transitions(window).valid,
        synthetic.to_expansions(window, condition).valid,
    ):
        assert valid.dtype == bool
        np.testing.assert_array_equal(valid.reshape(5, 3), expected)


def test_expansions_keep_the_real_start():
    window = fake_sample(None, CONDITION)
    expansions, _ = synthetic.to_expansions(window, CONDITION)
    np.testing.assert_array_equal(expansions.observation, STATES)
    np.testing.assert_array_equal(expansions.action, ACTIONS)
    np.testing.assert_array_equal(expansions.reward, window.rewards)
    np.testing.assert_array_equal(expansions.terminated, window.terminated)
    np.testing.assert_array_equal(expansions.next_observation, window.states[:, 1:])


# --- next actions -------------------------------------------------------------------------


def test_the_next_action_is_that_of_the_following_step():
    """The last step of a window has none: it repeats its own action and says so."""
    rows = generate(next_action=True).rows
    steps = lambda leaf: np.array(leaf).reshape(B, H, -1)
    actions, following = steps(rows.action), steps(rows.next_action)
    np.testing.assert_array_equal(following[:, :-1], actions[:, 1:])
    np.testing.assert_array_equal(following[:, -1], actions[:, -1])
    known = np.broadcast_to(np.arange(H) < H - 1, (B, H))
    np.testing.assert_array_equal(steps(rows.next_action_known)[..., 0], known)
    plain = generate().rows
    assert plain.next_action is None and plain.next_action_known is None


# --- first steps --------------------------------------------------------------------------


class FakeMethod:
    """Generates the fake world's transitions; has no models."""

    models: ClassVar = {}

    def __init__(self, **options):
        self.options = options

    def generate(self, params, key, condition):
        return generate(**self.options)


def test_first_steps_are_every_horizonth_row():
    method = FirstSteps(FakeMethod(), H)
    rows, valid = method.generate({}, jax.random.key(0), CONDITION)
    whole = generate()
    first = Generated(*jax.tree.map(lambda leaf: np.array(leaf)[::H], tuple(whole)))
    jax.tree.map(np.testing.assert_array_equal, Generated(rows, valid), first)
    np.testing.assert_array_equal(rows.observation, STATES)
    np.testing.assert_array_equal(rows.action, ACTIONS)
    assert valid.shape == (B,) and valid.all()
    assert method.models == {}


# --- returns over several steps -----------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 4, H, H + 3])
def test_returns_equal_numpy_loop(steps):
    """Rewards until the window's end or a termination; the value of the state after the last."""
    gamma = 0.9
    method = MultiStep(FakeMethod(next_action=True), H, Returns(steps, gamma))
    rows, valid = method.generate({}, jax.random.key(0), CONDITION)
    plain, plain_valid = jax.tree.map(np.asarray, tuple(generate(next_action=True)))
    np.testing.assert_array_equal(valid, plain_valid)
    np.testing.assert_array_equal(rows.observation, plain.observation)
    np.testing.assert_array_equal(rows.action, plain.action)
    ended = 0
    for row in np.flatnonzero(plain_valid):
        start = row % H
        last = row + min(steps, H - start) - 1
        reward, terminated = np.float64(0.0), 0.0
        for index in range(row, last + 1):
            if not terminated:
                reward += gamma ** (index - row) * plain.reward[index]
            terminated = max(terminated, plain.terminated[index])
        ended += bool(terminated) and not plain.terminated[row]
        np.testing.assert_allclose(rows.reward[row], reward, rtol=1e-6)
        assert rows.terminated[row] == terminated
        np.testing.assert_allclose(rows.discount[row], gamma ** (last - row + 1), rtol=1e-6)
        for name in ("next_observation", "next_action", "next_action_known"):
            got, wanted = getattr(rows, name)[row], getattr(plain, name)[last]
            np.testing.assert_array_equal(got, wanted)
    assert (ended > 0) == (steps > 1)  # some terminations are not in the first step
    assert method.models == {}
