"""How much longer a run takes, as far as it is known, and how that is said; nothing is guessed.

Owns what is known of the stage that runs and of those that follow. Progress bars of `console` show
it; who runs the stages says where they took how long before.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class TimeLeft:
    """What is known when a stage begins.

    stage: its name · takes: seconds that it will take in all, None: not known · later: the same of
    the stages after it, in order · since: `time.monotonic()` when it began.
    """

    stage: str
    takes: float | None = None
    later: tuple[tuple[str, float | None], ...] = ()
    since: float = dataclasses.field(default_factory=lambda: time.monotonic())

    def said(self, of_stage: float | None = None, *, brief: bool = False) -> str:
        """As in "about 3 h 10 min, and train, evaluate not known yet".

        of_stage: seconds that the stage itself still takes, where they are measured · brief: what
        is not known is counted, not named.
        """
        own = of_stage
        if own is None and self.takes is not None:
            own = max(0.0, self.takes - (time.monotonic() - self.since))
        parts = ((self.stage, own), *self.later)
        known = [seconds for _, seconds in parts if seconds is not None]
        names = dict.fromkeys(name for name, seconds in parts if seconds is None)
        stages = f"{len(names)} stage{'s' if len(names) > 1 else ''}"
        unknown = names and (stages if brief else ", ".join(names))
        if not unknown:
            return words(sum(known))
        beside = f"{words(sum(known))}, and {unknown} " if sum(known) else ""
        return f"{beside}not known yet"

    @property
    def ahead(self) -> bool:
        """Whether more is known than of the stage itself."""
        return any(seconds for _, seconds in self.later)


_running: list[TimeLeft] = []


@contextlib.contextmanager
def running(stage: TimeLeft) -> Iterator[None]:
    """Inside, `of_run` answers for this stage."""
    _running.append(stage)
    try:
        yield
    finally:
        _running.pop()


def of_run() -> TimeLeft | None:
    """Of the stage that runs; None where no run is under way."""
    return _running[-1] if _running else None


def words(seconds: float) -> str:
    """Seconds in words, no finer than an estimate is, as in "about 3 h 10 min"."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    if minutes < 60:
        return f"about {minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"about {hours} h {minutes:02d} min"
    return f"about {hours // 24} days {hours % 24} h"
