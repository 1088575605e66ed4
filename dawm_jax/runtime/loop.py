"""The loop that every training stage shares: chunks, progress, checkpoints, stopping."""

import contextlib
import dataclasses
import logging
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dawm_jax.runtime import parallel
from dawm_jax.runtime.checkpoint import Checkpoints
from dawm_jax.runtime.metrics import MetricsFile, Progress, Writer
from dawm_jax.types import UserError

_log = logging.getLogger(__name__)


class Interrupted(Exception):
    """The user or the scheduler asked to stop; everything is saved."""


class Diverged(UserError):
    """A loss or a value stopped being a finite number."""


class Program(Protocol):
    """A jitted program that is not compiled yet."""

    def compile(self, state: Any, first_step: jax.Array) -> Callable[..., tuple[Any, Any]]:
        """Compiles for arguments like these: (state, first_step) -> (state, metrics)."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the training that has its own state and checkpoints.

    Attributes:
      name: of the stage, its folder and its metrics.
      unit: what a step is, for people.
      total_steps: of the whole stage.
      chunk_steps: steps of one program call; also how often metrics are logged.
      checkpoint_steps: steps between checkpoints.
      compile: number of steps -> a program whose `compile(state, first_step)` gives
        (state, first_step) -> (state, metrics).
      assess: (state, step) -> what diagnostics or an evaluation found, to be recorded.
      assess_steps: steps between assessments; one is always made at the end.
      prepare: state -> state, before the first step of a stage that starts afresh.
    """

    name: str
    unit: str
    total_steps: int
    chunk_steps: int
    checkpoint_steps: int
    compile: Callable[[int], Program]
    assess: Callable[[Any, int], dict[str, Any]]
    assess_steps: int
    prepare: Callable[[Any], Any] = lambda state: state


@dataclasses.dataclass
class StopFlag:
    """Set by a signal, looked at between chunks."""

    signal: int | None = None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """SIGTERM, SIGINT and SIGUSR1 set the flag; a second SIGINT interrupts at once."""
    flag = StopFlag()

    def handler(number, frame):
        if flag.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.signal = number
        _log.info("%s: saving and stopping", signal.Signals(number).name)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield flag
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def run_stage(
    stage: Stage,
    state: Any,
    statistics: Any,
    *,
    workdir: pathlib.Path,
    log: MetricsFile,
    writers: list[Writer],
    stop: StopFlag,
) -> Any:
    """Trains a stage to its end, from its newest checkpoint if there is one.

    Args:
      stage: what to run.
      state: its initial state, placed; donated.
      statistics: a tree of arrays that stays the same, stored beside the state.
      workdir: checkpoints go to `workdir`/checkpoints/`stage.name`.
      log: metrics.jsonl.
      writers: optional further writers.
      stop: looked at between chunks.

    Every process of a job runs this with the same arguments.

    Returns:
      The final state.

    Raises:
      Interrupted: `stop` was set; the state is saved.
      Diverged: a metric is not finite; the last good checkpoint stays.
      UserError: a checkpoint cannot be read or written.
    """
    checkpoints = Checkpoints(workdir / "checkpoints" / stage.name)
    try:
        saved = {"state": state, "statistics": statistics}
        restored = checkpoints.restore(saved, discard_damaged=True)
        step = 0
        if restored is not None:
            saved, step = restored
            state = saved["state"]
            _log.info("%s: resumed at %s %d of %d", stage.name, stage.unit, step, stage.total_steps)
        else:
            state = stage.prepare(state)
        log.rewind(stage.name, step)
        recorder = _Recorder(stage, log, writers, checkpoints)
        # A run stopped between its last checkpoint and the assessment there makes up for it.
        recorder.assess_if_due(state, step)
        while step < stage.total_steps:
            # A signal to any process stops all of them at the same step.
            if parallel.anywhere(stop.signal is not None):
                recorder.flush()
                _save(checkpoints, step, state, statistics)
                raise Interrupted(f"{stage.name} at {stage.unit} {step}")
            steps = min(stage.chunk_steps, stage.total_steps - step)
            state, metrics = recorder.run_chunk(state, step, steps)
            step += steps
            recorder.dispatched(step, metrics)
            last = step == stage.total_steps
            if last or step % stage.checkpoint_steps < steps:
                recorder.flush()
                _save(checkpoints, step, state, statistics)
            recorder.assess_if_due(state, step)
        recorder.close()
        return state
    finally:
        checkpoints.close()


def _save(checkpoints: Checkpoints, step: int, state: Any, statistics: Any) -> None:
    if checkpoints.latest_step() != step:
        checkpoints.save(step, {"state": state, "statistics": statistics})


class _Recorder:
    """Compiles, times and records a stage's chunks, one behind what the device works on."""

    def __init__(self, stage, log, writers, checkpoints):
        self._stage, self._log, self._writers = stage, log, writers
        self._checkpoints = checkpoints
        last = list(log.lines(stage.name, "train"))
        self._seconds = last[-1]["seconds"] if last else 0.0
        self._compile_seconds = last[-1]["compile_seconds"] if last else 0.0
        self._programs: dict[int, Any] = {}
        self._pending: tuple[int, Any] | None = None
        self._progress: Progress | None = None
        self._mark = time.monotonic()

    def run_chunk(self, state, step, steps):
        first = jnp.int32(step)
        if steps not in self._programs:
            self.flush()
            _log.info("%s: compiling", self._stage.name)
            start = time.monotonic()
            self._programs[steps] = self._stage.compile(steps).compile(state, first)
            self._compile_seconds += time.monotonic() - start
            self._mark = time.monotonic()
        if (
            self._progress is None and parallel.is_first()
        ):  # not before compilation: it would spoil the time left
            stage = self._stage
            self._progress = Progress(stage.name, stage.total_steps, stage.unit, step)
        return self._programs[steps](state, first)

    def dispatched(self, step: int, metrics: Any) -> None:
        """Fetches the previous chunk's metrics while the device computes the new one."""
        previous, self._pending = self._pending, (step, metrics)
        if previous is not None:
            self._record(*previous)

    def flush(self) -> None:
        """Waits for the device and records what is pending."""
        if self._pending is not None:
            previous, self._pending = self._pending, None
            self._record(*previous)

    def assess_if_due(self, state, step: int) -> None:
        stage = self._stage
        # Due once a chunk has passed a multiple of `assess_steps`, and at the end.
        passed = step % stage.assess_steps < stage.chunk_steps
        due = step > 0 and (passed or step == stage.total_steps)
        if not due:
            return
        recorded = any(e["step"] == step for e in self._log.lines(stage.name, "assess"))
        if parallel.anywhere(recorded):  # only the first process has the log
            return
        self.flush()
        start = time.monotonic()
        values = stage.assess(state, step)
        elapsed = time.monotonic() - start
        self._log.append(stage.name, "assess", step, {**values, "seconds": elapsed})
        self._write(step, values)
        self._mark = time.monotonic()

    def close(self) -> None:
        self.flush()
        if self._progress is not None:
            self._progress.close()

    def _record(self, step: int, metrics: Any) -> None:
        values = {name: float(np.mean(x)) for name, x in jax.device_get(metrics).items()}
        now = time.monotonic()
        self._seconds += now - self._mark
        self._mark = now
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        if bad:
            last = self._checkpoints.latest_step()
            raise Diverged(
                f"{self._stage.name}: {bad[0]} is not a finite number by {self._stage.unit} "
                f"{step}; the last good checkpoint is at {last}: lower the learning rate and "
                "start a new --workdir"
            )
        times = {"seconds": self._seconds, "compile_seconds": self._compile_seconds}
        self._log.append(self._stage.name, "train", step, {**values, **times})
        self._write(step, values)
        if self._progress is not None:
            self._progress.report(step, values)

    def _write(self, step: int, values: dict[str, Any]) -> None:
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, (int, float))}
        for writer in self._writers:
            writer.write(self._stage.name, step, numbers)
