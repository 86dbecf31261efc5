"""The wish to stop: a signal sets one event, long loops look at it between steps."""

import signal
import threading
from time import monotonic

# Seconds: a machine that shuts down signals every process, and launchers hand theirs on as well.
AT_ONCE = 5.0
stop = threading.Event()


def install(signals: tuple[int, ...] = (signal.SIGTERM,)) -> None:
    """Makes the first of `signals` set `stop`; another, more than AT_ONCE later, ends the process.

    Must be called from the main thread (a rule of Python's signal module).
    """
    times: list[float] = []

    def handler(number, frame):
        stop.set()
        times.append(monotonic())
        if times[-1] - times[0] > AT_ONCE:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for s in signals:
        signal.signal(s, handler)
