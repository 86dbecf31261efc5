"""Parts a report page is built from: safe markup, numbers, interval strips, pictures.

Owns how things look; knows nothing of runs or results. The page is one file that works offline:
its policy header lets a browser load nothing but what is inside it. Whatever is not `Html` is
escaped when it enters the page, so text from outside (prompts) cannot become markup.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

THUMB = 384  # longest side, in pixels, of a picture put into the page
NBSP = "\u00a0"
_VOID = {"br", "img", "meta"}


class Html(str):
    """Text that is markup already; every other string is escaped on its way in."""


def h(tag: str, *children, **attributes) -> Html:
    """One element. `class_` is written class, other underscores become hyphens; None is left out.

    Children: Html as it is, anything else as escaped text; None is left out.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{join(*children)}</{tag}>")


def join(*children) -> Html:
    return Html(
        "".join(
            c if isinstance(c, Html) else html.escape(str(c)) for c in children if c is not None
        )
    )


# -- numbers ------------------------------------------------------------------------------------


def percent(p: float) -> str:
    return f"{100 * p:.1f}{NBSP}%"


def points(d: float) -> str:
    """A difference of proportions in percentage points, always with its sign."""
    text = f"{100 * d:+.1f}".replace("-", "\u2212")
    return "0.0" if text[1:] == "0.0" else text


def percent_range(ci: Sequence[float]) -> str:
    return f"{100 * ci[0]:.1f}\u2013{100 * ci[1]:.1f}"


def signed(x: float) -> str:
    return f"{x:+.2f}".replace("-", "\u2212")


def two_digits(x: float) -> str:
    return f"{x:.2f}".replace("-", "\u2212") if math.isfinite(x) else ""


def count(n: float) -> str:
    return f"{n:,.0f}".replace(",", "\u202f")


def short(x: float) -> str:
    """Three significant digits, for axes and small facts."""
    return f"{x:.3g}".replace("-", "\u2212")


# -- pieces -------------------------------------------------------------------------------------


def table(head: Sequence, rows: Sequence[Sequence], class_: str | None = None) -> Html:
    """Cells are contents, or a ready <td>; the first column is the row's header."""

    def cell(content, first: bool) -> Html:
        if isinstance(content, Html) and content.startswith("<td"):
            return content
        return h("th", content, scope="row") if first else h("td", content)

    body = [h("tr", *[cell(c, i == 0) for i, c in enumerate(row)]) for row in rows]
    top = h(
        "tr",
        *[
            c if isinstance(c, Html) and c.startswith("<th") else h("th", c, scope="col")
            for c in head
        ],
    )
    whole = h("table", h("thead", top), h("tbody", *body), class_=class_)
    return h("div", whole, class_="scroll", tabindex=0)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A value with its interval, both in the strip's units; `kind` names colour and mark."""

    kind: str
    value: float
    ci: tuple[float, float]


def strip(arms: Sequence[Arm], lo: float = 0.0, hi: float = 1.0, zero: float | None = None) -> Html:
    """Dots with interval whiskers on one scale from `lo` to `hi`, one line an arm."""

    def at(x: float) -> float:
        return 100 * min(max((x - lo) / (hi - lo), 0.0), 1.0)

    marks = []
    if zero is not None:
        marks.append(h("i", class_="zero", style=f"left:{at(zero):.2f}%"))
    for i, arm in enumerate(arms):
        top = f"top:{100 * (i + 1) / (len(arms) + 1):.1f}%"
        left, right = at(arm.ci[0]), at(arm.ci[1])
        marks.append(
            h(
                "i",
                class_=f"whisker {arm.kind}",
                style=f"{top};left:{left:.2f}%;width:{right - left:.2f}%",
            )
        )
        marks.append(h("i", class_=f"dot {arm.kind}", style=f"{top};left:{at(arm.value):.2f}%"))
    return h("div", *marks, class_="strip", aria_hidden="true")


def bar(name: str, arm: Arm, text: str) -> Html:
    """A horizontal bar from 0 to 100 % with its interval."""
    left, right = 100 * arm.ci[0], 100 * arm.ci[1]
    drawn = h(
        "div",
        h("i", class_=f"fill {arm.kind}", style=f"width:{100 * arm.value:.2f}%"),
        h("i", class_="error", style=f"left:{left:.2f}%;width:{right - left:.2f}%"),
        class_="track",
        aria_hidden="true",
    )
    return h(
        "div",
        h("span", name, class_="bar-name"),
        drawn,
        h("span", h("b", percent(arm.value)), " ", h("small", text), class_="bar-value"),
        class_="bar",
    )


def split_bar(parts: Sequence[tuple[str, str, int]]) -> Html:
    """(kind, name, count) side by side in proportion, with a legend below."""
    total = max(sum(n for _, _, n in parts), 1)
    pieces = [h("i", class_=kind, style=f"width:{100 * n / total:.3f}%") for kind, _, n in parts]
    legend = [
        h("li", h("i", class_=f"key {kind}"), f"{name} ", h("b", count(n)))
        for kind, name, n in parts
    ]
    return join(
        h("div", *pieces, class_="split", aria_hidden="true"), h("ul", *legend, class_="legend")
    )


def legend(*names: tuple[str, str], scale: str) -> Html:
    """Marks and names; `scale` stands in for the table's head where a narrow window hides it."""
    return h(
        "ul",
        *[h("li", h("i", class_=f"dot {kind}"), name) for kind, name in names],
        h("li", scale, class_="narrow"),
        class_="legend",
    )


# -- pictures -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture inside the page: data URI, and the size in pixels of the original."""

    uri: str
    width: int
    height: int

    @property
    def style(self) -> str | None:
        """Small pictures are shown pixel by pixel: smoothing would hide what the model drew."""
        return "image-rendering:pixelated" if max(self.width, self.height) <= 128 else None


def picture(data: bytes) -> Picture:
    """PNG (or other image) bytes -> Picture; large ones are shrunk so that the page stays small.

    Raises:
      ValueError: not an image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            size, kind = image.size, image.format
            if kind == "PNG" and max(size) <= THUMB:
                return Picture(_uri(data, "png"), *size)
            small = image.convert("RGB")
            small.thumbnail((THUMB, THUMB))
    except (OSError, SyntaxError) as error:  # PIL raises SyntaxError for a broken PNG chunk
        raise ValueError(f"not a readable image: {error}") from error
    out = io.BytesIO()
    small.save(out, "JPEG", quality=88)
    return Picture(_uri(out.getvalue(), "jpeg"), *size)


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# Cividis: even in lightness, and the same to all common kinds of colour vision.
_CIVIDIS = np.array(
    [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]],
    np.float64,
)


def heat(values: np.ndarray, lo: float, hi: float) -> Picture:
    """float [h, w] -> a [h, w] pixel picture, dark blue at `lo` to yellow at `hi`, half clear.

    A cell that is not a number is clear.
    """
    x = np.clip((values - lo) / (hi - lo) if hi > lo else np.full_like(values, 0.5), 0, 1)
    finite = np.isfinite(x)
    position = np.where(finite, x, 0.0) * (len(_CIVIDIS) - 1)
    below = np.minimum(position.astype(int), len(_CIVIDIS) - 2)
    share = (position - below)[..., None]
    rgb = _CIVIDIS[below] * (1 - share) + _CIVIDIS[below + 1] * share
    alpha = np.where(finite, 205, 0)[..., None]
    out = io.BytesIO()
    Image.fromarray(np.concatenate([rgb, alpha], -1).astype(np.uint8)).save(out, "PNG")
    return Picture(_uri(out.getvalue(), "png"), values.shape[1], values.shape[0])


# -- the page -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page; `how` is its one line on how to read it. No body: not on the page."""

    id: str
    title: str
    how: str
    body: Html


def page(title: str, header: Html, sections: Sequence[Section]) -> str:
    """The whole file, as text."""
    shown = [s for s in sections if s.body]
    links = h("nav", *[h("a", s.title, href=f"#{s.id}") for s in shown], aria_label="Sections")
    parts = [
        h("section", h("h2", s.title), h("p", s.how, class_="how"), s.body, id=s.id) for s in shown
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", http_equiv="Content-Security-Policy", content=policy),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        h("title", title),
        h("style", Html(STYLE)),
    )
    body = h("body", h("main", header, links if shown else None, *parts))
    return f"<!doctype html>\n{h('html', head, body, lang='en')}\n"


# Blue and orange, filled and hollow: no distinction rests on hue alone.
STYLE = """
:root{--bg:#faf9f6;--card:#fff;--ink:#1b2027;--soft:#5a626e;--line:#e2dfd7;--tint:#f1efe9;
--base:#6d7683;--trained:#0a62a6;--oracle:#a65f00;--good:#0a62a6;--bad:#a8440b;--none:#cfcbc0}
@media (prefers-color-scheme:dark){:root{--bg:#12151a;--card:#191d24;--ink:#e6e8eb;--soft:#a0a9b6;
--line:#2b313b;--tint:#20252d;--base:#a3acb9;--trained:#62b0ee;--oracle:#e2a03f;--good:#62b0ee;
--bad:#f0935a;--none:#3a414c}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",Arial,sans-serif;
font-variant-numeric:tabular-nums}
main{max-width:1040px;margin:0 auto;padding:40px 24px 80px}
h1,h2,h3{font-family:Charter,"Iowan Old Style","Source Serif 4",Georgia,"Noto Serif",serif;
font-weight:600;line-height:1.25;text-wrap:balance}
h1{font-size:clamp(1.55rem,1.1rem + 1.9vw,2.3rem);margin:.35em 0 .5em;letter-spacing:-.01em}
h2{font-size:1.5rem;margin:0 0 .2em}
h3{font-size:1.08rem;margin:1.8em 0 .6em}
h3.round{font-size:1.22rem;margin-top:2.2em;padding-bottom:.25em;
border-bottom:1px solid var(--line)}
.how+.round{margin-top:.6em}
h3 small{font-family:system-ui,sans-serif;font-weight:400}
p{margin:0 0 .8em;max-width:72ch}
small,.how,.soft{color:var(--soft)}
small{font-size:.82em}
.over{color:var(--soft);font-size:.84rem;letter-spacing:.02em;margin:0}
.lede{font-size:1.06rem}
.how{margin-bottom:1.3em}
section{margin-top:64px;padding-top:26px;border-top:1px solid var(--line);scroll-margin-top:8px}
nav{display:flex;flex-wrap:wrap;gap:6px 18px;margin:30px 0 -26px;font-size:.9rem}
nav a{color:var(--trained);text-decoration:none;padding:3px 0}
nav a:hover,nav a:focus-visible{text-decoration:underline}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(205px,1fr));gap:14px;
margin:26px 0 12px;padding:0;list-style:none}
.tiles li,.card{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:14px 16px;min-width:0}
.tiles span{display:block;font-size:.84rem;color:var(--soft)}
.tiles small{display:block;line-height:1.4}
.tiles b{display:block;font-size:1.55rem;font-weight:600;line-height:1.35;letter-spacing:-.01em}
.scroll{overflow-x:auto;margin:0 0 18px}
table{border-collapse:collapse;width:100%;font-size:.93rem}
th,td{padding:8px 14px 8px 0;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap;vertical-align:middle}
th:first-child,td:first-child{text-align:left}
th:last-child,td:last-child{padding-right:2px}
thead th{color:var(--soft);font-weight:500;font-size:.82rem;vertical-align:bottom}
tbody th{font-weight:500}
tr.all th,tr.all td{font-weight:650}
td small,th small{display:block;line-height:1.2;font-weight:400}
th.axis,td.axis{width:38%;min-width:190px;text-align:left}
th.axis span{display:flex;justify-content:space-between}
.arms tbody tr:first-child th,.arms tbody tr:first-child td{font-weight:650}
.strip{position:relative;height:30px;min-width:150px;border-radius:3px;
background:linear-gradient(90deg,var(--line) 1px,transparent 1px) 0/25% 100%,var(--tint)}
.strip.wide{height:40px}
.strip i{position:absolute}
.strip .zero{top:0;bottom:0;width:2px;margin-left:-1px;background:var(--soft)}
.strip .whisker{height:3px;margin-top:-1.5px;border-radius:2px;background:currentColor;opacity:.55}
.strip .dot{margin:-5px 0 0 -5px}
.dot{display:inline-block;width:10px;height:10px;border-radius:50%;background:currentColor;
border:2px solid currentColor}
.dot.base,.dot.random{background:var(--card)}
i.base,i.random{color:var(--base)}i.trained,i.self{color:var(--trained)}
i.oracle{color:var(--oracle)}
.axis-text{display:flex;justify-content:space-between;font-size:.8rem;color:var(--soft);
margin:4px 0 20px}
.legend{display:flex;flex-wrap:wrap;gap:4px 20px;margin:0 0 12px;padding:0;list-style:none;
font-size:.86rem;color:var(--soft)}
.legend .narrow{display:none}
.legend b{color:var(--ink)}
.legend i{margin-right:7px;vertical-align:-1px}
.key{display:inline-block;width:12px;height:12px;border-radius:3px}
.split{display:flex;height:26px;border-radius:5px;overflow:hidden;gap:2px;margin:14px 0 10px}
.both{background:var(--base)}.won{background:var(--good)}.lost{background:var(--bad)}
.neither{background:var(--none)}
.bar{display:grid;grid-template-columns:170px 1fr 190px;gap:4px 16px;align-items:center;
margin:0 0 12px}
.bar+p,.bar+.scroll{margin-top:18px}
.bar-name{font-size:.93rem}
.track{position:relative;height:22px;background:var(--tint);border-radius:4px}
.track i{position:absolute;top:0}
.fill{left:0;height:100%;border-radius:4px;background:currentColor;opacity:.85}
.error{height:2px;margin-top:10px;background:var(--ink);outline:1.5px solid var(--card)}
.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:16px}
figure{margin:0}
.curve{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:12px 12px 4px;display:flex;flex-direction:column}
.curve figcaption{font-size:.93rem;padding:0 4px 6px}
.histogram-right{fill:var(--trained);background:var(--trained)}
.histogram-wrong{fill:var(--wrong,#d9822b);background:var(--wrong,#d9822b)}
.histogram-all{fill:var(--oracle);background:var(--oracle)}
.curve .axis-line{stroke:var(--line)}
.curve svg{display:block;width:100%;height:auto;margin-top:auto}
.curve small{display:block}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
.curve .grid{stroke:var(--line)}
.curve path{fill:none;stroke:var(--trained);stroke-linejoin:round}
.curve .line{stroke-width:2}.curve .raw{opacity:.3}
.curve path.oracle{stroke:var(--oracle)}
.curve path.base{stroke:var(--base);stroke-dasharray:5 3}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(232px,1fr));gap:14px}
.cards.big{grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr))}
.card{padding:12px 14px;display:flex;flex-direction:column}
.cards:not(.big) .pair{margin-top:auto}
.card>p{margin:0 0 8px;font-size:.93rem;line-height:1.35;overflow-wrap:anywhere}
.pair{display:flex;gap:12px}
.pair figure{flex:1 1 0;min-width:0}
.pair figcaption,.marks,.regions{font-size:.82rem;color:var(--soft)}
.pair figcaption{margin-top:4px;line-height:1.35}
.pair figcaption span{display:block}
.pair img,.drawn,.lost-picture{display:block;width:100%;height:auto;
border-radius:4px;background:var(--tint)}
.drawn{overflow:hidden}
.lost-picture{aspect-ratio:1;font-size:.8rem;padding:10px;color:var(--soft)}
.right{color:var(--good);font-weight:650}.wrong{color:var(--bad);font-weight:650}
.drawn text{font-weight:650;font-size:11.5px;fill:#fff;stroke:#000;stroke-width:3px;
paint-order:stroke;stroke-linejoin:round}
.drawn text.cell{font-weight:500;font-size:10.5px;stroke-width:2px;stroke-opacity:.7}
.drawn rect{fill:none}
.drawn .halo{stroke:#000;stroke-opacity:.75;stroke-width:4}
.drawn .plus{stroke:#6ec1ff;stroke-width:2}
.drawn .minus{stroke:#ffb066;stroke-width:2;stroke-dasharray:5 3}
.drawn .mute{stroke:#e8e8e8;stroke-width:1.5;stroke-dasharray:1.5 3}
.regions{margin:8px 0 0;padding:0 0 0 1.5em}
.regions b{color:var(--ink)}
.picked{border-color:var(--trained);box-shadow:inset 0 0 0 1px var(--trained)}
.ramp{height:12px;border-radius:3px;max-width:340px;margin:12px 0 0;
background:linear-gradient(90deg,#00224e,#35456c,#666970,#948e77,#c8b866,#fee838)}
.ramp+.axis-text{max-width:340px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:5px 22px;margin:0;font-size:.93rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
@media (max-width:900px){.tiles{grid-template-columns:1fr 1fr}}
@media (max-width:680px){main{padding:24px 16px 56px}section{margin-top:46px}
.tiles li{padding:11px 12px}.tiles b{font-size:1.2rem}
.arms thead,.arms .extra{display:none}.legend .narrow{display:list-item}
th.axis,td.axis{min-width:120px}
.arms tr{display:grid;grid-template-columns:1fr auto auto;gap:0 16px;padding:8px 0 10px;
border-bottom:1px solid var(--line)}
.arms th,.arms td{border:0;padding:0 0 5px}
.arms td.axis{grid-area:2/1/3/4;width:auto}
.bar{grid-template-columns:1fr auto}.track{grid-area:2/1/3/3}
th,td{padding-right:12px}tbody th{white-space:normal}
.cards{grid-template-columns:repeat(auto-fill,minmax(min(100%,215px),1fr))}}
@media print{nav{display:none}section,.card,.curve{break-inside:avoid}}
"""
