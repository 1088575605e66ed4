"""Measuring candidates in turns, the peak memory of a process, and the time to the first step."""

import contextlib
import dataclasses
import math
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Protocol

from dawm_jax.benchmark.records import Rates
from dawm_jax.runtime.metrics import MetricsFile, Progress
from dawm_jax.types import UserError

MAX_SECONDS = 600.0  # largest duration of a turn that the commands accept


class Call(Protocol):
    """One call of what is measured."""

    def __call__(self) -> object:
        """Does the work and returns when the device is done."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is measured.

    Attributes:
      name: unique among the candidates of a comparison.
      call: does `units` of work.
      units: units of one call.
    """

    name: str
    call: Call
    units: float


class TurnReport(Protocol):
    """Receives the result of every turn."""

    def __call__(self, turns_done: int, name: str, rate: float, /) -> None:
        """Args: finished turns of all candidates, name of the candidate, its units/s."""


def _silent(turns_done: int, name: str, rate: float, /) -> None:
    del turns_done, name, rate


def in_turns(
    candidates: Sequence[Candidate],
    *,
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    report: TurnReport = _silent,
) -> dict[str, list[float]]:
    """Units per second of each candidate, one number per round.

    Every candidate has one turn in every round, in an order that rotates, so that other load of
    the machine slows all candidates alike. The first call of a turn is not counted: it fills
    the processor's caches.

    Args:
      candidates: what is measured.
      rounds: number of turns of each.
      seconds: least duration of a turn.
      clock: monotonic, in seconds.
      report: called after every turn.
    """
    rates: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    turns_done = 0
    for index in range(rounds):
        shift = index % len(candidates)
        for candidate in [*candidates[shift:], *candidates[:shift]]:
            rate = _turn(candidate, seconds, clock)
            rates[candidate.name].append(rate)
            turns_done += 1
            report(turns_done, candidate.name, rate)
    return rates


def _turn(candidate: Candidate, seconds: float, clock: Callable[[], float]) -> float:
    candidate.call()
    start, calls = clock(), 0
    while not calls or clock() - start < seconds:
        candidate.call()
        calls += 1
    return calls * candidate.units / (clock() - start)


@contextlib.contextmanager
def progress(label: str, turns: int) -> Iterator[TurnReport]:
    """Shows finished turns and the time left, on one line of the terminal or in the log.

    Args:
      label: name of the measurement.
      turns: turns of all candidates together.
    """
    line = Progress(label, turns, "turns")

    def report(turns_done: int, name: str, rate: float, /) -> None:
        line.report(turns_done, {f"{name}, per second": rate})

    try:
        yield report
    finally:
        line.close()


def summary(rates: list[float]) -> Rates:
    """Median, range and all of some rates."""
    return {
        "median": statistics.median(rates),
        "low": min(rates),
        "high": max(rates),
        "rounds": rates,
    }


def check_seconds(seconds: float) -> None:
    """Refuses an impossible least duration of a turn.

    Raises:
      ValueError: `seconds` is negative, too large or not a number.
    """
    if not math.isfinite(seconds) or not 0.0 <= seconds <= MAX_SECONDS:
        raise ValueError(f"--seconds: expected 0 to {MAX_SECONDS:g}, got {seconds:g}")


# --- memory -------------------------------------------------------------------------------


def peak_memory(work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Calls `work` in a new process and returns its result; see `watch_memory`.

    Args:
      work: a function of a module, or a `functools.partial` of one.
    """
    context = multiprocessing.get_context("spawn")
    # JAX takes most of a GPU's memory at its start; here two processes share the GPU.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    with futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work).result()


def watch_memory(work: Callable[[], float]) -> dict[str, float]:
    """Peak of the memory that `work` adds to what this process holds before, in bytes.

    Args:
      work: does everything once, compilation included. Returns the peak of the device's own
        memory in bytes, 0 if the device has none.

    Returns:
      "host" if the operating system reports it, and "device" if that is not 0.
    """
    before = _resident("VmRSS")
    device = work()
    found = {"host": _resident("VmHWM") - before} if before else {}
    return {**found, "device": device} if device else found


def _resident(field: str) -> float:
    """This process's resident memory in bytes: current (VmRSS) or peak (VmHWM); 0 if unknown."""
    status = pathlib.Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024.0 * float(line.split()[1]) for line in lines if line.startswith(field)), 0.0)


# --- the main program ---------------------------------------------------------------------


def seconds_to_first_step(*flags: str) -> dict[str, float]:
    """Seconds from the start of the main program until its first training step is done.

    Args:
      *flags: --config=... and further flags of the main program.

    Returns:
      "cold" with an empty cache of compiled programs, "warm" with the cache that the cold run
      filled.

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
            found[name] = _seconds_to_metrics(command, workdir, environment)
    return found


def _seconds_to_metrics(
    command: list[str], workdir: pathlib.Path, environment: dict[str, str]
) -> float:
    """Starts a run, waits for its first training metrics, and kills it."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stderr=errors, stdout=subprocess.DEVNULL
        )
        try:
            while not any(MetricsFile(workdir / "metrics.jsonl").lines(kind="train")):
                if process.poll() is not None:
                    errors.seek(0)
                    text = errors.read().decode().strip()[-500:]
                    raise UserError(f"{' '.join(command)} failed: {text}")
                time.sleep(0.05)
            return time.perf_counter() - start
        finally:
            process.kill()
            process.wait()
