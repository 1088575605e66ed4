"""Finished runs, read from results.json, and their results by method and task."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dawm_jax.envs.scores import normalised_score
from dawm_jax.envs.tasks import References
from dawm_jax.runtime import results
from dawm_jax.runtime.results import Evaluation, Online, Results, Success
from dawm_jax.types import UserError, first_line, one_line

_log = logging.getLogger(__name__)

# The score of a seed is the mean of this many last evaluations: single evaluations of one seed
# differ by tens of points. TD3+BC's paper averages its last ten.
LAST = 5

# Settings that a task or its data ask for: a method has its own value on each task. Runs that
# differ in these alone are pooled.
_OF_THE_TASK = ("world_model.state_columns", "clip_actions")
# Last parts of the names of settings that change no number.
_UPKEEP = ("evaluation_interval", "checkpoint_steps", "log_steps")
# Settings that results.json repeats as `horizon` and `target_return`.
_REPEATED = ("planner.horizon", "planner.target_fraction")

Setting = str | int | float | bool


@dataclasses.dataclass(frozen=True, eq=False)
class OnlineStage:
    """What a run recorded of its fine-tuning in the environment.

    Attributes:
      evaluated: [evaluations] environment steps of each seed, increasing; 0 are the agents trained
        offline.
      curve: [evaluations, seeds] returns.
      seconds_per_step: time in which every seed makes one environment step, without compilation and
        evaluation.
      fresh_agent: whether the stage began with new agents in place of those trained offline.
      updates_per_step: gradient updates of the critics.
      settings: "online." and the name of a setting that changes the agents -> its value.
      success: see `Run.success`.
    """

    evaluated: np.ndarray
    curve: np.ndarray
    seconds_per_step: float
    fresh_agent: bool
    updates_per_step: int
    settings: Mapping[str, Setting]
    success: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One finished run by its offline training, or by its fine-tuning: see `latest`.

    Returns are undiscounted and averaged over a seed's episodes.

    Attributes:
      path: folder of the run.
      environment: Gymnasium id.
      environment_kwargs: keyword arguments of `gym.make` in words, "" for none.
      references: returns of scores 0 and 100 that the run used, or None.
      dataset: name of the dataset.
      dataset_digest: digest of the dataset's content, "" if unknown.
      method: registered name of the method.
      method_label: the method's name in tables.
      agent: registered name of the agent, "planner" for a method that plans.
      agent_label: the agent's name in tables.
      seed: root seed.
      updates: updates of the agents, 0 for a method that plans.
      real_fraction: share of real transitions in a minibatch.
      return_steps: steps of the return that the critics' target sums, of generated rows; 1 is
        one-step TD.
      real_return_steps: the same of real rows.
      top_fraction: share of the episodes, those of highest return, that is used.
      episodes: number of randomly drawn episodes that are used; 0 is all.
      learns_values: whether the agent has a critic.
      settings: values of the settings that a study may vary, by name.
      evaluated: [evaluations] updates at each evaluation, increasing; environment steps in a run
        by its fine-tuning.
      curve: [evaluations, seeds] returns.
      best: [seeds] returns at the evaluation with the highest mean return.
      success: share of the last evaluation's episodes that the environment calls a success; None
        where it calls none so.
      seconds: duration of the offline training, without compilation and evaluation.
      device: the devices in words.
      commit: git commit of the source, "" if unknown.
      online: the fine-tuning in the environment; None if there was none.
      is_tuned: whether the run stands here by its fine-tuning.
      shows_digest: whether `whole_task` tells this content of the dataset from another one.
    """

    path: pathlib.Path
    environment: str
    environment_kwargs: str
    references: References | None
    dataset: str
    dataset_digest: str
    method: str
    method_label: str
    agent: str
    agent_label: str
    seed: int
    updates: int
    real_fraction: float
    return_steps: int
    real_return_steps: int
    top_fraction: float
    episodes: int
    learns_values: bool
    settings: Mapping[str, Setting]
    evaluated: np.ndarray
    curve: np.ndarray
    best: np.ndarray
    success: float | None
    seconds: float
    device: str
    commit: str
    online: OnlineStage | None
    is_tuned: bool = False
    shows_digest: bool = False

    @property
    def num_seeds(self) -> int:
        """Number of seeds that trained together."""
        return self.curve.shape[1]

    @property
    def whole_task(self) -> str:
        """The dataset with all of its episodes and the environment's keyword arguments.

        A part of the digest follows a name that several contents have.
        """
        digest = f" [{self.dataset_digest[:8]}]" if self.shows_digest else ""
        changes = f", {self.environment_kwargs}" if self.environment_kwargs else ""
        return f"{self.dataset}{digest}{changes}"

    @property
    def task(self) -> str:
        """`whole_task`, and how many of the episodes are used unless all are."""
        return f"{self.whole_task}, {self.episodes} episodes" if self.episodes else self.whole_task

    @property
    def source(self) -> str:
        """What the agent learnt from: the method's name, or "real"."""
        return "real" if self.real_fraction == 1.0 else self.method

    @property
    def label(self) -> str:
        """The method, the agent, the shares of data and the returns in words.

        For example "DAWM-TD3+BC, 50 % real", "DWM-IQL, 0 % real", "IQL" and "10 % BC" (real data),
        "IQL, 7-step returns", "Decision Diffuser" (its plans have no minibatches), "IQL, online".
        """
        real, plans = self.real_fraction == 1.0, self.updates == 0
        if plans:
            text = self.method_label
        else:
            text = self.agent_label if real else f"{self.method_label}-{self.agent_label}"
        if self.top_fraction < 1.0:
            text = f"{100 * self.top_fraction:g} % {text}"
        if not real and not plans:
            text = f"{text}, {100 * self.real_fraction:g} % real"
        text = f"{text}{self._returns}"
        return f"{text}, online" if self.is_tuned else text

    @property
    def _returns(self) -> str:
        """The steps of the returns in words, "" for one-step targets."""
        generated, real = self.return_steps, self.real_return_steps
        generated = real if self.real_fraction == 1.0 else generated
        real = generated if self.real_fraction == 0.0 else real
        if generated == real:
            return f", {real}-step returns" if real > 1 else ""
        return f", {generated}-step returns of generated and {real}-step of real rows"


# --- reading ------------------------------------------------------------------------------


def load(paths: Iterable[str | pathlib.Path]) -> list[Run]:
    """Finished runs, sorted by dataset and label, agents on real data last.

    Args:
      paths: run folders, results.json files, or folders of run folders. A path without
        results is skipped with a warning.

    Raises:
      UserError: a path does not exist, a results.json is damaged, or no path has results.
    """
    paths = list(paths)
    found = dict.fromkeys(file for path in paths for file in _results_files(pathlib.Path(path)))
    if not found:
        got = one_line(", ".join(map(str, paths)))
        raise UserError(
            f"no finished run in {got}: expected a results.json in at least one folder; "
            "wait until a run has finished or name other folders"
        )
    runs = _tell_datasets_apart([_read(path) for path in found])
    return sorted(runs, key=lambda run: (run.task, *_order(run), run.label))


def _tell_datasets_apart(runs: list[Run]) -> list[Run]:
    """Shows the digest of a dataset that runs know with different contents."""
    digests: dict[str, set[str]] = {}
    for run in runs:
        digests.setdefault(run.dataset, set()).add(run.dataset_digest)
    several = {name for name, found in digests.items() if len(found - {""}) > 1}
    for name in sorted(several):
        _log.warning(
            "runs on %s were trained on different data of this name: they are told apart", name
        )
    return [
        dataclasses.replace(run, shows_digest=run.dataset in several and bool(run.dataset_digest))
        for run in runs
    ]


def _order(run: "Run | MethodResult") -> tuple[bool, str, str]:
    """Methods by label, agents by label; agents on real data last."""
    real = run.source == "real"
    return real, "" if real else run.method_label.casefold(), run.agent_label.casefold()


def _results_files(path: pathlib.Path) -> list[pathlib.Path]:
    """results.json files of one argument, with a warning for every unfinished run."""
    if not path.exists():
        raise UserError(f"{path} does not exist: expected a run's folder or its results.json")
    if path.is_file() and path.suffix == ".json":
        return [path]
    if (path / "results.json").is_file():
        return [path / "results.json"]
    folders = sorted(child for child in path.glob("*/") if path.is_dir())
    found = [folder / "results.json" for folder in folders]
    found = [file for file in found if file.is_file()]
    started = {name.parent for name in path.glob("*/config.json")}
    skipped = sorted(started - {file.parent for file in found})
    for folder in skipped if found else [path]:
        _log.warning("%s has no results.json: skipped", folder)
    return found


def _read(path: pathlib.Path) -> Run:
    try:
        return _run(results.read(path), path.parent)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: expected a run's results.json, got {first_line(error)}; "
            "leave this run out or train it again"
        ) from error


def _run(found: Results, folder: pathlib.Path) -> Run:
    arguments = sorted(_leaves(found.environment_kwargs, ""))
    return Run(
        path=folder,
        environment=found.environment,
        environment_kwargs=", ".join(f"{name}={value}" for name, value in arguments),
        references=None if found.references is None else References(*found.references),
        dataset=found.dataset,
        dataset_digest=found.dataset_digest,
        method=found.method,
        method_label=found.method_label,
        agent=found.agent,
        agent_label=found.agent_label,
        seed=found.seed,
        updates=found.updates,
        real_fraction=found.real_fraction,
        return_steps=found.return_steps,
        real_return_steps=found.real_return_steps,
        top_fraction=found.top_fraction,
        episodes=found.episodes,
        learns_values=found.value_check is not None,
        settings=_settings(found),
        evaluated=_evaluated(found.curve),
        curve=_returns(found.curve),
        best=found.best.returns.values,
        success=_last_rate(found.success),
        seconds=found.training_seconds,
        device=found.device,
        commit=found.commit or "",
        online=None if found.online is None else _online(found, found.online),
    )


def _evaluated(curve: Iterable[Evaluation]) -> np.ndarray:
    return np.array([point.at for point in curve])


def _returns(curve: Iterable[Evaluation]) -> np.ndarray:
    """[evaluations, seeds]."""
    return np.stack([point.returns.values for point in curve])


def _last_rate(success: Success | None) -> float | None:
    return None if success is None else success.last.mean


def _online(found: Results, online: Online) -> OnlineStage:
    settings = online.settings
    # Without generated rows no model is refitted.
    refits = found.real_fraction != 1.0 and settings.get("generated_fraction") != 0.0
    without = () if refits else ("refit_",)
    shown = {
        name: value
        for name, value in _leaves(settings, "")
        if name not in _UPKEEP and not name.startswith(without)
    }
    return OnlineStage(
        evaluated=_evaluated(online.curve),
        curve=_returns(online.curve),
        seconds_per_step=online.seconds_per_step,
        fresh_agent=online.fresh_agent,
        updates_per_step=online.updates_per_step,
        settings={f"online.{name}": value for name, value in shown.items()},
        success=_last_rate(online.success),
    )


def _settings(found: Results) -> dict[str, Setting]:
    """What a study may vary. An agent on real data alone generates nothing."""
    varied = {
        name: value
        for name, value in _leaves(found.settings, "")
        if name not in (*_OF_THE_TASK, *_REPEATED) and name.rpartition(".")[2] not in _UPKEEP
    }
    if found.real_fraction == 1.0:
        return {**varied, "updates": found.updates}
    if found.updates:  # a method that plans does not read this section
        varied |= _leaves(found.rollout, "")
    target = dataclasses.asdict(found.target_return)
    for name, value in _leaves(target, "target_"):
        varied.setdefault(name, value)
    return {**varied, "horizon": found.horizon, "updates": found.updates}


def _leaves(section: Mapping[str, object], prefix: str) -> Iterable[tuple[str, Setting]]:
    """Values of a nested section by dotted name."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, Setting) else str(value)


# --- results by method and task -----------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class MethodResult:
    """One method on one task: the seeds of all its runs.

    Attributes:
      task: see `Run.task`.
      whole_task: see `Run.whole_task`.
      episodes: number of randomly drawn episodes that are used; 0 is all.
      environment: Gymnasium id.
      method: label, with the settings in which the runs at hand differ.
      label: label without these settings.
      varied: these settings by name.
      source: what the agent learnt from: a method's name, or "real".
      method_label: the method's name in tables.
      agent: registered name of the agent.
      agent_label: the agent's name in tables.
      learns_values: whether the agent has a critic.
      real_fraction: share of real transitions in a minibatch.
      top_fraction: share of the episodes that is used.
      updates: gradient updates of the agents.
      last: [seeds] normalised scores, each the mean of the last `LAST` evaluations, or None
        where D4RL has no reference returns.
      best: [seeds] normalised scores at each run's best evaluation, or None likewise.
      last_return: [seeds] as `last`, but undiscounted returns.
      best_return: [seeds] as `best`, but undiscounted returns.
      model_seeds: number of seeds of each world model, in the order of the arrays over seeds;
        agents on real data have none, and all their seeds count as those of one.
      evaluated: [evaluations] updates at which all its runs were evaluated.
      curve: [seeds, evaluations] scores at these updates, returns without reference returns.
      runs: the runs.
    """

    task: str
    whole_task: str
    episodes: int
    environment: str
    method: str
    label: str
    varied: Mapping[str, Setting]
    source: str
    method_label: str
    agent: str
    agent_label: str
    learns_values: bool
    real_fraction: float
    top_fraction: float
    updates: int
    last: np.ndarray | None
    best: np.ndarray | None
    last_return: np.ndarray
    best_return: np.ndarray
    model_seeds: tuple[int, ...]
    evaluated: np.ndarray
    curve: np.ndarray
    runs: tuple[Run, ...]

    @property
    def num_seeds(self) -> int:
        """Number of seeds of all its runs."""
        return len(self.last_return)

    def by_model(self, values: np.ndarray) -> list[np.ndarray]:
        """An array over seeds, [seeds, ...], as one array for each world model."""
        return np.split(values, np.cumsum(self.model_seeds)[:-1])


def group(runs: Iterable[Run]) -> list[MethodResult]:
    """Runs of the same method, task, settings and updates as one result each; see `pooled`."""
    runs = list(runs)
    varied = _varied(runs)
    return [_result(members, varied) for members in pooled(runs).values()]


def latest(runs: Iterable[Run]) -> list[Run]:
    """The runs, those that were fine-tuned by their fine-tuning.

    Their `evaluated`, `curve`, `best` and `success` are those of the steps in the environment.
    `settings` holds what a study may vary in either stage.
    """
    return [run if run.online is None else _tuned(run, run.online) for run in runs]


def _tuned(run: Run, online: OnlineStage) -> Run:
    return dataclasses.replace(
        run,
        settings={**run.settings, **online.settings},
        evaluated=online.evaluated,
        curve=online.curve,
        best=online.curve[online.curve.mean(axis=1).argmax()],
        success=online.success,
        is_tuned=True,
    )


def pooled(runs: Iterable[Run]) -> dict[tuple[str, str, str], list[Run]]:
    """Runs of the same method, task, settings and updates, by (task, environment, method).

    Runs with different root seeds are pooled; each has a world model of its own. A second run with
    the same root seed is left out with a warning. The method is the label of `MethodResult.method`.
    """
    runs = list(runs)
    varied = _varied(runs)
    groups: dict[tuple[str, str, str], dict[int, Run]] = {}
    for run in runs:
        key = run.task, run.environment, named(run.label, _own(run, varied))
        seeds = groups.setdefault(key, {})
        if run.seed in seeds:
            _log.warning("%s repeats %s: left out", run.path, seeds[run.seed].path)
        seeds.setdefault(run.seed, run)
    return {key: list(seeds.values()) for key, seeds in groups.items()}


def by_world_model(members: Sequence[Run], values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Arrays over the seeds of each world model of runs that are pooled.

    Agents on real data have no world model: all their seeds count as those of one.

    Args:
      members: runs of one method.
      values: of each run, [seeds, ...].
    """
    return [np.concatenate(values)] if members[0].source == "real" else list(values)


def named(label: str, varied: Mapping[str, Setting]) -> str:
    """A label followed by settings, for example "DAWM-TD3+BC, horizon 7"."""
    return ", ".join([label, *(f"{name} {value}" for name, value in varied.items())])


def _own(run: Run, varied: set[tuple[str, str]]) -> dict[str, Setting]:
    return {name: value for name, value in run.settings.items() if (run.label, name) in varied}


def _varied(runs: list[Run]) -> set[tuple[str, str]]:
    """(label, setting) where runs of this label differ in this setting."""
    values: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        for name, value in run.settings.items():
            values.setdefault((run.label, name), set()).add(str(value))
    return {key for key, found in values.items() if len(found) > 1}


def _result(runs: list[Run], varying: set[tuple[str, str]]) -> MethodResult:
    first = runs[0]
    last = np.concatenate([run.curve[-LAST:].mean(axis=0) for run in runs])
    best = np.concatenate([run.best for run in runs])
    varied = _own(first, varying)
    evaluated = functools.reduce(np.intersect1d, [run.evaluated for run in runs])
    curve = np.concatenate([run.curve[np.isin(run.evaluated, evaluated)].T for run in runs])
    curve_scores = normalised_score(first.environment, curve, first.references)
    return MethodResult(
        task=first.task,
        whole_task=first.whole_task,
        episodes=first.episodes,
        environment=first.environment,
        method=named(first.label, varied),
        label=first.label,
        varied=varied,
        source=first.source,
        method_label=first.method_label,
        agent=first.agent,
        agent_label=first.agent_label,
        learns_values=first.learns_values,
        real_fraction=first.real_fraction,
        top_fraction=first.top_fraction,
        updates=first.updates,
        last=normalised_score(first.environment, last, first.references),
        best=normalised_score(first.environment, best, first.references),
        last_return=last,
        best_return=best,
        model_seeds=tuple(map(len, by_world_model(runs, [run.best for run in runs]))),
        evaluated=evaluated,
        curve=curve if curve_scores is None else curve_scores,
        runs=tuple(runs),
    )


def method_names(results: Iterable[MethodResult]) -> list[str]:
    """Labels of all methods: by method and agent, agents on real data last."""
    ordered = sorted(results, key=lambda result: (*_order(result), result.label))
    return list(dict.fromkeys(result.method for result in ordered))


# --- studies ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Series:
    """Results of one task that differ in one setting alone, sorted by its value."""

    label: str
    results: list[MethodResult]


def studied(results: Iterable[MethodResult]) -> str | None:
    """The numeric setting that takes the most values, None if no setting takes several."""
    values: dict[str, set[float]] = {}
    for result in results:
        for name, value in result.varied.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault(name, set()).add(value)
    return max(values, key=lambda name: len(values[name]), default=None)


def series(results: Iterable[MethodResult], setting: str) -> list[Series]:
    """One task's results as series along `setting`.

    A result without this setting is a series by itself.
    """
    found: dict[str, list[MethodResult]] = {}
    for result in results:
        others = {name: value for name, value in result.varied.items() if name != setting}
        found.setdefault(named(result.label, others), []).append(result)

    def position(result: MethodResult) -> float:
        value = result.varied.get(setting, 0)
        return float(value) if isinstance(value, int | float) else 0.0

    return [Series(label, sorted(members, key=position)) for label, members in found.items()]
