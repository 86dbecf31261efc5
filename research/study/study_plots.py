"""The study's two kinds of plot, as SVG text: no package draws them."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#222222")
GREY = "#bbbbbb"
WIDTH, LEFT, RIGHT, ROW, TOP = 760, 170, 20, 30, 54


def text(x: float, y: float, content: str, anchor: str = "start", colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{content}</text>'


def line(x0: float, y0: float, x1: float, y1: float, colour: str, width: float = 1) -> str:
    ends = f'x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'


def page(height: float, title: str, parts: Sequence[str]) -> str:
    """An SVG document with a white ground."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'width="{WIDTH}" height="{height:.0f}" font-family="sans-serif" font-size="12">'
    )
    ground = f'<rect width="{WIDTH}" height="{height:.0f}" fill="white"/>'
    return "\n".join([head, ground, text(12, 20, escape(title)), *parts, "</svg>"]) + "\n"


def ticks(low: float, high: float) -> list[int]:
    """Whole per cents, at most some ten, that hold the shares from low to high."""
    step = next(s for s in (1, 2, 5, 10, 20) if 100 * (high - low) / s <= 10)
    first, last = int(100 * low // step), int(-(-100 * high // step))
    return [step * i for i in range(first, max(last, first + 1) + 1)]


def legend(names: Sequence[str], y: float) -> list[str]:
    """Names in their colours, side by side."""
    parts, x = [], 12.0
    for i, name in enumerate(names):
        parts.append(text(x, y, escape(name), colour=COLOURS[i % len(COLOURS)]))
        x += 8 * len(name) + 16
    return parts


def dots(
    rows: Mapping[str, Sequence[tuple[float, float, float]]], names: Sequence[str], title: str
) -> str:
    """A row per arm: for each of `names` a dot and its interval, all shares in [0, 1]."""
    marks = ticks(
        min(low for row in rows.values() for _, low, _ in row),
        max(high for row in rows.values() for _, _, high in row),
    )
    bottom = TOP + ROW * len(rows)

    def x(share: float) -> float:
        span = marks[-1] - marks[0]
        return LEFT + (100 * share - marks[0]) / span * (WIDTH - LEFT - RIGHT)

    parts = legend(names, 40)
    for mark in marks:
        parts.append(line(x(mark / 100), TOP, x(mark / 100), bottom, "#ddd"))
        parts.append(text(x(mark / 100), bottom + 16, str(mark), "middle"))
    for i, (arm, row) in enumerate(rows.items()):
        parts.append(text(LEFT - 8, TOP + ROW * (i + 0.5) + 4, escape(arm), "end"))
        for j, (value, low, high) in enumerate(row):
            y = TOP + ROW * (i + (j + 1) / (len(row) + 1))
            colour = COLOURS[j % len(COLOURS)]
            parts.append(line(x(low), y, x(high), y, colour, 1.5))
            parts.append(f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
    return page(bottom + 26, title, parts)


def curves(
    lines: Mapping[str, Mapping[float, float]], title: str, marked: Sequence[str] = ()
) -> str:
    """A line per arm: share in [0, 1] over guidance scale; its name at its right end.

    Where there are more lines than colours, only the `marked` ones have one.
    """
    coloured = list(lines) if len(lines) <= len(COLOURS) else [a for a in lines if a in marked]
    ink = {arm: COLOURS[i % len(COLOURS)] for i, arm in enumerate(coloured)}
    values = [share for points in lines.values() for share in points.values()]
    scales = sorted({scale for points in lines.values() for scale in points})
    marks, bottom, right = ticks(min(values), max(values)), TOP + 330, WIDTH - 150
    span = max(scales[-1] - scales[0], 1e-9)

    def at(scale: float, share: float) -> tuple[float, float]:
        up = (100 * share - marks[0]) / (marks[-1] - marks[0])
        return 50 + (scale - scales[0]) / span * (right - 50), bottom - up * (bottom - TOP)

    parts = []
    for mark in marks:
        y = at(scales[0], mark / 100)[1]
        parts += [line(50, y, right, y, "#ddd"), text(44, y + 4, str(mark), "end")]
    for scale in scales:
        parts.append(text(at(scale, 0)[0], bottom + 16, f"{scale:g}", "middle"))
    for arm in sorted(lines, key=lambda arm: arm in ink):  # coloured ones on top
        points, colour, width = lines[arm], ink.get(arm, GREY), 2 if arm in ink else 1
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in sorted(points.items())))
        stroke = f'stroke="{colour}" stroke-width="{width}"'
        parts.append(f'<polyline points="{path}" fill="none" {stroke}/>')
    below = 0.0
    for arm in sorted(lines, key=lambda arm: -lines[arm][max(lines[arm])]):  # names keep apart
        end = at(max(lines[arm]), lines[arm][max(lines[arm])])[1]
        below = max(below + 13, end)
        parts.append(line(right, end, right + 10, below, ink.get(arm, GREY)))
        parts.append(text(right + 14, below + 4, escape(arm), colour=ink.get(arm, "#888")))
    return page(max(bottom + 26, below + 20), title, parts)
