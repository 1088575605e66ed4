"""A finished run as the typed functions and values that an evaluation uses.

This module alone reads a `LoadedRun`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.methods.synthetic import TargetReturn
from dawm_jax.quality.windows import Steps, Windows
from dawm_jax.training import load_run
from dawm_jax.training.load_run import LoadedRun


class GenerateFn(Protocol):
    """Generates a window from each start; all arrays have raw units."""

    def __call__(
        self,
        key: jax.Array,
        observation: np.ndarray,
        action: np.ndarray,
        return_to_go: np.ndarray,
    ) -> Windows:
        """Generates windows.

        Args:
          key: random number generator state, the key is consumed.
          observation: [B, S].
          action: [B, A], the first action.
          return_to_go: [B] discounted return of the start, before the run's target rule.
        """


class InverseDynamicsFn(Protocol):
    """Infers the action between two observations; all arrays have raw units."""

    def __call__(self, observation: np.ndarray, next_observation: np.ndarray) -> np.ndarray:
        """[N, S], [N, S] -> [N, A]."""


class TargetReturnFn(Protocol):
    """Applies the run's target rule."""

    def __call__(self, return_to_go: np.ndarray) -> np.ndarray:
        """[B] returns-to-go of starts -> [B] returns-to-go that windows aim at, raw units."""


class CheckDataFn(Protocol):
    """Checks that data are those of the run."""

    def __call__(self, dataset: OfflineDataset, /) -> None:
        """Raises UserError if `dataset` is not what the run was trained on."""


def _accept(dataset: OfflineDataset, /) -> None:
    """A `CheckDataFn` for a run that knows nothing of its data."""


class WithSettingFn(Protocol):
    """Replaces a setting of `config.rollout`."""

    def __call__(self, name: str, value: float | int) -> "GeneratingRun":
        """The same run with another value of the setting `name`.

        Raises:
          UserError: the value is out of its range.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratingRun:
    """A finished run.

    Attributes:
      dataset: name of its data.
      environment: Gymnasium id.
      environment_kwargs: keyword arguments of `gym.make` for it.
      held_out_fraction: share of the episodes that its models were not trained on.
      has_models: False for a run on real data only; its functions raise UserError.
      horizon: H.
      discount: gamma of the returns-to-go.
      timeout_value: see `returns_to_go` of the replay data.
      diffusion_steps: K, the largest number of sampling steps.
      settings: `config.rollout`.
      generate: generates windows.
      target_return: the return-to-go that windows aim at.
      inverse_dynamics: infers actions.
      with_setting: the run with another setting.
      check_data: compares data with those of the run.
    """

    dataset: str
    environment: str
    environment_kwargs: Mapping[str, Any]
    held_out_fraction: float
    has_models: bool
    horizon: int
    discount: float
    timeout_value: str
    diffusion_steps: int
    settings: Mapping[str, object]
    generate: GenerateFn
    target_return: TargetReturnFn
    inverse_dynamics: InverseDynamicsFn
    with_setting: WithSettingFn
    check_data: CheckDataFn = _accept


def load(workdir: str | pathlib.Path) -> GeneratingRun:
    """Loads a finished run.

    Raises:
      UserError: the folder is no finished run.
    """
    return from_run(load_run.load_run(workdir))


def from_run(run: LoadedRun) -> GeneratingRun:
    """What an evaluation uses of a loaded run."""
    config = run.config
    target = TargetReturn(config.rollout.target_rule, config.rollout.target_factor, run.normalizer)

    def target_return(return_to_go: np.ndarray) -> np.ndarray:
        scale = float(run.normalizer.return_scale)
        return np.asarray(target(jnp.asarray(return_to_go / scale, jnp.float32))) * scale

    return GeneratingRun(
        dataset=config.dataset,
        environment=config.environment,
        environment_kwargs=config.environment_arguments,
        held_out_fraction=config.held_out_fraction,
        has_models=run.models is not None,
        horizon=config.horizon,
        discount=config.discount,
        timeout_value=config.timeout_value,
        diffusion_steps=config.world_model.diffusion_steps,
        settings=dataclasses.asdict(config.rollout),
        generate=_generate_fn(run),
        target_return=target_return,
        inverse_dynamics=run.inverse_dynamics,
        with_setting=lambda name, value: from_run(run.with_rollout(**{name: value})),
        check_data=run.check_data,
    )


def _generate_fn(run: LoadedRun) -> GenerateFn:
    """The run's generation of windows as arrays of `Windows`."""

    def generate(
        key: jax.Array, observation: np.ndarray, action: np.ndarray, return_to_go: np.ndarray
    ) -> Windows:
        found, valid = run.generate_windows(key, observation, action, return_to_go)
        steps = Steps(
            observation=np.asarray(found.observation),
            action=np.asarray(found.action),
            reward=np.asarray(found.reward),
            terminated=np.asarray(found.terminated) > 0,
            next_observation=np.asarray(found.next_observation),
        )
        return Windows(steps, valid)

    return generate
