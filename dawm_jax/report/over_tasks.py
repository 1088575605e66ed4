"""Methods over several tasks: aggregates, and one method against others."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from dawm_jax.report import runs, statistics
from dawm_jax.report.runs import MethodResult


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """Normalised scores of one method over all of its own tasks.

    Attributes:
      method: label.
      tasks: number of tasks.
      seeds: fewest seeds of a task.
      by_task: mean over seeds on each task that any method has, None where this one has none.
      average: mean over its tasks of the mean over seeds.
      iqm: interquartile mean over the runs of all tasks.
      iqm_interval: its 95 % interval, None where a task has a single seed.
    """

    method: str
    tasks: int
    seeds: int
    by_task: tuple[float | None, ...]
    average: float
    iqm: float
    iqm_interval: statistics.Interval | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A method against another on the tasks of both, by normalised scores.

    Attributes:
      method: label.
      other: label.
      tasks: names of the tasks of both.
      seeds: fewest seeds of a method on a task.
      probability: probability of improvement.
      probability_interval: its 95 % interval, None where a task has a single seed.
      probability_by_task: probability of improvement on each of `tasks`.
      gain: gain of the average over the other's.
      gain_interval_of_tasks: interval of the gain, with tasks drawn too; None where `gain` has no
        interval and for a single task.
    """

    method: str
    other: str
    tasks: tuple[str, ...]
    seeds: int
    probability: float
    probability_interval: statistics.Interval | None
    probability_by_task: tuple[float, ...]
    gain: statistics.Gain
    gain_interval_of_tasks: statistics.Interval | None


def shared_tasks(results: Iterable[MethodResult], methods: Iterable[str]) -> tuple[str, ...]:
    """Tasks, in the order of `results`, on which every one of `methods` has scores."""
    results = list(results)
    by_method = [
        {r.task for r in results if r.method == method and r.last is not None} for method in methods
    ]
    tasks = dict.fromkeys(result.task for result in results)
    return tuple(task for task in tasks if all(task in own for own in by_method))


def scores(
    results: Iterable[MethodResult], method: str, tasks: Iterable[str]
) -> list[list[np.ndarray]]:
    """Last scores of a method: lists over tasks and world models of arrays over seeds."""
    found = {
        r.task: r.by_model(r.last) for r in results if r.method == method and r.last is not None
    }
    return [found[task] for task in tasks]


def scored_tasks(results: Iterable[MethodResult]) -> tuple[str, ...]:
    """Tasks on which any method has scores, in the order of `results`."""
    return tuple(dict.fromkeys(result.task for result in results if result.last is not None))


def widest(results: list[MethodResult]) -> tuple[tuple[str, ...], list[str]]:
    """The tasks of a method that has scores on the most, and all methods that have those."""
    methods = runs.method_names(results)
    tasks = max((shared_tasks(results, [name]) for name in methods), key=len, default=())
    return tasks, [name for name in methods if shared_tasks(results, [name]) == tasks]


def aggregates(results: list[MethodResult]) -> list[Aggregate]:
    """Every method over all of its own tasks. Methods with different tasks do not compare."""
    found, every_task = [], scored_tasks(results)
    for method in runs.method_names(results):
        tasks = shared_tasks(results, [method])
        if not tasks:
            continue
        models = scores(results, method, tasks)
        own = statistics.pooled(models)
        means = {task: float(one.mean()) for task, one in zip(tasks, own, strict=True)}
        iqm = statistics.interquartile_mean
        found.append(
            Aggregate(
                method=method,
                tasks=len(tasks),
                seeds=min(map(len, own)),
                by_task=tuple(map(means.get, every_task)),
                average=statistics.average(own),
                iqm=iqm(own),
                iqm_interval=statistics.bootstrap_interval(iqm, models),
            )
        )
    return found


def comparisons(results: list[MethodResult], reference: str) -> list[Comparison]:
    """The reference method with each agent against every comparable method.

    Comparable are results with the same agent, and those whose agent has no critic, after as
    many updates. A method that plans makes no updates and is comparable with every budget.

    Args:
      results: results of all methods.
      reference: registered name of the method to compare with the others.
    """
    by_name = {result.method: result for result in results}
    ordered = [by_name[name] for name in runs.method_names(results)]
    pairs = [
        (mine.method, other.method)
        for mine in ordered
        for other in ordered
        if mine.source == reference != other.source
        and (other.agent == mine.agent or not other.learns_values)
        and other.updates in (mine.updates, 0)
    ]
    return [_compare(results, *pair) for pair in pairs if shared_tasks(results, pair)]


def _compare(results: list[MethodResult], method: str, other: str) -> Comparison:
    tasks = shared_tasks(results, (method, other))
    models = scores(results, method, tasks), scores(results, other, tasks)
    mine, theirs = map(statistics.pooled, models)
    probability, of_tasks = statistics.probability_of_improvement, None
    if len(tasks) > 1:
        of_tasks = statistics.bootstrap_interval(statistics.gain, *models, resample_tasks=True)
    return Comparison(
        method=method,
        other=other,
        tasks=tasks,
        seeds=min(map(len, [*mine, *theirs])),
        probability=probability(mine, theirs),
        probability_interval=statistics.bootstrap_interval(probability, *models),
        probability_by_task=tuple(probability([x], [y]) for x, y in zip(mine, theirs, strict=True)),
        gain=statistics.gain_over(*models),
        gain_interval_of_tasks=of_tasks,
    )
