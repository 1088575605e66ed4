"""Where numbers go: metrics.jsonl always, the terminal, TensorBoard and W&B on request."""

import json
import logging
import math
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

from dawm_jax.types import UserError

_log = logging.getLogger(__name__)


class Writer(Protocol):
    """Anything that takes named numbers of a stage at a step."""

    def write(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Records `values`."""

    def close(self) -> None:
        """Flushes and releases."""


class MetricsFile:
    """metrics.jsonl: one object a line, {"stage", "step", ...}, flushed as it is written.

    Args:
      path: of the file.
      active: False reads and writes nothing: another process does.
    """

    def __init__(self, path: pathlib.Path, *, active: bool = True):
        self._path, self._active = path, active

    def lines(self, stage: str | None = None, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """The recorded objects, optionally of one stage and kind."""
        if not self._active or not self._path.exists():
            return
        for line in self._path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a killed process
            if stage in (None, entry["stage"]) and kind in (None, entry["kind"]):
                yield entry

    def append(self, stage: str, kind: str, step: int, values: dict[str, Any]) -> None:
        """Adds one line. Numbers that are not finite become null, as JSON has none."""
        if not self._active:
            return
        entry = {"stage": stage, "kind": kind, "step": step, **_jsonable(values)}
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def rewind(self, stage: str, step: int) -> None:
        """Drops what `stage` recorded after `step`: a resumed run will record it again."""
        if not self._active:
            return
        kept = [e for e in self.lines() if e["stage"] != stage or e["step"] <= step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        temporary.replace(self._path)


def make_writers(
    workdir: pathlib.Path, *, tensorboard: bool, wandb_project: str, config: dict[str, Any]
) -> list[Writer]:
    """The optional writers that the configuration asks for.

    Raises:
      UserError: a writer's package is not installed.
    """
    writers: list[Writer] = []
    if tensorboard:
        writers.append(_TensorBoard(workdir))
    if wandb_project:
        writers.append(_WandB(workdir, wandb_project, config))
    return writers


class _TensorBoard:
    def __init__(self, workdir: pathlib.Path):
        try:
            import tensorboardX
        except ImportError as error:
            raise UserError(
                "config.tensorboard needs tensorboardX: pip install 'dawm_jax[tensorboard]'"
            ) from error
        self._writer = tensorboardX.SummaryWriter(str(workdir / "tensorboard"))

    def write(self, stage: str, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, workdir: pathlib.Path, project: str, config: dict[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "config.wandb_project needs wandb: pip install 'dawm_jax[wandb]'"
            ) from error
        # The folder's name as id: a resumed run goes on in its own curve.
        self._run = wandb.init(
            project=project, id=workdir.name, resume="allow", dir=str(workdir), config=config
        )

    def write(self, stage: str, step: int, values: dict[str, float]) -> None:
        named = {f"{stage}/{name}": value for name, value in values.items()}
        self._run.log({**named, f"{stage}/step": step})

    def close(self) -> None:
        self._run.finish()


class Progress:
    """One line a report: share done, speed, time left. It rewrites itself on a terminal."""

    def __init__(self, stage: str, total: int, unit: str, done: int = 0):
        self._stage, self._total, self._unit = stage, total, unit
        self._first, self._start = done, time.monotonic()
        self._terminal = sys.stderr.isatty()

    def report(self, done: int, values: dict[str, float]) -> None:
        """Shows how far the stage is, and a few numbers."""
        speed = (done - self._first) / max(time.monotonic() - self._start, 1e-9)
        left = format_seconds((self._total - done) / speed) if speed else "?"
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        text = (
            f"{self._stage:<16} {done:>9,}/{self._total:,} {self._unit} "
            f"({100 * done / self._total:3.0f} %)  {speed:,.1f}/s  {left} left  {numbers}"
        )
        if self._terminal:
            # A line that wraps could not be erased.
            text = text[: shutil.get_terminal_size().columns - 1]
            sys.stderr.write(f"\r\x1b[2K{text}")
            sys.stderr.flush()
        else:
            _log.info("%s", text)

    def close(self) -> None:
        """Ends the line."""
        if self._terminal:
            sys.stderr.write("\n")


def format_seconds(seconds: float) -> str:
    """A duration for people: 45 s, 3 min 20 s, 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
