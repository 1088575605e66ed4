"""What the denoisers' NumPy oracles share, in float64; and inputs and parameters for them.

Nothing here uses JAX's numerics.
"""

import jax
import numpy as np

from dawm_jax.models.base import DenoiserCondition, TokenShape

# A float64 forward pass, rounded to float32 at its end.
TOLERANCE = {"rtol": 2e-7, "atol": 2e-6}
SHAPE = TokenShape(tokens=4, inputs=8, channels=5, action_size=2, on_action=True)


def inputs(batch=3, shape=SHAPE, seed=0):
    """Tokens, diffusion steps, and conditions of which every other return is null."""
    rng = np.random.default_rng(seed)
    condition = DenoiserCondition(
        action=rng.normal(size=(batch, shape.action_size)),
        return_to_go=rng.normal(size=batch),
        conditioned=np.arange(batch, dtype=float) % 2,
    )
    x = rng.normal(size=(batch, shape.tokens, shape.inputs))
    return x, np.arange(batch, dtype=float) * 7.0, condition


def parameters(denoiser, scale=0.3, seed=1):
    """Random float64 parameters of a denoiser's structure: none is 0, as initial ones can be."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(denoiser.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: scale * rng.normal(size=leaf.shape), shapes)


def dense(layer, x):
    """x W + b."""
    return x @ layer["kernel"] + layer["bias"]


def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + np.exp(-x))


def silu(x):
    """x sigmoid(x)."""
    return x * sigmoid(x)


def mish(x):
    """x tanh(softplus(x))."""
    return x * np.tanh(np.log1p(np.exp(x)))


def gelu(x):
    """The tanh approximation (Hendrycks & Gimpel 2016)."""
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def normalise(x, epsilon):
    """Zero mean and unit variance over the last axis."""
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(x.var(-1, keepdims=True) + epsilon)


def sinusoids(steps, size):
    """sin and cos of step / 10000^(i / (n - 1)), as in DDPM's code."""
    rates = 10_000.0 ** (-np.arange(size // 2) / (size // 2 - 1))
    angles = np.array([[step * rate for rate in rates] for step in steps])
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def condition_embedding(layers, step, condition, size, on_action=True):
    """The sum of three MLPs of one hidden layer; a null return adds nothing."""
    mlp = lambda name, x: dense(layers[f"{name}_out"], mish(dense(layers[f"{name}_in"], x)))
    of_return = mlp("return", condition.return_to_go[:, None]) * condition.conditioned[:, None]
    total = mlp("step", sinusoids(step, size)) + of_return
    return total + mlp("action", condition.action) if on_action else total


# --- U-Nets ---------------------------------------------------------------------------------


def conv(layer, x, stride=1):
    """A 1-D convolution with "same" zero padding, one output step at a time."""
    kernel, bias = layer["kernel"], layer["bias"]
    pad = len(kernel) // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (0, 0)))
    steps = [
        sum(padded[:, start + tap] @ kernel[tap] for tap in range(len(kernel))) + bias
        for start in range(0, x.shape[1], stride)
    ]
    return np.stack(steps, axis=1)


def upsample(layer, x):
    """A transposed convolution with 4 taps, stride 2 and padding 1."""
    out = np.zeros((len(x), 2 * x.shape[1] + 2, layer["kernel"].shape[-1])) + layer["bias"]
    for i in range(x.shape[1]):
        for tap in range(4):
            out[:, 2 * i + tap] += x[:, i] @ layer["kernel"][tap]
    return out[:, 1:-1]


def conv_block(layers, x, groups):
    """Convolution, group normalisation over time and the channels of a group, mish."""
    x = conv(layers["TemporalConv_0"], x)
    grouped = x.reshape(*x.shape[:2], groups, -1)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    variance = grouped.var(axis=(1, 3), keepdims=True)
    x = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    return mish(x * layers["GroupNorm_0"]["scale"] + layers["GroupNorm_0"]["bias"])


def residual_block(layers, x, embedding, groups):
    shift = dense(layers["Dense_0"], mish(embedding))
    # flax numbers nested calls from the outside in.
    hidden = conv_block(layers["_ConvBlock_1"], x, groups) + shift[:, None]
    hidden = conv_block(layers["_ConvBlock_0"], hidden, groups)
    return hidden + (dense(layers["Dense_1"], x) if "Dense_1" in layers else x)


def mish_mlp(layers, x):
    for index in range(len(layers)):
        x = dense(layers[f"Dense_{index}"], mish(x) if index else x)
    return x
