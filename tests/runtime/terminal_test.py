"""The progress line and what is written after it."""

import io
import sys

import pytest

from dawm_jax.runtime import cli, metrics, terminal


def terminal_of(monkeypatch):
    """Makes stderr a terminal; pytest replaces stderr after it made the fixtures."""
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def test_a_farewell_starts_on_a_fresh_line(monkeypatch):
    screen = terminal_of(monkeypatch)
    metrics.Progress("model", total=4, unit="step").report(2, {})
    with pytest.raises(SystemExit):
        cli.fail("interrupted", 130)
    assert screen.getvalue().endswith("\ndawm_jax: interrupted\n")
    assert screen.getvalue().count("\n") == 2 and "left" in screen.getvalue().split("\n")[0]


def test_no_empty_line_without_a_progress_line(monkeypatch):
    screen = terminal_of(monkeypatch)
    with pytest.raises(SystemExit):
        cli.fail("interrupted", 130)
    assert screen.getvalue() == "dawm_jax: interrupted\n"


def test_a_log_line_takes_the_place_of_the_progress_line(monkeypatch):
    screen = terminal_of(monkeypatch)
    terminal.rewrite("half done")
    terminal.erase()
    terminal.erase()
    terminal.end_line()
    assert screen.getvalue() == "\r\x1b[2Khalf done\r\x1b[2K"
