"""What denoisers share: activations, embeddings of their conditions, and initialisation."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dawm_jax.models.base import DenoiserCondition, TokenShape
from dawm_jax.types import Params


def mish(x: jax.Array) -> jax.Array:
    """x * tanh(softplus(x)) (Misra 2019).

    With w = e^x (e^x + 2) it is x w / (w + 2). This form has one exponential and one division,
    which a CPU computes several times faster. Beyond 20 the quotient is 1 in float32.
    """
    grown = jnp.exp(jnp.minimum(x, 20.0))
    grown = grown * (grown + 2.0)
    return x * (grown / (grown + 2.0))


def sinusoidal_embedding(step: jax.Array, size: int) -> jax.Array:
    """Transformer position embedding of diffusion steps, [B] -> [B, size]; `size` is even."""
    half = size // 2
    frequencies = jnp.exp(-np.log(10_000.0) * jnp.arange(half).astype(float) / (half - 1))
    angles = step[:, None].astype(frequencies.dtype) * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ConditionEmbedding(nn.Module):
    """One vector for the diffusion step, the return-to-go and the first action.

    Each has an MLP with one hidden layer; the three outputs are added. The null return-to-go of
    classifier-free guidance adds nothing.

    Attributes:
      size: size of the vector; even, at least 4.
      on_action: whether the first action is a condition.
      dtype: type of the computation; parameters are float32.
    """

    size: int
    on_action: bool
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        step: jax.Array,
        action: jax.Array,
        return_to_go: jax.Array,
        conditioned: jax.Array,
    ) -> jax.Array:
        """[B], [B, A], [B], [B] -> [B, size]."""
        total = self._mlp("step", sinusoidal_embedding(step, self.size))
        of_return = self._mlp("return", return_to_go[:, None])
        total = total + of_return * conditioned[:, None].astype(self.dtype)
        if self.on_action:
            total = total + self._mlp("action", action)
        return total

    def _mlp(self, name: str, x: jax.Array) -> jax.Array:
        hidden = mish(nn.Dense(self.size, dtype=self.dtype, name=f"{name}_in")(x))
        return nn.Dense(self.size, dtype=self.dtype, name=f"{name}_out")(hidden)


# --- initialisation -----------------------------------------------------------------------


def example(shape: TokenShape) -> tuple[jax.Array, jax.Array, DenoiserCondition]:
    """Inputs of a denoiser for one window: tokens, diffusion step and condition."""
    condition = DenoiserCondition(
        action=jnp.zeros((1, shape.action_size)), return_to_go=jnp.zeros(1), conditioned=jnp.ones(1)
    )
    return jnp.zeros((1, shape.tokens, shape.inputs)), jnp.zeros(1), condition


def fan_in_bound(
    path: tuple[str, ...], shape: tuple[int, ...], kernel: tuple[int, ...] | None
) -> float:
    """A `BoundFn`: 1 / sqrt(fan_in), PyTorch's default; 0 without a kernel and for layers "out"."""
    del shape
    if kernel is None or path[-2] == "out":
        return 0.0
    return float(1.0 / np.sqrt(kernel[0]))


class BoundFn(Protocol):
    """The initialisation rule of a network: parameters are uniform around their centre.

    The centre is 1 for parameters called "scale", of normalisations, and 0 for all others.
    """

    def __call__(
        self, path: tuple[str, ...], shape: tuple[int, ...], kernel: tuple[int, ...] | None
    ) -> float:
        """Half the width of a parameter's distribution; 0 is exactly the centre.

        Args:
          path: names of the parameter's modules, and its own at the end.
          shape: shape of the parameter.
          kernel: shape of the kernel of the same layer, None without one.
        """


def init_in_one_draw(
    network: nn.Module, key: jax.Array, *inputs: jax.Array | DenoiserCondition, bound: BoundFn
) -> Params:
    """Initialises a whole network from a single random draw.

    `network.init` compiles one random number generator for each parameter, which is most of a
    U-Net's start-up time on a CPU. Here the parameters are slices of one uniform vector.

    Args:
      network: the module.
      key: random number generator state, the key is consumed.
      *inputs: what the module is called with; only shapes matter.
      bound: half the width of each parameter's distribution.
    """
    shapes = jax.eval_shape(network.init, key, *inputs)
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    draws = jax.random.uniform(key, (total,), minval=-1.0, maxval=1.0)
    offset = 0

    def fill(node: Mapping[str, Params], path: tuple[str, ...]) -> dict[str, Params]:
        nonlocal offset
        filled: dict[str, Params] = {}
        kernel = node["kernel"].shape if "kernel" in node else None
        for name, leaf in node.items():
            if isinstance(leaf, Mapping):
                filled[name] = fill(leaf, (*path, name))
                continue
            width = bound((*path, name), leaf.shape, kernel)
            if width == 0.0:
                filled[name] = jnp.full(leaf.shape, 1.0 if name == "scale" else 0.0)
                continue
            filled[name] = width * draws[offset : offset + leaf.size].reshape(leaf.shape)
            offset += leaf.size
        return filled

    return fill(shapes, ())


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """A flax module as a `Denoiser`.

    Attributes:
      network: (x, step, condition) -> prediction.
      shape: sizes that the module is built for.
      bound: initialisation rule.
    """

    network: nn.Module
    shape: TokenShape
    bound: BoundFn

    def init(self, key: jax.Array) -> Params:
        """Parameters by `bound`; `key` is consumed."""
        return init_in_one_draw(self.network, key, *example(self.shape), bound=self.bound)

    def __call__(
        self, params: Params, x: jax.Array, step: jax.Array, condition: DenoiserCondition
    ) -> jax.Array:
        """See `Denoiser`."""
        return self.network.apply(params, x, step, condition)
