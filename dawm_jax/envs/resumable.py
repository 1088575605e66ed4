"""A slow policy whose evaluation can be stopped and resumed."""

import logging
import pathlib
import zlib
from typing import Protocol

import numpy as np

from dawm_jax.runtime import provenance

_log = logging.getLogger(__name__)


class StepPolicyFn(Protocol):
    """Several policies, each of which acts in as many episodes; see `rollouts.PolicyFn`."""

    def __call__(self, observations: np.ndarray, step: int, /) -> np.ndarray:
        """Actions [policies, episodes, A] of the time step `step`."""


class ResumablePolicy:
    """A `rollouts.PolicyFn` that keeps its actions, and repeats those that a file holds.

    The simulator is deterministic. So an evaluation that repeats the kept actions reaches the
    step at which it was stopped in seconds, and its returns are the same bit for bit.

    Args:
      policy: computes the actions of the steps that the file does not hold.
      path: the file; it need not exist.

    Attributes:
      num_kept: number of steps that the file held.
    """

    def __init__(self, policy: StepPolicyFn, path: pathlib.Path):
        self._policy, self._path = policy, path
        self._checksums, self._actions = _read(path)
        self._step = 0
        self.num_kept = len(self._actions)

    def __call__(self, observations: np.ndarray, /) -> np.ndarray:
        """See `rollouts.PolicyFn`."""
        step, checksum = self._step, zlib.crc32(np.ascontiguousarray(observations).tobytes())
        self._step += 1
        if step < len(self._actions) and self._checksums[step] != checksum:
            # Another machine or version simulates other states.
            _log.warning("the kept actions do not fit from step %s on", f"{step:,}")
            del self._checksums[step:], self._actions[step:]
        if step == len(self._actions):
            self._actions.append(np.asarray(self._policy(observations, step)))
            self._checksums.append(checksum)
        return self._actions[step]

    def save(self) -> None:
        """Writes the actions of all steps to the file, whole or not at all."""
        if self._actions:
            with provenance.whole_file(self._path) as part, part.open("wb") as file:
                np.savez(
                    file,
                    checksums=np.array(self._checksums, np.uint32),
                    actions=np.stack(self._actions),
                )

    def discard(self) -> None:
        """Removes the file: the evaluation is complete."""
        self._path.unlink(missing_ok=True)


def _read(path: pathlib.Path) -> tuple[list[int], list[np.ndarray]]:
    """Checksums of the observations and actions [policies, episodes, A] of every kept step."""
    if not path.is_file():
        return [], []
    try:
        with np.load(path) as file:
            return [int(value) for value in file["checksums"]], list(file["actions"])
    except Exception:  # a damaged archive raises errors of many kinds
        _log.warning("%s is damaged: the evaluation starts again", path)
        return [], []
