"""A configuration file for tasks and for the configurations of runs.

`--config=hopper:quick` is short for `--config=<this file>:hopper:quick`, so that an installed
package needs no file of the repository. `--config=runs/one/config.json` has the settings of a run.
"""

import pathlib

import ml_collections

from dawm_jax.config import schema
from dawm_jax.envs.tasks import TASKS
from dawm_jax.runtime import run_folder


def get_config(argument: str) -> ml_collections.ConfigDict:
    """The configuration of a task by its name, or that of a run.

    Args:
      argument: the name of a registered task, or "NAME:VARIANT", see `schema.get_config`; or the
        path of a run's config.json, of whatever version wrote it.

    Raises:
      ValueError: an unknown task or variant, or a variant of config.json.
      UserError: config.json is missing or damaged, or this version refuses one of its settings.
    """
    name, _, variant = argument.partition(":")
    if _is_stored(name):
        if variant:
            raise ValueError(f"expected {name} without a variant, got {variant!r}")
        return _stored(pathlib.Path(name))
    if name not in TASKS:
        names = ", ".join(TASKS.names())
        raise ValueError(f"expected one of {names}, or FOLDER/config.json of a run, got {name!r}")
    return schema.get_config(variant, environment=TASKS.get(name).environment)


def _is_stored(value: str) -> bool:
    """Whether the value names a run's configuration."""
    return pathlib.PurePath(value).name == run_folder.CONFIG


def _stored(path: pathlib.Path) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict(schema.to_dict(schema.of_run(path.parent)))
    config.lock()
    return config


def resolve(argv: list[str]) -> list[str]:
    """The command line with each --config=NAME and --config=config.json as arguments of this file.

    Another value that ends in .py or contains a separator of folders stays. So does the name of
    an existing file, unless a task has that name.
    """
    resolved, expects_value = [], False
    for argument in argv:
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config") and equals:
            argument = f"{flag}={_resolve_value(value)}"
        elif expects_value:
            argument = _resolve_value(argument)
        expects_value = argument in ("--config", "-config")
        resolved.append(argument)
    return resolved


def _resolve_value(value: str) -> str:
    name = value.partition(":")[0]
    if _is_stored(name):
        return f"{__file__}:{value}"
    is_path = name.endswith(".py") or "/" in name
    if not name or is_path or (name not in TASKS and pathlib.Path(name).is_file()):
        return value
    return f"{__file__}:{value}"
