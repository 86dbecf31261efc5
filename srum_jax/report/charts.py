"""Where the marks of the report's charts lie: strips with intervals, curves, histograms.

Owns axes, scales and smoothing; the templates draw the marks and the style sheet colours them.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from srum_jax.report.numbers import count, short, signed

WIDTH, HEIGHT = 360, 200  # of a line chart, in SVG units
LEFT, BOTTOM, TOP, RIGHT = 48, 26, 8, 10  # its margins
HISTOGRAM_WIDTH, HISTOGRAM_HEIGHT, FOOT = 420, 120, 18
POINTS = 600  # drawn of a line


# -- strips: a value with its interval on a scale -----------------------------------------------


@dataclasses.dataclass(frozen=True)
class Mark:
    """A dot with its whisker in percent of the strip; kind names the colour."""

    kind: str
    top: float
    at: float
    left: float
    width: float


@dataclasses.dataclass(frozen=True)
class Strip:
    """Marks on one scale, one line each; zero: the place of no difference, in percent."""

    marks: tuple[Mark, ...]
    zero: float | None = None


def strip(
    values: Sequence[tuple[str, float, tuple[float, float] | None]],
    lo: float = 0.0,
    hi: float = 1.0,
    zero: float | None = None,
) -> Strip:
    """Each (kind, value, interval or None) on a scale from `lo` to `hi`; what is beyond lies at
    its end."""

    def at(x: float) -> float:
        return 100 * min(max((x - lo) / (hi - lo), 0.0), 1.0)

    marks = []
    for i, (kind, value, ci95) in enumerate(values):
        left, right = map(at, ci95 or (value, value))
        top = 100 * (i + 1) / (len(values) + 1)
        marks.append(Mark(kind, top, at(value), left, right - left))
    return Strip(tuple(marks), None if zero is None else at(zero))


def reach(*differences: tuple[float, tuple[float, float]]) -> float:
    """The end of a scale around 0 that shows all (value, interval), a multiple of 5 points."""
    largest = max(abs(x) for value, ci95 in differences for x in (value, *ci95))
    return max(0.05, math.ceil(20 * largest - 1e-9) / 20)


# -- curves over training steps -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tick:
    """A mark of an axis and what it says."""

    at: float
    text: str


@dataclasses.dataclass(frozen=True)
class Curve:
    """A chart of lines: ticks in SVG units, and (kind, path data, name) of each line.

    note: a remark under the title; no lines: nothing finite was logged.
    """

    title: str
    note: str
    label: str
    x: tuple[Tick, ...] = ()
    y: tuple[Tick, ...] = ()
    lines: tuple[tuple[str, str, str], ...] = ()


def curve(title: str, remark: str, steps: np.ndarray, values: np.ndarray, smooth: bool) -> Curve:
    """One series over training steps.

    Args:
      title, remark: what is drawn, and a remark on it that ends in ", " (or nothing).
      steps: int [N], rising.
      values: float [N]; NaN and infinities are gaps.
      smooth: draw a running mean over the pale raw line.

    A positive series that spans more than a factor 30 is drawn on a log scale, and says so.
    """
    raw = np.asarray(values, np.float64)
    finite = raw[np.isfinite(raw)]
    if finite.size == 0:
        return Curve(title, "no finite value was logged", title)
    log = bool(smooth and finite.min() > 0 and finite.max() / finite.min() > 30)

    def scaled(y: np.ndarray) -> np.ndarray:
        return np.log10(y) if log else y

    lo, hi = float(scaled(finite.min())), float(scaled(finite.max()))
    if not log and lo > 0 and lo < 0.5 * hi:
        lo = 0.0
    if hi - lo < 1e-12 * max(abs(hi), 1e-30):
        lo, hi = lo - 0.5 * (abs(lo) or 1), hi + 0.5 * (abs(hi) or 1)
    plane = _Plane.of(steps, lo, hi)
    keep = np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).round().astype(int)
    mean = _smooth(raw, max(len(raw) // 40, 1)) if smooth else raw
    series = [("raw", raw)] * smooth + [("line", mean)]
    note = f"{remark}{'log scale, ' if log else ''}first {short(raw[0])}, last {short(raw[-1])}"
    return Curve(
        title,
        note,
        f"{title} over {len(steps)} logged steps",
        *plane.ticks(log),
        tuple((kind, plane.path(steps[keep], scaled(y[keep])), "") for kind, y in series),
    )


def curves(title: str, steps: np.ndarray, series: Sequence[tuple[str, str, np.ndarray]]) -> Curve:
    """Several lines (kind, name, values float [N]) over steps [N], on a scale from 0 to at least 1.

    A value that is not finite is a gap.
    """
    highest = max(float(np.max(v, where=np.isfinite(v), initial=1.0)) for _, _, v in series)
    plane = _Plane.of(steps, 0.0, highest)
    lines = tuple((f"line {kind}", plane.path(steps, v), name) for kind, name, v in series)
    return Curve(title, "", f"{title} at {len(steps)} steps", *plane.ticks(False), lines)


@dataclasses.dataclass(frozen=True)
class _Plane:
    """Steps first to last and values lo to hi on the chart's plane."""

    first: float
    last: float
    lo: float
    hi: float

    @classmethod
    def of(cls, steps: np.ndarray, lo: float, hi: float) -> "_Plane":
        return cls(float(steps[0]), float(max(steps[-1], steps[0] + 1)), lo, hi)

    def x(self, step):
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - self.first) / (self.last - self.first)

    def y(self, value):
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - self.lo) / (self.hi - self.lo)

    def ticks(self, log: bool) -> tuple[tuple[Tick, ...], tuple[Tick, ...]]:
        """Of the steps, and of the values."""
        values = _ticks(self.lo, self.hi, log)
        return (
            tuple(Tick(self.x(t), count(t)) for t in _ticks(self.first, self.last, False)),
            tuple(Tick(self.y(t), short(10**t if log else t)) for t in values),
        )

    def path(self, steps: np.ndarray, values: np.ndarray) -> str:
        """SVG path data through the finite points; a gap in the data is a gap in the line."""
        data, pen = [], "M"
        for a, b in zip(self.x(np.asarray(steps, np.float64)), self.y(values), strict=True):
            if np.isfinite(b):
                data.append(f"{pen}{a:.1f} {b:.1f}")
                pen = "L"
            else:
                pen = "M"
        return "".join(data)


def _ticks(lo: float, hi: float, log: bool) -> list[float]:
    if log:
        decades = range(math.floor(lo), math.ceil(hi) + 1)
        marks = [d + math.log10(m) for d in decades for m in (1, 2, 5)]
        inside = [t for t in marks if lo <= t <= hi]
        return inside if len(inside) <= 6 else [t for t in inside if abs(t - round(t)) < 1e-9]
    step = 10 ** math.floor(math.log10((hi - lo) / 3))
    step *= next(m for m in (1, 2, 5, 10) if (hi - lo) / (step * m) <= 5)
    return [step * i for i in range(math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9) + 1)]


def _smooth(y: np.ndarray, width: int) -> np.ndarray:
    """Running mean over a centred window that shrinks at the ends; NaN is left out."""
    ok = np.isfinite(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(ok, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(ok)])
    i = np.arange(len(y))
    a, b = np.maximum(i - width, 0), np.minimum(i + width + 1, len(y))
    n = counts[b] - counts[a]
    return np.where(n > 0, (sums[b] - sums[a]) / np.maximum(n, 1), np.nan)


# -- histograms of scores -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class HistogramBar:
    """In SVG units; says: what a pointer that rests on it is told."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    says: str


@dataclasses.dataclass(frozen=True)
class Histogram:
    """names: (kind, name, how many) of each series."""

    title: str
    bars: tuple[HistogramBar, ...]
    names: tuple[tuple[str, str, int], ...]


def histogram(title: str, series: Sequence[tuple[str, str, Sequence[int]]]) -> Histogram:
    """Counts over scores from -1 to 1, one series upon the other.

    series: (kind, name, counts [bins]); kinds are "wrong", "right" and "all", which colour them.
    """
    bins = len(series[0][2])
    tall = max(max(map(sum, zip(*(counts for *_, counts in series), strict=True))), 1)
    wide, bars = HISTOGRAM_WIDTH / bins, []
    for i in range(bins):
        base = 0.0
        for kind, name, counts in series:
            part = HISTOGRAM_HEIGHT * counts[i] / tall
            if not counts[i]:
                continue
            low, high = -1 + 2 * i / bins, -1 + 2 * (i + 1) / bins
            says = f"{signed(low)} to {signed(high)}: {name} {count(counts[i])}"
            top = HISTOGRAM_HEIGHT - base - part
            bars.append(HistogramBar(kind, i * wide + 1, top, wide - 2, part, says))
            base += part
    names = tuple((kind, name, sum(counts)) for kind, name, counts in series)
    return Histogram(title, tuple(bars), names)
