"""The processes of a job meet at the coordinator's port before JAX takes it over.

JAX waits for processes in silence, and aborts where they do not come. Here process 0 listens at
the port until every other process has said who it is; then all go on.
"""

import contextlib
import os
import socket
import time
from collections.abc import Collection, Iterable, Iterator
from typing import NoReturn

_WORD = "dawm_jax"
_GO = "go"
_MAX_LINE = 1_000  # bytes
_ANSWER_TIMEOUT_S = 5.0  # for one line of another process
_RETRY_S = 0.2


class MeetingError(Exception):
    """The processes did not meet; the message says why."""


def meet(address: str, size: int, process_id: int, *, timeout: float) -> None:
    """Returns in every process of the job once all have called it.

    Args:
      address: HOST:PORT at which process 0 listens; an IPv6 host stands in brackets.
      size: number of processes.
      process_id: of this one, from 0.
      timeout: seconds to wait.

    Raises:
      MeetingError: not all came in time, the port is taken, or two processes contradict each
        other.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise MeetingError(f"expected HOST:PORT, got {address}")
    until = time.monotonic() + timeout
    if process_id == 0:
        _receive(int(port), size, until)
    else:
        _visit(host.strip("[]"), int(port), size, process_id, until)


# --- process 0 ----------------------------------------------------------------------------


def _receive(port: int, size: int, until: float) -> None:
    """Waits for all others, and lets them go on."""
    waiting: dict[int, socket.socket] = {}
    seen: set[int] = set()
    with contextlib.ExitStack() as cleanup:
        server = cleanup.enter_context(_listen(port))
        while len(waiting) < size - 1:
            left = until - time.monotonic()
            if left <= 0:
                _refuse(_missing(size, seen, waiting), waiting.values())
            server.settimeout(min(1.0, left))
            peer = None
            with contextlib.suppress(TimeoutError):
                peer = cleanup.enter_context(server.accept()[0])
            for index in [i for i, other in waiting.items() if _is_closed(other)]:
                del waiting[index]  # the process ended; it may be started again
            if peer is not None:
                _admit(peer, size, waiting)
            seen |= waiting.keys()
        for peer in waiting.values():
            with contextlib.suppress(OSError):
                _send(peer, _GO)


def _listen(port: int) -> socket.socket:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise MeetingError(f"port {port} of this host: {reason}") from error


def _admit(peer: socket.socket, size: int, waiting: dict[int, socket.socket]) -> None:
    """Adds a process to those that wait; ends all if it contradicts one of them."""
    words = _read(peer).split()
    if len(words) != 3 or words[0] != _WORD or not (words[1] + words[2]).isdecimal():
        return  # a stranger, such as a port scanner
    index, its_size = int(words[1]), int(words[2])
    if its_size != size:
        problem = f"process {index} was told of {its_size} processes, process 0 of {size}"
        _refuse(problem, (peer, *waiting.values()))
    if index in waiting or index == 0:
        _refuse(f"two processes have the number {index}", (peer, *waiting.values()))
    waiting[index] = peer


def _missing(size: int, seen: Collection[int], waiting: Collection[int]) -> str:
    """Who is not there."""
    others = range(1, size)
    absent = ", ".join(str(i) for i in others if i not in seen)
    gone = ", ".join(str(i) for i in others if i in seen and i not in waiting)
    reasons = (absent and f"process {absent} did not come", gone and f"process {gone} gave up")
    return "; ".join(filter(None, reasons))


def _refuse(problem: str, peers: Iterable[socket.socket]) -> NoReturn:
    """Tells the others what is wrong, and raises it."""
    for peer in peers:
        with contextlib.suppress(OSError):
            _send(peer, problem)
    raise MeetingError(problem)


def _is_closed(peer: socket.socket) -> bool:
    """Whether a waiting process has ended."""
    peer.settimeout(0.0)
    try:
        return peer.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


# --- the others ---------------------------------------------------------------------------


def _visit(host: str, port: int, size: int, process_id: int, until: float) -> None:
    """Says who this process is until process 0 lets it go on."""
    reason = "nobody listens there"
    for left in _attempts(until):
        try:
            with socket.create_connection((host, port), timeout=min(left, 10.0)) as server:
                _send(server, f"{_WORD} {process_id} {size}")
                answer = _read(server, until - time.monotonic())
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            continue
        if answer == _GO:
            return
        if answer.isprintable() and "process" in answer:
            raise MeetingError(answer)
        reason = "process 0 ended, or another program listens there"
    raise MeetingError(f"{host}:{port}: {reason}")


def _attempts(until: float) -> Iterator[float]:
    """Seconds left, once per attempt."""
    while (left := until - time.monotonic()) > 0:
        yield left
        time.sleep(_RETRY_S)


# --- lines --------------------------------------------------------------------------------


def _send(peer: socket.socket, line: str) -> None:
    peer.settimeout(_ANSWER_TIMEOUT_S)
    peer.sendall(line.encode() + b"\n")


def _read(peer: socket.socket, timeout: float = _ANSWER_TIMEOUT_S) -> str:
    """One line; "" if the other side closes the connection or sends something else."""
    peer.settimeout(max(0.01, timeout))
    data = b""
    with contextlib.suppress(OSError):
        while b"\n" not in data and len(data) < _MAX_LINE:
            part = peer.recv(_MAX_LINE)
            if not part:
                return ""
            data += part
    return data.partition(b"\n")[0].decode(errors="replace")
