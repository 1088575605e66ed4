"""The inverse dynamics model on a linear system, whose inverse is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dawm_jax.models import inverse_dynamics, networks
from dawm_jax.models import optim as learner
from dawm_jax.types import Transition

# s' = A s + B a, with more states than actions, so that a = pinv(B) (s' - A s).
A = np.array([[0.9, 0.2, 0.0], [-0.1, 0.8, 0.1], [0.0, 0.3, 0.7]], np.float32)
B = np.array([[1.0, 0.0], [0.5, -1.0], [0.2, 0.7]], np.float32)
NETWORK = networks.TanhMlp(hidden=(64,), out=2)


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
    data = _transitions(0, 4096)
    optimizer = learner.adam(5e-3, schedule="cosine", total_steps=1000)
    fresh = inverse_dynamics.init(jax.random.key(0), network=NETWORK, state_size=3)

    def step(state, index):
        rows = jax.random.randint(jax.random.fold_in(jax.random.key(1), index), (128,), 0, 4096)
        batch = jax.tree.map(lambda x: x[rows], data)
        loss = lambda params: inverse_dynamics.loss(params, batch, network=NETWORK)
        return learner.fit_step(state, loss, optimizer, ema_decay=0.9)

    train = jax.jit(lambda state: learner.scan_steps(step, state, 0, 1000))
    state, _ = train(learner.init_state(fresh, optimizer))
    return state.average


def test_recovers_the_action_of_a_linear_system(params):
    held_out = _transitions(1, 512)
    change = np.asarray(held_out.next_observation) - np.asarray(held_out.observation) @ A.T
    expected = change @ np.linalg.pinv(B).T
    action = inverse_dynamics.infer(
        params, held_out.observation, held_out.next_observation, network=NETWORK
    )
    mse = np.square(action - expected).mean(0)
    # Uniform in ±.8: a variance of .8^2 / 3 = .21, which the mean action leaves unexplained.
    assert np.all(mse < 0.01 * 0.8**2 / 3)
    metrics = inverse_dynamics.errors(
        params, held_out, network=NETWORK, action_half_range=jnp.ones(2)
    )
    assert np.all(np.asarray(metrics["mse"]) < 0.01 * np.asarray(metrics["baseline_mse"]))


def test_permuting_the_batch_permutes_the_actions(params):
    batch = _transitions(2, 16)
    order = np.random.default_rng(0).permutation(16)
    infer = lambda s, n: np.asarray(inverse_dynamics.infer(params, s, n, network=NETWORK))
    whole = infer(batch.observation, batch.next_observation)
    permuted = infer(batch.observation[order], batch.next_observation[order])
    np.testing.assert_allclose(permuted, whole[order], rtol=1e-5, atol=1e-6)


def test_leading_axes_are_free(params):
    batch = _transitions(2, 12)
    flat = inverse_dynamics.infer(
        params, batch.observation, batch.next_observation, network=NETWORK
    )
    deep = inverse_dynamics.infer(
        params,
        batch.observation.reshape(3, 4, 3),
        batch.next_observation.reshape(3, 4, 3),
        network=NETWORK,
    )
    np.testing.assert_allclose(deep.reshape(12, 2), flat, rtol=1e-5, atol=1e-6)


def test_loss_and_errors_equal_numpy(params):
    batch = _transitions(3, 50)
    # An untrained-looking error: the answers for other states.
    batch = batch._replace(observation=batch.observation[::-1])
    inputs = np.concatenate([batch.observation, batch.next_observation], axis=-1)
    (mlp,) = params["params"].values()
    first, second = mlp["Dense_0"], mlp["Dense_1"]
    hidden = np.maximum(inputs @ np.asarray(first["kernel"]) + np.asarray(first["bias"]), 0.0)
    output = np.tanh(hidden @ np.asarray(second["kernel"]) + np.asarray(second["bias"]))
    action = np.asarray(batch.action)

    value, metrics = inverse_dynamics.loss(params, batch, network=NETWORK)
    np.testing.assert_allclose(value, np.mean((output - action) ** 2), rtol=1e-4)
    np.testing.assert_array_equal(metrics["loss"], value)

    # Bounds [-1, 3] and [0, .5]: an error of 1 is 2 and .25 of the environment's units.
    half_range = np.array([2.0, 0.25], np.float32)
    raw = lambda a: np.array([1.0, 0.25]) + a * half_range
    actual = inverse_dynamics.errors(
        params, batch, network=NETWORK, action_half_range=jnp.asarray(half_range)
    )
    expected = np.mean((raw(output) - raw(action)) ** 2, axis=0)
    np.testing.assert_allclose(actual["mse"], expected, rtol=1e-4)
    baseline = np.mean((raw(action.mean(0)) - raw(action)) ** 2, axis=0)
    np.testing.assert_allclose(actual["baseline_mse"], baseline, rtol=1e-4)
