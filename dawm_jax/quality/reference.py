"""Real data as the reference of an evaluation: samples, scales and its own simulator errors."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.data.replay import split_episodes
from dawm_jax.envs import simulate
from dawm_jax.quality import metrics
from dawm_jax.quality.metrics import Scales
from dawm_jax.quality.types import (
    Distribution,
    KsStatistics,
    RealMeasures,
    RealSimulatorErrors,
    TwoSampleAuc,
)
from dawm_jax.quality.windows import Steps, dataset_steps, sample_rows
from dawm_jax.types import UserError

# Columns are rounded to this many decimals of a standard deviation before their distributions
# are compared: values clipped at the same bound must be equal, although their last bits differ
# after normalisation.
_DECIMALS = 4
# Factors of MuJoCo's contact margins, and the MuJoCo versions whose contacts they reproduce.
_MARGIN_SCALES = {0.5: "before MuJoCo 3.5", 2.0: "since MuJoCo 3.5"}
# Replays with two margins that differ by less than this error had no contact.
_SAME_STEP = 1e-10
# Another margin is accepted if it reduces the median replay error tenfold.
_ERROR_RATIO = 0.1
# Rounding does not explain a median replay error above this one: the physics differ.
_LARGEST_ROUNDING_ERROR = 1e-4


@dataclasses.dataclass(frozen=True)
class SampleSizes:
    """Sizes of the samples of an evaluation.

    Attributes:
      real: training transitions that distributions and distances refer to.
      held_out: held-out transitions that are compared with them.
      replayed: training transitions replayed in the simulator.
      contact: those of them that are also replayed with other contact margins.
      classifier_keys: fits of the classifier that tells synthetic transitions from real ones.
      windows_per_call: windows that one call of the compiled generator returns.
    """

    real: int = 100_000
    held_out: int = 4_096
    replayed: int = 4_096
    contact: int = 1_024
    classifier_keys: int = 5
    windows_per_call: int = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """Real data with what a comparison with them needs.

    Attributes:
      dataset: whole episodes, raw units.
      environment: Gymnasium id of the simulator.
      environment_kwargs: keyword arguments of `gym.make` for it.
      train: [n] rows of the training episodes.
      held_out: [m] sample of the rows of the other episodes.
      scales: means and standard deviations of the dataset's columns.
      columns: [k, 2 S + A + 1] table of a sample of the training rows, see `metrics.columns`.
      held_out_distances: [m] distance from each held-out (s, a) to the nearest in `columns`.
      margin_scale: factor of the contact margins with which the data replay; None without a
        simulator.
      measures: the data's own numbers.
      notes: what a reader must know about the simulator.
      sizes: sizes of the samples.
    """

    dataset: OfflineDataset
    environment: str
    environment_kwargs: Mapping[str, Any]
    train: np.ndarray
    held_out: np.ndarray
    scales: Scales
    columns: np.ndarray
    held_out_distances: np.ndarray
    margin_scale: float | None
    measures: RealMeasures
    notes: tuple[str, ...]
    sizes: SampleSizes


def prepare(
    dataset: OfflineDataset,
    environment: str,
    *,
    environment_kwargs: Mapping[str, Any] | None = None,
    held_out_fraction: float,
    seed: int,
    sizes: SampleSizes,
) -> Reference:
    """Samples the real data and replays some of their steps in the simulator.

    Args:
      dataset: the real data.
      environment: Gymnasium id.
      environment_kwargs: keyword arguments of `gym.make`; None: none.
      held_out_fraction: share of episodes that the models were not trained on. With 0, the last
        twentieth of the steps is used as held-out data.
      seed: seed of the samples.
      sizes: sizes of the samples.

    Raises:
      UserError: the environment is unknown, or refuses the keyword arguments.
    """
    kwargs = environment_kwargs or {}
    env = simulate.make_environment(environment, kwargs)
    state = simulate.state_columns(env)
    env.close()
    order, num_train = split_episodes(dataset.episode_ends, held_out_fraction)
    if num_train == len(order):
        num_train -= max(num_train // 20, 1)
    rng = np.random.default_rng(seed)
    train = order[:num_train]
    held_out = sample_rows(rng, order[num_train:], sizes.held_out)
    scales = metrics.fit_scales(dataset.observations, dataset.actions, dataset.rewards)
    columns = metrics.columns(dataset_steps(dataset, sample_rows(rng, train, sizes.real)), scales)
    held_out_columns = metrics.columns(dataset_steps(dataset, held_out), scales)
    replayed = sample_rows(rng, train, sizes.replayed)
    replay = _replay_real(
        dataset,
        environment,
        kwargs,
        replayed,
        scales,
        state_size=None if state is None else state.size,
        num_contact=sizes.contact,
    )
    distances = nearest_distances(held_out_columns, columns, scales)
    return Reference(
        dataset=dataset,
        environment=environment,
        environment_kwargs=kwargs,
        train=train,
        held_out=held_out,
        scales=scales,
        columns=columns,
        held_out_distances=distances,
        margin_scale=replay.margin_scale,
        measures=RealMeasures(
            mean_reward=float(dataset.rewards[train].mean()),
            step_size=metrics.step_size(columns, scales.state_size),
            termination_rate=float(dataset.terminations[train].mean()),
            distribution=compare_distributions(
                held_out_columns, columns, scales, num_keys=sizes.classifier_keys
            ),
            distances=metrics.quantiles(distances),
            simulator=replay.errors,
        ),
        notes=(*_kwargs_note(kwargs), *replay.notes),
        sizes=sizes,
    )


def compare_distributions(
    table: np.ndarray, real: np.ndarray, scales: Scales, *, num_keys: int
) -> Distribution:
    """Distances between the distributions of two tables of `metrics.columns`.

    Args:
      table: [N, 2 S + A + 1].
      real: [M, 2 S + A + 1].
      scales: means and standard deviations of the columns.
      num_keys: number of fits of the classifier.
    """
    state_size = scales.state_size
    num_compared = state_size + scales.action_size + 1
    discriminator_auc = classify(table, real, scales, num_keys=num_keys)
    state_auc = classify(
        _without_action(table, scales), _without_action(real, scales), scales, num_keys=num_keys
    )
    table, real = np.round(table, _DECIMALS), np.round(real, _DECIMALS)
    ks = metrics.ks_statistics(table[:, :num_compared], real[:, :num_compared])
    return Distribution(
        ks=KsStatistics(
            mean=float(ks.mean()),
            observation=tuple(ks[:state_size].tolist()),
            action=tuple(ks[state_size:-1].tolist()),
            reward=float(ks[-1]),
        ),
        correlation_similarity=metrics.correlation_similarity(table, real),
        discriminator_auc=discriminator_auc,
        state_auc=state_auc,
    )


def classify(table: np.ndarray, real: np.ndarray, scales: Scales, *, num_keys: int) -> TwoSampleAuc:
    """Tells the rows of two tables apart by (s, a, r, s' - s), or without a if they have none."""
    table, real = np.round(table, _DECIMALS), np.round(real, _DECIMALS)
    return metrics.two_sample_auc(table, real, state_size=scales.state_size, num_keys=num_keys)


def _without_action(table: np.ndarray, scales: Scales) -> np.ndarray:
    """A table of `metrics.columns` without the columns of the action."""
    first, last = scales.state_size, scales.state_size + scales.action_size
    return np.delete(table, np.s_[first:last], axis=1)


def nearest_distances(table: np.ndarray, real: np.ndarray, scales: Scales) -> np.ndarray:
    """Distance from each standardised (s, a) of a table to the nearest one of `real`, [N]."""
    size = scales.state_size + scales.action_size
    return metrics.nearest_distances(table[:, :size], real[:, :size])


# --- the simulator errors of real steps ---------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _RealReplay:
    """The fields of a `Reference` that the simulator gives."""

    margin_scale: float | None
    errors: RealSimulatorErrors | None
    notes: tuple[str, ...]


class _ReplayFn(Protocol):
    """One simulator step of each of N real steps: next observations, rewards, terminations."""

    def __call__(
        self, observations: np.ndarray, actions: np.ndarray, *, margin_scale: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...


def _replay_real(
    dataset: OfflineDataset,
    environment: str,
    kwargs: Mapping[str, Any],
    rows: np.ndarray,
    scales: Scales,
    *,
    state_size: int | None,
    num_contact: int,
) -> _RealReplay:
    """Replays the rows [n] with the contact margins that fit the data.

    `state_size` is the number of the first observation columns, which hold the state; None if that
    is unknown.
    """
    real = dataset_steps(dataset, rows)
    replay: _ReplayFn = functools.partial(simulate.replay, environment, kwargs=kwargs)
    # A clipped observation does not hold the velocity: its step tells nothing of the physics.
    # Columns after the state, such as contact forces, may rest at a bound.
    unclipped = ~metrics.clipped(dataset.observations[:, :state_size])[rows]
    try:
        margin_scale, note = _fit_margin_scale(
            dataset_steps(dataset, rows[unclipped][:num_contact]), replay, scales
        )
    except UserError as error:
        return _RealReplay(None, None, (f"no simulator measures: {error}",))
    next_observations, rewards, terminated = replay(
        real.observation, real.action, margin_scale=margin_scale
    )
    dynamics = metrics.dynamics_error(next_observations, real.next_observation, scales)
    errors = RealSimulatorErrors(
        rows=len(rows),
        clipped_share=float(1.0 - unclipped.mean()),
        dynamics=metrics.summary(dynamics),
        dynamics_unclipped=metrics.summary(dynamics[unclipped]),
        reward=metrics.summary(metrics.reward_error(rewards, real.reward, scales)),
        termination=metrics.precision_recall(real.terminated, terminated),
    )
    return _RealReplay(margin_scale, errors, (*note, *_physics_note(errors, environment)))


def _fit_margin_scale(
    real: Steps, replay: _ReplayFn, scales: Scales
) -> tuple[float, tuple[str, ...]]:
    """The factor of the contact margins with which the steps replay, and a note if it is not 1."""
    if not len(real.reward):
        return 1.0, ()

    def step(margin_scale: float) -> np.ndarray:
        return replay(real.observation, real.action, margin_scale=margin_scale)[0]

    def error(next_observations: np.ndarray) -> np.ndarray:
        return metrics.dynamics_error(next_observations, real.next_observation, scales)

    installed = step(1.0)
    for scale, versions in _MARGIN_SCALES.items():
        other = step(scale)
        # Only steps in contact tell margins apart.
        in_contact = metrics.dynamics_error(installed, other, scales) > _SAME_STEP
        if not in_contact.any():
            continue
        limit = _ERROR_RATIO * np.median(error(installed)[in_contact])
        if np.median(error(other)[in_contact]) < limit:
            return scale, (
                f"contacts {versions} (margins x {scale}) fit the data, those of the installed "
                "MuJoCo do not: errors are measured in the data's physics, scores in the installed",
            )
    return 1.0, ()


def _kwargs_note(kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """A note if the simulator is not the environment that its id alone names."""
    return (f"the simulator is made with {json.dumps(kwargs)}",) if kwargs else ()


def _physics_note(errors: RealSimulatorErrors, environment: str) -> tuple[str, ...]:
    """A note if the data's own steps do not replay."""
    median = errors.dynamics_unclipped.median
    if median is None or median <= _LARGEST_ROUNDING_ERROR:
        return ()
    return (
        f"the data's own steps do not replay in {environment} (median error {median:.2g}): "
        "other physics; simulator measures say little",
    )
