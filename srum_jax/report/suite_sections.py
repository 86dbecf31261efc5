"""What was measured, as the report shows it: sections of shares with their intervals.

Owns how a round of results.json becomes sections, whichever suite wrote them, and what they say in
words. No number is computed here but the share of a count: intervals and differences are those
that `evaluate` wrote.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from srum_jax.report.numbers import percent, percent_range, points, points_range


@dataclasses.dataclass(frozen=True)
class Share:
    """How many of n are right. ci95: of the share, or None where none was written."""

    n: int
    correct: float
    ci95: tuple[float, float] | None = None
    by_category: Mapping[str, "Share"] = dataclasses.field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return self.correct / self.n

    @property
    def low(self) -> float:
        """The lower end of what is drawn of it."""
        return self.ci95[0] if self.ci95 else self.accuracy


@dataclasses.dataclass(frozen=True)
class Difference:
    """Second model minus first on the same items, in [-1, 1].

    first_only, second_only: items that one of them alone got right; None where not counted.
    """

    value: float
    ci95: tuple[float, float]
    n: int | None = None
    first_only: int | None = None
    second_only: int | None = None

    @property
    def direction(self) -> int:
        """1 or -1 where the interval lies on one side of 0, otherwise 0."""
        return (self.ci95[0] > 0) - (self.ci95[1] < 0)


@dataclasses.dataclass(frozen=True)
class Section:
    """One thing that was measured of one or more models.

    key: its name in files; about: how it was measured, in a sentence; unit: what n counts; against:
    which difference `difference` is.
    """

    key: str
    title: str
    about: str
    unit: str
    models: Mapping[str, Share]
    difference: Difference | None = None
    against: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models."""
        return tuple(self.models)

    @property
    def compares(self) -> bool:
        """Whether it compares the model before and after training."""
        return self.names == ("base", "trained")

    @property
    def categories(self) -> tuple[str, ...]:
        """Those that all models have."""
        first, *others = self.models.values()
        return tuple(
            name for name in first.by_category if all(name in o.by_category for o in others)
        )

    @property
    def rows(self) -> list["Row"]:
        """The whole, then every category."""
        categories = [
            Row(name, {key: model.by_category[name] for key, model in self.models.items()})
            for name in self.categories
        ]
        return [Row("all", self.models, self.difference), *categories]

    @property
    def lowest(self) -> float:
        """Where its scale starts: where all is above one half, that half shows more."""
        shares = [s for model in self.models.values() for s in (model, *model.by_category.values())]
        return 0.5 if min(s.low for s in shares) >= 0.5 else 0.0

    @property
    def outcomes(self) -> tuple[tuple[str, int], ...]:
        """(kind, items) right for both, only the second, only the first, neither; () unknown."""
        d = self.difference
        if d is None or len(self.models) != 2 or d.n is None:
            return ()
        if d.first_only is None or d.second_only is None:
            return ()
        both = round(next(iter(self.models.values())).correct) - d.first_only
        neither = d.n - both - d.first_only - d.second_only
        kinds = ("both", "second", "first", "neither")
        return tuple(zip(kinds, (both, d.second_only, d.first_only, neither), strict=True))


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a section's table. difference: with its interval, where one was written."""

    name: str
    models: Mapping[str, Share]
    difference: Difference | None = None

    @property
    def n(self) -> int:
        """How many items."""
        return next(iter(self.models.values())).n

    @property
    def change(self) -> float:
        """Second model minus first."""
        first, second = list(self.models.values())[:2]
        return second.accuracy - first.accuracy


# The fields of a round that every results.json has had: title, unit, how it is measured.
CONTRACT = {
    "t2i": (
        "Drawing",
        "pictures",
        "Share of test pictures that the checker finds right in every detail.",
    ),
    "best_of_k": (
        "Choosing among candidates",
        "prompts",
        "For each prompt several pictures are drawn and one is kept: blindly, by the model's own "
        "score, or by an oracle that knows the truth, which is the ceiling.",
    ),
    "qa": (
        "Answering questions",
        "questions",
        "Share of questions about one picture, two, or a clip that the model answers exactly.",
    ),
    "captions": (
        "Describing pictures",
        "captions",
        "Share of captions that say all that is there and nothing else.",
    ),
    "edits": (
        "Editing pictures",
        "edits",
        "Share of edits after which the picture shows what was asked for and all else is as it "
        "was.",
    ),
}
NAMES = {  # of models, where a reader needs more than the file says
    "random": "blind choice",
    "self": "own choice",
    "oracle": "oracle (ceiling)",
}


def of_round(measured: Mapping[str, Any]) -> list[Section]:
    """The sections of one round of results.json, in the order they are shown.

    The contract's fields come first, then what suites wrote; what is in both is shown once, in the
    contract's place and named as the suite names it. Raises ValueError naming the field that is
    missing.
    """
    suites = [
        found
        for name, part in measured.get("suites", {}).items()
        for found in _nested(name, part, f"suites.{name}")
    ]
    fields = []
    for one in _contract(measured):
        same = next((s for s in suites if s.models == one.models), None)
        if same:
            suites.remove(same)
            one = dataclasses.replace(one, title=same.title, about=same.about or one.about)
        fields.append(one)
    return fields + suites


def _contract(measured: Mapping[str, Any]) -> list[Section]:
    best = measured.get("t2i", {}).get("best_of_k")
    parts = dict(measured)
    if best:
        gain = {"against": "Own choice against the average candidate, without any training"}
        parts["best_of_k"] = {
            **best,
            "paired": {**best["gain"], **gain} if "gain" in best else None,
        }
    found = []
    for key, (title, unit, about) in CONTRACT.items():
        part = parts.get(key) or {}
        models = {name: part[name] for name in ("base", "trained", *NAMES) if part.get(name)}
        if models:
            whole = {"title": title, "unit": unit, "about": about, "models": models}
            found.append(section(key, {**whole, "paired": part.get("paired")}, key))
    return found


def _nested(key: str, value: Mapping[str, Any], where: str) -> list[Section]:
    """A suite's section and those inside it."""
    try:
        inner = value.get("sections", {}).items()
    except AttributeError as error:
        raise _damaged(where, error) from error
    own = [section(key, value, where)] if value.get("models") else []
    return own + [
        found
        for name, part in inner
        for found in _nested(f"{key}-{name}", part, f"{where}.sections.{name}")
    ]


def section(key: str, value: Mapping[str, Any], where: str) -> Section:
    """One section from its JSON: {"title", "models": {name: accuracy section}} and, where there,
    "about", "unit" and "paired". Raises ValueError naming the field that is missing."""
    try:
        paired, unit = value.get("paired"), str(value.get("unit", "items"))
        models = {name: share(part) for name, part in value["models"].items() if part}
        return Section(
            key=key,
            title=str(value["title"]),
            about=str(value.get("about", "")),
            unit=unit,
            models=models,
            difference=difference(paired) if paired else None,
            against=(paired or {}).get("against") or _against(list(models), unit),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(where, error) from error


def _against(models: Sequence[str], unit: str) -> str:
    if len(models) < 2:
        return ""
    second = models[1][:1].upper() + models[1][1:]
    return f"{second} against {models[0]} on the same {unit}"


def _damaged(where: str, error: Exception) -> ValueError:
    return ValueError(
        f"results.json, {where}: not a section of results ({error!r}); run evaluate again"
    )


def share(value: Mapping[str, Any]) -> Share:
    """From an accuracy section: {"n", "correct"}, and where there "ci95", "by_category"."""
    return Share(
        n=value["n"],
        correct=value["correct"],
        ci95=tuple(value["ci95"]) if "ci95" in value else None,
        by_category={name: share(v) for name, v in value.get("by_category", {}).items()},
    )


def difference(value: Mapping[str, Any]) -> Difference:
    """From a paired section: {"diff", "ci95"}, and where there "n", "base_only", "trained_only"."""
    return Difference(
        value=value["diff"],
        ci95=tuple(value["ci95"]),
        n=value.get("n"),
        first_only=value.get("base_only"),
        second_only=value.get("trained_only"),
    )


# -- in words -----------------------------------------------------------------------------------


def headline(sections: Sequence[Section]) -> str:
    """The result in one sentence: of the first section that compares base and trained, or else of
    the first there is. A change is claimed only where the 95 % interval excludes 0."""
    if not sections:
        return "No accuracy was measured in this run."
    shown = next((s for s in sections if s.compares), sections[0])
    models = list(shown.models.items())
    if not shown.compares:
        name, one = models[0]
        interval = f" (95 % interval {percent_range(one.ci95)})" if one.ci95 else ""
        return f"{shown.title}, {name}: {percent(one.accuracy)} right{interval}."
    move = f"from {percent(models[0][1].accuracy)} to {percent(models[1][1].accuracy)}"
    if not shown.difference:
        return (
            f"Right {shown.unit} went {move}; without a paired comparison nothing can be concluded."
        )
    size = f"{points(shown.difference.value)} points"
    interval = f"95 % interval {points_range(shown.difference.ci95)}"
    if shown.difference.direction:
        verb = "raised" if shown.difference.direction > 0 else "lowered"
        return f"Training {verb} right {shown.unit} {move}: {size} ({interval})."
    return (
        f"No clear change: right {shown.unit} went {move}, {size}, but the {interval} includes 0."
    )


def elsewhere(sections: Sequence[Section]) -> str:
    """What training clearly changed beside the headline's section, the losses first; "" where
    nothing else was compared. As there, a change is one whose interval excludes 0."""
    compared = [s for s in sections if s.compares and s.difference][1:]
    said = []
    for direction, verb in ((-1, "Lower"), (1, "Higher")):
        parts = [
            f"{s.title[:1].lower()}{s.title[1:]} ({points(s.difference.value)} points, "
            f"{points_range(s.difference.ci95)})"
            for s in compared
            if s.difference.direction == direction
        ]
        if parts:
            said.append(f"{verb}: {', '.join(parts)}.")
    return " ".join(said) or ("No other clear change." if compared else "")
