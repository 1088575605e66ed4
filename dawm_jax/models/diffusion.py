"""Discrete-time diffusion: schedule, parameterisations, guidance and DDIM.

Pure functions that know no network. With x_0 the data, e ~ N(0, I) and the schedule's
abar_k, a noisy sample is x_k = sqrt(abar_k) x_0 + sqrt(1 - abar_k) e (DDPM, Ho et al. 2020,
eq. 4). A network predicts one of
  "epsilon"  e
  "x0"       x_0
  "v"        sqrt(abar_k) e - sqrt(1 - abar_k) x_0   (Salimans & Ho 2022, appendix D)
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from dawm_jax.types import UserError

PREDICTIONS = ("epsilon", "x0", "v")

# (x [B, ...], step []) -> prediction [B, ...]
DenoiseFn = Callable[[jax.Array, jax.Array], jax.Array]
Tree = TypeVar("Tree")


def cosine_schedule(num_steps: int, *, offset: float = 0.008, max_beta: float = 0.999):
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


def guide(
    denoise: Callable[[jax.Array, jax.Array, Tree, jax.Array], jax.Array],
    condition: Tree,
    *,
    weight: float,
) -> DenoiseFn:
    """Classifier-free guidance (Ho & Salimans 2022) as a transform of the denoiser.

    The guided output is u + weight (c - u): 0 is the unconditional prediction u, 1 the
    conditional one c, more extrapolates. Both come from one batch of twice the size; at
    weights 0 and 1 only the needed one is computed.

    Args:
      denoise: (x [B, ...], step [], condition, conditioned [B]) -> prediction [B, ...].
      condition: what to condition on, leading axis B.
      weight: a Python number.

    Returns:
      (x, step) -> guided prediction.
    """

    def conditioned_only(x, step):
        return denoise(x, step, condition, jnp.full(len(x), float(weight)))

    def both(x, step):
        twice = lambda leaf: jnp.concatenate([leaf, leaf])
        conditioned = jnp.repeat(jnp.array([1.0, 0.0]), len(x))
        output = denoise(twice(x), step, jax.tree.map(twice, condition), conditioned)
        c, u = jnp.split(output, 2)
        return u + weight * (c - u)

    return conditioned_only if weight in (0.0, 1.0) else both


def ddim_steps(num_train_steps: int, num_steps: int) -> np.ndarray:
    """Which of the K diffusion steps DDIM visits, descending from K - 1.

    Quadratically spaced (Song et al. 2021, appendix D.2): the last jump, to the clean sample,
    answers with a mean, and from where equal spaces leave it that mean has lost what is smaller
    than the noise there, half the variance of a stochastic policy's actions among it.

    Raises:
      UserError: more sampling steps than diffusion steps, or none.
    """
    if not 1 <= num_steps <= num_train_steps:
        raise UserError(
            f"sampling steps: expected 1 to {num_train_steps} (the diffusion steps), "
            f"got {num_steps}"
        )
    # Starting from pure noise, as the sample does, is what makes few steps work.
    index = np.arange(num_steps, 0, -1)
    spaced = np.round((index / num_steps) ** 2 * (num_train_steps - 1)).astype(int)
    return np.maximum(spaced, index - 1)  # all different, however many


def check_order(order: int, eta: float) -> None:
    """Refuses what `ddim_sample` cannot do.

    Raises:
      UserError: an unknown order, or noise with order 2.
    """
    if order not in (1, 2):
        raise UserError(f"sampling order: expected 1 or 2, got {order}")
    if order == 2 and eta > 0:
        raise UserError(f"sampling order 2 adds no noise: expected eta 0, got {eta:g}")


def multistep_weights(alpha_bars: jax.Array, order: int) -> jax.Array:
    """How far each step's x_0 is extrapolated along its change since the step before, [N].

    With order 2 a step of DDIM takes x_0 + w (x_0 - previous x_0) for x_0: DPM-Solver++(2M)
    (Lu et al. 2022, algorithm 2), whose network evaluations are DDIM's and whose error falls
    with the square of their number. w is half the ratio of this step to the last in
    log(sqrt(abar) / sqrt(1 - abar)). The first step has nothing to extrapolate from; the last
    ends at the clean sample, where that logarithm does not.

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
    noise: jax.Array,
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


def ddim_sample(
    denoise: DenoiseFn,
    key: jax.Array,
    shape: tuple[int, ...],
    *,
    alpha_bar: jax.Array,
    num_steps: int,
    prediction: str,
    order: int,
    eta: float,
    temperature: float,
    clamp: Callable[[jax.Array], jax.Array],
    clip: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Samples x_0 by DDIM in one `lax.scan`.

    Args:
      denoise: (x [B, ...], step []) -> prediction; guided where guidance is wanted.
      key: random number generator state, the key is consumed.
      shape: of the result, [B, ...].
      alpha_bar: [K] the schedule.
      num_steps: network evaluations, at most K.
      prediction: what `denoise` predicts.
      order: 1, or 2 to extrapolate, see `multistep_weights`.
      eta: 0 is deterministic given the initial noise.
      temperature: standard deviation of all noise (Decision Diffuser uses 0.5).
      clamp: imposes what is known on a sample; applied before every evaluation and to the
        result.
      clip: keeps a predicted x_0 inside the data's range.

    Returns:
      [B, ...] float32.

    Raises:
      UserError: more steps than K or none, an unknown order, or noise with order 2.
    """
    check_order(order, eta)
    steps = ddim_steps(len(alpha_bar), num_steps)
    alpha_bars = alpha_bar[steps]
    schedule = (
        jnp.asarray(steps),
        alpha_bars,
        jnp.concatenate([alpha_bars[1:], jnp.ones(1)]),
        multistep_weights(alpha_bars, order),
    )
    key_init, key_steps = jax.random.split(key)

    def body(carry, inputs):
        x, previous = carry
        index, (step, current, following, weight) = inputs
        x = clamp(x)
        x0 = clip(predicted_x0(prediction, denoise(x, step), x, current))
        # With eta = 0 no draw is made: the compiled sampler is deterministic after `init`.
        noise = 0.0
        if eta > 0:
            noise = temperature * jax.random.normal(jax.random.fold_in(key_steps, index), shape)
        target = x0 if order == 1 else x0 + weight * (x0 - previous)
        x = ddim_update(x, target, noise, alpha_bar=current, alpha_bar_next=following, eta=eta)
        return (x, x0), None

    x = temperature * jax.random.normal(key_init, shape)
    (x, _), _ = jax.lax.scan(body, (x, jnp.zeros(shape)), (jnp.arange(num_steps), schedule))
    return clamp(x)
