"""The methods: what each trains, generates or plans, and what configurations they refuse."""

import dataclasses
import functools
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

from dawm_jax.agents import td
from dawm_jax.agents.base import AGENTS
from dawm_jax.config import schema
from dawm_jax.data import replay as replaying
from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.methods.base import METHODS, Generated
from dawm_jax.models.base import keep
from dawm_jax.models.diffusion import visited_steps
from dawm_jax.models.unet import TemporalUNet
from dawm_jax.training import setup, train
from dawm_jax.training.fused import AgentRun, Inputs
from dawm_jax.types import Condition, Expansion, Transition, UserError

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
    return replaying.build(
        dataset,
        action_low=np.full(A, -2.0, np.float32),
        action_high=np.full(A, 2.0, np.float32),
        discount=0.99,
        return_scale=0.0,
        timeout_value="zero",
        held_out_fraction=0.1,
    )


def make_config(method, **overrides):
    """A smoke run of a method, with small models; "__" stands for the dot of a setting."""
    changes = {
        "method": method,
        "horizon": H,
        "unet.multipliers": (1,),
        "unet.groups": 4,
        "decision_unet.multipliers": (1,),
        "decision_unet.groups": 4,
        "world_model.diffusion_steps": 10,
        "planner.horizon": H,
        "planner.diffusion_steps": 10,
    }
    changed = {name.replace("__", "."): value for name, value in overrides.items()}
    return schema.replace(schema.parse(schema.get_config("smoke")), changes | changed)


def make_parts(method, **overrides):
    return setup.make(make_config(method, **overrides), make_data()[1])


def random_params(trainable, seed):
    """Parameters that make every output depend on every input, without a compilation."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(trainable.init, jax.random.key(0)).params
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), shapes)


def make_models(parts):
    named = enumerate(parts.method.models.items())
    return {name: random_params(model, seed) for seed, (name, model) in named}


def generate(method, **overrides):
    """The condition, what was generated, and which steps exist."""
    parts = make_parts(method, **overrides)
    condition = replaying.gather_conditions(make_data()[0], jnp.arange(B) * 10)
    program = reference.jit(parts.training.generator(policy).generate)
    return condition, *program(make_models(parts), jax.random.key(1), condition)


def policy(state):
    """For the methods that follow one: it depends on the state."""
    return jnp.tanh(state[..., :A])


def test_methods_that_ship_with_the_package():
    expected = ["dawm", "decision_diffuser", "dwm", "joint", "one_step", "one_step_cloned"]
    assert METHODS.names() == expected


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("dawm", ["world_model", "inverse_dynamics"]),
        ("dwm", ["world_model"]),
        ("joint", ["world_model"]),
        ("one_step", ["world_model"]),
        ("one_step_cloned", ["world_model", "policy"]),
        ("decision_diffuser", ["world_model", "inverse_dynamics"]),
    ],
)
def test_the_models_of_each_method(method, names):
    parts, spec = make_parts(method), METHODS.get(method)
    assert list(parts.method.models) == list(spec.sections) == names
    plans = method == "decision_diffuser"
    assert spec.plans == plans
    assert (parts.planner is not None, parts.agent is None) == (plans,) * 2
    # Nothing is generated without an agent by a method that plans or follows the agent's policy.
    assert (parts.generator is None) == (plans or method == "one_step")
    # A policy sees one state, inverse dynamics two.
    if "policy" in names:
        policy = parts.method.models["policy"]
        shapes = jax.eval_shape(policy.init, jax.random.key(0)).params
        assert shapes["params"]["Mlp_0"]["Dense_0"]["kernel"].shape[0] == S


@pytest.mark.parametrize(
    ("method", "share", "expected"),
    [
        ("dawm", 0.5, 0.5),
        ("one_step_cloned", 0.0, 0.0),
        ("dwm", 0.5, 0.5),
        ("dwm", 0.0, 0.0),
        ("dwm", 1.0, 1.0),
        ("joint", 0.5, 0.5),
        ("decision_diffuser", 0.5, 0.0),
    ],
)
def test_every_method_with_an_agent_mixes_real_rows_in(method, share, expected):
    assert METHODS.get(method).real_fraction(share) == expected
    if method != "decision_diffuser":
        parts = make_parts(method, training__real_fraction=share)
        assert parts.training.real_fraction == expected
        assert (parts.generator is None) == (share == 1.0)


def test_on_real_data_a_method_with_expansions_takes_any_agent():
    """The agent's rows are the dataset's transitions."""
    parts = make_parts("dwm", agent="rebrac", training__real_fraction=1.0)
    assert parts.training.init_buffer() is None


@pytest.mark.parametrize("method", ["dawm", "joint", "decision_diffuser"])
def test_terminations_are_learnt_and_checked_where_windows_are_generated(method):
    replay, _ = make_data()
    model = make_parts(method).method.models["world_model"]
    params = jax.eval_shape(model.init, jax.random.key(0)).params
    found = jax.eval_shape(lambda params: model.errors(params, replay, jnp.arange(B)), params)
    plans = method == "decision_diffuser"
    assert ("termination" in params, "termination_loss" in found) == (not plans, not plans)


@pytest.mark.parametrize("method", ["dawm", "dwm", "joint"])
def test_windows_of_a_part_of_the_columns_are_whole_observations(method):
    """The other columns reach neither the generated state nor the inferred action."""
    parts = make_parts(method, world_model__state_columns=2)
    world_model = parts.method.models["world_model"]
    assert (world_model.tokens.state_size, world_model.derived.state_size) == (2, 2)
    if method == "dawm":
        assert len(parts.method.models["inverse_dynamics"].normalizer.observation_mean) == 2
    condition, models = (
        replaying.gather_conditions(make_data()[0], jnp.arange(B)),
        make_models(parts),
    )
    program = reference.jit(parts.training.generator(policy).generate)
    rows = [
        program(models, jax.random.key(1), start).rows
        for start in (condition, condition._replace(state=condition.state.at[:, 2:].add(1.0)))
    ]
    first, second = rows
    assert first.next_observation.shape[-1] == S
    np.testing.assert_array_equal(first.next_observation, second.next_observation)
    assert (np.asarray(first.observation)[..., 2:] != np.asarray(second.observation)[..., 2:]).any()
    if method != "dwm":
        np.testing.assert_array_equal(first.action, second.action)


def test_plans_of_a_part_of_the_columns_have_actions():
    parts = make_parts("decision_diffuser", world_model__state_columns=2)
    assert len(parts.method.models["inverse_dynamics"].normalizer.observation_mean) == 2
    observation = make_data()[0].transitions.observation[:B]
    action = parts.method.plan(make_models(parts), jax.random.key(0), observation)
    assert action.shape == (B, A) and np.isfinite(action).all()


@pytest.mark.parametrize("method", ["joint", "one_step_cloned"])
def test_generated_actions_are_within_bounds_and_the_first_is_real(method):
    condition, transitions, valid = generate(method)
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
    condition, expansions, valid = generate("dwm")
    assert isinstance(expansions, Expansion)
    np.testing.assert_array_equal(expansions.observation, condition.state)
    np.testing.assert_array_equal(expansions.action, condition.action)
    chex.assert_shape(expansions.next_observation, (B, H, S))
    chex.assert_shape([expansions.reward, expansions.terminated, valid], (B, H))
    # The same network, noise and target as DAWM's: the same states.
    _, transitions, _ = generate("dawm")
    following = np.asarray(transitions.next_observation).reshape(B, H, S)
    np.testing.assert_allclose(expansions.next_observation, following, atol=1e-5)
    np.testing.assert_array_equal(expansions.steps, np.full(B, H))


def test_the_one_step_model_follows_the_policy_after_the_first_action():
    """The same steps as the model's rollout with that policy; with another one, others."""
    condition, expansions, _ = generate("one_step")
    np.testing.assert_array_equal(expansions.observation, condition.state)
    np.testing.assert_array_equal(expansions.action, condition.action)
    parts = make_parts("one_step")
    params, model = make_models(parts)["world_model"], parts.method.models["world_model"]
    roll_out = lambda act: reference.jit(functools.partial(model.roll_out, act=act, horizon=H))(
        params, jax.random.key(1), condition
    )
    window, other = roll_out(policy), roll_out(lambda state: -policy(state))
    np.testing.assert_allclose(expansions.next_observation, window.states[:, 1:], atol=1e-5)
    np.testing.assert_allclose(expansions.reward, window.rewards, atol=1e-5)
    # Step 0 has the real action, whatever the policy; the later ones have the policy's.
    np.testing.assert_allclose(other.states[:, 1], window.states[:, 1], atol=1e-5)
    assert np.abs(other.states[:, 2:] - window.states[:, 2:]).max() > 0.1
    np.testing.assert_allclose(window.actions[:, 1:], policy(window.states[:, 1:-1]), atol=1e-5)


@pytest.mark.parametrize(
    ("method", "overrides", "supply", "capacity"),
    [
        ("dawm", {}, "rounds", 512),
        ("dwm", {}, "sweep", 180),
        ("dwm", {"rollout__buffer_capacity": 600}, "sweep", 200),
        ("dwm", {"rollout__expand": "minibatch"}, "minibatch", None),
        ("one_step", {}, "minibatch", None),
        ("dwm", {"training__real_fraction": 1.0}, "sweep", None),
    ],
)
def test_where_synthetic_rows_come_from(method, overrides, supply, capacity):
    """A buffer of expansions has room for as many windows as one of transitions, and a sweep."""
    replay, normalizer = make_data()
    config = make_config(method, **overrides)
    training = setup.make(config, normalizer, num_train=replay.num_train).training
    buffer = training.init_buffer()
    assert (training.supply, None if buffer is None else buffer.capacity) == (supply, capacity)


def test_one_agent_learns_from_the_joint_models_rows_and_real_ones():
    replay, _ = make_data()
    parts = make_parts("joint", training__real_fraction=0.5, training__batch_size=16)
    training = parts.training
    buffer, _ = training.generate(
        training.init_buffer(), jax.random.key(0), Inputs(make_models(parts), replay)
    )
    draw = reference.jit(training.draw_batches)
    batches = draw(jax.random.key(1), AgentRun(None, buffer), Inputs(None, replay))
    rewards = np.asarray(batches.reward)
    is_real = np.isin(rewards, np.asarray(replay.transitions.reward))
    np.testing.assert_array_equal(is_real.sum(1), np.full(len(rewards), 8))


def test_only_real_actions_at_equal_volume():
    """From as many more windows as there are steps in each, only the first steps."""
    condition, transitions, valid = generate("dawm", rollout__real_actions_only=True)
    np.testing.assert_array_equal(transitions.observation, condition.state)
    np.testing.assert_array_equal(transitions.action, condition.action)
    assert valid.shape == (B,)
    parts = make_parts("dawm", rollout__real_actions_only=True)
    assert parts.training.windows_per_round == H * parts.config.rollout.windows_per_round


@pytest.mark.parametrize(
    ("steps", "real_steps", "most"), [(3, 0, (3, 3)), (3, 1, (1, 3)), (1, 3, (3, 1))]
)
def test_rows_are_returns_over_several_steps(steps, real_steps, most):
    """Rows have a discount each: its powers reach the steps of their kind of row."""
    parts = make_parts(
        "dawm",
        training__return_steps=steps,
        training__real_return_steps=real_steps,
        training__real_fraction=0.5,
    )
    replay, _ = make_data()
    training = parts.training
    inputs = Inputs(make_models(parts), replay)
    buffer, _ = training.generate(training.init_buffer(), jax.random.key(0), inputs)
    draw = reference.jit(training.draw_batches)
    batches = draw(jax.random.key(1), AgentRun(None, buffer), inputs)
    powers = np.log(np.asarray(batches.discount)) / np.log(parts.config.discount)
    np.testing.assert_allclose(powers, np.rint(powers), atol=1e-3)
    real, generated = np.rint(powers[:, :8]), np.rint(powers[:, 8:])
    assert (real.max(), generated.max()) == most and min(real.min(), generated.min()) == 1
    plain = make_parts("dawm").training
    assert plain.returns is None and plain.row.discount is None


def test_returns_over_several_steps_are_of_transitions():
    with pytest.raises(UserError, match=r"return_steps: expected 1 with config\.method=dwm"):
        make_parts("dwm", training__return_steps=2)
    with pytest.raises(UserError, match=r"real_return_steps: expected 1 with config\.method=dwm"):
        make_parts("dwm", training__real_return_steps=2)
    make_parts("dwm", training__return_steps=2, training__real_fraction=1.0)  # on real data alone


@pytest.mark.parametrize("states", ["absolute", "changes"])
@pytest.mark.parametrize("denoiser", ["decision_unet", "temporal_resnet"])
def test_a_plans_action_is_the_inverse_dynamics_of_its_first_two_states(states, denoiser):
    """And those are sampled from the known state towards the fixed share of the data's return."""
    _, normalizer = make_data()
    parts = make_parts("decision_diffuser", planner__states=states, planner__denoiser=denoiser)
    models, key = make_models(parts), jax.random.key(3)
    observation = jnp.asarray(np.random.default_rng(5).normal(size=(B, S)), jnp.float32)
    action = reference.jit(parts.planner.plan)(models, key, observation)
    state = np.asarray(observation) - np.asarray(normalizer.observation_mean)
    state = jnp.asarray(state / np.asarray(normalizer.observation_std))
    low, high = float(normalizer.return_low), float(normalizer.return_high)
    condition = Condition(state, jnp.zeros((B, A)), jnp.full(B, low + 0.9 * (high - low)))
    sample = reference.jit(parts.method.models["world_model"].sample_tokens)
    plan = np.asarray(sample(models["world_model"], key, condition))
    chex.assert_shape(plan, (B, H + 1, S))  # states alone
    np.testing.assert_allclose(plan[:, 0], state, atol=1e-5)
    constants = jax.tree.map(np.asarray, normalizer)
    following = plan[:, 1]
    if states == "changes":
        following = plan[:, 0] + following * constants.change_std + constants.change_mean
        # States after the first are clipped at the data's smallest and largest values.
        bounds = (constants.observation_low, constants.observation_high)
        scaled = [(b - constants.observation_mean) / constants.observation_std for b in bounds]
        following = np.clip(following, *scaled)
    layers = jax.device_get(models["inverse_dynamics"]["params"]["Mlp_0"])
    change = (following - plan[:, 0] - constants.change_mean) / constants.change_std
    inputs = np.concatenate([plan[:, 0], change], axis=1)
    expected = 2.0 * np.tanh(reference.mlp(layers, inputs))  # actions reach from -2 to 2
    np.testing.assert_allclose(action, expected, atol=1e-4)


def test_the_planner_has_settings_of_its_own():
    """They stand in its model's settings too, by which --models_from compares models."""
    parts = make_parts(
        "decision_diffuser", planner__denoiser="unet", world_model__denoiser="transformer"
    )
    model = parts.method.models["world_model"]
    assert isinstance(model.denoiser.network, TemporalUNet)
    planner = parts.config.sections["planner"]
    for name in ("denoiser", "states", "diffusion_steps", "prediction"):
        assert getattr(model.settings, name) == getattr(planner, name)
    dawm = make_parts("dawm", planner__denoiser="unet").method.models["world_model"]
    assert not isinstance(dawm.denoiser.network, TemporalUNet)


# Decision Diffuser's code, config/locomotion_config.py and models/diffusion.py: horizon 100,
# n_diffusion_steps 200, predict_epsilon, condition_guidance_w 1.2, test_ret 0.9, and a factor 0.5
# on the noise of each of the 200 steps.
AS_PUBLISHED = {
    "denoiser": "decision_unet",
    "states": "absolute",
    "horizon": 99,
    "diffusion_steps": 200,
    "prediction": "epsilon",
    "sampling_steps": 200,
    "order": 1,
    "eta": 1.0,
    "guidance": 1.2,
    "temperature": 0.5,
    "target_fraction": 0.9,
}
# The world model's tokens, denoiser and sampler.
QUICK = {
    "denoiser": "temporal_resnet",
    "states": "changes",
    "diffusion_steps": 1_000,
    "prediction": "v",
    "sampling_steps": 8,
    "order": 2,
    "spacing": "noise",
    "eta": 0.0,
    "temperature": 1.0,
}


@pytest.mark.parametrize(("variant", "expected"), [("", AS_PUBLISHED), ("quick", QUICK)])
def test_the_forms_of_the_planner(variant, expected):
    config = schema.parse(schema.get_config(variant))
    planner = config.sections["planner"]
    assert {name: getattr(planner, name) for name in expected} == expected
    # Ancestral sampling visits every diffusion step.
    _, normalizer = make_data()
    config = schema.replace(config, {"method": "decision_diffuser"})
    model = setup.make(config, normalizer).method.models["world_model"]
    sampler, alpha_bar = model.sampler, np.asarray(model.process.alpha_bar)
    steps = visited_steps(alpha_bar, sampler.sampling_steps, sampler.spacing)
    assert len(steps) == planner.sampling_steps and steps[0] == planner.diffusion_steps - 1
    if not variant:
        np.testing.assert_array_equal(steps, np.arange(199, -1, -1))


@pytest.mark.parametrize("method", ["joint", "one_step_cloned"])
def test_a_training_step_lowers_the_loss_of_every_model(method):
    replay, _ = make_data()
    for model in make_parts(method).method.models.values():
        state = reference.jit(model.init)(jax.random.key(0))

        @reference.jit
        def losses(state, model=model):
            def one_step(state, index):  # the same rows and noise in every step
                return model.step(state, jax.random.key(7), replay, shard=keep, mean=keep)

            state, metrics = jax.lax.scan(one_step, state, jnp.arange(30))
            return metrics["loss"]

        values = losses(state)
        assert np.isfinite(values).all() and values[-1] < values[0]


@pytest.mark.parametrize("method", ["dawm", "joint", "one_step_cloned"])
def test_transitions_carry_the_next_action_for_an_agent_that_needs_it(method):
    """The shapes suffice: methods/synthetic_test.py has the values."""
    agent = next(spec.name for spec in AGENTS if spec.needs_next_action)
    for name, size in ((agent, (A,)), ("td3_bc", None)):
        row = make_parts(method, agent=name).training.row
        assert isinstance(row, Transition)
        assert (None if row.next_action is None else row.next_action.shape) == size


# --- value expansions in the fused program ------------------------------------------------


class FakeExpansions:
    """Expansions that know their start, without a world model; the last step always ends."""

    models: ClassVar = {}

    def generate(self, params, key, condition):
        shape = (len(condition.state), H)
        expansions = Expansion(
            observation=condition.state,
            action=condition.action,
            reward=jax.random.normal(key, shape),
            terminated=jnp.zeros(shape).at[:, -1].set(1.0),
            next_observation=jnp.repeat(condition.state[:, None], H, axis=1),
            steps=jnp.full(len(condition.state), H, jnp.int32),
        )
        return Generated(expansions, jnp.ones(shape, bool))


class StubAgent:
    """Cheap to compile, and sensitive to every field through the expansion target."""

    batches_per_update, reward_scale = 1, 1.0

    def update(self, state, batches, key):
        batch = jax.tree.map(lambda leaf: leaf[0], batches)
        chex.assert_shape(batch.next_observation, (8, H, S))
        target = td.expansion_target(batch, lambda o: o.sum(-1), discount=0.9, return_lambda=0.5)
        inputs = jnp.concatenate([batch.observation, batch.action, target[:, None]], axis=-1)
        state = jnp.tanh(0.9 * state + inputs.mean() + 0.1 * jax.random.normal(key))
        return state, {"state": state}


def test_fused_rounds_of_expansions_equal_single_rounds():
    replay, _ = make_data()
    parts = make_parts("dwm")  # without data: no room for a sweep
    training = dataclasses.replace(
        parts.training,
        agent=StubAgent(),
        method=FakeExpansions(),
        updates_per_round=2,
        batch_size=8,
    )
    rounds = lambda number: reference.jit(functools.partial(training.step, num_steps=2 * number))
    run = AgentRun(jnp.float32(0.5), training.init_buffer())
    # Room for as many windows as there would be with their transitions.
    capacity = parts.config.rollout.buffer_capacity // H
    assert run.buffer.rows.reward.shape == (capacity, H)
    key, single, inputs = jax.random.key(2), rounds(1), Inputs({}, replay)
    together, metrics = rounds(2)(run, key, jnp.int32(0), inputs)
    for index in range(2):
        run, _ = single(run, key, jnp.int32(2 * index), inputs)
    assert int(run.buffer.written) == 2 * parts.config.rollout.windows_per_round
    np.testing.assert_allclose(metrics["synthetic_termination_rate"], 1 / H, rtol=1e-6)
    chex.assert_trees_all_close(together, run, rtol=1e-5, atol=1e-5)


# --- refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method": "mbpo"}, "config.method: expected one of dawm, decision_diffuser, dwm"),
        (
            {"method": "dwm", "agent": "rebrac"},
            "config.agent: expected one of .*iql, td3_bc with config.method=dwm",
        ),
        (
            {"method": "decision_diffuser", "training__real_fraction": 1.0},
            "real_fraction: expected less than 1 with config.method=decision_diffuser",
        ),
        (
            {"method": "dwm", "rollout__real_actions_only": True},
            "real_actions_only: expected False",
        ),
        (
            {"rollout__expand": "minibatch"},
            "config.rollout.expand: expected sweep with config.method=dawm, which generates no",
        ),
        (
            {"method": "one_step", "agent": "rebrac"},
            "config.agent: expected one of .*iql, td3_bc with config.method=one_step",
        ),
        (
            {"method": "decision_diffuser", "rollout__real_actions_only": True},
            "real_actions_only: expected False",
        ),
        ({"world_model__denoiser": "mlp"}, "config.world_model.denoiser: expected one of"),
        (
            {"method": "decision_diffuser", "planner__denoiser": "mlp"},
            "config.planner.denoiser: expected one of .*'mlp'",
        ),
        ({"rollout__sampling_steps": 11}, "sampling.steps: expected 1 to 10"),
    ],
)
def test_what_a_method_cannot_mean_is_refused(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        train.run(make_config(**({"method": "dawm"} | overrides)), tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "config.json").exists()
