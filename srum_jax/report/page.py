"""The report as one HTML file that works offline.

Owns what the page holds and in which order; how it looks is in `templates/` and `style.css`. Its
policy header lets a browser load nothing but what is inside the file, and what enters a template is
escaped, so text from outside (prompts) cannot become markup.
"""

import dataclasses
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from srum_jax.report import candidates, charts, numbers, suite_sections
from srum_jax.report.candidates import ScoredPictures
from srum_jax.report.environment import templates
from srum_jax.report.items import Item
from srum_jax.report.judging import Judging
from srum_jax.report.suite_sections import Section
from srum_jax.report.training import RELEASED, TrainingSummary

MAX_SHOWN = 16  # items with pictures shown of each outcome
GROUPED = 8  # up to so many items with pictures are not grouped by outcome
OUTCOMES = {
    "second": "Right only when trained",
    "first": "Right only in the base",
    "both": "Right both times",
    "neither": "Wrong both times",
    "right": "Right",
    "wrong": "Wrong",
}
# What a round may have beside sections of results: its field and template, title, how to read it.
PARTS = (
    (
        "judging",
        "The model as its own judge",
        "AUC: the chance that something right gets a higher score than something wrong. 0.5 is a "
        "coin toss, 1 is perfect. No score is never counted as a low score.",
    ),
    (
        "scored",
        "What the model scored",
        "Boxes carry the model's score of that region, from \u22121 (wrong) to +1 (right): blue "
        "line for 0 and above, dashed orange below, dotted where there is no score.",
    ),
    (
        "training",
        "Training",
        "Over optimiser steps. Pale: every logged step; strong: running mean.",
    ),
)
COLOURS = ("base", "trained", "oracle")  # of models in turn


@dataclasses.dataclass(frozen=True)
class Round:
    """One round. shown: items with pictures by the key of their section; items: all of them."""

    number: int
    sections: tuple[Section, ...] = ()
    shown: Mapping[str, Sequence[Item]] = dataclasses.field(default_factory=dict)
    items: Mapping[str, Sequence[Item]] = dataclasses.field(default_factory=dict)
    judging: Judging = Judging()
    scored: ScoredPictures = ScoredPictures()
    training: TrainingSummary = TrainingSummary()

    def section(self, key: str) -> Section | None:
        """The section of that key, None where there is none."""
        return next((s for s in self.sections if s.key == key), None)

    def groups(self, key: str) -> list[tuple[str, int, list[Item]]]:
        """(title, how many, those shown) of the items of a section that have pictures."""
        kept = list(self.shown.get(key, ()))
        if len(kept) <= GROUPED:
            return [("", len(kept), kept)] if kept else []
        return [(title, len(found), found[:MAX_SHOWN]) for title, found in _by_outcome(kept)]

    def failures(self, key: str) -> list[tuple[str, list[Item]]]:
        """(title, items) of a section that not every model got right."""
        return _by_outcome([item for item in self.items.get(key, ()) if item.failed])


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
    keys = dict.fromkeys([*titled, *(key for r in run.rounds for key in r.shown)])
    found = [
        Part(
            key,
            *titled.get(key, (f"Examples: {numbers.words(key)}", "")),
            "measured.html.j2",
            tuple(r for r in run.rounds if r.section(key) or r.shown.get(key)),
        )
        for key in keys
    ]
    found += [
        Part(key, title, about, f"{key}.html.j2", tuple(r for r in run.rounds if getattr(r, key)))
        for key, title, about in PARTS
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
    style = importlib.resources.files("srum_jax.report").joinpath("style.css").read_text()
    last = run.measured
    return (
        templates()
        .get_template("page.html.j2")
        .render(
            run=run,
            headline=suite_sections.headline(last.sections),
            elsewhere=suite_sections.elsewhere(last.sections),
            lede=lede(run),
            changes=Changes.of(last.sections),
            first=first_pictures(last),
            parts=parts(run),
            names=suite_sections.NAMES,
            outcome_titles=OUTCOMES,
            released=RELEASED,
            chart=charts,
            strip=charts.strip,
            colour=colour,
            view=candidates.VIEW,
            style=Markup(style),
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
    ±reach."""

    sections: tuple[Section, ...]
    reach: float

    @classmethod
    def of(cls, found: Sequence[Section]) -> "Changes":
        """Those among the sections of a round."""
        shown = tuple(s for s in found if s.compares and s.difference)
        pairs = [(s.difference.value, s.difference.ci95) for s in shown]
        return cls(shown, charts.reach(*pairs) if pairs else 0.0)


def first_pictures(last: Round) -> list[tuple[str, int | None, Item]]:
    """(outcome, how many items had it, the first kept item with it) for the top of the page.

    Of the first section that has pictures of two models; one of each outcome, so that none is
    chosen by its looks.
    """
    for section in last.sections:
        kept = [i for i in last.shown.get(section.key, ()) if all(r.picture for r in i.replies)]
        if section.compares and kept:
            counts = dict(section.outcomes)
            firsts = {item.outcome: item for item in reversed(kept)}
            return [(OUTCOMES[o], counts.get(o), firsts[o]) for o in OUTCOMES if o in firsts]
    return []


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
        f"{s.against}: {numbers.points(s.difference.value)} points "
        f"({numbers.points_range(s.difference.ci95)})."
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


def _by_outcome(items: Sequence[Item]) -> list[tuple[str, list[Item]]]:
    found = {outcome: [i for i in items if i.outcome == outcome] for outcome in OUTCOMES}
    return [(OUTCOMES[outcome], some) for outcome, some in found.items() if some]
