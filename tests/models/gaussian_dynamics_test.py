"""The Gaussian one-step model: likelihood and rollout against NumPy."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest
import scipy.stats

from dawm_jax.data.replay import Replay
from dawm_jax.models import gaussian_dynamics
from dawm_jax.models.base import keep
from dawm_jax.models.gaussian_dynamics import GaussianDynamics, Prediction
from dawm_jax.types import Condition, Normalizer, Transition

S, A, B, H = 2, 1, 5, 4
REWARD_MEAN, REWARD_STD = 1.5, 2.0
SETTINGS = gaussian_dynamics.Settings(hidden=(6, 5))


def make_normalizer(bound=100.0):
    fields = dict.fromkeys(Normalizer.__dataclass_fields__, jnp.ones(()))
    return Normalizer(
        **fields
        | {
            "observation_mean": jnp.array([1.0, -2.0]),
            "observation_std": jnp.array([0.5, 4.0]),
            "observation_low": jnp.array([1.0 - 0.5 * bound, -2.0 - 4.0 * bound]),
            "observation_high": jnp.array([1.0 + 0.5 * bound, -2.0 + 4.0 * bound]),
            "reward_mean": jnp.asarray(REWARD_MEAN),
            "reward_std": jnp.asarray(REWARD_STD),
            "reward_low": jnp.asarray(REWARD_MEAN - bound * REWARD_STD),
            "reward_high": jnp.asarray(REWARD_MEAN + bound * REWARD_STD),
            "action_low": -jnp.ones(A),
        }
    )


NORMALIZER = make_normalizer()
MODEL = gaussian_dynamics.make(SETTINGS, NORMALIZER)


def make_batch():
    rng = np.random.default_rng(0)
    return Transition(
        observation=rng.normal(size=(B, S)),
        action=rng.uniform(-1, 1, (B, A)),
        reward=rng.normal(size=B),
        terminated=(np.arange(B) % 2).astype(np.float64),
        next_observation=rng.normal(size=(B, S)),
    )


def softplus(x):
    return np.log1p(np.exp(x))


def expected_prediction(params, batch):
    """Means, log-variances within soft bounds of -10 and 0.5, termination probabilities."""
    inputs = np.concatenate([batch.observation, batch.action], axis=1)
    output = reference.mlp(params["params"], inputs)
    mean, raw, logit = output[:, : S + 1], output[:, S + 1 : -1], output[:, -1]
    raw = 0.5 - softplus(0.5 - raw)
    return mean, -10.0 + softplus(raw + 10.0), 1 / (1 + np.exp(-logit))


def expected_loss(params, batch):
    """SciPy's densities, less the Gaussians' constant."""
    mean, log_variance, probability = expected_prediction(params, batch)
    reward = (batch.reward - REWARD_MEAN) / REWARD_STD
    change = batch.next_observation - batch.observation
    target = np.concatenate([change, reward[:, None]], axis=1)
    density = scipy.stats.norm.logpdf(target, mean, np.exp(0.5 * log_variance))
    ended = scipy.stats.bernoulli.logpmf(batch.terminated.astype(int), probability)
    return -(density + 0.5 * np.log(2 * np.pi)).mean() - ended.mean()


def test_loss_and_gradient_equal_numpy():
    with jax.enable_x64(True):
        batch, rng = make_batch(), np.random.default_rng(1)
        shapes = jax.eval_shape(MODEL.init, jax.random.key(0)).params
        params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
        loss = lambda p: MODEL.loss(p, batch)[0]
        value, slope = reference.jit(jax.value_and_grad(loss))(params)
        np.testing.assert_allclose(value, expected_loss(params, batch), rtol=1e-6)
        expected = reference.gradient(lambda p: expected_loss(p, batch), params)
        chex.assert_trees_all_close(slope, expected, rtol=1e-5, atol=1e-7)


def fake_predict(state, action):
    """s' = s + (a, -a) / 2 without noise; the reward is the state's sum; ends beyond 1."""
    change = jnp.concatenate([action, -action], axis=1) / 2
    reward = state.sum(1, keepdims=True)
    mean = jnp.concatenate([change, reward], axis=1)
    return Prediction(mean, jnp.full_like(mean, -jnp.inf), (state + change)[:, 0] - 1.0)


def fake_act(state):
    return 0.25 - state[:, :1]


@dataclasses.dataclass(frozen=True, eq=False)
class FakeDynamics(GaussianDynamics):
    """Predicts with its parameters, which are a function."""

    def predict(self, params, state, action):
        return params(state, action)


def roll_out(predict=fake_predict, normalizer=NORMALIZER, key=0):
    rng = np.random.default_rng(2)
    condition = Condition(
        jnp.asarray(rng.normal(size=(B, S)), jnp.float32),
        jnp.asarray(rng.uniform(0.5, 1, (B, A)), jnp.float32),
        jnp.full(B, jnp.nan),
    )
    model = FakeDynamics(SETTINGS, MODEL.network, normalizer)
    generated = model.roll_out(predict, jax.random.key(key), condition, act=fake_act, horizon=H)
    return condition, generated


def test_roll_out_equals_numpy_loop():
    """The first action is the given one, the policy takes the rest; rewards in raw units."""
    condition, generated = roll_out()
    chex.assert_shape(generated.states, (B, H + 1, S))
    for row in range(B):
        state = np.asarray(condition.state[row], np.float64)
        action = np.asarray(condition.action[row], np.float64)
        np.testing.assert_array_equal(generated.states[row, 0], condition.state[row])
        np.testing.assert_array_equal(generated.actions[row, 0], condition.action[row])
        for step in range(H):
            np.testing.assert_allclose(generated.actions[row, step], action, atol=1e-5)
            reward = state.sum() * REWARD_STD + REWARD_MEAN
            np.testing.assert_allclose(generated.rewards[row, step], reward, atol=1e-5)
            state = state + np.array([action[0], -action[0]]) / 2
            np.testing.assert_allclose(generated.states[row, step + 1], state, atol=1e-5)
            assert bool(generated.terminated[row, step]) == (state[0] > 1.0)
            action = 0.25 - state[:1]
    assert 0 < np.asarray(generated.terminated).sum() < B * H


def test_steps_are_drawn_from_the_predicted_gaussian():
    """Residuals of many steps, in units of the predicted deviation, are standard normal."""
    deviation = jnp.array([0.1, 2.0, 0.5])

    def noisy(state, action):
        mean = jnp.zeros((len(state), S + 1))
        return Prediction(mean, mean + 2 * jnp.log(deviation)[None], jnp.zeros(len(state)))

    parts = [[] for _ in range(S + 1)]
    for key in range(40):
        _, generated = roll_out(noisy, key=key)
        changes = np.diff(generated.states, axis=1)
        parts[0].append(changes[..., 0] / 0.1)
        parts[1].append(changes[..., 1] / 2.0)
        parts[2].append((np.asarray(generated.rewards) - REWARD_MEAN) / REWARD_STD / 0.5)
    for part in parts:
        assert scipy.stats.kstest(np.ravel(part), "norm").pvalue > 1e-3


def test_states_and_rewards_stay_within_the_data():
    far = lambda state, action: Prediction(
        jnp.full((len(state), S + 1), 50.0), jnp.full((len(state), S + 1), -9.0), state[:, 0]
    )
    _, generated = roll_out(far, normalizer=make_normalizer(bound=3.0))
    np.testing.assert_allclose(generated.states[:, 1:], 3.0, rtol=1e-5)
    np.testing.assert_allclose(generated.rewards, REWARD_MEAN + 3.0 * REWARD_STD, rtol=1e-5)


@pytest.mark.parametrize("raw, expected", [(-1e3, -10.0), (1e3, 0.5)])
def test_log_variances_are_bounded(raw, expected):
    params = jax.tree.map(jnp.zeros_like, MODEL.init(jax.random.key(0)).params)
    params["params"]["Dense_2"]["bias"] += raw
    predicted = MODEL.predict(params, jnp.zeros((1, S)), jnp.zeros((1, A)))
    np.testing.assert_allclose(predicted.log_variance, expected, atol=1e-4)


def test_errors_by_hand():
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), make_batch())
    params = jax.tree.map(jnp.zeros_like, MODEL.init(jax.random.key(0)).params)
    replay = Replay(batch, jnp.arange(B), jnp.zeros(B), num_train=B)
    found = MODEL.errors(params, replay, jnp.arange(B))
    reward = (batch.reward - REWARD_MEAN) / REWARD_STD
    change = batch.next_observation - batch.observation
    expected = [*(np.asarray(change) ** 2).mean(0), (np.asarray(reward) ** 2).mean()]
    # A network of zeros predicts no change and the mean reward.
    np.testing.assert_allclose(found["mse"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["baseline_mse"], expected, rtol=1e-5)


def test_a_step_moves_along_the_gradient_of_drawn_training_rows():
    """Held-out rows are not drawn; with one training row the minibatch is known."""
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), make_batch())
    replay = Replay(batch, jnp.arange(B), jnp.zeros(B), num_train=1)
    state = MODEL.init(jax.random.key(0))
    step = jax.jit(
        lambda state: MODEL.step(state, jax.random.key(1), replay, shard=keep, mean=keep)
    )
    after, metrics = step(state)
    row = jax.tree.map(lambda x: x[:1], batch)
    (value, _), slope = jax.value_and_grad(MODEL.loss, has_aux=True)(state.params, row)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    # Adam's first step is the rate times the gradient's sign.
    for before, moved, gradient in zip(
        *map(jax.tree.leaves, (state.params, after.params, slope)), strict=True
    ):
        clear = np.abs(gradient) > 1e-4
        change = np.asarray(moved - before)[clear] / SETTINGS.learning_rate
        np.testing.assert_allclose(change, -np.sign(gradient)[clear], atol=1e-2)
