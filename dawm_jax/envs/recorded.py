"""The environment that data were recorded in, and how another one differs from it.

A Gymnasium id alone does not say what was simulated: keyword arguments, wrappers and the time limit
of `gym.make` change rewards, terminations and sizes.
"""

import dataclasses
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

from dawm_jax.envs.perturbed import UNCHANGED, Physics
from dawm_jax.types import UserError, one_line

# Keyword arguments and wrappers that change pictures or bookkeeping, and no transition.
_HARMLESS_KWARGS = (
    *("render_mode", "width", "height", "camera_id", "camera_name", "default_camera_config"),
    *("max_geom", "visual_options"),
)
_HARMLESS_WRAPPERS = (
    *("DataCollector", "FlattenObservation", "HumanRendering", "OrderEnforcing"),
    *("PassiveEnvChecker", "RecordEpisodeStatistics", "RecordVideo", "RenderCollection"),
    "TimeLimit",
)
_LIMIT = "max_episode_steps"  # keyword argument of `gym.make`


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What a Gymnasium environment is made of beyond its id.

    Attributes:
      kwargs: keyword arguments of its class, as JSON holds them.
      wrappers: names of the wrappers added to it.
      max_episode_steps: its time limit; None: it has none.
      physics: factors of the constants of its MuJoCo model.
    """

    kwargs: Mapping[str, Any]
    wrappers: tuple[str, ...]
    max_episode_steps: int | None
    physics: Physics = UNCHANGED


def recorded(spec: Any, physics: Physics = UNCHANGED) -> Recorded:
    """What a Gymnasium `EnvSpec` says, without what changes no transition.

    Args:
      spec: of the environment.
      physics: what was changed in the environment after it was made, of which its spec knows
        nothing.
    """
    kwargs = {key: value for key, value in spec.kwargs.items() if key not in _HARMLESS_KWARGS}
    wrappers = (wrapper.name for wrapper in spec.additional_wrappers)
    return Recorded(
        kwargs=_as_json(kwargs),
        wrappers=tuple(name for name in wrappers if name not in _HARMLESS_WRAPPERS),
        max_episode_steps=spec.max_episode_steps,
        physics=physics,
    )


def differences(data: Recorded, env: Any) -> list[str]:
    """What data were recorded with and an environment is not: one line for each kind.

    A keyword argument that equals the default of the environment's class does not differ.

    Args:
      data: the environment of the data.
      env: a Gymnasium environment made by its id.

    Returns:
      Lines such as "recorded with a time limit of 50 steps and will be evaluated with one of
      1,000; ...". Each ends with what to do, or with what it means.
    """
    here = recorded(env.spec)
    there_kwargs, here_kwargs = _differing_kwargs(data, here, env)
    lines = []
    if there_kwargs != here_kwargs:
        lines.append(
            f"recorded with {_shown(there_kwargs)} and will be evaluated with "
            f"{_shown(here_kwargs)}; {advice(data, env)} evaluates as recorded"
        )
    if data.max_episode_steps != here.max_episode_steps:
        lines.append(
            f"recorded with {_limit(data)} and will be evaluated with {_limit(here)}"
            + (f"; {advice(data, env)} evaluates as recorded" if data.max_episode_steps else "")
        )
    if data.wrappers != here.wrappers:
        lines.append(
            f"recorded with {_wrappers(data)} and will be evaluated with {_wrappers(here)}; "
            "register an environment with those wrappers and name it in --config.environment"
        )
    if data.physics != here.physics:
        lines.append(
            f"recorded in changed physics ({data.physics}) and will be evaluated in the unchanged "
            "ones: what models learn of the recording is not what the agents will meet"
        )
    return lines


def advice(data: Recorded, env: Any) -> str:
    """The flag that makes the environment as the data were recorded; "" if none is needed."""
    here = recorded(env.spec)
    there_kwargs, here_kwargs = _differing_kwargs(data, here, env)
    wanted = {key: value for key, value in here.kwargs.items() if key not in here_kwargs}
    wanted |= there_kwargs
    if data.max_episode_steps not in (None, here.max_episode_steps):
        wanted[_LIMIT] = data.max_episode_steps
    if there_kwargs == here_kwargs and _LIMIT not in wanted:
        return ""
    return f"--config.environment_kwargs='{json.dumps(wanted)}'"


def parse_kwargs(text: str) -> dict[str, Any]:
    """The keyword arguments in `config.environment_kwargs`.

    Args:
      text: a JSON object; "" stands for {}.

    Raises:
      UserError: the text is something else.
    """
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(
            "config.environment_kwargs: expected a JSON object such as "
            f'{{"terminate_when_unhealthy": false}}, got {one_line(text)}'
        )
    return found


def _differing_kwargs(
    data: Recorded, here: Recorded, env: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keyword arguments that differ: their values in the data and here; no value if unset."""
    defaults = _defaults(type(env.unwrapped))
    there, ours = ({**defaults, **side.kwargs} for side in (data, here))
    keys = [key for key in {**data.kwargs, **here.kwargs} if _differ(there, ours, key)]
    return _some(there, keys), _some(ours, keys)


def _differ(there: Mapping[str, Any], ours: Mapping[str, Any], key: str) -> bool:
    return (key in there) != (key in ours) or there.get(key) != ours.get(key)


def _some(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}


def _defaults(cls: type) -> dict[str, Any]:
    """The defaults of a class's keyword arguments, as JSON holds them."""
    try:
        parameters = inspect.signature(cls).parameters.values()
    except (TypeError, ValueError):
        return {}
    values = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return _as_json(values)


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON holds them: lists for tuples, text for what JSON does not know."""
    return json.loads(json.dumps(values, default=str, skipkeys=True))


def _shown(kwargs: Mapping[str, Any]) -> str:
    if not kwargs:
        return "no keyword arguments"
    return one_line(", ".join(f"{key}={value!r}" for key, value in kwargs.items()))


def _limit(environment: Recorded) -> str:
    limit = environment.max_episode_steps
    return "no time limit" if limit is None else f"a time limit of {limit:,} steps"


def _wrappers(environment: Recorded) -> str:
    names = environment.wrappers
    return f"the wrappers {', '.join(names)}" if names else "no wrappers"
