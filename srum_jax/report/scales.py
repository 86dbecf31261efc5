"""In which unit a section's numbers are written, and where they lie between worst and best."""

import dataclasses
import math
from collections.abc import Sequence

from srum_jax.report import numbers

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Scale:
    """From the worst to the best value of a metric. A share, from 0 to 1, is written in percent and
    its differences in points; any other number as it is, and its differences in its own unit."""

    worst: float = 0.0
    best: float = 1.0

    @property
    def share(self) -> bool:
        """Whether it is written in percent."""
        return (self.worst, self.best) == (0.0, 1.0)

    @property
    def width(self) -> float:
        """Best minus worst."""
        return self.best - self.worst

    def at(self, x: float) -> float:
        """Where a value lies, 0 at the worst and 1 at the best."""
        return (x - self.worst) / self.width

    def spread(self, ci95: Interval | None) -> Interval | None:
        """Where an interval lies."""
        return None if ci95 is None else (self.at(ci95[0]), self.at(ci95[1]))

    def value(self, x: float) -> str:
        """A value, as in "40.0 %" or "6.42"."""
        return numbers.percent(x) if self.share else self._plain(x)

    def values(self, ci95: Sequence[float]) -> str:
        """The two ends of an interval."""
        if self.share:
            return numbers.percent_range(ci95)
        between = " to " if self.worst < 0 else "\u2013"
        return between.join(map(self._plain, ci95))

    def change(self, x: float) -> str:
        """A difference with its sign, without its unit."""
        if self.share:
            return numbers.points(x)
        text = numbers.minus(f"{x:+.{self._digits}f}")
        return text[1:] if not text.strip("+\u22120.") else text

    def changes(self, ci95: Sequence[float]) -> str:
        """The two ends of an interval of a difference."""
        return " to ".join(map(self.change, ci95))

    @property
    def unit(self) -> str:
        """Of a difference, as it stands behind it."""
        if self.share:
            return "points"
        if self.worst:
            return f"on a scale from {numbers.short(self.worst)} to {numbers.short(self.best)}"
        return f"of {numbers.count(self.best)}"

    @property
    def _digits(self) -> int:
        return max(0, 3 - math.floor(math.log10(self.width) + 1e-9))

    def _plain(self, x: float) -> str:
        return numbers.minus(f"{x:.{self._digits}f}")
