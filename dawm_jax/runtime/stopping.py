"""Stopping on request: signals set a flag, which everything that takes long reads.

This module imports nothing that takes time.
"""

import contextlib
import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Interrupted(Exception):
    """A signal asked to stop, and what can be saved is saved; the message says in what."""


@dataclasses.dataclass
class StopFlag:
    """Set by a signal."""

    signal: int | None = None

    def check(self, where: str) -> None:
        """Raises Interrupted(where) if the flag is set."""
        if self.signal is not None:
            raise Interrupted(where)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """SIGTERM, SIGINT, SIGUSR1 and SIGHUP set the flag; a second SIGINT interrupts at once.

    A SIGHUP that the process ignores, as below nohup, stays ignored.
    """
    flag = StopFlag()
    terminals = [fd for fd in (1, 2) if os.isatty(fd)]

    def handler(number: int, frame: FrameType | None) -> None:
        if flag.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.signal = number
        _leave_closed(terminals)
        _log.info("%s: stopping", signal.Signals(number).name)

    # Python allows signal handlers in the main thread alone.
    main = threading.current_thread() is threading.main_thread()
    numbers: tuple[signal.Signals, ...] = _SIGNALS if main else ()
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        numbers = tuple(number for number in numbers if number != signal.SIGHUP)
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield flag
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _leave_closed(terminals: list[int]) -> None:
    """Sends the output for a closed terminal nowhere: writing to it would fail."""
    for fd in terminals:
        if not os.isatty(fd):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, fd)
            os.close(nowhere)
