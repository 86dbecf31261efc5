"""One writer a folder: a second one is refused, a dead one's folder is taken over."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from srum_jax.core import lock
from srum_jax.core.errors import BadInput, Preempted

HOLD = """
import sys, time
from srum_jax.core import lock
lock.BEAT = 0.05
with lock.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(folder, seconds=100.0):
    """Another process that holds `folder`."""
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout.readline() == "held\n", started.communicate()[1]
    return started


def elsewhere(folder, **changes):
    """A lock file that a process of another machine wrote."""
    holder = dataclasses.replace(lock.Holder.here(), host="far", machine="other", token="x")
    values = dataclasses.asdict(dataclasses.replace(holder, **changes))
    folder.mkdir(exist_ok=True)
    (folder / lock.FILE).write_text(json.dumps(values))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "STALE", 0.6)


def test_a_second_process_is_refused_until_the_first_ends_or_dies(tmp_path):
    folder = tmp_path / "run"
    first = hold(folder)
    try:
        with pytest.raises(BadInput, match=f"{folder} is in use by process {first.pid} on"):
            with lock.held(folder):
                pass
    finally:
        first.kill()  # it leaves its lock behind
        first.communicate()
    assert (folder / lock.FILE).exists()
    called = time.monotonic()
    with lock.held(folder):
        assert time.monotonic() - called < lock.STALE / 2  # a dead process is seen, not waited for
    assert not (folder / lock.FILE).exists()
    assert hold(folder, 0).wait() == 0
    assert list(folder.iterdir()) == []


def test_the_same_process_is_refused_too(tmp_path):
    with lock.held(tmp_path):
        with pytest.raises(BadInput, match="is in use by process"):
            with lock.held(tmp_path):
                pass
        assert (tmp_path / lock.FILE).exists()


def test_a_heartbeat_that_stands_still_is_a_dead_holders(tmp_path, quick):
    elsewhere(tmp_path)
    with lock.held(tmp_path):
        assert "far" not in (tmp_path / lock.FILE).read_text()


def test_a_holder_of_another_machine_whose_heartbeat_moves_is_left_alone(tmp_path, quick):
    elsewhere(tmp_path)
    moves = threading.Timer(0.1, elsewhere, [tmp_path], {"beat": 7.0})
    moves.start()
    with pytest.raises(BadInput, match=r"in use by process \d+ on far since \d{4}-"):
        with lock.held(tmp_path):
            pass
    moves.join()
    assert "far" in (tmp_path / lock.FILE).read_text()


def test_another_process_with_a_dead_ones_number_does_not_hold(tmp_path):
    holder = dataclasses.replace(lock.Holder.here(), started="1", token="x")
    (tmp_path / lock.FILE).write_text(json.dumps(dataclasses.asdict(holder)))
    with lock.held(tmp_path):
        assert json.loads((tmp_path / lock.FILE).read_text())["token"] != "x"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "a"}'])
def test_a_lock_that_says_nothing_holds_nothing(tmp_path, text):
    (tmp_path / lock.FILE).write_text(text)
    with lock.held(tmp_path):
        assert json.loads((tmp_path / lock.FILE).read_text())["process"] == os.getpid()


def test_who_was_taken_over_ends(tmp_path):
    first, limit = hold(tmp_path), time.monotonic() + 60
    while first.poll() is None and time.monotonic() < limit:
        elsewhere(tmp_path)  # again: a heartbeat that had been read before it overwrites one
        time.sleep(0.2)
    _, told = first.communicate(timeout=1)
    assert first.returncode == 1 and "was taken over by process" in told and "on far" in told
    assert "far" in (tmp_path / lock.FILE).read_text()  # it is the other one's


def test_one_of_many_at_once_holds(tmp_path):
    """Threads stand for processes: what decides is the file."""
    won, lost, done = [], [], threading.Event()

    def run():
        try:
            with lock.held(tmp_path):
                won.append(1)
                done.wait(60)
        except BadInput:
            lost.append(1)
            if len(lost) == 7:
                done.set()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(won), len(lost)) == (1, 7)


@pytest.mark.parametrize("ends_by", [Preempted("saved"), None])
def test_a_storage_that_is_gone_at_the_end_changes_no_ending(
    tmp_path, monkeypatch, caplog, ends_by
):
    def gone(path):
        raise OSError("no answer")

    with contextlib.ExitStack() as expected:
        if ends_by:
            expected.enter_context(pytest.raises(Preempted, match="saved"))
        with lock.held(tmp_path):
            monkeypatch.setattr(lock, "_read", gone)
            if ends_by:
                raise ends_by
    assert f"{tmp_path / lock.FILE}: not removed (no answer)" in caplog.text
