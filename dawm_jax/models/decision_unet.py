"""Decision Diffuser's temporal U-Net (Ajay et al. 2023, 2211.15657), wired as its authors' code.

Source: github.com/anuragajay/decision-diffuser, code/diffuser/models/temporal.py, `TemporalUnet`.
What differs from `models.unet`:
  - On the way up a level first concatenates a skip, then come its two blocks, then the
    up-sampling. So the first skip is that of the lowest level, and the skip of the highest level
    is never used.
  - Tokens hold the noisy trajectory alone. The known first token reaches the network as a token.
  - Levels are dim * (1, 4, 8), the code's configuration of locomotion tasks.

What differs from the code: a length that is no multiple of the strides is padded with zeros. The
code plans 100 states, which two strides of 2 divide. With a first action as condition
(`TokenShape.on_action`), which plans do not have, the action's embedding is concatenated to the
others.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dawm_jax.models import unet
from dawm_jax.models.base import DENOISERS, DenoiserSpec, TokenShape
from dawm_jax.models.unet import TemporalUNet, TemporalUpsample, UNet
from dawm_jax.runtime.settings import redefault


@dataclasses.dataclass(frozen=True)
class Settings(unet.Settings):
    """The sizes of Decision Diffuser's U-Net."""

    dim: int = redefault(unet.Settings, "dim", 128, quick=32, smoke=8, source="DD")
    multipliers: tuple[int, ...] = redefault(
        unet.Settings, "multipliers", (1, 4, 8), quick=(1, 2, 4), smoke=(1, 2), source="DD"
    )
    kernel_size: int = redefault(unet.Settings, "kernel_size", 5, source="DD")
    groups: int = redefault(unet.Settings, "groups", 8, source="DD")


class DecisionUNet(TemporalUNet):
    """`TemporalUNet` with the wiring of Decision Diffuser's code."""

    def first_layer_input(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """The tokens as they are, [B, T, inputs]."""
        del action
        return x

    def way_up(self, x: jax.Array, embedding: jax.Array, skips: Sequence[jax.Array]) -> jax.Array:
        """From the shortest length to the full one; the skip of the highest level is not used.

        See `TemporalUNet.way_up` for arguments and result.
        """
        for width, skip in zip(reversed(self.widths[:-1]), reversed(skips[1:]), strict=True):
            x = self.two_blocks(jnp.concatenate([x, skip], axis=-1), embedding, width)
            x = TemporalUpsample(width, dtype=self.dtype)(x)
        return x


def make(settings: Settings, shape: TokenShape, *, dtype: jax.typing.DTypeLike) -> UNet:
    """Decision Diffuser's U-Net of a section of the configuration."""
    return unet.make_wired(DecisionUNet, settings, shape, dtype=dtype)


DENOISERS.register(
    DenoiserSpec(
        name="decision_unet", label="Decision Diffuser's U-Net", settings=Settings, make=make
    )
)
