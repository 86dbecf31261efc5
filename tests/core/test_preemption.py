"""Signals: the first asks for a stop, the second ends; what does not look is cut off in time."""

import os
import signal
import subprocess
import sys
import time

import pytest

from srum_jax.core import preemption
from srum_jax.core.preemption import Presses

# Installs, says so, and works in a C function that does not return to the interpreter.
BUSY = """\
import contextlib, hashlib, signal, sys
from srum_jax.core import preemption
preemption.GRACE = 1.0
for number in preemption.SIGNALS if {heard} else ():
    signal.signal(number, signal.SIG_DFL)  # a job in the background ignores some
preemption.install()
inside = preemption.saving() if {saving} else contextlib.nullcontext()
with inside:
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})
print("whole", flush=True)
"""


@pytest.fixture
def busy():
    """Starts processes and hands them on once they are at work; none outlives its test."""
    processes = []

    def start(*before, saving=False, rounds=2**30):
        code = BUSY.format(saving=saving, rounds=rounds, heard=not before)
        command = [*before, sys.executable, "-c", code]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(subprocess.Popen(command, **pipes))
        assert processes[-1].stdout.readline() == "busy\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_work_that_does_not_look_is_cut_off_with_the_code_of_a_clean_stop(busy, number):
    started = busy()
    started.send_signal(number)
    out, err = started.communicate(timeout=60)
    assert started.returncode == 75 and out == ""
    assert "stopping: " in err and "made again" in err and "Traceback" not in err


def test_the_second_ctrl_c_ends_at_once(busy):
    started = busy(saving=True)
    started.send_signal(signal.SIGINT)
    time.sleep(2 * preemption.PRESS)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130 and "ended at once" in err and "Traceback" not in err


def test_what_saves_is_waited_for(busy):
    started = busy(saving=True, rounds=2**22)  # seconds, longer than the grace
    started.send_signal(signal.SIGTERM)
    out, _ = started.communicate(timeout=120)
    assert out == "whole\n"


def test_a_signal_that_was_ignored_stays_so(busy):
    started = busy("nohup", rounds=2**18)
    os.kill(started.pid, signal.SIGHUP)
    out, err = started.communicate(timeout=120)
    assert out == "whole\n" and "stop" not in err


@pytest.mark.parametrize(
    "came, ends",
    [
        ([(signal.SIGTERM, 0), (signal.SIGTERM, 4)], False),  # handed on by a launcher
        ([(signal.SIGTERM, 0), (signal.SIGTERM, 6)], True),
        ([(signal.SIGINT, 0), (signal.SIGTERM, 0.01)], False),  # a terminal, and a launcher
        ([(signal.SIGINT, 0), (signal.SIGINT, 0.01)], False),
        ([(signal.SIGINT, 0), (signal.SIGTERM, 0.01), (signal.SIGINT, 1)], True),
        ([(signal.SIGHUP, 0), (signal.SIGINT, 1)], False),
        ([(signal.SIGHUP, 0), (signal.SIGINT, 6)], True),
    ],
)
def test_which_signal_is_the_second(came, ends):
    presses = Presses()
    assert [presses.ends(*one) for one in came] == [False] * (len(came) - 1) + [ends]
