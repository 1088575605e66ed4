"""Records: what is written can be read back, whatever moment a process was killed at."""

import importlib.util
import io
import json
import logging
import pathlib
import sys
import types

import pytest

from dawm_jax.runtime import metrics
from dawm_jax.types import UserError


@pytest.fixture(name="log")
def _log(tmp_path):
    return metrics.MetricsFile(tmp_path / "metrics.jsonl")


def test_lines_come_back_in_order(log, tmp_path):
    assert list(log.lines()) == []
    log.append("model", "train", 1, {"loss": 0.5})
    log.append("agent", "train", 2, {"q": 3})
    log.append("agent", "assess", 2, {"returns": [1.0, 2.5], "nested": {"a": 1.5}})
    # One object a line, each readable without the package.
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(type(line.pop("crc")) is int for line in lines)
    assert lines == [
        {"stage": "model", "kind": "train", "step": 1, "loss": 0.5},
        {"stage": "agent", "kind": "train", "step": 2, "q": 3},
        {
            "stage": "agent",
            "kind": "assess",
            "step": 2,
            "returns": [1.0, 2.5],
            "nested": {"a": 1.5},
        },
    ]
    assert list(log.lines()) == lines
    assert list(log.lines("agent")) == lines[1:]
    assert list(log.lines("agent", "train")) == lines[1:2]
    assert list(log.lines(kind="train")) == lines[:2]
    assert list(log.lines("other")) == []


def test_a_second_process_goes_on(tmp_path):
    for step in (1, 2):
        metrics.MetricsFile(tmp_path / "metrics.jsonl").append("model", "train", step, {})
    lines = metrics.MetricsFile(tmp_path / "metrics.jsonl").lines()
    assert [entry["step"] for entry in lines] == [1, 2]


def test_numbers_that_are_not_finite_become_null(log, tmp_path):
    values = {"a": float("nan"), "b": [float("inf"), 1.0], "c": {"d": -float("inf")}, "e": (2,)}
    log.append("model", "train", 1, values)

    def refuse(constant):
        raise AssertionError(f"not JSON: {constant}")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    entry = json.loads(line, parse_constant=refuse)
    assert entry["a"] is None
    assert entry["b"] == [None, 1.0]
    assert entry["c"] == {"d": None}
    assert entry["e"] == [2]


def test_rewind_drops_only_what_the_stage_recorded_later(log):
    for step in (1, 2, 3):
        log.append("model", "train", step, {})
        log.append("agent", "train", step, {})
    log.append("agent", "assess", 3, {})
    log.rewind("agent", 2)
    kept = [(entry["stage"], entry["step"]) for entry in log.lines()]
    assert kept == [("model", 1), ("agent", 1), ("model", 2), ("agent", 2), ("model", 3)]


def test_rewind_without_a_file(log):
    log.rewind("agent", 0)
    assert list(log.lines()) == []
    log.append("agent", "train", 1, {})
    assert [entry["step"] for entry in log.lines()] == [1]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\x00",
        b"42",
        b"null",
        b"[1]",
        b"{}",
        b'{"stage": "model", "step": 2}',
        b'{"stage": "model", "kind": "train", "step": "2"}',
        b'{"stage": "model", "kind": "train", "step": true}',
        b'{"stage": 3, "kind": "train", "step": 2}',
        b'{"stage": "model", "kind": "train", "step": 2, "seconds": "long"}',
    ],
)
def test_a_damaged_line_is_left_out_and_reported_once(log, tmp_path, caplog, line):
    for step in (1, 2, 3):
        log.append("model", "train", step, {"loss": 0.25})
    path = tmp_path / "metrics.jsonl"
    first, _, last = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, line, last, b""]))
    for _ in range(2):
        assert [entry["step"] for entry in log.lines("model", "train")] == [1, 3]
    (message,) = caplog.messages
    assert "1 damaged lines are left out, the first is line 2" in message


@pytest.mark.parametrize("flipped", ["a value", "a name", "the sum's name", "nothing"])
def test_flipped_bits_in_a_line_are_noticed(log, tmp_path, flipped):
    for step in (1, 2, 3):
        log.append("model", "train", step, {"loss": 0.25})
    log.check()
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    old, new = {
        "a value": ("0.25", "0.35"),
        "a name": ("loss", "lors"),
        "the sum's name": ("crc", "src"),
        "nothing": ("loss", "loss"),
    }[flipped]
    lines[1] = lines[1].replace(old, new)
    path.write_text("\n".join(lines) + "\n")
    if flipped == "nothing":
        log.check()
        return
    assert [entry["step"] for entry in log.lines()] == [1, 3]
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is damaged: restore") as error:
        log.check()
    assert "\n" not in str(error.value)


def test_lines_of_an_older_version_are_read_and_completed(log, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "model", "kind": "train", "step": 1, "loss": 0.25}\n')
    log.check()
    log.rewind("model", 1)
    log.append("model", "train", 2, {"loss": 0.5})
    log.check()
    assert [(entry["step"], entry["loss"]) for entry in log.lines()] == [(1, 0.25), (2, 0.5)]


def test_lines_of_a_stage_come_in_the_order_of_their_steps(log, tmp_path):
    for step in (1, 2, 3):
        log.append("model", "train", step, {"loss": step / 4})
    log.append("model", "train", 2, {"loss": 9.0})  # the later of two counts
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[2], lines[1], lines[3], lines[0]]))
    found = [(entry["step"], entry["loss"]) for entry in log.lines("model")]
    assert found == [(1, 0.25), (2, 9.0), (3, 0.75)]


def test_a_rewind_follows_no_link(log, tmp_path):
    log.append("model", "train", 1, {})
    (tmp_path / "precious").write_text("text")
    (tmp_path / "metrics.tmp").symlink_to(tmp_path / "precious")
    log.rewind("model", 0)
    assert (tmp_path / "precious").read_text() == "text"


@pytest.mark.parametrize("lost", [1, 5, 20])
def test_a_torn_last_line_is_ignored(log, tmp_path, lost):
    """A killed process leaves part of a line; the next one rewinds, then records on."""
    for step in (1, 2, 3):
        log.append("model", "train", step, {"loss": 0.25})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-lost])
    whole = [1, 2, 3] if lost == 1 else [1, 2]  # only the line break of the third is gone
    assert [entry["step"] for entry in log.lines()] == whole
    log.rewind("model", 2)
    log.append("model", "train", 3, {"loss": 0.125})
    assert [(e["step"], e["loss"]) for e in log.lines()] == [(1, 0.25), (2, 0.25), (3, 0.125)]


# --- optional writers ---------------------------------------------------------------------


def test_no_writers_unless_asked(tmp_path):
    writers = metrics.make_writers(tmp_path, tensorboard=False, wandb_project="", config={})
    assert writers == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "options"),
    [
        ("tensorboardX", {"tensorboard": True, "wandb_project": ""}),
        ("wandb", {"tensorboard": False, "wandb_project": "dawm"}),
    ],
)
def test_missing_package(tmp_path, monkeypatch, package, options):
    monkeypatch.setitem(sys.modules, package, None)  # None makes the import fail
    with pytest.raises(UserError, match=rf"needs {package}: pip install") as error:
        metrics.make_writers(tmp_path, **options, config={})
    assert "\n" not in str(error.value)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX is not installed"
)
def test_tensorboard_writes_events(tmp_path):
    (writer,) = metrics.make_writers(tmp_path, tensorboard=True, wandb_project="", config={})
    writer.write("model", 5, {"loss": 0.5})
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"model/loss" in events.read_bytes()


def test_tensorboard_calls(tmp_path, monkeypatch):
    calls = []

    class Summary:
        def __init__(self, folder):
            calls.append(folder)

        def add_scalar(self, *args):
            calls.append(args)

        def close(self):
            calls.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Summary))
    (writer,) = metrics.make_writers(tmp_path, tensorboard=True, wandb_project="", config={})
    writer.write("model", 5, {"loss": 0.5, "speed": 2.0})
    writer.close()
    assert calls == [
        str(tmp_path / "tensorboard"),
        ("model/loss", 0.5, 5),
        ("model/speed", 2.0, 5),
        "closed",
    ]


class _Wandb(types.SimpleNamespace):
    """A stand-in that notes the calls."""

    def __init__(self):
        calls = []
        run = types.SimpleNamespace(log=calls.append, finish=lambda: calls.append("finished"))
        super().__init__(calls=calls, init=lambda **options: calls.append(options) or run)


def _wandb_id(workdir, monkeypatch, config=None):
    stand_in = _Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    config = config or {"seed": 1}
    metrics.make_writers(workdir, tensorboard=False, wandb_project="dawm", config=config)
    return stand_in.calls[0]["id"]


def test_wandb_calls(tmp_path, monkeypatch):
    stand_in = _Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    (writer,) = metrics.make_writers(
        tmp_path, tensorboard=False, wandb_project="dawm", config={"seed": 1}
    )
    writer.write("model", 5, {"loss": 0.5})
    writer.close()
    assert stand_in.calls[0] == {
        "project": "dawm",
        "id": metrics.wandb_id(tmp_path, {}),
        "name": tmp_path.name,
        "resume": "allow",
        "dir": str(tmp_path),
        "config": {"seed": 1},
    }
    assert stand_in.calls[1:] == [{"model/loss": 0.5, "model/step": 5}, "finished"]


def test_a_resumed_or_moved_run_keeps_its_wandb_id(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    first = _wandb_id(tmp_path / "a", monkeypatch)
    assert (tmp_path / "a" / "wandb_id").read_text().strip() == first
    assert _wandb_id(tmp_path / "a", monkeypatch, {"seed": 1, "interval": 2}) == first
    (tmp_path / "a").rename(tmp_path / "b")
    assert _wandb_id(tmp_path / "b", monkeypatch) == first


def test_folders_of_one_name_have_their_own_wandb_ids(tmp_path, monkeypatch):
    """Also a folder whose run was replaced by another configuration, and the current folder."""
    ids = []
    for parent, config in (("a", {"seed": 1}), ("b", {"seed": 1}), ("c", {"seed": 2})):
        folder = tmp_path / parent / "seed0"
        folder.mkdir(parents=True)
        ids.append(_wandb_id(folder, monkeypatch, config))
    (tmp_path / "a" / "seed0" / "wandb_id").unlink()
    ids.append(_wandb_id(tmp_path / "a" / "seed0", monkeypatch, {"seed": 2}))
    monkeypatch.chdir(tmp_path)
    ids.append(_wandb_id(pathlib.Path("."), monkeypatch))
    assert len(set(ids)) == len(ids) and all(ids)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a b", b"../x"])
def test_a_damaged_wandb_id_is_made_again(tmp_path, monkeypatch, content):
    first = _wandb_id(tmp_path, monkeypatch)
    (tmp_path / "wandb_id").write_bytes(content)
    assert _wandb_id(tmp_path, monkeypatch) == first


# --- progress -----------------------------------------------------------------------------


@pytest.fixture(name="clock")
def _clock(monkeypatch):
    """A clock that the test sets, so that speeds and times left are exact."""
    clock = types.SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def test_progress_logs_one_line_a_report(caplog, capsys, clock):
    caplog.set_level(logging.INFO)
    progress = metrics.Progress("model", total=2_000, unit="step")
    clock.now += 10.0
    progress.report(500, {"loss": 0.123456, "speed": 2.0})
    clock.now += 10.0
    progress.report(2_000, {})
    progress.close()
    first, last = (record.getMessage() for record in caplog.records)
    # 500 steps in 10 s are 50/s; the other 1,500 take 30 s.
    assert first.split() == (
        "model 500/2,000 step ( 25 %) 50.0/s 30 s left loss 0.1235 speed 2".split()
    )
    assert last.split() == "model 2,000/2,000 step (100 %) 100.0/s 0 s left".split()
    assert "\n" not in first + last
    assert capsys.readouterr().err == ""


def test_progress_of_a_resumed_stage_counts_only_this_process(caplog, clock):
    caplog.set_level(logging.INFO)
    progress = metrics.Progress("model", total=1_000, unit="step", done=800)
    clock.now += 50.0
    progress.report(900, {})
    # 100 steps in 50 s, not 900.
    assert "2.0/s  50 s left" in caplog.text
    assert "90 %" in caplog.text


def test_progress_before_anything_is_done(caplog, clock):
    caplog.set_level(logging.INFO)
    metrics.Progress("model", total=10, unit="step").report(0, {})
    assert "0/10" in caplog.text and "? left" in caplog.text


def test_progress_rewrites_its_line_on_a_terminal(monkeypatch, caplog, clock):
    caplog.set_level(logging.INFO)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = metrics.Progress("model", total=4, unit="step")
    for step in (1, 2):
        clock.now += 1.0
        progress.report(step, {})
    assert terminal.getvalue().count("\r") == 2
    assert "\n" not in terminal.getvalue()
    progress.close()
    assert terminal.getvalue().endswith("\n")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.6, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200.0, "3 min 20 s"),
        (3_599.4, "59 min 59 s"),
        (3_599.6, "1 h 00 min"),
        (7_500.0, "2 h 05 min"),
        (360_000.0, "100 h 00 min"),
    ],
)
def test_format_seconds(seconds, text):
    assert metrics.format_seconds(seconds) == text
