"""Ctrl-C while a command imports its libraries: one line instead of a traceback.

This module imports nothing that takes time.
"""

import itertools
import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    # An exception in the import of a compiled library can be lost or become another one.
    os.write(2, b"dawm_jax: interrupted\n")
    os._exit(130)


def quiet_imports() -> None:
    """Ends a command of this package at once on SIGINT, until `restore`; else does nothing."""
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if default and _is_command(sys.orig_argv):
        signal.signal(signal.SIGINT, _leave)


def restore() -> None:
    """SIGINT raises KeyboardInterrupt, so that what was begun can be cleaned up."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command(argv: Sequence[str]) -> bool:
    """Whether the interpreter was started for one of the commands."""
    for before, word in itertools.pairwise(argv):
        if before == "-m":
            return word.startswith("dawm_jax.")
        if not word.startswith("-"):
            return pathlib.PurePath(word).name.startswith("dawm-jax")
    return False
