"""Curves over training steps, as SVG inside a report page.

Owns axes, scales and smoothing; colours come from the page's style.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from srum_jax.stages.report_html import Html, count, h, short


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


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """SVG path through the finite points; a gap in the data is a gap in the line."""
    steps, pen = [], "M"
    for a, b in zip(x, y, strict=True):
        if np.isfinite(b):
            steps.append(f"{pen}{a:.1f} {b:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(steps)


def chart(title: str, remark: str, steps: np.ndarray, values: np.ndarray, smooth: bool) -> Html:
    """A line over training steps, as SVG.

    Args:
      title, remark: what is drawn, and a remark on it that ends in ", " (or nothing).
      steps: int [N], rising.
      values: float [N]; NaN and infinities are gaps.
      smooth: draw a running mean over the pale raw line.

    A positive series that spans more than a factor 30 is drawn on a log scale, and says so.
    """
    keep = np.linspace(0, len(steps) - 1, min(len(steps), 600)).round().astype(int)
    raw = np.asarray(values, np.float64)
    mean = _smooth(raw, max(len(raw) // 40, 1)) if smooth else raw
    finite = raw[np.isfinite(raw)]
    if finite.size == 0:
        return h("figure", h("figcaption", h("b", title), " has no finite value"), class_="curve")
    log = bool(smooth and finite.min() > 0 and finite.max() / finite.min() > 30)

    def scale(y):
        return np.log10(y) if log else y

    lo, hi = float(scale(finite.min())), float(scale(finite.max()))
    if not log and lo > 0 and lo < 0.5 * hi:
        lo = 0.0
    if hi - lo < 1e-12 * max(abs(hi), 1e-30):
        lo, hi = lo - 0.5 * (abs(lo) or 1), hi + 0.5 * (abs(hi) or 1)
    marks, px, py = _plane(steps, lo, hi, log)
    x = px(np.asarray(steps, np.float64)[keep])
    if smooth:
        marks.append(h("path", d=_path(x, py(scale(raw[keep]))), class_="raw"))
    marks.append(h("path", d=_path(x, py(scale(mean[keep]))), class_="line"))
    note = f"{remark}{'log scale, ' if log else ''}first {short(raw[0])}, last {short(raw[-1])}"
    return h(
        "figure",
        h("figcaption", h("b", title), " ", h("small", note)),
        _drawn(marks, f"{title} over {len(steps)} logged steps"),
        class_="curve",
    )


def lines(title: str, steps: np.ndarray, series: Sequence[tuple[str, str, np.ndarray]]) -> Html:
    """Several lines (kind, name, values float [N]) over steps [N], on a scale from 0 to at least 1.

    A value that is not finite is a gap.
    """
    highest = max(float(np.max(v, where=np.isfinite(v), initial=1.0)) for _, _, v in series)
    marks, px, py = _plane(steps, 0.0, highest, False)
    x = px(np.asarray(steps, np.float64))
    marks += [h("path", d=_path(x, py(v)), class_=f"line {kind}") for kind, _, v in series]
    names = [h("li", h("i", class_=f"dot {kind}"), name) for kind, name, _ in series]
    return h(
        "figure",
        h("figcaption", h("b", title)),
        h("ul", *names, class_="legend"),
        _drawn(marks, f"{title} at {len(steps)} steps"),
        class_="curve",
    )


_WIDTH, _HEIGHT = 360, 200  # of a chart, in SVG units


def _plane(steps: np.ndarray, lo: float, hi: float, log: bool):
    """The grid with its numbers, and the places of steps and of values lo to hi on it."""
    left, bottom, top, right = 48, 26, 8, 10
    first, last = float(steps[0]), float(max(steps[-1], steps[0] + 1))

    def px(s):
        return left + (_WIDTH - left - right) * (s - first) / (last - first)

    def py(v):
        return _HEIGHT - bottom - (_HEIGHT - bottom - top) * (v - lo) / (hi - lo)

    marks = []
    for t in _ticks(lo, hi, log):
        y = f"{py(t):.1f}"
        marks.append(h("line", x1=left, x2=_WIDTH - right, y1=y, y2=y, class_="grid"))
        marks.append(
            h("text", short(10**t if log else t), x=left - 6, y=y, dy="0.32em", text_anchor="end")
        )
    for t in _ticks(first, last, False):
        marks.append(h("text", count(t), x=f"{px(t):.1f}", y=_HEIGHT - 9, text_anchor="middle"))
    return marks, px, py


def _drawn(marks: Sequence[Html], label: str) -> Html:
    return h("svg", *marks, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label)
