"""Processes of one run end together: what ends one ends all of them, with one exit code.

JAX's coordination service has a store of keys that every process reads. Who ends says so there, and
why; who was asked to stop says that too. A thread of every process looks. A process that is killed
says nothing: the service misses its heartbeat and aborts the others, which is made `HostLost` here.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping

import jax

from srum_jax.core import preemption
from srum_jax.core.errors import HostLost, Preempted, Stopped, in_a_line

_ROOT, _STOP = "srum_jax", "srum_jax/stop"
POLL = 1.0  # seconds between two readings of the store
PATIENCE = 60.0  # seconds that a process has to stop cleanly when another one has
WAIT = 10.0  # seconds that the first process, which has the store, waits for the others to read it

_watch: "HostWatch | None" = None


class HostWatch:
    """What the processes of a run tell each other; `start` makes the one of this process.

    lost_after: seconds after which the service is sure to have missed a process that was killed.
    """

    def __init__(self, lost_after: float):
        from jax._src import distributed  # the store has no public name

        self.number, self.count = jax.process_index(), jax.process_count()
        self.lost_after, self.store = lost_after, distributed.global_state.client
        self.done = threading.Event()
        self.stopped_at: float | None = None  # when another one was seen to have stopped

    def end(self, code: int, why: str) -> None:
        """Ends this process, and tells the others to. `why`: one line for their logs."""
        self.done.set()
        with contextlib.suppress(Exception):  # without the store they miss this one
            self._tell(f"{_ROOT}/ended/{self.number}", f"{code} {why}")
            if self.number == 0:
                self._wait_for_others(PATIENCE if code == Preempted.exit_code else WAIT)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def poll(self) -> None:
        """Reads the store once: passes on a wish to stop, and ends where another one has ended."""
        if preemption.stop.is_set():
            self._tell(_STOP, "1")
        told = dict(self.store.key_value_dir_get(_ROOT))
        if _STOP in told:
            preemption.ask()
        for number, (code, why) in _ended(told).items():
            if code == Preempted.exit_code:
                preemption.ask()
                self.stopped_at = self.stopped_at or time.monotonic()
                if time.monotonic() - self.stopped_at < PATIENCE:
                    continue  # it stops by itself, after it has saved
            if code and number != self.number:
                print(f"error: process {number} of this run ended: {why}", file=sys.stderr)
                self.end(code, why)

    def run(self) -> None:
        """Looks until this process ends."""
        while not self.done.wait(POLL):
            with contextlib.suppress(Exception):  # no answer: who misses another is aborted
                self.poll()

    def _tell(self, key: str, value: str) -> None:
        self.store.key_value_set(key, value, allow_overwrite=True)

    def _wait_for_others(self, seconds: float) -> None:
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if len(_ended(dict(self.store.key_value_dir_get(_ROOT)))) == self.count:
                return
            time.sleep(POLL / 4)


def _ended(told: Mapping[str, str]) -> dict[int, tuple[int, str]]:
    """{process: (exit code, why)} of those that have ended."""
    found = {}
    for key, value in told.items():
        if key.startswith(f"{_ROOT}/ended/"):
            code, _, why = value.partition(" ")
            found[int(key.rpartition("/")[2])] = int(code), why
    return found


def start(lost_after: float) -> None:
    """Begins to look, in a process that has joined the others. See `HostWatch`."""
    global _watch
    _watch = HostWatch(lost_after)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    # Python's own handlers run after a C function has returned, and abort() does not return.
    libc.signal(signal.SIGABRT, ctypes.cast(_aborted, ctypes.c_void_p))
    threading.Thread(target=_watch.run, daemon=True, name="host watch").start()


def end(code: int, error: Exception) -> None:
    """Ends all processes of the run with `code`, for `error`; where there is one process: returns.

    Who lost a connection may only have met the end of another process: it first waits for what that
    one says, or for the service to miss it.
    """
    if _watch is None:
        return
    if code == Stopped.exit_code:  # a fault of the program
        traceback.print_exception(error)
    if lost := isinstance(error, HostLost) or "Gloo" in str(error):  # of CPUs: a ValueError
        code = HostLost.exit_code
    if lost or isinstance(error, RuntimeError):
        time.sleep(_watch.lost_after)
    _watch.end(code, in_a_line(error, 500))


def cut() -> None:
    """This process is about to be cut off after a wish to stop: the others are told."""
    if _watch is not None:
        _watch.end(Preempted.exit_code, "stopped")


def finished() -> None:
    """This process has done its work: from here on the others may end as they like."""
    if _watch is not None:
        _watch.done.set()


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number: int) -> None:
    text = "\nerror: another process of this run is gone, or this one was aborted; see the logs\n"
    os.write(2, text.encode())
    os._exit(HostLost.exit_code)
