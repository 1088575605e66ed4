"""Finished runs, read from results.json, and their results by method and task."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dawm_jax.envs.scores import normalised_score, reference_returns
from dawm_jax.envs.tasks import References
from dawm_jax.runtime import results
from dawm_jax.runtime.results import Online, Results
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
class Run:
    """One finished run by its offline training, or by its fine-tuning: see `latest`.

    Returns are undiscounted and averaged over a seed's episodes.

    Attributes:
      path: folder of the run.
      results: what the run says of itself.
      is_tuned: whether the run stands here by its fine-tuning.
      shows_digest: whether `whole_task` tells this content of the dataset from another one.
    """

    path: pathlib.Path
    results: Results
    is_tuned: bool = False
    shows_digest: bool = False

    @functools.cached_property
    def settings(self) -> dict[str, Setting]:
        """Values of the settings that a study may vary, by name; of both stages if tuned."""
        online = _online_settings(self.results) if self.is_tuned else {}
        return {**_settings(self.results), **online}

    @property
    def _stage(self) -> Results | Online:
        """The stage by which the run stands here."""
        online = self.results.online
        return online if self.is_tuned and online is not None else self.results

    @functools.cached_property
    def evaluated(self) -> np.ndarray:
        """[evaluations] updates at each evaluation, increasing; environment steps if tuned."""
        return np.array([evaluation.at for evaluation in self._stage.curve])

    @functools.cached_property
    def curve(self) -> np.ndarray:
        """[evaluations, seeds] returns."""
        return np.stack([evaluation.returns.values for evaluation in self._stage.curve])

    @property
    def best(self) -> np.ndarray:
        """[seeds] returns at the evaluation with the highest mean return."""
        return self.curve[self.curve.mean(axis=1).argmax()]

    @property
    def references(self) -> References | None:
        """Returns of scores 0 and 100: the task's, else those of the data."""
        of_data = self.results.references
        return reference_returns(
            self.results.environment, None if of_data is None else References(*of_data)
        )

    def scores(self, returns: np.ndarray) -> np.ndarray | None:
        """Normalised scores of this run's returns, None without references."""
        return normalised_score(self.results.environment, returns, self.references)

    @property
    def success(self) -> float | None:
        """Share of the last evaluation's episodes that the environment calls a success.

        None where the environment calls no episode a success.
        """
        found = self._stage.success
        return None if found is None else found.last.mean

    @property
    def num_seeds(self) -> int:
        """Number of seeds that trained together."""
        return self.curve.shape[1]

    @property
    def whole_task(self) -> str:
        """The dataset with all of its episodes and the environment's keyword arguments.

        A part of the digest follows a name that several contents have.
        """
        found = self.results
        shows_digest = self.shows_digest and found.dataset_digest
        digest = f" [{found.dataset_digest[:8]}]" if shows_digest else ""
        arguments = sorted(_leaves(found.environment_kwargs, ""))
        changes = "".join(f", {name}={value}" for name, value in arguments)
        return f"{found.dataset}{digest}{changes}"

    @property
    def task(self) -> str:
        """`whole_task`, and how many of the episodes are used unless all are."""
        episodes = self.results.episodes
        return f"{self.whole_task}, {episodes} episodes" if episodes else self.whole_task

    @property
    def source(self) -> str:
        """What the agent learnt from: the method's name, or "real"."""
        return "real" if self.results.real_fraction == 1.0 else self.results.method

    @property
    def label(self) -> str:
        """The method, the agent, the shares of data and the returns in words.

        For example "DAWM-TD3+BC, 50 % real", "DWM-IQL, 0 % real", "IQL" and "10 % BC" (real data),
        "IQL, 7-step returns", "Decision Diffuser" (its plans have no minibatches), "IQL, online".
        """
        found = self.results
        real, plans = found.real_fraction == 1.0, found.updates == 0
        if plans:
            text = found.method_label
        else:
            text = found.agent_label if real else f"{found.method_label}-{found.agent_label}"
        if found.top_fraction < 1.0:
            text = f"{100 * found.top_fraction:g} % {text}"
        if not real and not plans:
            text = f"{text}, {100 * found.real_fraction:g} % real"
        text = f"{text}{_returns_in_words(found)}"
        return f"{text}, online" if self.is_tuned else text


def _returns_in_words(found: Results) -> str:
    """The steps of the returns, "" for one-step targets."""
    generated, real = found.return_steps, found.real_return_steps
    generated = real if found.real_fraction == 1.0 else generated
    real = generated if found.real_fraction == 0.0 else real
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
    return sorted(runs, key=_position)


def _position(run: Run) -> tuple[str, bool, str, str, str]:
    found = run.results
    order = _order(run.source == "real", found.method_label, found.agent_label)
    return (run.task, *order, run.label)


def _tell_datasets_apart(runs: list[Run]) -> list[Run]:
    """Shows the digest of a dataset that runs know with different contents."""
    digests: dict[str, set[str]] = {}
    for run in runs:
        if run.results.dataset_digest:
            digests.setdefault(run.results.dataset, set()).add(run.results.dataset_digest)
    several = {name for name, found in digests.items() if len(found) > 1}
    for name in sorted(several):
        _log.warning(
            "runs on %s were trained on different data of this name: they are told apart", name
        )
    return [dataclasses.replace(run, shows_digest=run.results.dataset in several) for run in runs]


def _order(real: bool, method_label: str, agent_label: str) -> tuple[bool, str, str]:
    """Methods by label, agents by label; agents on real data last."""
    return real, "" if real else method_label.casefold(), agent_label.casefold()


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
        return Run(path.parent, results.read(path))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: expected a run's results.json, got {first_line(error)}; "
            "leave this run out or train it again"
        ) from error


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


def _online_settings(found: Results) -> dict[str, Setting]:
    """Settings of the fine-tuning that change the agents, named "online.SETTING"."""
    if found.online is None:
        return {}
    settings = found.online.settings
    # Without generated rows no model is refitted.
    refits = found.real_fraction != 1.0 and settings.get("generated_fraction") != 0.0
    without = () if refits else ("refit_",)
    return {
        f"online.{name}": value
        for name, value in _leaves(settings, "")
        if name not in _UPKEEP and not name.startswith(without)
    }


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
    """The runs, those that were fine-tuned by their fine-tuning."""
    return [dataclasses.replace(run, is_tuned=run.results.online is not None) for run in runs]


def pooled(runs: Iterable[Run]) -> dict[tuple[str, str, str], list[Run]]:
    """Runs of the same method, task, settings and updates, by (task, environment, method).

    Runs with different root seeds are pooled; each has a world model of its own. A second run with
    the same root seed is left out with a warning. The method is the label of `MethodResult.method`.
    """
    runs = list(runs)
    varied = _varied(runs)
    groups: dict[tuple[str, str, str], dict[int, Run]] = {}
    for run in runs:
        found = run.results
        key = run.task, found.environment, named(run.label, _own(run, varied))
        seeds = groups.setdefault(key, {})
        if found.seed in seeds:
            _log.warning("%s repeats %s: left out", run.path, seeds[found.seed].path)
        seeds.setdefault(found.seed, run)
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
    found = first.results
    last = np.concatenate([run.curve[-LAST:].mean(axis=0) for run in runs])
    best = np.concatenate([run.best for run in runs])
    varied = _own(first, varying)
    evaluated = functools.reduce(np.intersect1d, [run.evaluated for run in runs])
    curve = np.concatenate([run.curve[np.isin(run.evaluated, evaluated)].T for run in runs])
    curve_scores = first.scores(curve)
    return MethodResult(
        task=first.task,
        whole_task=first.whole_task,
        episodes=found.episodes,
        environment=found.environment,
        method=named(first.label, varied),
        label=first.label,
        varied=varied,
        source=first.source,
        method_label=found.method_label,
        agent=found.agent,
        agent_label=found.agent_label,
        learns_values=found.value_check is not None,
        real_fraction=found.real_fraction,
        top_fraction=found.top_fraction,
        updates=found.updates,
        last=first.scores(last),
        best=first.scores(best),
        last_return=last,
        best_return=best,
        model_seeds=tuple(map(len, by_world_model(runs, [run.best for run in runs]))),
        evaluated=evaluated,
        curve=curve if curve_scores is None else curve_scores,
        runs=tuple(runs),
    )


def method_names(results: Iterable[MethodResult]) -> list[str]:
    """Labels of all methods: by method and agent, agents on real data last."""

    def position(result: MethodResult) -> tuple[bool, str, str, str]:
        order = _order(result.source == "real", result.method_label, result.agent_label)
        return (*order, result.label)

    return list(dict.fromkeys(result.method for result in sorted(results, key=position)))


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
