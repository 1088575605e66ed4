"""The processes of a job meet, or say why they do not."""

import concurrent.futures
import socket
import time

import pytest

from dawm_jax.runtime import rendezvous
from dawm_jax.runtime.rendezvous import MeetingError


@pytest.fixture(name="port")
def _port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def meet(port, *processes, timeout=20.0):
    """What each (size, process_id) raised, or None; all start at once."""

    def one(process):
        try:
            rendezvous.meet(f"localhost:{port}", *process, timeout=timeout)
        except MeetingError as error:
            return str(error)
        return None

    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(one, processes))


def test_all_go_on_once_all_are_there(port):
    assert meet(port, (3, 2), (3, 1), (3, 0)) == [None] * 3
    # JAX binds the port next; a restarted job meets there too.
    assert meet(port, (2, 0), (2, 1)) == [None] * 2


def test_a_missing_process_is_named_after_the_timeout(port):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        patient = pool.submit(meet, port, (3, 2))
        assert meet(port, (3, 0), timeout=1.0) == ["process 1 did not come"]
        assert patient.result() == ["process 1 did not come"]  # it need not wait any longer


def test_a_missing_coordinator_is_told(port):
    (error,) = meet(port, (2, 1), timeout=0.3)
    assert error == f"localhost:{port}: Connection refused"


@pytest.mark.parametrize(
    ("processes", "message"),
    [
        (((3, 0), (3, 1), (3, 1)), "two processes have the number 1"),
        (((2, 0), (4, 1)), "process 1 was told of 4 processes, process 0 of 2"),
    ],
)
def test_contradictions_end_all_at_once(port, processes, message):
    assert meet(port, *processes, timeout=60.0) == [message] * len(processes)


def test_a_port_that_is_taken(port):
    with socket.create_server(("", port)):
        (error,) = meet(port, (2, 0), timeout=0.3)
    assert error == f"port {port} of this host: Address already in use"


def test_another_program_at_the_port_is_no_process_of_the_job(port):
    with socket.create_server(("", port)):  # it never answers
        (error,) = meet(port, (2, 1), timeout=0.5)
    assert error == f"localhost:{port}: process 0 ended, or another program listens there"


def test_strangers_and_processes_that_died_are_not_counted(port):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet, port, (3, 0))
        for line in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n", b"dawm_jax 1 3\n"):
            _say(port, line)  # and hangs up
        assert not first.done()
        assert meet(port, (3, 1), (3, 2)) == [None, None]
        assert first.result() == [None]


def _say(port, line):
    for _ in range(100):
        try:
            with socket.create_connection(("localhost", port)) as peer:
                peer.sendall(line)
                time.sleep(0.05)
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError("nobody listens")


@pytest.mark.parametrize("address", ["nowhere", "host:", "host:99999", "host:x"])
def test_addresses(address):
    with pytest.raises(MeetingError, match="expected HOST:PORT"):
        rendezvous.meet(address, 2, 0, timeout=1.0)
