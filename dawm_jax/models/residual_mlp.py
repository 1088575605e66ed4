"""A residual MLP over the flattened window, after SynthER's denoiser (Lu et al. 2023, 2303.06614).

SynthER generates single transitions; here the tokens of a window are concatenated to one vector.
The number of parameters depends on the number of tokens.
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
    """The residual MLP's sizes."""

    width: int = setting(
        1024,
        "units of every layer, even",
        quick=256,
        smoke=16,
        at_least=4,
        source="SynthER 2303.06614",
    )
    blocks: int = setting(
        6, "residual blocks", quick=4, smoke=1, at_least=1, source="SynthER 2303.06614"
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
    """x + W2 mish(W1 norm(x) + We mish(embedding)); W2 starts at 0, and the block as identity."""

    width: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """[B, width], [B, width] -> [B, width]."""
        dense = lambda name: nn.Dense(self.width, dtype=self.dtype, name=name)
        normed = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        hidden = dense("hidden")(normed) + dense("condition")(mish(embedding))
        return x + dense("out")(mish(hidden))


class ResidualMlpNetwork(nn.Module):
    """The module: dense, residual blocks, normalisation, dense.

    Attributes:
      width: units of every layer.
      blocks: residual blocks.
      channels: channels of a predicted token.
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
        """[B, T, inputs], [B] and a condition -> [B, T, channels] float32."""
        embedding = ConditionEmbedding(self.width, self.on_action, self.dtype, name="embedding")(
            step, condition.action, condition.return_to_go, condition.conditioned
        )
        batch, tokens, inputs = x.shape
        flat = x.reshape(batch, tokens * inputs)
        hidden = nn.Dense(self.width, dtype=self.dtype, name="in")(flat)
        for index in range(self.blocks):
            hidden = _Block(self.width, self.dtype, name=f"block_{index}")(hidden, embedding)
        hidden = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(hidden)
        out = nn.Dense(tokens * self.channels, dtype=self.dtype, name="out")(hidden)
        return out.reshape(batch, tokens, self.channels).astype(jnp.float32)


def make(settings: Settings, shape: TokenShape, *, dtype: jax.typing.DTypeLike) -> NetworkDenoiser:
    """The residual MLP of a section of the configuration."""
    network = ResidualMlpNetwork(
        settings.width, settings.blocks, shape.channels, shape.on_action, dtype
    )
    return NetworkDenoiser(network, shape, embeddings.fan_in_bound)


DENOISERS.register(
    DenoiserSpec(name="residual_mlp", label="residual MLP", settings=Settings, make=make)
)
