"""The inverse dynamics model on a linear system, whose inverse is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dawm_jax import inverse_dynamics, learner, networks
from dawm_jax.types import Transition

# s' = A s + B a, with more states than actions, so that a = pinv(B) (s' - A s).
A = np.array([[0.9, 0.2, 0.0], [-0.1, 0.8, 0.1], [0.0, 0.3, 0.7]], np.float32)
B = np.array([[1.0, 0.0], [0.5, -1.0], [0.2, 0.7]], np.float32)
NETWORK = networks.GaussianActions(hidden=(64,), out=2)


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


def _numpy_mlp(mlp, inputs):
    first, second = mlp["Dense_0"], mlp["Dense_1"]
    hidden = np.maximum(inputs @ np.asarray(first["kernel"]) + np.asarray(first["bias"]), 0.0)
    return hidden @ np.asarray(second["kernel"]) + np.asarray(second["bias"])


def test_the_spread_does_not_disturb_the_mean(params):
    """Nor the other way round: the gradients of each part are the other network's zeros."""
    batch = _transitions(3, 50)

    def slopes(part):
        find = lambda params: inverse_dynamics.loss(params, batch, network=NETWORK)[1][part]
        return jax.grad(find)(params)["params"]

    largest = lambda tree: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))
    assert largest(slopes("spread_loss")["TanhMlp_0"]) == 0.0 < largest(slopes("loss")["TanhMlp_0"])
    assert largest(slopes("loss")["Mlp_0"]) == 0.0 < largest(slopes("spread_loss")["Mlp_0"])


def test_what_the_states_leave_open_is_drawn():
    """s' tells a_0 + a_1 alone; what is left of a_0 is Gaussian, of a spread that s tells."""
    rng = np.random.default_rng(0)
    state = rng.uniform(-1, 1, (8192, 1)).astype(np.float32)
    std = 0.2 + 0.1 * state
    told = rng.uniform(-0.3, 0.3, (8192, 1)).astype(np.float32)
    hidden = std * rng.normal(size=(8192, 1)).astype(np.float32)
    action = np.concatenate([told + hidden, told - hidden], axis=1)
    zeros = np.zeros(8192, np.float32)
    data = jax.tree.map(jnp.asarray, Transition(state, action, zeros, zeros, told))
    optimizer = learner.adam(5e-3, schedule="cosine", total_steps=1500)

    def step(run, index):
        rows = jax.random.randint(jax.random.fold_in(jax.random.key(1), index), (256,), 0, 8192)
        batch = jax.tree.map(lambda x: x[rows], data)
        loss = lambda params: inverse_dynamics.loss(params, batch, network=NETWORK)
        return learner.fit_step(run, loss, optimizer, ema_decay=0.9)

    fresh = inverse_dynamics.init(jax.random.key(0), network=NETWORK, state_size=1)
    train = jax.jit(lambda run: learner.scan_steps(step, run, 0, 1500))
    params = train(learner.init_state(fresh, optimizer))[0].average

    def draws(temperature, value, size=4000):
        pair = jnp.full((size, 1), value), jnp.full((size, 1), 0.2)
        return np.asarray(
            inverse_dynamics.sample(
                params, jax.random.key(2), *pair, network=NETWORK, temperature=temperature
            )
        )

    for value in (-0.8, 0.8):
        wide = draws(1.0, value)
        np.testing.assert_allclose(wide.mean(0), 0.2, atol=0.03)
        # 4,000 draws tell a standard deviation to a hundredth of itself.
        np.testing.assert_allclose(wide.std(0), 0.2 + 0.1 * value, rtol=0.12)
        np.testing.assert_allclose(draws(0.5, value).std(0), wide.std(0) / 2, rtol=0.05)
        # What is told of their sum is kept: here they differ in nothing but what is hidden.
        assert wide.sum(1).std() < 0.3 * wide[:, 0].std()
        pair = jnp.full((1, 1), value), jnp.full((1, 1), 0.2)
        mean = inverse_dynamics.infer(params, *pair, network=NETWORK)
        np.testing.assert_allclose(draws(0.0, value)[:1], mean, rtol=1e-5)
    assert np.abs(draws(20.0, 0.8)).max() == 1.0


def test_loss_and_errors_equal_numpy(params):
    batch = _transitions(3, 50)
    # An untrained-looking error: the answers for other states.
    batch = batch._replace(observation=batch.observation[::-1])
    inputs = np.concatenate([batch.observation, batch.next_observation], axis=-1)
    output = np.tanh(_numpy_mlp(params["params"]["TanhMlp_0"]["Mlp_0"], inputs))
    raw = _numpy_mlp(params["params"]["Mlp_0"], inputs)
    low, high = networks.LOG_STD_BOUNDS
    std = np.exp(low + (high - low) / (1 + np.exp(-raw[:, :2])))
    # left_0 = own_0, left_1 = weight left_0 + own_1; of a 2 x 2 matrix only [1, 0] counts.
    factor = np.array([[[1.0, 0.0], [weight, 1.0]] for weight in raw[:, 4]])
    covariance = factor @ (std[:, :, None] ** 2 * np.eye(2)) @ factor.transpose(0, 2, 1)
    action = np.asarray(batch.action)

    value, metrics = inverse_dynamics.loss(params, batch, network=NETWORK)
    error = np.mean((output - action) ** 2)
    # A mean over the two dimensions, without the constant log(2 pi) / 2.
    likelihoods = [
        stats.multivariate_normal(np.zeros(2), matrix).logpdf(left)
        for matrix, left in zip(covariance, action - output, strict=True)
    ]
    spread = -np.mean(likelihoods) / 2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(metrics["loss"], error, rtol=1e-4)
    np.testing.assert_allclose(metrics["spread_loss"], spread, rtol=1e-3)
    np.testing.assert_allclose(value, error + spread, rtol=1e-3)

    # Bounds [-1, 3] and [0, .5]: an error of 1 is 2 and .25 of the environment's units.
    half_range = np.array([2.0, 0.25], np.float32)
    raw = lambda a: np.array([1.0, 0.25]) + a * half_range
    actual = inverse_dynamics.errors(
        params, batch, network=NETWORK, action_half_range=jnp.asarray(half_range)
    )
    expected = np.mean((raw(output) - raw(action)) ** 2, axis=0)
    np.testing.assert_allclose(actual["mse"], expected, rtol=1e-4)
    np.testing.assert_allclose(
        actual["variance"],
        np.mean(np.diagonal(covariance, axis1=1, axis2=2), axis=0) * half_range**2,
        rtol=1e-4,
    )
    baseline = np.mean((raw(action.mean(0)) - raw(action)) ** 2, axis=0)
    np.testing.assert_allclose(actual["baseline_mse"], baseline, rtol=1e-4)
