"""Checkpoints: what is restored is bit for bit what was saved, whatever happened since."""

import errno
import logging
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dawm_jax.models import optim as learner
from dawm_jax.runtime.checkpoint import Checkpoints
from dawm_jax.types import UserError

# Big enough that the background write is still under way when the state is donated.
_LARGE = 4_000_000


@pytest.fixture(name="folder")
def _folder(tmp_path):
    return tmp_path / "checkpoints" / "stage"


@pytest.fixture(name="open_checkpoints")
def _open_checkpoints(folder):
    """Opens the folder as a new process would; all are closed at the end."""
    opened = []

    def open_checkpoints(**options):
        opened.append(Checkpoints(folder, **options))
        return opened[-1]

    yield open_checkpoints
    for checkpoints in opened:
        checkpoints._manager.close()


def _state(seed: int = 0, size: int = 5):
    """A training state with every kind of leaf that the package stores."""
    rng = np.random.default_rng(seed)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(size, 3)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=3), jnp.bfloat16),
        "scalar": jnp.float32(rng.normal()),
    }
    state = learner.init_state(params, optax.adam(1e-3))
    return {"state": state, "count": jnp.int32(rng.integers(1000)), "flags": jnp.arange(3) > 1}


def _assert_bits(restored, expected):
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        got, want = np.asarray(got), np.asarray(want)
        assert got.dtype == want.dtype and got.shape == want.shape
        assert got.tobytes() == want.tobytes()


def _host_copy(tree):
    """A copy that no donation can reach; np.asarray would alias the CPU's device memory."""
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)


def _assert_one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def _damage(step_folder, kind):
    files = [path for path in step_folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        if kind == "cut":
            os.truncate(path, path.stat().st_size // 2)
        elif kind == "data lost" and path.parent.name == "d":
            path.unlink()
        elif kind == "data garbled" and path.parent.name == "d":
            path.write_bytes(os.urandom(path.stat().st_size))


# --- what is saved comes back -------------------------------------------------------------


def test_nothing_to_restore(open_checkpoints):
    checkpoints = open_checkpoints()
    assert checkpoints.latest_step() is None
    assert checkpoints.restore(_state()) is None


def test_round_trip_is_exact(open_checkpoints):
    state = _state()
    checkpoints = open_checkpoints()
    checkpoints.save(7, state)
    checkpoints.wait()
    # Another process, whose fresh state has other values but the same shapes.
    restored, step = open_checkpoints().restore(_state(seed=1))
    assert step == 7
    _assert_bits(restored, state)


def test_values_that_are_not_finite_survive(open_checkpoints):
    state = {"x": jnp.array([jnp.nan, jnp.inf, -jnp.inf, -0.0], jnp.float32)}
    checkpoints = open_checkpoints()
    checkpoints.save(1, state)
    checkpoints.wait()
    _assert_bits(checkpoints.restore(state)[0], state)


def test_restored_state_can_be_donated(open_checkpoints):
    """Training goes on from a restored state in programs that overwrite it."""
    state = _state()
    checkpoints = open_checkpoints()
    checkpoints.save(1, state)
    checkpoints.wait()
    restored, _ = checkpoints.restore(state)
    twice = jax.jit(lambda tree: jax.tree.map(lambda x: x + x, tree), donate_argnums=0)
    params = twice(restored["state"].params)
    np.testing.assert_array_equal(params["kernel"], 2 * state["state"].params["kernel"])
    _assert_bits(checkpoints.restore(state)[0], state)


def test_donated_while_being_written(open_checkpoints):
    """The disk holds the state at the time of the call, not what the next steps made of it.

    On a CPU a host copy can alias the device's memory, which a donated argument's program
    overwrites at once.
    """
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 1.5 + 1, tree), donate_argnums=0)
    state = step({"x": jnp.arange(_LARGE, dtype=jnp.float32), "y": jnp.float32(3)})
    checkpoints, expected = open_checkpoints(), {}
    for number in (1, 2):
        expected[number] = _host_copy(state)
        checkpoints.save(number, state)
        for _ in range(5):
            state = step(state)
    checkpoints.wait()
    for number in (2, 1):
        restored, at = open_checkpoints().restore(state)
        assert at == number
        _assert_bits(restored, expected[number])
        checkpoints._manager.delete(number)


# --- which one is restored ----------------------------------------------------------------


def test_latest_wins_and_two_are_kept(open_checkpoints, folder):
    checkpoints = open_checkpoints(keep=2)
    states = {step: _state(seed=step) for step in (10, 20, 30)}
    for step, state in states.items():
        checkpoints.save(step, state)
    checkpoints.wait()
    assert checkpoints.latest_step() == 30
    assert sorted(path.name for path in folder.iterdir()) == ["20", "30"]
    restored, step = open_checkpoints().restore(_state())
    assert step == 30
    _assert_bits(restored, states[30])


@pytest.mark.parametrize("keep", [1, 3])
def test_keep(open_checkpoints, folder, keep):
    checkpoints = open_checkpoints(keep=keep)
    for step in range(5):
        checkpoints.save(step, {"x": jnp.float32(step)})
    checkpoints.wait()
    assert sorted(int(path.name) for path in folder.iterdir()) == list(range(5))[-keep:]


@pytest.mark.parametrize("kind", ["cut", "data lost", "data garbled"])
def test_damaged_newest_falls_back(open_checkpoints, folder, caplog, kind):
    states = {step: _state(seed=step) for step in (10, 20)}
    checkpoints = open_checkpoints()
    for step, state in states.items():
        checkpoints.save(step, state)
    checkpoints.wait()
    _damage(folder / "20", kind)

    checkpoints = open_checkpoints()
    with caplog.at_level(logging.WARNING):
        restored, step = checkpoints.restore(_state(), discard_damaged=True)
    assert step == 10
    _assert_bits(restored, states[10])
    assert "20 cannot be restored" in caplog.text
    # Training reaches the damaged step again and saves there.
    assert checkpoints.latest_step() == 10
    checkpoints.save(20, _state(seed=3))
    checkpoints.wait()
    restored, step = open_checkpoints().restore(_state())
    assert step == 20
    _assert_bits(restored, _state(seed=3))


def test_all_damaged(open_checkpoints, folder):
    checkpoints = open_checkpoints()
    for step in (10, 20):
        checkpoints.save(step, _state())
    checkpoints.wait()
    for step in ("10", "20"):
        _damage(folder / step, "cut")
    with pytest.raises(UserError) as error:
        open_checkpoints().restore(_state())
    _assert_one_line(error, str(folder), "no checkpoint can be restored", "--workdir")
    # Nothing is deleted where nothing could be read: the mistake may be the caller's.
    assert sorted(path.name for path in folder.iterdir()) == ["10", "20"]


def test_leftover_of_a_killed_process_is_ignored(open_checkpoints, folder):
    """A write in progress has its own folder name until it is complete."""
    state = _state(seed=10)
    checkpoints = open_checkpoints()
    checkpoints.save(10, state)
    checkpoints.wait()
    leftover = folder / "20.orbax-checkpoint-tmp"
    shutil.copytree(folder / "10", leftover)
    for path in leftover.rglob("*"):
        if path.name in ("commit_success.txt", "manifest.ocdbt"):
            path.unlink()

    checkpoints = open_checkpoints()
    assert checkpoints.latest_step() == 10
    restored, step = checkpoints.restore(_state())
    assert step == 10
    _assert_bits(restored, state)
    checkpoints.save(20, _state(seed=20))
    checkpoints.wait()
    restored, step = open_checkpoints().restore(_state())
    assert step == 20
    _assert_bits(restored, _state(seed=20))


# --- what cannot be restored or written ---------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"w": jnp.zeros((4, 3)), "b": jnp.zeros(3)},
        {"w": jnp.zeros((2, 2)), "b": jnp.zeros(3)},
        {"w": jnp.zeros((3, 3, 1)), "b": jnp.zeros(3)},
        {"w": jnp.zeros((3, 3))},
        {"w": jnp.zeros((3, 3)), "b": jnp.zeros(3), "c": jnp.zeros(1)},
        {"w": {"deep": jnp.zeros((3, 3))}, "b": jnp.zeros(3)},
    ],
    ids=["larger", "smaller", "rank", "missing", "additional", "deeper"],
)
def test_other_shapes_and_structures(open_checkpoints, folder, other):
    checkpoints = open_checkpoints()
    checkpoints.save(1, {"w": jnp.ones((3, 3)), "b": jnp.ones(3)})
    checkpoints.wait()
    with pytest.raises(UserError) as error:
        checkpoints.restore(other)
    _assert_one_line(error, str(folder), "no checkpoint can be restored")
    # It still fits the state it was made of.
    restored, _ = checkpoints.restore({"w": jnp.zeros((3, 3)), "b": jnp.zeros(3)})
    np.testing.assert_array_equal(restored["w"], 1.0)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (
            ValueError("RESOURCE_EXHAUSTED: Error writing file\nNo space left on device [OS]"),
            "the disk is full",
        ),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
    ],
    ids=["errno", "tensorstore", "read only"],
)
@pytest.mark.parametrize("method", ["save", "wait_until_finished"])
def test_failed_write(open_checkpoints, monkeypatch, failure, reason, method):
    """At once or in the background: one line, and the earlier checkpoint is intact."""
    state = _state()
    checkpoints = open_checkpoints()
    checkpoints.save(1, state)
    checkpoints.wait()

    def fail(*args, **kwargs):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, method, fail)
        with pytest.raises(UserError) as error:
            if method == "save":
                checkpoints.save(2, _state(seed=2))
            checkpoints.wait()
    _assert_one_line(error, reason, "earlier ones are intact")
    restored, step = open_checkpoints().restore(_state(seed=3))
    assert step == 1
    _assert_bits(restored, state)


def test_close_waits_for_the_write(folder):
    checkpoints = Checkpoints(folder)
    state = {"x": jnp.arange(_LARGE, dtype=jnp.float32)}
    checkpoints.save(1, state)
    checkpoints.close()
    assert [path.name for path in folder.iterdir()] == ["1"]
    reader = Checkpoints(folder)
    _assert_bits(reader.restore(state)[0], state)
    reader.close()
