"""Columns that follow from the state: the loss against NumPy, and a system whose columns do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

from dawm_jax.data import normalizer as normalizing
from dawm_jax.methods import diffusion_models
from dawm_jax.models import derived, inverse_dynamics, optim, tokens
from dawm_jax.models.base import keep
from dawm_jax.types import Condition, Normalizer, Window

BATCH, HORIZON, STATES, COLUMNS, ACTIONS = 5, 3, 2, 5, 2


def _normalizer():
    """Of five columns, of which the first two are the state."""
    rng = np.random.default_rng(0)
    values = dict.fromkeys(Normalizer.__dataclass_fields__, jnp.ones(()))
    array = lambda *x: jnp.asarray(x, jnp.float32)
    return Normalizer(
        **values
        | {
            "observation_mean": jnp.asarray(rng.normal(size=COLUMNS), jnp.float32),
            "observation_std": array(0.5, 2.0, 1.0, 3.0, 0.25),
            "observation_low": jnp.full(COLUMNS, -20.0),
            "observation_high": jnp.full(COLUMNS, 20.0),
            "change_mean": array(0.1, -0.1, 0.3, 0.2, 0.5),
            "change_std": array(0.5, 0.25, 1.0, 1.0, 1.0),
            "change_low": jnp.full(COLUMNS, -9.0),
            "change_high": jnp.full(COLUMNS, 9.0),
            "action_low": -jnp.ones(ACTIONS),
            "action_high": jnp.ones(ACTIONS),
        }
    )


NORMALIZER = _normalizer()
STATE_CONSTANTS = normalizing.leading(NORMALIZER, STATES)
MODEL = derived.make((7,), NORMALIZER, STATE_CONSTANTS)


def _window(seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    lengths = np.array([3, 1, 2, 3, 2])[:, None]
    return Window(
        states=normal(BATCH, HORIZON + 1, COLUMNS),
        rewards=normal(BATCH, HORIZON),
        terminated=jnp.zeros((BATCH, HORIZON)),
        mask=jnp.asarray(np.arange(HORIZON)[None] < lengths, jnp.float32),
        action=normal(BATCH, ACTIONS),
        return_to_go=normal(BATCH),
    )


def _numpy_inferred(params, states):
    """[B, H + 1, 2] -> [B, H, 3], one pair of states after the other, float64."""
    states = np.asarray(states, np.float64)
    mean, std = (
        np.asarray(x, np.float64)[:STATES] for x in (NORMALIZER.change_mean, NORMALIZER.change_std)
    )
    found = np.zeros((len(states), HORIZON, COLUMNS - STATES))
    for row in range(len(states)):
        for k in range(HORIZON):
            before, after = states[row, k], states[row, k + 1]
            pair = np.concatenate([after, (after - before - mean) / std])
            found[row, k] = reference.mlp(params["params"], pair)
    return found


def test_the_loss_is_the_mean_squared_error_of_real_steps():
    params, window = MODEL.init(jax.random.key(1)), _window()
    wanted = _numpy_inferred(params, window.states[..., :STATES])
    squared = np.square(wanted - np.asarray(window.states)[:, 1:, STATES:])
    expected = (squared * np.asarray(window.mask)[..., None]).mean()
    np.testing.assert_allclose(MODEL.loss(params, window), expected, rtol=1e-5)


def test_observations_are_completed_and_clipped():
    params, window = MODEL.init(jax.random.key(1)), _window()
    states, first = window.states[..., :STATES], window.states[:, 0]
    got = MODEL.complete(params, states, first)
    np.testing.assert_array_equal(got[..., :STATES], states)
    np.testing.assert_array_equal(got[:, 0], first)
    wanted = _numpy_inferred(params, states)
    np.testing.assert_allclose(got[:, 1:, STATES:], wanted, atol=1e-5)
    # Bounds of ± .01 standard deviations about the mean.
    near = lambda sign: NORMALIZER.observation_mean + sign * 0.01 * NORMALIZER.observation_std
    narrow = dataclasses.replace(NORMALIZER, observation_low=near(-1), observation_high=near(1))
    clipped = dataclasses.replace(MODEL, normalizer=narrow).complete(params, states, first)
    np.testing.assert_allclose(clipped[:, 1:, STATES:], np.clip(wanted, -0.01, 0.01), atol=1e-6)
    assert (np.abs(wanted) > 0.01).any()


def test_columns_that_follow_from_the_state_are_learnt():
    """Of columns 2 s'_0, s'_1 - s_1 and s'_0 s_1 the fit leaves less than 3 % of the variance."""

    def window(key):
        states = jax.random.normal(key, (64, HORIZON + 1, STATES))
        before, after = states[:, :-1], states[:, 1:]
        columns = [
            2.0 * after[..., 0],
            after[..., 1] - before[..., 1],
            after[..., 0] * before[..., 1],
        ]
        rest = jnp.pad(jnp.stack(columns, -1), ((0, 0), (1, 0), (0, 0)))
        observations = jnp.concatenate([states, rest], -1)
        return _window()._replace(states=observations, mask=jnp.ones((64, HORIZON)))

    model = derived.make((64, 64), NORMALIZER, STATE_CONSTANTS)
    optimizer = optim.adam(3e-3, schedule="constant", total_steps=1)

    def step(state, key):
        loss = lambda params: (model.loss(params, window(key)), {})
        return optim.fit_step(state, loss, optimizer, ema_decay=0.0, mean=keep)

    keys = jax.random.split(jax.random.key(1), 1_500)
    fitted = optim.init_state(model.init(jax.random.key(0)), optimizer)
    fitted, _ = jax.jit(lambda state: jax.lax.scan(step, state, keys))(fitted)
    # The columns' variances are 4, 2 and 1.
    assert model.loss(fitted.params, window(jax.random.key(2))) < 0.03 * (4 + 2 + 1) / 3


def test_all_columns_in_the_state_need_no_model():
    assert derived.make((7,), NORMALIZER, NORMALIZER) is None


@pytest.mark.parametrize("columns", [0, COLUMNS, COLUMNS + 3])
def test_all_columns_are_the_state_by_default(columns):
    assert normalizing.leading(NORMALIZER, columns) is NORMALIZER


def test_leading_constants_are_those_of_the_first_columns():
    for name in Normalizer.__dataclass_fields__:
        whole, part = getattr(NORMALIZER, name), getattr(STATE_CONSTANTS, name)
        by_column = name.startswith(("observation", "change"))
        np.testing.assert_array_equal(part, whole[:STATES] if by_column else whole)


# --- in the world model and the inverse dynamics model ----------------------------------------


def _world_model(state_columns, layout=tokens.DAWM):
    from dawm_jax.config import schema

    config = schema.parse(schema.get_config("smoke"))
    section = dataclasses.replace(config.world_model, state_columns=state_columns)
    config = dataclasses.replace(config, world_model=section, horizon=HORIZON)
    return diffusion_models.make(config, NORMALIZER, layout)


def test_generated_windows_are_whole_observations():
    model = _world_model(STATES)
    params = model.init(jax.random.key(0)).params
    assert set(params) == {"denoiser", "termination", "derived"}
    window = _window()
    condition = Condition(window.states[:, 0], window.action, window.return_to_go)
    got = model.sample(params, jax.random.key(3), condition)
    assert got.states.shape == (BATCH, HORIZON + 1, COLUMNS)
    np.testing.assert_array_equal(got.states[:, 0], condition.state)
    wanted = _numpy_inferred(params["derived"], got.states[..., :STATES])
    np.testing.assert_allclose(got.states[:, 1:, STATES:], wanted, atol=1e-5)


def test_the_other_columns_do_not_reach_the_denoiser():
    model, window = _world_model(STATES), _window()
    params = model.init(jax.random.key(0)).params
    draws = model.draw(jax.random.key(1), BATCH)
    changed = window._replace(states=window.states.at[..., STATES:].multiply(3.0))
    (_, first), (_, second) = (model.loss(params, w, draws) for w in (window, changed))
    assert first["loss"] == second["loss"]
    assert first["termination_loss"] == second["termination_loss"]
    assert first["derived_loss"] != second["derived_loss"]
    total = model.loss(params, window, draws)[0]
    np.testing.assert_allclose(total, sum(first.values()), rtol=1e-6)


def test_plans_of_states_infer_no_columns():
    model = _world_model(STATES, tokens.STATES)
    assert model.derived is None
    assert set(model.init(jax.random.key(0)).params) == {"denoiser"}


def test_without_the_setting_nothing_changes():
    model = _world_model(0)
    assert model.derived is None and model.tokens.state_size == COLUMNS
    assert set(model.init(jax.random.key(0)).params) == {"denoiser", "termination"}


def test_actions_are_inferred_from_the_state_alone():
    model = inverse_dynamics.make(
        inverse_dynamics.Settings(hidden=(8,)), NORMALIZER, state_columns=STATES
    )
    params = model.init(jax.random.key(0)).params
    states = _window().states
    action = lambda x: model.infer(params, x[:, 0], x[:, 1])
    np.testing.assert_array_equal(action(states), action(states.at[..., STATES:].set(9.0)))
    assert (action(states) != action(states.at[..., 0].add(1.0))).any()
    # A plan's states have no other columns.
    np.testing.assert_array_equal(action(states), action(states[..., :STATES]))
