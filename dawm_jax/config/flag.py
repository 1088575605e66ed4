"""The flag --config of the commands: names of tasks, and one line for every mistake.

A command defines the flag itself, so that --help lists it there:

_CONFIG = config_flags.DEFINE_config_file("config", None, flag.HELP)
"""

import difflib
import pathlib
import re

from absl import flags
from ml_collections import ConfigDict

from dawm_jax.config import schema
from dawm_jax.envs.tasks import TASKS

HELP = "A task's name (hopper) or a configuration file, with an optional variant: hopper:quick"


def check(holder: "flags.FlagHolder[ConfigDict]") -> None:
    """Refuses a missing --config; raises what went wrong while its file was loaded.

    Raises:
      ValueError: the flag is missing or its file cannot be loaded.
    """
    if holder.value is None:
        raise ValueError("--config is missing: expected e.g. --config=hopper:quick")
    holder.value.to_dict()


def explain(message: str, argv: list[str]) -> str:
    """A mistake on the command line as one line, with the nearest valid name.

    Args:
      message: what absl or the configuration file raised.
      argv: the command line.
    """
    path = next((m[1] for m in map(re.compile(r"--?config=([^:]*)").match, argv) if m), "")
    if path and not pathlib.Path(path).is_file():
        names = ", ".join(TASKS.names())
        return f"--config: no file {path}; expected a configuration file or one of {names}"
    known = {name.removeprefix("config."): spec.renamed_from for name, spec in schema.fields()}
    for argument in argv[1:]:
        match = re.match(r"--?config\.([\w.]+)", argument)
        if match and match[1] not in known:
            near = _nearest(match[1], known)
            return f"unknown flag --config.{match[1]}: did you mean --config.{near}?"
    # An exception of a configuration file stands at the end of a quoted traceback.
    return message.rsplit("Error: ", 1)[-1] if "Traceback" in message else message


def _nearest(name: str, known: dict[str, str]) -> str:
    """The setting that has this name in older versions, or the one with the most similar name."""
    renamed = [new for new, old in known.items() if old == name]
    return renamed[0] if renamed else difflib.get_close_matches(name, known, 1, 0.0)[0]
