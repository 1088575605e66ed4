"""Multi-layer perceptrons against NumPy, and their initial distributions."""

import jax
import jax.numpy as jnp
import numpy as np

from dawm_jax.models import networks

STATES, ACTIONS = 5, 2


def _random_parameters(module, *inputs):
    """Parameters of the right structure with NumPy's numbers: initialising compiles long."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _numpy_mlp(layers, x, member):
    """ReLU between the dense layers of one ensemble member."""
    for index in range(len(layers)):
        layer = layers[f"Dense_{index}"]
        x = x @ np.asarray(layer["kernel"][member]) + np.asarray(layer["bias"][member])
        x = np.maximum(x, 0.0) if index < len(layers) - 1 else x
    return x[..., 0]


def test_critics_are_independent_members():
    module = networks.Critics(hidden=(8, 8), members=3)
    inputs = _normal(0, 6, STATES), _normal(1, 6, ACTIONS)
    params = _random_parameters(module, *inputs)
    apply = jax.jit(module.apply)
    values = np.asarray(apply(params, *inputs))
    assert values.shape == (3, 6)
    (layers,) = params["params"].values()
    for member in range(3):
        expected = _numpy_mlp(layers, np.concatenate(inputs, axis=-1), member)
        np.testing.assert_allclose(values[member], expected, atol=1e-5)  # float32 rounding
    moved = jax.tree.map(lambda leaf: leaf.at[1].add(0.5), params)
    same = np.all(np.asarray(apply(moved, *inputs)) == values, axis=1)
    np.testing.assert_array_equal(same, [True, False, True])


def test_first_critic_alone_equals_the_first_member():
    module = networks.Critics(hidden=(8, 8), members=3)
    inputs = _normal(0, 6, STATES), _normal(1, 6, ACTIONS)
    params = _random_parameters(module, *inputs)
    first = jax.tree.map(lambda leaf: leaf[:1], params)
    alone = networks.Critics(hidden=(8, 8), members=1).apply(first, *inputs)
    np.testing.assert_allclose(alone, module.apply(params, *inputs)[:1], rtol=1e-6, atol=1e-6)


def _assert_uniform(sample, bound):
    sample = np.asarray(sample)
    assert np.abs(sample).max() <= bound
    # Of n uniform numbers the standard deviation errs by about .45 / sqrt(n), here < 3%.
    np.testing.assert_allclose(sample.std(), bound / np.sqrt(3), rtol=0.1)


def test_critics_start_as_pytorch_does():
    """Uniform in ±1 / sqrt(fan_in), each member its own draw."""
    module = networks.Critics(hidden=(256,), members=2)
    params = jax.jit(module.init)(jax.random.key(0), jnp.ones((1, 6)), jnp.ones((1, 3)))
    (layers,) = params["params"].values()
    for name, fan_in in (("Dense_0", 9), ("Dense_1", 256)):
        kernel, bias = layers[name]["kernel"], layers[name]["bias"]
        assert kernel.shape[:2] == (2, fan_in)
        assert np.all(kernel[0] != kernel[1])
        _assert_uniform(kernel, 1 / np.sqrt(fan_in))
        assert np.abs(bias).max() <= 1 / np.sqrt(fan_in)
    _assert_uniform(layers["Dense_0"]["bias"], 1 / np.sqrt(9))


def test_orthogonal_layers_have_gain_sqrt_2_and_no_bias():
    module = networks.Mlp(hidden=(6,), out=4, orthogonal=True)
    params = jax.jit(module.init)(jax.random.key(0), jnp.ones((1, 6)))["params"]
    for layer in params.values():
        kernel = np.asarray(layer["kernel"])
        expected = 2.0 * np.eye(kernel.shape[1])
        np.testing.assert_allclose(kernel.T @ kernel, expected, atol=1e-5)
        np.testing.assert_array_equal(layer["bias"], 0.0)


def test_gaussian_policy_clips_its_log_std():
    module = networks.GaussianPolicy((4,), ACTIONS, log_std_min=-1.0, log_std_max=0.5)
    inputs = _normal(0, 6, STATES)
    params = _random_parameters(module, inputs)
    params["params"]["log_std"] = jnp.array([-3.0, 2.0])
    mean, log_std = module.apply(params, inputs)
    np.testing.assert_array_equal(log_std, [-1.0, 0.5])
    assert mean.shape == (6, ACTIONS) and np.all(np.abs(mean) < 1.0)
