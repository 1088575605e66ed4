"""Every flax module of the package, and nothing else.

The denoiser is Decision Diffuser's temporal U-Net (Ajay et al. 2023, appendix B), with one
change of form and none of function: its convolutions are matrix multiplications.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


def mish(x: jax.Array) -> jax.Array:
    """x * tanh(softplus(x)) (Misra 2019).

    With w = e^x (e^x + 2) it is x w / (w + 2): one exponential and one division, which a CPU
    computes several times faster. Beyond 20 the quotient is 1 in float32.
    """
    grown = jnp.exp(jnp.minimum(x, 20.0))
    grown = grown * (grown + 2.0)
    return x * (grown / (grown + 2.0))


# --- multi-layer perceptrons --------------------------------------------------------------


def torch_bias_init(fan_in: int) -> Callable[..., jax.Array]:
    """Uniform in ±1 / sqrt(fan_in): PyTorch's default for the bias of a linear layer."""

    def init(key, shape, dtype=jnp.float32):
        bound = 1.0 / np.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


# Uniform in ±1 / sqrt(fan_in): PyTorch's default for the kernel of a linear layer, with
# which TD3+BC was published.
torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# IQL was published with orthogonal kernels and zero biases.
orthogonal_init = nn.initializers.orthogonal(float(np.sqrt(2.0)))


class Mlp(nn.Module):
    """ReLU hidden layers and a linear output.

    Attributes:
      hidden: sizes of the hidden layers.
      out: size of the output.
      orthogonal: orthogonal kernels and zero biases; else PyTorch's defaults.
    """

    hidden: Sequence[int]
    out: int
    orthogonal: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        for size in self.hidden:
            x = jax.nn.relu(self._dense(size, x.shape[-1])(x))
        return self._dense(self.out, x.shape[-1])(x)

    def _dense(self, size: int, fan_in: int) -> nn.Dense:
        if self.orthogonal:
            return nn.Dense(size, kernel_init=orthogonal_init)
        return nn.Dense(size, kernel_init=torch_kernel_init, bias_init=torch_bias_init(fan_in))


class TanhMlp(nn.Module):
    """A deterministic policy or an inverse dynamics model: an MLP squashed to [-1, 1]."""

    hidden: Sequence[int]
    out: int
    orthogonal: bool = False

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """[..., any], ... -> [..., out]; the inputs are concatenated."""
        x = jnp.concatenate(inputs, axis=-1)
        return jnp.tanh(Mlp(self.hidden, self.out, self.orthogonal)(x))


class GaussianPolicy(nn.Module):
    """IQL's policy: tanh mean, state-independent log standard deviation, no squashing."""

    hidden: Sequence[int]
    out: int
    log_std_min: float
    log_std_max: float

    @nn.compact
    def __call__(self, observation: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[..., S] -> mean [..., A] and log standard deviation [A]."""
        mean = TanhMlp(self.hidden, self.out, orthogonal=True)(observation)
        log_std = self.param("log_std", nn.initializers.zeros, (self.out,))
        return mean, jnp.clip(log_std, self.log_std_min, self.log_std_max)


class Critics(nn.Module):
    """An ensemble of Q functions with separate parameters, evaluated together."""

    hidden: Sequence[int]
    members: int = 2
    orthogonal: bool = False

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array) -> jax.Array:
        """[..., S], [..., A] -> [E, ...]."""
        ensemble = nn.vmap(
            Mlp,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=0,
            out_axes=0,
            axis_size=self.members,
        )
        x = jnp.concatenate([observation, action], axis=-1)
        # One copy of the input each: a shared one becomes a product whose result a CPU must
        # transpose, a fifth of TD3+BC's time.
        x = jnp.broadcast_to(x[None], (self.members, *x.shape))
        return ensemble(self.hidden, 1, self.orthogonal)(x)[..., 0]


class Value(nn.Module):
    """IQL's state value."""

    hidden: Sequence[int]

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        """[..., S] -> [...]."""
        return Mlp(self.hidden, 1, orthogonal=True)(observation)[..., 0]


# --- temporal convolutions ----------------------------------------------------------------


class TemporalConv(nn.Module):
    """A 1-D convolution over time with "same" zero padding, as one matrix multiplication.

    XLA's convolution gradients are 10-50 times slower inside `lax.scan` on a CPU, so the
    convolution is written as a product. A sequence no longer than the kernel multiplies
    the whole flattened sequence with the banded (Toeplitz) matrix of the kernel: at two
    steps and five taps that is 2.5 times less work than visiting the padding.

    Attributes:
      features: output channels.
      kernel_size: odd number of taps.
      stride: 1, or 2 to halve the length.
      dtype: of the computation; parameters stay float32.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, C] -> [B, T / stride, features]."""
        batch, length, channels = x.shape
        taps, pad = self.kernel_size, self.kernel_size // 2
        kernel = self.param(
            "kernel", torch_kernel_init, (taps, channels, self.features), jnp.float32
        )
        bias = self.param("bias", torch_bias_init(taps * channels), (self.features,), jnp.float32)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        starts = range(0, length, self.stride)
        if length <= taps:
            # matrix[i, j] is the tap that input step i feeds into output step j.
            zero = jnp.zeros_like(kernel[0])
            reach = lambda i, j: i - j + pad
            rows = [
                jnp.concatenate(
                    [kernel[reach(i, j)] if 0 <= reach(i, j) < taps else zero for j in starts],
                    axis=1,
                )
                for i in range(length)
            ]
            matrix = jnp.concatenate(rows)  # [T * C, T' * features]
            out = x.reshape(batch, length * channels) @ matrix
            return out.reshape(batch, len(starts), self.features) + bias[None, None]
        padded = jnp.pad(x, ((0, 0), (pad, pad), (0, 0)))
        columns = [padded[:, tap : tap + length : self.stride] for tap in range(taps)]
        return (
            jnp.concatenate(columns, axis=-1) @ kernel.reshape(-1, self.features) + bias[None, None]
        )


class TemporalUpsample(nn.Module):
    """A transposed convolution, 4 taps and stride 2, as two matrix multiplications.

    Each output step sees two inputs: even ones (i - 1, i), odd ones (i, i + 1).
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, C] -> [B, 2 T, features]."""
        batch, length, channels = x.shape
        kernel = self.param("kernel", torch_kernel_init, (4, channels, self.features), jnp.float32)
        bias = self.param("bias", torch_bias_init(4 * channels), (self.features,), jnp.float32)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        after = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))[:, 1:]
        even = jnp.concatenate([before, x], -1) @ jnp.concatenate([kernel[3], kernel[1]])
        odd = jnp.concatenate([x, after], -1) @ jnp.concatenate([kernel[2], kernel[0]])
        return jnp.stack([even, odd], axis=2).reshape(batch, 2 * length, -1) + bias[None, None]


# --- the denoiser -------------------------------------------------------------------------


def sinusoidal_embedding(step: jax.Array, size: int) -> jax.Array:
    """Transformer position embedding of diffusion steps, [B] -> [B, size]."""
    half = size // 2
    frequencies = jnp.exp(-np.log(10_000.0) * jnp.arange(half) / (half - 1))
    angles = step[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class _MishMlp(nn.Module):
    sizes: Sequence[int]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for size in self.sizes[:-1]:
            x = mish(nn.Dense(size, dtype=self.dtype)(x))
        return nn.Dense(self.sizes[-1], dtype=self.dtype)(x)


class _ConvBlock(nn.Module):
    features: int
    kernel_size: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = TemporalConv(self.features, self.kernel_size, dtype=self.dtype)(x)
        return mish(nn.GroupNorm(self.groups, epsilon=1e-5, dtype=self.dtype)(x))


class _ResidualBlock(nn.Module):
    """conv-norm-mish, plus the embedding, conv-norm-mish, plus the input."""

    features: int
    kernel_size: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        block = lambda: _ConvBlock(self.features, self.kernel_size, self.groups, self.dtype)
        shift = nn.Dense(self.features, dtype=self.dtype)(mish(embedding))
        hidden = block()(block()(x) + shift[:, None])
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype)(x)
        return hidden + x


class TemporalUNet(nn.Module):
    """Decision Diffuser's U-Net over the steps of a window.

    Conditioned on the diffusion step, the first action and the return-to-go: one MLP
    each, concatenated, added inside every residual block. The null return-to-go, of
    classifier-free guidance, is a zero embedding. What is known without noise, the first
    token and the first action, is also an input beside every token: from where they stand
    alone, a small network in a short training brings too little of them to the others.

    Attributes:
      dim: channels of the first level and size of each embedding.
      multipliers: channels of level i are dim * multipliers[i]; each level halves the time.
      kernel_size: taps of the residual blocks.
      groups: of the group normalisation.
      dtype: of the computation; parameters, statistics and the output stay float32.
      on_action: whether the first action is a condition at all; without it nothing stands
        beside the tokens, as in Decision Diffuser.
    """

    dim: int
    multipliers: Sequence[int]
    kernel_size: int
    groups: int
    dtype: jnp.dtype = jnp.float32
    on_action: bool = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        step: jax.Array,
        action: jax.Array,
        return_to_go: jax.Array,
        conditioned: jax.Array,
    ) -> jax.Array:
        """Predicts the diffusion target.

        Args:
          x: [B, T, C] noisy tokens, the first one known; any T (padded inside to a multiple
            of the strides).
          step: [B] diffusion step.
          action: [B, A].
          return_to_go: [B].
          conditioned: [B], 1 where the return-to-go is given, 0 where it is null.

        Returns:
          [B, T, C] float32.
        """
        embedding = self._embed(step, action, return_to_go, conditioned)
        length, channels = x.shape[1:]
        stride = 2 ** (len(self.multipliers) - 1)
        if self.on_action:
            known = jnp.concatenate([x[:, 0], action], axis=-1)[:, None]
            known = jnp.broadcast_to(known, (*x.shape[:2], known.shape[-1]))
            x = jnp.concatenate([x, known], axis=-1)
        x = jnp.pad(x, ((0, 0), (0, -length % stride), (0, 0))).astype(self.dtype)

        def residual(features, x):
            block = _ResidualBlock(features, self.kernel_size, self.groups, self.dtype)
            return block(x, embedding)

        widths = [self.dim * multiplier for multiplier in self.multipliers]
        skips = []
        for level, width in enumerate(widths):
            x = residual(width, residual(width, x))
            if level < len(widths) - 1:
                skips.append(x)
                x = TemporalConv(width, 3, stride=2, dtype=self.dtype)(x)
        x = residual(widths[-1], residual(widths[-1], x))
        for width in reversed(widths[:-1]):
            x = TemporalUpsample(width, dtype=self.dtype)(x)
            x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = residual(width, residual(width, x))
        x = _ConvBlock(self.dim, self.kernel_size, self.groups, self.dtype)(x)
        x = nn.Dense(channels, dtype=self.dtype)(x)
        return x[:, :length].astype(jnp.float32)

    def _embed(self, step, action, return_to_go, conditioned) -> jax.Array:
        dim, dtype = self.dim, self.dtype
        of_step = _MishMlp((4 * dim, dim), dtype)(sinusoidal_embedding(step, dim))
        of_return = _MishMlp((dim, 4 * dim, dim), dtype)(return_to_go[:, None])
        of_return = of_return * conditioned[:, None].astype(dtype)
        parts = [of_step, of_return]
        if self.on_action:
            parts.append(_MishMlp((dim, 4 * dim, dim), dtype)(action))
        return jnp.concatenate(parts, axis=-1)


def init_in_one_draw(network: nn.Module, key: jax.Array, *inputs: jax.Array) -> dict:
    """PyTorch's default initialisation of a whole network from a single random draw.

    `network.init` compiles one generator a parameter: most of a U-Net's start-up time on a
    CPU. Here kernels and their biases are slices of one vector, uniform in ±1 / sqrt(fan_in);
    normalisation scales are 1 and their biases 0.

    Args:
      network: the module.
      key: random number generator state, the key is consumed.
      *inputs: what the module is called with; only shapes matter.
    """
    shapes = jax.eval_shape(network.init, key, *inputs)
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    draws = jax.random.uniform(key, (total,), minval=-1.0, maxval=1.0)
    offset = 0

    def fill(node):
        nonlocal offset
        filled = {}
        for name, leaf in node.items():
            if isinstance(leaf, dict):
                filled[name] = fill(leaf)
            elif "kernel" not in node:
                filled[name] = jnp.full(leaf.shape, 1.0 if name == "scale" else 0.0)
            else:
                bound = 1.0 / np.sqrt(np.prod(node["kernel"].shape[:-1]))
                slice_ = draws[offset : offset + leaf.size]
                filled[name] = bound * slice_.reshape(leaf.shape)
                offset += leaf.size
        return filled

    return fill(shapes)


def count_parameters(params) -> int:
    """Number of scalars in a parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
