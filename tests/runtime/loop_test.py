"""The loop of a training stage: a failed write in the background ends it before the next save."""

import errno
import time

import jax.numpy as jnp
import pytest

from dawm_jax.runtime.checkpoint import Checkpoints
from dawm_jax.runtime.loop import Session, Stage
from dawm_jax.runtime.metrics import MetricsFile
from dawm_jax.runtime.stopping import StopFlag
from dawm_jax.types import UserError

_STEPS = 600


class _Counting:
    """Steps that count themselves; each takes a little longer than a look at the checkpoint."""

    def __init__(self):
        self.made = 0

    def compile(self, state, num_steps):
        pass

    def __call__(self, state, first_step, num_steps):
        time.sleep(0.01)
        self.made += num_steps
        return state + num_steps, {"loss": jnp.float32(1.0)}


def _run(workdir, steps):
    stage = Stage(
        name="counting",
        unit="step",
        steps=steps,
        total_steps=_STEPS,
        chunk_steps=1,
        checkpoint_steps=_STEPS // 2,
        assess=lambda state, step: {},
        assess_steps=_STEPS,
    )
    log = MetricsFile(workdir / "metrics.jsonl")
    session = Session(workdir, log, (), StopFlag(), {"mean": jnp.zeros(2)})
    return session.run(stage, jnp.int32(0))


def test_a_failed_write_is_noticed_before_the_next_save(tmp_path, monkeypatch):
    def fail(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Checkpoints, "_write_digests", fail)
    steps = _Counting()
    with pytest.raises(UserError, match=r"could not be written \(the disk is full") as error:
        _run(tmp_path, steps)
    assert "\n" not in str(error.value)
    assert _STEPS // 2 <= steps.made < _STEPS


def test_every_step_is_made_and_saved(tmp_path):
    steps = _Counting()
    assert int(_run(tmp_path, steps)) == steps.made == _STEPS
    assert (tmp_path / "checkpoints" / "counting" / str(_STEPS)).is_dir()
