"""The world model: tokens, the loss against NumPy, and a system small enough to learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

from dawm_jax.data.replay import Replay
from dawm_jax.models import diffusion, networks, optim, tokens, unet, world_model
from dawm_jax.models.base import keep
from dawm_jax.models.diffusion import Process
from dawm_jax.models.sampler import Sampler
from dawm_jax.models.tokens import Tokens
from dawm_jax.runtime import settings
from dawm_jax.types import Condition, Normalizer, Transition, UserError, Window

BATCH, HORIZON, STATES, ACTIONS, STEPS = 6, 3, 2, 2, 8
CHANNELS = STATES + 1
PROCESS = Process.cosine(STEPS, "v")
ALPHA_BAR = PROCESS.alpha_bar


def _normalizer(reward_mean=1.5, reward_std=2.0, bound=3.0):
    values = dict.fromkeys(Normalizer.__dataclass_fields__, jnp.ones(()))
    return Normalizer(
        **values
        | {
            "observation_mean": jnp.array([1.0, -2.0]),
            "observation_std": jnp.array([0.5, 4.0]),
            # Standardised, the states' bounds are ± bound.
            "observation_low": jnp.array([1.0 - 0.5 * bound, -2.0 - 4.0 * bound]),
            "observation_high": jnp.array([1.0 + 0.5 * bound, -2.0 + 4.0 * bound]),
            "change_mean": jnp.array([0.1, -0.1]),
            "change_std": jnp.array([0.5, 0.25]),
            "reward_mean": jnp.asarray(reward_mean),
            "reward_std": jnp.asarray(reward_std),
            "reward_low": jnp.asarray(reward_mean - bound * reward_std),
            "reward_high": jnp.asarray(reward_mean + bound * reward_std),
            "action_low": -jnp.ones(ACTIONS),
            "action_high": jnp.ones(ACTIONS),
        }
    )


NORMALIZER = _normalizer()


def _window(seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    # Episodes of different lengths: the last steps of most rows do not exist. Rows 1, 3 and 5 end
    # in a termination, rows 2 and 4 in a time-out, at their last step; row 0 goes on.
    steps, lengths = np.arange(HORIZON)[None], np.array([3, 1, 2, 3, 3, 2])[:, None]
    mask = (steps < lengths).astype(np.float32)
    ended = np.array([0, 1, 0, 1, 0, 1])[:, None] * (steps >= lengths - 1)
    states = normal(BATCH, HORIZON + 1, STATES)
    last = np.minimum(np.arange(HORIZON + 1), lengths)  # the last state repeats
    window = Window(
        states=np.take_along_axis(states, last[..., None], axis=1),
        rewards=normal(BATCH, HORIZON) * mask,
        terminated=ended.astype(np.float32),
        mask=mask,
        action=normal(BATCH, ACTIONS),
        return_to_go=normal(BATCH),
    )
    return jax.tree.map(jnp.asarray, window)


def _draws(seed=1):
    rng = np.random.default_rng(seed)
    return world_model.Draws(
        step=jnp.asarray(rng.integers(0, STEPS, BATCH)),
        noise=jnp.asarray(rng.normal(size=(BATCH, HORIZON + 1, CHANNELS)), jnp.float32),
        conditioned=jnp.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]),
    )


def _stub(np_, params, x, step, action, return_to_go, conditioned):
    """A smooth function of every input, in place of the network."""
    shift = 0.1 * np_.asarray(step, float) + action.sum(-1) + return_to_go * conditioned
    return params * np_.sin(2.0 * x) + shift[:, None, None]


class _StubDenoiser:
    """A `Denoiser` of one parameter."""

    def __call__(self, params, x, step, condition):
        return _stub(jnp, params, x, step, *condition)


MODEL = world_model.DiffusionWorldModel(
    settings=world_model.Settings(),
    horizon=HORIZON,
    tokens=Tokens(tokens.DAWM, NORMALIZER),
    denoiser=_StubDenoiser(),
    termination=networks.Mlp((5, 4), 2),
    process=PROCESS,
    sampler=Sampler(sampling_steps=4),
)
_with = dataclasses.replace


def _params(denoiser=0.7):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(MODEL.termination.init, jax.random.key(0), jnp.zeros(2 * STATES))
    normal = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
    return {"denoiser": denoiser, "termination": jax.tree.map(normal, shapes)}


def _predicting(prediction):
    return _with(MODEL, process=Process(ALPHA_BAR, prediction))


def _numpy_logits(params, states):
    """[B, H, 2], of each step from its two states: terminates, absorbed."""
    layers = params["termination"]["params"]
    logits = np.zeros((BATCH, HORIZON, 2))
    for row in range(BATCH):
        for k in range(HORIZON):
            pair = np.concatenate([states[row, k], states[row, k + 1]]).astype(float)
            logits[row, k] = reference.mlp(layers, pair)
    return logits


def _numpy_termination_loss(params, window):
    """-(d log p + (1 - d) log(1 - p)) of both outputs, over all steps.

    Real steps terminate or not, and are not absorbed. Steps after a termination are absorbed,
    and whether they terminate does not count. Steps after a time-out count nowhere.
    """
    probability = 1.0 / (1.0 + np.exp(-_numpy_logits(params, window.states)))
    total = 0.0
    for row in range(BATCH):
        for k in range(HORIZON):
            terminates, absorbed = probability[row, k]
            if window.mask[row, k]:
                total -= np.log(terminates if window.terminated[row, k] else 1.0 - terminates)
                total -= np.log(1.0 - absorbed)
            elif window.terminated[row, k]:
                total -= np.log(absorbed)
    return total / (BATCH * HORIZON)


def _numpy_tokens(window):
    """Token k: (s_k, reward on arriving); token 0 has no arrival."""
    tokens = np.zeros((BATCH, HORIZON + 1, CHANNELS))
    for row in range(BATCH):
        for k in range(HORIZON + 1):
            tokens[row, k, :STATES] = window.states[row, k]
            if k > 0:
                tokens[row, k, STATES] = (window.rewards[row, k - 1] - 1.5) / 2.0
    return tokens


# --- loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_loss_equals_the_ddpm_equation(prediction):
    window, draws = _window(), _draws()
    x0, noise = _numpy_tokens(window), np.asarray(draws.noise, float)
    a = np.asarray(ALPHA_BAR, float)[np.asarray(draws.step)][:, None, None]
    x = np.sqrt(a) * x0 + np.sqrt(1 - a) * noise  # Ho et al. eq. 4
    x[:, 0] = x0[:, 0]  # the known token is shown clean
    known = (np.asarray(window.mask) > 0) | (np.asarray(window.terminated) > 0)
    x[:, 1:][~known] = noise[:, 1:][~known]  # after a time-out nothing is known
    target = {"epsilon": noise, "x0": x0, "v": np.sqrt(a) * noise - np.sqrt(1 - a) * x0}
    inputs = draws.step, window.action, window.return_to_go, draws.conditioned
    params = _params()
    output = _stub(np, params["denoiser"], x, *(np.asarray(i, float) for i in inputs))
    total = 0.0
    for row in range(BATCH):
        for k in range(1, HORIZON + 1):
            if known[row, k - 1]:
                total += np.sum((output - target[prediction])[row, k] ** 2)
    expected = total / (BATCH * HORIZON * CHANNELS)
    value, metrics = _predicting(prediction).loss(params, window, draws)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    # What is minimised, but not reported as "loss", holds the terminations' too.
    expected += _numpy_termination_loss(params, window)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_end_logits_and_loss_equal_numpy():
    """A ReLU network of both states of a step, and the cross-entropies of its two outputs."""
    window, params = _window(), _params()
    logits = jnp.stack(MODEL.end_logits(params, window.states), axis=-1)
    expected = _numpy_logits(params, window.states)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)  # float32 rounding
    # Both classes, right and wrong.
    ended, real = np.asarray(window.terminated) > 0, np.asarray(window.mask) > 0
    assert len({*zip(ended[real], (expected[..., 0] > 0)[real], strict=True)}) == 4
    assert (ended & ~real).any() and (~ended & ~real).any()  # absorbed, and after a time-out
    expected = _numpy_termination_loss(params, window)
    np.testing.assert_allclose(MODEL.termination_loss(params, window), expected, rtol=1e-5)
    found = MODEL.loss(params, window, _draws())[1]["termination_loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("changes", [False, True])
def test_what_is_unknown_neither_counts_nor_is_seen(changes):
    """With one free parameter per token, its gradient shows what the loss sees.

    The denoiser mixes all tokens, so that one unknown token would move all outputs.
    """
    model = _with(
        MODEL,
        tokens=Tokens(tokens.DAWM._replace(changes=changes), NORMALIZER),
        denoiser=lambda params, x, *_: params + 0.1 * x.sum(axis=(1, 2), keepdims=True),
    )
    loss = lambda free, window: model.loss(_params(free), window, draws)[0]
    window, draws = _window(), _draws()
    free = jnp.zeros((BATCH, HORIZON + 1, CHANNELS))
    gradient = np.asarray(jax.grad(loss)(free, window))
    assert np.all(gradient[:, 0] == 0.0)
    known = np.maximum(window.mask, window.terminated) > 0
    assert 0 < (~known).sum() < known.size
    counted = np.broadcast_to(known[..., None], gradient[:, 1:].shape)
    np.testing.assert_array_equal(gradient[:, 1:] != 0.0, counted)
    unknown = jnp.asarray(~known, jnp.float32)
    other = window._replace(
        states=window.states.at[:, 1:].add(5.0 * unknown[..., None]),
        rewards=window.rewards + 5.0 * unknown,
    )
    np.testing.assert_array_equal(loss(free, other), loss(free, window))


def test_loss_is_the_mean_of_its_parts():
    """Also where the parts have different numbers of real steps (6 and 8 here)."""
    window, draws = _window(), _draws()
    part = lambda rows: jax.tree.map(lambda leaf: leaf[rows], (window, draws))
    parts = [MODEL.loss(_params(), *part(rows))[0] for rows in (slice(0, 3), slice(3, 6))]
    np.testing.assert_allclose(MODEL.loss(_params(), window, draws)[0], np.mean(parts), rtol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.25, 0.9])
def test_draws_have_the_documented_distribution(dropout):
    model = _with(MODEL, settings=world_model.Settings(condition_dropout=dropout))
    draws = model.draw(jax.random.key(0), 2000)
    # Within 4 standard errors of the binomial, normal and uniform distributions.
    allowed = 4 * np.sqrt(dropout * (1 - dropout) / 2000)
    assert abs(draws.conditioned.mean() - (1 - dropout)) <= allowed
    assert set(np.unique(draws.conditioned)) <= {0.0, 1.0}
    assert draws.noise.shape == (2000, HORIZON + 1, CHANNELS)
    assert abs(draws.noise.mean()) < 4 / np.sqrt(draws.noise.size)
    assert abs(draws.noise.var() - 1.0) < 4 * np.sqrt(2 / draws.noise.size)
    counts = np.bincount(draws.step, minlength=STEPS)
    assert len(counts) == STEPS and np.all(np.abs(counts - 250) < 4 * np.sqrt(250))


def test_denoising_errors_equal_numpy():
    window, noise = _window(), _draws().noise
    x0, levels = _numpy_tokens(window), (1, 4, 6)
    alpha_bar = np.linspace(0.9, 0.2, STEPS)
    expected = []
    for level in levels:
        a = alpha_bar[level]
        x = np.sqrt(a) * x0 + np.sqrt(1 - a) * np.asarray(noise, float)
        x[:, 0] = x0[:, 0]
        known = (np.asarray(window.mask) > 0) | (np.asarray(window.terminated) > 0)
        x[:, 1:][~known] = np.asarray(noise, float)[:, 1:][~known]
        inputs = np.full(BATCH, level), window.action, window.return_to_go, np.ones(BATCH)
        output = _stub(np, 0.7, x, *(np.asarray(i, float) for i in inputs))
        predicted = (x - np.sqrt(1 - a) * output) / np.sqrt(a)
        real = np.asarray(window.mask) > 0
        expected.append(np.mean((predicted - x0)[:, 1:][real] ** 2))
    process = Process(jnp.asarray(alpha_bar, jnp.float32), "epsilon")
    model = _with(MODEL, process=process)
    actual = model.denoising_errors(_params(), window, noise, levels=levels)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


# --- sampling -------------------------------------------------------------------------------


class _DirectDenoiser:
    """Predicts an x_0 that depends on the conditions and the token's place only."""

    @staticmethod
    def values(action, return_to_go, conditioned, place):
        level = action[:, :1] + (return_to_go * conditioned)[:, None] + place[None]
        return level[..., None] * np.array([1.0, -1.0, 0.5])[None, None]

    def __call__(self, params, x, step, condition):
        del params, step
        return self.values(*condition, jnp.arange(x.shape[1]).astype(x.dtype)) + 0.0 * x


# A linear classifier of (s, s') whose weights tell the states, their dimensions and both outputs
# apart: [4, 2].
CLASSIFIER = np.array([[0.5, -0.3], [0.3, 0.2], [-1.0, 0.7], [-0.2, -0.6]], np.float32)


class _StubClassifier:
    """`CLASSIFIER`; the parameters are the biases of both outputs."""

    @staticmethod
    def apply(params, pairs):
        return params[None, None] + pairs @ CLASSIFIER


@pytest.mark.parametrize(
    ("guidance", "order", "eta"), [(0.0, 1, 0.0), (1.0, 2, 0.0), (1.8, 1, 1.0), (1.8, 2, 0.0)]
)
def test_sample_is_guided_bounded_and_starts_exactly(guidance, order, eta):
    """An x_0 that ignores x is what DDIM returns, whatever the noise."""
    window = _window()
    condition = Condition(window.states[:, 0], window.action, window.return_to_go)
    model = _with(
        _predicting("x0"),
        denoiser=_DirectDenoiser(),
        termination=_StubClassifier,
        sampler=Sampler(4, order, eta=eta, guidance=guidance, temperature=0.5),
    )
    biases = np.array([1.2, -1.0], np.float32)
    params = {"denoiser": None, "termination": biases}
    generated = model.sample(params, jax.random.key(0), condition)
    np.testing.assert_array_equal(generated.states[:, 0], condition.state)
    action, returns = np.asarray(condition.action), np.asarray(condition.return_to_go)
    given, null = (
        _DirectDenoiser.values(action, returns, np.full(BATCH, c), np.arange(HORIZON + 1))
        for c in (1.0, 0.0)
    )
    # The bounds of the data are ±3, standardised.
    x0 = np.clip(null + guidance * (given - null), -3.0, 3.0)[:, 1:]
    assert np.any(np.abs(x0[..., :2]) == 3.0)
    np.testing.assert_allclose(generated.states[:, 1:], x0[..., :2], atol=1e-5)
    np.testing.assert_allclose(generated.rewards, 1.5 + 2.0 * x0[..., 2], atol=1e-5)
    states = np.concatenate([np.asarray(condition.state)[:, None], x0[..., :2]], axis=1)
    logits = biases + np.concatenate([states[:, :-1], states[:, 1:]], axis=-1) @ CLASSIFIER
    assert np.abs(logits).min() > 1e-3  # no sign by rounding
    terminates, absorbed = (logits > 0).transpose(2, 0, 1)
    expected = np.array(
        [
            [
                terminates[row, k] or (k + 1 < HORIZON and absorbed[row, k + 1])
                for k in range(HORIZON)
            ]
            for row in range(BATCH)
        ]
    )
    # Some steps end by each output, and some do not end.
    assert (expected & ~terminates).any() and (~expected).any() and terminates.any()
    np.testing.assert_array_equal(generated.terminated, expected)


# --- learning -------------------------------------------------------------------------------

# s' = ROTATION s + PUSH a; the reward is s'_0; the episode ends where s'_1 > .5.
ROTATION = np.array([[0.8, 0.6], [-0.6, 0.8]], np.float32)
PUSH = np.array([[0.5, 0.0], [0.3, 0.5]], np.float32)


def _linear_system(seed, size):
    rng = np.random.default_rng(seed)
    state = rng.uniform(-1.0, 1.0, (size, 2)).astype(np.float32)
    action = rng.uniform(-1.0, 1.0, (size, 2)).astype(np.float32)
    following = state @ ROTATION.T + action @ PUSH.T
    window = Window(
        states=np.stack([state, following], axis=1),
        rewards=following[:, :1],
        terminated=(following[:, 1:] > 0.5).astype(np.float32),
        mask=np.ones((size, 1), np.float32),
        action=action,
        return_to_go=np.zeros(size, np.float32),
    )
    return jax.tree.map(jnp.asarray, window)


def _replay_of(window):
    """One-step windows as a dataset of one-step episodes."""
    size = len(window.action)
    transitions = Transition(
        observation=window.states[:, 0],
        action=window.action,
        reward=window.rewards[:, 0],
        terminated=window.terminated[:, 0],
        next_observation=window.states[:, 1],
    )
    return Replay(transitions, jnp.arange(size), window.return_to_go, num_train=size)


def test_learns_a_linear_system():
    steps = 600
    values = settings.defaults(world_model.Settings) | {
        "denoiser": "unet",
        "steps": steps,
        "batch_size": 128,
        "learning_rate": 4e-3,
        "warmup_steps": 20,
        "ema_decay": 0.99,
        "termination_hidden": (16,),
        "diffusion_steps": 50,
        "prediction": "v",
    }
    model = world_model.make(
        settings.build(world_model.Settings, values, name="config.world_model"),
        denoiser_settings=unet.Settings(dim=16, multipliers=(1,), kernel_size=3, groups=4),
        sampler=Sampler(sampling_steps=5, guidance=1.0),
        horizon=1,
        layout=tokens.DAWM,
        normalizer=_normalizer(reward_mean=0.0, reward_std=1.0),
    )
    replay = _replay_of(_linear_system(0, 4096))

    def step(state, index):
        key = jax.random.fold_in(jax.random.key(1), index)
        return model.step(state, key, replay, shard=keep, mean=keep)

    @jax.jit
    def run(state, condition):
        state, _ = optim.scan_steps(step, state, 0, steps)
        return model.sample(state.average, jax.random.key(2), condition)

    held_out = _linear_system(1, 256)
    condition = Condition(held_out.states[:, 0], held_out.action, held_out.return_to_go)
    generated = run(jax.jit(model.init)(jax.random.key(0)), condition)
    expected = np.asarray(held_out.states[:, 1])
    # The mean answer leaves the whole variance unexplained, an answer without the action a
    # fifth to a quarter of it. A tenth needs both the state and the action.
    error = np.square(np.asarray(generated.states[:, 1]) - expected).mean(0)
    assert np.all(error < 0.1 * expected.var(0))
    reward_error = np.square(np.asarray(generated.rewards[:, 0]) - expected[:, 0]).mean()
    assert reward_error < 0.1 * expected[:, 0].var()
    # Answering "never" is wrong wherever an episode ended: twice as often as is allowed.
    wrong = np.mean(generated.terminated != held_out.terminated)
    assert wrong < 0.5 * np.mean(held_out.terminated)


# --- other layouts of the tokens --------------------------------------------------------------


def _window_with_actions():
    actions = np.random.default_rng(7).uniform(-1, 1, (BATCH, HORIZON, ACTIONS))
    return _window()._replace(actions=jnp.asarray(actions, jnp.float32))


def _make(layout, **changes):
    values = settings.defaults(world_model.Settings, "smoke")
    values |= {"denoiser": "unet", "termination_hidden": (5, 4), "diffusion_steps": STEPS}
    section = settings.build(world_model.Settings, values | changes, name="config.world_model")
    return world_model.make(
        section,
        denoiser_settings=unet.Settings(8, (1,), 3, 4),
        sampler=Sampler(sampling_steps=4),
        horizon=HORIZON,
        layout=layout,
        normalizer=NORMALIZER,
    )


@pytest.mark.parametrize("layout", [tokens.DAWM, tokens.JOINT, tokens.STATES])
def test_rewards_come_with_a_classifier_of_both_states(layout):
    params = jax.eval_shape(_make(layout).init, jax.random.key(0)).params
    if layout is tokens.STATES:
        assert list(params) == ["denoiser"]
    else:
        assert set(params) == {"denoiser", "termination"}
        kernels = [layer["kernel"].shape for layer in params["termination"]["params"].values()]
        assert kernels == [(2 * STATES, 5), (5, 4), (4, 2)]
    out = params["denoiser"]["params"]["Dense_0"]["kernel"]
    assert out.shape == (8, layout.channels(STATES, ACTIONS))


def test_a_plan_is_made_before_the_action_is_known():
    assert _make(tokens.DAWM).denoiser.shape.on_action
    assert not _make(tokens.STATES).denoiser.shape.on_action


def test_errors_name_five_noise_levels():
    model = dataclasses.replace(_make(tokens.DAWM), horizon=1)
    params = model.init(jax.random.key(0)).params
    replay = _replay_of(_linear_system(0, 16))
    found = reference.jit(model.errors)(params, replay, jnp.arange(4, 12))
    levels = [0, 2, 4, 5, 7]  # 0, 1.75, 3.5, 5.25 and 7, rounded
    others = {"termination_loss", "return_moved"}
    assert set(found) == {f"error_at_{level}" for level in levels} | others
    assert all(np.isfinite(value) for value in found.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "dtype: expected one of float32, bfloat16, got 'float16'"),
        ({"prediction": "eps"}, "prediction: expected one of epsilon, x0, v, got 'eps'"),
        ({"condition_dropout": 1.0}, "condition_dropout: expected a number at least 0 and below"),
        ({"diffusion_steps": 0}, "diffusion_steps: expected a whole number at least 1"),
        ({"warmup_steps": -1}, "warmup_steps: expected a whole number at least 0"),
        ({"termination_hidden": (8, 0)}, "termination_hidden: expected"),
        ({"denoiser": "cnn"}, "denoiser: expected one of .*got 'cnn'"),
    ],
)
def test_settings_that_are_refused(changes, message):
    with pytest.raises(UserError, match=f"config.world_model.{message}"):
        _make(tokens.DAWM, **changes)


def test_more_sampling_steps_than_diffusion_steps_are_refused():
    with pytest.raises(UserError, match="sampling_steps: expected 1 to 8"):
        world_model.make(
            world_model.Settings(denoiser="unet", diffusion_steps=STEPS),
            denoiser_settings=unet.Settings(),
            sampler=Sampler(sampling_steps=9),
            horizon=HORIZON,
            layout=tokens.DAWM,
            normalizer=NORMALIZER,
        )


@pytest.mark.parametrize("layout", [tokens.JOINT, tokens.STATES])
def test_loss_of_other_layouts_equals_the_ddpm_equation(layout):
    window, rng = _window_with_actions(), np.random.default_rng(8)
    codec = Tokens(layout, NORMALIZER)
    x0 = np.asarray(codec.encode(window), float)
    draws = _draws()._replace(noise=jnp.asarray(rng.normal(size=x0.shape), jnp.float32))
    a = np.asarray(ALPHA_BAR, float)[np.asarray(draws.step)][:, None, None]
    x = np.sqrt(a) * x0 + np.sqrt(1 - a) * np.asarray(draws.noise, float)
    x[:, 0] = x0[:, 0]  # the first action is known too
    mask = np.broadcast_to(codec.known(window), x0[:, 1:].shape)
    x[:, 1:] = np.where(mask > 0, x[:, 1:], np.asarray(draws.noise, float)[:, 1:])
    inputs = draws.step, window.action, window.return_to_go, draws.conditioned
    params = _params()
    if not layout.rewards:
        del params["termination"]
    output = _stub(np, params["denoiser"], x, *(np.asarray(i, float) for i in inputs))
    expected = (((output - np.asarray(draws.noise))[:, 1:] ** 2) * mask).mean()
    model = _with(_predicting("epsilon"), tokens=codec)
    value, metrics = model.loss(params, window, draws)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    if layout.rewards:
        expected += _numpy_termination_loss(params, window)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_the_effect_of_the_target_is_measured_in_spreads_of_returns(slope):
    """A reward that is the first action plus `slope` times the target, at each of H steps."""

    def denoise(params, x, step, condition):
        reward = condition.action[:, 0] + slope * condition.return_to_go
        tokens = jnp.zeros((len(x), HORIZON + 1, STATES))
        rewards = jnp.broadcast_to(reward[:, None, None], (len(x), HORIZON + 1, 1))
        return jnp.concatenate([tokens, rewards], axis=-1)

    constants = dataclasses.replace(
        NORMALIZER, return_low=jnp.float32(-0.5), return_high=jnp.float32(1.5)
    )
    model = _with(_predicting("x0"), denoiser=denoise, tokens=Tokens(tokens.DAWM, constants))
    window = _window()
    # Rewards are 1.5 + 2 (action + slope target): the action alone spreads the returns.
    spread = HORIZON * 2.0 * np.asarray(window.action)[:, 0].std()
    expected = HORIZON * 2.0 * slope * 2.0 / spread
    found = model.return_moved(_params(), window)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
