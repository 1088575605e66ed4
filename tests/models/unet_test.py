"""The U-Net against XLA's convolution, NumPy in float64 and a hand count of parameters."""

import denoiser_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference
import pytest
from scipy import stats

from dawm_jax.models import embeddings, networks, unet
from dawm_jax.types import UserError

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


# --- temporal convolutions ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "kernel_size", "stride"),
    [
        # No longer than the kernel: one product with a banded matrix.
        (1, 5, 1),
        (2, 5, 1),
        (5, 5, 1),
        (2, 3, 2),
        (3, 3, 2),
        # Longer: one product with stacked shifts.
        (6, 5, 1),
        (7, 3, 2),
        (8, 3, 2),
    ],
)
def test_temporal_conv_equals_a_convolution(length, kernel_size, stride):
    """Values, and gradients of the input and both parameters."""
    channels, features, pad = 3, 4, kernel_size // 2
    module = unet.TemporalConv(features, kernel_size, stride)
    out_length = -(-length // stride)
    x = _normal(0, 2, length, channels)
    params = {"kernel": _normal(1, kernel_size, channels, features), "bias": _normal(2, features)}
    cotangent = _normal(3, 2, out_length, features)

    def reference(params, x):
        out = jax.lax.conv_general_dilated(
            x, params["kernel"], (stride,), [(pad, pad)], dimension_numbers=("NWC", "WIO", "NWC")
        )
        return out + params["bias"][None, None]

    def value_and_gradients(function):
        value, pull_back = jax.vjp(function, params, x)
        return value, pull_back(cotangent)

    actual, expected = jax.jit(
        lambda: (
            value_and_gradients(lambda params, x: module.apply({"params": params}, x)),
            value_and_gradients(reference),
        )
    )()
    assert actual[0].shape == (2, out_length, features)
    # Sums of at most 30 float32 products of order 1.
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-5), actual, expected)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_temporal_upsample_equals_a_transposed_convolution(length):
    """PyTorch's ConvTranspose1d with 4 taps, stride 2 and padding 1, as a loop."""
    x, kernel, bias = _normal(0, 2, length, 3), _normal(1, 4, 3, 6), _normal(2, 6)
    expected = np.zeros((2, 2 * length, 6)) + bias
    for i in range(length):
        for tap in range(4):
            j = 2 * i - 1 + tap
            if 0 <= j < 2 * length:
                expected[:, j] += x[:, i] @ kernel[tap]
    module = unet.TemporalUpsample(6)
    actual = module.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-5)  # sums of 6 float32 products


# --- the denoiser ---------------------------------------------------------------------------


def _unet(multipliers=(1, 2), dtype=jnp.float32):
    return unet.TemporalUNet(
        dim=8, multipliers=multipliers, kernel_size=3, groups=4, channels=STATES, dtype=dtype
    )


def _unet_inputs(batch, length):
    return (
        _normal(0, batch, length, STATES),
        np.arange(batch, dtype=np.float32),
        _normal(1, batch, ACTIONS),
        _normal(2, batch),
        np.arange(batch, dtype=np.float32) % 2,
    )


@pytest.mark.parametrize("length", [*range(2, 10), 32])
def test_unet_keeps_any_length(length):
    module, inputs = _unet((1, 2, 4)), _unet_inputs(3, length)
    output, params = jax.eval_shape(
        lambda key: module.init_with_output(key, *inputs), jax.random.key(0)
    )
    assert output.shape == (3, length, STATES) and output.dtype == jnp.float32
    # Parameters do not depend on the length, so one model serves every horizon.
    other = jax.eval_shape(module.init, jax.random.key(0), *_unet_inputs(1, 4))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, other)


@pytest.mark.usefixtures("standard_promotion")
def test_unet_computes_in_bfloat16_but_returns_float32():
    inputs = _unet_inputs(4, 3)
    exact, rough = _unet((1,)), _unet((1,), dtype=jnp.bfloat16)
    params = _random_parameters(rough, *inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    expected, actual = jax.jit(
        lambda params: (exact.apply(params, *inputs), rough.apply(params, *inputs))
    )(params)
    assert actual.dtype == jnp.float32
    difference = np.abs(actual - expected).max() / np.abs(expected).max()
    # A bfloat16 has 8 bits, rounding by up to 2^-9; some fifteen layers add such errors up.
    assert 2**-12 < difference < 15 * 2**-8


def test_null_return_has_no_effect_and_no_gradient():
    module = _unet()
    x, step, action, returns, conditioned = _unet_inputs(4, 3)  # conditioned: 0, 1, 0, 1
    params = _random_parameters(module, x, step, action, returns, conditioned)
    weight = _normal(3, *x.shape)

    @jax.jit
    def run(action, returns):
        def total(action, returns):
            output = module.apply(params, x, step, action, returns, conditioned)
            return jnp.sum(output * weight), output

        return jax.grad(total, argnums=(0, 1), has_aux=True)(action, returns)

    (of_action, of_return), output = jax.tree.map(np.asarray, run(action, returns))
    np.testing.assert_array_equal(of_return == 0.0, conditioned == 0.0)
    assert np.all(of_action != 0.0)
    _, other_return = run(action, returns + 1.0)
    unchanged = np.all(other_return == output, axis=(1, 2))
    np.testing.assert_array_equal(unchanged, conditioned == 0.0)
    _, other_action = run(action + 1.0, returns)
    assert not np.any(np.all(other_action == output, axis=(1, 2)))


def test_what_is_known_is_concatenated_to_every_token():
    network, inputs = _unet(), _unet_inputs(2, 5)
    params = _random_parameters(network, *inputs)
    # Without weights for the tokens themselves, only what is concatenated to them counts.
    first_block = params["params"]["_ResidualBlock_0"]
    for layer in (first_block["_ConvBlock_1"]["TemporalConv_0"], first_block["Dense_1"]):
        layer["kernel"] = layer["kernel"].at[..., :STATES, :].set(0.0)
    last_token = lambda x: network.apply(params, x, *inputs[1:])[:, -1].sum()
    gradient = numpy_reference.jit(jax.grad(last_token))(inputs[0])
    assert float(jnp.abs(gradient[:, 0]).min()) > 0
    np.testing.assert_array_equal(gradient[:, 1:], 0.0)


def test_a_plan_has_nothing_concatenated_to_its_tokens():
    network = unet.TemporalUNet(
        dim=8, multipliers=(1, 2), kernel_size=3, groups=4, channels=STATES, on_action=False
    )
    params = jax.eval_shape(network.init, jax.random.key(0), *_unet_inputs(2, 5))
    kernel = params["params"]["_ResidualBlock_0"]["_ConvBlock_1"]["TemporalConv_0"]["kernel"]
    assert kernel.shape == (3, STATES, 8)


def test_unet_parameter_count_equals_a_hand_count():
    d, k, c = 8, 3, STATES
    dense = lambda i, o: i * o + o
    conv = lambda taps, i, o: taps * i * o + o
    norm = lambda o: 2 * o
    embed = lambda i: dense(i, d) + dense(d, 4 * d) + dense(4 * d, d)
    # Two convolutions with norms, the embeddings' shift, and a projection if the width changes.
    block = lambda i, o: (
        conv(k, i, o)
        + conv(k, o, o)
        + 2 * norm(o)
        + dense(3 * d, o)
        + (dense(i, o) if i != o else 0)
    )
    expected = (
        dense(d, 4 * d)  # the diffusion step's sinusoids
        + dense(4 * d, d)
        + embed(1)  # the return-to-go
        + embed(ACTIONS)
        + block(2 * c + ACTIONS, d)  # the first token and the action are concatenated to each
        + block(d, d)
        + conv(3, d, d)  # down
        + block(d, 2 * d)
        + block(2 * d, 2 * d)
        + 2 * block(2 * d, 2 * d)  # the middle
        + conv(4, 2 * d, d)  # up
        + block(2 * d, d)  # with the skip concatenated
        + block(d, d)
        + conv(k, d, d)
        + norm(d)
        + dense(d, c)
    )
    params = jax.eval_shape(_unet().init, jax.random.key(0), *_unet_inputs(1, 3))
    assert networks.count_parameters(params) == expected


# --- the whole network in float64 -----------------------------------------------------------


def _numpy_unet(params, x, step, condition, settings):
    """Down, middle and up; skips are concatenated after the up-sampling."""
    layers, groups = params["params"], settings.groups
    of_return = reference.mish_mlp(layers["_MishMlp_1"], condition.return_to_go[:, None])
    parts = [
        reference.mish_mlp(layers["_MishMlp_0"], reference.sinusoids(step, settings.dim)),
        of_return * condition.conditioned[:, None],
        reference.mish_mlp(layers["_MishMlp_2"], condition.action),
    ]
    embedding, length = np.concatenate(parts, axis=1), x.shape[1]
    numbers = iter(range(100))
    residual = lambda x: reference.residual_block(
        layers[f"_ResidualBlock_{next(numbers)}"], x, embedding, groups
    )
    first = x[:, 0, : reference.SHAPE.channels]
    known = np.concatenate([first, condition.action], axis=1)[:, None]
    x = np.concatenate([x, np.repeat(known, length, axis=1)], axis=2)
    levels = len(settings.multipliers)
    x = np.pad(x, ((0, 0), (0, -length % 2 ** (levels - 1)), (0, 0)))
    skips = []
    for level in range(levels):
        x = residual(residual(x))
        if level < levels - 1:
            skips.append(x)
            x = reference.conv(layers[f"TemporalConv_{level}"], x, stride=2)
    x = residual(residual(x))
    for level in range(levels - 1):
        x = reference.upsample(layers[f"TemporalUpsample_{level}"], x)
        x = np.concatenate([x, skips.pop()], axis=2)
        x = residual(residual(x))
    x = reference.conv_block(layers["_ConvBlock_0"], x, groups)
    return reference.dense(layers["Dense_0"], x)[:, :length]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("tokens", [4, 7])
def test_forward_pass_equals_numpy(tokens):
    """Also where the length is padded to a multiple of the strides."""
    settings = unet.Settings(dim=8, multipliers=(1, 2, 3), kernel_size=3, groups=4)
    shape = reference.SHAPE._replace(tokens=tokens)
    with jax.enable_x64(True):
        denoiser = unet.make(settings, shape, dtype=jnp.float64)
        params, inputs = reference.parameters(denoiser), reference.inputs(shape=shape)
        actual = numpy_reference.jit(denoiser.__call__)(params, *inputs)
        expected = _numpy_unet(params, *inputs, settings)
    np.testing.assert_allclose(actual, expected, **reference.TOLERANCE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 20}, "dim: expected a multiple of the 8 groups, got 20"),
        ({"dim": 9, "groups": 3}, "dim: expected an even number, got 9"),
        ({"kernel_size": 4}, "kernel_size: expected an odd number, got 4"),
    ],
)
def test_sizes_that_are_refused(changes, message):
    with pytest.raises(UserError, match=f"config.unet.{message}"):
        unet.Settings(**changes).check("config.unet")


# --- initialisation ---------------------------------------------------------------------------


def _assert_uniform(sample, bound):
    sample = np.asarray(sample)
    assert np.abs(sample).max() <= bound
    # Of n uniform numbers the standard deviation errs by about .45 / sqrt(n), here < 3%.
    np.testing.assert_allclose(sample.std(), bound / np.sqrt(3), rtol=0.1)


# Default weights of torch 2.13.0: the largest absolute value in 150 layers of
# nn.Conv1d(3, 64, 5) is 0.2582 = 1 / sqrt(3 * 5), of nn.ConvTranspose1d(3, 64, 4) it is
# 0.0625 = 1 / sqrt(64 * 4), and of nn.ConvTranspose1d(64, 3, 4) 0.2887 = 1 / sqrt(3 * 4).
@pytest.mark.parametrize(
    ("module", "channels", "bound"),
    [
        (unet.TemporalConv(64, 5), 3, 0.258199),
        (unet.TemporalUpsample(64), 3, 0.0625),
        (unet.TemporalUpsample(3), 64, 0.288675),
    ],
)
def test_convolutions_start_as_pytorch_does(module, channels, bound):
    params = jax.jit(module.init)(jax.random.key(0), jnp.ones((1, 2, channels)))["params"]
    _assert_uniform(params["kernel"], bound * (1 + 1e-5))
    assert 0 < np.abs(params["bias"]).max() <= bound * (1 + 1e-5)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 64), (64, 3)])
def test_the_rule_of_transposed_convolutions_is_pytorchs(inputs, outputs):
    torch = pytest.importorskip("torch")
    layer = torch.nn.ConvTranspose1d(inputs, outputs, 4)
    kernel = (4, inputs, outputs)
    bound = unet.initial_bound(("TemporalUpsample_0", "kernel"), kernel, kernel)
    largest = max(p.detach().abs().max().item() for p in layer.parameters())
    assert 0.97 * bound < largest <= bound * (1 + 1e-5)


def test_init_in_one_draw_has_the_rules_distribution():
    network = unet.TemporalUNet(dim=16, multipliers=(1, 2), kernel_size=5, groups=4, channels=5)
    inputs = (jnp.zeros((1, 8, 5)), jnp.zeros(1), jnp.zeros((1, 2)), jnp.zeros(1), jnp.ones(1))
    params = embeddings.init_in_one_draw(
        network, jax.random.key(0), *inputs, bound=unet.initial_bound
    )
    expected = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, expected)
    scaled = []

    def visit(node, module):
        for name, leaf in node.items():
            if isinstance(leaf, dict):
                visit(leaf, name)
            elif "kernel" in node:
                shape = node["kernel"].shape
                outputs = shape[0] * shape[-1]
                fan_in = outputs if "TemporalUpsample" in module else np.prod(shape[:-1])
                scaled.append(np.asarray(leaf).ravel() * np.sqrt(fan_in))
            else:
                np.testing.assert_array_equal(leaf, float(name == "scale"))

    visit(params, "")
    everything = np.concatenate(scaled)
    assert stats.kstest(everything, stats.uniform(-1, 2).cdf).pvalue > 0.01
    # No slice is used twice.
    assert len(np.unique(everything)) > 0.99 * len(everything)
