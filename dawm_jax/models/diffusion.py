"""Discrete-time diffusion: schedule, parameterisations, guidance and the steps of DDIM.

Pure functions that know no network. With x_0 the data, e ~ N(0, I) and the schedule's
abar_k, a noisy sample is x_k = sqrt(abar_k) x_0 + sqrt(1 - abar_k) e (DDPM, Ho et al. 2020,
eq. 4). A network predicts one of
  "epsilon"  e
  "x0"       x_0
  "v"        sqrt(abar_k) e - sqrt(1 - abar_k) x_0   (Salimans & Ho 2022, appendix D)
"""

import dataclasses
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from dawm_jax.types import UserError

PREDICTIONS = ("epsilon", "x0", "v")

Tree = TypeVar("Tree")
Tree_contra = TypeVar("Tree_contra", contravariant=True)


class DenoiseFn(Protocol):
    """A prediction at one diffusion step."""

    def __call__(self, x: jax.Array, step: jax.Array, /) -> jax.Array:
        """x [B, ...] at diffusion step [] -> prediction [B, ...]."""


class ConditionalDenoiseFn(Protocol[Tree_contra]):
    """A prediction at one diffusion step that can be conditioned or not."""

    def __call__(
        self, x: jax.Array, step: jax.Array, condition: Tree_contra, conditioned: jax.Array, /
    ) -> jax.Array:
        """x [B, ...], step [], condition with leading axis B, conditioned [B] -> [B, ...]."""


@dataclasses.dataclass(frozen=True, eq=False)
class Process:
    """A diffusion process: how noise is added, and what a network predicts of it.

    Attributes:
      alpha_bar: [K] schedule, falling; abar_k of each diffusion step.
      prediction: one of PREDICTIONS.
    """

    alpha_bar: jax.Array
    prediction: str

    @classmethod
    def cosine(cls, num_steps: int, prediction: str) -> "Process":
        """The process of `num_steps` diffusion steps with the cosine schedule.

        Raises:
          UserError: fewer than one step.
        """
        return cls(cosine_schedule(num_steps), prediction)

    @property
    def num_steps(self) -> int:
        """K."""
        return len(self.alpha_bar)


def cosine_schedule(num_steps: int, *, offset: float = 0.008, max_beta: float = 0.999) -> jax.Array:
    """abar_k of the cosine schedule (Nichol & Dhariwal 2021, eq. 17), [K] float32.

    Falls from about 1 at k = 0 to about 0 at k = K - 1. Betas are clipped at `max_beta`.

    Raises:
      UserError: fewer than one step.
    """
    if num_steps < 1:
        raise UserError(f"diffusion steps: expected at least 1, got {num_steps}")
    time = np.arange(num_steps + 1) / num_steps
    f = np.cos((time + offset) / (1 + offset) * np.pi / 2) ** 2
    betas = np.minimum(1.0 - f[1:] / f[:-1], max_beta)
    return jnp.asarray(np.cumprod(1.0 - betas), jnp.float32)


def add_noise(x0: jax.Array, noise: jax.Array, alpha_bar: jax.Array) -> jax.Array:
    """x_k of x_0; `alpha_bar` broadcasts against both. DDPM eq. 4."""
    return jnp.sqrt(alpha_bar) * x0 + jnp.sqrt(1.0 - alpha_bar) * noise


def prediction_target(
    prediction: str, x0: jax.Array, noise: jax.Array, alpha_bar: jax.Array
) -> jax.Array:
    """What the network should output.

    Raises:
      UserError: `prediction` is not one of PREDICTIONS.
    """
    if prediction == "epsilon":
        return noise
    if prediction == "x0":
        return x0
    if prediction == "v":
        return jnp.sqrt(alpha_bar) * noise - jnp.sqrt(1.0 - alpha_bar) * x0
    raise UserError(f"prediction: expected one of {', '.join(PREDICTIONS)}, got {prediction!r}")


def predicted_x0(
    prediction: str, output: jax.Array, x: jax.Array, alpha_bar: jax.Array
) -> jax.Array:
    """The x_0 that a network output at x_k stands for; inverts `prediction_target`."""
    if prediction == "epsilon":
        return (x - jnp.sqrt(1.0 - alpha_bar) * output) / jnp.sqrt(alpha_bar)
    if prediction == "x0":
        return output
    if prediction == "v":
        return jnp.sqrt(alpha_bar) * x - jnp.sqrt(1.0 - alpha_bar) * output
    raise UserError(f"prediction: expected one of {', '.join(PREDICTIONS)}, got {prediction!r}")


def guide(denoise: ConditionalDenoiseFn[Tree], condition: Tree, *, weight: float) -> DenoiseFn:
    """Classifier-free guidance (Ho & Salimans 2022) as a transform of the denoiser.

    The guided output is u + weight (c - u): 0 is the unconditional prediction u, 1 the
    conditional one c, more extrapolates. Both come from one batch of twice the size; at
    weights 0 and 1 only the needed one is computed.

    Args:
      denoise: predicts with the condition where `conditioned` is 1 and without it where 0.
      condition: condition of each sample, leading axis B.
      weight: a Python number.

    Returns:
      (x, step) -> guided prediction.
    """

    def conditioned_only(x: jax.Array, step: jax.Array) -> jax.Array:
        return denoise(x, step, condition, jnp.full(len(x), float(weight)))

    def both(x: jax.Array, step: jax.Array) -> jax.Array:
        twice = lambda leaf: jnp.concatenate([leaf, leaf])
        conditioned = jnp.repeat(jnp.array([1.0, 0.0]), len(x))
        output = denoise(twice(x), step, jax.tree.map(twice, condition), conditioned)
        c, u = jnp.split(output, 2)
        return u + weight * (c - u)

    return conditioned_only if weight in (0.0, 1.0) else both


SPACINGS = ("noise", "quadratic")

# The smallest and largest visited noise of `noise_steps`, and the exponent of its spacing. EDM
# takes 0.002, 80 and 7 for images; docs/choices.md has what was measured here.
_NOISE_LOW, _NOISE_HIGH, _NOISE_EXPONENT = 0.03, 80.0, 7.0


def visited_steps(alpha_bar: np.ndarray, num_steps: int, spacing: str) -> np.ndarray:
    """Which of the K diffusion steps a sampler visits, descending from K - 1, [num_steps].

    The last step returns E[x_0 | x_k], so that detail below the noise of the last visited k is
    averaged away.

    Args:
      alpha_bar: [K] schedule.
      num_steps: evaluations of the denoiser.
      spacing: one of SPACINGS, see `noise_steps` and `quadratic_steps`.

    Raises:
      UserError: an unknown spacing, more sampling steps than diffusion steps, or none.
    """
    if not 1 <= num_steps <= len(alpha_bar):
        raise UserError(
            f"sampling_steps: expected 1 to {len(alpha_bar)} (diffusion_steps), got {num_steps}"
        )
    if spacing == "quadratic":
        spaced = quadratic_steps(len(alpha_bar), num_steps)
    elif spacing == "noise":
        spaced = noise_steps(alpha_bar, num_steps)
    else:
        raise UserError(f"spacing: expected one of {', '.join(SPACINGS)}, got {spacing!r}")
    # The first visited step is K - 1: the sampler starts from pure noise, which is x_k only there.
    # No step is visited twice, also where neighbouring noises round to the same step.
    spaced[0] = len(alpha_bar) - 1
    for index in range(1, num_steps):
        spaced[index] = min(spaced[index], spaced[index - 1] - 1)
    return np.maximum(spaced, np.arange(num_steps - 1, -1, -1))


def quadratic_steps(num_train_steps: int, num_steps: int) -> np.ndarray:
    """Steps at quadratic distances from 0 (DDIM, Song et al. 2021, appendix D.2), descending.

    8 steps of 1,000 end at noise sqrt(1 - abar) = 0.037.
    """
    index = np.arange(num_steps, 0, -1)
    return np.round((index / num_steps) ** 2 * (num_train_steps - 1)).astype(int)


def noise_steps(alpha_bar: np.ndarray, num_steps: int) -> np.ndarray:
    """Steps at the noises of EDM (Karras et al. 2022, 2206.00364, eq. 5), descending.

    With sigma = sqrt(1 - abar) / sqrt(abar), sigma^(1/7) falls in equal distances from 80^(1/7)
    to 0.03^(1/7).
    """
    share = np.linspace(0.0, 1.0, num_steps)
    low, high = (noise ** (1.0 / _NOISE_EXPONENT) for noise in (_NOISE_LOW, _NOISE_HIGH))
    wanted = (high + share * (low - high)) ** _NOISE_EXPONENT
    alpha_bar = np.asarray(alpha_bar, np.float64)
    sigma = np.sqrt((1.0 - alpha_bar) / alpha_bar)
    return np.minimum(np.searchsorted(sigma, wanted), len(alpha_bar) - 1)


def multistep_weights(alpha_bars: jax.Array, order: int) -> jax.Array:
    """How far each step extrapolates the predicted x_0, [N].

    With order 2 a step of DDIM takes x_0 + w (x_0 - previous x_0) in place of x_0. This is
    DPM-Solver++(2M) (Lu et al. 2022, 2211.01095, algorithm 2): it needs as many network
    evaluations as DDIM, and its error falls with the square of their number.
      w_i = h_i / (2 h_{i-1}),  h_i = step i in log(sqrt(abar) / sqrt(1 - abar))
    w is 0 at the first step, which has no previous x_0, and at the last, where h is infinite.

    Args:
      alpha_bars: [N] of the visited steps, ascending.
      order: 1 is DDIM, all weights 0.
    """
    weights = jnp.zeros(len(alpha_bars))
    if order == 1 or len(alpha_bars) < 3:
        return weights
    steps = jnp.diff(jnp.log(alpha_bars) - jnp.log1p(-alpha_bars))
    return weights.at[1:-1].set(0.5 * steps[1:] / steps[:-1])


def ddim_update(
    x: jax.Array,
    x0: jax.Array,
    noise: jax.Array | float,
    *,
    alpha_bar: jax.Array,
    alpha_bar_next: jax.Array,
    eta: float,
) -> jax.Array:
    """One step of DDIM (Song et al. 2021, eq. 12) from abar to the larger abar_next.

    Args:
      x: current sample.
      x0: its predicted clean sample.
      noise: standard normal, used when eta > 0.
      alpha_bar: abar of `x`.
      alpha_bar_next: abar of the result; 1 returns `x0`.
      eta: 0 is deterministic, 1 is ancestral sampling.
    """
    epsilon = (x - jnp.sqrt(alpha_bar) * x0) / jnp.sqrt(1.0 - alpha_bar)
    sigma = eta * jnp.sqrt(
        (1.0 - alpha_bar_next) / (1.0 - alpha_bar) * (1.0 - alpha_bar / alpha_bar_next)
    )
    direction = jnp.sqrt(jnp.maximum(1.0 - alpha_bar_next - sigma**2, 0.0))
    return jnp.sqrt(alpha_bar_next) * x0 + direction * epsilon + sigma * noise
