"""The temporal ResNet against NumPy in float64, a hand count, and its start."""

import denoiser_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dawm_jax.models import networks, temporal_resnet
from dawm_jax.types import UserError

WIDTH, BLOCKS = 8, 2
SETTINGS = temporal_resnet.Settings(width=WIDTH, blocks=BLOCKS)
SHAPE = reference.SHAPE
KNOWN = SHAPE.channels + SHAPE.action_size


def expected_output(params, x, step, condition):
    """One window and one token at a time; a convolution of three taps as a loop over taps."""
    layers = params["params"]
    embedding = reference.condition_embedding(
        layers["embedding"], step, condition, WIDTH, on_action=False
    )
    norm = lambda layer, x: reference.normalise(x, 1e-5) * layer["scale"] + layer["bias"]
    outputs = np.zeros((len(x), SHAPE.tokens, SHAPE.channels))
    for row in range(len(x)):
        known = np.concatenate([x[row, 0, : SHAPE.channels], condition.action[row]])
        given = np.concatenate([reference.mish(embedding[row]), known])
        hidden = reference.dense(layers["in"], x[row, 1:]) + layers["position"]
        hidden = hidden + reference.dense(layers["known"], known)
        for index in range(BLOCKS):
            block = layers[f"block_{index}"]
            normed = norm(block["norm"], hidden)
            taps = block["hidden"]["kernel"].reshape(3, WIDTH, WIDTH)
            inner = np.zeros_like(hidden) + block["hidden"]["bias"]
            for token in range(len(hidden)):
                for tap in range(3):
                    if 0 <= token + tap - 1 < len(hidden):
                        inner[token] += normed[token + tap - 1] @ taps[tap]
            inner = inner + reference.dense(block["condition"], given)
            hidden = hidden + reference.dense(block["out"], reference.mish(inner))
        outputs[row, 1:] = reference.dense(layers["out"], norm(layers["norm"], hidden))
    return outputs


@pytest.mark.usefixtures("standard_promotion")
def test_forward_pass_equals_numpy():
    with jax.enable_x64(True):
        denoiser = temporal_resnet.make(SETTINGS, SHAPE, dtype=jnp.float64)
        params, inputs = reference.parameters(denoiser), reference.inputs()
        actual = denoiser(params, *inputs)
        expected = expected_output(params, *inputs)
    np.testing.assert_allclose(actual, expected, **reference.TOLERANCE)


def test_parameter_count_equals_a_formula():
    dense = lambda i, o: i * o + o
    embed = lambda i: dense(i, WIDTH) + dense(WIDTH, WIDTH)
    block = 2 * WIDTH + dense(3 * WIDTH, WIDTH) + dense(WIDTH, WIDTH)

    def expected(known):
        return (
            embed(WIDTH)  # the diffusion step's sinusoids
            + embed(1)  # the return-to-go
            + dense(SHAPE.inputs, WIDTH)
            + dense(known, WIDTH)
            + (SHAPE.tokens - 1) * WIDTH  # positions
            + BLOCKS * (block + dense(WIDTH + known, WIDTH))
            + 2 * WIDTH  # the last normalisation
            + dense(WIDTH, SHAPE.channels)
        )

    denoiser = temporal_resnet.make(SETTINGS, SHAPE, dtype=jnp.float32)
    shapes = jax.eval_shape(denoiser.init, jax.random.key(0))
    assert networks.count_parameters(shapes) == expected(KNOWN)
    # A plan has no action among its conditions.
    plan = temporal_resnet.make(SETTINGS, SHAPE._replace(on_action=False), dtype=jnp.float32)
    shapes = jax.eval_shape(plan.init, jax.random.key(0))
    assert networks.count_parameters(shapes) == expected(SHAPE.channels)


def test_starts_with_identities_and_zero_output():
    denoiser = temporal_resnet.make(SETTINGS, SHAPE, dtype=jnp.float32)
    params = denoiser.init(jax.random.key(0))
    x, step, condition = reference.inputs()
    np.testing.assert_array_equal(denoiser(params, x, step, condition), 0.0)
    # With another last layer the output is that of a network without blocks.
    layers = params["params"]
    rng = np.random.default_rng(0)
    layers["out"]["kernel"] = rng.normal(size=layers["out"]["kernel"].shape)
    layers = jax.tree.map(np.asarray, layers)
    known = np.concatenate([x[:, 0, : SHAPE.channels], condition.action], axis=1)
    hidden = reference.dense(layers["in"], x[:, 1:])
    hidden = hidden + reference.dense(layers["known"], known)[:, None]
    expected = reference.dense(layers["out"], reference.normalise(hidden, 1e-5))
    actual = denoiser({"params": layers}, x, step, condition)
    np.testing.assert_allclose(actual[:, 1:], expected, atol=1e-4)  # float32 rounding


def test_neighbours_are_before_at_and_after_a_token():
    x = np.arange(1.0, 7.0).reshape(1, 3, 2)
    expected = [[0, 0, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 0, 0]]
    np.testing.assert_array_equal(temporal_resnet.neighbours(x)[0], expected)


def test_an_odd_width_is_refused():
    with pytest.raises(UserError, match=r"config\.temporal_resnet\.width: expected an even number"):
        temporal_resnet.Settings(width=7).check("config.temporal_resnet")
