"""What every registered denoiser must do, and what a window's tokens tell each other."""

import dataclasses

import denoiser_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference
import pytest

from dawm_jax.models import (
    decision_unet,
    optim,
    residual_mlp,
    temporal_resnet,
    tokens,
    transformer,
    unet,
    world_model,
)
from dawm_jax.models.base import DENOISERS
from dawm_jax.models.sampler import Sampler
from dawm_jax.runtime import settings
from dawm_jax.types import Condition, Normalizer, UserError, Window

SHAPE = reference.SHAPE
SIZES = {
    "decision_unet": decision_unet.Settings(dim=8, multipliers=(1, 2), kernel_size=3, groups=4),
    "residual_mlp": residual_mlp.Settings(width=16, blocks=2),
    "temporal_resnet": temporal_resnet.Settings(width=16, blocks=2),
    "transformer": transformer.Settings(width=16, layers=2, heads=2, mlp_ratio=2),
    "unet": unet.Settings(dim=8, multipliers=(1, 2), kernel_size=3, groups=4),
}
every_denoiser = pytest.mark.parametrize("name", sorted(SIZES))


def make(name, dtype=jnp.float32, shape=SHAPE):
    return DENOISERS.get(name).make(SIZES[name], shape, dtype=dtype)


def float32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def case(name):
    """A compiled denoiser, random parameters and inputs; returns of rows 0 and 2 are null."""
    denoiser = make(name)
    apply = numpy_reference.jit(denoiser.__call__)
    return apply, *float32((reference.parameters(denoiser), *reference.inputs()))


def test_all_are_registered_with_sections_of_their_own():
    assert DENOISERS.names() == sorted(SIZES)
    for spec in DENOISERS:
        for scale in settings.SCALES:
            section = settings.build(
                spec.settings, settings.defaults(spec.settings, scale), name=f"config.{spec.name}"
            )
            assert type(section) is type(SIZES[spec.name])


def test_an_unknown_denoiser_is_named():
    with pytest.raises(UserError, match=r"config.world_model.denoiser: expected one of .*'cnn'"):
        DENOISERS.get("cnn")
    with pytest.raises(UserError, match=r"^config.planner.denoiser: expected one of .*'cnn'"):
        DENOISERS.get("cnn", setting="config.planner.denoiser")


@every_denoiser
def test_output_has_the_tokens_own_channels(name):
    apply, params, *inputs = case(name)
    output = jax.eval_shape(apply, params, *inputs)
    assert output.shape == (3, SHAPE.tokens, SHAPE.channels) and output.dtype == jnp.float32
    fresh = jax.eval_shape(make(name).init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype(jnp.float32)}


@every_denoiser
def test_rows_of_a_batch_are_independent(name):
    apply, params, *inputs = case(name)
    whole = apply(params, *inputs)
    row = jax.tree.map(lambda leaf: leaf[1:2], inputs)
    np.testing.assert_allclose(apply(params, *row), whole[1:2], rtol=1e-4, atol=1e-4)


@every_denoiser
def test_every_condition_matters_and_a_null_return_does_not(name):
    apply, params, x, step, condition = case(name)
    output = np.asarray(apply(params, x, step, condition))
    changed = lambda other: np.any(np.asarray(other) != output, axis=(1, 2))
    assert changed(apply(params, x, step + 1.0, condition)).all()
    action = condition._replace(action=condition.action + 1.0)
    assert changed(apply(params, x, step, action)).all()
    returns = condition._replace(return_to_go=condition.return_to_go + 1.0)
    np.testing.assert_array_equal(
        changed(apply(params, x, step, returns)), condition.conditioned > 0
    )


@every_denoiser
def test_a_plan_ignores_the_action(name):
    shape = SHAPE._replace(on_action=False)
    denoiser = make(name, shape=shape)
    params = float32(reference.parameters(denoiser))
    x, step, condition = float32(reference.inputs())
    none = condition._replace(action=jnp.zeros((len(x), 0)))
    apply = numpy_reference.jit(denoiser.__call__)
    np.testing.assert_array_equal(apply(params, x, step, condition), apply(params, x, step, none))


@every_denoiser
@pytest.mark.usefixtures("standard_promotion")
def test_computes_in_bfloat16_but_returns_float32(name):
    exact, rough = make(name), make(name, jnp.bfloat16)
    params = float32(reference.parameters(exact, scale=0.2))
    inputs = float32(reference.inputs())
    both = numpy_reference.jit(lambda *inputs: (exact(*inputs), rough(*inputs)))
    expected, actual = both(params, *inputs)
    assert actual.dtype == jnp.float32
    difference = np.abs(actual - expected).max() / np.abs(expected).max()
    # A bfloat16 has 8 bits, rounding by up to 2^-9; some twenty layers add such errors up.
    assert 2**-12 < difference < 20 * 2**-8


@every_denoiser
def test_every_predicted_token_sees_every_other(name):
    """d output[i] / d input[j] is not 0; token 0 is known, and its output is not used."""
    influence = _influence(name)
    assert influence.shape == (SHAPE.tokens, SHAPE.tokens)
    assert np.all(influence[1:] > 0)


def _influence(name):
    """[T, T]: largest derivative of output token i by input token j, over the batch."""
    denoiser, (_, params, *inputs) = make(name), case(name)

    def influence(params, x, step, condition):
        outputs = lambda x: denoiser(params, x, step, condition).sum(axis=(0, 2))
        return jnp.abs(jax.jacrev(outputs)(x)).max(axis=(1, 3))

    return np.asarray(numpy_reference.jit(influence)(params, *inputs))


# --- learning -------------------------------------------------------------------------------

HORIZON = 3


def _skills(key, size):
    """A world in which the return can be chosen: each episode has a skill u in [-1, 1].

    The skill is each step's reward, the return-to-go, and the speed of the state. Nothing else
    of a start tells it: the first action is noise.
    """
    key_skill, key_state, key_action = jax.random.split(key, 3)
    skill = jax.random.uniform(key_skill, (size,), minval=-1.0, maxval=1.0)
    state = jax.random.normal(key_state, (size,))
    steps = jnp.arange(HORIZON + 1).astype(float)
    places = state[:, None] + 0.3 * skill[:, None] * steps[None]
    return Window(
        states=places[..., None],
        rewards=jnp.repeat(skill[:, None], HORIZON, axis=1),
        terminated=jnp.zeros((size, HORIZON)),
        mask=jnp.ones((size, HORIZON)),
        action=jax.random.normal(key_action, (size, 1)),
        return_to_go=skill,
    )


def _skill_model(name):
    one = jnp.ones(())
    fields = dict.fromkeys(Normalizer.__dataclass_fields__, one)
    fields |= {
        "observation_mean": jnp.zeros(1),
        "observation_std": jnp.ones(1),
        "observation_low": -5.0 * jnp.ones(1),
        "observation_high": 5.0 * jnp.ones(1),
        "reward_mean": 0.0 * one,
        "reward_low": -2.0 * one,
        "reward_high": 2.0 * one,
        "action_low": -jnp.ones(1),
        "action_high": jnp.ones(1),
    }
    values = settings.defaults(world_model.Settings, "smoke")
    values |= {"denoiser": name, "learning_rate": 4e-3, "steps": 400, "warmup_steps": 20}
    values |= {"diffusion_steps": 50, "prediction": "v"}
    section = settings.build(world_model.Settings, values, name="config.world_model")
    levels = {"multipliers": (1,)} if name in ("unet", "decision_unet") else {}
    size = dataclasses.replace(SIZES[name], **levels)
    return world_model.make(
        section,
        denoiser_settings=size,
        sampler=Sampler(sampling_steps=5, guidance=1.2),
        horizon=HORIZON,
        layout=tokens.DAWM,
        normalizer=Normalizer(**fields),
    )


@every_denoiser
def test_a_target_return_moves_what_is_generated(name):
    model, size = _skill_model(name), 128
    optimizer = optim.adam(4e-3, schedule="cosine", total_steps=400, warmup_steps=20)

    def step(state, index):
        key_window, key_draws = jax.random.split(jax.random.fold_in(jax.random.key(1), index))
        window, draws = _skills(key_window, size), model.draw(key_draws, size)
        loss = lambda params: model.loss(params, window, draws)
        return optim.fit_step(state, loss, optimizer, ema_decay=0.98)

    @jax.jit
    def run(state, starts, targets):
        state, _ = optim.scan_steps(step, state, 0, 400)

        def returns(target):
            aimed = starts._replace(return_to_go=jnp.full(size, target))
            return model.sample(state.average, jax.random.key(2), aimed)

        return jax.lax.map(returns, targets)

    starts = _skills(jax.random.key(3), size)
    condition = Condition(starts.states[:, 0], starts.action, starts.return_to_go)
    targets = jnp.array([-0.8, 0.0, 0.8])
    generated = run(jax.jit(model.init)(jax.random.key(0)), condition, targets)
    mean_reward = np.asarray(generated.rewards).mean(axis=(1, 2))
    # Without the condition every target would give the data's mean, 0. A tenth of the range,
    # and of what guidance adds to it, is allowed.
    np.testing.assert_allclose(mean_reward, targets, atol=0.25)
    travelled = np.asarray(generated.states)[:, :, -1, 0] - np.asarray(condition.state)[None, :, 0]
    np.testing.assert_allclose(travelled.mean(1), 0.9 * np.asarray(targets), atol=0.25)
