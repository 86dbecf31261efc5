"""GEdit-Bench: marks of edits out of a judge's words, and their means over groups of edits.

Owns both readings of a reply: that of the official scorer (VIEScore, with its repair of broken JSON
and all that it does instead of giving a score), and a strict one that takes two marks or none.
Source: stepfun-ai/Step1X-Edit at 570eba6, `mllm_output_to_dict`, `VIEScore.evaluate`,
`analyze_scores`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any

GROUPS = (
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "ps_human",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
)
LANGUAGES = ("en", "cn")
HIGHEST = 10.0  # of a mark; the lowest is 0
OK, RANDOM, ENDLESS = "ok", "random score", "never returns"
_FENCE = "||V^=^V||"


@dataclasses.dataclass(frozen=True)
class Marks:
    """Semantic consistency, perceptual quality and overall mark of an edit; without them `status`
    says what the official code does instead."""

    semantics: float = math.nan
    quality: float = math.nan
    overall: float = math.nan
    status: str = OK


# ------------------------------------------------------------------------------- as it is released


def parse(reply: str) -> Any:
    """A reply as the official code's first try reads it; False where it cannot.

    What stands between two fences, else from the first "{" to the last "}", is JSON whose "score"
    becomes a list; broken JSON is repaired. Without braces "[a, b]" or a number of 0 to 10 is read.
    """
    if reply.count(_FENCE) == 2:
        start, end = reply.find(_FENCE) + len(_FENCE), reply.rfind(_FENCE)
        return _read(reply[start:end]) if start != end else False
    if _has_braces(reply):
        return _read(reply[reply.find("{") : reply.rfind("}") + 1])
    listed = reply[reply.find("[") : reply.rfind("]") + 1]
    if re.match(r"^\[\d+, ?\d+\]$", listed):
        return _bare(json.loads(listed), "a list of scores") if _is_json(listed) else False
    try:
        number = int(reply)
    except ValueError:
        return False
    return _bare([number], "a number") if 0 <= number <= HIGHEST else False


def guesses(reply: str) -> bool:
    """Whether the official code's second try draws a random score for this reply."""
    return reply.count(_FENCE) != 2 and not _has_braces(reply)


def lowest(parsed: Any) -> Any:
    """The smallest of the "score" of what `parse` gives; None where there is no smallest one."""
    try:
        return min(parsed["score"])
    except (KeyError, TypeError, ValueError):
        return None


def viescore(semantics: str, quality: str) -> Marks:
    """The marks of an edit out of the replies to both questions, by a judge who always says the
    same. Where the official code would draw a score, ask for ever, or raise, status says so."""
    parsed = [parse(reply) for reply in (semantics, quality)]
    if any(one is False for one in parsed):
        return Marks(status=RANDOM if guesses(semantics) or guesses(quality) else ENDLESS)
    try:
        a, b = (min(one["score"]) for one in parsed)
        overall = math.sqrt(a * b)  # raises for marks that are texts, which float() would read
        return Marks(float(a), float(b), overall)
    except (ArithmeticError, LookupError, TypeError, ValueError) as e:
        return Marks(status=f"raises {type(e).__name__}")


def group_means(marks: Sequence[Marks], groups: Sequence[str]) -> dict[str, dict[str, float]]:
    """{"semantics", "quality", "overall": {group: mean, ..., "avg_...": the groups' plain mean}}.

    A group without marks is NaN, and so is the mean then, as officially.
    """
    members = {
        name: [m for m, g in zip(marks, groups, strict=True) if g == name] for name in GROUPS
    }
    found = {}
    for field in ("semantics", "quality", "overall"):
        means = {name: _mean([getattr(m, field) for m in some]) for name, some in members.items()}
        found[field] = means | {f"avg_{field}": _mean(list(means.values()))}
    return found


def sample_mean(marks: Sequence[Marks]) -> float:
    """The plain mean of overall marks, which lmms-eval reports; NaN of none."""
    return _mean([m.overall for m in marks])


# ------------------------------------------------------------------------------------------- strict

_NUMBER = r"[\"']?(-?\d+(?:\.\d+)?)(?:\s*/\s*10)?[\"']?"
_PAIR = rf"\[\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\]"
_SCORE = re.compile(rf"\bscores?[\"']?\s*[:=]\s*[\"']?{_PAIR}", re.IGNORECASE)
_ALONE = re.compile(rf"\s*{_PAIR}\s*")


def marks(reply: str) -> tuple[float, float] | None:
    """The two marks of 0 to 10 that a reply gives as "score", or None: where there are fewer or
    more, other ones elsewhere in the reply, or one outside the scale."""
    found = {m.groups() for m in _SCORE.finditer(reply)}
    if alone := _ALONE.fullmatch(reply):
        found.add(alone.groups())
    pairs = {(float(a), float(b)) for a, b in found}
    if len(pairs) != 1:
        return None
    pair = next(iter(pairs))
    return pair if all(0 <= mark <= HIGHEST for mark in pair) else None


def strict_marks(semantics: str, quality: str) -> Marks:
    """The marks of an edit, each the lower of its reply's two; status names what gives none."""
    pairs = {"SC": marks(semantics), "PQ": marks(quality)}
    missing = [name for name, pair in pairs.items() if pair is None]
    if missing:
        return Marks(status=f"no two marks of 0 to 10 in the reply about {' and '.join(missing)}")
    a, b = (min(pair) for pair in pairs.values())
    return Marks(a, b, math.sqrt(a * b))


# ------------------------------------------------------------------------------------------ helpers


def _has_braces(reply: str) -> bool:
    return "{" in reply and "}" in reply


def _bare(scores: list[int], what: str) -> dict[str, Any]:
    return {"score": scores, "reasoning": f"System: output is simply {what}"}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _read(text: str) -> Any:
    """JSON without its line ends, its "score" as a list; else JSON that is repaired; else False."""
    text = text.strip().replace("\n", "")
    try:
        value = json.loads(text)
        if not isinstance(value["score"], list):
            value["score"] = [value["score"]]
        return value
    except (LookupError, TypeError, ValueError, RecursionError):
        pass
    try:
        return json.loads(_repaired(text))
    except (ValueError, RecursionError):
        return False


def _repaired(text: str) -> str:
    """Names before colons in quotes, numbers in brackets, other values in (further) quotes."""
    text = re.sub(r"(\w+):", r'"\1":', text)
    return re.sub(r'(".*?"):(.*?)(,|})', _repaired_field, text)


def _repaired_field(match: re.Match[str]) -> str:
    name, value, after = match.groups()
    value = value.strip()
    if re.match(r"^-?\d+(\.\d+)?$", value):
        value = f"[{value}]"
    elif value.lower() not in ("true", "false", "null"):
        value = f'"{value}"'
    return f"{name}: {value}{after}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
