"""ImgEdit (Basic): marks of edits out of a judge's three lines, and their means over edit types.

Owns the readings of a reply by the official scripts and by lmms-eval, and a strict one that takes
three marks of 1 to 5 or none. Source: PKU-YuanGroup/ImgEdit at 547185d, whose functions are
`extract_scores_and_average`, `compute_edit_type_averages` and `compute_final_average`; BAGEL's
overall; lmms-eval's `parse_gpt_scores`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from srum_jax.evals.scorers.metrics import added

TYPES = (
    *("replace", "add", "adjust", "remove", "style"),
    *("action", "extract", "background", "compose"),
)
LOWEST, HIGHEST, MARKS = 1, 5, 3
OK, DROPPED = "ok", "dropped"


@dataclasses.dataclass(frozen=True)
class Average:
    """A reply's mean mark; without one `status` says what the official code does instead."""

    value: float | None = None
    status: str = OK


# ------------------------------------------------------------------------------- as it is released


def average(reply: object) -> Average:
    """The mean, to 2 decimals, of all lines "<name>: <digits>", however many and however high.

    A sample without such a line is dropped; where a server's error stands in place of a reply, or a
    digit that is none of a number ("²"), the official code raises.
    """
    if not isinstance(reply, str):
        return Average(status="raises AttributeError")
    parts = [line.strip().split(": ") for line in reply.splitlines()]
    digits = [part[1] for part in parts if len(part) == 2 and part[1].isdigit()]
    try:
        marks = [int(digit) for digit in digits]
        return Average(_mean(marks)) if marks else Average(status=DROPPED)
    except (ValueError, OverflowError) as e:
        return Average(status=f"raises {type(e).__name__}")


def averages(replies: Mapping[str, object]) -> dict[str, float]:
    """{key: mean mark} of those replies that have one."""
    found = {key: average(reply).value for key, reply in replies.items()}
    return {key: value for key, value in found.items() if value is not None}


def type_means(scores: Mapping[str, float], types: Mapping[str, str]) -> dict[str, float]:
    """{edit type: mean, to 2 decimals}; a key whose type is not known is left out."""
    members: dict[str, list[float]] = {}
    for key, score in scores.items():
        if key in types:
            members.setdefault(types[key], []).append(score)
    return {name: _mean(some) for name, some in members.items()}


def overall(scores: Mapping[str, float]) -> float | None:
    """The mean over samples, to 2 decimals, as BAGEL and the UGE script have it; None of none."""
    return _mean(list(scores.values())) if scores else None


def mean_of_types(means: Mapping[str, float]) -> float:
    """The plain mean of the types' (rounded) means, which many papers report; NaN of none."""
    return added(means.values()) / len(means) if means else math.nan


def lmms_marks(reply: str) -> tuple[float, float, float]:
    """lmms-eval's three marks: the last numbers after colons, else those that end lines; three
    zeros where there are fewer."""
    found = re.findall(r":\s*(\d+)", reply)
    if len(found) < MARKS:
        ends = (re.search(r"(\d+)\s*$", line.strip()) for line in reply.strip().split("\n"))
        found = [end.group(1) for end in ends if end]
    a, b, c = (float(x) for x in found[-MARKS:]) if len(found) >= MARKS else (0.0, 0.0, 0.0)
    return a, b, c


# ------------------------------------------------------------------------------------------- strict

_MARK = re.compile(
    r"[\s>*_#-]*(?P<name>[^:\uff1a]*?)[\s*_]*[:\uff1a][\s*_]*(?P<mark>\d{1,3})"
    r"(?:\s*/\s*5)?[\s*_.]*"
)
_NO_MARK = re.compile(
    r"(?:brief )?reason(?:ing|s)?|(?:overall|total|final|average|mean)(?: score| mark)?",
    re.IGNORECASE,
)


def marks(reply: str) -> tuple[int, int, int] | None:
    """The three marks of 1 to 5 that a reply gives as "<name>: <mark>", each in a line or all in
    one with commas; None where there are fewer or more, or one is outside the scale.

    What is called a reasoning, an average or a total is no mark.
    """
    found = []
    for line in reply.splitlines():
        parts = [_MARK.fullmatch(part) for part in re.split("[,;]", line)]
        for part in parts if all(parts) else ():
            if not _NO_MARK.fullmatch(part["name"]):
                found.append(int(part["mark"]))
    if len(found) != MARKS or not all(LOWEST <= mark <= HIGHEST for mark in found):
        return None
    a, b, c = found
    return a, b, c


def _mean(values: Sequence[float]) -> float:
    return round(added(values) / len(values), 2)
