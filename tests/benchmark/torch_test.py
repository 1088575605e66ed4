"""The PyTorch side against the JAX program: same parameters and draws, same results."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

from dawm_jax.config import schema
from dawm_jax.data import replay as replaying
from dawm_jax.data import ring_buffer
from dawm_jax.methods import synthetic
from dawm_jax.models import networks, optim, temporal_resnet, unet
from dawm_jax.models.base import DenoiserCondition, TokenShape, keep
from dawm_jax.training import setup
from dawm_jax.types import Normalizer, Transition, UserError

torch = pytest.importorskip("torch", reason="the PyTorch side needs PyTorch")

from dawm_jax.benchmark import (  # noqa: E402
    torch_agents,
    torch_common,
    torch_models,
    torch_networks,
    torch_side,
)

S, A, H, BATCH, WINDOWS = 3, 2, 7, 16, 8
ROWS, TRAIN_ROWS, EPISODE = 60, 48, 12
COUNT = 7  # steps that the optimisers have behind them
# Sums of float32 products in another order; values are of order 1.
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}

ROW = Transition(*(np.zeros(shape, np.float32) for shape in (S, A, (), (), S)))

STOCK = torch_common.Tuning()
TUNED = torch_common.Tuning(fused_optimizer=True)
COMPILED = torch_common.Tuning(fused_optimizer=True, compiled=True)
EAGER = [pytest.param(STOCK, id="stock"), pytest.param(TUNED, id="tuned")]
ALL = [*EAGER, pytest.param(COMPILED, id="compiled", marks=pytest.mark.slow)]


CONFIG = schema.replace(
    schema.parse(schema.get_config("smoke")),
    {
        "world_model.diffusion_steps": 100,
        "world_model.batch_size": BATCH,
        "world_model.steps": 20,
        "world_model.warmup_steps": 5,
        "world_model.learning_rate": 0.01,
        "world_model.ema_decay": 0.9,
        "unet.groups": 4,
        "inverse_dynamics.batch_size": BATCH,
        "inverse_dynamics.learning_rate": 0.05,
        "inverse_dynamics.ema_decay": 0.9,
        "td3_bc.learning_rate": 0.05,
        "td3_bc.tau": 0.1,
        "iql.learning_rate": 0.05,
        "iql.tau": 0.1,
        "rollout.windows_per_round": WINDOWS,
        "rollout.updates_per_round": 4,
    },
)
SHORT = {"training.updates": 8, "world_model.steps": 3, "inverse_dynamics.steps": 3}


def make_config(**changes):
    """CONFIG with other settings; "__" stands for the dot of a section."""
    return schema.replace(
        CONFIG, {name.replace("__", "."): value for name, value in changes.items()}
    )


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def make_replay():
    """Five episodes of twelve steps; every second one ends by a termination."""
    rows = np.arange(ROWS)
    last = rows % EPISODE == EPISODE - 1
    transitions = Transition(
        observation=normal(0, ROWS, S),
        action=np.tanh(normal(1, ROWS, A)),
        reward=2.0 + normal(2, ROWS),
        terminated=last & (rows // EPISODE % 2 == 0),
        next_observation=normal(3, ROWS, S),
    )
    return replaying.Replay(
        transitions=jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), transitions),
        episode_end=jnp.asarray(rows // EPISODE * EPISODE + EPISODE - 1, jnp.int32),
        return_to_go=jnp.asarray(normal(4, ROWS)),
        num_train=TRAIN_ROWS,
    )


@functools.cache
def make_normalizer():
    values = {
        "observation_mean": normal(5, S),
        "observation_std": np.exp(normal(6, S)),
        "observation_low": -2.0 * np.ones(S),
        "observation_high": 1.5 * np.ones(S),
        "change_mean": 0.1 * normal(7, S),
        "change_std": np.exp(normal(8, S)),
        "change_low": -2.5 * np.ones(S),
        "change_high": 2.0 * np.ones(S),
        "reward_mean": 2.0,
        "reward_std": 0.8,
        "reward_low": 0.5,
        "reward_high": 4.0,
        "return_scale": 30.0,
        "return_low": -1.0,
        "return_high": 1.0,
        "return_range": 400.0,
        "action_low": -np.ones(A),
        "action_high": np.ones(A),
    }
    return Normalizer(**{name: jnp.asarray(v, jnp.float32) for name, v in values.items()})


@functools.cache
def make_setup(agent="td3_bc"):
    return setup.make(make_config(agent=agent), make_normalizer())


def make_run(config=None, *, agent="td3_bc", tuning=STOCK, **kwargs):
    config = CONFIG if config is None else config
    return torch_side.Run(
        config, make_replay(), make_normalizer(), agent=agent, tuning=tuning, **kwargs
    )


def random_parameters(module, *inputs):
    return random_like(jax.eval_shape(module.init, jax.random.key(0), *inputs))


def random_like(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype("f"), shapes)


def tensors(transitions):
    return torch_common.Transition.of(transitions, "cpu")


def indices(array):
    return torch_common.tensor(array, "cpu").long()


def in_training(init):
    """A JAX state that looks trained; see `numpy_reference.in_training`."""
    state = reference.in_training(jax.eval_shape(init, jax.random.key(0)), count=COUNT, seed=0)
    single = lambda leaf: leaf.astype("f") if leaf.dtype == np.float64 else leaf
    return jax.tree.map(single, state)


def load(learner, network, params, opt_state, average=None):
    """Puts the state of a JAX network in training into a PyTorch learner."""

    def twin(tree):
        other = copy.deepcopy(network)
        torch_networks.copy_parameters(other, tree)
        return [parameter.detach() for parameter in other.parameters()]

    torch_networks.copy_parameters(network, params)
    if average is not None:
        torch_networks.copy_parameters(learner.average, average)
    moments = opt_state[0]
    for parameter, mu, nu in zip(
        network.parameters(), twin(moments.mu), twin(moments.nu), strict=True
    ):
        learner.optimizer.state[parameter] = {
            "step": torch.tensor(float(COUNT)),
            "exp_avg": mu,
            "exp_avg_sq": nu,
        }
    for _ in range(COUNT):
        learner.advance()


def assert_network(network, params, before=None):
    """The PyTorch network has these parameters, and moved from those `before`."""
    expected = copy.deepcopy(network)
    torch_networks.copy_parameters(expected, params)
    for (name, actual), wanted in zip(
        network.named_parameters(), expected.parameters(), strict=True
    ):
        np.testing.assert_allclose(
            actual.detach().numpy(), wanted.detach().numpy(), err_msg=name, **TOLERANCE
        )
    if before is not None:
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, before)
        # A step or an average that is left out must show above the tolerance.
        assert min(jax.tree.leaves(moved)) > 10 * TOLERANCE["atol"]


# --- networks -----------------------------------------------------------------------------


def denoisers(settings, shape):
    """The denoiser of a section on both sides."""
    sizes = (shape.inputs, shape.channels, shape.action_size)
    values = dataclasses.asdict(settings)
    if isinstance(settings, unet.Settings):
        ours = unet.make(settings, shape, dtype=jnp.float32)
        return ours.network, torch_networks.TemporalUNet(*sizes, **values)
    ours = temporal_resnet.make(settings, shape, dtype=jnp.float32)

    return _Flat(ours.network), torch_networks.TemporalResNet(shape.tokens, *sizes, **values)


class _Flat:
    """A network with its conditions as single arguments."""

    def __init__(self, network):
        self._network = network

    def init(self, key, x, step, *given):
        return self._network.init(key, x, step, DenoiserCondition(*given))

    def apply(self, params, x, step, *given):
        return self._network.apply(params, x, step, DenoiserCondition(*given))


def denoiser_inputs(batch, length, channels, action_size):
    return (
        normal(0, batch, length, channels),
        np.arange(batch, dtype=np.int32) * 17,
        normal(1, batch, action_size),
        normal(2, batch),
        (np.arange(batch) % 2).astype("f"),
    )


@pytest.mark.parametrize("scale", ["", "quick"])
@pytest.mark.parametrize("section", [unet.Settings, temporal_resnet.Settings])
def test_the_denoisers_have_as_many_parameters(scale, section):
    config = schema.parse(schema.get_config(scale))
    ours, theirs = denoisers(config.section(section), TokenShape(8, 25, 13, 3, True))
    shapes = jax.eval_shape(ours.init, jax.random.key(0), *denoiser_inputs(1, 8, 25, 3))
    assert torch_networks.count_parameters(theirs) == networks.count_parameters(shapes)


@pytest.mark.parametrize(
    ("length", "multipliers"), [(8, (1,)), (8, (1, 2, 4)), (6, (1, 2, 4)), (32, (1, 2, 4))]
)
def test_the_unets_are_the_same_function(length, multipliers):
    settings = unet.Settings(dim=8, multipliers=multipliers, kernel_size=5, groups=4)
    _assert_same_function(settings, length)


def test_the_temporal_resnets_are_the_same_function():
    _assert_same_function(temporal_resnet.Settings(width=12, blocks=3), 8)


def _assert_same_function(settings, length):
    ours, theirs = denoisers(settings, TokenShape(length, 9, 5, A, True))
    inputs = denoiser_inputs(4, length, 9, A)
    params = random_parameters(ours, *inputs)
    torch_networks.copy_parameters(theirs, params)
    actual = theirs(*map(torch.from_numpy, inputs)).detach().numpy()
    np.testing.assert_allclose(actual, reference.jit(ours.apply)(params, *inputs), **TOLERANCE)


HIDDEN = (12, 10)


@pytest.mark.parametrize(
    ("ours", "theirs", "sizes"),
    [
        (networks.TanhMlp(HIDDEN, A), torch_networks.TanhMlp(2 * S, HIDDEN, A), (S, S)),
        (networks.Critics(HIDDEN), torch_networks.Critics(S + A, HIDDEN), (S, A)),
        (
            # Bounds inside which not every log standard deviation lies.
            networks.GaussianPolicy(HIDDEN, A, -0.1, 0.1),
            torch_networks.GaussianPolicy(S, HIDDEN, A, log_std=(-0.1, 0.1)),
            (S,),
        ),
        (networks.Value(HIDDEN), torch_networks.Value(S, HIDDEN), (S,)),
        (networks.Mlp(HIDDEN, 1), torch_networks.Mlp(2 * S, HIDDEN, 1), (2 * S,)),
    ],
    ids=["inverse_dynamics", "critics", "policy", "value", "terminations"],
)
def test_the_small_networks_are_the_same_functions(ours, theirs, sizes):
    """Copying checks that the numbers of parameters are the same."""
    inputs = [normal(seed, 6, size) for seed, size in enumerate(sizes)]
    params = random_parameters(ours, *inputs)
    torch_networks.copy_parameters(theirs, params)
    actual = theirs(*map(torch.from_numpy, inputs))
    expected = ours.apply(params, *inputs)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a.detach().numpy(), e, rtol=1e-5, atol=1e-6),
        actual,
        expected,
    )


def test_the_first_critic_is_the_first_of_both():
    critics = torch_networks.Critics(S + A, HIDDEN)
    observation, action = torch.randn(5, S), torch.randn(5, A)
    both = critics(observation, action)
    torch.testing.assert_close(critics.first(observation, action), both[0])
    assert not torch.allclose(both[0], both[1])


def test_another_networks_parameters_are_refused():
    params = random_parameters(networks.TanhMlp((12, 10), A), np.zeros((1, S)))
    with pytest.raises(ValueError, match="parameters"):
        torch_networks.copy_parameters(torch_networks.TanhMlp(S, (12, 11), A), params)
    # 2 -> 3 -> 1 and 1 -> 4 -> 1 both have 13 parameters.
    params = random_parameters(networks.TanhMlp((3,), 1), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="shape"):
        torch_networks.copy_parameters(torch_networks.TanhMlp(1, (4,), 1), params)


# --- data ---------------------------------------------------------------------------------


def test_windows_are_the_same():
    """Also those that reach past an episode's end."""
    starts = np.array([0, 6, 9, 11, 12, 35, 47, 59])
    replay = make_replay()
    expected = replaying.gather_windows(replay, jnp.asarray(starts, jnp.int32), horizon=H)
    actual = torch_common.Replay.of(replay, "cpu").gather_windows(indices(starts), horizon=H)
    assert 0 < float(expected.mask.mean()) < 1 and float(expected.terminated.sum()) > 0
    for name, value in actual._asdict().items():
        np.testing.assert_array_equal(value.numpy(), getattr(expected, name), err_msg=name)


def test_draws_of_steps_stay_in_their_part():
    replay = torch_common.Replay.of(make_replay(), "cpu")
    assert set(replay.draw(4, 500).flatten().tolist()) == set(range(TRAIN_ROWS))
    assert set(replay.draw(4000, held_out=True).tolist()) == set(range(ROWS))


def test_the_buffers_hold_the_same():
    """Three writes of 10 rows, some not valid, around a ring of 16."""
    ours, theirs = ring_buffer.empty(16, ROW), torch_side.Buffer(16, S, A, "cpu")
    for seed in range(3):
        rows = Transition(
            normal(seed, 10, S),
            normal(seed + 10, 10, A),
            normal(seed + 20, 10),
            normal(seed + 30, 10),
            normal(seed + 40, 10, S),
        )
        valid = np.random.default_rng(seed).random(10) < 0.8
        ours = ring_buffer.add(ours, rows, jnp.asarray(valid))
        theirs.add(tensors(rows), torch.from_numpy(valid))
        assert int(theirs.written) == int(ours.written)
        for name, value in theirs.rows._asdict().items():
            np.testing.assert_array_equal(value[:16].numpy(), getattr(ours.rows, name))
    assert 16 < int(ours.written) < 30


def test_draws_of_a_buffer_are_uniform_over_what_it_holds():
    buffer = torch_side.Buffer(16, S, A, "cpu")
    rows = torch_common.Transition(
        torch.ones(5, S), torch.ones(5, A), torch.arange(1.0, 6.0), torch.ones(5), torch.ones(5, S)
    )
    buffer.add(rows, torch.tensor([True, True, False, True, True]))
    counts = np.bincount(buffer.draw(4000).reward.long().numpy(), minlength=6)
    # 1,000 of each, standard deviation 27; not the skipped row, nor an empty one.
    np.testing.assert_allclose(counts, [0, 1000, 1000, 0, 1000, 1000], atol=140)
    torch.testing.assert_close(
        buffer.draw(numbers=torch.tensor([0, 5, 11])).reward, torch.tensor([1.0, 2.0, 5.0])
    )


# --- the world model ----------------------------------------------------------------------


def world_model_draws(model, key):
    """The starts and draws of `DiffusionWorldModel.step`."""
    key_starts, key_draws = jax.random.split(key)
    starts = jax.random.randint(key_starts, (BATCH,), 0, TRAIN_ROWS)
    draws = model.draw(key_draws, BATCH)
    assert 0 < float(draws.conditioned.mean()) < 1
    return starts, draws


@pytest.mark.parametrize("prediction", ["v", "epsilon", "x0"])
def test_the_losses_and_gradients_of_the_world_models_are_the_same(prediction):
    # One level compiles quickly.
    config = make_config(world_model__prediction=prediction, unet__multipliers=(1,))
    ours = setup.make(config, make_normalizer()).method.world_model
    params = random_like(jax.eval_shape(ours.init, jax.random.key(0)).params)
    starts, draws = world_model_draws(ours, jax.random.key(1))
    window = replaying.gather_windows(make_replay(), starts, horizon=H)
    assert 0 < float((window.terminated * window.mask).sum()) < float(window.mask.sum()) < BATCH * H
    loss = lambda params: ours.loss(params, window, draws)[0]
    expected, slope = reference.jit(jax.value_and_grad(loss))(params)

    model = make_run(config, params={"world_model": params}).world_model
    window = model._replay.gather_windows(indices(starts), horizon=H)
    actual = model.loss(window, torch_models.Draws(*map(indices_or_floats, draws)))
    actual.backward()
    np.testing.assert_allclose(actual.detach(), expected, rtol=1e-5)
    gradients = copy.deepcopy(model.network)
    torch_networks.copy_parameters(gradients, slope)
    for (name, parameter), wanted in zip(
        model.network.named_parameters(), gradients.parameters(), strict=True
    ):
        wanted = wanted.detach()
        scale = float(wanted.abs().max()) + 1e-3
        np.testing.assert_allclose(parameter.grad / scale, wanted / scale, atol=1e-4, err_msg=name)


def indices_or_floats(array):
    return indices(array) if array.dtype == jnp.int32 else torch_common.tensor(array, "cpu")


def jax_step(model):
    return reference.jit(
        lambda state, key: model.step(state, key, make_replay(), shard=keep, mean=keep)
    )


@functools.cache
def world_model_step():
    """The step of the JAX side, compiled once."""
    return jax_step(make_setup().method.world_model)


@pytest.mark.parametrize("tuning", EAGER)
def test_a_step_of_the_world_model_is_the_same(tuning):
    """Parameters after Adam under a cosine schedule, and their average; twice."""
    ours = make_setup().method.world_model
    state = in_training(ours.init)
    model = make_run(tuning=tuning).world_model
    load(model.learner, model.network, state.params, state.opt_state, state.average)
    before = state
    for seed in range(2):
        key = jax.random.key(seed)
        starts, draws = world_model_draws(ours, key)
        state, _ = world_model_step()(state, key)
        model.update(indices(starts), torch_models.Draws(*map(indices_or_floats, draws)))
        model.advance()
    assert_network(model.network, state.params, before.params)
    assert_network(model.learner.average, state.average, before.average)


def test_draws_of_the_world_model_are_distributed_as_they_should():
    draws = make_run().world_model.draw(4000)
    # Standard deviations: 0.46 / 4000^0.5 = 0.007; 29 / 4000^0.5 = 0.46; 1 / 160000^0.5.
    np.testing.assert_allclose(draws.conditioned.mean(), 0.75, atol=0.035)
    assert set(draws.conditioned.tolist()) == {0.0, 1.0}
    np.testing.assert_allclose(draws.step.float().mean(), 49.5, atol=2.3)
    assert (int(draws.step.min()), int(draws.step.max())) == (0, 99)
    np.testing.assert_allclose(draws.noise.mean(), 0.0, atol=0.0125)
    np.testing.assert_allclose(draws.noise.std(), 1.0, atol=0.01)


@pytest.mark.usefixtures("standard_promotion")
def test_learning_rates_are_the_same():
    """Warm-up, cosine, and past the end."""
    schedule = {"schedule": "cosine", "total_steps": 20, "warmup_steps": 5}
    optimizer = optim.adam(0.3, **schedule)
    network = torch.nn.Linear(1, 1)
    learner = torch_common.Learner(network, 0.3, STOCK, **schedule)
    state = optimizer.init(jnp.zeros(()))
    step = jax.jit(lambda state: optimizer.update(jnp.ones(()), state))
    for count in range(23):
        update, state = step(state)  # with gradient 1 Adam moves by the learning rate
        actual = learner.optimizer.param_groups[0]["lr"]
        np.testing.assert_allclose(actual, -update, rtol=1e-5, atol=1e-7, err_msg=str(count))
        learner.advance()


@pytest.mark.parametrize(
    ("guidance", "order", "eta", "rule"),
    [
        (1.4, 2, 0.0, "amplified"),
        (1.4, 1, 0.0, "amplified"),
        (1.0, 1, 1.0, "max_fraction"),
        (0.0, 1, 0.5, "amplified"),
    ],
)
def test_generated_transitions_are_the_same(guidance, order, eta, rule):
    """Target return, DDIM with guidance, inverse dynamics, validity, and the buffer."""
    config = make_config(
        rollout__sampling_steps=3,
        rollout__order=order,
        rollout__guidance=guidance,
        rollout__eta=eta,
        rollout__target_rule=rule,
        rollout__temperature=0.9,
        unet__multipliers=(1,),
    )
    method = setup.make(config, make_normalizer()).method
    params = {name: in_training(model.init).average for name, model in method.models.items()}
    starts = np.arange(0, TRAIN_ROWS, 6)
    condition = replaying.gather_conditions(make_replay(), starts)
    key = jax.random.key(3)
    expected, valid = reference.jit(method.generate)(params, key, condition)
    assert 0 < float(valid.mean()) < 1  # some windows end early, by a termination

    run = make_run(config, params=params)
    with torch.no_grad():  # the averages generate
        for model in (run.world_model, run.inverse_dynamics):
            for parameter in model.network.parameters():
                parameter.zero_()
    key_initial, key_steps = jax.random.split(key)
    shape = (len(starts), H + 1, S + 1)
    draw = lambda key: torch_common.tensor(jax.random.normal(key, shape), "cpu")
    noise = torch.stack([draw(jax.random.fold_in(key_steps, index)) for index in range(3)])
    run.generate(indices(starts), draw(key_initial), noise)
    buffer = ring_buffer.add(ring_buffer.empty(512, ROW), expected, valid)
    assert int(run.buffer.written) == int(buffer.written)
    for name, value in run.buffer.rows._asdict().items():
        # The last steps divide by little noise, which makes more of rounding.
        np.testing.assert_allclose(
            value[:512].numpy(), getattr(buffer.rows, name), 1e-3, 2e-4, err_msg=name
        )


def test_target_returns_are_the_same():
    returns = np.array([-2.0, -0.5, 0.0, 0.5, 0.95, 1.5], np.float32)
    for rule in synthetic.TARGET_RULES:
        for factor in (0.8, 1.3):
            target = synthetic.TargetReturn(rule, factor, make_normalizer())
            expected = target(jnp.asarray(returns))
            config = make_config(rollout__target_rule=rule, rollout__target_factor=factor)
            model = make_run(config).world_model
            actual = model.target_return(torch.from_numpy(returns))
            np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_bfloat16_computes_in_fewer_bits():
    """The parameters and what is generated stay float32."""
    states = {}
    for dtype in ("float32", "bfloat16"):
        torch.manual_seed(0)
        run = make_run(make_config(world_model__dtype=dtype))
        initial = torch.randn(WINDOWS, H + 1, S + 1)
        states[dtype] = run.sample(torch.arange(WINDOWS), initial).states
        assert states[dtype].dtype == next(run.world_model.network.parameters()).dtype
    error = float((states["float32"] - states["bfloat16"]).abs().max())
    # Eight bits: 2^-8 of values of order 1, through a dozen layers.
    assert 1e-4 < error < 0.1


# --- the inverse dynamics model -----------------------------------------------------------


@pytest.mark.parametrize("tuning", ALL)
def test_a_step_of_the_inverse_dynamics_model_is_the_same(tuning):
    ours = make_setup().method.inverse_dynamics
    state = in_training(ours.init)
    model = make_run(tuning=tuning).inverse_dynamics
    load(model.learner, model.network, state.params, state.opt_state, state.average)
    key = jax.random.key(5)
    expected, _ = jax_step(ours)(state, key)
    model.update(indices(jax.random.randint(key, (BATCH,), 0, TRAIN_ROWS)))
    assert_network(model.network, expected.params, state.params)
    assert_network(model.learner.average, expected.average, state.average)


# --- the agents ---------------------------------------------------------------------------


def make_batches(count):
    rows = np.random.default_rng(7).integers(0, ROWS, (count, BATCH))
    rows[:, 0] = EPISODE - 1  # a termination
    batches = replaying.gather_transitions(make_replay(), rows)
    assert 0 < float(batches.terminated[0].mean()) < 1
    return batches


@pytest.mark.parametrize("tuning", ALL)
def test_a_cycle_of_td3_bc_is_the_same(tuning):
    agent = make_setup("td3_bc").agent
    state = in_training(agent.init)
    batches, key = make_batches(2), jax.random.key(6)
    expected, _ = reference.jit(agent.update)(state, batches, key)

    theirs = make_run(agent="td3_bc", tuning=tuning).agent
    load(theirs.actor_learner, theirs.actor, state.actor, state.actor_opt)
    load(theirs.critic_learner, theirs.critics, state.critics, state.critic_opt)
    torch_networks.copy_parameters(theirs.target_actor, state.target_actor)
    torch_networks.copy_parameters(theirs.target_critics, state.target_critics)
    noise = jax.random.normal(key, batches.action.shape)
    theirs.update(tensors(batches), torch_common.tensor(noise, "cpu"))
    for name in ("actor", "critics", "target_actor", "target_critics"):
        assert_network(getattr(theirs, name), getattr(expected, name), getattr(state, name))


@pytest.mark.parametrize("tuning", ALL)
def test_an_update_of_iql_is_the_same(tuning):
    agent = make_setup("iql").agent
    state = in_training(agent.init)
    batches = make_batches(1)
    expected, _ = reference.jit(agent.update)(state, batches, jax.random.key(0))

    theirs = make_run(agent="iql", tuning=tuning).agent
    load(theirs.actor_learner, theirs.actor, state.actor, state.actor_opt)
    load(theirs.value_learner, theirs.value, state.value, state.value_opt)
    load(theirs.critic_learner, theirs.critics, state.critics, state.critic_opt)
    torch_networks.copy_parameters(theirs.target_critics, state.target_critics)
    theirs.update(tensors(batches))
    for name in ("actor", "value", "critics", "target_critics"):
        assert_network(getattr(theirs, name), getattr(expected, name), getattr(state, name))


def test_the_tuned_actor_follows_the_critics_without_gradients_of_them():
    """Both variants have the same gradient of the policy; only plain code computes more."""
    batch = torch_common.Transition(*(leaf[0] for leaf in tensors(make_batches(1))))
    gradients = {}
    for tuning in (STOCK, TUNED):
        torch.manual_seed(0)
        agent = torch_agents.Td3Bc(CONFIG, S, A, tuning)
        with torch.no_grad():
            for parameter in agent.critics.parameters():
                parameter.mul_(2.0)  # the critics that are followed are those in training
        agent.actor_loss(batch).backward()
        gradients[tuning] = [parameter.grad for parameter in agent.actor.parameters()]
        of_critics = [parameter.grad for parameter in agent.critics.members[0].parameters()]
        assert all((gradient is None) == (tuning == TUNED) for gradient in of_critics)
    torch.testing.assert_close(gradients[STOCK], gradients[TUNED])


# --- the stages ---------------------------------------------------------------------------

UNITS = {"td3_bc": 4, "iql": 2, "fused": 8}
# What a stage moves; the rest of the run must stay.
MOVES = {
    "denoiser_training": {"world_model"},
    "sampling": set(),
    "inverse_dynamics": {"inverse_dynamics"},
    "td3_bc": {"agent"},
    "iql": {"agent"},
    "fused": {"agent", "buffer"},
    "pipeline": {"world_model", "inverse_dynamics", "agent", "buffer"},
}


def snapshot(run):
    agent = [part for part in vars(run.agent).values() if isinstance(part, torch.nn.Module)]
    models = {
        "world_model": [run.world_model.network, run.world_model.learner.average],
        "inverse_dynamics": [run.inverse_dynamics.network, run.inverse_dynamics.learner.average],
        "agent": agent,
    }
    vector = lambda parts: torch.cat(
        [p.detach().flatten() for part in parts for p in part.parameters()]
    )
    vectors = {name: vector(parts) for name, parts in models.items()}
    return {**vectors, "buffer": torch.cat([ring[:-1].flatten() for ring in run.buffer.rows])}


@pytest.mark.parametrize("tuning", EAGER)
@pytest.mark.parametrize("stage", torch_side.STAGES)
def test_a_stage_moves_what_it_trains(stage, tuning):
    config = schema.replace(CONFIG, SHORT)
    agent = "iql" if stage == "iql" else "td3_bc"
    run = make_run(config, agent=agent, tuning=tuning)
    before = snapshot(run)
    torch_side.stage_of(run, stage, UNITS.get(stage, 3))()
    after = snapshot(run)
    assert all(bool(vector.isfinite().all()) for vector in after.values())
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == MOVES[stage]


def test_rounds_and_prefill_write_as_many_windows_as_configured():
    prefill = {"rollout.prefill_transitions": 3 * WINDOWS * H - 1}
    run = make_run(schema.replace(CONFIG, {**SHORT, **prefill}))
    written = []
    run.generate = lambda: written.append(run.num_windows)
    torch_side.stage_of(run, "pipeline", 0)()
    assert written == [WINDOWS] * (3 + 2)
    written.clear()
    torch_side.stage_of(run, "fused", 12)()
    assert written == [WINDOWS] * 3


@pytest.mark.parametrize("stage", torch_side.STAGES)
def test_no_stage_reads_the_device(stage):
    """On PyTorch's meta device there are no values: whatever reads one raises."""
    agent = "iql" if stage == "fused" else "td3_bc"
    config = schema.replace(CONFIG, {**SHORT, "agent": agent})
    torch_side.make(
        stage,
        config,
        make_replay(),
        make_normalizer(),
        fused_optimizer=False,
        compiled=False,
        device="meta",
        units=UNITS.get(stage, 2),
    )()


def test_given_parameters_start_networks_averages_and_targets():
    module = networks.Critics((16, 16), layer_norm=True)
    critics = random_parameters(module, normal(0, 1, S), normal(1, 1, A))
    model = random_parameters(networks.TanhMlp((16,), A), normal(0, 1, S), normal(1, 1, S))
    run = make_run(params={"critics": critics, "inverse_dynamics": model, "value": {}})
    assert_network(run.agent.critics, critics)
    assert_network(run.agent.target_critics, critics)
    assert_network(run.inverse_dynamics.network, model)
    assert_network(run.inverse_dynamics.learner.average, model)
    with pytest.raises(UserError, match="no network is called 'critic'"):
        make_run(params={"critic": critics})


def make_stage(stage="td3_bc", units=2, **changes):
    flags = {"fused_optimizer": False, "compiled": False, "device": "cpu"}
    config = make_config(**changes)
    return torch_side.make(stage, config, make_replay(), make_normalizer(), units=units, **flags)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("expected one of denoiser_training", {"stage": "planning"}),
        ("multiple of 2 updates, got 3", {"units": 3}),
        ("multiple of 4 updates, got 6", {"stage": "fused", "units": 6}),
        ("config.method: expected dawm", {"method": "dwm"}),
        ("config.agent: expected td3_bc or iql", {"stage": "fused", "agent": "bc"}),
        ("denoiser: expected temporal_resnet or unet", {"world_model__denoiser": "transformer"}),
        ("real_actions_only: expected False", {"rollout__real_actions_only": True}),
        ("return_steps: expected 1", {"training__return_steps": 3}),
        ("state_columns: expected 0", {"world_model__state_columns": 2}),
    ],
)
def test_what_cannot_be_timed_is_refused(message, arguments):
    with pytest.raises(UserError, match=message):
        make_stage(**arguments)
