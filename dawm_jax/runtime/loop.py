"""The loop that every training stage shares: chunks, progress, checkpoints, stopping."""

import dataclasses
import functools
import logging
import pathlib
import time
from typing import Any, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from dawm_jax.runtime import distributed
from dawm_jax.runtime.checkpoint import Checkpoints
from dawm_jax.runtime.metrics import MetricsFile, Progress, Writer
from dawm_jax.runtime.sharding import Placement
from dawm_jax.runtime.stopping import Interrupted, StopFlag
from dawm_jax.types import Metrics, UserError

_log = logging.getLogger(__name__)

State = TypeVar("State")
State_contra = TypeVar("State_contra", contravariant=True)


class Diverged(UserError):
    """A loss or a value is not a finite number."""


# --- what a stage computes ----------------------------------------------------------------


class Steps(Protocol[State]):
    """The consecutive steps of a stage."""

    def compile(self, state: State, num_steps: int) -> None:
        """Prepares calls of `num_steps` steps; called once before the first such call."""

    def __call__(self, state: State, first_step: int, num_steps: int) -> tuple[State, Metrics]:
        """Makes `num_steps` steps; `state` is donated. Returns before the device is done."""


class StepFn(Protocol[State]):
    """A traceable function that makes several steps in one scan."""

    def __call__(
        self,
        state: State,
        key: jax.Array,
        first_step: jax.Array,
        constants: Any,
        /,
        *,
        num_steps: int,
    ) -> tuple[State, Metrics]:
        """The state after the steps, and each metric's mean over them.

        Args:
          state: before the first step.
          key: of the stage; step i draws from fold_in(key, i), so that neither the length of a
            call nor a resumption changes the numbers.
          first_step: int32 index of the first step.
          constants: tree of arrays, such as datasets and frozen models. A closure would copy
            them into the program.
          num_steps: steps of the call.
        """


class JittedSteps(Generic[State]):
    """Compiles a `StepFn` once for each number of steps.

    Args:
      step_fn: function to compile.
      key: key of the stage, placed; [seeds] with `over_seeds`.
      constants: constants of the stage, placed.
      placement: how the program is spread over devices.
      over_seeds: whether state, key and metrics have a leading axis of seeds.
    """

    def __init__(
        self,
        step_fn: StepFn[State],
        *,
        key: jax.Array,
        constants: Any,
        placement: Placement,
        over_seeds: bool,
    ):
        self._step_fn, self._key, self._constants = step_fn, key, constants
        self._placement = placement
        self._jit = placement.jit_seeds if over_seeds else placement.jit_batch
        self._programs: dict[int, jax.stages.Compiled] = {}

    def lower(self, state: State, num_steps: int) -> jax.stages.Lowered:
        """The traced program of `num_steps` steps."""
        program = self._jit(functools.partial(self._step_fn, num_steps=num_steps))
        return program.lower(state, self._key, jnp.int32(0), self._constants)

    def compile(self, state: State, num_steps: int) -> None:
        """See `Steps`."""
        self._programs[num_steps] = self.lower(state, num_steps).compile()

    def __call__(self, state: State, first_step: int, num_steps: int) -> tuple[State, Metrics]:
        """See `Steps`."""
        program = self._programs[num_steps]
        state, metrics = program(state, self._key, jnp.int32(first_step), self._constants)
        # Each seed's metrics lie on its own devices, and every process reads those of all seeds.
        return state, self._placement.replicate(metrics)


class Assess(Protocol[State_contra]):
    """Diagnostics of a model, or an evaluation of agents."""

    def __call__(self, state: State_contra, step: int, /) -> dict[str, Any]:
        """What metrics.jsonl records."""


class Prepare(Protocol[State]):
    """What happens before the first step of a stage that starts without a checkpoint."""

    def __call__(self, state: State, /) -> State: ...


def _unchanged(state: State, /) -> State:
    return state


@dataclasses.dataclass(frozen=True)
class Stage(Generic[State]):
    """A part of the training that has its own state and checkpoints.

    Attributes:
      name: name of the stage, of its checkpoint folder, and in metrics.jsonl.
      unit: display name of a step.
      steps: computes consecutive steps.
      total_steps: steps of the whole stage.
      chunk_steps: steps of one program call, and between log lines.
      checkpoint_steps: steps between checkpoints.
      assess: diagnostics or an evaluation, whose result metrics.jsonl records.
      assess_steps: steps between assessments; the last step is always assessed.
      prepare: called with the initial state unless a checkpoint is restored.
    """

    name: str
    unit: str
    steps: Steps[State]
    total_steps: int
    chunk_steps: int
    checkpoint_steps: int
    assess: Assess[State]
    assess_steps: int
    prepare: Prepare[State] = _unchanged


# --- running a stage ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Session:
    """What the stages of a run share.

    Attributes:
      workdir: checkpoints go to `workdir`/checkpoints/NAME of the stage.
      log: writer of metrics.jsonl.
      writers: further writers of metrics.
      stop: flag that signals set.
      constants: tree of arrays that stay the same, stored in every checkpoint as "statistics".
    """

    workdir: pathlib.Path
    log: MetricsFile
    writers: tuple[Writer, ...]
    stop: StopFlag
    constants: Any

    def run(self, stage: Stage[State], state: State) -> State:
        """Trains a stage to its end, from its newest checkpoint if there is one.

        Every process of a job calls it with the same arguments.

        Args:
          stage: stage to run.
          state: initial state of the stage, placed; donated.

        Returns:
          The final state.

        Raises:
          Interrupted: `stop` was set; the state is saved.
          Diverged: a metric is not finite; the last good checkpoint stays.
          UserError: a checkpoint cannot be read or written, it holds other constants, or
            metrics.jsonl lacks what the stage recorded before it. A write that fails in the
            background is noticed before the next program call.
        """
        checkpoints = Checkpoints(self.workdir / "checkpoints" / stage.name)
        try:
            restored = checkpoints.restore(self._saved(state), discard_damaged=True)
            step = 0
            if restored is not None:
                saved, step = restored
                self._check_constants(stage, saved["statistics"])
                state = saved["state"]
                distributed.first_process_then_rest(
                    functools.partial(self._check_recorded, stage, step)
                )
                text = f"{stage.unit} {step:,} of {stage.total_steps:,}"
                _log.info("%s: resumed at %s", stage.name, text)
            else:
                state = stage.prepare(state)
            self.log.rewind(stage.name, step)
            recorder = _Recorder(stage, self, checkpoints)
            # If the process ended after it saved this checkpoint and before it assessed the
            # state there, the assessment is made now.
            self._assess(stage, recorder, checkpoints, state, step)
            while step < stage.total_steps:
                # A signal to any process stops all of them at the same step.
                if distributed.any_process(self.stop.signal is not None):
                    recorder.flush()
                    self._save(checkpoints, step, state)
                    raise Interrupted(f"{stage.name} at {stage.unit} {step}")
                checkpoints.check()
                steps = min(stage.chunk_steps, stage.total_steps - step)
                state, metrics = recorder.run_chunk(state, step, steps)
                step += steps
                recorder.dispatched(step, metrics)
                if step == stage.total_steps or step % stage.checkpoint_steps < steps:
                    recorder.flush()
                    self._save(checkpoints, step, state)
                self._assess(stage, recorder, checkpoints, state, step)
            recorder.close()
            return state
        finally:
            checkpoints.close()

    def _assess(
        self,
        stage: Stage[State],
        recorder: "_Recorder[State]",
        checkpoints: Checkpoints,
        state: State,
        step: int,
    ) -> None:
        """Assesses if it is due; a run that is stopped meanwhile does so when it is resumed."""
        try:
            recorder.assess_if_due(state, step)
        except Interrupted as interruption:
            self._save(checkpoints, step, state)
            where = f"the evaluation of {stage.name} at {stage.unit} {step}"
            raise Interrupted(where) from interruption

    def _check_constants(self, stage: Stage[State], saved: Any) -> None:
        """Raises UserError if a checkpoint's constants are not those of this run."""
        if not equal_constants(saved, self.constants):
            raise UserError(
                f"{self.workdir}: the data is not what the {stage.name} stage was trained on: "
                "statistics in its checkpoints differ; restore the data, or choose another "
                "--workdir"
            )

    def _check_recorded(self, stage: Stage[State], step: int) -> None:
        """Raises UserError if metrics.jsonl lacks steps that the stage has made.

        What is recorded is in the file before a checkpoint is saved.
        """
        if not distributed.is_first():
            return
        recorded = [entry["step"] for entry in self.log.lines(stage.name, "train")]
        # A stage that was stopped before its first step has a checkpoint at 0 and no line.
        expected = {*range(stage.chunk_steps, step + 1, stage.chunk_steps), step} - {0}
        if missing := sorted(expected.difference(recorded)):
            raise UserError(
                f"{self.workdir}: metrics.jsonl lacks what {stage.name} recorded at {stage.unit} "
                f"{missing[0]:,}, and its checkpoint is at {step:,}: restore metrics.jsonl, or "
                f"delete checkpoints/{stage.name} to train this stage anew"
            )

    def _saved(self, state: State) -> dict[str, Any]:
        return {"state": state, "statistics": self.constants}

    def _save(self, checkpoints: Checkpoints, step: int, state: State) -> None:
        if checkpoints.latest_step() != step:
            checkpoints.save(step, self._saved(state))


def equal_constants(a: Any, b: Any) -> bool:
    """Whether two trees of constants agree up to the rounding of another machine."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(_is_close(_on_host(x), _on_host(y)) for x, y in pairs)


def _on_host(leaf: Any) -> np.ndarray:
    # A copy of an array that other processes hold too cannot be read as a whole.
    return np.asarray(leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf)


def _is_close(x: np.ndarray, y: np.ndarray) -> bool:
    return x.shape == y.shape and np.allclose(x, y, rtol=1e-4, atol=1e-6)


class _Recorder(Generic[State]):
    """Compiles, times and records a stage's chunks; metrics are fetched one chunk late.

    The device computes the next chunk while the host fetches the metrics of the last one.
    """

    def __init__(self, stage: Stage[State], session: Session, checkpoints: Checkpoints):
        self._stage, self._session, self._checkpoints = stage, session, checkpoints
        last = list(session.log.lines(stage.name, "train"))
        self._seconds: float = last[-1].get("seconds", 0.0) if last else 0.0
        self._compile_seconds: float = last[-1].get("compile_seconds", 0.0) if last else 0.0
        self._compiled: set[int] = set()
        self._pending: tuple[int, Metrics] | None = None
        self._progress: Progress | None = None
        self._mark = time.monotonic()

    def run_chunk(self, state: State, step: int, num_steps: int) -> tuple[State, Metrics]:
        """Dispatches the next chunk, after its compilation if it has a new length."""
        stage = self._stage
        if num_steps not in self._compiled:
            self.flush()
            _log.info("%s: compiling", stage.name)
            start = time.monotonic()
            stage.steps.compile(state, num_steps)
            self._compiled.add(num_steps)
            self._compile_seconds += time.monotonic() - start
            self._mark = time.monotonic()
        # The estimate of the time left must not count the compilation.
        if self._progress is None and distributed.is_first():
            self._progress = Progress(stage.name, stage.total_steps, stage.unit, step)
        return stage.steps(state, step, num_steps)

    def dispatched(self, step: int, metrics: Metrics) -> None:
        """Records the previous chunk's metrics; those of the chunk up to `step` are pending."""
        previous, self._pending = self._pending, (step, metrics)
        if previous is not None:
            self._record(*previous)

    def flush(self) -> None:
        """Waits for the device and records the pending metrics."""
        if self._pending is not None:
            previous, self._pending = self._pending, None
            self._record(*previous)

    def assess_if_due(self, state: State, step: int) -> None:
        """Assesses once a chunk has passed a multiple of `assess_steps`, and at the end."""
        stage = self._stage
        passed = step % stage.assess_steps < stage.chunk_steps
        if step == 0 or not (passed or step == stage.total_steps):
            return
        recorded = any(e["step"] == step for e in self._session.log.lines(stage.name, "assess"))
        if distributed.any_process(recorded):  # process 0 alone has the log
            return
        self.flush()
        start = time.monotonic()
        values = stage.assess(state, step)
        elapsed = time.monotonic() - start
        self._session.log.append(stage.name, "assess", step, {**values, "seconds": elapsed})
        self._write(step, values)
        self._mark = time.monotonic()

    def close(self) -> None:
        """Records the pending metrics and ends the progress line."""
        self.flush()
        if self._progress is not None:
            self._progress.close()

    def _record(self, step: int, metrics: Metrics) -> None:
        values = {name: float(np.mean(x)) for name, x in jax.device_get(metrics).items()}
        now = time.monotonic()
        self._seconds += now - self._mark
        self._mark = now
        if bad := [name for name, value in values.items() if not np.isfinite(value)]:
            raise Diverged(self._diverged(bad[0], step))
        times = {"seconds": self._seconds, "compile_seconds": self._compile_seconds}
        self._session.log.append(self._stage.name, "train", step, {**values, **times})
        self._write(step, values)
        if self._progress is not None:
            self._progress.report(step, values)

    def _diverged(self, metric: str, step: int) -> str:
        last = self._checkpoints.latest_step()
        saved = (
            "no checkpoint is saved yet" if last is None else f"the last checkpoint is at {last}"
        )
        return (
            f"{self._stage.name}: {metric} is not a finite number by {self._stage.unit} {step}; "
            f"{saved}: lower the learning rate and start a new --workdir"
        )

    def _write(self, step: int, values: dict[str, Any]) -> None:
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        for writer in self._session.writers:
            writer.write(self._stage.name, step, numbers)
