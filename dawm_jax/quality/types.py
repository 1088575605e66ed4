"""Contents of a quality report and of a sampler ablation: trees of frozen dataclasses.

A number that is None is not defined, or was not measured by the version that wrote the file. A
part that is None was not measured, for instance because no simulator replays the environment.
Errors are squared errors, means over dimensions, in units of the data's standard deviations.
"""

import dataclasses
from collections.abc import Callable, Mapping

from dawm_jax.quality import codec, old_layout


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean and median of a sample; None if the sample is empty."""

    mean: float | None
    median: float | None


@dataclasses.dataclass(frozen=True)
class SummaryByStep:
    """Mean and median at each of the H steps of windows; None where no window has the step."""

    mean: tuple[float | None, ...]
    median: tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class Quantiles:
    """The 10 %, 50 % and 90 % quantiles of a sample."""

    q10: float
    q50: float
    q90: float


@dataclasses.dataclass(frozen=True)
class LinearFit:
    """Correlation of pairs (x, y) and least-squares slope of y on x; None if undefined."""

    correlation: float | None
    slope: float | None


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """Claimed terminations against true ones.

    Attributes:
      claimed: number of claimed terminations.
      true: number of true terminations.
      precision: share of the claimed ones that are true; None if none is claimed.
      recall: share of the true ones that are claimed; None if none is true.
    """

    claimed: int
    true: int
    precision: float | None
    recall: float | None


@dataclasses.dataclass(frozen=True)
class TerminationTiming:
    """The step at which windows terminate, against the step at which the simulator does.

    Attributes:
      windows: number of windows.
      steps_late: number of windows by steps of delay; a negative delay is early. Only windows
        that terminate both in the data and in the simulator are counted.
      mean_late: mean delay in steps; None if no window is counted.
      missed: number of windows that only the simulator terminates.
      false: number of windows that only the data terminates. The windows that are in none of
        these numbers terminate neither in the data nor in the simulator.
    """

    windows: int
    steps_late: Mapping[int, int]
    mean_late: float | None
    missed: int
    false: int

    @property
    def on_time(self) -> int:
        """Number of windows that terminate at the simulator's step."""
        return self._count(lambda delay: delay == 0)

    @property
    def late(self) -> int:
        """Number of windows that terminate after the simulator's step."""
        return self._count(lambda delay: delay > 0)

    @property
    def early(self) -> int:
        """Number of windows that terminate before the simulator's step."""
        return self._count(lambda delay: delay < 0)

    def _count(self, keep: Callable[[int], bool]) -> int:
        return sum(windows for delay, windows in self.steps_late.items() if keep(delay))


@dataclasses.dataclass(frozen=True)
class KsStatistics:
    """Two-sample Kolmogorov-Smirnov statistics of the columns (s, a, r), each 0 to 1."""

    mean: float
    observation: tuple[float, ...]  # [S]
    action: tuple[float, ...]  # [A]
    reward: float

    @property
    def columns(self) -> tuple[float, ...]:
        """All statistics in the order (s, a, r), [S + A + 1]."""
        return (*self.observation, *self.action, self.reward)


@dataclasses.dataclass(frozen=True)
class TwoSampleAuc:
    """Area under the ROC curve of a classifier that is fitted once per random key.

    Attributes:
      mean: over keys.
      std: sample standard deviation over keys; None with fewer than two keys.
      by_key: the area of each key, in the order of the keys.
    """

    mean: float
    std: float | None
    by_key: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Distances between the distribution of transitions and that of the training data.

    Attributes:
      ks: of each column.
      correlation_similarity: of all columns.
      discriminator_auc: of a classifier of (s, a, r, s' - s).
      state_auc: of a classifier of (s, r, s' - s), which does not see the action.
    """

    ks: KsStatistics
    correlation_similarity: float
    discriminator_auc: TwoSampleAuc | None
    state_auc: TwoSampleAuc | None


@dataclasses.dataclass(frozen=True)
class StepErrors:
    """Errors against one simulator step from each transition's own state and action.

    Attributes:
      all_steps: errors of all steps.
      later_steps: errors of the steps after the first of each window; None without windows.
      by_step: errors of each step of the windows; None without windows.
    """

    all_steps: Summary
    later_steps: Summary | None
    by_step: SummaryByStep | None


@dataclasses.dataclass(frozen=True)
class SimulatorErrors:
    """Synthetic transitions against the simulator.

    Attributes:
      dynamics: errors of the next observation.
      reward: errors of the reward.
      termination: terminations of all windows, up to the simulator's first.
      termination_near_end: the same for windows that start shortly before a real termination.
      timing: delays of the terminations of these windows; None without windows.
    """

    dynamics: StepErrors
    reward: StepErrors
    termination: PrecisionRecall
    termination_near_end: PrecisionRecall
    timing: TerminationTiming | None


@dataclasses.dataclass(frozen=True)
class RealSimulatorErrors:
    """Real transitions against the simulator: the smallest errors that can be measured.

    Attributes:
      rows: number of replayed transitions.
      clipped_share: share of them whose observed velocity is clipped.
      dynamics: errors of the next observation.
      dynamics_unclipped: the same without the clipped transitions.
      reward: errors of the reward.
      termination: recorded terminations against the simulator's.
    """

    rows: int
    clipped_share: float
    dynamics: Summary
    dynamics_unclipped: Summary
    reward: Summary
    termination: PrecisionRecall


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Discounted returns of generated windows against the returns-to-go they were asked for.

    Attributes:
      windows: number of windows whose real counterpart is known up to its end.
      steps: H.
      target_mean: mean return-to-go that was asked for.
      own_mean: mean return-to-go of the real starts.
      generated_mean: mean discounted return of the generated windows.
      real_mean: mean discounted return of the real windows from the same starts.
      generated_on_target: generated returns against the ones asked for.
      real_on_target: real returns against the ones asked for.
      generated_on_real: generated returns against real ones.
    """

    windows: int
    steps: int
    target_mean: float | None
    own_mean: float | None
    generated_mean: float | None
    real_mean: float | None
    generated_on_target: LinearFit
    real_on_target: LinearFit
    generated_on_real: LinearFit


@dataclasses.dataclass(frozen=True)
class InferredActionErrors:
    """Dynamics errors of inferred actions, by one simulator step.

    Attributes:
      real_pairs: the action is inferred from a held-out real pair (s, s'); the simulator's next
        observation is compared with s'.
      first_step: errors of the first steps of generated windows, whose action is real; None
        without windows.
      later_steps: errors of the later steps, whose action is inferred; None without windows.
    """

    real_pairs: Summary
    first_step: Summary | None
    later_steps: Summary | None


@dataclasses.dataclass(frozen=True)
class InverseDynamicsErrors:
    """Actions that the inverse dynamics model infers from held-out real pairs (s, s').

    Attributes:
      pairs: number of pairs.
      mse: squared error of the action, raw units, [A].
      mean_action_mse: the same for the mean action, which is the actions' variance, [A].
      simulator: None without a simulator.
      discriminator_auc: of a classifier that tells the pairs with inferred actions from training
        transitions. Generated transitions can hardly do better.
    """

    pairs: int
    mse: tuple[float, ...]
    mean_action_mse: tuple[float, ...]
    simulator: InferredActionErrors | None
    discriminator_auc: TwoSampleAuc | None


@dataclasses.dataclass(frozen=True)
class RealMeasures:
    """The real data's own numbers, which those of the synthetic data are compared with.

    Attributes:
      mean_reward: mean reward of the training transitions.
      step_size: mean squared change of the standardised state in one step.
      termination_rate: share of the training transitions that terminate.
      distribution: distances of held-out from training transitions.
      distances: quantiles of the distance from held-out (s, a) to the nearest training (s, a),
        standardised.
      simulator: None without a simulator.
    """

    mean_reward: float
    step_size: float | None
    termination_rate: float
    distribution: Distribution
    distances: Quantiles
    simulator: RealSimulatorErrors | None


@dataclasses.dataclass(frozen=True)
class SyntheticMeasures:
    """The numbers of the synthetic transitions.

    Attributes:
      transitions: number of transitions.
      windows: number of windows; None if the transitions are single.
      generated: number of transitions whose state and action are generated.
      mean_reward: mean reward of all transitions.
      step_size: see `RealMeasures`; like the next two, of the `generated` transitions.
      termination_rate: share of all transitions that terminate.
      distribution: distances from training transitions.
      distances: quantiles of the distance from (s, a) to the nearest training (s, a), standardised.
      novelty: median of these distances divided by the median of `RealMeasures.distances`.
      simulator: None without a simulator.
      calibration: None for a dataset.
      inverse_dynamics: None for a dataset.
    """

    transitions: int
    windows: int | None
    generated: int
    mean_reward: float
    step_size: float | None
    termination_rate: float
    distribution: Distribution
    distances: Quantiles
    novelty: float
    simulator: SimulatorErrors | None
    calibration: Calibration | None
    inverse_dynamics: InverseDynamicsErrors | None


@dataclasses.dataclass(frozen=True)
class About:
    """What was evaluated, and with which program.

    Attributes:
      synthetic: name of the synthetic transitions.
      reference: name of the real data.
      environment: Gymnasium id of the simulator.
      commit: git commit of the program's source; None outside a repository.
      versions: versions of the installed packages.
      seed: seed of samples and generation.
      notes: what a reader must know about the simulator.
      settings: settings of the generation, `config.rollout`; None for a dataset.
    """

    synthetic: str
    reference: str
    environment: str
    commit: str | None
    versions: Mapping[str, str]
    seed: int
    notes: tuple[str, ...]
    settings: Mapping[str, object] | None


@dataclasses.dataclass(frozen=True)
class QualityReport:
    """Contents of quality.json."""

    about: About
    real: RealMeasures
    synthetic: SyntheticMeasures

    def to_json(self) -> object:
        """The report as dictionaries, lists and scalars."""
        return codec.encode(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, object]) -> "QualityReport":
        """The report in the parsed content of a quality.json.

        Raises:
          UserError: `stored` is no such content.
        """
        return codec.decode(cls, old_layout.quality_report(stored))


@dataclasses.dataclass(frozen=True)
class AblationMetrics:
    """The numbers that an ablation compares; those of the simulator are None without one."""

    dynamics_error: float | None
    dynamics_error_median: float | None
    reward_error: float | None
    ks_mean: float | None
    discriminator_auc: float | None
    discriminator_auc_std: float | None
    step_size: float | None
    novelty: float | None
    termination_recall: float | None
    termination_precision: float | None
    generated_return: float | None


@dataclasses.dataclass(frozen=True)
class Point:
    """The metrics at one value of a setting."""

    value: float
    metrics: AblationMetrics


@dataclasses.dataclass(frozen=True)
class Series:
    """The metrics along one setting, all other settings being the run's own.

    Attributes:
      setting: name of the setting in `config.rollout`.
      own: the run's own value.
      points: measured values in ascending order, among them the run's own one.
    """

    setting: str
    own: float
    points: tuple[Point, ...]


@dataclasses.dataclass(frozen=True)
class AblationReport:
    """Contents of ablation.json.

    Attributes:
      about: what was evaluated.
      windows: number of generated windows for each value of a setting.
      repeats: metrics of the run's own settings, each with another seed.
      series: one for each setting.
    """

    about: About
    windows: int
    repeats: tuple[AblationMetrics, ...]
    series: tuple[Series, ...]

    def to_json(self) -> object:
        """The report as dictionaries, lists and scalars."""
        return codec.encode(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, object]) -> "AblationReport":
        """The report in the parsed content of an ablation.json or study.json.

        Raises:
          UserError: `stored` is no such content.
        """
        return codec.decode(cls, old_layout.ablation_report(stored))
