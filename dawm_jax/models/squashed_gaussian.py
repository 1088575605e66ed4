"""The policy of soft actor-critic: a normal distribution squashed by tanh.

Haarnoja et al. 2018, 1812.05905, appendix C.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Bounds of the log standard deviation, before squashing (the authors' values).
_LOG_STD_MIN, _LOG_STD_MAX = -20.0, 2.0


def distribution(output: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and log standard deviation before squashing, [..., 2A] -> twice [..., A]."""
    mean, log_std = jnp.split(output, 2, axis=-1)
    return mean, jnp.clip(log_std, _LOG_STD_MIN, _LOG_STD_MAX)


def sample(output: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An action a = tanh(u), u ~ N(mean, std²), and its log density (eq. 21).

    Args:
      output: [..., 2A] of the policy's network.
      noise: [..., A] standard normal.

    Returns:
      Actions [..., A] in (-1, 1) and log densities [...].
    """
    mean, log_std = distribution(output)
    latent = mean + jnp.exp(log_std) * noise
    gaussian = -0.5 * jnp.square(noise) - log_std - 0.5 * np.log(2 * np.pi)
    # Equals log(1 - tanh(u)^2), which cancels to log(0) at large |u|.
    squashing = 2.0 * (np.log(2.0) - latent - jax.nn.softplus(-2.0 * latent))
    return jnp.tanh(latent), (gaussian - squashing).sum(-1)
