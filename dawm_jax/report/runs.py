"""Runs by method and task, from their results.json alone."""

import json
import logging
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from dawm_jax.envs import evaluate
from dawm_jax.report import statistics as aggregate
from dawm_jax.types import UserError, first_line

_log = logging.getLogger(__name__)

_METHODS = {
    "dawm": "DAWM",
    "dwm": "DWM",
    "joint": "Joint",
    "one_step": "One-step",
    "decision_diffuser": "Decision Diffuser",
}
# Evaluations at a run's end whose mean is its score: a single one swings from one to the next.
# TD3+BC reports its last ten.
LAST = 5
_AGENTS = {"td3_bc": "TD3+BC", "iql": "IQL", "bc": "BC"}
# What of `rollout` a study may vary.
_VARIED = (
    "target_rule",
    "target_factor",
    "guidance",
    "sampling_steps",
    "temperature",
    "windows_per_round",
    "real_actions_only",
)


class Entry(NamedTuple):
    """One method on one task: the seeds of all its runs.

    Attributes:
      task: dataset's name.
      environment: Gymnasium id.
      method: label; names the settings in which the runs at hand differ.
      varied: those settings by name.
      source: what the agent learnt from: a method's name, or "real".
      agent: td3_bc | iql | bc | planner.
      updates: of the agents.
      last: [seeds] normalised scores, the mean of the last evaluations (`LAST`), or None
        without references.
      best: the same, of each run's best evaluation.
      last_return: [seeds] raw.
      best_return: [seeds] raw.
    """

    task: str
    environment: str
    method: str
    varied: dict[str, Any]
    source: str
    agent: str
    updates: int
    last: np.ndarray | None
    best: np.ndarray | None
    last_return: np.ndarray
    best_return: np.ndarray


def load(paths: Iterable[str | pathlib.Path]) -> list[dict[str, Any]]:
    """What results.json files hold, sorted by dataset and method.

    Args:
      paths: of files, of run folders, or of folders that hold run folders.

    Raises:
      UserError: a path has no results, or a file is not of a run.
    """
    files: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        found = [path] if path.is_file() else sorted(path.glob("results.json"))
        found = found or sorted(path.glob("*/results.json"))
        if not found:
            raise UserError(f"{path}: expected a results.json in it, or run folders with one")
        files += [file for file in found if file not in files]
    runs = [_read(file) for file in files]
    return sorted(runs, key=lambda run: (run["dataset"], _rank(run), label(run)))


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text())
        run["curve"][-1]["return_per_seed"], run["best"], run["dataset"], run["agent"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a run's results.json ({first_line(error)})") from error
    # Fields that are younger than some runs.
    return {"method": "dawm", "top_fraction": 1.0, "rollout": {}, "path": str(path.parent), **run}


def _rank(run: dict[str, Any]) -> tuple[int, int]:
    """DAWM first, then its rivals, then agents on real data."""
    agents = ("td3_bc", "iql", "bc")
    agent = agents.index(run["agent"]) if run["agent"] in agents else len(agents)
    methods = list(_METHODS)
    real = run["real_fraction"] == 1.0
    return (len(methods) if real else methods.index(run["method"])), agent


def label(run: dict[str, Any]) -> str:
    """A method's name for people: DAWM-TD3+BC, 10 % BC, IQL, ..."""
    if run["method"] == "decision_diffuser":
        return _METHODS["decision_diffuser"]
    share, agent = run["real_fraction"], _AGENTS.get(run["agent"], run["agent"])
    text = agent if share == 1.0 else f"{_METHODS.get(run['method'], run['method'])}-{agent}"
    if run["top_fraction"] < 1.0:
        text = f"{100 * run['top_fraction']:g} % {text}"
    return text if share in (0.0, 1.0) else f"{text}, {100 * share:g} % real"


def settings(run: dict[str, Any]) -> dict[str, Any]:
    """What a study may vary beside the method."""
    if run["real_fraction"] == 1.0:  # generates nothing
        return {"updates": run["updates"]}
    own = {name: run["rollout"][name] for name in _VARIED if name in run["rollout"]}
    own.setdefault("target_rule", run["target_return"]["rule"])
    own.setdefault("target_factor", run["target_return"]["factor"])
    if "horizon" in run:
        own["horizon"] = run["horizon"]
    return {**own, "updates": run["updates"]}


def group(runs: list[dict[str, Any]]) -> list[Entry]:
    """Runs of the same method, task, settings and updates as one entry each.

    Runs with another root seed add their seeds; a second run with the same one is left out.
    """
    varied = _varied(runs)
    groups: dict[tuple, dict[int, dict[str, Any]]] = {}
    for run in runs:
        key = run["dataset"], run["environment"], named(label(run), _own(run, varied))
        seeds = groups.setdefault(key, {})
        if run["seed"] in seeds:
            first = seeds[run["seed"]]["path"]
            _log.warning("%s repeats %s: left out", run["path"], first)
        seeds.setdefault(run["seed"], run)
    return [_entry(key, list(seeds.values()), varied) for key, seeds in groups.items()]


def named(text: str, varied: dict[str, Any]) -> str:
    """A label with the settings that tell it from others."""
    return ", ".join([text, *(f"{name} {value}" for name, value in varied.items())])


def _own(run: dict[str, Any], varied: set[str]) -> dict[str, Any]:
    return {name: value for name, value in settings(run).items() if name in varied}


def _varied(runs: list[dict[str, Any]]) -> set[str]:
    """Settings in which runs of one label differ."""
    values: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        for name, value in settings(run).items():
            values.setdefault((label(run), name), set()).add(str(value))
    return {name for (_, name), some in values.items() if len(some) > 1}


def _entry(key: tuple, runs: list[dict[str, Any]], varied: set[str]) -> Entry:
    task, environment, method = key
    curves = [[point["return_per_seed"] for point in run["curve"][-LAST:]] for run in runs]
    last = np.concatenate([np.mean(curve, axis=0) for curve in curves])
    best = np.concatenate([run["best"]["return_per_seed"] for run in runs])
    score = lambda returns: evaluate.normalised_score(environment, returns)
    source = "real" if runs[0]["real_fraction"] == 1.0 else runs[0]["method"]
    return Entry(
        task=task,
        environment=environment,
        method=method,
        varied=_own(runs[0], varied),
        source=source,
        agent=runs[0]["agent"],
        updates=runs[0]["updates"],
        last=score(last),
        best=score(best),
        last_return=last,
        best_return=best,
    )


class Line(NamedTuple):
    """Entries of one task that differ in one setting alone, by its value."""

    label: str
    entries: list[Entry]


def studied(entries: list[Entry]) -> str | None:
    """The numeric setting that takes the most values, if one takes several."""
    values: dict[str, set[float]] = {}
    for entry in entries:
        for name, value in entry.varied.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault(name, set()).add(value)
    return max(values, key=lambda name: len(values[name]), default=None)


def lines(entries: list[Entry], setting: str) -> list[Line]:
    """One task's entries as lines along `setting`; what does not have it is a line of its own."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        others = {name: value for name, value in entry.varied.items() if name != setting}
        plain = entry.method.removesuffix(named("", entry.varied))
        found.setdefault(named(plain, others), []).append(entry)
    return [
        Line(text, sorted(some, key=lambda entry: entry.varied.get(setting, 0)))
        for text, some in found.items()
    ]


class Aggregate(NamedTuple):
    """One method over the tasks that all compared methods have, normalised scores."""

    method: str
    tasks: int
    average: float
    iqm: float
    iqm_interval: tuple[float, float] | None


def shared_tasks(entries: list[Entry], methods: Iterable[str]) -> list[str]:
    """Tasks with scores of every one of `methods`, in order."""
    of = {m: {e.task for e in entries if e.method == m and e.last is not None} for m in methods}
    tasks = list(dict.fromkeys(entry.task for entry in entries))
    return [task for task in tasks if all(task in some for some in of.values())]


def scores(entries: list[Entry], method: str, tasks: list[str]) -> list[np.ndarray]:
    """Last scores of a method, a list over tasks of arrays over seeds."""
    found = {e.task: e.last for e in entries if e.method == method and e.last is not None}
    return [found[task] for task in tasks]


def aggregates(entries: list[Entry]) -> list[Aggregate]:
    """Every method over all of its own tasks; only equal sets of tasks can be compared."""
    results = []
    for method in dict.fromkeys(entry.method for entry in entries):
        tasks = shared_tasks(entries, [method])
        if tasks:
            own = scores(entries, method, tasks)
            iqm = aggregate.interquartile_mean
            interval = aggregate.bootstrap_interval(iqm, own)
            results.append(
                Aggregate(method, len(tasks), aggregate.average(own), iqm(own), interval)
            )
    return results


class Duel(NamedTuple):
    """A method against another on the tasks of both, normalised scores.

    Attributes:
      gain: of the averages, per cent of the other's; None where that is not positive.
    """

    method: str
    other: str
    tasks: int
    probability: float
    interval: tuple[float, float] | None
    gain: float | None


def duels(entries: list[Entry]) -> list[Duel]:
    """DAWM against every other method with its agent, and against those that need no critic.

    Only after as many updates; a planner makes none.
    """
    first = {entry.method: entry for entry in entries}
    pairs = [
        (mine.method, other.method)
        for mine in first.values()
        for other in first.values()
        if mine.source == "dawm" != other.source
        and other.agent in (mine.agent, "bc", "planner")
        and other.updates in (mine.updates, 0)
    ]
    return [_duel(entries, *pair) for pair in pairs if shared_tasks(entries, pair)]


def _duel(entries: list[Entry], method: str, other: str) -> Duel:
    tasks = shared_tasks(entries, (method, other))
    mine, theirs = scores(entries, method, tasks), scores(entries, other, tasks)
    improvement = aggregate.probability_of_improvement
    average, base = aggregate.average(mine), aggregate.average(theirs)
    return Duel(
        method=method,
        other=other,
        tasks=len(tasks),
        probability=improvement(mine, theirs),
        interval=aggregate.bootstrap_interval(improvement, mine, theirs),
        gain=100.0 * (average / base - 1.0) if base > 0 else None,
    )
