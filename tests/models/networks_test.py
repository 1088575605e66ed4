"""Networks against XLA's convolution, NumPy loops and a hand count of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

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
    module = networks.TemporalConv(features, kernel_size, stride)
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
    module = networks.TemporalUpsample(6)
    actual = module.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-5)  # sums of 6 float32 products


# --- the denoiser ---------------------------------------------------------------------------


def _unet(multipliers=(1, 2), dtype=jnp.float32):
    return networks.TemporalUNet(
        dim=8, multipliers=multipliers, kernel_size=3, groups=4, dtype=dtype
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


def test_what_is_known_stands_beside_every_token():
    unet, inputs = _unet(), _unet_inputs(2, 5)
    params = unet.init(jax.random.key(0), *inputs)
    # Deaf to the tokens themselves: only what stands beside them gets in.
    first_block = params["params"]["_ResidualBlock_0"]
    for layer in (first_block["_ConvBlock_1"]["TemporalConv_0"], first_block["Dense_1"]):
        layer["kernel"] = layer["kernel"].at[..., :STATES, :].set(0.0)
    last_token = lambda x: unet.apply(params, x, *inputs[1:])[:, -1].sum()
    gradient = jax.grad(last_token)(inputs[0])
    assert float(jnp.abs(gradient[:, 0]).min()) > 0
    np.testing.assert_array_equal(gradient[:, 1:], 0.0)


def test_a_plan_has_nothing_beside_its_tokens():
    unet = networks.TemporalUNet(
        dim=8, multipliers=(1, 2), kernel_size=3, groups=4, on_action=False
    )
    params = jax.eval_shape(unet.init, jax.random.key(0), *_unet_inputs(2, 5))
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
        + block(2 * c + ACTIONS, d)  # the first token and the action stand beside each
        + block(d, d)
        + conv(3, d, d)  # down
        + block(d, 2 * d)
        + block(2 * d, 2 * d)
        + 2 * block(2 * d, 2 * d)  # the middle
        + conv(4, 2 * d, d)  # up
        + block(2 * d, d)  # beside the skip connection
        + block(d, d)
        + conv(k, d, d)
        + norm(d)
        + dense(d, c)
    )
    params = jax.eval_shape(_unet().init, jax.random.key(0), *_unet_inputs(1, 3))
    assert networks.count_parameters(params) == expected


def test_sinusoidal_embedding_equals_its_formula():
    """sin and cos of step / 10000^(i / (n - 1)), Vaswani et al. as in DDPM's code."""
    steps = np.array([0.0, 1.0, 99.0], np.float32)
    rates = [1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4]
    expected = [[f(s * r) for f in (np.sin, np.cos) for r in rates] for s in steps]
    # float32 angles up to 99 are exact to 99 * 2^-24 = 6e-6.
    np.testing.assert_allclose(
        networks.sinusoidal_embedding(jnp.asarray(steps), 8), expected, atol=1e-5
    )


# --- multi-layer perceptrons ----------------------------------------------------------------


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


@pytest.mark.parametrize("module", [networks.TemporalConv(64, 5), networks.TemporalUpsample(64)])
def test_convolutions_start_as_pytorch_does(module):
    # 3 channels times the taps that one output of the (transposed) kernel sees.
    params = jax.jit(module.init)(jax.random.key(0), jnp.ones((1, 2, 3)))["params"]
    bound = 1 / np.sqrt(3 * len(params["kernel"]))
    _assert_uniform(params["kernel"], bound)
    assert 0 < np.abs(params["bias"]).max() <= bound


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


def test_init_in_one_draw_has_pytorchs_distribution():
    network = networks.TemporalUNet(dim=16, multipliers=(1, 2), kernel_size=5, groups=4)
    inputs = (jnp.zeros((1, 8, 5)), jnp.zeros(1), jnp.zeros((1, 2)), jnp.zeros(1), jnp.ones(1))
    params = networks.init_in_one_draw(network, jax.random.key(0), *inputs)
    expected = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, expected)
    scaled = []

    def visit(node):
        for name, leaf in node.items():
            if isinstance(leaf, dict):
                visit(leaf)
            elif "kernel" in node:
                fan_in = np.prod(node["kernel"].shape[:-1])
                scaled.append(np.asarray(leaf).ravel() * np.sqrt(fan_in))
            else:
                np.testing.assert_array_equal(leaf, float(name == "scale"))

    visit(params)
    everything = np.concatenate(scaled)
    assert stats.kstest(everything, stats.uniform(-1, 2).cdf).pvalue > 0.01
    # No slice is used twice.
    assert len(np.unique(everything)) > 0.99 * len(everything)
