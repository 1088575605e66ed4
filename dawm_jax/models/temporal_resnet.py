"""A residual network of temporal convolutions, all at the resolution of the tokens.

Each block is x + W2 mish(W1 [three neighbouring tokens, normalised] + conditions). There is no
down-sampling, as in a U-Net, and no normalisation over time: on a CPU most of the time goes into
matrix products. The known state and action are conditions of every block. A block reaches one
token to each side: with H - 1 blocks every token of a window of H steps sees every other.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from dawm_jax.models import embeddings
from dawm_jax.models.base import DENOISERS, DenoiserCondition, DenoiserSpec, TokenShape
from dawm_jax.models.embeddings import ConditionEmbedding, NetworkDenoiser, mish
from dawm_jax.runtime.settings import setting
from dawm_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    """The temporal ResNet's sizes."""

    width: int = setting(
        512, "units of a token in every layer, even", quick=128, smoke=16, at_least=4
    )
    blocks: int = setting(
        6,
        "residual blocks; H - 1 let every token of a window see every other",
        smoke=1,
        at_least=1,
    )

    def check(self, name: str) -> None:
        """Checks the sizes.

        Args:
          name: dotted name of the section, for messages.

        Raises:
          UserError: an odd width.
        """
        if self.width % 2:
            raise UserError(f"{name}.width: expected an even number, got {self.width}")


class _Block(nn.Module):
    """A residual block; its last layer starts at 0, and the block as identity."""

    width: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """[B, T, width], [B, D] -> [B, T, width]."""
        dense = lambda name: nn.Dense(self.width, dtype=self.dtype, name=name)
        normed = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        hidden = dense("hidden")(neighbours(normed)) + dense("condition")(condition)[:, None]
        return x + dense("out")(mish(hidden))


def neighbours(x: jax.Array) -> jax.Array:
    """Each token with the ones before and after it, 0 beyond the ends: [B, T, D] -> [B, T, 3 D].

    A dense layer of these is a convolution with three taps, as one matrix product.
    """
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    return jnp.concatenate([padded[:, :-2], x, padded[:, 2:]], axis=-1)


class TemporalResNetNetwork(nn.Module):
    """The module.

    Attributes:
      width: units of a token in every layer.
      blocks: residual blocks.
      channels: channels of a predicted token, the first ones of an input token.
      on_action: whether the first action is a condition at all.
      dtype: type of the computation; parameters and the output are float32.
    """

    width: int
    blocks: int
    channels: int
    on_action: bool = True
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, step: jax.Array, condition: DenoiserCondition) -> jax.Array:
        """[B, T, inputs], [B] and a condition -> [B, T, channels] float32; 0 at token 0."""
        dense = lambda name: nn.Dense(self.width, dtype=self.dtype, name=name)
        embedding = ConditionEmbedding(self.width, False, self.dtype, name="embedding")(
            step, condition.action, condition.return_to_go, condition.conditioned
        )
        known = x[:, 0, : self.channels]
        if self.on_action:
            known = jnp.concatenate([known, condition.action], axis=-1)
        conditions = jnp.concatenate([mish(embedding), known.astype(self.dtype)], axis=-1)
        later = x[:, 1:]
        hidden = dense("in")(later) + dense("known")(known)[:, None]
        zeros = nn.initializers.zeros
        shape = (later.shape[1], self.width)
        hidden = hidden + self.param("position", zeros, shape, jnp.float32)[None].astype(self.dtype)
        for index in range(self.blocks):
            hidden = _Block(self.width, self.dtype, name=f"block_{index}")(hidden, conditions)
        hidden = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(hidden)
        out = nn.Dense(self.channels, dtype=self.dtype, name="out")(hidden).astype(jnp.float32)
        return jnp.pad(out, ((0, 0), (1, 0), (0, 0)))


def make(settings: Settings, shape: TokenShape, *, dtype: jax.typing.DTypeLike) -> NetworkDenoiser:
    """The temporal ResNet of a section of the configuration."""
    network = TemporalResNetNetwork(
        settings.width, settings.blocks, shape.channels, shape.on_action, dtype
    )
    return NetworkDenoiser(network, shape, embeddings.fan_in_bound)


DENOISERS.register(
    DenoiserSpec(name="temporal_resnet", label="temporal ResNet", settings=Settings, make=make)
)
