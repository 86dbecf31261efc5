"""The report as one HTML file that works offline.

Owns what the page holds and in which order; how it looks is in `templates/` and `style.css`, and
`browse.js` adds to its filters what HTML alone cannot. Its policy header lets a browser load
nothing but what is inside the file, and run that one script alone, named by its hash. What enters a
template is escaped, so text from outside (prompts) cannot become markup.
"""

import base64
import dataclasses
import hashlib
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from srum_jax.report import browsing, candidates, charts, numbers, suite_sections, verdict
from srum_jax.report.adjusting import Adjusting
from srum_jax.report.benchmarks import NOT_PUBLISHED
from srum_jax.report.browsing import OUTCOMES, Browser
from srum_jax.report.candidates import ScoredPictures
from srum_jax.report.environment import templates
from srum_jax.report.items import Item
from srum_jax.report.judging import Judging
from srum_jax.report.suite_sections import Section
from srum_jax.report.training import RELEASED, Chosen, TrainingSummary

# What a round may have beside sections of results: its field, template, title, how to read it.
PARTS = (
    (
        "adjusting",
        "adjusting_part.html.j2",
        "What was kept",
        "Models between the base and the trained one, tried on validation data that nothing else "
        "uses. Changes are to the base, in points.",
    ),
    (
        "chosen",
        "chosen.html.j2",
        "What it was trained on",
        "Some of the chosen pictures, evenly from the highest score to the lowest, with the weight "
        "that this run gave each of their tokens.",
    ),
    (
        "judging",
        "judging.html.j2",
        "The model as its own judge",
        "AUC: the chance that something right gets a higher score than something wrong. 0.5 is a "
        "coin toss, 1 is perfect. No score is never counted as a low score.",
    ),
    (
        "scored",
        "scored.html.j2",
        "What the model scored",
        "Boxes carry the model's score of that region, from \u22121 (wrong) to +1 (right): blue "
        "line for 0 and above, dashed orange below, dotted where there is no score.",
    ),
    (
        "training",
        "training.html.j2",
        "Training",
        "Over optimiser steps. Pale: every logged step; strong: running mean.",
    ),
)
FIRSTS = 4  # pairs at the top of the page
COLOURS = ("base", "trained", "oracle")  # of models in turn


@dataclasses.dataclass(frozen=True)
class Round:
    """One round. shown: items with pictures by the key of their section; items: all of them; kept:
    the measurement of the model that it leaves, where that is another than the trained one."""

    number: int
    sections: tuple[Section, ...] = ()
    shown: Mapping[str, Sequence[Item]] = dataclasses.field(default_factory=dict)
    items: Mapping[str, Sequence[Item]] = dataclasses.field(default_factory=dict)
    judging: Judging = Judging()
    scored: ScoredPictures = ScoredPictures()
    training: TrainingSummary = TrainingSummary()
    adjusting: Adjusting = Adjusting()
    kept: "Round | None" = None

    @property
    def chosen(self) -> Chosen:
        """Some of what was trained on."""
        return self.training.chosen

    @property
    def final(self) -> "Round":
        """What the first screen is about: the model that the round leaves."""
        return self.kept if self.kept and self.kept.sections else self

    def section(self, key: str) -> Section | None:
        """The section of that key, None where there is none."""
        return next((s for s in self.sections if s.key == key), None)

    def browser(self, key: str) -> Browser:
        """The items of a section."""
        place = f"{key}-{self.number}"
        return browsing.browser(place, self.shown.get(key, ()), self.items.get(key, ()))


@dataclasses.dataclass(frozen=True)
class RunReport:
    """Everything the report shows. facts: "run" of results.json; stages: its timings by name."""

    facts: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    rounds: tuple[Round, ...]

    @property
    def name(self) -> str:
        """The config's file, without its folder and ending."""
        return str(self.facts.get("config", "run")).rsplit("/", 1)[-1].removesuffix(".py")

    @property
    def measured(self) -> Round:
        """The last round in which something was measured."""
        return next((r for r in reversed(self.rounds) if r.sections), Round(0))


@dataclasses.dataclass(frozen=True)
class Part:
    """A section of the page; about: its line on how to read it; rounds: those that have it, none
    where it is about the whole run."""

    id: str
    title: str
    about: str
    template: str
    rounds: tuple[Round, ...] = ()


def parts(run: RunReport) -> list[Part]:
    """The sections of the page, in order; what there is nothing of is left out."""
    titled = {s.key: (s.title, s.about) for r in run.rounds for s in r.sections}
    keys = dict.fromkeys(
        [*titled, *(key for r in run.rounds for kept in (r.shown, r.items) for key in kept)]
    )
    found = [
        Part(
            key,
            *titled.get(key, (f"Examples: {suite_sections.title(key)}", "")),
            "measured.html.j2",
            tuple(r for r in run.rounds if r.section(key) or r.browser(key)),
        )
        for key in keys
    ]
    found += [
        Part(key, title, about, template, tuple(r for r in run.rounds if getattr(r, key)))
        for key, template, title, about in PARTS
    ]
    found = [part for part in found if part.rounds]
    if run.stages:
        about = (
            "Wall-clock seconds of each stage, compilation included; devices are without work "
            "while no call is on them; memory is the highest of the host process."
        )
        found.append(Part("stages", "Time and memory", about, "stages.html.j2"))
    if run.facts:
        about = "The configuration, seed and versions behind these numbers."
        found.append(Part("run", "This run", about, "facts.html.j2"))
    return found


def render(run: RunReport) -> str:
    """The text of the HTML file."""
    inside = importlib.resources.files("srum_jax.report")
    style, script = (inside.joinpath(name).read_text() for name in ("style.css", "browse.js"))
    last = run.measured
    return (
        templates()
        .get_template("page.html.j2")
        .render(
            run=run,
            last=last,
            headline=verdict.headline(last.final.sections),
            lede=lede(run),
            changes=Changes.of(last.final.sections),
            first=first_pictures(last.final),
            parts=parts(run),
            names=suite_sections.NAMES,
            outcome_titles=OUTCOMES,
            released=RELEASED,
            not_published=NOT_PUBLISHED,
            chart=charts,
            strip=charts.strip,
            colour=colour,
            view=candidates.VIEW,
            style=Markup(style),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def colour(section: Section, model: str) -> str:
    """The kind of mark a model has in a section's charts: the same names always look the same."""
    fixed = {"base": "base", "trained": "trained", "random": "base", "self": "trained"}
    place = section.names.index(model)
    return fixed.get(model, COLOURS[min(place, len(COLOURS) - 1)])


@dataclasses.dataclass(frozen=True)
class Changes:
    """What training changed, of every section that compares base and trained, on one scale of
    ±reach of each section's own: (verdict, sections), the losses first."""

    groups: tuple[tuple[str, tuple[Section, ...]], ...]
    reach: float

    @classmethod
    def of(cls, found: Sequence[Section]) -> "Changes":
        """Those among the sections of a round."""
        groups = tuple((title, tuple(some)) for title, some in verdict.groups(found))
        pairs = [
            (s.difference.value / s.scale.width, cls.interval(s))
            for _, some in groups
            for s in some
        ]
        return cls(groups, charts.reach(*pairs) if pairs else 0.0)

    @staticmethod
    def interval(section: Section) -> tuple[float, float]:
        """Of a difference, as a share of the section's scale."""
        lo, hi = section.difference.ci95
        return lo / section.scale.width, hi / section.scale.width

    @property
    def shares(self) -> bool:
        """Whether all of them are shares."""
        return all(s.scale.share for _, some in self.groups for s in some)


@dataclasses.dataclass(frozen=True)
class First:
    """A pair for the top of the page: what became of it, how many others did (None: not counted),
    of which section."""

    outcome: str
    n: int | None
    section: str
    item: Item


def first_pictures(last: Round) -> list[First]:
    """Before and after, of every outcome: gained, lost, kept, still wrong; of values the largest
    gain and loss, and the best and the worst that stayed.

    The first section that has pictures of two models gives what it can, the next ones what it
    lacks. Of an outcome it is the first item kept, so that none is chosen by its looks.
    """
    found: dict[str, First] = {}
    for drawn in (True, False):
        for section in last.sections:
            kept = [i for i in last.shown.get(section.key, ()) if _comparable(i, drawn)]
            if not section.compares:
                continue
            counts = dict(section.outcomes)
            for outcome, item in _firsts(kept):
                one = First(outcome, counts.get(outcome), section.title, item)
                found.setdefault(outcome, one)
            if len(found) >= FIRSTS:
                return list(found.values())[:FIRSTS]
    return list(found.values())


def _comparable(item: Item, drawn: bool) -> bool:
    """Whether two replies can be seen beside each other: pictures, or texts about one."""
    if len(item.replies) != 2:
        return False
    if drawn:
        return all(reply.picture and reply.picture.uri for reply in item.replies)
    return bool(item.given and item.given.uri) and all(reply.text for reply in item.replies)


def _firsts(kept: Sequence[Item]) -> list[tuple[str, Item]]:
    by_outcome = dict(browsing.by_outcome(kept))
    right = [name for name in ("second", "first", "both", "neither") if name in by_outcome]
    firsts = [(name, by_outcome[name][0]) for name in right]
    marked = [item for item in kept if item.outcome in ("up", "down", "even")]
    if not marked:
        return firsts
    chosen: dict[str, Item] = {}
    for name, worth in _EXTREMES.items():
        left = [item for item in marked if not any(item is one for one in chosen.values())]
        best = max(left, key=worth, default=None)
        if best and (name in ("high", "low") or worth(best) > 0):
            chosen[name] = best
    return firsts + list(chosen.items())


_EXTREMES = {
    "up": lambda item: item.change,
    "down": lambda item: -item.change,
    "high": lambda item: min(reply.value for reply in item.replies),
    "low": lambda item: -max(reply.value for reply in item.replies),
}


def lede(run: RunReport) -> str:
    """What was run, in a few sentences."""
    trained = [r.training.facts for r in run.rounds if r.training.facts]
    drawn = run.stages.get("generate", {}).get("items")
    said = []
    if drawn:
        said.append(f"The model drew {numbers.count(drawn)} pictures and scored them itself.")
    auc = run.measured.judging.image_auc
    if auc is not None:
        said.append(
            f"Its scores tell right pictures from wrong ones with an AUC of {auc:.3f} (0.5 is a "
            "coin toss, 1 is perfect)."
        )
    said += [
        f"{s.against}: {s.scale.change(s.difference.value)} {s.scale.unit} "
        f"({s.scale.changes(s.difference.ci95)})."
        for s in run.measured.sections
        if s.difference and not s.compares
    ]
    if trained:
        steps = numbers.count(sum(facts.get("steps", 0) for facts in trained))
        rounds = f" in {len(trained)} rounds" if len(trained) > 1 else ""
        said.append(f"It was then trained for {steps} steps{rounds}.")
        said.append(next(r.training.selection for r in reversed(run.rounds) if r.training.facts))
        if any("stopped_at" in facts for facts in trained):
            said.append("The monitor stopped it early.")
    where = [
        f"{name} {run.facts[key]}"
        for key, name in (("seed", "Seed"), ("device", "on"))
        if key in run.facts
    ]
    return " ".join(filter(None, [*said, f"{', '.join(where)}." if where else ""]))
