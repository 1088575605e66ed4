"""Decision Diffuser's U-Net against NumPy in float64, and against its published wiring."""

import denoiser_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference
import pytest

from dawm_jax.models import decision_unet, networks, unet
from dawm_jax.models.base import TokenShape

PLAN = TokenShape(tokens=4, inputs=5, channels=5, action_size=2, on_action=False)
SMALL = decision_unet.Settings(dim=8, multipliers=(1, 2, 3), kernel_size=3, groups=4)


def _numpy_decision_unet(params, x, step, condition, settings, on_action):
    """Down, middle and up; each way up: the skip, two blocks, the up-sampling."""
    layers, groups = params["params"], settings.groups
    of_return = reference.mish_mlp(layers["_MishMlp_1"], condition.return_to_go[:, None])
    parts = [
        reference.mish_mlp(layers["_MishMlp_0"], reference.sinusoids(step, settings.dim)),
        of_return * condition.conditioned[:, None],
    ]
    if on_action:
        parts.append(reference.mish_mlp(layers["_MishMlp_2"], condition.action))
    embedding, length = np.concatenate(parts, axis=1), x.shape[1]
    block = lambda number, x: reference.residual_block(
        layers[f"_ResidualBlock_{number}"], x, embedding, groups
    )
    x = np.pad(x, ((0, 0), (0, -length % 4), (0, 0)))
    # Three levels, written out.
    x = block(1, block(0, x))
    x = reference.conv(layers["TemporalConv_0"], x, stride=2)
    middle = block(3, block(2, x))
    x = reference.conv(layers["TemporalConv_1"], middle, stride=2)
    lowest = block(5, block(4, x))
    x = block(7, block(6, lowest))
    x = block(9, block(8, np.concatenate([x, lowest], axis=2)))
    x = reference.upsample(layers["TemporalUpsample_0"], x)
    x = block(11, block(10, np.concatenate([x, middle], axis=2)))
    x = reference.upsample(layers["TemporalUpsample_1"], x)
    x = reference.conv_block(layers["_ConvBlock_0"], x, groups)
    return reference.dense(layers["Dense_0"], x)[:, :length]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(("tokens", "on_action"), [(4, False), (7, False), (8, True)])
def test_forward_pass_equals_numpy(tokens, on_action):
    """Also where the length is padded to a multiple of the strides."""
    shape = PLAN._replace(tokens=tokens, on_action=on_action)
    with jax.enable_x64(True):
        denoiser = decision_unet.make(SMALL, shape, dtype=jnp.float64)
        params, inputs = reference.parameters(denoiser), reference.inputs(shape=shape)
        actual = numpy_reference.jit(denoiser.__call__)(params, *inputs)
        expected = _numpy_decision_unet(params, *inputs, SMALL, on_action)
    np.testing.assert_allclose(actual, expected, **reference.TOLERANCE)


def test_the_published_sizes_have_the_published_number_of_parameters():
    """Counted from the authors' code for plans of Hopper: 11 channels, dim 128, (1, 4, 8)."""
    settings = decision_unet.Settings()
    assert (settings.dim, settings.multipliers) == (128, (1, 4, 8))
    assert (settings.kernel_size, settings.groups) == (5, 8)
    states, dim, embedding = 11, 128, 256
    dense = lambda i, o: i * o + o
    conv = lambda taps, i, o: taps * i * o + o
    block = lambda i, o: (
        conv(5, i, o)
        + conv(5, o, o)
        + 4 * o  # scale and bias of two group normalisations
        + dense(embedding, o)
        + (dense(i, o) if i != o else 0)
    )
    expected = sum(
        (
            dense(dim, 512) + dense(512, dim),  # the diffusion step
            dense(1, dim) + dense(dim, 512) + dense(512, dim),  # the return
            block(states, 128) + block(128, 128) + conv(3, 128, 128),
            block(128, 512) + block(512, 512) + conv(3, 512, 512),
            block(512, 1024) + block(1024, 1024),
            2 * block(1024, 1024),
            block(1024 + 1024, 512) + block(512, 512) + conv(4, 512, 512),
            block(512 + 512, 128) + block(128, 128) + conv(4, 128, 128),
            conv(5, 128, 128) + 2 * 128 + dense(128, states),
        )
    )
    shape = TokenShape(tokens=100, inputs=states, channels=states, action_size=3, on_action=False)
    denoiser = decision_unet.make(settings, shape, dtype=jnp.float32)
    params = jax.eval_shape(denoiser.init, jax.random.key(0))
    assert networks.count_parameters(params) == expected


def _influence_of_tokens(module, settings, edit):
    """Largest derivative of the output by the tokens, after `edit` changed some parameters."""
    denoiser = module.make(settings, PLAN, dtype=jnp.float32)
    params = reference.parameters(denoiser)
    edit(params["params"])
    to_float32 = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
    params, (x, step, condition) = to_float32(params), to_float32(reference.inputs(shape=PLAN))
    weight = jnp.asarray(np.random.default_rng(9).normal(size=x.shape), jnp.float32)
    total = lambda x: jnp.sum(denoiser(params, x, step, condition) * weight)
    return float(jnp.abs(numpy_reference.jit(jax.grad(total))(x)).max())


def test_the_skip_of_the_highest_level_is_not_used():
    """With the first down-sampling at 0, tokens could reach the output through that skip alone."""

    def edit(layers):
        layers["TemporalConv_0"]["kernel"][:] = 0.0

    assert _influence_of_tokens(decision_unet, SMALL, edit) == 0.0
    sizes = unet.Settings(dim=8, multipliers=(1, 2, 3), kernel_size=3, groups=4)
    assert _influence_of_tokens(unet, sizes, edit) > 0.0


def test_the_skip_of_the_lowest_level_is_used():
    """With the other inputs of the way up at 0, tokens can reach the output through it alone."""

    def edit(layers):
        first, second = layers["_ResidualBlock_8"], layers["_ResidualBlock_10"]
        # The first 24 of 48 channels come from the middle, the last 16 of 32 from the level above.
        for layer in (first["_ConvBlock_1"]["TemporalConv_0"], first["Dense_1"]):
            assert layer["kernel"].shape[-2] == 48
            layer["kernel"][..., :24, :] = 0.0
        for layer in (second["_ConvBlock_1"]["TemporalConv_0"], second["Dense_1"]):
            assert layer["kernel"].shape[-2] == 32
            layer["kernel"][..., 16:, :] = 0.0

    assert _influence_of_tokens(decision_unet, SMALL, edit) > 0.0


def test_initial_values_are_those_of_the_u_net():
    """Transposed convolutions in 1 / sqrt(taps times output channels), as PyTorch's."""
    denoiser = decision_unet.make(SMALL, PLAN, dtype=jnp.float32)
    layers = jax.jit(denoiser.init)(jax.random.key(0))["params"]
    assert layers["TemporalUpsample_0"]["kernel"].shape == (4, 16, 16)
    for name, fan_in in (("TemporalUpsample_0", 4 * 16), ("TemporalConv_0", 3 * 8)):
        bound = 1 / np.sqrt(fan_in)
        largest = float(jnp.abs(layers[name]["kernel"]).max())
        assert 0.95 * bound < largest <= bound * (1 + 1e-6)
