"""What every command shares: flags, help, one line for every mistake, logging, compiled programs.

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder", required=True)

def main() -> None: ...

def run() -> None:
    cli.run(main, __doc__)
"""

import logging
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging

# For the commands: the name of a module that is started is __main__, not dawm_jax.something.
log = logging.getLogger("dawm_jax")

_MISTAKES = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError)


def run(
    main: Callable[..., None],
    doc: str | None,
    *,
    takes_arguments: bool = False,
    prepare: Callable[[list[str]], list[str]] = lambda argv: argv,
    check: Callable[[], None] = lambda: None,
    explain: Callable[[str, list[str]], str] = lambda message, argv: message,
    more_help: Callable[[], str] = lambda: "",
) -> None:
    """Runs a command and exits; its flags are those of the module that defines `main`.

    A mistake on the command line is one line and exit code 2; a `UserError` or an error of
    the file system is one line and exit code 1; Ctrl-C is one line and exit code 130.

    Args:
      main: the command, called once flags, logging and the compile cache are set up. It
        should import JAX only then, so that --help and a wrong flag need not wait.
      doc: the module's text, which --help prints before the flags.
      takes_arguments: whether words that are no flags are allowed; `main` gets their list.
      prepare: rewrites the command line before it is parsed.
      check: raises what is wrong with the parsed flags.
      explain: (message, argv) -> a better message for a mistake on the command line.
      more_help: what --help prints after the flags.
    """

    def parse(argv: list[str]) -> list[str]:
        if any(argument in ("--help", "-h", "-help", "--helpfull") for argument in argv[1:]):
            print("\n".join(filter(None, [doc, _describe_flags(main.__module__), more_help()])))
            sys.exit(0)
        try:
            argv = prepare(argv)
            positional = flags.FLAGS(argv)
            check()
        except _MISTAKES as error:
            fail(explain(_readable(error), argv), 2)
        if len(positional) > 1 and not takes_arguments:
            fail(f"unexpected argument {positional[1]!r}: flags are written --name=value", 2)
        return positional

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
    print(f"dawm_jax{who}: {message}", file=sys.stderr, flush=True)
    if delay is not None:
        time.sleep(delay)
        os._exit(code)
    sys.exit(code)


def _call(main: Callable[[], None]) -> None:
    from dawm_jax.types import UserError

    set_up_logging()
    _cache_compilations()
    try:
        main()
    except UserError as error:
        fail(str(error), 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}", 1)
    except KeyboardInterrupt:
        fail("interrupted", 130)


def _describe_flags(module: str) -> str:
    """The flags that `module` defines, a paragraph each."""
    lines = ["Flags:"]
    for flag in flags.FLAGS.get_key_flags_for_module(sys.modules[module]):
        # A boolean flag is written without a value.
        plain = flag.default is None or isinstance(flag.default, bool)
        default = "" if plain else f"={flag.default}"
        lines.append(f"  --{flag.name + default:<28} {' '.join((flag.help or '').split())}")
    return "\n".join([*lines, ""])


def _readable(error: BaseException) -> str:
    """An error of absl's as one line."""
    message = " ".join(str(error).split())
    if message.endswith("must have a value other than None."):
        return f"{message.split()[1].split('=')[0].rstrip(':')} is missing"
    return message


def set_up_logging() -> None:
    """Shows this package's log lines with the time of day, and only warnings of libraries."""
    if log.handlers:
        return
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    # On a terminal the progress line is erased before a log line is written over it.
    erase = "\r\x1b[2K" if sys.stderr.isatty() else ""
    handler.setFormatter(logging.Formatter(erase + "%(asctime)s  %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _cache_compilations() -> None:
    """Keeps compiled programs between runs, unless the user chose a folder for them."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = pathlib.Path(root).expanduser() / "dawm_jax" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # The default keeps only what took a second; a run has dozens of smaller programs.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
