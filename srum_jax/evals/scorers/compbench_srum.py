"""SRUM's CompBench protocol: a judge's 0-100 scores out of its replies, and their means.

Owns the rules of the released scorer (WayneJin0918/SRUM, `CompBench_eval/qwen_eval.py`,
`calculate_mean.py` and the summary in `qwen_eval.sh`), among them the ones that flatter or punish:
an unreadable reply is averaged in as -1, 150 stays 150, 85.5 becomes 85.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from srum_jax.evals.scorers.metrics import added
from srum_jax.evals.scorers.statements import is_number, json_object, stated

UNREADABLE = -1  # the released score of a reply without one
BASE = ("color", "shape", "texture", "spatial", "non-spatial", "numeracy", "3d spatial")
COMPLEX = ("complex", "complex action", "complex spatial")  # averaged first, then one of eight

_STATED = re.compile(r'"score":\s*(\d+)')
_ANYWHERE = re.compile(r'"score":\s*"?(\d+)')


def released_score(reply: str) -> int:
    """The score that the released parser reads: any integer, -1 where it finds none.

    Source: `qwen_eval.extract_score`.
    """
    try:
        found = _of_object(reply.strip().replace("```json", "").replace("```", "").strip())
        if found is None:
            match = _ANYWHERE.search(reply)
            found = UNREADABLE if match is None else int(match.group(1))
        return found
    except (ValueError, RecursionError):  # thousands of digits, deep nesting: its batch fails
        return UNREADABLE


def _of_object(text: str) -> int | None:
    """From the first "{" to the first "}" behind the last bare integer score, if that is JSON."""
    start, last = text.find("{"), text.rfind("}")
    if start < 0:
        return None
    heads = [m for m in _STATED.finditer(text, start + 1) if m.end() <= last]
    if not heads:
        return None
    try:
        data = json.loads(text[start : text.index("}", heads[-1].end()) + 1])
    except json.JSONDecodeError:
        return None
    score = data.get("score")
    return int(score) if isinstance(score, int) else None


def strict_score(reply: str) -> float | None:
    """The score in [0, 100] that a reader would take; None where there is no clear one."""
    found = json_object(reply)
    if found is not None and is_number(score := found.get("score")):
        return float(score) if 0 <= score <= 100 else None
    return stated(reply, "score", 0, 100, bare=True)


def released_mean(column: Iterable[object]) -> float:
    """Mean of a CSV column of scores: what is no number is left out, -1 is one; 0.0 of nothing.

    Source: `calculate_mean.calculate_mean_score`.
    """
    values = [x for x in map(_numeric, column) if not math.isnan(x)]
    return math.fsum(values) / len(values) if values else 0.0


def _numeric(cell: object) -> float:
    try:
        return math.nan if "_" in str(cell) else float(str(cell))
    except ValueError:
        return math.nan


def composite(means: Mapping[str, float]) -> tuple[float, float]:
    """(Complex_Composite, Overall_Weighted) of one variant's category means, in their scale.

    The composite is the plain mean of the complex categories that are there, 0 of none; overall is
    the plain mean of the others and the composite. Source: the awk programme in `qwen_eval.sh`.
    """
    hard = [value for name, value in means.items() if name in COMPLEX]
    easy = [value for name, value in means.items() if name not in COMPLEX]
    of_hard = added(hard) / len(hard) if hard else 0.0
    return of_hard, (added(easy) + of_hard) / (len(easy) + 1)


def summary(rows: Sequence[tuple[str, str, float]]) -> list[str]:
    """The lines that the released script appends to its summary, of (variant, category, mean) rows;
    variants in alphabetical order."""
    lines = []
    for variant in sorted({row[0] for row in rows}):
        means = {category: float(mean) for name, category, mean in rows if name == variant}
        of_hard, overall = composite(means)
        lines.append(f"{variant},Complex_Composite,{of_hard:.4f}")
        lines.append(f"{variant},Overall_Weighted,{overall:.4f}")
    return lines
