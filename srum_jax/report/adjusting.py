"""What the stage `adjust` tried, what was allowed, what it chose and why, in words.

Owns how "adjust" of a round of results.json is read. Names of suites become their titles.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from srum_jax.report import numbers
from srum_jax.report.suite_sections import CONTRACT
from srum_jax.report.verdict import in_sentence

KEPT_BASE = "the base as it was"


@dataclasses.dataclass(frozen=True)
class Tried:
    """A model that was tried; differences to the base are shares.

    target: None where nothing was scored · floors: (name, difference, whether it is below what is
    allowed) of what was measured · chosen: whether it is the one that is kept.
    """

    words: str
    guidance: float
    target: float | None
    floors: tuple[tuple[str, float, bool], ...]
    allowed: bool
    chosen: bool


@dataclasses.dataclass(frozen=True)
class Adjusting:
    """rule, why: sentences · target, floors: names of the columns · kept: what the round leaves, in
    words · measured_as: "base", "trained", or "adjusted" for a model of its own · crossfitted:
    what choosing gains · following: what the next round goes by."""

    rule: str = ""
    target: str = ""
    floors: tuple[tuple[str, float], ...] = ()
    tried: tuple[Tried, ...] = ()
    kept: str = ""
    why: str = ""
    measured_as: str = ""
    crossfitted: tuple[str, ...] = ()
    following: str = ""

    def __bool__(self) -> bool:
        return bool(self.tried or self.kept)


def adjusting(facts: Mapping[str, Any], titles: Mapping[str, str]) -> Adjusting:
    """facts: "adjust" of a round, or {} · titles: of sections, by their names in files.

    Raises ValueError naming the field that is missing.
    """
    if not facts:
        return Adjusting()
    known = {key: title for key, (title, *_) in CONTRACT.items()} | dict(titles)
    try:
        floors = facts.get("floors", {})
        chosen = facts["chosen"]
        return Adjusting(
            rule=_rule(facts, known),
            target=_title(facts.get("target", "target"), known),
            floors=tuple((_title(name, known), least) for name, least in floors.items()),
            tried=tuple(_tried(row, chosen, floors, known) for row in facts["tried"]),
            kept=_kept(chosen),
            why=_in_words(facts["why"], known),
            measured_as=str(facts.get("measured_as", "")),
            following=_following(facts.get("next", {})),
            crossfitted=tuple(
                _crossfitted(name, one, known) for name, one in facts.get("crossfitted", {}).items()
            ),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"results.json, adjust: {error!r} is missing; run adjust again") from error


def _rule(facts: Mapping[str, Any], known: Mapping[str, str]) -> str:
    if "target" not in facts:
        return _in_words(str(facts.get("rule", "")), known)
    target = _title(facts["target"], known)
    floors = [
        f"{_title(name, known)} may lose {numbers.points(-least).lstrip('+')} points"
        for name, least in facts.get("floors", {}).items()
    ]
    limits = f": {', '.join(floors)}" if floors else ", and no floor is set"
    return (
        f"The largest gain in {target} on validation data among those that break no floor{limits}. "
        "Where there is none, the base stays."
    )


def _tried(
    row: Mapping[str, Any],
    chosen: Mapping[str, Any],
    floors: Mapping[str, float],
    known: Mapping[str, str],
) -> Tried:
    same = all(row[name] == chosen.get(name) for name in ("step", "share", "guidance"))
    found = tuple(
        (_title(name, known), diff, diff < floors.get(name, float("-inf")))
        for name, diff in row["floors"].items()
    )
    return Tried(
        words=_model(row),
        guidance=row["guidance"],
        target=row.get("target"),
        floors=found,
        allowed=bool(row["allowed"]),
        chosen=same and bool(chosen.get("share")),
    )


def _kept(chosen: Mapping[str, Any]) -> str:
    if not chosen.get("share"):
        return KEPT_BASE
    return (
        f"{_model(chosen)} of training, added to the base and drawn with guidance "
        f"{numbers.short(chosen['guidance'])}"
    )


def _model(row: Mapping[str, Any]) -> str:
    """As in "50 % of the change of 120 steps"."""
    share = "all" if row["share"] == 1 else f"{100 * row['share']:.0f}{numbers.NO_BREAK}%"
    return f"{share} of the change of {numbers.count(row['step'])} steps"


def _crossfitted(name: str, one: Mapping[str, Any], known: Mapping[str, str]) -> str:
    interval = f", 95 % interval {numbers.points_range(one['ci95'])}" if "ci95" in one else ""
    return f"{_title(name, known)} {numbers.points(one['diff'])} points{interval}"


def _following(facts: Mapping[str, Any]) -> str:
    """Where its prompts are taken by category, in which shares, the largest first."""
    shares = sorted(facts.get("prompts", {}).items(), key=lambda pair: -pair[1])
    if not shares:
        return ""
    said = ", ".join(f"{numbers.words(name)} {numbers.percent(share)}" for name, share in shares)
    return (
        f"The next round draws more prompts where the model is weak and the judge is sure: {said}."
    )


def _title(name: str, known: Mapping[str, str]) -> str:
    return in_sentence(known.get(name, numbers.words(name)).partition(",")[0])


def _in_words(text: str, known: Mapping[str, str]) -> str:
    """Without the names that files use."""
    for name in sorted(known, key=len, reverse=True):
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", _title(name, known), text)
    return re.sub(r"(?<=[( ])-(?=\d)", "\u2212", text)
