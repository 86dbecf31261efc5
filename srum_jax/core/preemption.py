"""The wish to stop: a signal sets one event, long loops look at it between steps."""

import signal
import threading

stop = threading.Event()


def install(signals: tuple[int, ...] = (signal.SIGTERM,)) -> None:
    """Makes the first of `signals` set `stop`; a second one acts as if nothing was installed.

    Must be called from the main thread (a rule of Python's signal module).
    """

    def handler(number, frame):
        stop.set()
        for s in signals:
            signal.signal(s, signal.SIG_DFL)

    for s in signals:
        signal.signal(s, handler)
