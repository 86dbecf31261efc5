"""The verdict in words: what training made better, what worse, and what it left.

A change is claimed only where the 95 % interval of the paired difference excludes 0; what fell is
said as plainly as what rose.
"""

import collections
from collections.abc import Sequence

from srum_jax.report.suite_sections import Section

LISTED = 4  # titles of what is better or unclear; the rest is counted. What is worse is all named
WORSE, BETTER, UNCLEAR = "Worse", "Better", "No clear change"
GROUPS = ((-1, WORSE), (1, BETTER), (0, UNCLEAR))


def headline(sections: Sequence[Section]) -> str:
    """The result in words: of all sections that compare base and trained; where there is one in
    full, where there is none of the first there is."""
    compared = [s for s in sections if s.judged]
    if len(compared) > 1:
        return _of_several(compared)
    if not sections:
        return "No accuracy was measured in this run."
    shown = next(iter(compared), None) or next((s for s in sections if s.compares), sections[0])
    return _of_one(shown)


def groups(sections: Sequence[Section]) -> list[tuple[str, list[Section]]]:
    """(verdict, sections with it) of those that compare base and trained, the losses first."""
    compared = [s for s in sections if s.judged]
    found = [
        (title, [s for s in compared if s.difference.direction == sign]) for sign, title in GROUPS
    ]
    return [(title, some) for title, some in found if some]


def _of_several(compared: Sequence[Section]) -> str:
    found = dict(groups(compared))
    names = dict(zip([s.key for s in compared], _short_titles(compared), strict=True))
    if set(found) == {UNCLEAR}:
        return f"No clear change in what was measured: {_listed(list(names.values()), LISTED)}."
    said = []
    for title, nothing, most in (
        (BETTER, "Nothing is clearly better after training", LISTED),
        (WORSE, "Nothing is clearly worse", len(compared)),
        (UNCLEAR, "", LISTED),
    ):
        some = [names[s.key] for s in found.get(title, ())]
        lead = "Better after training" if title == BETTER else title
        if some:
            said.append(f"{lead}: {_listed(some, most)}.")
        elif nothing:
            said.append(f"{nothing}.")
    return " ".join(said)


def _of_one(shown: Section) -> str:
    models, scale = list(shown.models.items()), shown.scale
    if not models:
        return f"{shown.title}: no number could be made of the replies."
    if shown.void:
        return f"{shown.title}: no reply of some model could be used, so there is no result."
    if not shown.compares:
        name, one = models[0]
        interval = f" (95 % interval {scale.values(one.ci95)})" if one.ci95 else ""
        what = f"{scale.value(one.value)} right" if shown.details is None else _of_scale(shown, one)
        return f"{shown.title}, {name}: {what}{interval}."
    move = f"from {scale.value(models[0][1].value)} to {scale.value(models[1][1].value)}"
    if not shown.difference:
        return (
            f"{_first_up(shown.counted)} went {move}; without a paired comparison nothing can be "
            "concluded."
        )
    size = f"{scale.change(shown.difference.value)} {scale.unit}"
    interval = f"95 % interval {scale.changes(shown.difference.ci95)}"
    if shown.difference.direction:
        verb = "raised" if shown.difference.direction > 0 else "lowered"
        return f"Training {verb} {shown.counted} {move}: {size} ({interval})."
    return f"No clear change: {shown.counted} went {move}, {size}, but the {interval} includes 0."


def _of_scale(shown: Section, one) -> str:
    unit = "" if shown.scale.share else f" {shown.scale.unit}"
    return f"{shown.metric} {shown.scale.value(one.value)}{unit}"


def _short_titles(sections: Sequence[Section]) -> list[str]:
    """Titles as they stand inside a sentence: up to their comma where that tells them apart."""
    short = [s.title.partition(",")[0] for s in sections]
    times = collections.Counter(short)
    titles = [a if times[a] == 1 else s.title for a, s in zip(short, sections, strict=True)]
    return [in_sentence(title) for title in titles]


def in_sentence(title: str) -> str:
    """A title in lower case unless its first word is a name, such as POPE or GenEval."""
    word = title.partition(" ")[0]
    plain = word[1:].islower() and word.replace("-", "").isalpha()
    return title[:1].lower() + title[1:] if plain else title


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]


def _listed(names: Sequence[str], most: int) -> str:
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
