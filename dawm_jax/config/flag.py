"""The flag --config of the commands: names of tasks, and one line for every mistake.

A command defines the flag itself, so that --help lists it there:

_CONFIG = config_flags.DEFINE_config_file("config", None, flag.HELP)
"""

import difflib
import pathlib
import re
import traceback
from collections.abc import Iterator

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import RequiredValueError

from dawm_jax.config import schema
from dawm_jax.envs.tasks import TASKS
from dawm_jax.runtime import cli
from dawm_jax.types import UserError, first_line, one_line

HELP = (
    "A task's name (hopper) or a configuration file, with an optional variant: hopper:quick; or "
    "the config.json of a run, whose settings are taken"
)
_MISSING = "--config is missing: expected e.g. --config=hopper:quick"
_PACKAGE = pathlib.Path(__file__).parents[1]


def check(holder: "flags.FlagHolder[ConfigDict]") -> None:
    """Refuses a missing --config; raises what went wrong while its file was loaded.

    Raises:
      ValueError: the flag is missing, or its file gives no ConfigDict.
      OSError: its file cannot be read.
    """
    value = holder.value
    if value is None and not holder.present:
        raise ValueError(_MISSING)
    if not callable(getattr(value, "to_dict", None)):
        raise ValueError(
            "--config: expected get_config to return a ConfigDict, as "
            f"dawm_jax.config.get_config makes one, got {one_line(repr(value))}"
        )
    try:
        value.to_dict()
    except RequiredValueError:
        raise ValueError("--config: a setting is a placeholder without a value: set it") from None


def load_file(argv: list[str]) -> None:
    """Registers the plug-ins of the configuration file that a command line names, if it names one.

    Raises:
      Exception: what the file raised; `explain` says it in one line.
    """
    given = _config_value(argv) or ""
    path = given.partition(":")[0]
    if path in TASKS or not pathlib.Path(path).is_file():
        return
    command, values = ["", f"--config={given}"], flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=command)
    values(command)


def explain(error: Exception, argv: list[str], /) -> str:
    """A mistake on the command line as one line, with the nearest valid name.

    Args:
      error: what absl, a check or the configuration file raised.
      argv: the command line.
    """
    path = _config_path(argv)
    if path == "":
        return _MISSING
    if path is not None and (message := _explain_file(error, path)):
        return message
    known = {name.removeprefix("config."): spec.renamed_from for name, spec in schema.fields()}
    sections = {name.rpartition(".")[0] for name in known} - {""}
    for argument in argv[1:]:
        match = re.match(r"--?config\.([\w.]+)", argument)
        if match and match[1] in sections:
            return f"--config.{match[1]} is a section: expected one of its settings, see --help"
        if match and match[1] not in known:
            near = _nearest(match[1], known)
            return f"unknown flag --config.{match[1]}: did you mean --config.{near}?"
    if isinstance(error, AttributeError | KeyError):
        return (
            f"--config={path}: it has no setting {one_line(error)}, which a flag names; expected "
            "get_config to return a ConfigDict, as dawm_jax.config.get_config makes one"
        )
    return cli.readable(error, argv)


def _config_path(argv: list[str]) -> str | None:
    """The file that --config names on a command line; None without the flag."""
    value = _config_value(argv)
    return None if value is None else value.partition(":")[0]


def _config_value(argv: list[str]) -> str | None:
    """The value of --config on a command line; None without the flag."""
    value, expects_value = None, False
    for argument in argv[1:]:
        match = re.match(r"--?config=(.*)", argument, re.DOTALL)
        if match or expects_value:
            value = match[1] if match else argument
        expects_value = argument in ("--config", "-config")
    return value


def _explain_file(error: Exception, path: str) -> str:
    """What is wrong with a configuration file, or "" if something else is wrong."""
    file, shown = pathlib.Path(path), f"--config={path}"
    if not file.is_file():
        where = "" if file.is_absolute() else f" in the current folder, {pathlib.Path.cwd()}"
        kind = "a folder" if file.is_dir() else f"no such file{where}"
        return (
            f"{shown}: {kind}; expected a configuration file, or the name of a task: "
            f"{', '.join(f'--config={name}' for name in TASKS.names())}"
        )
    if reason := _not_python(file):
        return f"{shown}: {reason}; expected a Python file with get_config"
    for cause in _causes(error):
        if isinstance(cause, AttributeError) and cause.name == "get_config":
            return (
                f"{shown} has no get_config: expected get_config(variant), returning a ConfigDict"
            )
        if isinstance(cause, TypeError) and str(cause).startswith("get_config()"):
            return f"{shown}: {one_line(cause)}; expected get_config(variant) with a default"
        frames = traceback.extract_tb(cause.__traceback__)
        lines = [frame.lineno for frame in frames if _is_same(frame.filename, file)]
        if not lines:
            continue
        raised = pathlib.Path(frames[-1].filename)
        if isinstance(cause, UserError | ValueError) and _PACKAGE in raised.parents:
            message = one_line(cause, limit=1000)  # a mistake that this package explains
            is_named = message.startswith(("--config", "config."))
            return message if is_named else f"--config: {message}"
        return f"{shown}, line {lines[-1]}: {first_line(cause)}"
    return ""


def _not_python(file: pathlib.Path) -> str:
    """Why a file cannot be read as Python; "" if it can."""
    try:
        compile(file.read_bytes(), str(file), "exec")
    except OSError as error:
        return error.strerror or first_line(error)
    except SyntaxError as error:
        return error.msg if error.lineno is None else f"{error.msg} in line {error.lineno}"
    except ValueError as error:
        return one_line(error)
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it came from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_same(name: str, file: pathlib.Path) -> bool:
    return pathlib.Path(name).absolute() == file.absolute()


def _nearest(name: str, known: dict[str, str]) -> str:
    """The setting that has this name in older versions, or the one with the most similar name."""
    renamed = [new for new, old in known.items() if old == name]
    return renamed[0] if renamed else difflib.get_close_matches(name, known, 1, 0.0)[0]
