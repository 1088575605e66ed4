"""The residual MLP against NumPy in float64, a hand count, and its start."""

import denoiser_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dawm_jax.models import networks, residual_mlp
from dawm_jax.types import UserError

WIDTH, BLOCKS = 8, 2
SETTINGS = residual_mlp.Settings(width=WIDTH, blocks=BLOCKS)
SHAPE = reference.SHAPE


def expected_output(params, x, step, condition):
    """Blocks x + W2 mish(W1 norm(x) + We mish(embedding)) over the flattened window."""
    layers = params["params"]
    embedding = reference.condition_embedding(layers["embedding"], step, condition, WIDTH)
    norm = lambda layer, x: reference.normalise(x, 1e-5) * layer["scale"] + layer["bias"]
    hidden = reference.dense(layers["in"], x.reshape(len(x), -1))
    for index in range(BLOCKS):
        block = layers[f"block_{index}"]
        inner = reference.dense(block["hidden"], norm(block["norm"], hidden))
        inner = inner + reference.dense(block["condition"], reference.mish(embedding))
        hidden = hidden + reference.dense(block["out"], reference.mish(inner))
    return reference.dense(layers["out"], norm(layers["norm"], hidden)).reshape(
        len(x), SHAPE.tokens, -1
    )


@pytest.mark.usefixtures("standard_promotion")
def test_forward_pass_equals_numpy():
    with jax.enable_x64(True):
        denoiser = residual_mlp.make(SETTINGS, SHAPE, dtype=jnp.float64)
        params, inputs = reference.parameters(denoiser), reference.inputs()
        actual = denoiser(params, *inputs)
        expected = expected_output(params, *inputs)
    np.testing.assert_allclose(actual, expected, **reference.TOLERANCE)


def test_parameter_count_equals_a_formula():
    dense = lambda i, o: i * o + o
    embed = lambda i: dense(i, WIDTH) + dense(WIDTH, WIDTH)
    block = 3 * dense(WIDTH, WIDTH) + 2 * WIDTH
    expected = (
        embed(WIDTH)  # the diffusion step's sinusoids
        + embed(1)  # the return-to-go
        + embed(SHAPE.action_size)
        + dense(SHAPE.tokens * SHAPE.inputs, WIDTH)
        + BLOCKS * block
        + 2 * WIDTH  # the last normalisation
        + dense(WIDTH, SHAPE.tokens * SHAPE.channels)
    )
    denoiser = residual_mlp.make(SETTINGS, SHAPE, dtype=jnp.float32)
    shapes = jax.eval_shape(denoiser.init, jax.random.key(0))
    assert networks.count_parameters(shapes) == expected
    # A plan has no action among its conditions.
    plan = residual_mlp.make(SETTINGS, SHAPE._replace(on_action=False), dtype=jnp.float32)
    shapes = jax.eval_shape(plan.init, jax.random.key(0))
    assert networks.count_parameters(shapes) == expected - embed(SHAPE.action_size)


def test_starts_with_identities_and_zero_output():
    denoiser = residual_mlp.make(SETTINGS, SHAPE, dtype=jnp.float32)
    params = denoiser.init(jax.random.key(0))
    x, step, condition = reference.inputs()
    np.testing.assert_array_equal(denoiser(params, x, step, condition), 0.0)
    # With another last layer the output is that of a network without blocks.
    layers = params["params"]
    rng = np.random.default_rng(0)
    layers["out"]["kernel"] = rng.normal(size=layers["out"]["kernel"].shape)
    layers = jax.tree.map(np.asarray, layers)
    hidden = reference.dense(layers["in"], x.reshape(len(x), -1))
    expected = reference.dense(layers["out"], reference.normalise(hidden, 1e-5))
    expected = expected.reshape(len(x), SHAPE.tokens, SHAPE.channels)
    actual = denoiser({"params": layers}, x, step, condition)
    np.testing.assert_allclose(actual, expected, atol=1e-4)  # float32 rounding


@pytest.mark.parametrize("layer", ["in", "embedding/step_in", "block_1/hidden"])
def test_kernels_start_uniform_in_pytorchs_bound(layer):
    denoiser = residual_mlp.make(residual_mlp.Settings(64, 2), SHAPE, dtype=jnp.float32)
    node = denoiser.init(jax.random.key(0))["params"]
    for name in layer.split("/"):
        node = node[name]
    kernel, bias = np.asarray(node["kernel"]), np.asarray(node["bias"])
    bound = 1 / np.sqrt(len(kernel))
    assert np.abs(kernel).max() <= bound and 0 < np.abs(bias).max() <= bound
    # Of n > 1000 uniform numbers the standard deviation errs by about .45 / sqrt(n).
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.06)


def test_an_odd_width_is_refused():
    with pytest.raises(UserError, match=r"config\.residual_mlp\.width: expected an even number"):
        residual_mlp.Settings(width=7).check("config.residual_mlp")
