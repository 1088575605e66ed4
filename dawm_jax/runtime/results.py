"""results.json: what a finished run says of itself, with one writer and one reader."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dawm_jax.runtime import provenance
from dawm_jax.types import one_line

FILE = "results.json"
# The last field of the file: SHA-256 of the others. Files of an older version have none.
_DIGEST = "results_digest"
# Names in tables for files of an older version, which have none.
_LABELS = {
    "dawm": "DAWM",
    "dwm": "DWM",
    "joint": "Joint",
    "one_step": "One-step",
    "one_step_cloned": "One-step, cloned policy",
    "decision_diffuser": "Decision Diffuser",
    "td3_bc": "TD3+BC",
    "iql": "IQL",
    "bc": "BC",
}


@dataclasses.dataclass(frozen=True, eq=False)
class PerSeed:
    """One number of every seed.

    Attributes:
      values: [seeds] float64, finite.
      interval: 95 % interval of their mean; None where there is none, as of one seed.
    """

    values: np.ndarray
    interval: tuple[float, float] | None = None

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(self.values.mean())


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Episodes of every seed's agent.

    Attributes:
      at: updates of the agents before it, or environment steps in a fine-tuning.
      returns: undiscounted, averaged over a seed's episodes.
      scores: normalised; None for a task without reference returns.
      episodes: of each seed; 0 in files that do not say.
    """

    at: int
    returns: PerSeed
    scores: PerSeed | None
    episodes: int


@dataclasses.dataclass(frozen=True, eq=False)
class Area:
    """Mean height of a learning curve over its environment steps; see `Evaluation`."""

    returns: PerSeed
    scores: PerSeed | None


@dataclasses.dataclass(frozen=True, eq=False)
class Success:
    """Shares of the episodes that the environment calls a success.

    Attributes:
      last: of the last evaluation.
      curve: (updates or environment steps, shares by seed) of every evaluation.
    """

    last: PerSeed
    curve: tuple[tuple[int, np.ndarray], ...]


@dataclasses.dataclass(frozen=True)
class ValueCheck:
    """The agents' last mean Q beside the data's largest discounted return, in the agent's units."""

    q_mean: float
    largest_return_to_go: float


@dataclasses.dataclass(frozen=True)
class Stage:
    """How long a stage of a run took.

    Attributes:
      steps: gradient steps, updates of the agents or environment steps.
      seconds: without compilation and evaluation.
      compile_seconds: of the compilation.
      trained_in: folder of the run from which the trained stage was copied, None if it was not.
    """

    steps: int
    seconds: float
    compile_seconds: float
    trained_in: str | None = None


@dataclasses.dataclass(frozen=True)
class TargetReturn:
    """What the generated windows, or the plans, ask for: a rule's name and its factor."""

    rule: str
    factor: float


@dataclasses.dataclass(frozen=True, eq=False)
class Online:
    """A fine-tuning in the environment.

    Attributes:
      settings: the section `online` of the configuration.
      curve: evaluations, by environment steps; one at 0 is the last of the offline training.
      area: mean height of the curve; None in files that do not say.
      updates: of the critics.
      seconds_per_step: time in which every seed makes one environment step, without compilation
        and evaluation.
      success: None where the environment calls no episode a success.
    """

    settings: Mapping[str, Any]
    curve: tuple[Evaluation, ...]
    area: Area | None
    updates: int
    seconds_per_step: float
    success: Success | None

    @property
    def fresh_agent(self) -> bool:
        """Whether new agents took the place of those trained offline."""
        return bool(self.settings["fresh_agent"])

    @property
    def updates_per_step(self) -> int:
        """Updates of the critics in an environment step."""
        return int(self.settings["updates_per_step"])

    @property
    def final(self) -> Evaluation:
        """The last evaluation."""
        return self.curve[-1]


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """A finished run. Settings are the configuration's unless something else is said.

    Attributes:
      environment: Gymnasium id.
      environment_kwargs: keyword arguments of `gym.make`.
      dataset: name of the data.
      dataset_summary: the data in words.
      dataset_digest: SHA-256 of all arrays, "" in files of an older version.
      references: returns (random, expert) of scores 0 and 100, None for a task without.
      method: registered name of the method.
      method_label: the method's name in tables.
      agent: registered name of the agent, "planner" for a method that plans.
      agent_label: the agent's name in tables.
      variant: of the configuration.
      seed: root seed.
      num_seeds: agents, or plans, that are averaged over.
      seed_is: what one of `num_seeds` is, in words.
      updates: of the agents, 0 for a method that plans.
      real_fraction: share of real transitions in a minibatch.
      return_steps: rewards that the critics' targets of generated rows sum.
      real_return_steps: likewise of real rows.
      top_fraction: share of the episodes, those of highest return, that is used.
      episodes: number of randomly drawn episodes that are used; 0 is all.
      horizon: generated steps of a window, or of a plan.
      target_return: of the windows, or of the plans.
      rollout: the section `rollout` of the configuration.
      settings: of the agent, the method and its models, and how they use the data.
      curve: evaluations, by updates of the agents.
      value_check: None without a critic.
      evaluation_seconds: of all evaluations.
      stages: by name.
      device: the devices in words.
      cpu: the processor in words.
      versions: of packages, by name.
      commit: git commit of the source, None outside a repository.
      success: None where the environment calls no episode a success.
      online: None without fine-tuning.
    """

    environment: str
    environment_kwargs: Mapping[str, Any]
    dataset: str
    dataset_summary: str
    dataset_digest: str
    references: tuple[float, float] | None
    method: str
    method_label: str
    agent: str
    agent_label: str
    variant: str
    seed: int
    num_seeds: int
    seed_is: str
    updates: int
    real_fraction: float
    return_steps: int
    real_return_steps: int
    top_fraction: float
    episodes: int
    horizon: int
    target_return: TargetReturn
    rollout: Mapping[str, Any]
    settings: Mapping[str, Any]
    curve: tuple[Evaluation, ...]
    value_check: ValueCheck | None
    evaluation_seconds: float
    stages: Mapping[str, Stage]
    device: str
    cpu: str
    versions: Mapping[str, str]
    commit: str | None
    success: Success | None = None
    online: Online | None = None

    @property
    def final(self) -> Evaluation:
        """The last evaluation."""
        return self.curve[-1]

    @property
    def best(self) -> Evaluation:
        """The first evaluation with the highest mean return."""
        return max(self.curve, key=lambda evaluation: evaluation.returns.mean)

    @property
    def training_seconds(self) -> float:
        """Of the offline training, without compilation and evaluation."""
        return sum(stage.seconds for name, stage in self.stages.items() if name != "online")


# --- files --------------------------------------------------------------------------------


def write(path: pathlib.Path, results: Results) -> None:
    """Writes the file, whole or not at all."""
    content = to_json(results)
    sealed = {**content, _DIGEST: provenance.digest(content, _DIGEST)}
    provenance.write_atomically(path, json.dumps(sealed, indent=2) + "\n")


def read(path: pathlib.Path) -> Results:
    """Reads a file of this version or of an older one.

    Raises:
      OSError: it cannot be read.
      ValueError: it is damaged; the text says what is wrong in one line.
    """
    content = json.loads(path.read_bytes())
    stored = _field(content, _DIGEST, None)
    if stored not in (None, provenance.digest(content, _DIGEST)):
        raise ValueError("its content is not what was written")
    return of_json(content)


# --- writing ------------------------------------------------------------------------------


def to_json(results: Results) -> dict[str, Any]:
    """The content of the file without its digest."""
    plain = {field.name: getattr(results, field.name) for field in dataclasses.fields(results)}
    check, success, online = (plain.pop(name) for name in ("value_check", "success", "online"))
    return {
        "final": _evaluation_to_json(results.final),
        "best": _evaluation_to_json(results.best),
        **plain,
        "references": None if results.references is None else list(results.references),
        "target_return": dataclasses.asdict(results.target_return),
        "curve": _curve_to_json(results.curve, "update"),
        "value_check": check and dataclasses.asdict(check),
        "stages": {name: _stage_to_json(stage) for name, stage in results.stages.items()},
        **({"success": _success_to_json(success, "update")} if success else {}),
        **({"online": _online_to_json(online)} if online else {}),
    }


def _online_to_json(online: Online) -> dict[str, Any]:
    return {
        **({"success": _success_to_json(online.success, "step")} if online.success else {}),
        "settings": online.settings,
        "curve": _curve_to_json(online.curve, "step"),
        "final": _evaluation_to_json(online.final),
        **({"area": _area_to_json(online.area)} if online.area else {}),
        "updates": online.updates,
        "seconds_per_step": online.seconds_per_step,
    }


def _curve_to_json(curve: Iterable[Evaluation], unit: str) -> list[dict[str, Any]]:
    return [{unit: point.at, **_evaluation_to_json(point)} for point in curve]


def _evaluation_to_json(found: Evaluation) -> dict[str, Any]:
    content = _named("return", found.returns, with_interval=True)
    content["episodes_per_seed"] = found.episodes
    return content | _named("score", found.scores, with_interval=True)


def _area_to_json(area: Area) -> dict[str, Any]:
    return _named("return", area.returns) | _named("score", area.scores)


def _success_to_json(success: Success, unit: str) -> dict[str, Any]:
    curve = [{unit: at, "rate_per_seed": rates.tolist()} for at, rates in success.curve]
    return {**_named("rate", success.last, with_interval=True), "curve": curve}


def _named(name: str, found: PerSeed | None, *, with_interval: bool = False) -> dict[str, Any]:
    """Fields of numbers by seed; none where there are no numbers."""
    if found is None:
        return {}
    content = {f"{name}_per_seed": found.values.tolist(), f"{name}_mean": found.mean}
    interval = None if found.interval is None else list(found.interval)
    return {**content, f"{name}_interval": interval} if with_interval else content


def _stage_to_json(stage: Stage) -> dict[str, Any]:
    content = {
        "steps": stage.steps,
        "seconds": stage.seconds,
        "compile_seconds": stage.compile_seconds,
        "steps_per_second": stage.steps / max(stage.seconds, 1e-9),
    }
    return content if stage.trained_in is None else {**content, "trained_in": stage.trained_in}


# --- reading ------------------------------------------------------------------------------


def of_json(content: object) -> Results:
    """Results from the content of a file of this version or of an older one.

    Means, the last and the best evaluation are computed from the curve again.

    Raises:
      ValueError: a field is missing or wrong.
    """
    method, rollout = _text(content, "method"), _object(content, "rollout")
    label = _text(content, "method_label", _LABELS.get(method, method))
    # Versions without the setting `rollout.expand` called this method one_step.
    if method == "one_step" and "expand" not in rollout:
        method, label = "one_step_cloned", _LABELS["one_step_cloned"]
    agent = _text(content, "agent")
    return_steps = _integer(content, "return_steps", 1)
    curve = _curve(content, "update")
    return Results(
        environment=_text(content, "environment"),
        environment_kwargs=_object(content, "environment_kwargs", {}),
        dataset=_text(content, "dataset"),
        dataset_summary=_text(content, "dataset_summary"),
        dataset_digest=_text(content, "dataset_digest", ""),
        references=_pair(content, "references"),
        method=method,
        method_label=label,
        agent=agent,
        agent_label=_text(content, "agent_label", _LABELS.get(agent, agent)),
        variant=_text(content, "variant"),
        seed=_integer(content, "seed"),
        num_seeds=_integer(content, "num_seeds"),
        seed_is=_text(content, "seed_is"),
        updates=_integer(content, "updates"),
        real_fraction=_number(content, "real_fraction"),
        return_steps=return_steps,
        # Versions without the setting `training.real_return_steps` had one for all rows.
        real_return_steps=_integer(content, "real_return_steps", return_steps),
        top_fraction=_number(content, "top_fraction"),
        episodes=_integer(content, "episodes", 0),
        horizon=_integer(content, "horizon"),
        target_return=_target_return(_field(content, "target_return")),
        rollout=rollout,
        settings=_object(content, "settings", {}),
        curve=curve,
        value_check=_value_check(content),
        evaluation_seconds=_number(content, "evaluation_seconds"),
        stages={name: _stage(stage) for name, stage in _object(content, "stages").items()},
        device=_text(content, "device"),
        cpu=_text(content, "cpu", ""),
        versions=_object(content, "versions"),
        commit=None if _field(content, "commit") is None else _text(content, "commit"),
        success=_success(content, "update"),
        online=_online(content, num_seeds=len(curve[0].returns.values)),
    )


def _online(content: object, *, num_seeds: int) -> Online | None:
    online = _field(content, "online", None)
    if online is None:
        return None
    curve, settings = _curve(online, "step"), _object(online, "settings")
    if len(curve[0].returns.values) != num_seeds:
        raise ValueError(f"fine-tuning of {len(curve[0].returns.values)} seeds, of {num_seeds}")
    if curve[-1].at != (steps := _integer(settings, "steps")):
        raise ValueError(f"a last evaluation at step {curve[-1].at} of {steps}")
    area = _field(online, "area", None)
    if not isinstance(fresh := _field(settings, "fresh_agent"), bool):
        raise ValueError(f"fresh_agent = {one_line(fresh, 40)}, expected true or false")
    _integer(settings, "updates_per_step")
    return Online(
        settings=settings,
        curve=curve,
        area=None if area is None else Area(*_returns_and_scores(area)),
        updates=_integer(online, "updates"),
        seconds_per_step=_number(online, "seconds_per_step"),
        success=_success(online, "step"),
    )


def _curve(content: object, unit: str) -> tuple[Evaluation, ...]:
    curve = tuple(_evaluation(point, unit) for point in _list(content, "curve"))
    if not curve:
        raise ValueError("a curve without evaluations")
    sizes = {len(point.returns.values) for point in curve}
    if len(sizes) > 1 or 0 in sizes:
        raise ValueError(f"evaluations of {sorted(sizes)} seeds in one curve")
    at = [point.at for point in curve]
    if at[0] < 0 or sorted(set(at)) != at:
        raise ValueError(f"a curve at {unit}s {one_line(at, 60)}, expected increasing ones")
    return curve


def _evaluation(point: object, unit: str) -> Evaluation:
    returns, scores = _returns_and_scores(point)
    episodes = _integer(point, "episodes_per_seed", 0)
    return Evaluation(_integer(point, unit), returns, scores, episodes)


def _returns_and_scores(content: object) -> tuple[PerSeed, PerSeed | None]:
    has_scores = _field(content, "score_per_seed", None) is not None
    return _per_seed(content, "return"), _per_seed(content, "score") if has_scores else None


def _success(content: object, unit: str) -> Success | None:
    success = _field(content, "success", None)
    if success is None:
        return None
    curve = [
        (_integer(point, unit), _per_seed(point, "rate").values)
        for point in _list(success, "curve", [])
    ]
    return Success(_per_seed(success, "rate"), tuple(curve))


def _value_check(content: object) -> ValueCheck | None:
    check = _field(content, "value_check")
    if check is None:
        return None
    return ValueCheck(_number(check, "q_mean"), _number(check, "largest_return_to_go"))


def _stage(content: object) -> Stage:
    trained_in = _field(content, "trained_in", None)
    return Stage(
        steps=_integer(content, "steps"),
        seconds=_number(content, "seconds"),
        compile_seconds=_number(content, "compile_seconds"),
        trained_in=None if trained_in is None else _text(content, "trained_in"),
    )


def _target_return(content: object) -> TargetReturn:
    return TargetReturn(_text(content, "rule"), _number(content, "factor"))


def _per_seed(content: object, name: str) -> PerSeed:
    try:
        values = np.array(_list(content, f"{name}_per_seed"), np.float64)
    except TypeError as error:  # neither numbers nor rows of them
        raise ValueError(f"{name}_per_seed: expected numbers") from error
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"{name}_per_seed: expected numbers, got one that is not a finite number")
    return PerSeed(values, _pair(content, f"{name}_interval"))


def _pair(content: object, name: str) -> tuple[float, float] | None:
    pair = _field(content, name, None)
    if pair is None:
        return None
    numbers = [value for value in _list(content, name) if isinstance(value, int | float)]
    if len(numbers) != 2:
        raise ValueError(f"{name} = {one_line(pair, 40)}, expected two numbers")
    return float(numbers[0]), float(numbers[1])


# --- fields -------------------------------------------------------------------------------

_REQUIRED = object()


def _field(content: object, name: str, absent: object = _REQUIRED) -> Any:
    if not isinstance(content, dict):
        raise ValueError(f"{one_line(content, 40)} in place of an object with the field {name!r}")
    if name not in content and absent is _REQUIRED:
        raise ValueError(f"no field {name!r}")
    return content.get(name, absent)


def _text(content: object, name: str, absent: object = _REQUIRED) -> str:
    value = _field(content, name, absent)
    if not isinstance(value, str):
        raise ValueError(f"{name} = {one_line(value, 40)}, expected text")
    return value


def _number(content: object, name: str, absent: object = _REQUIRED) -> float:
    value = _field(content, name, absent)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} = {one_line(value, 40)}, expected a finite number")
    return float(value)


def _integer(content: object, name: str, absent: object = _REQUIRED) -> int:
    number = _number(content, name, absent)
    if not number.is_integer():
        raise ValueError(f"{name} = {number:g}, expected a whole number")
    return int(number)


def _list(content: object, name: str, absent: object = _REQUIRED) -> list[Any]:
    value = _field(content, name, absent)
    if not isinstance(value, list):
        raise ValueError(f"{name} = {one_line(value, 40)}, expected a list")
    return value


def _object(content: object, name: str, absent: object = _REQUIRED) -> dict[str, Any]:
    value = _field(content, name, absent)
    if not isinstance(value, dict):
        raise ValueError(f"{name} = {one_line(value, 40)}, expected an object")
    return value
