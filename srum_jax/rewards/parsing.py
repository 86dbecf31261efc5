"""Scores out of written answers: what a careful reader is sure of, and nothing else.

Owns the grammar of a written answer. What it asks for is, for each region,

    Region 3
    Reason: one sentence.
    Score: 0.5

and for a whole image the last two lines alone. Read as well: other marks around ids, labels and
numbers (`**Score:** 0.5`, `### Region ID: 3`, `Region 3 (the horse): [0.5]`), a score on the line
of its region or after its reason, JSON objects with the keys "score" and "region", fenced or not,
and, where a single score is asked for, an answer that names no region or is nothing but a number.

A number is a plain decimal: `0.5`, `.5`, `+0.5`, `-0.5` (also with the minus sign, the hyphens and
the en dash of Unicode), `1.`, and with a decimal comma where it cannot mark thousands (`0,5`,
`1,0`). It stands alone behind its label. Everything else is no number: `9/10`, `0.9/1.0`,
`0.5-0.9`, `1e-1`, `95%`, `½`, `nan`, digits of other scripts, a dash that may be punctuation
(`Score - 0.5`), a comment behind the number. A whole number over 1 such as `95` is out of range.

Every statement about a score counts: a region is scored if all that are made about it can be read
and agree; that it cannot be judged, outside of a reason, is a statement that cannot be read. A line
that looks like the start of something else (another heading, a number, a region that is not clearly
named) ends a region, and what follows it belongs to nobody. Thinking in tags
(`<think>`, `<reasoning>`, `[THINK]`) comes first, if at all, and is no part of the answer.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from decimal import Decimal

from srum_jax.rewards.judge import OK, UNPARSED

MISSING = "missing"  # the answer does not name this region
OUT_OF_RANGE = "out of range"  # a number outside [-1, 1]
CONTRADICTORY = "contradictory"  # different scores for one thing
UNFINISHED = "unfinished"  # thinking or answer did not end
STATUSES = (OK, UNPARSED, MISSING, OUT_OF_RANGE, CONTRADICTORY, UNFINISHED)

VERSION = "2"  # of these rules: scores read by others are not comparable
WHOLE = -1  # stands for the image among the ids asked for; regions count from 1

_NOBODY = -2  # whose statements are dropped
# Neighbouring parts of a pattern never match the same character, so reading takes linear time.
_MARKS = r"[\s*_`\"'\[]*"  # before a value
_ENDS = r"[\s*_`\"'\]]*"  # after a label or a value
_COLON = r"[:=：]"
_NUMBER = re.compile(
    _MARKS
    + r"(?P<sign>[+\-\u2010\u2011\u2013\u2212]?)"
    + r"(?P<digits>(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+|0,[0-9]+|1,0{1,2})"
    + _ENDS
    + r"(?:[.,;|][\s*_`|]*)?"
)
_START = r"[\s>#*_`\"'\[|•·+\-]*"  # bullets, quotes and headings before a label
_REGION = re.compile(
    _START + r"(?:[0-9]{1,3}[.)]\s*)?region\b(?:\s*(?:ID|number|no)\b\.?)?[\s:#*_`\"'\[]*"
    r"(?P<id>[0-9]{1,6})(?![0-9])[*_`\"'\])]*\s*(?:\((?P<name>[^()]*)\)[*_`]*\s*)?"
    rf"(?:$|{_COLON}|\||[–—-]\s*(?=[^\W\d_])|(?=(?:score|reason)\b))",
    re.IGNORECASE,
)
_SCORE = re.compile(_START + r"score\b" + _ENDS + f"(?P<colon>{_COLON})?", re.IGNORECASE)
_REASON = re.compile(_START + r"reason\b", re.IGNORECASE)
_INNER_SCORE = re.compile(r"\bscore\b" + _ENDS + _COLON, re.IGNORECASE)
_INNER_REASON = re.compile(r"\breason\b" + _ENDS + _COLON, re.IGNORECASE)
_SOME_REGION = re.compile(r"\bregions?\b", re.IGNORECASE)
_HEADING = re.compile(  # a region named otherwise, a line led by a number, "Object 2: …"
    r"[\W_]*(?:region|\d|[^\W\d_]+[\W_]*\d+[^\w:]*(?::|$))", re.IGNORECASE
)
_NUMBER_IN_NAME = re.compile(r"\.\d|score", re.IGNORECASE)  # "(0.9)", but not "(3, 3, 13, 13)"
_TAG = r"(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad)\b"
_THINK = re.compile(
    rf"<\s*(?P<end>/\s*)?{_TAG}[^<>]*>?|\[\s*(?P<close>/\s*)?{_TAG}\s*\]", re.IGNORECASE
)
_FENCED = re.compile(r"\s*```[a-z]*\s*(?P<inside>.*?)\s*```\s*", re.IGNORECASE | re.DOTALL)
_UNABLE = re.compile(
    r"\b(?:can\s?not|can['’]t|could not|couldn['’]t|unable to|not able to|refuse to)\s+"
    r"(?:\w+\s+)?(?:judge|score|rate|assess|evaluate|determine)\b",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class ParsedScores:
    """scores: for every id asked for (score, status), the score NaN unless the status is "ok".

    strangers: how many regions the answer names that were not asked for; they are ignored.
    """

    scores: dict[int, tuple[float, str]]
    strangers: int = 0


def parse(text: str, ids: Sequence[int], *, finished: bool = True) -> ParsedScores:
    """The scores that `text` gives to `ids`, which are regions' numbers from 1, or WHOLE alone.

    finished: the writer ended by itself. Statuses: STATUSES. Raises nothing for any text.
    """
    answer, status = _after_thinking(text) if finished else ("", UNFINISHED)
    if status != OK:
        return ParsedScores({i: (float("nan"), status) for i in ids})
    alone = _NUMBER.fullmatch(answer) if len(ids) == 1 else None
    if alone:  # a whole number might be the region's
        clear = ids[0] == WHOLE or not alone["digits"].rstrip(".").isdecimal()
        return ParsedScores({ids[0]: _agreed([_value(alone) if clear else None])})
    stated = _from_json(answer) or _statements(answer)
    named = stated.keys() - {WHOLE, _NOBODY}
    if len(ids) == 1 and not named and stated[WHOLE]:  # what else could it be about?
        stated[ids[0]] = stated[WHOLE]
    nothing = float("nan"), MISSING
    found = {i: _agreed(stated[i]) if i in stated else nothing for i in ids}
    return ParsedScores(found, len(named - {*ids}))


def _after_thinking(text: str) -> tuple[str, str]:
    """(what follows the thinking, OK), or ("", why it cannot be told apart).

    Thinking comes first and once; its tags may be nested, and the one that opens it may be missing,
    as some models' question ends with it.
    """
    depth = start = 0
    mixed = False
    for tag in _THINK.finditer(text):
        stated = depth == 0 and bool(text[start : tag.start()].strip())
        if tag["end"] or tag["close"]:
            mixed |= stated and start > 0
            depth, start = max(0, depth - 1), tag.end()
        else:
            mixed |= stated
            depth += 1
    if depth:
        return "", UNFINISHED
    return ("", UNPARSED) if mixed else (text[start:], OK)


def _from_json(answer: str) -> dict[int, list[Decimal | None]] | None:
    """`_statements` of an answer that is JSON alone: an object, or a list of them; else None."""
    fenced = _FENCED.fullmatch(answer)
    text = (fenced["inside"] if fenced else answer).strip()
    if not text.startswith(("{", "[")):
        return None
    try:
        # Pairs in place of objects: a key that stands twice is stated twice.
        found = json.loads(text, object_pairs_hook=tuple, parse_float=str, parse_int=str)
    except (ValueError, RecursionError):
        return None
    entries = [found] if isinstance(found, tuple) else found
    if not (isinstance(entries, list) and entries and all(isinstance(e, tuple) for e in entries)):
        return None
    stated: dict[int, list[Decimal | None]] = {WHOLE: [], _NOBODY: []}
    for entry in entries:
        named = [v for k, v in entry if k.casefold() in ("region", "id")]
        scores = [v for k, v in entry if k.casefold() == "score"]
        about = WHOLE if not named else _NOBODY
        if len(named) == 1 and isinstance(named[0], str) and re.fullmatch("[0-9]{1,6}", named[0]):
            about = int(named[0])
        read = [_NUMBER.fullmatch(one) if isinstance(one, str) else None for one in scores]
        stated.setdefault(about, []).extend(one and _value(one) for one in read)
    return stated


def _statements(answer: str) -> dict[int, list[Decimal | None]]:
    """{id: its statements}, a statement None if it cannot be read.

    What precedes the first region is about WHOLE. Every region that is named has an entry.
    """
    about = WHOLE
    stated: dict[int, list[Decimal | None]] = {WHOLE: [], _NOBODY: []}
    for place, line in enumerate(answer.strip().splitlines()):
        region = _REGION.match(line)
        if region:
            about = int(region["id"])
            stated.setdefault(about, [])
            if _NUMBER_IN_NAME.search(region["name"] or ""):
                stated[about].append(None)
            stated[about] += _beside_region(line[region.end() :])
        elif _SCORE.match(line) or _REASON.match(line) or not _breaks(line, place):
            stated[about] += _on_line(line)
            if _UNABLE.search(line) and not _REASON.match(line):
                stated[about].append(None)
        else:
            if _NUMBER.fullmatch(line):
                stated[about].append(None)
            about = _NOBODY
    return stated


def _breaks(line: str, place: int) -> bool:
    """Whether an unlabelled line may begin something else (a first one with a colon does not)."""
    end = line.rstrip(" \t*_`\"')]")
    return bool(
        _HEADING.match(line)
        or (place and end.endswith((":", "：")))
        or (_SOME_REGION.search(line) and not end.endswith((".", "!", "?")))
    )


def _beside_region(rest: str) -> list[Decimal | None]:
    """Statements behind a region's id: a number alone, or labels after a name without numbers."""
    number = _NUMBER.fullmatch(rest)
    if number:
        return [_value(number)]
    labels = (_SCORE.match(rest), _INNER_SCORE.search(rest), _INNER_REASON.search(rest))
    name = rest[: min((label.start() for label in labels if label), default=None)]
    return [None] if any(c.isnumeric() for c in name) else _on_line(rest)


def _on_line(line: str) -> list[Decimal | None]:
    """Statements of a line without its region's id."""
    label = _SCORE.match(line)
    if label:
        return [_labelled(line[label.end() :], colon=bool(label["colon"]))]
    inner = list(_INNER_SCORE.finditer(line))
    if not inner:
        return []
    before = line[: inner[0].start()]
    ended = before.rstrip(" \t*_`\"'[").endswith(tuple(".!?;,|-–—"))
    if len(inner) > 1 or not ended or _SOME_REGION.search(before):
        return [None]
    return [_labelled(line[inner[0].end() :], colon=True)]


def _labelled(tail: str, *, colon: bool) -> Decimal | None:
    """The number behind a label; without a colon, its dash might be punctuation."""
    reason = _INNER_REASON.search(tail)
    if reason:
        tail = tail[: reason.start()].rstrip(" \t,;|*_`-–—")
    number = _NUMBER.fullmatch(tail)
    if not number or (number["sign"] and not colon):
        return None
    return _value(number)


def _value(number: re.Match) -> Decimal:
    digits = Decimal(number["digits"].replace(",", "."))
    return digits if number["sign"] in ("", "+") else digits.copy_negate()


def _agreed(stated: Sequence[Decimal | None]) -> tuple[float, str]:
    """(score, OK) of statements that agree, otherwise (NaN, why not)."""
    if not stated or None in stated:
        return float("nan"), UNPARSED
    if len(set(stated)) > 1:
        return float("nan"), CONTRADICTORY
    if not -1 <= stated[0] <= 1:
        return float("nan"), OUT_OF_RANGE
    return float(stated[0]) + 0.0, OK  # + 0.0: no negative zero
