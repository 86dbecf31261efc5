"""Tables of the report: what base and trained model got right, with intervals, on one scale.

Owns how a section of results.json in the form of `evals/sections.py` is laid out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from srum_jax.evals import stats
from srum_jax.stages import report_html as page
from srum_jax.stages.report_html import Arm, Html, h, join

ARMS = (("base", "base"), ("trained", "trained"))


def interval(section: Mapping[str, Any]) -> tuple[float, float]:
    """Wilson's, of {"correct", "n"}."""
    return stats.wilson(section["correct"], section["n"])


def share(section: Mapping[str, Any]) -> float:
    """Of what is right, of {"correct", "n"}."""
    return section["correct"] / section["n"]


def _value_cell(section: Mapping[str, Any], kind: str) -> Html:
    return h(
        "td",
        h("i", class_=f"dot {kind}", aria_hidden="true"),
        " ",
        page.percent(share(section)),
        h("small", page.percent_range(interval(section))),
    )


def by_category(section: Mapping[str, Any], first: str, unit: str) -> Html:
    """Base and trained, in all and by category, as numbers and on one scale."""
    arms = [(key, name) for key, name in ARMS if section.get(key)]
    if not arms:
        return Html("")
    # Where everything is above one half, the upper half shows the differences better.
    whole = [section[key] for key, _ in arms]
    shown = [c for part in whole for c in (part, *part.get("by_category", {}).values())]
    low = 0.5 if all(interval(c)[0] >= 0.5 for c in shown) else 0.0
    ends = [f"{100 * low:.0f}", f"{50 + 50 * low:.0f}", "100 %"]
    axis = h("th", h("span", *[h("span", t) for t in ends]), class_="axis")
    head = [first, h("th", unit, class_="extra"), axis, *[name for _, name in arms]]
    both = len(arms) == 2
    if both:
        head.append(h("th", "difference", class_="extra"))
    rows = []
    for name in (None, *section[arms[0][0]].get("by_category", {})):
        cells = {
            key: section[key].get("by_category", {}).get(name) if name else section[key]
            for key, _ in arms
        }
        if not all(cells.values()):
            continue
        dots = [Arm(key, share(cell), interval(cell)) for key, cell in cells.items()]
        row = [
            "all" if name is None else name,
            h("td", page.count(cells[arms[0][0]]["n"]), class_="extra"),
            h("td", page.strip(dots, low), class_="axis"),
            *[_value_cell(cell, key) for key, cell in cells.items()],
        ]
        if both:
            change = share(cells["trained"]) - share(cells["base"])
            row.append(h("td", page.points(change), class_="extra"))
        rows.append(row)
    return join(
        page.legend(*arms, scale=f"scale {ends[0]} to {ends[2]}"), page.table(head, rows, "arms")
    )


def one_by_one(section: Mapping[str, Any], what: str) -> Html | None:
    """The paired difference on its own scale, and what became of every pair."""
    paired = section.get("paired")
    if not paired:
        return None
    diff, ci = paired["diff"], paired["ci95"]
    reach = max(0.05, np.ceil(20 * max(abs(ci[0]), abs(ci[1]), abs(diff))) / 20)
    says = f"{page.points(diff)} points, 95 % interval {page.points(ci[0])} to {page.points(ci[1])}"
    if ci[0] <= 0 <= ci[1]:
        says += ". The interval includes 0: no change and a small change are both possible"
    axis = [f"{page.points(-reach)} points", "0", f"{page.points(reach)} points"]
    parts = [
        h("h3", f"The same {what}s, compared one by one"),
        h("p", h("b", says), ". Resampled over prompts (paired bootstrap)."),
        h("div", page.strip([Arm("trained", diff, tuple(ci))], -reach, reach, 0.0)),
        h("div", *[h("span", a) for a in axis], class_="axis-text"),
    ]
    if section.get("base"):
        won, lost = paired["trained_only"], paired["base_only"]
        both = section["base"]["correct"] - lost
        parts.append(
            page.split_bar(
                [
                    ("both", "right both times", both),
                    ("won", "right only when trained", won),
                    ("lost", "right only in the base", lost),
                    ("neither", "wrong both times", paired["n"] - both - won - lost),
                ]
            )
        )
    return join(*parts)


def skill(section: Mapping[str, Any], unit: str) -> Html:
    """The "qa", "captions" or "edits" of a round: by kind, and the difference in one sentence."""
    difference = section.get("paired")
    said = None
    if difference:
        lo, hi = map(page.points, difference["ci95"])
        said = h(
            "p",
            f"Trained against base on the same {unit}: "
            f"{page.points(difference['diff'])} points, 95 % interval {lo} to {hi}.",
        )
    return join(by_category(section, "kind", unit), said)
