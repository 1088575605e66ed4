"""What every command shares: flags, help, one line for every mistake, logging, compiled programs.

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder", required=True)

def main() -> None: ...

def run() -> None:
    cli.run(main, __doc__)
"""

import logging
import os
import pathlib
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import NoReturn, Protocol, TextIO

from absl import app, flags
from absl import logging as absl_logging

from dawm_jax.runtime import interrupts, terminal

# For the commands: the name of a module that is started is __main__, not dawm_jax.something.
log = logging.getLogger("dawm_jax")

_DEBUG = "debug"
_PACKAGE = pathlib.Path(__file__).parents[1]


class Explain(Protocol):
    """Words for a mistake on the command line."""

    def __call__(self, error: Exception, argv: list[str], /) -> str: ...


def readable(error: Exception, argv: list[str], /) -> str:
    """What absl says of a mistake on the command line, as one line."""
    del argv
    message = " ".join(str(error).split())
    if message.endswith("must have a value other than None."):
        return f"{message.split()[1].split('=')[0].rstrip(':')} is missing"
    return message or type(error).__name__


def run(
    main: Callable[..., None],
    doc: str | None,
    *,
    takes_arguments: bool = False,
    prepare: Callable[[list[str]], list[str]] = lambda argv: argv,
    check: Callable[[], None] = lambda: None,
    explain: Explain = readable,
    more_help: Callable[[list[str]], str] = lambda argv: "",
) -> None:
    """Runs a command and exits; its flags are those of the module that defines `main`.

    A mistake on the command line is one line and exit code 2; every other exception is one
    line and exit code 1, see `describe`; Ctrl-C is one line and exit code 130. The flag --debug,
    which every command has, shows the traceback too.

    Args:
      main: the command, called once flags, logging and the compile cache are set up. It
        should import JAX only then, so that --help and a wrong flag need not wait.
      doc: the module's text, which --help prints before the flags.
      takes_arguments: whether words that are no flags are allowed; `main` gets their list.
      prepare: rewrites the command line before it is parsed.
      check: raises what is wrong with the parsed flags.
      explain: the message for an exception of `prepare`, the flags or `check`.
      more_help: what --help prints after the flags, for the command line.
    """

    if _DEBUG not in flags.FLAGS:
        flags.DEFINE_boolean(_DEBUG, False, "Show the traceback of what goes wrong")

    def parse(argv: list[str]) -> list[str]:
        if any(argument in ("--help", "-h", "-help", "--helpfull") for argument in argv[1:]):
            try:
                more = more_help(argv)
            except Exception as error:
                fail(explain(error, argv), 2)
            print("\n".join(filter(None, [doc, _describe_flags(main.__module__), more])))
            sys.exit(0)
        try:
            argv = prepare(argv)
            positional = flags.FLAGS(argv)
            check()
        except Exception as error:
            fail(explain(error, argv), 2)
        if len(positional) > 1 and not takes_arguments:
            fail(f"unexpected argument {positional[1]!r}: flags are written --name=value", 2)
        return positional

    absl_logging.set_verbosity(absl_logging.ERROR)  # of libraries, while flags are parsed
    app.run(
        lambda argv: _call(lambda: main(argv[1:]) if takes_arguments else main()),
        flags_parser=parse,
    )


def fail(message: str, code: int, who: str = "", *, delay: float | None = None) -> NoReturn:
    """Ends the program with one line.

    Args:
      message: what was expected, what there is, and what to do.
      code: exit code.
      who: tells processes of one job apart.
      delay: seconds after which the process exits without waiting for other processes, which
        may have exited; None exits normally.
    """
    terminal.end_line()
    if _is_debugging() and sys.exc_info()[0] not in (None, KeyboardInterrupt):
        traceback.print_exc()
    print(f"dawm_jax{who}: {message}", file=sys.stderr, flush=True)
    if delay is not None:
        time.sleep(delay)
        os._exit(code)
    sys.exit(code)


def _is_debugging() -> bool:
    if flags.FLAGS.is_parsed():
        return _DEBUG in flags.FLAGS and bool(flags.FLAGS[_DEBUG].value)
    return f"--{_DEBUG}" in sys.argv  # the mistake is in another flag


def _call(main: Callable[[], None]) -> None:
    try:
        set_up_logging()
        _cache_compilations()
        interrupts.restore()
        main()
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except Exception as error:
        fail(describe(error, folder=_workdir()), 1)


# --- one line for every exception ---------------------------------------------------------


def describe(error: Exception, *, folder: pathlib.Path | None) -> str:
    """What went wrong, as one line. The traceback of an unforeseen exception goes to a file.

    Args:
      error: what was raised: a mistake of the user, an error of the file system, memory that
        does not suffice, a platform of JAX that is not there, or a fault of this program.
      folder: for the file error.log, if the folder exists; else a temporary file is written.
    """
    # These import JAX.
    from dawm_jax.runtime import backend
    from dawm_jax.types import UserError, first_line

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return _describe_os_error(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return (
            f"memory does not suffice ({first_line(error)}); lower sizes of batches and buffers "
            "or the number of seeds"
        )
    try:
        backend.check()
    except UserError as cause:
        return str(cause)
    path = _write_traceback(error, folder)
    return (
        f"unexpected error{_place(error)}: {first_line(error)}; the traceback is in {path}; "
        f"run with --{_DEBUG} to see it here"
    )


def _describe_os_error(error: OSError) -> str:
    """The file or folder that failed, and the system's reason."""
    from dawm_jax.types import first_line

    paths = [
        os.fsdecode(x) for x in (error.filename, error.filename2) if isinstance(x, str | bytes)
    ]
    reason = error.strerror or first_line(error)
    return ": ".join([" to ".join(paths), reason] if paths else [reason])


def _workdir() -> pathlib.Path | None:
    """The folder that the flag --workdir names, if the command has one."""
    value = flags.FLAGS["workdir"].value if "workdir" in flags.FLAGS else None
    return pathlib.Path(value) if value else None


def _place(error: Exception) -> str:
    """Where this package raised or called what raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame
        for frame in frames
        if _PACKAGE in pathlib.Path(frame.filename).parents and frame.filename != __file__
    ]
    if not own:
        return ""
    return f" in {pathlib.Path(own[-1].filename).relative_to(_PACKAGE.parent)}:{own[-1].lineno}"


def _write_traceback(error: Exception, folder: pathlib.Path | None) -> str:
    """Appends the traceback to a file and returns the file's name."""
    lines = [time.strftime("%Y-%m-%d %H:%M:%S  ") + shlex.join(sys.argv) + "\n"]
    text = "".join([*lines, *traceback.format_exception(error), "\n"])
    if folder is not None and folder.is_dir():
        try:
            # A link in the place of the file must not lead to another file.
            how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            with os.fdopen(os.open(folder / "error.log", how, 0o666), "a") as log_file:
                log_file.write(text)
            return str(folder / "error.log")
        except OSError:
            pass  # the temporary file takes it
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="dawm_jax-error-", suffix=".log", delete=False
        ) as file:
            file.write(text)
        return file.name
    except OSError as failure:
        return f"no file ({failure.strerror})"


# --- help, logging, cache -----------------------------------------------------------------


def _describe_flags(module: str) -> str:
    """The flags that `module` defines, a paragraph each."""
    lines = ["Flags:"]
    own = flags.FLAGS.get_key_flags_for_module(sys.modules[module])
    for flag in [*own, flags.FLAGS[_DEBUG]]:
        # A boolean flag is written without a value.
        plain = flag.default is None or isinstance(flag.default, bool)
        default = "" if plain else f"={flag.default}"
        lines.append(f"  --{flag.name + default:<28} {' '.join((flag.help or '').split())}")
    return "\n".join([*lines, ""])


def set_up_logging() -> None:
    """Shows this package's log lines with the time of day, and only warnings of libraries."""
    if log.handlers:
        return
    absl_logging.set_verbosity(absl_logging.WARNING)
    # Without a home folder it warns of a temporary one; `paths.cache` has warned already.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    handler = _Handler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


class _Handler(logging.StreamHandler[TextIO]):
    """Writes log lines over the terminal's progress line."""

    def emit(self, record: logging.LogRecord) -> None:
        terminal.erase()
        super().emit(record)


def _cache_compilations() -> None:
    """Keeps compiled programs between runs, unless the user chose a folder for them."""
    import jax

    from dawm_jax.runtime import paths

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    if (folder := paths.cache("compiled")) is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # The default keeps only what took a second; a run has dozens of smaller programs.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
