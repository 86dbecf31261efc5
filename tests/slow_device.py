"""A stand-in for a device: its calls are done in order, each as slowly as a test says."""

import collections
import threading

import numpy as np

PATIENCE = 20.0  # seconds: longer nothing waits for what should happen beside it


class SlowDevice:
    """Call n begins when those before have ended, and ends when `gates[n]` is open.

    sent: the numbers of calls in order · begun[n]: set when it begins · late: calls whose gate
    nobody opened in time.
    """

    def __init__(self):
        self.sent, self.late = [], []
        self.begun, self.gates, self._done = (
            collections.defaultdict(threading.Event) for _ in range(3)
        )

    def call(self, number: int, value: np.ndarray) -> "SlowArray":
        """Sends a call that makes `value`; returns at once."""
        before = self._done[self.sent[-1]] if self.sent else None
        self.sent.append(number)
        threading.Thread(target=self._work, args=(number, before), daemon=True).start()
        return SlowArray(self._done[number], value)

    def _work(self, number, before):
        if before is not None:
            before.wait()
        self.begun[number].set()
        if not self.gates[number].wait(PATIENCE):
            self.late.append(number)
        self._done[number].set()


class SlowArray:
    """What a call makes, as far as fetching asks of a jax.Array."""

    is_fully_addressable = True

    def __init__(self, done, value):
        self.done, self.value = done, value

    def block_until_ready(self):
        self.done.wait()
        return self

    def __array__(self, dtype=None, copy=None):
        self.done.wait()
        return self.value
