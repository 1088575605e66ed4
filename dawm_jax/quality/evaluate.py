"""Evaluates transitions, of a run or a dataset, against real data and the simulator."""

import dataclasses

import jax
import numpy as np

from dawm_jax.data import replay
from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.envs import simulate
from dawm_jax.quality import metrics
from dawm_jax.quality.generation import GeneratingRun
from dawm_jax.quality.reference import (
    Reference,
    classify,
    compare_distributions,
    nearest_distances,
)
from dawm_jax.quality.types import (
    Calibration,
    InferredActionErrors,
    InverseDynamicsErrors,
    PrecisionRecall,
    SimulatorErrors,
    StepErrors,
    Summary,
    SyntheticMeasures,
)
from dawm_jax.quality.windows import (
    Steps,
    Windows,
    dataset_steps,
    real_window_rows,
    rows_before_terminations,
    sample_rows,
)
from dawm_jax.types import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class ReturnSamples:
    """Returns of windows that the figure shows, [n] each, raw units."""

    target: np.ndarray
    generated: np.ndarray
    real: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured.

    Attributes:
      measures: the numbers of the report.
      distances: [n] from each generated (s, a) to the nearest training one, for the figure.
      returns: returns of windows, for the figure; None for a dataset.
    """

    measures: SyntheticMeasures
    distances: np.ndarray
    returns: ReturnSamples | None


def evaluate_windows(
    windows: Windows, reference: Reference, near_end: Windows | None = None
) -> Evaluation:
    """Measures everything that transitions alone tell.

    Args:
      windows: the transitions.
      reference: the real data that they are compared with.
      near_end: windows that start shortly before a real termination, for the timing of
        terminations; None uses `windows`.

    Raises:
      UserError: no window has a second step.
    """
    if not windows.generated.any():
        raise UserError(
            "every window ends at its first step, whose state and action are real: no generated "
            "step is left to evaluate; train the world model for longer"
        )
    scales = reference.scales
    steps = windows.rows(windows.valid)
    table = metrics.columns(windows.rows(windows.generated), scales)
    distances = nearest_distances(table, reference.columns, scales)
    median_real = np.median(reference.held_out_distances)
    measures = SyntheticMeasures(
        transitions=int(windows.valid.sum()),
        windows=len(windows.valid) if windows.valid.shape[1] > 1 else None,
        generated=len(table),
        mean_reward=float(steps.reward.mean()),
        step_size=metrics.step_size(table, scales.state_size),
        termination_rate=float(steps.terminated.mean()),
        distribution=compare_distributions(
            table, reference.columns, scales, num_keys=reference.sizes.classifier_keys
        ),
        distances=metrics.quantiles(distances),
        novelty=float(np.median(distances) / max(median_real, 1e-12)),
        simulator=_simulator_errors(windows, near_end, reference),
        calibration=None,
        inverse_dynamics=None,
    )
    return Evaluation(measures, distances, None)


def evaluate_run(
    run: GeneratingRun, reference: Reference, *, num_windows: int, seed: int
) -> Evaluation:
    """Measures everything about what a run generates.

    Args:
      run: a run with models.
      reference: the run's data.
      num_windows: number of windows generated from random training steps. Half as many are
        generated in addition from steps shortly before a termination.
      seed: seed of the starts and of the generation.

    Raises:
      UserError: the run generates no transitions, or no window has a second step.
    """
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    dataset = reference.dataset
    return_to_go = _returns_to_go(run, dataset)

    def generate(starts: np.ndarray, key: jax.Array) -> Windows:
        return generate_windows(
            run,
            dataset,
            starts,
            return_to_go[starts],
            key,
            windows_per_call=reference.sizes.windows_per_call,
        )

    starts = sample_rows(rng, reference.train, num_windows)
    windows = generate(starts, jax.random.fold_in(key, 0))
    near_end = None
    candidates = rows_before_terminations(dataset, reference.train, run.horizon)
    if candidates.size:
        near_starts = sample_rows(rng, candidates, num_windows // 2)
        near_end = generate(near_starts, jax.random.fold_in(key, 1))
    evaluation = evaluate_windows(windows, reference, near_end)
    calibration, returns = calibrate(run, dataset, starts, windows)
    measures = dataclasses.replace(
        evaluation.measures,
        calibration=calibration,
        inverse_dynamics=_inverse_dynamics(run, reference, evaluation.measures.simulator),
    )
    return dataclasses.replace(evaluation, measures=measures, returns=returns)


def generate_windows(
    run: GeneratingRun,
    dataset: OfflineDataset,
    starts: np.ndarray,
    return_to_go: np.ndarray,
    key: jax.Array,
    *,
    windows_per_call: int,
) -> Windows:
    """The windows that a run generates from rows of its data, in the order of the rows.

    Args:
      run: a run with models.
      dataset: the run's data.
      starts: [B] rows.
      return_to_go: [B] raw return-to-go of the starts.
      key: random number generator state, the key is consumed.
      windows_per_call: windows that one call of the run generates. All calls have the same
        number of starts, so that they share one compiled program: the starts of the last call
        are filled up with the first starts, whose windows are dropped.
    """
    shape = (-(-len(starts) // windows_per_call), windows_per_call)
    parts = [
        run.generate(
            jax.random.fold_in(key, index),
            dataset.observations[starts[chunk]],
            dataset.actions[starts[chunk]],
            return_to_go[chunk],
        )
        for index, chunk in enumerate(np.resize(np.arange(len(starts)), shape))
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(starts)], *parts)


# --- parts of an evaluation ---------------------------------------------------------------


def _simulator_errors(
    windows: Windows, near_end: Windows | None, reference: Reference
) -> SimulatorErrors | None:
    """Errors of all windows, and terminations of those near an end; None without a simulator."""
    if reference.margin_scale is None:
        return None
    replayed = _replay(windows.steps, reference)
    dynamics = metrics.dynamics_error(
        windows.steps.next_observation, replayed.next_observation, reference.scales
    )
    reward = metrics.reward_error(windows.steps.reward, replayed.reward, reference.scales)
    ending, truth = windows, replayed.terminated
    if near_end is not None:
        ending, truth = near_end, _replay(near_end.steps, reference).terminated
    # `valid` excludes the steps after a window's own termination. The timing takes all H steps of
    # both sides: a true termination after the window's own one tells how early that one was.
    timing = metrics.termination_timing(ending.steps.terminated, truth)
    return SimulatorErrors(
        dynamics=_step_errors(dynamics, windows),
        reward=_step_errors(reward, windows),
        termination=_terminations(windows, replayed.terminated),
        termination_near_end=_terminations(ending, truth),
        timing=timing if ending.valid.shape[1] > 1 else None,
    )


def _step_errors(errors: np.ndarray, windows: Windows) -> StepErrors:
    """Summaries of errors [B, H]."""
    has_windows = windows.valid.shape[1] > 1
    return StepErrors(
        all_steps=metrics.summary(errors[windows.valid]),
        later_steps=metrics.summary(errors[windows.generated]) if has_windows else None,
        by_step=metrics.by_step(errors, windows.valid) if has_windows else None,
    )


def _terminations(windows: Windows, truth: np.ndarray) -> PrecisionRecall:
    """Terminations of windows up to the first true one, [B, H]."""
    compared = windows.valid & metrics.until_first(truth)
    return metrics.precision_recall(windows.steps.terminated[compared], truth[compared])


def calibrate(
    run: GeneratingRun, dataset: OfflineDataset, starts: np.ndarray, windows: Windows
) -> tuple[Calibration, ReturnSamples]:
    """Returns of generated windows against those asked for, and against the real windows'.

    A window that a time-out of the data cuts is left out, because its real return is unknown.

    Args:
      run: the run that generated the windows.
      dataset: the run's data.
      starts: [B] rows that the windows start from.
      windows: [B, H] generated windows.
    """
    horizon = windows.valid.shape[1]
    rows, exists = real_window_rows(dataset, starts, horizon)
    known = exists.all(1) | dataset.terminations[rows].any(1)
    own = _returns_to_go(run, dataset)[starts]
    generated = metrics.discounted_returns(windows.steps.reward, windows.valid, run.discount)
    real = metrics.discounted_returns(dataset.rewards[rows], exists, run.discount)
    samples = ReturnSamples(run.target_return(own)[known], generated[known], real[known])
    mean = lambda x: float(x.mean()) if x.size else None
    calibration = Calibration(
        windows=int(known.sum()),
        steps=horizon,
        target_mean=mean(samples.target),
        own_mean=mean(own[known]),
        generated_mean=mean(samples.generated),
        real_mean=mean(samples.real),
        generated_on_target=metrics.linear_fit(samples.target, samples.generated),
        real_on_target=metrics.linear_fit(samples.target, samples.real),
        generated_on_real=metrics.linear_fit(samples.real, samples.generated),
    )
    return calibration, samples


def _inverse_dynamics(
    run: GeneratingRun, reference: Reference, errors: SimulatorErrors | None
) -> InverseDynamicsErrors:
    """Errors of the actions that are inferred from held-out real pairs."""
    real = dataset_steps(reference.dataset, reference.held_out)
    action = run.inverse_dynamics(real.observation, real.next_observation)
    simulator = None
    if errors is not None:
        reached = _replay(real._replace(action=action), reference).next_observation
        real_pairs = metrics.dynamics_error(real.next_observation, reached, reference.scales)
        by_step = errors.dynamics.by_step
        simulator = InferredActionErrors(
            real_pairs=metrics.summary(real_pairs),
            first_step=None if by_step is None else Summary(by_step.mean[0], by_step.median[0]),
            later_steps=errors.dynamics.later_steps,
        )
    return InverseDynamicsErrors(
        pairs=len(reference.held_out),
        mse=tuple(np.square(action - real.action).mean(0).tolist()),
        mean_action_mse=tuple(real.action.var(0).tolist()),
        simulator=simulator,
        discriminator_auc=classify(
            metrics.columns(real._replace(action=action), reference.scales),
            reference.columns,
            reference.scales,
            num_keys=reference.sizes.classifier_keys,
        ),
    )


def _replay(steps: Steps, reference: Reference) -> Steps:
    """`steps` [...] with the simulator's next observation, reward and termination."""
    shape = steps.reward.shape
    flat = lambda x: np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    assert reference.margin_scale is not None  # callers ask only if there is a simulator
    next_observation, reward, terminated = simulate.replay(
        reference.environment,
        flat(steps.observation),
        flat(steps.action),
        margin_scale=reference.margin_scale,
        kwargs=reference.environment_kwargs,
    )
    return steps._replace(
        next_observation=next_observation.reshape(*shape, -1),
        reward=reward.reshape(shape),
        terminated=terminated.reshape(shape),
    )


def _returns_to_go(run: GeneratingRun, dataset: OfflineDataset) -> np.ndarray:
    """Raw discounted return-to-go of every row of the run's data, [N] float64."""
    return replay.returns_to_go(
        dataset.rewards,
        dataset.terminations,
        dataset.truncations,
        discount=run.discount,
        timeout_value=run.timeout_value,
    )
