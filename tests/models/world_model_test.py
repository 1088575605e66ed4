"""The world model: tokens, the loss against NumPy, and a system small enough to learn."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

from dawm_jax.models import diffusion, networks, world_model
from dawm_jax.models import optim as learner
from dawm_jax.types import Condition, Statistics, Window

BATCH, HORIZON, STATES, ACTIONS, STEPS = 6, 3, 2, 2, 8
CHANNELS = STATES + 1
ALPHA_BAR = diffusion.cosine_schedule(STEPS)


def _statistics(reward_mean=1.5, reward_std=2.0, bound=3.0):
    values = dict.fromkeys(Statistics.__dataclass_fields__, jnp.ones(()))
    return Statistics(
        **values
        | {
            "observation_mean": jnp.array([1.0, -2.0]),
            "observation_std": jnp.array([0.5, 4.0]),
            # Standardised, the states' bounds are ± bound.
            "observation_low": jnp.array([1.0 - 0.5 * bound, -2.0 - 4.0 * bound]),
            "observation_high": jnp.array([1.0 + 0.5 * bound, -2.0 + 4.0 * bound]),
            "reward_mean": jnp.asarray(reward_mean),
            "reward_std": jnp.asarray(reward_std),
            "reward_low": jnp.asarray(reward_mean - bound * reward_std),
            "reward_high": jnp.asarray(reward_mean + bound * reward_std),
        }
    )


STATISTICS = _statistics()


def _window(seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    # Episodes of different lengths: the last steps of most rows do not exist.
    mask = (np.arange(HORIZON) < np.array([3, 1, 2, 3, 3, 2])[:, None]).astype(np.float32)
    window = Window(
        states=normal(BATCH, HORIZON + 1, STATES),
        rewards=normal(BATCH, HORIZON) * mask,
        terminated=rng.integers(0, 2, (BATCH, HORIZON)).astype(np.float32),
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
    shift = 0.1 * step + action.sum(-1) + return_to_go * conditioned
    return params * np_.sin(2.0 * x) + shift[:, None, None]


class _StubNetwork:
    apply = staticmethod(lambda *args: _stub(jnp, *args))


MODULES = world_model.Networks(_StubNetwork, networks.Mlp((5, 4), 1))


def _params(denoiser=0.7):
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(MODULES.termination.init, jax.random.key(0), jnp.zeros(2 * STATES))
    normal = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
    return {"denoiser": denoiser, "termination": jax.tree.map(normal, shapes)}


def _loss(params, window, draws, modules=MODULES, prediction="v", layout=world_model.DAWM):
    return world_model.loss(
        params,
        window,
        draws,
        modules=modules,
        alpha_bar=ALPHA_BAR,
        prediction=prediction,
        statistics=STATISTICS,
        layout=layout,
    )


def _numpy_logits(params, states):
    """[B, H], of each step from its two states."""
    layers = params["termination"]["params"]
    logits = np.zeros((BATCH, HORIZON))
    for row in range(BATCH):
        for k in range(HORIZON):
            pair = np.concatenate([states[row, k], states[row, k + 1]]).astype(float)
            (logits[row, k],) = reference.mlp(layers, pair)
    return logits


def _numpy_termination_loss(params, window):
    """-(d log p + (1 - d) log(1 - p)), of real steps, over all steps."""
    probability = 1.0 / (1.0 + np.exp(-_numpy_logits(params, window.states)))
    total = 0.0
    for row in range(BATCH):
        for k in range(HORIZON):
            if window.mask[row, k]:
                p = probability[row, k]
                total -= np.log(p if window.terminated[row, k] else 1.0 - p)
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


# --- tokens ---------------------------------------------------------------------------------


def test_tokens_have_the_documented_layout():
    window = _window()
    tokens = world_model.to_tokens(window, STATISTICS)
    np.testing.assert_allclose(tokens, _numpy_tokens(window), atol=1e-6)  # float32 rounding


def test_from_tokens_inverts_to_tokens():
    window = _window()
    tokens = world_model.to_tokens(window, STATISTICS)
    imagined = world_model.from_tokens(tokens, window.terminated, STATISTICS)
    np.testing.assert_array_equal(imagined.states, window.states)
    np.testing.assert_allclose(imagined.rewards, window.rewards, atol=1e-6)
    np.testing.assert_array_equal(imagined.terminated, window.terminated)


# --- loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_loss_equals_the_ddpm_equation(prediction):
    window, draws = _window(), _draws()
    x0, noise = _numpy_tokens(window), np.asarray(draws.noise, float)
    a = np.asarray(ALPHA_BAR, float)[np.asarray(draws.step)][:, None, None]
    x = np.sqrt(a) * x0 + np.sqrt(1 - a) * noise  # Ho et al. eq. 4
    x[:, 0] = x0[:, 0]  # the known token is shown clean
    target = {"epsilon": noise, "x0": x0, "v": np.sqrt(a) * noise - np.sqrt(1 - a) * x0}
    inputs = draws.step, window.action, window.return_to_go, draws.conditioned
    params = _params()
    output = _stub(np, params["denoiser"], x, *(np.asarray(i, float) for i in inputs))
    total = 0.0
    for row in range(BATCH):
        for k in range(1, HORIZON + 1):
            if window.mask[row, k - 1]:
                total += np.sum((output - target[prediction])[row, k] ** 2)
    expected = total / (BATCH * HORIZON * CHANNELS)
    value, metrics = _loss(params, window, draws, prediction=prediction)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    # What is minimised, but not reported as "loss", holds the terminations' too.
    expected += _numpy_termination_loss(params, window)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_termination_logits_and_loss_equal_numpy():
    """A ReLU network of both states of a step, and its cross-entropy over real steps."""
    window, params = _window(), _params()
    logits = world_model.termination_logits(params, window.states, modules=MODULES)
    expected = _numpy_logits(params, window.states)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)  # float32 rounding
    # Both classes, right and wrong.
    ended, real = np.asarray(window.terminated) > 0, np.asarray(window.mask) > 0
    assert len({*zip(ended[real], (expected > 0)[real], strict=True)}) == 4
    loss = lambda params: world_model.termination_loss(params, window, modules=MODULES)
    expected = _numpy_termination_loss(params, window)
    np.testing.assert_allclose(loss(params), expected, rtol=1e-5)
    found = _loss(params, window, _draws())[1]["termination_loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_padded_steps_and_the_known_token_do_not_count():
    """With one free parameter per token, its gradient shows what the loss sees."""
    window, draws = _window(), _draws()
    free = jnp.zeros((BATCH, HORIZON + 1, CHANNELS))
    gradient = np.asarray(jax.grad(_loss_of_free_outputs)(free, window, draws))
    assert np.all(gradient[:, 0] == 0.0)
    counted = np.broadcast_to(np.asarray(window.mask)[..., None] > 0, gradient[:, 1:].shape)
    np.testing.assert_array_equal(gradient[:, 1:] != 0.0, counted)
    padded = window._replace(
        states=window.states.at[:, 1:].add(5.0 * (1.0 - window.mask[..., None])),
        rewards=window.rewards + 5.0 * (1.0 - window.mask),
        terminated=jnp.where(window.mask > 0, window.terminated, 1.0 - window.terminated),
    )
    np.testing.assert_array_equal(
        _loss_of_free_outputs(free, padded, draws), _loss_of_free_outputs(free, window, draws)
    )


def _loss_of_free_outputs(free, window, draws):
    class Network:
        apply = staticmethod(lambda params, x, *_: params + 0.1 * x)

    return _loss(_params(free), window, draws, MODULES._replace(denoiser=Network))[0]


def test_loss_is_the_mean_of_its_parts():
    """Also where the parts have different numbers of real steps (6 and 8 here)."""
    window, draws = _window(), _draws()
    part = lambda rows: jax.tree.map(lambda leaf: leaf[rows], (window, draws))
    parts = [_loss(_params(), *part(rows))[0] for rows in (slice(0, 3), slice(3, 6))]
    np.testing.assert_allclose(_loss(_params(), window, draws)[0], np.mean(parts), rtol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.25, 1.0])
def test_draws_have_the_documented_distribution(dropout):
    draws = world_model.draw(
        jax.random.key(0),
        batch_size=2000,
        horizon=HORIZON,
        channels=CHANNELS,
        num_steps=STEPS,
        condition_dropout=dropout,
    )
    # Within 4 standard errors of the binomial, normal and uniform distributions.
    assert abs(draws.conditioned.mean() - (1 - dropout)) <= 4 * np.sqrt(0.25 * dropout / 2000)
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
        inputs = np.full(BATCH, level), window.action, window.return_to_go, np.ones(BATCH)
        output = _stub(np, 0.7, x, *(np.asarray(i, float) for i in inputs))
        predicted = (x - np.sqrt(1 - a) * output) / np.sqrt(a)
        real = np.asarray(window.mask) > 0
        expected.append(np.mean((predicted - x0)[:, 1:][real] ** 2))
    actual = world_model.denoising_errors(
        _params(),
        window,
        noise,
        levels=levels,
        modules=MODULES,
        alpha_bar=jnp.asarray(alpha_bar, jnp.float32),
        prediction="epsilon",
        statistics=STATISTICS,
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


# --- sampling -------------------------------------------------------------------------------


class _DirectNetwork:
    """Predicts an x_0 that depends on the conditions and the token's place only."""

    @staticmethod
    def values(action, return_to_go, conditioned, place):
        level = action[:, :1] + (return_to_go * conditioned)[:, None] + place[None]
        return level[..., None] * np.array([1.0, -1.0, 0.5])[None, None]

    @classmethod
    def apply(cls, params, x, step, action, return_to_go, conditioned):
        del params, step
        return cls.values(action, return_to_go, conditioned, jnp.arange(x.shape[1])) + 0.0 * x


class _StubClassifier:
    """Linear in s and in s', with weights that tell them and their dimensions apart."""

    @staticmethod
    def apply(params, pairs):
        return params + pairs @ np.array([[0.5], [0.3], [-1.0], [-0.2]], np.float32)


@pytest.mark.parametrize(
    ("guidance", "order", "eta"), [(0.0, 1, 0.0), (1.0, 2, 0.0), (1.8, 1, 1.0), (1.8, 2, 0.0)]
)
def test_sample_is_guided_bounded_and_starts_exactly(guidance, order, eta):
    """An x_0 that ignores x is what DDIM returns, whatever the noise."""
    window = _window()
    condition = Condition(window.states[:, 0], window.action, window.return_to_go)
    imagined = world_model.sample(
        {"denoiser": None, "termination": jnp.float32(0.4)},
        jax.random.key(0),
        condition,
        modules=world_model.Networks(_DirectNetwork, _StubClassifier),
        alpha_bar=ALPHA_BAR,
        prediction="x0",
        statistics=STATISTICS,
        horizon=HORIZON,
        num_steps=4,
        guidance=guidance,
        order=order,
        eta=eta,
        temperature=0.5,
    )
    np.testing.assert_array_equal(imagined.states[:, 0], condition.state)
    action, returns = np.asarray(condition.action), np.asarray(condition.return_to_go)
    given, null = (
        _DirectNetwork.values(action, returns, np.full(BATCH, c), np.arange(HORIZON + 1))
        for c in (1.0, 0.0)
    )
    # The bounds of the data are ±3, standardised.
    x0 = np.clip(null + guidance * (given - null), -3.0, 3.0)[:, 1:]
    assert np.any(np.abs(x0[..., :2]) == 3.0)
    np.testing.assert_allclose(imagined.states[:, 1:], x0[..., :2], atol=1e-5)
    np.testing.assert_allclose(imagined.rewards, 1.5 + 2.0 * x0[..., 2], atol=1e-5)
    after = x0[..., :2]
    before = np.concatenate([np.asarray(condition.state)[:, None], after[:, :-1]], axis=1)
    logits = 0.4 + 0.5 * before[..., 0] + 0.3 * before[..., 1] - after[..., 0] - 0.2 * after[..., 1]
    assert np.abs(logits).min() > 1e-3  # no sign by rounding
    assert 0 < (logits > 0).sum() < logits.size
    np.testing.assert_array_equal(imagined.terminated, logits > 0)


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


def test_learns_a_linear_system():
    modules = world_model.Networks(
        networks.TemporalUNet(dim=16, multipliers=(1,), kernel_size=3, groups=4),
        networks.Mlp((16,), 1),
    )
    statistics = _statistics(reward_mean=0.0, reward_std=1.0)
    alpha_bar = diffusion.cosine_schedule(50)
    shapes = jax.eval_shape(
        lambda key: world_model.init(
            key, modules=modules, horizon=1, state_size=2, action_size=ACTIONS
        ),
        jax.random.key(0),
    )
    # Initialised by NumPy, uniform in ±1 / sqrt(fan_in): flax's initialisers compile long.
    rng = np.random.default_rng(0)

    def fresh(path, leaf):
        if "scale" in jax.tree_util.keystr(path):
            return jnp.ones(leaf.shape)
        bound = 1.0 / np.sqrt(max(np.prod(leaf.shape[:-1]), 1)) if leaf.ndim > 1 else 0.0
        return jnp.asarray(bound * rng.uniform(-1.0, 1.0, leaf.shape), jnp.float32)

    params = jax.tree_util.tree_map_with_path(fresh, shapes)
    data, size, steps = _linear_system(0, 4096), 128, 600
    optimizer = learner.adam(4e-3, schedule="cosine", total_steps=steps, warmup_steps=20)

    def step(state, index):
        key_rows, key_draws = jax.random.split(jax.random.fold_in(jax.random.key(1), index))
        rows = jax.random.randint(key_rows, (size,), 0, 4096)
        draws = world_model.draw(
            key_draws,
            batch_size=size,
            horizon=1,
            channels=CHANNELS,
            num_steps=50,
            condition_dropout=0.25,
        )
        loss = lambda params: world_model.loss(
            params,
            jax.tree.map(lambda leaf: leaf[rows], data),
            draws,
            modules=modules,
            alpha_bar=alpha_bar,
            prediction="v",
            statistics=statistics,
        )
        return learner.fit_step(state, loss, optimizer, ema_decay=0.99)

    @jax.jit
    def run(state, condition):
        state, _ = learner.scan_steps(step, state, 0, steps)
        return world_model.sample(
            state.average,
            jax.random.key(2),
            condition,
            modules=modules,
            alpha_bar=alpha_bar,
            prediction="v",
            statistics=statistics,
            horizon=1,
            num_steps=5,
            guidance=1.0,
            order=2,
            eta=0.0,
            temperature=1.0,
        )

    held_out = _linear_system(1, 256)
    condition = Condition(held_out.states[:, 0], held_out.action, held_out.return_to_go)
    imagined = run(learner.init_state(params, optimizer), condition)
    expected = np.asarray(held_out.states[:, 1])
    # The mean answer leaves the whole variance unexplained, an answer without the action a
    # fifth to a quarter of it. A tenth needs both the state and the action.
    error = np.square(np.asarray(imagined.states[:, 1]) - expected).mean(0)
    assert np.all(error < 0.1 * expected.var(0))
    reward_error = np.square(np.asarray(imagined.rewards[:, 0]) - expected[:, 0]).mean()
    assert reward_error < 0.1 * expected[:, 0].var()
    # Answering "never" is wrong wherever an episode ended: twice as often as is allowed.
    wrong = np.mean(imagined.terminated != held_out.terminated)
    assert wrong < 0.5 * np.mean(held_out.terminated)


# --- other layouts of the tokens --------------------------------------------------------------


def _window_with_actions():
    actions = np.random.default_rng(7).uniform(-1, 1, (BATCH, HORIZON, ACTIONS))
    return _window()._replace(actions=jnp.asarray(actions, jnp.float32))


def test_joint_tokens_hold_the_action_that_is_taken_next():
    window = _window_with_actions()
    tokens = np.asarray(world_model.to_tokens(window, STATISTICS, world_model.JOINT))
    action = tokens[..., STATES : STATES + ACTIONS]
    np.testing.assert_array_equal(action[:, :HORIZON], window.actions)
    np.testing.assert_array_equal(action[:, HORIZON], 0.0)
    rest = np.delete(tokens, np.arange(STATES, STATES + ACTIONS), axis=-1)
    np.testing.assert_array_equal(rest, world_model.to_tokens(window, STATISTICS))
    imagined = world_model.from_tokens(
        jnp.asarray(tokens), window.terminated, STATISTICS, world_model.JOINT
    )
    np.testing.assert_array_equal(imagined.actions, window.actions)
    np.testing.assert_array_equal(imagined.states, window.states)
    np.testing.assert_array_equal(imagined.terminated, window.terminated)


def test_tokens_of_states_alone():
    window = _window()
    tokens = world_model.to_tokens(window, STATISTICS, world_model.STATES)
    np.testing.assert_array_equal(tokens, window.states)


@pytest.mark.parametrize("layout", [world_model.DAWM, world_model.JOINT, world_model.STATES])
def test_rewards_come_with_a_classifier_of_both_states(layout):
    modules = MODULES._replace(denoiser=networks.TemporalUNet(8, (1,), 3, 4))
    shapes = jax.eval_shape(
        lambda key: world_model.init(
            key, modules=modules, horizon=1, state_size=5, action_size=ACTIONS, layout=layout
        ),
        jax.random.key(0),
    )
    if layout is world_model.STATES:
        assert list(shapes) == ["denoiser"]
    else:
        assert set(shapes) == {"denoiser", "termination"}
        kernels = [layer["kernel"].shape for layer in shapes["termination"]["params"].values()]
        assert kernels == [(2 * 5, 5), (5, 4), (4, 1)]


def test_an_action_counts_where_its_step_exists():
    """Token k's state was arrived at by step k, its action belongs to step k + 1."""
    window = _window_with_actions()
    mask = np.asarray(world_model.token_mask(window, world_model.JOINT))
    for row in range(BATCH):
        for k in range(1, HORIZON + 1):
            arrived = float(window.mask[row, k - 1])
            acted = float(window.mask[row, k]) if k < HORIZON else 0.0
            expected = [arrived] * STATES + [acted] * ACTIONS + [arrived]
            np.testing.assert_array_equal(mask[row, k - 1], expected)


@pytest.mark.parametrize("layout", [world_model.JOINT, world_model.STATES])
def test_loss_of_other_layouts_equals_the_ddpm_equation(layout):
    window, rng = _window_with_actions(), np.random.default_rng(8)
    x0 = np.asarray(world_model.to_tokens(window, STATISTICS, layout), float)
    draws = _draws()._replace(noise=jnp.asarray(rng.normal(size=x0.shape), jnp.float32))
    a = np.asarray(ALPHA_BAR, float)[np.asarray(draws.step)][:, None, None]
    x = np.sqrt(a) * x0 + np.sqrt(1 - a) * np.asarray(draws.noise, float)
    x[:, 0] = x0[:, 0]  # the first action is known too
    inputs = draws.step, window.action, window.return_to_go, draws.conditioned
    params = _params()
    if not layout.rewards:
        del params["termination"]
    output = _stub(np, params["denoiser"], x, *(np.asarray(i, float) for i in inputs))
    mask = np.broadcast_to(world_model.token_mask(window, layout), x0[:, 1:].shape)
    expected = (((output - np.asarray(draws.noise))[:, 1:] ** 2) * mask).mean()
    value, metrics = _loss(params, window, draws, prediction="epsilon", layout=layout)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    if layout.rewards:
        expected += _numpy_termination_loss(params, window)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
