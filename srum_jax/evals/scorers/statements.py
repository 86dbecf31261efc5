"""Numbers that a judge's reply states behind labels, as a careful reader takes them.

Owns the strict reading of short judgements ("Score: 1", `{"score": 85, ...}`): the official parsers
take the first or the last of what looks like a number; a reader is sure only of what is said once,
or several times alike, and lies in the range that was asked for.
"""

import json
import math
import re

_CLOSERS = r"[\s\"'`“”*_]{0,8}"
_PARENTHESES = r"(?:\([^()\n]{0,20}\)" + _CLOSERS + ")?"  # "Realism (0-2): 1"
_VALUE = re.compile(r"[\s\"'`“”*_\[]{0,16}([+-]?[0-9]{1,9}(?:\.[0-9]{1,9})?)")
_NOT_MORE = re.compile(r"(?![\w%/]|[.,][0-9])")  # nothing that changes the number comes behind it


def stated(
    text: str, label: str, lowest: float, highest: float, bare: bool = False
) -> float | None:
    """The number in [lowest, highest] that stands behind `label` and a colon.

    Args:
      text: a reply. The label counts in any case, in quotes or stars or not, as a word of its own.
        "/highest" may follow the number, and "%" where highest is 100.
      bare: a reply that is nothing but a number states it too.

    Returns:
      None where there is no such statement, where one cannot be read, where two differ, and where
      the number is out of range.
    """
    head = re.compile(
        rf"(?<!\w){re.escape(label)}{_CLOSERS}{_PARENTHESES}(?:[:=：])", re.IGNORECASE
    )
    found = {_number(text, match.end(), highest) for match in head.finditer(text)}
    if not found and bare:
        found = {_number(text.strip(), 0, highest, alone=True)}
    if len(found) != 1:
        return None
    value = found.pop()
    return value if value is not None and lowest <= value <= highest else None


def _number(text: str, at: int, highest: float, alone: bool = False) -> float | None:
    match = _VALUE.match(text, at)
    if match is None:
        return None
    ends = re.compile(rf"\s?/\s?{highest:g}(?![\w.])" + (r"|\s?%" if highest == 100 else ""))
    tail = ends.match(text, match.end())
    end = tail.end() if tail else match.end()
    over = text[end:].strip("\"'`“”*_]. \n\t") if alone else ""
    return None if over or not _NOT_MORE.match(text, end) else float(match.group(1))


def json_object(text: str) -> dict | None:
    """The one JSON object from the first "{" to the last "}" of a reply; None: there is none.

    NaN and infinities are no JSON, nor is a key that stands twice, nor what is nested too deeply.
    """
    start, end = text.find("{"), text.rfind("}")
    try:
        read = json.JSONDecoder(parse_constant=_refuse, object_pairs_hook=_once).decode
        found = read(text[start : end + 1]) if start >= 0 else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _once(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def is_number(value: object) -> bool:
    """Whether a value out of JSON is a finite number, and no truth value."""
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return whole and math.isfinite(value)
