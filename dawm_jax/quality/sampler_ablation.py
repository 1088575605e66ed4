"""The quality of what a run generates, as a function of one sampler setting at a time."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from dawm_jax.quality.generation import GeneratingRun
from dawm_jax.quality.types import (
    AblationMetrics,
    Point,
    Series,
    SyntheticMeasures,
)
from dawm_jax.runtime.metrics import Progress

_SETTINGS = ("guidance", "sampling_steps", "order", "temperature", "target_factor")


@dataclasses.dataclass(frozen=True)
class Grid:
    """Values of the settings of `config.rollout`. The run's own value is added to each.

    Attributes:
      guidance: weights of classifier-free guidance.
      sampling_steps: numbers of DDIM steps.
      order: orders of the DDIM step.
      temperature: standard deviations of the initial noise.
      target_factor: factors of the target rule "amplified".
      target_fraction: values of the setting target_factor for the rule "max_fraction".
      repeats: how often the run's own settings are measured, each time with another seed.
    """

    guidance: tuple[float, ...] = (1.0, 1.2, 1.5, 2.0)
    sampling_steps: tuple[int, ...] = (1, 3, 5, 8, 20)
    order: tuple[int, ...] = (1, 2)
    temperature: tuple[float, ...] = (0.5, 0.75, 1.0, 1.15, 1.3)
    target_factor: tuple[float, ...] = (1.0, 1.1, 1.2, 1.5)
    target_fraction: tuple[float, ...] = (0.6, 0.8, 1.0)
    repeats: int = 3


class MeasureFn(Protocol):
    """Measures what a run generates."""

    def __call__(self, run: GeneratingRun, *, seed: int) -> SyntheticMeasures:
        """The measures; `seed` is that of the starts and of the noise."""


def run_ablation(
    run: GeneratingRun, measure: MeasureFn, *, grid: Grid, seed: int
) -> tuple[tuple[AblationMetrics, ...], tuple[Series, ...]]:
    """Measures the run's own settings, then the values of each setting.

    All values have the same seed, which gives them the same starts and noise. Only the repeats
    have other seeds.

    Args:
      run: a run with models.
      measure: measures a run.
      grid: the values.
      seed: seed of the first repeat and of all other values.

    Returns:
      The metrics of the repeats, and one series per setting.
    """
    values = {name: setting_values(run, grid, name) for name in _SETTINGS}
    num_measured = grid.repeats + sum(len(some) - 1 for some in values.values())
    progress = Progress("ablation", num_measured, "settings")
    done = 0

    def measure_one(changed: GeneratingRun, seed: int) -> AblationMetrics:
        nonlocal done
        metrics = select_metrics(measure(changed, seed=seed))
        done += 1
        progress.report(done, {})
        return metrics

    repeats = tuple(measure_one(run, seed + index) for index in range(grid.repeats))

    def series(name: str) -> Series:
        own = own_value(run, name)
        points = (
            Point(v, repeats[0] if v == own else measure_one(run.with_setting(name, v), seed))
            for v in values[name]
        )
        return Series(name, own, tuple(points))

    all_series = tuple(series(name) for name in _SETTINGS)
    progress.close()
    return repeats, all_series


def setting_values(run: GeneratingRun, grid: Grid, name: str) -> tuple[float | int, ...]:
    """The values of a setting that the run can use, in ascending order, with its own value."""
    values: Sequence[float | int] = {
        "guidance": grid.guidance,
        "sampling_steps": tuple(v for v in grid.sampling_steps if v <= run.diffusion_steps),
        # Only a sampler without noise extrapolates.
        "order": grid.order if own_value(run, "eta") == 0 else (1,),
        "temperature": grid.temperature,
        "target_factor": (
            grid.target_fraction
            if run.settings["target_rule"] == "max_fraction"
            else grid.target_factor
        ),
    }[name]
    return tuple(sorted({*values, own_value(run, name)}))


def own_value(run: GeneratingRun, name: str) -> float | int:
    """The run's own value of a numeric setting."""
    value = run.settings[name]
    assert isinstance(value, (int, float)), f"{name} is not a number: {value!r}"
    return value


def select_metrics(measures: SyntheticMeasures) -> AblationMetrics:
    """The few numbers that an ablation compares."""
    simulator, calibration = measures.simulator, measures.calibration
    auc = measures.distribution.discriminator_auc
    ending = simulator.termination_near_end if simulator else None
    return AblationMetrics(
        dynamics_error=simulator.dynamics.all_steps.mean if simulator else None,
        dynamics_error_median=simulator.dynamics.all_steps.median if simulator else None,
        reward_error=simulator.reward.all_steps.mean if simulator else None,
        ks_mean=measures.distribution.ks.mean,
        discriminator_auc=auc.mean if auc else None,
        discriminator_auc_std=auc.std if auc else None,
        step_size=measures.step_size,
        novelty=measures.novelty,
        termination_recall=ending.recall if ending else None,
        termination_precision=ending.precision if ending else None,
        generated_return=calibration.generated_mean if calibration else None,
    )
