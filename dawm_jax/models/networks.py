"""Multi-layer perceptrons: agents, inverse dynamics and Gaussian dynamics are made of them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dawm_jax.types import Params


def torch_bias_init(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in ±1 / sqrt(fan_in): PyTorch's default for the bias of a linear layer."""

    def init(
        key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32
    ) -> jax.Array:
        bound = 1.0 / np.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


# Uniform in ±1 / sqrt(fan_in): PyTorch's default for the kernel of a linear layer. TD3+BC was
# published with it.
torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# IQL was published with orthogonal kernels and zero biases.
orthogonal_init = nn.initializers.orthogonal(float(np.sqrt(2.0)))


class Mlp(nn.Module):
    """ReLU hidden layers and a linear output.

    Attributes:
      hidden: sizes of the hidden layers.
      out: size of the output.
      orthogonal: orthogonal kernels and zero biases; else PyTorch's defaults.
      layer_norm: whether a layer normalisation follows every ReLU.
    """

    hidden: Sequence[int]
    out: int
    orthogonal: bool = False
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        for size in self.hidden:
            x = jax.nn.relu(self._dense(size, x.shape[-1])(x))
            if self.layer_norm:
                x = nn.LayerNorm()(x)
        return self._dense(self.out, x.shape[-1])(x)

    def _dense(self, size: int, fan_in: int) -> nn.Dense:
        if self.orthogonal:
            return nn.Dense(size, kernel_init=orthogonal_init)
        return nn.Dense(size, kernel_init=torch_kernel_init, bias_init=torch_bias_init(fan_in))


class TanhMlp(nn.Module):
    """An MLP squashed to [-1, 1]: a deterministic policy or an inverse dynamics model."""

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
    layer_norm: bool = False

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
        # Broadcast explicitly: with in_axes=None XLA:CPU multiplies into a transposed layout,
        # which takes a fifth of TD3+BC's time.
        x = jnp.broadcast_to(x[None], (self.members, *x.shape))
        return ensemble(self.hidden, 1, self.orthogonal, self.layer_norm)(x)[..., 0]


class Value(nn.Module):
    """IQL's state value."""

    hidden: Sequence[int]

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        """[..., S] -> [...]."""
        return Mlp(self.hidden, 1, orthogonal=True)(observation)[..., 0]


def count_parameters(params: Params) -> int:
    """Number of scalars in a parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
