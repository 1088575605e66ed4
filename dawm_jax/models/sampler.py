"""Sampling from a diffusion process in few steps: DDIM and DPM-Solver++(2M).

A new option is a field of `SamplerSettings` and its use in `Sampler`.
"""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dawm_jax.models import diffusion
from dawm_jax.models.diffusion import ConditionalDenoiseFn, DenoiseFn, Process, Tree
from dawm_jax.runtime.settings import setting
from dawm_jax.types import UserError


class ChangeFn(Protocol):
    """Changes samples without changing their shape."""

    def __call__(self, x: jax.Array, /) -> jax.Array:
        """[B, ...] -> [B, ...]."""


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """How windows are sampled from a trained diffusion model."""

    sampling_steps: int = setting(
        8, "evaluations of the denoiser per sample, at most diffusion_steps", smoke=2, at_least=1
    )
    order: int = setting(
        2,
        "order of the sampler: 1 is DDIM (2010.02502), 2 is DPM-Solver++(2M) and needs eta 0",
        choices=(1, 2),
        source="DPM-Solver++ 2211.01095",
    )
    spacing: str = setting(
        "noise",
        "which diffusion steps are visited: noise spaces the noise levels as EDM, quadratic the "
        "steps as DDIM",
        choices=diffusion.SPACINGS,
        source="EDM 2206.00364, eq. 5; DDIM 2010.02502, D.2",
        absent="quadratic",
    )
    eta: float = setting(
        0.0,
        "noise added in each step of order 1: 0 is deterministic DDIM, 1 is ancestral sampling",
        at_least=0.0,
        at_most=1.0,
    )
    guidance: float = setting(
        1.0,
        "weight of classifier-free guidance: 0 ignores the return-to-go, 1 is conditional only; "
        "any other value doubles the cost",
        at_least=0.0,
        source="DD: 1.2",
    )
    temperature: float = setting(
        1.0, "standard deviation of all noise, in units of the process's", at_least=0.0
    )

    def check(self, name: str) -> None:
        """Checks that order 2 has no noise: eta must be 0.

        Args:
          name: dotted name of the section, for messages.

        Raises:
          UserError: order 2 with eta above 0.
        """
        if self.order == 2 and self.eta > 0:
            raise UserError(
                f"{name}.eta: expected 0 with {name}.order 2, which adds no noise, got "
                f"{self.eta:g}; set {name}.order to 1 for noise"
            )


class _Step(NamedTuple):
    """A visited diffusion step."""

    step: jax.Array  # [] int, k
    alpha_bar: jax.Array  # [], abar_k
    alpha_bar_next: jax.Array  # [], abar of the step after; 1 after the last
    weight: jax.Array  # [], of the extrapolation, see `diffusion.multistep_weights`


@dataclasses.dataclass(frozen=True)
class Sampler(SamplerSettings):
    """Samples x_0 of a diffusion process, in one `lax.scan`."""

    def __post_init__(self) -> None:
        self.check("sampler")

    @classmethod
    def of(cls, settings: SamplerSettings) -> "Sampler":
        """The sampler of a section that has a sampler's settings among others."""
        names = [field.name for field in dataclasses.fields(SamplerSettings)]
        return cls(**{name: getattr(settings, name) for name in names})

    def check_steps(self, process: Process) -> None:
        """Checks that the process has at least `sampling_steps` diffusion steps.

        Raises:
          UserError: `sampling_steps` exceeds the diffusion steps of `process`.
        """
        self._steps(process)

    def guided(self, denoise: ConditionalDenoiseFn[Tree], condition: Tree) -> DenoiseFn:
        """The denoiser under classifier-free guidance; see `diffusion.guide`."""
        return diffusion.guide(denoise, condition, weight=self.guidance)

    def __call__(
        self,
        denoise: DenoiseFn,
        key: jax.Array,
        shape: tuple[int, ...],
        *,
        process: Process,
        clamp: ChangeFn,
        clip: ChangeFn,
    ) -> jax.Array:
        """Samples.

        Args:
          denoise: predicts `process.prediction`; the result of `guided` for guidance.
          key: random number generator state, the key is consumed.
          shape: shape of the result, [B, ...].
          process: diffusion process, whose reverse is sampled.
          clamp: writes what is known into a sample; applied before every evaluation and to
            the result.
          clip: keeps a predicted x_0 inside the data's range.

        Returns:
          [B, ...] float32.

        Raises:
          UserError: more sampling steps than diffusion steps.
        """
        schedule = self._schedule(process)
        key_init, key_steps = jax.random.split(key)

        def body(
            carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, _Step]
        ) -> tuple[tuple[jax.Array, jax.Array], None]:
            (x, previous), (index, at) = carry, inputs
            x = clamp(x)
            output = denoise(x, at.step)
            x0 = clip(diffusion.predicted_x0(process.prediction, output, x, at.alpha_bar))
            noise = self._noise(key_steps, index, shape)
            target = x0 if self.order == 1 else x0 + at.weight * (x0 - previous)
            x = diffusion.ddim_update(
                x,
                target,
                noise,
                alpha_bar=at.alpha_bar,
                alpha_bar_next=at.alpha_bar_next,
                eta=self.eta,
            )
            return (x, x0), None

        x = self.temperature * jax.random.normal(key_init, shape)
        indices = jnp.arange(self.sampling_steps)
        (x, _), _ = jax.lax.scan(body, (x, jnp.zeros(shape)), (indices, schedule))
        return clamp(x)

    def _schedule(self, process: Process) -> _Step:
        """The visited steps, with leading axis N."""
        steps = self._steps(process)
        alpha_bars = process.alpha_bar[steps]
        return _Step(
            step=jnp.asarray(steps),
            alpha_bar=alpha_bars,
            alpha_bar_next=jnp.concatenate([alpha_bars[1:], jnp.ones(1)]),
            weight=diffusion.multistep_weights(alpha_bars, self.order),
        )

    def _steps(self, process: Process) -> np.ndarray:
        alpha_bar = np.asarray(process.alpha_bar)
        return diffusion.visited_steps(alpha_bar, self.sampling_steps, self.spacing)

    def _noise(self, key: jax.Array, index: jax.Array, shape: tuple[int, ...]) -> jax.Array | float:
        # Without eta nothing is drawn: the noise would be multiplied by 0.
        if self.eta == 0:
            return 0.0
        return self.temperature * jax.random.normal(jax.random.fold_in(key, index), shape)
