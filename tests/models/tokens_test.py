"""Windows as tokens: every layout against plain loops, inverses, bounds, and what is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dawm_jax.models import tokens
from dawm_jax.models.tokens import Layout, Tokens
from dawm_jax.types import Condition, Normalizer, Window

BATCH, HORIZON, STATES, ACTIONS = 4, 3, 2, 3
LAYOUTS = [
    layout._replace(changes=changes)
    for layout in (tokens.DAWM, tokens.JOINT, tokens.STATES)
    for changes in (False, True)
]
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
CHANGE_MEAN, CHANGE_STD = np.array([0.1, -0.2]), np.array([0.5, 0.25])


def _normalizer():
    values = dict.fromkeys(Normalizer.__dataclass_fields__, jnp.ones(()))
    array = lambda *values: jnp.asarray(values, jnp.float32)
    return Normalizer(
        **values
        | {
            "observation_mean": array(1.0, -2.0),
            "observation_std": array(0.5, 4.0),
            # Standardised: -2 to 2, and -3 to 4.
            "observation_low": array(0.0, -14.0),
            "observation_high": array(2.0, 14.0),
            "change_mean": jnp.asarray(CHANGE_MEAN, jnp.float32),
            "change_std": jnp.asarray(CHANGE_STD, jnp.float32),
            "change_low": array(-1.4, -0.7),
            "change_high": array(1.1, 0.3),
            "reward_mean": jnp.float32(1.5),
            "reward_std": jnp.float32(2.0),
            "reward_low": jnp.float32(-0.5),
            "reward_high": jnp.float32(7.5),
            "action_low": -jnp.ones(ACTIONS),
            "action_high": jnp.ones(ACTIONS),
        }
    )


NORMALIZER = _normalizer()


def _window():
    """Row 0 goes on, row 1 terminates at step 2, row 2 times out at step 1, row 3 terminates."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: (0.4 * rng.normal(size=shape)).astype(np.float32)
    lengths = np.array([3, 2, 1, 3])
    mask = (np.arange(HORIZON)[None] < lengths[:, None]).astype(np.float32)
    terminated = np.zeros((BATCH, HORIZON), np.float32)
    terminated[1, 1:] = terminated[3, 2] = 1.0
    last = np.minimum(np.arange(HORIZON + 1)[None], lengths[:, None])
    window = Window(
        states=np.take_along_axis(normal(BATCH, HORIZON + 1, STATES), last[..., None], axis=1),
        rewards=normal(BATCH, HORIZON) * mask,
        terminated=terminated,
        mask=mask,
        action=normal(BATCH, ACTIONS),
        return_to_go=normal(BATCH),
        actions=normal(BATCH, HORIZON, ACTIONS),
    )
    return jax.tree.map(jnp.asarray, window)


WINDOW = _window()


def _expected_tokens(layout):
    """Token by token and row by row, in float64."""
    states, rewards, actions = (
        np.asarray(x, float) for x in (WINDOW.states, WINDOW.rewards, WINDOW.actions)
    )
    rows = []
    for row in range(BATCH):
        window = []
        for k in range(HORIZON + 1):
            state = states[row, k]
            if layout.changes and k > 0:
                state = (states[row, k] - states[row, k - 1] - CHANGE_MEAN) / CHANGE_STD
            token = [*state]
            if layout.actions:
                token += [*actions[row, k]] if k < HORIZON else [0.0] * ACTIONS
            if layout.rewards:
                token += [(rewards[row, k - 1] - 1.5) / 2.0] if k > 0 else [0.0]
            window.append(token)
        rows.append(window)
    return np.array(rows)


@every_layout
def test_tokens_equal_a_loop(layout):
    codec, expected = Tokens(layout, NORMALIZER), _expected_tokens(layout)
    np.testing.assert_allclose(codec.encode(WINDOW), expected, atol=1e-5)  # float32 rounding
    assert codec.channels == layout.channels(STATES, ACTIONS) == expected.shape[-1]


@every_layout
def test_the_first_token_of_a_start_is_that_of_its_window(layout):
    window = WINDOW._replace(actions=WINDOW.actions.at[:, 0].set(WINDOW.action))
    condition = Condition(window.states[:, 0], window.action, window.return_to_go)
    codec = Tokens(layout, NORMALIZER)
    np.testing.assert_array_equal(codec.first(condition), codec.encode(window)[:, 0])


@every_layout
def test_states_and_decode_invert_encode(layout):
    codec = Tokens(layout, NORMALIZER)
    encoded = codec.encode(WINDOW)
    np.testing.assert_allclose(codec.states(encoded), WINDOW.states, atol=1e-5)
    np.testing.assert_array_equal(codec.states(encoded)[:, 0], WINDOW.states[:, 0])
    if not layout.rewards:
        return
    decoded = codec.decode(encoded, WINDOW.terminated)
    np.testing.assert_allclose(decoded.states, WINDOW.states, atol=1e-5)
    np.testing.assert_allclose(decoded.rewards, WINDOW.rewards, atol=1e-5)
    np.testing.assert_array_equal(decoded.terminated, WINDOW.terminated)
    if layout.actions:
        np.testing.assert_array_equal(decoded.actions, WINDOW.actions)
    else:
        assert decoded.actions is None


@every_layout
def test_generated_states_stay_in_the_datas_range_and_known_ones_are_kept(layout):
    codec = Tokens(layout, NORMALIZER)
    far = codec.encode(WINDOW).at[:, 0, 0].set(-9.0).at[:, 1:].set(30.0)
    states = np.asarray(codec.states(far))
    np.testing.assert_array_equal(states[:, 0, 0], -9.0)
    np.testing.assert_allclose(states[:, 1:], np.broadcast_to([2.0, 4.0], states[:, 1:].shape))
    np.testing.assert_allclose(codec.states(-far)[:, 1:, 1], -3.0)


@every_layout
def test_bounds_are_the_datas(layout):
    low, high = Tokens(layout, NORMALIZER).bounds()
    # (-1.4 - .1) / .5 and so on.
    expected_low = [-3.0, -2.0] if layout.changes else [-2.0, -3.0]
    expected_high = [2.0, 2.0] if layout.changes else [2.0, 4.0]
    if layout.actions:
        expected_low, expected_high = expected_low + [-1.0] * 3, expected_high + [1.0] * 3
    if layout.rewards:
        expected_low, expected_high = [*expected_low, -1.0], [*expected_high, 3.0]
    np.testing.assert_allclose(low, expected_low, rtol=1e-5)
    np.testing.assert_allclose(high, expected_high, rtol=1e-5)
    clipped = Tokens(layout, NORMALIZER).clip(jnp.full((1, 2, len(low)), 50.0))
    np.testing.assert_array_equal(clipped, np.broadcast_to(high, clipped.shape))


@pytest.mark.parametrize("layout", [Layout(changes=True), tokens.JOINT._replace(changes=True)])
def test_a_denoiser_sees_the_state_before_each_change(layout):
    codec = Tokens(layout, NORMALIZER)
    encoded = codec.encode(WINDOW)
    seen = np.asarray(codec.denoiser_input(encoded))
    assert seen.shape[-1] == codec.inputs == codec.channels + STATES
    np.testing.assert_array_equal(seen[..., : codec.channels], encoded)
    np.testing.assert_array_equal(seen[:, 0, codec.channels :], 0.0)
    np.testing.assert_allclose(seen[:, 1:, codec.channels :], WINDOW.states[:, :-1], atol=1e-5)


@pytest.mark.parametrize("layout", [tokens.DAWM, tokens.JOINT, tokens.STATES])
def test_a_denoiser_sees_tokens_of_states_as_they_are(layout):
    codec = Tokens(layout, NORMALIZER)
    encoded = codec.encode(WINDOW)
    np.testing.assert_array_equal(codec.denoiser_input(encoded), encoded)
    assert codec.inputs == codec.channels


@every_layout
def test_what_follows_a_termination_is_known_and_what_follows_a_time_out_is_not(layout):
    """Row 2 times out after a step. The action of a token belongs to the step after it."""
    known = np.broadcast_to(
        Tokens(layout, NORMALIZER).known(WINDOW),
        (BATCH, HORIZON, layout.channels(STATES, ACTIONS)),
    )
    arrived = np.array([[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 1, 1]], float)
    acted = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]], float)
    for k in range(HORIZON):
        expected = [arrived[:, k]] * STATES
        expected += [acted[:, k]] * ACTIONS * layout.actions + [arrived[:, k]] * layout.rewards
        np.testing.assert_array_equal(known[:, k], np.stack(expected, axis=1))
