"""The inverse dynamics model on a linear system, whose inverse is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dawm_jax.data.replay import Replay
from dawm_jax.models import inverse_dynamics, optim
from dawm_jax.models.base import keep
from dawm_jax.types import Normalizer, Transition

# s' = A s + B a, with more states than actions, so that a = pinv(B) (s' - A s).
A = np.array([[0.9, 0.2, 0.0], [-0.1, 0.8, 0.1], [0.0, 0.3, 0.7]], np.float32)
B = np.array([[1.0, 0.0], [0.5, -1.0], [0.2, 0.7]], np.float32)

CHANGE_MEAN = np.array([0.1, -0.2, 0.0], np.float32)
CHANGE_STD = np.array([0.5, 1.0, 2.0], np.float32)


def _normalizer(low=(-1.0, -1.0), high=(1.0, 1.0)):
    """Of 3 states, and of actions within the given bounds."""
    fields = dict.fromkeys(Normalizer.__dataclass_fields__, jnp.ones(3))
    fields |= {"action_low": jnp.array(low), "action_high": jnp.array(high)}
    fields |= {"change_mean": jnp.asarray(CHANGE_MEAN), "change_std": jnp.asarray(CHANGE_STD)}
    return Normalizer(**fields)


SETTINGS = inverse_dynamics.Settings(
    hidden=(64,), steps=1000, batch_size=128, learning_rate=5e-3, ema_decay=0.9
)
MODEL = inverse_dynamics.make(SETTINGS, _normalizer())


def _replay(batch):
    size = len(batch.reward)
    return Replay(batch, jnp.arange(size), jnp.zeros(size), num_train=size)


def _transitions(seed, size):
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(size, 3)).astype(np.float32)
    action = rng.uniform(-0.8, 0.8, (size, 2)).astype(np.float32)
    zeros = np.zeros(size, np.float32)
    batch = Transition(state, action, zeros, zeros, state @ A.T + action @ B.T)
    return jax.tree.map(jnp.asarray, batch)


@pytest.fixture(scope="module")
def params():
    """A model trained for a thousand steps."""
    replay = _replay(_transitions(0, 4096))

    def step(state, index):
        key = jax.random.fold_in(jax.random.key(1), index)
        return MODEL.step(state, key, replay, shard=keep, mean=keep)

    train = jax.jit(lambda state: optim.scan_steps(step, state, 0, SETTINGS.steps))
    state, _ = train(jax.jit(MODEL.init)(jax.random.key(0)))
    return state.average


def test_recovers_the_action_of_a_linear_system(params):
    held_out = _transitions(1, 512)
    change = np.asarray(held_out.next_observation) - np.asarray(held_out.observation) @ A.T
    expected = change @ np.linalg.pinv(B).T
    action = MODEL.infer(params, held_out.observation, held_out.next_observation)
    mse = np.square(action - expected).mean(0)
    # Uniform in ±.8: a variance of .8^2 / 3 = .21, which the mean action leaves unexplained.
    assert np.all(mse < 0.01 * 0.8**2 / 3)
    metrics = MODEL.errors(params, _replay(held_out), jnp.arange(512))
    assert np.all(np.asarray(metrics["mse"]) < 0.01 * np.asarray(metrics["baseline_mse"]))


def test_permuting_the_batch_permutes_the_actions(params):
    batch = _transitions(2, 16)
    order = np.random.default_rng(0).permutation(16)
    infer = lambda s, n: np.asarray(MODEL.infer(params, s, n))
    whole = infer(batch.observation, batch.next_observation)
    permuted = infer(batch.observation[order], batch.next_observation[order])
    np.testing.assert_allclose(permuted, whole[order], rtol=1e-5, atol=1e-6)


def test_leading_axes_are_free(params):
    batch = _transitions(2, 12)
    flat = MODEL.infer(params, batch.observation, batch.next_observation)
    deep = MODEL.infer(
        params, batch.observation.reshape(3, 4, 3), batch.next_observation.reshape(3, 4, 3)
    )
    np.testing.assert_allclose(deep.reshape(12, 2), flat, rtol=1e-5, atol=1e-6)


def test_loss_and_errors_equal_numpy(params):
    batch = _transitions(3, 50)
    # An untrained-looking error: the answers for other states.
    batch = batch._replace(observation=batch.observation[::-1])
    state, next_state = np.asarray(batch.observation), np.asarray(batch.next_observation)
    change = (next_state - state - CHANGE_MEAN) / CHANGE_STD
    inputs = np.concatenate([state, change], axis=-1)
    (mlp,) = params["params"].values()
    first, second = mlp["Dense_0"], mlp["Dense_1"]
    hidden = np.maximum(inputs @ np.asarray(first["kernel"]) + np.asarray(first["bias"]), 0.0)
    output = np.tanh(hidden @ np.asarray(second["kernel"]) + np.asarray(second["bias"]))
    action = np.asarray(batch.action)

    value, metrics = MODEL.loss(params, batch)
    np.testing.assert_allclose(value, np.mean((output - action) ** 2), rtol=1e-4)
    np.testing.assert_array_equal(metrics["loss"], value)

    # Bounds [-1, 3] and [0, .5]: an error of 1 is 2 and .25 of the environment's units.
    half_range = np.array([2.0, 0.25], np.float32)
    raw = lambda a: np.array([1.0, 0.25]) + a * half_range
    model = inverse_dynamics.make(SETTINGS, _normalizer(low=(-1.0, 0.0), high=(3.0, 0.5)))
    actual = model.errors(params, _replay(batch), jnp.arange(50))
    expected = np.mean((raw(output) - raw(action)) ** 2, axis=0)
    np.testing.assert_allclose(actual["mse"], expected, rtol=1e-4)
    baseline = np.mean((raw(action.mean(0)) - raw(action)) ** 2, axis=0)
    np.testing.assert_allclose(actual["baseline_mse"], baseline, rtol=1e-4)


def test_a_cloned_policy_sees_the_state_alone():
    policy = inverse_dynamics.make_policy(SETTINGS, _normalizer())
    batch = _transitions(4, 20)
    params = policy.init(jax.random.key(0)).params
    (mlp,) = params["params"].values()
    assert mlp["Dense_0"]["kernel"].shape == (3, 64)
    action = policy.infer(params, batch.observation)
    expected = np.mean((np.asarray(action) - np.asarray(batch.action)) ** 2)
    elsewhere = batch._replace(next_observation=batch.next_observation + 1.0)
    np.testing.assert_allclose(policy.loss(params, elsewhere)[0], expected, rtol=1e-5)
