"""Where numbers go: metrics.jsonl always, the terminal, TensorBoard and W&B on request."""

import hashlib
import importlib
import json
import logging
import math
import pathlib
import re
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from dawm_jax.runtime import provenance, terminal
from dawm_jax.types import UserError

_log = logging.getLogger(__name__)

# The field of every line that holds the CRC-32 of the others.
_CRC = "crc"


class Writer(Protocol):
    """Anything that takes named numbers of a stage at a step."""

    def write(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Records `values`."""

    def close(self) -> None:
        """Flushes and releases."""


class MetricsFile:
    """metrics.jsonl: one object a line, {"stage", "step", ..., "crc"}, flushed as it is written.

    The field "crc" tells a line with flipped bits. Lines of an older version have none.

    Args:
      path: of the file.
      active: False reads and writes nothing: another process does.
    """

    def __init__(self, path: pathlib.Path, *, active: bool = True):
        self._path, self._active = path, active
        self._reported = False

    def lines(self, stage: str | None = None, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """The recorded objects, optionally of one stage and kind.

        The objects of a stage come in the order of their steps; of two of the same kind and step
        the later one counts. Damaged lines are left out: a killed process leaves one at the end,
        any other is reported once.
        """
        for entry in self._entries():
            if stage in (None, entry["stage"]) and kind in (None, entry["kind"]):
                yield entry

    def _entries(self) -> list[dict[str, Any]]:
        """All objects of the file, sorted."""
        if not self._active or not self._path.exists():
            return []
        entries = self._parsed()
        bad = _numbers_of_damaged(entries)
        if bad and not self._reported:
            self._reported = True
            _log.warning(
                "%s: %d damaged lines are left out, the first is line %d",
                self._path,
                len(bad),
                bad[0],
            )
        latest = {(e["stage"], e["kind"], e["step"]): e for e in entries if e is not None}
        by_step = sorted(latest.values(), key=lambda entry: entry["step"])
        of_stage = {
            stage: iter([entry for entry in by_step if entry["stage"] == stage])
            for stage in {stage for stage, _, _ in latest}
        }
        return [next(of_stage[stage]) for stage, _, _ in latest]

    def _parsed(self) -> list[dict[str, Any] | None]:
        """The objects of all lines, None for damaged ones."""
        entries = [_parse_entry(line) for line in self._path.read_bytes().splitlines()]
        has_crc = [entry is not None and entry.pop(_CRC, None) is not None for entry in entries]
        if any(has_crc):  # a line without one has lost its name
            return [entry if kept else None for entry, kept in zip(entries, has_crc, strict=True)]
        return entries

    def check(self) -> None:
        """Checks that no line is damaged but the last, which a killed process may leave so.

        Raises:
          UserError: one is.
        """
        if not self._active or not self._path.exists():
            return
        if bad := _numbers_of_damaged(self._parsed()):
            raise UserError(
                f"{self._path}: line {bad[0]} is damaged: restore the file, or delete the line to "
                "go on without what it recorded"
            )

    def append(self, stage: str, kind: str, step: int, values: dict[str, Any]) -> None:
        """Adds one line. Numbers that are not finite become null, as JSON has none."""
        if not self._active:
            return
        entry = {"stage": stage, "kind": kind, "step": step, **_jsonable(values)}
        with self._path.open("a") as file:
            file.write(_format(entry))

    def rewind(self, stage: str, step: int) -> None:
        """Drops what `stage` recorded after `step`: a resumed run will record it again."""
        if not self._active:
            return
        kept = [e for e in self.lines() if e["stage"] != stage or e["step"] <= step]
        text = "".join(map(_format, kept))
        provenance.write_atomically(self._path, text)


# Setting -> package and extra of this package that it needs.
_PACKAGES = {"tensorboard": ("tensorboardX", "tensorboard"), "wandb_project": ("wandb", "wandb")}


def check_writers(*, tensorboard: bool, wandb_project: str) -> None:
    """Checks that the packages of the optional writers are there, before anything is computed.

    Raises:
      UserError: one is not installed.
    """
    asked = {"tensorboard": tensorboard, "wandb_project": bool(wandb_project)}
    for setting, (package, extra) in _PACKAGES.items():
        if not asked[setting]:
            continue
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"config.{setting} needs {package}: pip install 'dawm_jax[{extra}]'"
            ) from error


def make_writers(
    workdir: pathlib.Path, *, tensorboard: bool, wandb_project: str, config: dict[str, Any]
) -> list[Writer]:
    """The optional writers that the configuration asks for.

    Raises:
      UserError: a writer's package is not installed.
    """
    check_writers(tensorboard=tensorboard, wandb_project=wandb_project)
    writers: list[Writer] = []
    if tensorboard:
        writers.append(_TensorBoard(workdir))
    if wandb_project:
        writers.append(_WandB(workdir, wandb_project, config))
    return writers


class _TensorBoard:
    def __init__(self, workdir: pathlib.Path):
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(str(workdir / "tensorboard"))

    def write(self, stage: str, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, workdir: pathlib.Path, project: str, config: dict[str, Any]):
        import wandb

        self._run = wandb.init(
            project=project,
            id=wandb_id(workdir, config),
            name=workdir.resolve().name,
            resume="allow",
            dir=str(workdir),
            config=config,
        )

    def write(self, stage: str, step: int, values: dict[str, float]) -> None:
        named = {f"{stage}/{name}": value for name, value in values.items()}
        self._run.log({**named, f"{stage}/step": step})

    def close(self) -> None:
        self._run.finish()


def wandb_id(workdir: pathlib.Path, config: dict[str, Any]) -> str:
    """The id under which W&B knows the run of a folder, from the folder's file wandb_id.

    The first call makes it of the folder's absolute path and the configuration and writes the
    file, so that a run that is moved or resumed goes on in its own curve.
    """
    path = workdir / "wandb_id"
    stored = path.read_text(errors="replace").strip() if path.is_file() else ""
    if re.fullmatch(r"[\w-]{1,64}", stored, re.ASCII):
        return stored
    text = json.dumps([str(workdir.resolve()), config], sort_keys=True)
    made = hashlib.sha256(text.encode()).hexdigest()[:16]
    provenance.write_atomically(path, made + "\n")
    return made


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
            terminal.rewrite(text)
        else:
            _log.info("%s", text)

    def close(self) -> None:
        """Ends the line."""
        if self._terminal:
            terminal.end_line()


def format_seconds(seconds: float) -> str:
    """A duration in words: 45 s, 3 min 20 s, 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def _format(entry: Mapping[str, Any]) -> str:
    """An object as a line of metrics.jsonl."""
    return json.dumps({**entry, _CRC: _crc(entry)}) + "\n"


def _crc(entry: Mapping[str, Any]) -> int:
    """CRC-32 of an object without its field of that name."""
    others = {name: value for name, value in entry.items() if name != _CRC}
    return zlib.crc32(json.dumps(others).encode())


def _numbers_of_damaged(entries: list[dict[str, Any] | None]) -> list[int]:
    """Numbers, from 1, of the damaged lines before the last line."""
    return [number for number, entry in enumerate(entries[:-1], 1) if entry is None]


def _parse_entry(line: bytes) -> dict[str, Any] | None:
    """The object of a line of metrics.jsonl; None if the line is damaged."""
    try:
        entry = json.loads(line)
        stage, kind, step = entry["stage"], entry["kind"], entry["step"]
        times = [entry.get(name, 0.0) for name in ("seconds", "compile_seconds")]
    except (ValueError, TypeError, LookupError, AttributeError):  # no JSON, no object, no field
        return None
    is_named = isinstance(stage, str) and isinstance(kind, str)
    is_placed = type(step) is int and step >= 0
    is_timed = all(type(time) in (int, float) for time in times)
    is_intact = _CRC not in entry or entry[_CRC] == _crc(entry)
    return dict(entry) if is_named and is_placed and is_timed and is_intact else None


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
