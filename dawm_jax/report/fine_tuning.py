"""The part of a comparison about fine-tuning in the environment: a table and gains."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from dawm_jax.envs.scores import mean_height
from dawm_jax.report import cells, runs, spreadsheet, statistics
from dawm_jax.report.runs import MethodResult, Run
from dawm_jax.runtime import markdown
from dawm_jax.runtime.results import Online

_SCORES = (
    "Normalised scores, or returns where a task has no references, over the environment steps of "
    "each seed: of the agents trained offline, of the last evaluation, and the mean height of the "
    "curve by the trapezoidal rule. Brackets hold the 95 % interval of the mean over seeds. The "
    "curve of agents that begin anew starts at their first evaluation. Durations hold for the "
    "run's device alone."
)
_GAINS = (
    "On the tasks of both that have scores, after as many environment steps: the gain of the first "
    "method's average over the other's (100 % times the ratio less one), with its 95 % interval by "
    "stratified bootstrap over seeds. Mean heights are over the steps at which both were evaluated."
)

# A result's values, [seeds], at environment steps [n].
Measure = Callable[[MethodResult, np.ndarray], np.ndarray]


def results(found: Iterable[Run]) -> list[MethodResult]:
    """The fine-tuned runs by their fine-tuning, runs of one method and task as one result."""
    return runs.group(run for run in runs.latest(found) if run.is_tuned)


def section(tuned: Sequence[MethodResult], *, reference: str) -> str:
    """The table and the gains.

    Args:
      tuned: what `results` gives.
      reference: registered name of the method to compare with the others.
    """
    parts = [_SCORES, table(tuned)]
    gains = list(_gain_rows(tuned, reference))
    if gains:
        parts += [_GAINS, markdown.table(("method", "against", "tasks", "last", "mean"), gains)]
    return "\n\n".join(parts)


def table(tuned: Sequence[MethodResult]) -> str:
    """One row for each method and task.

    The column of successes is left out where no environment calls an episode a success.
    """
    success = any(run.success is not None for result in tuned for run in result.runs)
    header = ["task", "method", "environment steps", "updates a step", "seeds"]
    header += ["before", "last", "mean of the curve", *(["success, last"] if success else [])]
    header += ["ms a step", "device"]
    return markdown.table(header, (_row(result, success=success) for result in tuned))


def _row(result: MethodResult, *, success: bool) -> list[str]:
    rate = _success(result)
    succeeded = "" if rate is None else f"{100.0 * rate:.0f} %"
    return [
        markdown.shorten_path(result.task),
        result.method,
        f"{_steps(result):,}",
        f"{_stages(result)[0].updates_per_step:,}",
        str(result.num_seeds),
        cells.mean_with_interval(result, _before(result)),
        cells.mean_with_interval(result, _at(result, -1)),
        cells.mean_with_interval(result, heights(result)),
        *([succeeded] if success else []),
        f"{1e3 * _seconds_per_step(result):.3g}",
        _devices(result),
    ]


def csv_text(tuned: Sequence[MethodResult]) -> str:
    """One row per method and task, unrounded; `unit` says whether values are scores or returns."""
    kinds = spreadsheet.columns("before", "last", "mean")
    steps = ["steps", "updates_per_step", "unit"]
    header = [*spreadsheet.IDENTITY, *steps, *kinds, "success", "seconds_per_step", "device"]
    return spreadsheet.text(header, map(_csv_row, tuned))


def _csv_row(result: MethodResult) -> list[spreadsheet.Cell]:
    rate = _success(result)
    values = (_before(result), _at(result, -1), heights(result))
    return [
        *spreadsheet.identity(result),
        _steps(result),
        _stages(result)[0].updates_per_step,
        "return" if result.last is None else "score",
        *(cell for own in values for cell in spreadsheet.mean_with_interval(result, own)),
        "" if rate is None else rate,
        _seconds_per_step(result),
        _devices(result),
    ]


def _success(result: MethodResult) -> float | None:
    """Share of the last evaluation's episodes that succeeded, if an episode can succeed."""
    rates = [run.success for run in result.runs if run.success is not None]
    return float(np.mean(rates)) if rates else None


def _seconds_per_step(result: MethodResult) -> float:
    return float(np.mean([stage.seconds_per_step for stage in _stages(result)]))


def _devices(result: MethodResult) -> str:
    return ", ".join(dict.fromkeys(run.results.device for run in result.runs))


# --- values of seeds ----------------------------------------------------------------------


def _before(result: MethodResult) -> np.ndarray | None:
    """Each seed's value before the first step, [seeds]; agents that begin anew have none."""
    return None if _stages(result)[0].fresh_agent else _at(result, 0)


def heights(result: MethodResult) -> np.ndarray:
    """Mean height of each seed's curve over all of its run's evaluations, [seeds]."""
    return np.concatenate([mean_height(_scores(run), run.evaluated) for run in result.runs])


def _scores(run: Run) -> np.ndarray:
    """[evaluations, seeds] scores, or returns where there are no references."""
    found = run.scores(run.curve)
    return run.curve if found is None else found


def _at(result: MethodResult, evaluation: int) -> np.ndarray:
    """Each seed's value at one of its run's evaluations, [seeds]."""
    return np.concatenate([_scores(run)[evaluation] for run in result.runs])


def _stages(result: MethodResult) -> list[Online]:
    return [run.results.online for run in result.runs if run.results.online is not None]


def _steps(result: MethodResult) -> int:
    return _stages(result)[0].final.at


# --- gains --------------------------------------------------------------------------------


def _gain_rows(tuned: Sequence[MethodResult], reference: str) -> Iterator[list[str]]:
    """Rows of the reference method against others with its agent or with agents that begin anew."""
    scored = [result for result in tuned if result.last is not None]
    mine = [result for result in scored if result.source == reference]
    others = [result for result in scored if result.source != reference]
    for method in runs.method_names(mine):
        for other in runs.method_names(others):
            pairs = [
                (own, rival)
                for own in mine
                for rival in others
                if (own.method, rival.method) == (method, other) and _is_comparable(own, rival)
            ]
            if pairs:
                gains = [_gain(pairs, measure) for measure in (at_the_end, over_shared_steps)]
                yield [method, other, str(len(pairs)), *gains]


def _is_comparable(own: MethodResult, rival: MethodResult) -> bool:
    same = (own.task, own.environment, _steps(own)) == (
        rival.task,
        rival.environment,
        _steps(rival),
    )
    return same and (own.agent == rival.agent or _stages(rival)[0].fresh_agent)


def at_the_end(result: MethodResult, shared: np.ndarray) -> np.ndarray:
    """Values of a result's seeds at the last of the environment steps `shared`, [seeds]."""
    return result.curve[:, result.evaluated == shared[-1]][:, 0]


def over_shared_steps(result: MethodResult, shared: np.ndarray) -> np.ndarray:
    """Mean height of each seed's curve over the environment steps `shared`, [seeds]."""
    return mean_height(result.curve[:, np.isin(result.evaluated, shared)].T, shared)


def _gain(pairs: Sequence[tuple[MethodResult, MethodResult]], measure: Measure) -> str:
    """Gain of the first results' average over the second ones' with its interval."""
    own_models, rival_models = [], []
    for own, rival in pairs:
        shared = np.intersect1d(own.evaluated, rival.evaluated)
        own_models.append(own.by_model(measure(own, shared)))
        rival_models.append(rival.by_model(measure(rival, shared)))
    return cells.gain(statistics.gain_over(own_models, rival_models))
