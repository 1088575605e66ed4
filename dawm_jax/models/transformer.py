"""A transformer over the tokens of a window, after DiT (Peebles & Xie 2023, 2212.09748).

Every token attends to every other. The diffusion step, the return-to-go and the first action
shift, scale and gate each sub-layer (AdaLN-zero): at the start of training every gate is 0, each
block is the identity, and the network's output is 0.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dawm_jax.models.base import DENOISERS, DenoiserCondition, DenoiserSpec, TokenShape
from dawm_jax.models.embeddings import ConditionEmbedding, NetworkDenoiser
from dawm_jax.runtime.settings import setting
from dawm_jax.types import UserError

# Standard deviation of DiT's learnt embeddings at the start.
_POSITION_STD = 0.02


@dataclasses.dataclass(frozen=True)
class Settings:
    """The transformer's sizes."""

    width: int = setting(
        256,
        "size of a token's embedding; even and a multiple of heads",
        quick=96,
        smoke=16,
        at_least=4,
    )
    layers: int = setting(6, "attention blocks", quick=3, smoke=1, at_least=1)
    heads: int = setting(4, "attention heads of a block", smoke=2, at_least=1)
    mlp_ratio: int = setting(
        4, "hidden units of a block's MLP in units of width", at_least=1, source="DiT 2212.09748"
    )

    def check(self, name: str) -> None:
        """Checks that `width` is even and a multiple of `heads`.

        Args:
          name: dotted name of the section, for messages.

        Raises:
          UserError: a width that is odd or no multiple of the heads.
        """
        if self.width % self.heads:
            raise UserError(
                f"{name}.width: expected a multiple of the {self.heads} heads, got {self.width}"
            )
        if self.width % 2:
            raise UserError(f"{name}.width: expected an even number, got {self.width}")


class _Attention(nn.Module):
    """Softmax attention of every token to every token, with several heads."""

    heads: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, width] -> [B, T, width]."""
        width = x.shape[-1]
        size = width // self.heads

        def project(name: str) -> jax.Array:
            projected = nn.Dense(width, dtype=self.dtype, name=name)(x)
            return projected.reshape(*x.shape[:-1], self.heads, size)

        query, key, value = project("query"), project("key"), project("value")
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * size**-0.5
        # The softmax sums exponentials: bfloat16 would lose the small ones.
        accurate = jnp.promote_types(self.dtype, jnp.float32)
        weights = jax.nn.softmax(scores.astype(accurate)).astype(self.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        return nn.Dense(width, dtype=self.dtype, name="mix")(mixed)


class _Block(nn.Module):
    """x + gate * attention(modulated norm(x)), then the same with an MLP."""

    heads: int
    mlp_ratio: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """[B, T, width], [B, width] -> [B, T, width]."""
        width = x.shape[-1]
        modulation = nn.Dense(6 * width, dtype=self.dtype, name="modulation")(
            jax.nn.silu(embedding)
        )
        parts = jnp.split(modulation[:, None], 6, axis=-1)
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = parts
        normed = _norm(x, self.dtype) * (1.0 + scale_attention) + shift_attention
        x = x + gate_attention * _Attention(self.heads, self.dtype, name="attention")(normed)
        normed = _norm(x, self.dtype) * (1.0 + scale_mlp) + shift_mlp
        hidden = nn.Dense(self.mlp_ratio * width, dtype=self.dtype, name="mlp_in")(normed)
        return x + gate_mlp * nn.Dense(width, dtype=self.dtype, name="mlp_out")(nn.gelu(hidden))


def _norm(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Layer normalisation without parameters: the modulation scales and shifts after it."""
    return nn.LayerNorm(epsilon=1e-6, use_scale=False, use_bias=False, dtype=dtype)(x)


class TransformerNetwork(nn.Module):
    """The module.

    Attributes:
      width: size of a token's embedding.
      layers: attention blocks.
      heads: attention heads of each block.
      mlp_ratio: hidden units of a block's MLP in units of `width`.
      channels: channels of a predicted token.
      on_action: whether the first action is a condition at all.
      dtype: type of the computation; parameters and the output are float32.
    """

    width: int
    layers: int
    heads: int
    mlp_ratio: int
    channels: int
    on_action: bool = True
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, step: jax.Array, condition: DenoiserCondition) -> jax.Array:
        """[B, T, inputs], [B] and a condition -> [B, T, channels] float32."""
        embedding = ConditionEmbedding(self.width, self.on_action, self.dtype, name="embedding")(
            step, condition.action, condition.return_to_go, condition.conditioned
        )
        shape = (x.shape[1], self.width)
        position = self.param("position", nn.initializers.normal(_POSITION_STD), shape, jnp.float32)
        hidden = nn.Dense(self.width, dtype=self.dtype, name="in")(x)
        hidden = hidden + position[None].astype(self.dtype)
        for index in range(self.layers):
            block = _Block(self.heads, self.mlp_ratio, self.dtype, name=f"block_{index}")
            hidden = block(hidden, embedding)
        modulation = nn.Dense(2 * self.width, dtype=self.dtype, name="modulation")(
            jax.nn.silu(embedding)
        )
        shift, scale = jnp.split(modulation[:, None], 2, axis=-1)
        hidden = _norm(hidden, self.dtype) * (1.0 + scale) + shift
        out = nn.Dense(self.channels, dtype=self.dtype, name="out")(hidden)
        return out.astype(jnp.float32)


def initial_bound(
    path: tuple[str, ...], shape: tuple[int, ...], kernel: tuple[int, ...] | None
) -> float:
    """DiT's start: Xavier's kernels, biases of 0, modulations and the output of 0.

    Xavier: sqrt(6 / (fan_in + fan_out)); each of query, key and value is its own layer, so that
    both fans are the kernel's two sides. Positions have standard deviation 0.02.
    """
    if path[-1] == "position":
        return float(np.sqrt(3.0) * _POSITION_STD)
    if path[-1] != "kernel" or path[-2] in ("modulation", "out"):
        return 0.0
    return float(np.sqrt(6.0 / sum(shape)))


def make(settings: Settings, shape: TokenShape, *, dtype: jax.typing.DTypeLike) -> NetworkDenoiser:
    """The transformer of a section of the configuration."""
    network = TransformerNetwork(
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        mlp_ratio=settings.mlp_ratio,
        channels=shape.channels,
        on_action=shape.on_action,
        dtype=dtype,
    )
    return NetworkDenoiser(network, shape, initial_bound)


DENOISERS.register(
    DenoiserSpec(name="transformer", label="transformer", settings=Settings, make=make)
)
