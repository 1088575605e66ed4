"""What goes wrong while a command imports its libraries: one line instead of a traceback.

Ctrl-C, and variables of the environment that JAX refuses as it is imported.

This module imports nothing that takes time.
"""

import itertools
import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType, TracebackType

# The file of JAX that reads its variables.
_READS_VARIABLES = os.path.join("jax", "_src", "config.py")


def _leave(number: int, frame: FrameType | None) -> None:
    # An exception in the import of a compiled library can be lost or become another one.
    os.write(2, b"dawm_jax: interrupted\n")
    os._exit(130)


def _explain(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Prints an exception that ends the program; that of a wrong variable as one line."""
    last = traceback
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = "" if last is None else last.tb_frame.f_code.co_filename
    if where.endswith(_READS_VARIABLES) and "--debug" not in sys.argv:
        reason = " ".join(str(error).split())
        line = (
            f"dawm_jax: JAX refuses a variable of the environment ({reason}); correct or unset it"
        )
        print(line, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def quiet_imports() -> None:
    """Prepares a command of this package for its imports, until `restore`; else does nothing.

    SIGINT ends it at once, and a variable of the environment that JAX refuses is one line.
    """
    if not _is_command(sys.orig_argv):
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _explain


def restore() -> None:
    """SIGINT raises KeyboardInterrupt, so that what was begun can be cleaned up."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.excepthook is _explain:
        sys.excepthook = sys.__excepthook__


def _is_command(argv: Sequence[str]) -> bool:
    """Whether the interpreter was started for one of the commands."""
    for before, word in itertools.pairwise(argv):
        if before == "-m":
            return word.startswith("dawm_jax.")
        if not word.startswith("-"):
            return pathlib.PurePath(word).name.startswith("dawm-jax")
    return False
