"""The part of a comparison about fine-tuning in the environment: a table, gains and a figure."""

import functools
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dawm_jax.report import cells, figures, runs, statistics
from dawm_jax.report.runs import MethodResult, Run
from dawm_jax.runtime import markdown

_SCORES = (
    "Normalised scores, or returns where a task has no references, over the environment steps of "
    "each seed: of the agents trained offline (step 0), of the last evaluation, and the mean "
    "height of the curve by the trapezoidal rule. Brackets hold the 95 % interval of the mean over "
    "seeds. Agents that begin anew were not evaluated at step 0: the cell is empty, and their "
    "curve begins with the agents of the shortest offline training. Durations hold for the run's "
    "device alone."
)
_GAINS = (
    "On the tasks of both, after as many environment steps: the gain of the first method's average "
    "over the other's (100 % times the ratio less one), with its 95 % interval by stratified "
    "bootstrap over seeds."
)


def section(found: Iterable[Run], *, reference: str) -> str:
    """The table and the gains.

    Args:
      found: finished runs; those that were not fine-tuned are left out.
      reference: registered name of the method to compare with the others.
    """
    stages = runs.fine_tuned(found)
    parts = [_SCORES, table(stages)]
    gains = list(_gain_rows(runs.group(stages), reference))
    if gains:
        parts += [_GAINS, markdown.table(("method", "against", "tasks", "last", "mean"), gains)]
    return "\n\n".join(parts)


def plot(found: Iterable[Run], path: pathlib.Path) -> None:
    """Learning curves over environment steps; no file where no run was fine-tuned."""
    figures.plot_curves(runs.group(runs.fine_tuned(found)), path, unit="environment steps")


def table(stages: Sequence[Run]) -> str:
    """One row for each method and task.

    Args:
      stages: what `runs.fine_tuned` gives.
    """
    header = ["task", "method", "environment steps", "updates a step", "seeds"]
    header += ["before", "last", "mean of the curve", "ms a step", "device"]
    groups = runs.pooled(stages).values()
    rows = zip(groups, runs.group(stages), strict=True)
    return markdown.table(header, (_row(members, result) for members, result in rows))


def _row(members: Sequence[Run], result: MethodResult) -> list[str]:
    online = [run.online for run in members if run.online is not None]
    steps = int(online[0].evaluated[-1])
    # The first turn of all copies makes no updates: nothing was lived through before it.
    per_step = round(online[0].updates / steps)
    cell = functools.partial(cells.mean_with_interval, result)
    return [
        markdown.shorten_path(result.task),
        result.method,
        f"{steps:,}",
        f"{per_step:,}",
        str(result.num_seeds),
        "" if online[0].fresh_agent else cell(result.curve[:, 0]),
        cell(result.curve[:, -1]),
        cell(height(result)),
        f"{1e3 * np.mean([one.seconds_per_step for one in online]):.0f}",
        ", ".join(dict.fromkeys(run.device for run in members)),
    ]


def height(result: MethodResult) -> np.ndarray:
    """Mean height of each seed's curve over its steps by the trapezoidal rule, [seeds]."""
    steps = result.evaluated
    return np.asarray(np.trapezoid(result.curve, steps, axis=1) / (steps[-1] - steps[0]))


def _gain_rows(results: Sequence[MethodResult], reference: str) -> Iterator[list[str]]:
    """Rows of the reference method against every other with its agent or an agent of its own."""
    mine = [result for result in results if result.source == reference]
    others = [result for result in results if result.source != reference]
    agents = {result.agent for result in mine}
    for method in runs.method_names(mine):
        own = {result.task: result for result in mine if result.method == method}
        (agent,) = {result.agent for result in own.values()}
        for other in runs.method_names(others):
            rivals = {result.task: result for result in others if result.method == other}
            (rival,) = {result.agent for result in rivals.values()}
            pairs = [
                (own[task], rivals[task])
                for task in own
                if task in rivals and own[task].evaluated[-1] == rivals[task].evaluated[-1]
            ]
            if pairs and (rival == agent or rival not in agents):
                last = [[result.curve[:, -1] for result in pair] for pair in pairs]
                mean = [[height(result) for result in pair] for pair in pairs]
                yield [method, other, str(len(pairs)), _gain(pairs, last), _gain(pairs, mean)]


def _gain(
    pairs: Sequence[tuple[MethodResult, MethodResult]], values: Sequence[Sequence[np.ndarray]]
) -> str:
    """Gain of the first results' average over the second ones' with its interval."""
    models = [
        [pair[side].by_model(value[side]) for pair, value in zip(pairs, values, strict=True)]
        for side in (0, 1)
    ]
    mine, others = map(statistics.pooled, models)
    interval = statistics.bootstrap_interval(statistics.gain, *models)
    return cells.gain(statistics.gain(mine, others), interval, min(map(len, [*mine, *others])))
