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

ALL, NONE = "all of what training changed", "nothing of what training changed"
KEPT_BASE = "the base as it was"


@dataclasses.dataclass(frozen=True)
class Tried:
    """A model that was tried; differences to the base are shares.

    floors: (name, difference, whether it is below what is allowed) of what was measured · chosen:
    whether it is the one that is kept.
    """

    words: str
    guidance: float
    target: float
    floors: tuple[tuple[str, float, bool], ...]
    allowed: bool
    chosen: bool


@dataclasses.dataclass(frozen=True)
class Adjusting:
    """rule, why: sentences · target, floors: names of the columns · kept: what the round leaves, in
    words · measured_as: "base", "trained", or "adjusted" for a model of its own · crossfitted:
    sentences on what choosing gains."""

    rule: str = ""
    target: str = ""
    floors: tuple[tuple[str, float], ...] = ()
    tried: tuple[Tried, ...] = ()
    kept: str = ""
    why: str = ""
    measured_as: str = ""
    crossfitted: tuple[str, ...] = ()

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
        words=f"{numbers.count(row['step'])} steps, {_share(row['share'])}",
        guidance=row["guidance"],
        target=row["target"],
        floors=found,
        allowed=bool(row["allowed"]),
        chosen=same and bool(chosen.get("share")),
    )


def _kept(chosen: Mapping[str, Any]) -> str:
    if not chosen.get("share"):
        return KEPT_BASE
    return (
        f"the model of {numbers.count(chosen['step'])} steps with {_share(chosen['share'])}, drawn "
        f"with guidance {numbers.short(chosen['guidance'])}"
    )


def _share(share: float) -> str:
    if share == 1:
        return ALL
    return f"{100 * share:.0f}{numbers.NO_BREAK}% of what training changed" if share else NONE


def _crossfitted(name: str, one: Mapping[str, Any], known: Mapping[str, str]) -> str:
    interval = f", 95 % interval {numbers.points_range(one['ci95'])}" if "ci95" in one else ""
    return f"{_title(name, known)} {numbers.points(one['diff'])} points{interval}"


def _title(name: str, known: Mapping[str, str]) -> str:
    return in_sentence(known.get(name, numbers.words(name)).partition(",")[0])


def _in_words(text: str, known: Mapping[str, str]) -> str:
    """Without the names that files use."""
    for name in sorted(known, key=len, reverse=True):
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", _title(name, known), text)
    return re.sub(r"(?<=[( ])-(?=\d)", "\u2212", text)
