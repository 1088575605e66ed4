"""The processes of a job: how they find each other, exchange values, and end.

A job may be several processes, each with its own devices; jax.distributed connects them. All
processes run the same program on global arrays. Process 0 alone writes files and the log.
"""

import concurrent.futures
import ctypes
import importlib.util
import json
import logging
import os
import re
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from dawm_jax.runtime import rendezvous
from dawm_jax.runtime.stopping import Interrupted
from dawm_jax.types import UserError, first_line

_log = logging.getLogger(__name__)

T = TypeVar("T")

JOIN_TIMEOUT_S = 300  # seconds that the processes of a job wait for each other at the start
# JAX aborts the others so many seconds after a process ended. A process that computes or waits
# still sends heartbeats; one that is suspended for longer is taken for dead.
HEARTBEAT_TIMEOUT_S = 30
SHUTDOWN_TIMEOUT_S = 20  # seconds that an ending process waits for the others
_MEANWHILE_S = 0.2  # seconds between the calls that a process makes while it waits
EXIT_DELAY_S = 2.0  # seconds that a failing process 0 gives the others to report their errors
_STATUS = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
# Variables by which a SLURM step tells a task about the others.
_SLURM_STEP = (
    *("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"),
)


class Job(NamedTuple):
    """The processes that belong together, as this one was told."""

    size: int
    told_by: str  # by which flags or variables, in words
    # Unknown on the hosts of a TPU slice, which JAX finds itself.
    address: str | None = None  # HOST:PORT of process 0
    process_id: int | None = None


def join(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Connects this process to the others of its job, before anything is computed.

    Does nothing where there are no others. Without arguments the job is what `srun` started
    (SLURM), or the hosts of a Cloud TPU slice. A log line says what is waited for.

    Args:
      coordinator_address: host:port of process 0.
      num_processes: of the job.
      process_id: of this one, from 0.

    Raises:
      UserError: only some of the arguments, or the others cannot be reached within
        JOIN_TIMEOUT_S seconds.
    """
    job = _given_job(coordinator_address, num_processes, process_id) or _found_job(os.environ)
    if job.size == 1:
        return
    # JAX's preemption service installs a SIGTERM handler, which would replace the one of
    # stopping.stop_on_signals. It also requires step numbers that grow by one, and chunks are
    # longer.
    jax.config.update("jax_enable_preemption_service", False)
    _wait_for_all(job)
    _explain_aborts()
    try:
        jax.distributed.initialize(
            job.address,
            job.size if job.address else None,
            job.process_id,
            local_device_ids=_slurm_devices(os.environ),
            initialization_timeout=JOIN_TIMEOUT_S,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT_S,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(_not_found(job, first_line(error))) from error


def _wait_for_all(job: Job) -> None:
    """Returns once all processes are there; JAX itself would wait in silence and then abort."""
    if job.address is None or job.process_id is None:
        _log.info("waiting for the %d hosts of %s", job.size, job.told_by)
        return
    _log.info(
        "process %d of %d: waiting for the others at %s (%s)",
        *(job.process_id, job.size, job.address, job.told_by),
    )
    try:
        rendezvous.meet(job.address, job.size, job.process_id, timeout=JOIN_TIMEOUT_S)
    except rendezvous.MeetingError as error:
        raise UserError(_not_found(job, str(error))) from error


def _not_found(job: Job, reason: str) -> str:
    return (
        f"the {job.size} processes of this job did not find each other ({reason}); check that all "
        f"were started ({job.told_by}), and the coordinator's address and port"
    )


def _explain_aborts() -> None:
    """Makes a line of this program the last one where JAX aborts the process.

    JAX's client ends the process from a thread of its own once another process is lost. It prints
    a stack trace first, which cannot be avoided.
    """

    def explain(number: int) -> None:
        os.write(
            2,
            b"dawm_jax: another process of this job ended, or cannot be reached (details are "
            b"above); the same command resumes at the last checkpoint\n",
        )
        os._exit(1)

    global _abort_handler
    _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(explain)
    # Python's own handlers run in the main thread alone, and abort() does not wait for them.
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _abort_handler)


_abort_handler: Any = None  # what C calls must not be collected


def leave() -> None:
    """Waits without a limit until all processes of the job end, then disconnects."""
    if jax.distributed.is_initialized():
        exchange(None)
        jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this is process 0, which writes files and the log."""
    return jax.process_index() == 0


def exit_delay() -> float | None:
    """Seconds that a failing process waits before it exits; None for a job of one process.

    The exit of process 0 ends all other processes at once, so process 0 waits until they have
    reported their own errors.
    """
    if jax.process_count() == 1:
        return None
    return EXIT_DELAY_S if is_first() else 0.0


def is_from_devices(error: Exception) -> bool:
    """Whether a device or the link to other processes failed.

    JAX raises JaxRuntimeError for a failure while a program runs. It raises a ValueError that
    begins with the status code for a failure at the dispatch, such as that of a collective whose
    peer has exited.
    """
    return isinstance(error, jax.errors.JaxRuntimeError) or bool(_STATUS.match(str(error)))


def describe_process() -> str:
    """ " (process 2 of 4)"; empty for process 0."""
    return "" if is_first() else f" (process {jax.process_index()} of {jax.process_count()})"


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process; all processes must call it at the same point."""
    return bool(multihost_utils.process_allgather(np.int32(flag)).any())


def exchange(value: Any) -> list[Any]:
    """The `value` of every process, in their order; all must call it at the same point.

    Args:
      value: what JSON can hold.
    """
    text = json.dumps(value).encode()
    longest = int(multihost_utils.process_allgather(np.int32(len(text))).max())
    # JSON ignores spaces at the end of a text.
    rows = multihost_utils.process_allgather(np.frombuffer(text.ljust(longest), np.uint8))
    return [json.loads(bytes(row)) for row in rows]


def first_process_then_rest(
    function: Callable[[], T], *, meanwhile: Callable[[], None] | None = None
) -> T:
    """Calls `function` on process 0, then on the others.

    The others find what process 0 downloaded, cached or created.

    Args:
      function: what to call.
      meanwhile: called several times a second by the others while process 0 works. Their
        handlers of signals run too then; without it they run when process 0 is done.

    Raises:
      UserError, Interrupted: that of the first process that raised one, in all processes.
    """
    if jax.process_count() == 1:
        return function()
    for is_turn_of_first in (True, False):
        turn = is_first() == is_turn_of_first
        raised: UserError | Interrupted | None = None
        if turn:
            try:
                result = function()
            except (UserError, Interrupted) as error:
                raised = error
        kind = isinstance(raised, Interrupted)
        answer = None if raised is None else [kind, str(raised)]
        waits = is_turn_of_first and not is_first()
        if waits and meanwhile is not None:
            answers = _in_thread(lambda: exchange(None), meanwhile)
        else:
            answers = exchange(answer)
        if raised is not None:
            raise raised
        for interrupted, message in filter(None, answers):
            raise Interrupted(message) if interrupted else UserError(message)
    return result


def _in_thread(function: Callable[[], T], meanwhile: Callable[[], None]) -> T:
    """Calls `function` in a thread, and `meanwhile` in this one until the thread is done.

    Python runs the handlers of signals in the main thread, and not while that thread waits for
    other processes.
    """
    found: concurrent.futures.Future[T] = concurrent.futures.Future()

    def call() -> None:
        try:
            found.set_result(function())
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    while not found.done():
        meanwhile()
        concurrent.futures.wait([found], timeout=_MEANWHILE_S)
    return found.result()


def on_first_process(
    function: Callable[[], T], *, meanwhile: Callable[[], None] | None = None
) -> T | None:
    """Calls `function` on process 0 while the others wait; None in the others.

    Args:
      function: what to call.
      meanwhile: see `first_process_then_rest`.

    Raises:
      UserError, Interrupted: that of process 0, in all processes.
    """
    return first_process_then_rest(lambda: function() if is_first() else None, meanwhile=meanwhile)


# --- who there is -------------------------------------------------------------------------


def _given_job(address: str | None, size: int | None, process_id: int | None) -> Job | None:
    """The job of the three flags; None without any."""
    if address is None and size is None and process_id is None:
        return None
    if address is None or size is None or process_id is None:
        raise UserError("expected --coordinator_address, --num_processes and --process_id together")
    if not 0 <= process_id < size:
        raise UserError(
            f"--process_id: expected 0 to {size - 1} with --num_processes={size}, got {process_id}"
        )
    told_by = "--coordinator_address, --num_processes and --process_id"
    return Job(size, told_by, address, process_id)


def _found_job(environment: Mapping[str, str]) -> Job:
    """The job of what started this process: a SLURM step, a TPU slice, or nothing."""
    # The body of a batch script has no step: srun has not started the other tasks.
    if all(name in environment for name in _SLURM_STEP):
        return _slurm_job(environment)
    platforms = environment.get("JAX_PLATFORMS", "tpu")
    if "tpu" in platforms.split(",") and importlib.util.find_spec("libtpu") is not None:
        return Job(_tpu_hosts(environment), "this TPU slice")
    return Job(1, "nothing")


def _slurm_job(environment: Mapping[str, str]) -> Job:
    """The tasks of a SLURM step, with the address that JAX too derives from its variables."""
    size = _slurm_tasks(environment)
    # node001, node001,node002 or node[001-004,007],other
    nodes = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", environment["SLURM_STEP_NODELIST"])
    host = "".join(part for part in nodes.groups() if part) if nodes else "localhost"
    # The last 4,096 ports; steps of different jobs should not meet.
    port = 65_535 - 2**12 + 1 + int(environment["SLURM_JOB_ID"]) % 2**12
    port = int(environment.get("JAX_COORDINATOR_PORT", port))
    return Job(
        size,
        f"SLURM's step of {size} tasks; without SLURM_JOB_ID a process is alone",
        environment.get("JAX_COORDINATOR_ADDRESS") or f"{host}:{port}",
        int(environment["SLURM_PROCID"]),
    )


def _slurm_tasks(environment: Mapping[str, str]) -> int:
    """Tasks of the step; an interactive step has fewer than its allocation, SLURM_NTASKS."""
    return int(environment.get("SLURM_STEP_NUM_TASKS") or environment["SLURM_NTASKS"])


def _tpu_hosts(environment: Mapping[str, str]) -> int:
    """Number of hosts of this TPU slice, from Kubernetes' variable or the machine's metadata."""
    if names := environment.get("TPU_WORKER_HOSTNAMES"):
        return len(names.split(","))
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/worker-network-endpoints",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5.0) as answer:
            return len(answer.read().decode().split(","))
    except (urllib.error.URLError, OSError):
        return 1  # a TPU machine outside Google Cloud has no metadata server


def _slurm_devices(environment: Mapping[str, str]) -> list[int] | None:
    """All GPUs of the node if the node runs one task; None lets JAX give each task one GPU."""
    nodes = environment.get("SLURM_STEP_NUM_NODES")
    if nodes is None or "SLURM_NTASKS" not in environment:
        return None
    if _slurm_tasks(environment) != int(nodes) or "SLURM_GPUS_ON_NODE" not in environment:
        return None
    return list(range(int(environment["SLURM_GPUS_ON_NODE"])))
