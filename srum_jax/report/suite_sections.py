"""What was measured, as the report shows it: sections of numbers with their intervals.

Owns how a round of results.json becomes sections, whichever suite wrote them. No number is computed
here but the share of a count: intervals and differences are those that `evaluate` wrote.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from srum_jax.report import benchmarks
from srum_jax.report.benchmarks import Details
from srum_jax.report.scales import Interval, Scale


@dataclasses.dataclass(frozen=True)
class Score:
    """What one model's replies to n items are worth, on the section's scale.

    ci95: None where none was written · correct: how many are right, None where that is not counted
    · failed: how many replies could not be used.
    """

    n: int
    value: float
    ci95: Interval | None = None
    by_category: Mapping[str, "Score"] = dataclasses.field(default_factory=dict)
    correct: float | None = None
    failed: int = 0

    @property
    def low(self) -> float:
        """The lower end of what is drawn of it."""
        return self.ci95[0] if self.ci95 else self.value


@dataclasses.dataclass(frozen=True)
class Difference:
    """Second model minus first on the same items, in the section's unit.

    first_only, second_only: items that one of them alone got right; None where not counted.
    """

    value: float
    ci95: Interval
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
    which difference `difference` is; details: how a benchmark was asked and scored.
    """

    key: str
    title: str
    about: str
    unit: str
    models: Mapping[str, Score]
    difference: Difference | None = None
    against: str = ""
    scale: Scale = Scale()
    details: Details | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models."""
        return tuple(self.models)

    @property
    def compares(self) -> bool:
        """Whether it compares the model before and after training."""
        return self.names == ("base", "trained")

    @property
    def void(self) -> bool:
        """Whether no reply of some model could be used: its numbers are no result."""
        return any(one.n and one.failed >= one.n for one in self.models.values())

    @property
    def judged(self) -> bool:
        """Whether it says something about the change that training made."""
        return self.compares and self.difference is not None and not self.void

    @property
    def metric(self) -> str:
        """What the numbers are, in words."""
        return self.details.metric if self.details else "right answers"

    @property
    def counted(self) -> str:
        """What rose or fell, in words."""
        if self.details is None:
            return f"right {self.unit}"
        return f"{self.title}, {self.details.metric},"

    @property
    def categories(self) -> tuple[str, ...]:
        """Those that all models have."""
        first, *others = self.models.values()
        return tuple(
            name for name in first.by_category if all(name in o.by_category for o in others)
        )

    @property
    def rows(self) -> list["Row"]:
        """The whole, then every category, where there are several."""
        categories = [
            Row(name, {key: model.by_category[name] for key, model in self.models.items()})
            for name in self.categories
            if len(self.categories) > 1
        ]
        return [Row("all", self.models, self.difference), *categories]

    @property
    def drawn_from(self) -> float:
        """Where its axis starts, 0 at the worst: where all is above one half, that half shows
        more."""
        shown = [s for model in self.models.values() for s in (model, *model.by_category.values())]
        lowest = min((self.scale.at(s.low) for s in shown), default=0.0)
        return 0.5 if lowest >= 0.5 else 0.0

    @property
    def ends(self) -> tuple[str, str, str]:
        """What stands at the start, the middle and the end of its axis."""
        lo = self.drawn_from
        at = (self.scale.worst + self.scale.width * x for x in (lo, (1 + lo) / 2, 1.0))
        if self.scale.share:
            return tuple(f"{100 * x:.0f}{end}" for x, end in zip(at, ("", "", " %"), strict=True))
        return tuple(f"{x:g}".replace("-", "\u2212") for x in at)

    @property
    def outcomes(self) -> tuple[tuple[str, int], ...]:
        """(kind, items) right for both, only the second, only the first, neither; () unknown."""
        d, correct = self.difference, next(iter(self.models.values())).correct
        if d is None or len(self.models) != 2 or d.n is None or correct is None:
            return ()
        if d.first_only is None or d.second_only is None:
            return ()
        both = round(correct) - d.first_only
        neither = d.n - both - d.first_only - d.second_only
        kinds = ("both", "second", "first", "neither")
        return tuple(zip(kinds, (both, d.second_only, d.first_only, neither), strict=True))


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a section's table. difference: with its interval, where one was written."""

    name: str
    models: Mapping[str, Score]
    difference: Difference | None = None

    @property
    def n(self) -> int:
        """How many items."""
        return next(iter(self.models.values())).n

    @property
    def change(self) -> float:
        """Second model minus first."""
        first, second = list(self.models.values())[:2]
        return second.value - first.value


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


def title(key: str) -> str:
    """What a reader calls the section of that key."""
    return CONTRACT[key][0].lower() if key in CONTRACT else key.replace("_", " ")


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
    """One section from its JSON, {"title", "models", and where there "about", "unit", "paired"}: of
    accuracy sections, or of a benchmark. Raises ValueError naming the field that is missing."""
    try:
        paired, unit = value.get("paired"), str(value.get("unit", "items"))
        given = {name: part for name, part in value["models"].items() if part}
        benchmark = any("strict" in part for part in given.values())
        models = {
            name: _measured(part, value["metric"]) if benchmark else score(part)
            for name, part in given.items()
        }
        return Section(
            key=key,
            title=str(value["title"]),
            about=str(value.get("about", "")),
            unit=unit,
            models={name: one for name, one in models.items() if one},
            difference=difference(paired) if paired else None,
            against=(paired or {}).get("against") or _against(list(models), unit),
            scale=benchmarks.scale(value),
            details=benchmarks.details(value) if benchmark else None,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
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


def score(value: Mapping[str, Any]) -> Score:
    """From an accuracy section: {"n", "correct"}, and where there "ci95", "by_category"."""
    return Score(
        n=value["n"],
        value=value["correct"] / value["n"],
        ci95=tuple(value["ci95"]) if "ci95" in value else None,
        by_category={name: score(v) for name, v in value.get("by_category", {}).items()},
        correct=value["correct"],
    )


def _measured(value: Mapping[str, Any], metric: str) -> Score | None:
    """From one model's part of a benchmark; None where the metric is not defined."""
    if metric not in value["strict"]:
        return None
    categories = {
        name: Score(one["n"], one[metric])
        for name, one in value["by_category"].items()
        if metric in one and "n" in one
    }
    ci95 = value["ci95"].get(metric)
    return Score(
        n=value["n"],
        value=value["strict"][metric],
        ci95=None if ci95 is None else tuple(ci95),
        by_category=categories,
        failed=value["failed"],
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
