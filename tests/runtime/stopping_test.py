"""Which signals ask to stop, and how."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from dawm_jax.runtime.stopping import Interrupted, StopFlag, stop_on_signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_sets_the_flag_and_the_old_handler_returns(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        stop.check("nothing")
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match="here"):
            stop.check("here")
    assert stop.signal == number
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_waiting_process_asks_the_one_that_works(tmp_path):
    """Two processes of a job share a file; the signal comes to the one that waits."""
    works, waits = (StopFlag(request=tmp_path / ".stop") for _ in range(2))
    waits.ask()
    works.check("nothing")
    waits.signal = signal.SIGTERM
    waits.ask()
    with pytest.raises(Interrupted, match="here"):
        works.check("here")
    StopFlag(signal.SIGTERM, tmp_path / "absent" / ".stop").ask()  # it cannot, and goes on
    StopFlag(signal.SIGTERM).ask()  # nobody to ask


def test_where_nothing_has_to_be_saved_a_signal_ends_it_at_once():
    with stop_on_signals() as stop, pytest.raises(Interrupted, match="a download"):
        with stop.at_once("a download"):
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("it went on")
    with pytest.raises(Interrupted, match="another"), stop.at_once("another"):
        pytest.fail("it began")  # although the signal came before


def test_a_library_that_catches_what_a_signal_raises_does_not_hide_it():
    with stop_on_signals() as stop, pytest.raises(Interrupted, match="a download"):
        with stop.at_once("a download"):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except Exception as error:
                raise OSError("no connection") from error
    with pytest.raises(OSError, match="absent"), StopFlag().at_once("a download"):
        raise OSError("absent")


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            stop.check("nothing")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_does_not_keep_the_process_from_saving():
    """What is written to a terminal that has hung up fails; it goes nowhere instead."""
    script = (
        "import os, sys, time\n"
        "from dawm_jax.runtime.stopping import stop_on_signals\n"
        "with stop_on_signals() as stop:\n"
        "    os.write(int(sys.argv[1]), b'r')\n"
        "    while stop.signal is None: time.sleep(.01)\n"
        "    print('a line', file=sys.stderr, flush=True)\n"
        "    os.write(int(sys.argv[1]), b's')\n"
    )
    ours, theirs = pty.openpty()
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(write)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        pass_fds=(write,),
        start_new_session=True,
    )
    os.close(theirs)
    os.close(write)
    assert os.read(read, 1) == b"r"
    os.close(ours)  # the terminal's window is closed
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 0
    assert os.read(read, 1) == b"s"
    os.close(read)


def test_without_a_signal_nothing_stops():
    StopFlag().check("nothing")
