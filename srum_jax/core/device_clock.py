"""How long the devices had work: from when a call was sent until its results are there.

Whoever sends calls to devices says so here; where nobody measures, that does nothing.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax


class DeviceClock:
    """Seconds in which at least one call was on the devices, which take them in order."""

    def __init__(self):
        self.seconds = 0.0
        self._ready = -float("inf")  # when the results of the last call were there
        self._sent: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="device clock")
        self._thread.start()

    def sent(self, results: Any) -> None:
        """A call is on its way to the devices: a tree of the arrays that it makes."""
        self._sent.put((time.monotonic(), results))

    def worked(self, sent: float, ready: float) -> None:
        """Counts a call by the times, in seconds, when it was sent and when it was done."""
        self.seconds += max(0.0, ready - max(sent, self._ready))
        self._ready = max(ready, self._ready)

    def end(self, wait: bool) -> None:
        """No call follows; with `wait` those that were sent are counted before it returns."""
        self._sent.put(None)
        if wait:
            self._thread.join()

    def _watch(self) -> None:
        while (call := self._sent.get()) is not None:
            sent, results = call
            with contextlib.suppress(Exception):  # who fetches them meets it
                jax.block_until_ready(results)
            del call, results  # nothing is kept in memory while the next one is waited for
            self.worked(sent, time.monotonic())


_running: list[DeviceClock] = []


@contextlib.contextmanager
def measuring() -> Iterator[DeviceClock]:
    """Yields a clock of all calls that are sent inside; it is right where the block has ended."""
    clock, finished = DeviceClock(), False
    _running.append(clock)
    try:
        yield clock
        finished = True
    finally:
        _running.remove(clock)
        clock.end(wait=finished)


def sent(results: Any) -> None:
    """Tells the clocks that run of a call whose results are not there yet."""
    for clock in _running:
        clock.sent(results)
