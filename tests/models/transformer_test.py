"""The transformer against NumPy in float64, a hand count, and AdaLN-zero's start."""

import denoiser_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dawm_jax.models import networks, transformer
from dawm_jax.types import UserError

WIDTH, LAYERS, HEADS, RATIO = 8, 2, 2, 3
SETTINGS = transformer.Settings(width=WIDTH, layers=LAYERS, heads=HEADS, mlp_ratio=RATIO)
SHAPE = reference.SHAPE


def expected_attention(layers, x):
    """One window [T, width] at a time, one head after the other, one query after the other."""
    tokens, size = len(x), WIDTH // HEADS
    query, key, value = (reference.dense(layers[name], x) for name in ("query", "key", "value"))
    mixed = np.zeros_like(x)
    for head in range(HEADS):
        columns = slice(head * size, (head + 1) * size)
        for token in range(tokens):
            scores = key[:, columns] @ query[token, columns] / np.sqrt(size)
            weights = np.exp(scores) / np.exp(scores).sum()
            mixed[token, columns] = weights @ value[:, columns]
    return reference.dense(layers["mix"], mixed)


def expected_output(params, x, step, condition):
    """DiT's blocks (Peebles & Xie 2023, figure 3, AdaLN-zero)."""
    layers, norm = params["params"], lambda x: reference.normalise(x, 1e-6)
    embedding = reference.condition_embedding(layers["embedding"], step, condition, WIDTH)
    outputs = []
    for row in range(len(x)):
        given = reference.silu(embedding[row])
        hidden = reference.dense(layers["in"], x[row]) + layers["position"]
        for index in range(LAYERS):
            block = layers[f"block_{index}"]
            parts = np.split(reference.dense(block["modulation"], given), 6)
            shift, scale, gate = parts[:3]
            normed = norm(hidden) * (1 + scale) + shift
            hidden = hidden + gate * expected_attention(block["attention"], normed)
            shift, scale, gate = parts[3:]
            normed = norm(hidden) * (1 + scale) + shift
            inner = reference.gelu(reference.dense(block["mlp_in"], normed))
            hidden = hidden + gate * reference.dense(block["mlp_out"], inner)
        shift, scale = np.split(reference.dense(layers["modulation"], given), 2)
        outputs.append(reference.dense(layers["out"], norm(hidden) * (1 + scale) + shift))
    return np.stack(outputs)


@pytest.mark.usefixtures("standard_promotion")
def test_forward_pass_equals_numpy():
    with jax.enable_x64(True):
        denoiser = transformer.make(SETTINGS, SHAPE, dtype=jnp.float64)
        params, inputs = reference.parameters(denoiser), reference.inputs()
        actual = denoiser(params, *inputs)
        expected = expected_output(params, *inputs)
    np.testing.assert_allclose(actual, expected, **reference.TOLERANCE)


def test_parameter_count_equals_a_formula():
    dense = lambda i, o: i * o + o
    embed = lambda i: dense(i, WIDTH) + dense(WIDTH, WIDTH)
    block = (
        4 * dense(WIDTH, WIDTH)  # query, key, value, mix
        + dense(WIDTH, RATIO * WIDTH)
        + dense(RATIO * WIDTH, WIDTH)
        + dense(WIDTH, 6 * WIDTH)  # shift, scale and gate of both halves
    )
    expected = (
        embed(WIDTH)  # the diffusion step's sinusoids
        + embed(1)  # the return-to-go
        + embed(SHAPE.action_size)
        + dense(SHAPE.inputs, WIDTH)
        + SHAPE.tokens * WIDTH  # positions
        + LAYERS * block
        + dense(WIDTH, 2 * WIDTH)
        + dense(WIDTH, SHAPE.channels)
    )
    denoiser = transformer.make(SETTINGS, SHAPE, dtype=jnp.float32)
    shapes = jax.eval_shape(denoiser.init, jax.random.key(0))
    assert networks.count_parameters(shapes) == expected
    # A plan has no action among its conditions.
    plan = transformer.make(SETTINGS, SHAPE._replace(on_action=False), dtype=jnp.float32)
    shapes = jax.eval_shape(plan.init, jax.random.key(0))
    assert networks.count_parameters(shapes) == expected - embed(SHAPE.action_size)


def test_starts_with_identities_and_zero_output():
    denoiser = transformer.make(SETTINGS, SHAPE, dtype=jnp.float32)
    params = denoiser.init(jax.random.key(0))
    x, step, condition = reference.inputs()
    np.testing.assert_array_equal(denoiser(params, x, step, condition), 0.0)
    # With another last layer the output is that of a network without blocks.
    layers = params["params"]
    rng = np.random.default_rng(0)
    layers["out"]["kernel"] = rng.normal(size=layers["out"]["kernel"].shape)
    layers = jax.tree.map(np.asarray, layers)
    hidden = reference.dense(layers["in"], x) + layers["position"][None]
    expected = reference.dense(layers["out"], reference.normalise(hidden, 1e-6))
    actual = denoiser({"params": layers}, x, step, condition)
    np.testing.assert_allclose(actual, expected, atol=1e-4)  # float32 rounding


def test_kernels_start_as_xaviers():
    settings = transformer.Settings(width=48, layers=2, heads=4, mlp_ratio=4)
    denoiser = transformer.make(settings, SHAPE, dtype=jnp.float32)
    layers = denoiser.init(jax.random.key(0))["params"]
    for name, fans in (("query", 96), ("key", 96), ("value", 96), ("mix", 96)):
        _assert_xavier(layers["block_1"]["attention"][name], fans)
    _assert_xavier(layers["block_0"]["mlp_in"], 48 + 4 * 48)
    _assert_xavier(layers["block_0"]["mlp_out"], 48 + 4 * 48)
    position = np.asarray(layers["position"])
    np.testing.assert_allclose(position.std(), 0.02, rtol=0.1)


def _assert_xavier(layer, fans):
    kernel, bound = np.asarray(layer["kernel"]), np.sqrt(6 / fans)
    assert np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.06)
    np.testing.assert_array_equal(layer["bias"], 0.0)


def test_permuting_tokens_without_positions_permutes_the_output():
    denoiser = transformer.make(SETTINGS, SHAPE, dtype=jnp.float32)
    params = jax.tree.map(jnp.float32, reference.parameters(denoiser))
    params["params"]["position"] = jnp.zeros((SHAPE.tokens, WIDTH))
    x, step, condition = reference.inputs()
    order = np.array([2, 0, 3, 1])
    expected = denoiser(params, x, step, condition)[:, order]
    actual = denoiser(params, x[:, order], step, condition)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("width", "heads", "message"),
    [(10, 4, "expected a multiple of the 4 heads, got 10"), (9, 3, "expected an even number")],
)
def test_widths_that_are_refused(width, heads, message):
    with pytest.raises(UserError, match=f"config.transformer.width: {message}"):
        transformer.Settings(width=width, heads=heads).check("config.transformer")
