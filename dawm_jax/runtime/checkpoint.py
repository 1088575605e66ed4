"""Checkpoints of one training stage, by Orbax: atomic, asynchronous, the last few kept."""

import errno
import functools
import hashlib
import json
import logging
import os
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from dawm_jax.runtime import distributed
from dawm_jax.types import UserError, first_line

_log = logging.getLogger(__name__)

# In a checkpoint's folder: SHA-256 of each of its other files, by path.
_DIGESTS = "digests.json"
# Orbax writes these two once more after all others.
_WRITTEN_LAST = ("_CHECKPOINT_METADATA", "commit_success.txt")
_ORBAX = str(pathlib.Path(ocp.__file__).parent)
_LOOP_CLOSED = "Event loop is closed"


@functools.cache  # once in a process, when it first uses checkpoints
def _quiet_orbax() -> None:
    """Drops what Orbax and its threads print of a failure that Orbax also raises.

    A full disk would print a traceback for every array: thousands of lines.
    """

    def is_not_from_orbax(record: logging.LogRecord) -> bool:
        return not (record.pathname.startswith(_ORBAX) or _ORBAX in record.getMessage())

    def show(unraisable: "sys.UnraisableHookArgs") -> None:
        # TensorStore's threads report to an event loop that the first failed write has closed.
        if str(unraisable.exc_value) != _LOOP_CLOSED:
            previous(unraisable)

    absl_logging.get_absl_logger().addFilter(is_not_from_orbax)
    logging.getLogger("asyncio").addFilter(is_not_from_orbax)
    previous, sys.unraisablehook = sys.unraisablehook, show


class Checkpoints:
    """The checkpoints of a stage in one folder, shared by all processes of a job.

    Every process makes the same calls. An array may be restored to other devices than it
    was saved from, and to another number of processes.

    A checkpoint appears under its step's name only when it is complete; an earlier one is
    deleted only after that. A process killed at any moment leaves the last complete one.
    Digests of its files are stored with it and compared before it is restored; a checkpoint
    of an older version has none and is restored as it is.

    Raises:
      UserError: the folder cannot be made.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int = 2):
        _quiet_orbax()
        self._folder = folder
        self._saving: int | None = None  # step whose digests are not complete yet
        self._damaged: dict[int, str] = {}  # steps that were found damaged, and how
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._write_digests,
                # Threads of Orbax wait 300 s for folders whose creation in the background failed.
                create_directories_asynchronously=False,
            ),
        )
        try:
            self._manager = ocp.CheckpointManager(
                folder.absolute(),
                item_handlers=ocp.StandardCheckpointHandler(),
                options=options,
            )
        except OSError as error:
            raise _write_error(folder, error) from error

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Copies `state` to the host and writes it in the background.

        Raises:
          UserError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        try:
            self._finish_saving()
            self._saving = step
            self._manager.save(step, args=ocp.args.StandardSave(state), force=True)
        except (OSError, ValueError) as error:
            raise _write_error(self._folder, error) from error

    def check(self) -> None:
        """Completes the last save if its write in the background has ended; does not wait for it.

        Raises:
          UserError: the write failed; earlier checkpoints are untouched.
        """
        if self._saving is None or self._manager.is_saving_in_progress():
            return
        try:
            self._finish_saving()
        except (OSError, ValueError) as error:
            raise _write_error(self._folder, error) from error

    def restore(
        self, state: Any, *, discard_damaged: bool = False, partial: bool = False
    ) -> tuple[Any, int] | None:
        """The newest readable checkpoint and its step, or None if there is none.

        Args:
          state: a tree of the same structure; shapes, types and placement are taken from it.
          discard_damaged: delete newer ones that cannot be read, once an older one was:
            training will reach their steps again and must be able to save there.
          partial: `state` may lack entries of the tree that was saved, which are not read.

        Raises:
          UserError: checkpoints exist, but none fits `state` or can be read.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        failure: Exception | None = None
        bad: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            if reason := self._damage(step):
                bad[step] = reason
                continue
            error = None
            try:
                if partial:
                    restored = _read_part(self._manager, step, abstract)
                else:
                    restored = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
                _check_shapes(restored, abstract)
            except Exception as caught:
                error = caught
            # All processes go on from the same step, or none does.
            if distributed.any_process(error is not None):
                failure = failure or error or OSError("another process could not read it")
                bad[step] = first_line(failure)
                self._warn(step, bad[step])
                continue
            if discard_damaged:
                for damaged in bad:
                    self._manager.delete(damaged)
                    self._damaged.pop(damaged, None)
            return restored, step
        if bad:
            raise UserError(
                f"{self._folder}: no checkpoint can be restored ({next(iter(bad.values()))}); it "
                f"is damaged or of another configuration: delete {self._folder} to train this "
                "stage anew, or choose a new --workdir"
            ) from failure
        return None

    def entry(self, name: str) -> Any:
        """One entry of the newest intact checkpoint, such as "statistics", in host memory.

        Args:
          name: a key of the tree that was saved.

        Returns:
          Nested dictionaries of arrays.

        Raises:
          UserError: there is no checkpoint, or none can be read.
        """
        reason = "there is none"
        for step in sorted(self._manager.all_steps(), reverse=True):
            if found := self._damage(step):
                reason = found
                continue
            try:
                return _read_entry(self._manager, step, name)
            except Exception as error:  # Orbax raises errors of many kinds
                reason = first_line(error)
                self._warn(step, reason)
        raise UserError(
            f"{self._folder}: no checkpoint can be read ({reason}); delete {self._folder} and "
            "resume the run to train this stage anew"
        )

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
          UserError: a write failed.
        """
        try:
            self._finish_saving()
            self._manager.check_for_errors()
        except (OSError, ValueError) as error:
            raise _write_error(self._folder, error) from error

    def close(self) -> None:
        """Waits and releases the manager's threads.

        Raises:
          UserError: a write failed.
        """
        self.wait()
        self._manager.close()

    # --- digests --------------------------------------------------------------------------

    def _write_digests(self) -> None:
        """Writes the digests of the checkpoint that is being saved, before it appears.

        Orbax calls it in process 0, in the background, when all other files are written.
        """
        # The folder has a temporary name: the step and a suffix.
        for folder in self._folder.glob(f"{self._saving}.*"):
            digests = _digests_of(folder)
            kept = {name: digests[name] for name in digests if name not in _WRITTEN_LAST}
            _write_json(folder / _DIGESTS, kept)

    def _finish_saving(self) -> None:
        """Waits for the write and adds the digests of the files that Orbax writes last."""
        # The write in the background reads `_saving` to its end.
        try:
            self._manager.wait_until_finished()
        finally:
            step, self._saving = self._saving, None
        if step is None or not distributed.is_first():
            return
        path = self._folder / str(step) / _DIGESTS
        if path.is_file():
            digests = json.loads(path.read_text())
            late = [name for name in _WRITTEN_LAST if (path.parent / name).is_file()]
            digests.update((name, _digest(path.parent / name)) for name in late)
            _write_json(path, digests)

    def _damage(self, step: int) -> str | None:
        """How a checkpoint differs from its digests, in all processes; None if it does not."""
        if step not in self._damaged:
            found = damage(self._folder / str(step)) if distributed.is_first() else None
            if distributed.any_process(found is not None):
                self._damaged[step] = found or "process 0 found it damaged"
                self._warn(step, self._damaged[step])
        return self._damaged.get(step)

    def _warn(self, step: int, reason: str) -> None:
        _log.warning("%s/%d cannot be restored: %s", self._folder, step, reason)


def newest_step(folder: pathlib.Path) -> int | None:
    """Step of the newest complete checkpoint in a stage's folder, or None."""
    if not folder.is_dir():
        return None
    return max((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), default=None)


def damage(folder: pathlib.Path) -> str | None:
    """What of a checkpoint differs from the digests stored with it, in words.

    Args:
      folder: of one checkpoint, named after its step.

    Returns:
      None if nothing differs, or if an older version stored no digests.
    """
    path = folder / _DIGESTS
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_bytes())
        found = _digests_of(folder)
    except (OSError, ValueError) as error:
        return f"its files cannot be read: {first_line(error)}"
    if not isinstance(stored, dict) or not stored:
        return f"{_DIGESTS} is damaged"
    bad = [name for name in sorted(stored) if found.get(name) != stored[name]]
    return f"{bad[0]} is damaged or missing" if bad else None


def _digests_of(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every file but that of the digests, by path relative to the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {str(path.relative_to(folder)): _digest(path) for path in files}
    digests.pop(_DIGESTS, None)
    return digests


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: pathlib.Path, content: dict[str, str]) -> None:
    """Writes a file of a checkpoint whole or not at all, without a folder beside it."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    os.replace(part, path)


def _read_entry(manager: ocp.CheckpointManager, step: int, name: str) -> Any:
    """One entry of a checkpoint's tree, as NumPy arrays."""
    metadata = dict(manager.item_metadata(step))[name]
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata)
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(
            manager.directory / str(step) / "default",
            args=ocp.args.PyTreeRestore(
                item={name: shapes}, restore_args={name: on_host}, partial_restore=True
            ),
        )[name]


def _read_part(manager: ocp.CheckpointManager, step: int, abstract: Any) -> Any:
    """The entries of a checkpoint's tree that `abstract` has, placed as it says."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(
            manager.directory / str(step) / "default",
            args=ocp.args.PyTreeRestore(
                item=abstract,
                restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                partial_restore=True,
            ),
        )


def _check_shapes(restored: Any, abstract: Any) -> None:
    for got, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True):
        if np.shape(got) != expected.shape:
            raise ValueError(f"expected an array of shape {expected.shape}, got {np.shape(got)}")


def _write_error(folder: pathlib.Path, error: Exception) -> UserError:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    reason, fix = first_line(error), "mend the folder"
    if full:
        reason, fix = "the disk is full", "make room"
    return UserError(
        f"{folder}: a checkpoint could not be written ({reason}); earlier ones are intact: "
        f"{fix} and run the same command again"
    )
