"""Curves of a method's score against the size of a change, and the area below them."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from dawm_jax.envs.scores import mean_height
from dawm_jax.envs.tasks import References
from dawm_jax.report import runs, statistics
from dawm_jax.report.runs import Run
from dawm_jax.report.statistics import Interval
from dawm_jax.robustness.sweeps import Sweep


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """One method on one task along one sweep.

    Attributes:
      task: name of the dataset.
      environment: Gymnasium id.
      method: label of the method.
      sweep: the change.
      references: returns of scores 0 and 100; None: the values are returns.
      models: of each world model, means over episodes [seeds, values of the sweep].
    """

    task: str
    environment: str
    method: str
    sweep: Sweep
    references: References | None
    models: tuple[np.ndarray, ...]

    @property
    def num_seeds(self) -> int:
        """Seeds of all world models."""
        return sum(map(len, self.models))

    @property
    def mean(self) -> np.ndarray:
        """Means over seeds, [values]."""
        return statistics.learning_curve(statistics.pooled([self.models]))

    @property
    def band(self) -> tuple[np.ndarray, np.ndarray] | None:
        """95 % intervals of the means by bootstrap over seeds, [values] each; None for one seed."""
        return statistics.bootstrap_band(statistics.learning_curve, [self.models])

    @property
    def area(self) -> float:
        """`normalised_area` of the mean."""
        return normalised_area(self.mean, self.sweep)

    @property
    def area_interval(self) -> Interval | None:
        """Its 95 % interval by bootstrap over seeds; None for one seed."""

        def area(scores: statistics.Scores) -> float:
            return normalised_area(statistics.learning_curve(scores), self.sweep)

        return statistics.bootstrap_interval(area, [self.models])

    @property
    def kept(self) -> float | None:
        """The area as a share of the unchanged value; None where the latter is not positive."""
        unchanged = float(self.mean[self.sweep.values.index(self.sweep.unchanged)])
        return self.area / unchanged if unchanged > 0 else None


def normalised_area(values: np.ndarray, sweep: Sweep) -> float:
    """The area below a curve divided by the width of its axis: a mean along the axis.

    The axis is the logarithm of a factor, or the size of the noise. Between values the curve is a
    straight line on this axis (trapezoidal rule), so that values that lie close together do not
    count more than others.

    Args:
      values: [values of the sweep].
      sweep: the change.
    """
    axis = np.log(sweep.values) if sweep.is_factor else np.asarray(sweep.values)
    return float(mean_height(values, axis))


def curves(
    found: Sequence[Run],
    returns: Mapping[Run, Mapping[str, np.ndarray]],
    sweeps: Sequence[Sweep],
) -> list[Curve]:
    """The curves of all methods; runs of one method with other root seeds are pooled.

    Args:
      found: finished runs.
      returns: of each run by the key of a level, [seeds, episodes].
      sweeps: the changes.
    """
    return [
        _curve(task, environment, method, members, returns, sweep)
        for (task, environment, method), members in runs.pooled(found).items()
        for sweep in sweeps
    ]


def _curve(
    task: str,
    environment: str,
    method: str,
    members: Sequence[Run],
    returns: Mapping[Run, Mapping[str, np.ndarray]],
    sweep: Sweep,
) -> Curve:
    models = []
    for run in members:
        means = [returns[run][level.key].mean(axis=1) for level in sweep.levels]
        values = np.stack(means, axis=1)
        scores = run.scores(values)
        models.append(values if scores is None else scores)
    by_model = runs.by_world_model(members, models)
    return Curve(task, environment, method, sweep, members[0].references, tuple(by_model))
