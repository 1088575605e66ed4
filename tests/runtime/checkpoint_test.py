"""Checkpoints: what is restored is bit for bit what was saved, whatever happened since."""

import errno
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dawm_jax.models import optim as learner
from dawm_jax.runtime.checkpoint import Checkpoints, damage
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


def test_a_part_of_the_tree_is_restored_alone(open_checkpoints):
    state = {"state": {"kept": jnp.arange(3.0), "other": jnp.ones((2, 2))}, "more": jnp.int32(4)}
    checkpoints = open_checkpoints()
    checkpoints.save(7, state)
    checkpoints.wait()
    part = {"state": {"kept": jnp.zeros(3)}}
    restored, step = open_checkpoints().restore(part, partial=True)
    assert step == 7
    _assert_bits(restored, {"state": {"kept": state["state"]["kept"]}})
    with pytest.raises(UserError, match="not compatible with the stored shape"):
        open_checkpoints().restore({"state": {"kept": jnp.zeros(4)}}, partial=True)
    with pytest.raises(UserError, match="no checkpoint can be restored"):
        open_checkpoints().restore(part)


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
    _assert_one_line(error, f"delete {folder}", "no checkpoint can be restored", "--workdir")
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


# --- digests ------------------------------------------------------------------------------


def _saved(open_checkpoints, steps=(10, 20)):
    states = {step: _state(seed=step) for step in steps}
    checkpoints = open_checkpoints()
    for step, state in states.items():
        checkpoints.save(step, state)
    checkpoints.wait()
    return states


def _flip(path, position, bit):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def test_a_flipped_bit_in_any_file_is_noticed(open_checkpoints, folder):
    _saved(open_checkpoints)
    files = sorted(path for path in (folder / "20").rglob("*") if path.is_file())
    assert len(files) > 5
    rng = np.random.default_rng(0)
    for path in files:
        whole = path.read_bytes()
        for position in {0, len(whole) - 1, int(rng.integers(len(whole)))}:
            _flip(path, position, int(rng.integers(8)))
            assert damage(folder / "20"), path
            path.write_bytes(whole)
    assert damage(folder / "20") is None


@pytest.mark.parametrize("change", ["flipped", "longer", "empty", "gone"])
def test_damaged_arrays_are_not_restored(open_checkpoints, folder, caplog, change):
    states = _saved(open_checkpoints)
    path = max((folder / "20").rglob("d/*"), key=lambda path: path.stat().st_size)
    if change == "flipped":
        _flip(path, path.stat().st_size // 2, 3)
    elif change == "longer":
        path.write_bytes(path.read_bytes() + b"0")
    elif change == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    checkpoints = open_checkpoints()
    with caplog.at_level(logging.WARNING):
        restored, step = checkpoints.restore(_state())
    assert step == 10
    _assert_bits(restored, states[10])
    (line,) = caplog.messages
    assert "20 cannot be restored" in line and "damaged or missing" in line


def test_one_entry_is_read_from_the_newest_intact_checkpoint(open_checkpoints, folder, caplog):
    states = _saved(open_checkpoints)
    for expected in (20, 10):
        count = open_checkpoints().entry("count")
        np.testing.assert_array_equal(count, states[expected]["count"])
        (folder / "20" / "default" / "_METADATA").write_bytes(b"")
    assert len(caplog.messages) == 1
    (folder / "10" / "digests.json").write_bytes(b"{")
    with pytest.raises(UserError) as error:
        open_checkpoints().entry("count")
    _assert_one_line(error, f"delete {folder}", "resume the run")


def test_a_checkpoint_of_an_older_version_has_no_digests(open_checkpoints, folder):
    states = _saved(open_checkpoints)
    (folder / "20" / "digests.json").unlink()
    assert damage(folder / "20") is None
    restored, step = open_checkpoints().restore(_state())
    assert step == 20
    _assert_bits(restored, states[20])


def test_digests_are_there_when_the_checkpoint_appears(open_checkpoints, folder):
    """A process killed at any later moment leaves a checkpoint that can be verified."""
    checkpoints = open_checkpoints()
    checkpoints.save(10, _state())
    checkpoints._manager.wait_until_finished()
    path = max((folder / "10").rglob("d/*"), key=lambda path: path.stat().st_size)
    assert damage(folder / "10") is None
    _flip(path, path.stat().st_size // 2, 0)
    assert damage(folder / "10")


def test_a_write_is_completed_without_another_save(open_checkpoints, folder):
    """Its digests then name all files; a write that goes on is not waited for."""
    checkpoints = open_checkpoints()
    checkpoints.check()
    release = threading.Event()
    write = checkpoints._manager._checkpointer._post_finalization_callback

    def wait_and_write():
        release.wait()
        write()

    checkpoints._manager._checkpointer._post_finalization_callback = wait_and_write
    checkpoints.save(10, _state())
    checkpoints.check()
    assert not (folder / "10").exists()
    release.set()
    while checkpoints._saving is not None:
        checkpoints.check()
        time.sleep(0.01)
    stored = json.loads((folder / "10" / "digests.json").read_text())
    files = [path for path in (folder / "10").rglob("*") if path.is_file()]
    assert len(stored) == len(files) - 1 and damage(folder / "10") is None


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


_FAILING = """
import pathlib, resource, shutil, signal, sys, time
import jax, jax.numpy as jnp
from dawm_jax.runtime.checkpoint import Checkpoints
from dawm_jax.types import UserError
folder, damage = pathlib.Path(sys.argv[1]), sys.argv[2]
checkpoints = Checkpoints(folder)
state = {"x": jnp.arange(1000.0)}
checkpoints.save(1, state)
checkpoints.wait()
if damage == "a file in its place":
    shutil.rmtree(folder)
    folder.write_text("")
elif damage == "writes fail":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    state = {str(i): jax.random.normal(jax.random.key(i), 2000) for i in range(100)}
elif damage == "no digests":
    def fail():
        raise OSError(28, "No space left on device")
    checkpoints._manager._checkpointer._post_finalization_callback = fail
elif damage == "damaged":
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1])
try:
    if damage == "damaged":
        Checkpoints(folder).restore(state)
    if "noticed" in sys.argv:
        checkpoints.save(2, state)
        for _ in range(600):
            checkpoints.check()
            time.sleep(0.1)
        sys.exit("not noticed")
    for step in range(2, 6):
        checkpoints.save(step, state)
        time.sleep(0.2)
    checkpoints.close()
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""


@pytest.mark.parametrize(
    ("kind", "until"),
    [
        ("a file in its place", "saved again"),
        ("writes fail", "saved again"),
        ("writes fail", "noticed"),
        ("no digests", "saved again"),
        ("no digests", "noticed"),
        ("damaged", "saved again"),
    ],
)
def test_a_failure_ends_the_process_with_a_line(tmp_path, kind, until):
    """No thread of Orbax keeps the process alive, and none of its tracebacks is printed."""
    result = subprocess.run(
        [sys.executable, "-c", _FAILING, str(tmp_path / "stage"), kind, until],
        cwd=pathlib.Path(__file__).resolve().parents[2],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    expected = "no checkpoint can be restored" if kind == "damaged" else "could not be written"
    assert expected in result.stderr.splitlines()[-1]
    assert result.stderr.count("\n") <= 2  # a warning about the damage is printed too
