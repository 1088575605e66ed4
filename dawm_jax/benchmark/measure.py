"""Measuring side by side: turns, medians, peak memory, and the time to the first step."""

import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple

from dawm_jax.runtime.metrics import MetricsFile
from dawm_jax.types import UserError


class Contender(NamedTuple):
    """One side of a comparison.

    Attributes:
      name: of the side.
      call: does `units` of work and returns when the device is done.
      units: of a call.
    """

    name: str
    call: Callable[[], Any]
    units: float


def in_turns(
    contenders: list[Contender],
    *,
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Units a second of each contender, one number a round.

    All contenders work in every round, in an order that rotates, so that they share what
    else the machine does. A turn begins with a call that is not counted: the caches are
    then its own.

    Args:
      contenders: who is measured.
      rounds: how often.
      seconds: least time of a turn.
      clock: seconds, monotonic.
    """
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for index in range(rounds):
        shift = index % len(contenders)
        for contender in contenders[shift:] + contenders[:shift]:
            contender.call()
            start, calls = clock(), 0
            while not calls or clock() - start < seconds:
                contender.call()
                calls += 1
            rates[contender.name].append(calls * contender.units / (clock() - start))
    return rates


def summary(rates: list[float]) -> dict[str, Any]:
    """Median, range and all of some rates."""
    return {
        "median": statistics.median(rates),
        "low": min(rates),
        "high": max(rates),
        "rounds": rates,
    }


def peak_memory(work: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """What `work(*arguments)` returns, called in a process of its own; see `watch_memory`."""
    context = multiprocessing.get_context("spawn")
    # A device's memory must not be taken in advance by two processes.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    with futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def watch_memory(work: Callable[[], Callable[[], float]]) -> dict[str, float]:
    """Memory that `work` adds to what this process holds already, in bytes.

    Args:
      work: does everything once, compilation too; gives what reads the device's own peak.

    Returns:
      "host" where the system tells, and "device" where that is not the host.
    """
    before = _resident("VmRSS")
    device = work()()
    found = {"host": _resident("VmHWM") - before} if before else {}
    return {**found, "device": device} if device else found


def _resident(field: str) -> float:
    """This process's resident memory now (VmRSS) or at its most (VmHWM), bytes; 0 if unknown."""
    status = pathlib.Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024.0 * float(line.split()[1]) for line in lines if line.startswith(field)), 0.0)


def seconds_to_first_step(*flags: str) -> dict[str, float]:
    """Seconds from the start of the main program until its first training step is done.

    Run twice: "cold" with an empty cache of compiled programs, "warm" with what that left.

    Args:
      *flags: --config=... and further ones.

    Raises:
      UserError: the program ended before its first step.
    """
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{scratch}/cache"}
        for name in ("cold", "warm"):
            workdir = pathlib.Path(scratch) / name
            command = [sys.executable, "-m", "dawm_jax.main", *flags]
            command += [f"--workdir={workdir}", "--config.world_model.log_steps=1"]
            start = time.perf_counter()
            process = subprocess.Popen(
                command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
            )
            try:
                while not any(MetricsFile(workdir / "metrics.jsonl").lines(kind="train")):
                    if process.poll() is not None:
                        assert process.stderr is not None
                        text = process.stderr.read().decode()
                        raise UserError(f"{' '.join(command)} failed: {text[-500:]}")
                    time.sleep(0.05)
                found[name] = time.perf_counter() - start
            finally:
                process.kill()
                process.wait()
    return found
