"""A temporal U-Net in the style of Decision Diffuser (Ajay et al. 2023, 2211.15657, appendix B).

Differences to Decision Diffuser's network, which is `models.decision_unet`:
  - An upper level first up-samples, then concatenates the skip of its own level, as in the
    original U-Net. Decision Diffuser concatenates before its blocks and up-samples after them:
    it uses the skip of the lowest level and never that of the highest.
  - The known first token and the first action are also concatenated to every token, where the
    action is a condition.
  - Convolutions are written as matrix products: on a CPU, XLA's convolution gradients took 10 to
    50 times longer inside `lax.scan` (docs/choices.md: no raw file).
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dawm_jax.models import embeddings
from dawm_jax.models.base import DENOISERS, DenoiserCondition, DenoiserSpec, TokenShape
from dawm_jax.models.embeddings import mish, sinusoidal_embedding
from dawm_jax.models.networks import torch_bias_init, torch_kernel_init
from dawm_jax.runtime.settings import setting
from dawm_jax.types import Params, UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    """The U-Net's sizes."""

    dim: int = setting(
        128,
        "channels of the first level and size of each embedding; a multiple of groups",
        quick=32,
        smoke=8,
        at_least=4,
        source="DD",
        renamed_from="world_model.dim",
    )
    multipliers: tuple[int, ...] = setting(
        (1, 2, 4),
        "channels of each level in units of dim; each level halves the time",
        smoke=(1, 2),
        at_least=1,
        renamed_from="world_model.multipliers",
    )
    kernel_size: int = setting(
        5,
        "taps of the temporal convolutions, odd",
        at_least=1,
        source="DD",
        renamed_from="world_model.kernel_size",
    )
    groups: int = setting(
        8,
        "groups of the group normalisation",
        at_least=1,
        source="DD",
        renamed_from="world_model.groups",
    )

    def check(self, name: str) -> None:
        """Checks that `dim` is even and a multiple of `groups`, and `kernel_size` odd.

        Args:
          name: dotted name of the section, for messages.

        Raises:
          UserError: `dim` is odd or no multiple of `groups`, or `kernel_size` is even.
        """
        if self.dim % self.groups:
            raise UserError(
                f"{name}.dim: expected a multiple of the {self.groups} groups, got {self.dim}"
            )
        if self.dim % 2:
            raise UserError(f"{name}.dim: expected an even number, got {self.dim}")
        if self.kernel_size % 2 == 0:
            raise UserError(f"{name}.kernel_size: expected an odd number, got {self.kernel_size}")


# --- temporal convolutions ----------------------------------------------------------------


# PyTorch's default for a transposed convolution. The fan-in of its bound is taps times output
# channels, because PyTorch computes it from dimension 1 of a weight [in, out, taps].
torch_transposed_init = nn.initializers.variance_scaling(
    1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2
)


class TemporalConv(nn.Module):
    """A 1-D convolution over time with "same" zero padding, as one matrix multiplication.

    A sequence no longer than the kernel is flattened and multiplied with the banded (Toeplitz)
    matrix of the kernel: at two steps and five taps that is 2.5 times less work than
    multiplying the padding too.

    Attributes:
      features: output channels.
      kernel_size: odd number of taps.
      stride: 1, or 2 to halve the length.
      dtype: type of the computation; parameters are float32.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dtype: jax.typing.DTypeLike = jnp.float32

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
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, C] -> [B, 2 T, features]."""
        batch, length, channels = x.shape
        kernel = self.param(
            "kernel", torch_transposed_init, (4, channels, self.features), jnp.float32
        )
        bias = self.param("bias", torch_bias_init(4 * self.features), (self.features,), jnp.float32)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        after = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))[:, 1:]
        even = jnp.concatenate([before, x], -1) @ jnp.concatenate([kernel[3], kernel[1]])
        odd = jnp.concatenate([x, after], -1) @ jnp.concatenate([kernel[2], kernel[0]])
        return jnp.stack([even, odd], axis=2).reshape(batch, 2 * length, -1) + bias[None, None]


# --- the network --------------------------------------------------------------------------


class _MishMlp(nn.Module):
    sizes: Sequence[int]
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for size in self.sizes[:-1]:
            x = mish(nn.Dense(size, dtype=self.dtype)(x))
        return nn.Dense(self.sizes[-1], dtype=self.dtype)(x)


class _ConvBlock(nn.Module):
    features: int
    kernel_size: int
    groups: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = TemporalConv(self.features, self.kernel_size, dtype=self.dtype)(x)
        return mish(nn.GroupNorm(self.groups, epsilon=1e-5, dtype=self.dtype)(x))


class _ResidualBlock(nn.Module):
    """conv-norm-mish, plus the embedding, conv-norm-mish, plus the input."""

    features: int
    kernel_size: int
    groups: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        block = lambda: _ConvBlock(self.features, self.kernel_size, self.groups, self.dtype)
        shift = nn.Dense(self.features, dtype=self.dtype)(mish(embedding))
        hidden = block()(block()(x) + shift[:, None])
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype)(x)
        return hidden + x


class TemporalUNet(nn.Module):
    """A U-Net over the tokens of a window.

    It is conditioned on the diffusion step, the first action and the return-to-go. Each has an
    MLP; the concatenated outputs are added inside every residual block. The null return-to-go of
    classifier-free guidance is a zero embedding. The first token and the action are also
    concatenated to every token, so that no convolution has to carry them along the window. This
    is a reason; the effect was not measured.

    Attributes:
      dim: channels of the first level and size of each embedding.
      multipliers: channels of level i are dim * multipliers[i]; each level halves the time.
      kernel_size: taps of the residual blocks.
      groups: groups of the group normalisation.
      channels: channels of a predicted token, the first ones of an input token.
      dtype: type of the computation; parameters, statistics and the output are float32.
      on_action: whether the first action is a condition at all. Without it nothing is
        concatenated to the tokens, as in Decision Diffuser.
    """

    dim: int
    multipliers: Sequence[int]
    kernel_size: int
    groups: int
    channels: int
    dtype: jax.typing.DTypeLike = jnp.float32
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
          x: [B, T, inputs] noisy tokens, the first one known; any T (padded inside to a multiple
            of the strides).
          step: [B] diffusion step.
          action: [B, A].
          return_to_go: [B].
          conditioned: [B], 1 where the return-to-go is given, 0 where it is null.

        Returns:
          [B, T, channels] float32.
        """
        embedding = self._embed(step, action, return_to_go, conditioned)
        length = x.shape[1]
        stride = 2 ** (len(self.multipliers) - 1)
        x = self.first_layer_input(x, action)
        x = jnp.pad(x, ((0, 0), (0, -length % stride), (0, 0))).astype(self.dtype)
        skips: list[jax.Array] = []
        for width in self.widths:
            if skips:
                x = TemporalConv(x.shape[-1], 3, stride=2, dtype=self.dtype)(x)
            x = self.two_blocks(x, embedding, width)
            skips.append(x)
        x = self.two_blocks(x, embedding, self.widths[-1])
        x = self.way_up(x, embedding, skips)
        x = _ConvBlock(self.dim, self.kernel_size, self.groups, self.dtype)(x)
        x = nn.Dense(self.channels, dtype=self.dtype)(x)
        return x[:, :length].astype(jnp.float32)

    @property
    def widths(self) -> list[int]:
        """Channels of each level, the one of the full length first."""
        return [self.dim * multiplier for multiplier in self.multipliers]

    def first_layer_input(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """Tokens [B, T, inputs], with the known token and the action [B, A] at each of them."""
        if not self.on_action:
            return x
        known = jnp.concatenate([x[:, 0, : self.channels], action], axis=-1)[:, None]
        known = jnp.broadcast_to(known, (*x.shape[:2], known.shape[-1]))
        return jnp.concatenate([x, known], axis=-1)

    def two_blocks(self, x: jax.Array, embedding: jax.Array, width: int) -> jax.Array:
        """Two residual blocks, [B, T, C] and [B, D] -> [B, T, width]."""
        for _ in range(2):
            block = _ResidualBlock(width, self.kernel_size, self.groups, self.dtype)
            x = block(x, embedding)
        return x

    def way_up(self, x: jax.Array, embedding: jax.Array, skips: Sequence[jax.Array]) -> jax.Array:
        """From the shortest length to the full one; the skip of the lowest level is not used.

        Args:
          x: [B, T / stride, widths[-1]] output of the middle.
          embedding: [B, D] of the conditions.
          skips: output of each level on the way down, [B, T / 2^level, widths[level]].

        Returns:
          [B, T, widths[0]].
        """
        for width, skip in zip(reversed(self.widths[:-1]), reversed(skips[:-1]), strict=True):
            x = TemporalUpsample(width, dtype=self.dtype)(x)
            x = self.two_blocks(jnp.concatenate([x, skip], axis=-1), embedding, width)
        return x

    def _embed(
        self,
        step: jax.Array,
        action: jax.Array,
        return_to_go: jax.Array,
        conditioned: jax.Array,
    ) -> jax.Array:
        dim, dtype = self.dim, self.dtype
        of_step = _MishMlp((4 * dim, dim), dtype)(sinusoidal_embedding(step, dim))
        of_return = _MishMlp((dim, 4 * dim, dim), dtype)(return_to_go[:, None])
        of_return = of_return * conditioned[:, None].astype(dtype)
        parts = [of_step, of_return]
        if self.on_action:
            parts.append(_MishMlp((dim, 4 * dim, dim), dtype)(action))
        return jnp.concatenate(parts, axis=-1)


# --- the denoiser -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class UNet:
    """The U-Net as a `Denoiser`.

    Attributes:
      network: flax module.
      shape: sizes that the parameters are made for; the module takes windows of any length.
    """

    network: TemporalUNet
    shape: TokenShape

    def init(self, key: jax.Array) -> Params:
        """Parameters, uniform in ±1 / sqrt(fan_in); `key` is consumed."""
        x, step, condition = embeddings.example(self.shape)
        return embeddings.init_in_one_draw(
            self.network, key, x, step, *condition, bound=initial_bound
        )

    def __call__(
        self, params: Params, x: jax.Array, step: jax.Array, condition: DenoiserCondition
    ) -> jax.Array:
        """See `Denoiser`."""
        return self.network.apply(params, x, step, *condition)


def initial_bound(
    path: tuple[str, ...], shape: tuple[int, ...], kernel: tuple[int, ...] | None
) -> float:
    """1 / sqrt(fan_in) for kernels and their biases, as PyTorch's defaults.

    fan_in is taps times input channels, in transposed convolutions taps times output channels.
    Normalisations start as identities.
    """
    del shape
    if kernel is None:
        return 0.0
    transposed = path[-2].startswith("TemporalUpsample")
    fan_in = kernel[0] * kernel[2] if transposed else np.prod(kernel[:-1])
    return float(1.0 / np.sqrt(fan_in))


def make(settings: Settings, shape: TokenShape, *, dtype: jax.typing.DTypeLike) -> UNet:
    """The U-Net of a section of the configuration."""
    return make_wired(TemporalUNet, settings, shape, dtype=dtype)


def make_wired(
    wiring: type[TemporalUNet],
    settings: Settings,
    shape: TokenShape,
    *,
    dtype: jax.typing.DTypeLike,
) -> UNet:
    """A U-Net of some wiring.

    Args:
      wiring: class of the module.
      settings: its sizes.
      shape: see `MakeDenoiser`.
      dtype: see `MakeDenoiser`.
    """
    network = wiring(
        dim=settings.dim,
        multipliers=settings.multipliers,
        kernel_size=settings.kernel_size,
        groups=settings.groups,
        channels=shape.channels,
        dtype=dtype,
        on_action=shape.on_action,
    )
    return UNet(network, shape)


DENOISERS.register(DenoiserSpec(name="unet", label="temporal U-Net", settings=Settings, make=make))
