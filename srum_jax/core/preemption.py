"""The wish to stop: the first signal asks for it, the second ends the process at once.

A thread of its own sees signals, also while a program is compiled. Long work looks at the wish
between its calls. What has not ended after `GRACE` seconds is cut off with the same exit code:
files are whole or absent, so only what is inside `saving` has something to lose, and is waited for.
"""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from srum_jax.core.errors import Preempted

# A terminal that is interrupted or closed, a machine that shuts down.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 20.0  # seconds until what does not look is cut off
# Seconds: a machine that shuts down signals every process, and launchers hand theirs on as well.
AT_ONCE = 5.0
PRESS = 0.3  # seconds between two presses of Ctrl-C, at least

stop = threading.Event()
_saving: list[None] = []  # the sections that are inside `saving`


@dataclasses.dataclass
class Presses:
    """The signals that came, each with its time in seconds."""

    came: list[tuple[int, float]] = dataclasses.field(default_factory=list)

    def ends(self, number: int, now: float) -> bool:
        """Notes a signal. Whether it is a second one: Ctrl-C again, or any long after the first."""
        pressed = [at for one, at in self.came if one == number == signal.SIGINT]
        long_after = bool(self.came) and now - self.came[0][1] > AT_ONCE
        self.came.append((number, now))
        return long_after or bool(pressed) and now - pressed[0] > PRESS


def install(on_cut: Callable[[], None] = lambda: None) -> None:
    """From here on signals ask for a stop; those that are ignored, as under nohup, stay ignored.

    on_cut: called before what does not end in time is cut off. Must be called from the main thread
    (a rule of Python's signal module).
    """
    global _on_cut
    _on_cut = on_cut
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # the pipe has it
    threading.Thread(target=_listen, args=(reads,), daemon=True, name="signals").start()


def check() -> None:
    """Raises Preempted where a stop is asked for; long work calls it between its calls."""
    if asked():
        raise Preempted("stopped; what was unfinished is made again")


def asked() -> bool:
    """Whether a stop is asked for: here, or, inside `agreeing`, as all processes see it alike."""
    return _agreed[-1]()


_agreed: list[Callable[[], bool]] = [stop.is_set]
_on_cut: Callable[[], None] = lambda: None  # noqa: E731


@contextlib.contextmanager
def agreeing(agreed: Callable[[], bool]) -> Iterator[None]:
    """Inside, `asked` is `agreed`: for work that several processes do together."""
    _agreed.append(agreed)
    try:
        yield
    finally:
        _agreed.pop()


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """What runs inside ends by itself when a stop is asked for, and is not cut off."""
    _saving.append(None)
    try:
        yield
    finally:
        _saving.pop()


def ask() -> None:
    """Asks for a stop, as a first signal does."""
    if not stop.is_set():
        stop.set()
        _say("stopping: what runs is finished and saved (again: ends at once)")
        threading.Thread(target=_cut, daemon=True, name="grace").start()


def _listen(reads: int) -> None:
    presses = Presses()
    while number := os.read(reads, 1)[0]:
        if number not in SIGNALS:
            continue
        if presses.ends(number, time.monotonic()):
            _say("ended at once")
            os._exit(128 + number)
        ask()


def _cut() -> None:
    left = GRACE
    while left > 0:
        time.sleep(0.1)
        left = GRACE if _saving or not stop.is_set() else left - 0.1
    _say("stopped: what was unfinished is made again; the same command goes on")
    _on_cut()
    os._exit(Preempted.exit_code)


def _say(text: str) -> None:
    os.write(2, f"\n{text}\n".encode())
