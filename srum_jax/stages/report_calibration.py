"""The report's histograms of scores, what was asked, and how two ways of scoring agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from srum_jax.stages import report_html as page
from srum_jax.stages.report_html import Html, h, join

WIDTH, HEIGHT, FOOT = 420, 120, 18  # of a histogram in pixels of its own


def histogram(title: str, series: Sequence[tuple[str, str, Sequence[int]]]) -> Html:
    """Counts over scores from -1 to 1, one series upon the other.

    series: (kind, name, counts [bins]); kinds are "wrong", "right" and "all", which colour them.
    """
    bins = len(series[0][2])
    tall = max(max(map(sum, zip(*(counts for *_, counts in series), strict=True))), 1)
    wide, bars = WIDTH / bins, []
    for i in range(bins):
        base = 0
        for kind, name, counts in series:
            part = HEIGHT * counts[i] / tall
            if not counts[i]:
                continue
            low, high = -1 + 2 * i / bins, -1 + 2 * (i + 1) / bins
            said = f"{page.signed(low)} to {page.signed(high)}: {name} {page.count(counts[i])}"
            bars.append(
                h(
                    "rect",
                    h("title", said),
                    x=f"{i * wide + 1:.1f}",
                    y=f"{HEIGHT - base - part:.1f}",
                    width=f"{wide - 2:.1f}",
                    height=f"{part:.1f}",
                    class_=f"histogram-{kind}",
                )
            )
            base += part
    ends = [
        h("text", text, x=x, y=HEIGHT + 14, text_anchor=anchor)
        for text, x, anchor in (
            ("\u22121", 0, "start"),
            ("0", WIDTH / 2, "middle"),
            ("+1", WIDTH, "end"),
        )
    ]
    line = h("line", x1=0, x2=WIDTH, y1=HEIGHT, y2=HEIGHT, class_="axis-line")
    picture = h(
        "svg",
        line,
        *bars,
        *ends,
        viewBox=f"0 0 {WIDTH} {HEIGHT + FOOT}",
        role="img",
        aria_label=title,
    )
    names = [
        h("li", h("i", class_=f"key histogram-{kind}"), f"{name} ", h("b", page.count(sum(counts))))
        for kind, name, counts in series
    ]
    caption = h("figcaption", h("b", title), ", scores from \u22121 to +1")
    return h("figure", caption, picture, h("ul", *names, class_="legend"), class_="curve")


def histograms(scores: Mapping[str, Any], found: Mapping[str, Any]) -> Html:
    """Of whole pictures and of regions: by what the checker says where it was asked (`scores`, of
    results.json), otherwise all together (`found`, of calibration.json)."""
    parts = []
    for key, title, plain in (
        ("image_histogram", "Whole pictures", found.get("images")),
        ("region_histogram", "Regions", _main(scores, found)),
    ):
        if key in scores:
            labelled = scores[key]
            series = [("wrong", "wrong", labelled["wrong"]), ("right", "right", labelled["right"])]
        elif plain:
            series = [("all", "scored", plain["histogram"])]
        else:
            continue
        parts.append(histogram(title, series))
    return h("div", *parts, class_="curves") if parts else Html("")


def _main(scores: Mapping[str, Any], found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    regions = found.get("regions", {})
    return regions.get(scores.get("proposer", next(iter(regions), "")))


def questions(found: Mapping[str, Any]) -> Html:
    """A table of the answers by kind of question."""
    rows = []
    for kind, seen in found.get("questions", {}).items():
        asked = sum(seen["status"].values())
        mean = page.two_digits(seen["mean"]) if "mean" in seen else ""
        failed = asked - seen["status"].get("ok", 0)
        rows.append([kind.replace("_", " "), page.count(asked), mean, page.count(failed)])
    head = ["question", "answers", "mean probability of what the prompt says", "not readable"]
    return page.table(head, rows) if rows else Html("")


def agreement(found: Mapping[str, Any]) -> Html:
    """The sentence on two ways of scoring; failures without a score in a table."""
    said = []
    one = found.get("comparison")
    if one:
        facts = [f"{page.count(one['both'])} of {page.count(one['candidates'])} scored by both"]
        if "rank" in one:
            facts.append(f"rank correlation {page.two_digits(one['rank'])}")
        if "same_sign" in one:
            facts.append(f"{page.percent(one['same_sign'])} on the same side of 0")
        said.append(
            h("p", h("b", f"Against the scores of {one['with']}: "), "; ".join(facts) + ".")
        )
    rows = []
    counted = [("whole pictures", found.get("images", {}))]
    counted += [(f"regions, {name}", seen) for name, seen in found.get("regions", {}).items()]
    for name, seen in counted:
        status = seen.get("status", {})
        failed = {key: n for key, n in status.items() if key != "ok"}
        if failed:
            shown = ", ".join(f"{key} {page.count(n)}" for key, n in failed.items())
            rows.append([name, page.count(sum(status.values())), shown])
    if rows:
        said.append(page.table(["what is scored", "all", "of them without a score"], rows))
    return join(*said)
