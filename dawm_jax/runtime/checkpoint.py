"""Checkpoints of one training stage, by Orbax: atomic, asynchronous, the last few kept."""

import errno
import logging
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dawm_jax.runtime import distributed
from dawm_jax.types import UserError, first_line

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a stage in one folder, shared by all processes of a job.

    Every process makes the same calls. An array may be restored to other devices than it
    was saved from, and to another number of processes.

    A checkpoint appears under its step's name only when it is complete; an earlier one is
    deleted only after that. A process killed at any moment leaves the last complete one.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int = 2):
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep),
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Copies `state` to the host and writes it in the background.

        Raises:
          UserError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state), force=True)
        except (OSError, ValueError) as error:
            raise _write_error(self._folder, error) from error

    def restore(self, state: Any, *, discard_damaged: bool = False) -> tuple[Any, int] | None:
        """The newest readable checkpoint and its step, or None if there is none.

        Args:
          state: a tree of the same structure; shapes, types and placement are taken from it.
          discard_damaged: delete newer ones that cannot be read, once an older one was:
            training will reach their steps again and must be able to save there.

        Raises:
          UserError: checkpoints exist, but none fits `state` or can be read.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        failure, unreadable = None, []
        for step in sorted(self._manager.all_steps(), reverse=True):
            error = None
            try:
                restored = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
                _check_shapes(restored, abstract)
            except Exception as caught:
                error = caught
                _log.warning("%s/%d cannot be restored: %s", self._folder, step, first_line(error))
            # All processes go on from the same step, or none does.
            if distributed.any_process(error is not None):
                failure = failure or error or OSError("another process could not read it")
                unreadable.append(step)
                continue
            if discard_damaged:
                for damaged in unreadable:
                    self._manager.delete(damaged)
            return restored, step
        if failure is not None:
            raise UserError(
                f"{self._folder}: no checkpoint can be restored ({first_line(failure)}); it is "
                "damaged or of another configuration: use a new --workdir"
            ) from failure
        return None

    def shapes(self) -> Any:
        """Shapes of the newest checkpoint's arrays, as nested dictionaries."""
        metadata = self._manager.item_metadata(self.latest_step())
        return jax.tree.map(lambda leaf: tuple(leaf.shape), dict(metadata))

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
          UserError: a write failed.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except (OSError, ValueError) as error:
            raise _write_error(self._folder, error) from error

    def close(self) -> None:
        """Waits and releases the manager's threads."""
        self.wait()
        self._manager.close()


def _check_shapes(restored: Any, abstract: Any) -> None:
    for got, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True):
        if np.shape(got) != expected.shape:
            raise ValueError(f"expected an array of shape {expected.shape}, got {np.shape(got)}")


def _write_error(folder: pathlib.Path, error: Exception) -> UserError:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    reason = "the disk is full" if full else first_line(error)
    return UserError(
        f"{folder}: a checkpoint could not be written ({reason}); earlier ones are intact: "
        "make room and run the same command again"
    )
