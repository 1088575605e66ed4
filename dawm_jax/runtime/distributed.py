"""The processes of a job: how they find each other, exchange values, and end.

A job may be several processes, each with its own devices; jax.distributed connects them. All
processes run the same program on global arrays. Process 0 alone writes files and the log.
"""

import importlib.util
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from dawm_jax.types import UserError, first_line

T = TypeVar("T")

SHUTDOWN_TIMEOUT_S = 20  # seconds that an ending process waits for the others
EXIT_DELAY_S = 2.0  # seconds that a failing process 0 gives the others to report their errors
_STATUS = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")


def join(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Connects this process to the others of its job, before anything is computed.

    Does nothing where there are no others. Without arguments the job is what `srun` started
    (SLURM), or the hosts of a Cloud TPU slice.

    Args:
      coordinator_address: host:port of process 0.
      num_processes: of the job.
      process_id: of this one, from 0.

    Raises:
      UserError: only some of the arguments, or the others cannot be reached.
    """
    given = (coordinator_address, num_processes, process_id)
    if any(value is not None for value in given):
        if coordinator_address is None or num_processes is None or process_id is None:
            raise UserError(
                "expected --coordinator_address, --num_processes and --process_id together"
            )
        if not 0 <= process_id < num_processes:
            raise UserError(
                f"--process_id: expected 0 to {num_processes - 1} with "
                f"--num_processes={num_processes}, got {process_id}"
            )
        size = num_processes
    else:
        size = _world_size(os.environ)
    if size == 1:
        return
    # JAX's preemption service installs a SIGTERM handler, which would replace the one of
    # loop.stop_on_signals. It also requires step numbers that grow by one, and chunks are longer.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *given,
            local_device_ids=_slurm_devices(os.environ),
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT_S,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"the {size} processes of this job did not find each other ({first_line(error)}); "
            "check that all were started, and the coordinator's address and port"
        ) from error


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


def first_process_then_rest(function: Callable[[], T]) -> T:
    """Calls `function` on process 0, then on the others.

    The others find what process 0 downloaded, cached or created.

    Raises:
      UserError: that of the first process that raised one, in all processes.
    """
    turns = (is_first(), not is_first()) if jax.process_count() > 1 else (True,)
    for turn in turns:
        message = None
        if turn:
            try:
                result = function()
            except UserError as error:
                message = str(error)
        messages = [text for text in exchange(message) if text is not None]
        if messages:
            raise UserError(messages[0])
    return result


def _world_size(environment: Mapping[str, str]) -> int:
    """Processes of this job, from what started it."""
    step = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    # The body of a batch script has no step: srun has not started the other tasks.
    if all(name in environment for name in step):
        return int(environment["SLURM_NTASKS"])
    platforms = environment.get("JAX_PLATFORMS", "tpu")
    if "tpu" in platforms.split(",") and importlib.util.find_spec("libtpu") is not None:
        return _tpu_hosts(environment)
    return 1


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
    tasks, nodes = environment.get("SLURM_NTASKS"), environment.get("SLURM_STEP_NUM_NODES")
    if tasks is None or tasks != nodes or "SLURM_GPUS_ON_NODE" not in environment:
        return None
    return list(range(int(environment["SLURM_GPUS_ON_NODE"])))
