"""A configuration file for the tasks that ship with the package: --config=hopper:quick.

`--config=NAME:VARIANT` is short for `--config=<this file>:NAME:VARIANT`, so that an installed
package needs no file of the repository.
"""

import pathlib

import ml_collections

from dawm_jax.config import schema
from dawm_jax.envs.tasks import TASKS


def get_config(argument: str) -> ml_collections.ConfigDict:
    """The configuration of a task by its name.

    Args:
      argument: the name of a registered task, or "NAME:VARIANT"; see `schema.get_config`.

    Raises:
      ValueError: an unknown task or variant.
    """
    name, _, variant = argument.partition(":")
    if name not in TASKS:
        names = ", ".join(TASKS.names())
        raise ValueError(f"--config: expected a configuration file or one of {names}, got {name!r}")
    return schema.get_config(variant, environment=TASKS.get(name).environment)


def resolve(argv: list[str]) -> list[str]:
    """The command line with every --config=NAME written as a file that `get_config` reads.

    A value that ends in .py or contains a separator of folders stays. So does the name of an
    existing file, unless a task has that name.
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
    is_path = name.endswith(".py") or "/" in name
    if not name or is_path or (name not in TASKS and pathlib.Path(name).is_file()):
        return value
    return f"{__file__}:{value}"
