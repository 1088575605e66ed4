"""Stopping on request: signals set a flag, which everything that takes long reads.

This module imports nothing that takes time.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
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
    """Set by a signal.

    Attributes:
      signal: number of the signal that came, or None.
      request: file that another process of the job makes if it got a signal; None in a job of
        one process.
    """

    signal: int | None = None
    request: pathlib.Path | None = None
    _at_once: str | None = None  # what a signal interrupts at once, see `at_once`

    def check(self, where: str) -> None:
        """Raises Interrupted(where) if the flag is set or another process asks to stop."""
        if self.signal is not None or (self.request is not None and self.request.exists()):
            raise Interrupted(where)

    def ask(self) -> None:
        """Asks the process that works to stop if this one, which waits for it, got a signal."""
        if self.signal is not None and self.request is not None:
            # Where the file cannot be made, this process stops after what it waits for.
            with contextlib.suppress(OSError):
                self.request.touch()

    @contextlib.contextmanager
    def at_once(self, where: str) -> Iterator[None]:
        """A signal raises Interrupted(where) at once in here, where nothing has to be saved."""
        self.check(where)
        self._at_once = where
        try:
            yield
        except Exception as error:
            # Libraries turn what the handler raises into errors of their own.
            if self.signal is not None:
                raise Interrupted(where) from error
            raise
        finally:
            self._at_once = None


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
        if flag._at_once is not None:
            raise Interrupted(flag._at_once)

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
