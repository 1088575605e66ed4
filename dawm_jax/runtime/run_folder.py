"""A run's folder: made, locked, and refused to another configuration and to other data."""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

from dawm_jax.runtime import provenance, results
from dawm_jax.types import UserError, first_line, one_line

_log = logging.getLogger(__name__)

CONFIG, _DATASET, _LOCK, _STOP = "config.json", "dataset.json", ".lock", ".stop"
# The last fields of the two files: SHA-256 of the others. Files of an older version have none.
_CONFIG_DIGEST, _RECORD_DIGEST = "config_digest", "record_digest"


class Migrate(Protocol):
    """Gives a configuration that an older version stored the settings of this version."""

    def __call__(self, stored: Mapping[str, Any], /) -> Mapping[str, Any]: ...


def _unchanged(stored: Mapping[str, Any], /) -> Mapping[str, Any]:
    return stored


@contextlib.contextmanager
def own(
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    *,
    migrate: Migrate = _unchanged,
    reporting: Collection[str] = (),
) -> Iterator[None]:
    """Makes and locks the folder; refuses one of another configuration.

    Args:
      workdir: the folder.
      config: JSON-able; compared with the folder's config.json, if there is one.
      migrate: applied to the stored configuration before the comparison.
      reporting: dotted names of settings that may differ: they change what is recorded from then
        on, not what is trained. `write_config` stores their new values.

    Raises:
      UserError: it cannot be written, is in use, holds another configuration, or holds a run
        without a configuration.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # A link in the place of the lock must not lead to another file.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        lock = os.fdopen(os.open(workdir / _LOCK, flags, 0o666), "r+")
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} cannot be written ({_why_not_written(workdir, error)}); choose "
            "another folder"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"--workdir {workdir} is in use by another run; wait for it or choose another"
            ) from None
        if (workdir / CONFIG).exists():
            _refuse_other_config(workdir, migrate(read_config(workdir)), config, reporting)
        elif found := _first_result(workdir):
            raise UserError(
                f"{workdir} holds a run without its {CONFIG}, which {found} was made with: "
                f"restore {CONFIG}, or choose another --workdir"
            )
        _discard_request(workdir)  # that of a run that was killed
        try:
            yield
        finally:
            _discard_request(workdir)


def _why_not_written(workdir: pathlib.Path, error: OSError) -> str:
    dangling = [path for path in (workdir, *workdir.parents) if path.is_symlink()]
    dangling = [path for path in dangling if not path.exists()]
    if dangling:
        return f"{dangling[0]} is a symbolic link to {os.readlink(dangling[0])}, which is absent"
    return error.strerror or str(error)


def _first_result(workdir: pathlib.Path) -> str | None:
    """Something in the folder that a run made, None if there is nothing."""
    files = [workdir / results.FILE, workdir / "metrics.jsonl"]
    files += sorted((workdir / "checkpoints").glob("*/[0-9]*"))
    return next((str(path.relative_to(workdir)) for path in files if path.exists()), None)


def _discard_request(workdir: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        stop_request(workdir).unlink()


def stop_request(workdir: pathlib.Path) -> pathlib.Path:
    """The file by which a process of a job asks process 0 to stop; see `stopping.StopFlag`."""
    return workdir / _STOP


def check_shared(workdir: pathlib.Path) -> None:
    """Checks that this process sees the folder that process 0 owns.

    Raises:
      UserError: it does not.
    """
    if not (workdir / _LOCK).exists():
        raise UserError(
            f"--workdir {workdir} is not shared: process 0 made it, another cannot see it; "
            "choose a folder that all hosts mount"
        )


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The configuration that a run's folder stores, of whatever version wrote it.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = workdir / CONFIG
    if not path.is_file():
        raise UserError(f"{workdir} is not a run: expected a {CONFIG} in it")
    try:
        return _unsealed(json.loads(path.read_text()), _CONFIG_DIGEST)
    except _Altered as altered:
        raise UserError(
            f"{path} is damaged or was edited ({altered}); restore it, or delete its field "
            f"{_CONFIG_DIGEST} if the edit is meant"
        ) from altered
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); restore it") from error


def claim(workdir: pathlib.Path, config: Mapping[str, Any], dataset: "DatasetRecord") -> None:
    """Claims the folder for a configuration and data.

    A run of an older version, which has no record of its data, gets none: they are to be compared
    with the statistics in its checkpoints first.
    """
    if not (workdir / CONFIG).exists():
        write_dataset(workdir, dataset)
    write_config(workdir, config)


def write_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Writes config.json, whole or not at all."""
    provenance.write_atomically(workdir / CONFIG, _sealed(config, _CONFIG_DIGEST))


def copy_trained(source: pathlib.Path, target: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Copies what a run trained and recorded into a new folder of another configuration.

    The folder appears whole or not at all. Results are not copied: the new run writes its own.

    Args:
      source: folder of the run.
      target: the new folder; it is absent or empty.
      config: of the new run, whose trained stages are those of the old one.

    Raises:
      UserError: the folder cannot be written.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source / "checkpoints", part / "checkpoints")
        for name in ("metrics.jsonl", _DATASET):
            if (source / name).is_file():
                shutil.copy(source / name, part / name)
        write_config(part, config)
        if target.is_dir():
            target.rmdir()
        part.replace(target)
    except OSError as error:
        raise UserError(
            f"{target} cannot be written ({first_line(error)}); choose another"
        ) from error


# --- the data of the run ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DatasetRecord:
    """What a run's folder stores of its data.

    Attributes:
      name: of the dataset.
      digest: of its content.
      summary: the data in one line, as the log shows it; may be empty.
    """

    name: str
    digest: str
    summary: str


def read_dataset(workdir: pathlib.Path) -> DatasetRecord | None:
    """The data of a run, from dataset.json or results.json; None for a run of an older version.

    Raises:
      UserError: dataset.json is damaged.
    """
    path = workdir / _DATASET
    # A call that was killed before it claimed the folder leaves dataset.json alone.
    if path.exists() and (workdir / CONFIG).exists():
        try:
            return DatasetRecord(**_unsealed(json.loads(path.read_bytes()), _RECORD_DIGEST))
        except (OSError, ValueError, TypeError) as error:
            reason = str(error) if isinstance(error, _Altered) else first_line(error)
            raise UserError(
                f"{path} cannot be read ({reason}); restore it, or delete it to compare "
                "the data with the statistics in the checkpoints"
            ) from error
    try:
        found = results.read(workdir / results.FILE)
    except (OSError, ValueError):
        return None
    if not found.dataset_digest:
        return None
    return DatasetRecord(found.dataset, found.dataset_digest, found.dataset_summary)


def write_dataset(workdir: pathlib.Path, record: DatasetRecord) -> None:
    """Writes dataset.json, whole or not at all."""
    text = _sealed(dataclasses.asdict(record), _RECORD_DIGEST)
    provenance.write_atomically(workdir / _DATASET, text)


def check_dataset(workdir: pathlib.Path, now: DatasetRecord) -> bool:
    """Compares data with those that a run was trained on.

    Args:
      workdir: the run's folder.
      now: the data at hand.

    Returns:
      Whether they are equal; False if the folder does not say what the run was trained on.

    Raises:
      UserError: they differ, or dataset.json is damaged.
    """
    stored = read_dataset(workdir)
    if stored is None:
        return False
    if stored.digest != now.digest:
        then, here = (
            f"{record.summary or record.name} (digest {record.digest[:12]})"
            for record in (stored, now)
        )
        raise UserError(
            f"{workdir}: the data is not what the run was trained on: {then} there, {here} here; "
            "restore the data, or choose another --workdir"
        )
    return True


# --- digests ------------------------------------------------------------------------------


class _Altered(ValueError):
    """Content that its digest does not belong to; the message says what differs."""


def _sealed(content: Mapping[str, Any], field: str) -> str:
    """The text of a JSON file whose last field is the digest of the others."""
    return json.dumps({**content, field: provenance.digest(content, field)}, indent=2) + "\n"


def _unsealed(stored: Any, field: str) -> dict[str, Any]:
    """The content of such a file without its digest; one of an older version has none.

    Raises:
      _Altered: the digest is that of other content.
      ValueError: it is not a JSON object.
    """
    if not isinstance(stored, dict):
        raise ValueError(f"expected a JSON object, got {one_line(repr(stored), 40)}")
    expected, got = stored.get(field), provenance.digest(stored, field)
    if expected not in (None, got):
        begins = one_line(expected, 13)
        raise _Altered(f"expected content with a SHA-256 of {begins}, got {got[:12]}…")
    return {name: value for name, value in stored.items() if name != field}


# --- comparing configurations -------------------------------------------------------------


def _refuse_other_config(
    workdir: pathlib.Path,
    stored: Mapping[str, Any],
    config: Mapping[str, Any],
    reporting: Collection[str],
) -> None:
    """Raises if the two configurations differ in what is trained, and says in what."""
    # A round trip through JSON turns tuples into lists, as in the stored configuration.
    old = _flatten(json.loads(json.dumps(stored)))
    new = _flatten(json.loads(json.dumps(config)))
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    show = lambda name: f"{name}: {old.get(name)!r} there, {new.get(name)!r} here"
    if changed := [show(name) for name in names if name not in reporting]:
        raise UserError(
            f"{workdir} holds a run of another configuration ({'; '.join(changed[:4])}"
            f"{'; …' if len(changed) > 4 else ''}); choose another --workdir"
        )
    for name in names:
        _log.info("%s; it applies to what is not recorded yet", show(name))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
