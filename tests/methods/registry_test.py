"""The methods: what each trains, generates or plans, and what configurations they refuse."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

from configs import common
from dawm_jax import train
from dawm_jax.agents import td
from dawm_jax.data import windows
from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.methods import registry as assembly
from dawm_jax.methods.registry import assemble
from dawm_jax.training import fused
from dawm_jax.types import Expansion, UserError

S, A, H, B = 11, 3, 3, 4


@functools.cache
def make_data():
    """Two hundred steps of made-up episodes with the shape of Hopper's."""
    rng = np.random.default_rng(0)
    steps, length = 200, 10
    ends = np.arange(steps) % length == length - 1
    observations = rng.normal(size=(steps, S)).astype(np.float32)
    dataset = OfflineDataset(
        name="made-up",
        observations=observations,
        actions=rng.uniform(-1, 1, (steps, A)).astype(np.float32),
        rewards=rng.uniform(0, 2, steps).astype(np.float32),
        next_observations=np.roll(observations, -1, axis=0) + 0.1,
        terminations=ends & (np.arange(steps) % 20 == 19),
        truncations=ends & (np.arange(steps) % 20 != 19),
    )
    return windows.build(
        dataset,
        action_low=np.full(A, -2.0, np.float32),
        action_high=np.full(A, 2.0, np.float32),
        discount=0.99,
        return_scale=0.0,
        timeout_value="zero",
        held_out_fraction=0.1,
    )


def make_config(method, **overrides):
    config = common.get_config("smoke")
    config.method, config.horizon = method, H
    config.world_model.update(multipliers=(1,), groups=4, diffusion_steps=10)
    config.planner.update(horizon=H)
    for name, value in overrides.items():
        section, _, field = name.rpartition("__")
        setattr(getattr(config, section) if section else config, field, value)
    return config


def random_params(trainable, seed):
    """Parameters that make every output depend on every input, without a compilation."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(trainable.init, jax.random.key(0)).params
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), shapes)


def make_models(parts):
    named = enumerate(parts.models.items())
    return fused.Models(**{name: random_params(model, seed) for seed, (name, model) in named})


def imagine(method, **overrides):
    """The condition, what was generated, and which steps exist."""
    replay, statistics = make_data()
    parts = assemble(make_config(method, **overrides), statistics)
    condition = windows.gather_conditions(replay, jnp.arange(B) * 10)
    program = reference.jit(parts.imagine)
    return condition, *program(make_models(parts), jax.random.key(1), condition)


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("dawm", ["world_model", "inverse_dynamics"]),
        ("dwm", ["world_model"]),
        ("joint", ["world_model"]),
        ("one_step", ["world_model", "policy"]),
        ("decision_diffuser", ["world_model", "inverse_dynamics"]),
    ],
)
def test_the_models_of_each_method(method, names):
    parts = assemble(make_config(method), make_data()[1])
    assert list(parts.models) == names
    assert (parts.plan is not None) == (method == "decision_diffuser")
    # A policy sees one state, inverse dynamics two.
    if "policy" in names:
        shapes = jax.eval_shape(parts.models["policy"].init, jax.random.key(0)).params
        assert shapes["params"]["Mlp_0"]["Dense_0"]["kernel"].shape[0] == S


@pytest.mark.parametrize(
    ("method", "share", "expected"),
    [
        ("dawm", 0.5, 0.5),
        ("one_step", 0.0, 0.0),
        ("dwm", 0.5, 0.0),
        ("dwm", 1.0, 1.0),
        ("decision_diffuser", 0.5, 0.0),
    ],
)
def test_only_what_generates_transitions_mixes_real_ones_in(method, share, expected):
    config = make_config(method, training__real_fraction=share)
    assert assembly.real_fraction(config) == expected


@pytest.mark.parametrize("method", ["dawm", "joint", "decision_diffuser"])
def test_terminations_are_learnt_and_checked_where_windows_are_generated(method):
    replay, statistics = make_data()
    model = assemble(make_config(method), statistics).world_model
    params = jax.eval_shape(model.init, jax.random.key(0)).params
    found = jax.eval_shape(lambda params: model.errors(params, replay, jnp.arange(B)), params)
    plans = method == "decision_diffuser"
    assert ("termination" in params, "termination_loss" in found) == (not plans, not plans)


@pytest.mark.parametrize("method", ["joint", "one_step"])
def test_generated_actions_are_within_bounds_and_the_first_is_real(method):
    condition, transitions, valid = imagine(method)
    chex.assert_shape(transitions.action, (B * H, A))
    actions = np.asarray(transitions.action).reshape(B, H, A)
    np.testing.assert_array_equal(actions[:, 0], condition.action)
    states = np.asarray(transitions.observation).reshape(B, H, S)
    np.testing.assert_array_equal(states[:, 0], condition.state)
    assert np.abs(actions).max() <= 1.0
    assert np.asarray(valid).reshape(B, H)[:, 0].all()
    # The later actions are not copies of the first.
    assert np.abs(actions[:, 1:] - actions[:, :1]).max() > 0.1


def test_value_expansions_start_from_real_states_and_actions():
    condition, expansions, valid = imagine("dwm")
    assert isinstance(expansions, Expansion)
    np.testing.assert_array_equal(expansions.observation, condition.state)
    np.testing.assert_array_equal(expansions.action, condition.action)
    chex.assert_shape(expansions.next_observation, (B, H, S))
    chex.assert_shape([expansions.reward, expansions.terminated, valid], (B, H))
    # The same network, noise and target as DAWM's: the same states.
    _, transitions, _ = imagine("dawm")
    following = np.asarray(transitions.next_observation).reshape(B, H, S)
    np.testing.assert_allclose(expansions.next_observation, following, atol=1e-5)


def test_only_real_actions_at_equal_volume():
    """From as many more windows as there are steps in each, only the first steps."""
    condition, transitions, valid = imagine("dawm", rollout__real_actions_only=True)
    np.testing.assert_array_equal(transitions.observation, condition.state)
    np.testing.assert_array_equal(transitions.action, condition.action)
    assert valid.shape == (B,)
    config = make_config("dawm", rollout__real_actions_only=True)
    parts = assemble(config, make_data()[1])
    assert parts.num_windows == H * config.rollout.windows_per_round


def test_a_plans_action_is_the_inverse_dynamics_of_its_first_two_states():
    """And those are sampled from the known state towards the fixed share of the data's return."""
    _, statistics = make_data()
    config = make_config("decision_diffuser")
    parts = assemble(config, statistics)
    models, key = make_models(parts), jax.random.key(3)
    observation = jnp.asarray(np.random.default_rng(5).normal(size=(B, S)), jnp.float32)
    action = reference.jit(parts.plan)(models, key, observation)
    state = np.asarray(observation) - np.asarray(statistics.observation_mean)
    state = jnp.asarray(state / np.asarray(statistics.observation_std))
    low, high = float(statistics.return_low), float(statistics.return_high)
    condition = assembly.Condition(state, jnp.zeros((B, A)), jnp.full(B, low + 0.9 * (high - low)))
    states = reference.jit(parts.world_model.sample_tokens)(models.world_model, key, condition)
    chex.assert_shape(states, (B, H + 1, S))  # states alone
    np.testing.assert_allclose(states[:, 0], state, atol=1e-5)
    layers = jax.device_get(models.inverse_dynamics["params"]["Mlp_0"])
    inputs = np.concatenate([states[:, 0], states[:, 1]], axis=1)
    expected = 2.0 * np.tanh(reference.mlp(layers, inputs))  # actions reach from -2 to 2
    np.testing.assert_allclose(action, expected, atol=1e-4)


@pytest.mark.parametrize("method", [pytest.param("joint", marks=pytest.mark.slow), "one_step"])
def test_a_training_step_lowers_the_loss_of_every_model(method):
    replay, statistics = make_data()
    parts = assemble(make_config(method), statistics)
    keep = lambda tree: tree
    for model in parts.models.values():
        state = reference.jit(model.init)(jax.random.key(0))

        @reference.jit
        def losses(state, model=model):
            def one_step(state, index):  # the same rows and noise in every step
                return model.step(state, jax.random.key(7), replay, keep, keep)

            state, metrics = jax.lax.scan(one_step, state, jnp.arange(30))
            return metrics["loss"]

        values = losses(state)
        assert np.isfinite(values).all() and values[-1] < values[0]


def fake_expansions(models, key, condition):
    """Expansions that know their start, without a world model; the last step always ends."""
    del models
    shape = (len(condition.state), H)
    expansions = Expansion(
        observation=condition.state,
        action=condition.action,
        reward=jax.random.normal(key, shape),
        terminated=jnp.zeros(shape).at[:, -1].set(1.0),
        next_observation=jnp.repeat(condition.state[:, None], H, axis=1),
    )
    return expansions, jnp.ones(shape, bool)


def stub_update(state, batches, key):
    """Cheap to compile, and sensitive to every field through the expansion target."""
    batch = jax.tree.map(lambda leaf: leaf[0], batches)
    chex.assert_shape(batch.next_observation, (8, H, S))
    target = td.expansion_target(batch, lambda o: o.sum(-1), discount=0.9, return_lambda=0.5)
    inputs = jnp.concatenate([batch.observation, batch.action, target[:, None]], axis=-1)
    state = jnp.tanh(0.9 * state + inputs.mean() + 0.1 * jax.random.normal(key))
    return state, {"state": state}


def test_fused_rounds_of_expansions_equal_single_rounds():
    replay, statistics = make_data()
    config = make_config("dwm")
    parts = assemble(config, statistics)
    agent = parts.agent._replace(update=stub_update, batches_per_update=1)
    rounds = lambda number: reference.jit(
        functools.partial(
            fused.train_rounds,
            agent=agent,
            imagine=fake_expansions,
            num_rounds=number,
            updates_per_round=2,
            num_windows=parts.num_windows,
            batch_size=8,
            real_fraction=0.0,
        )
    )
    run = fused.Run(jnp.float32(0.5), parts.init_buffer())
    # Room for as many windows as there would be with their transitions.
    assert run.buffer.transitions.reward.shape == (config.rollout.buffer_capacity // H, H)
    key, single = jax.random.key(2), rounds(1)
    together, metrics = rounds(2)(run, key, jnp.int32(0), None, replay)
    for index in range(2):
        run, _ = single(run, key, jnp.int32(index), None, replay)
    assert int(run.buffer.written) == 2 * parts.num_windows
    np.testing.assert_allclose(metrics["synthetic_termination_rate"], 1 / H, rtol=1e-6)
    chex.assert_trees_all_close(together, run, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method": "mbpo"}, "config.method: expected one of dawm, dwm"),
        ({"method": "dwm", "agent": "bc"}, "config.agent: expected td3_bc or iql with"),
        (
            {"method": "decision_diffuser", "training__real_fraction": 1.0},
            "real_fraction: expected less than 1 with config.method=decision_diffuser",
        ),
        (
            {"method": "dwm", "rollout__real_actions_only": True},
            "real_actions_only: expected False",
        ),
        ({"top_fraction": 0.0}, "config.top_fraction: expected above 0"),
        ({"planner__horizon": 0}, "config.planner.horizon: expected at least 1"),
    ],
)
def test_what_a_method_cannot_mean_is_refused(tmp_path, overrides, message):
    config = make_config(overrides.pop("method", "dawm"), **overrides)
    with pytest.raises(UserError, match=message) as error:
        train.run(config, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "config.json").exists()
