"""The items of a section to browse: pictures by what became of them, and every item by category.

Owns which items are shown, in which order, and what a filter finds them by.
"""

import dataclasses
from collections.abc import Sequence

from srum_jax.report import numbers
from srum_jax.report.items import Item

MAX_SHOWN = 16  # items with pictures shown of each outcome
GROUPED = 8  # up to so many items with pictures are not grouped by outcome
MAX_LISTED = 600  # items listed of a section, those that failed before others
OUTCOMES = {
    "second": "Right only when trained",
    "first": "Right only in the base",
    "both": "Right both times",
    "neither": "Wrong both times",
    "right": "Right",
    "wrong": "Wrong",
    "up": "Higher when trained",
    "down": "Lower when trained",
    "even": "The same both times",
    "value": "With a mark",
    "high": "High both times",
    "low": "Low both times",
    "unknown": "Not judged",
}
# What went wrong comes first: what was lost, what was gained, what stays wrong.
_ORDER = ("first", "second", "neither", "wrong", "down", "up", "even", "value", "unknown")
_ORDER += ("both", "right")


@dataclasses.dataclass(frozen=True)
class Category:
    """Items of one kind; anchor: the id of their place in the page."""

    name: str
    anchor: str
    items: tuple[Item, ...]

    @property
    def said(self) -> str:
        """How many there are, and how many each model got wrong."""
        wrong: dict[str, int] = {}
        for reply in (reply for item in self.items for reply in item.replies):
            if reply.right is not None:
                wrong[reply.model] = wrong.get(reply.model, 0) + (not reply.right)
        counts = ", ".join(f"{model} {numbers.count(n)}" for model, n in wrong.items())
        return numbers.count(len(self.items)) + (f"; wrong: {counts}" if counts else "")


@dataclasses.dataclass(frozen=True)
class Browser:
    """cards: (title, how many, those shown) of items with pictures · categories: every item that is
    listed · total: how many items there are · failed: how many of them not every model got right ·
    models: whose replies they hold."""

    cards: tuple[tuple[str, int, tuple[Item, ...]], ...] = ()
    categories: tuple[Category, ...] = ()
    total: int = 0
    failed: int = 0
    models: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.cards or self.categories)

    @property
    def listed(self) -> tuple[Item, ...]:
        """In the order of the page."""
        return tuple(item for category in self.categories for item in category.items)

    @property
    def left_out(self) -> int:
        """How many items are not listed."""
        return self.total - len(self.listed) if self.categories else 0

    @property
    def verdicts(self) -> tuple[str, ...]:
        """ "right" and "wrong", or how values changed: what can be asked for."""
        shown = {item.outcome for item in (*self.listed, *(i for _, _, s in self.cards for i in s))}
        judged = {"second", "first", "both", "neither", "right", "wrong"}
        return ("right", "wrong") if shown & judged else ()

    @property
    def changes(self) -> tuple[tuple[str, str], ...]:
        """(outcome, title) of values that can be asked for."""
        shown = {item.outcome for item in (*self.listed, *(i for _, _, s in self.cards for i in s))}
        return tuple((name, OUTCOMES[name]) for name in ("up", "down", "even") if name in shown)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Categories of all that is shown."""
        every = (*self.listed, *(item for _, _, some in self.cards for item in some))
        return tuple(dict.fromkeys(item.kind for item in every if item.kind))

    @property
    def anchors(self) -> dict[str, str]:
        """{category: the id of its place}."""
        return {category.name: category.anchor for category in self.categories}


def browser(key: str, shown: Sequence[Item], items: Sequence[Item]) -> Browser:
    """Of the items of a section. key: unique on the page; shown: those with pictures."""
    every = (*items, *shown)
    return Browser(
        cards=tuple(_cards(shown)),
        categories=tuple(_categories(key, items)),
        total=len(items),
        failed=sum(item.failed for item in items),
        models=tuple(dict.fromkeys(reply.model for item in every for reply in item.replies)),
    )


def by_outcome(items: Sequence[Item]) -> list[tuple[str, tuple[Item, ...]]]:
    """(outcome, items with it), in the order of OUTCOMES."""
    found = {name: tuple(i for i in items if i.outcome == name) for name in OUTCOMES}
    return [(name, some) for name, some in found.items() if some]


def _place(outcome: str) -> int:
    return _ORDER.index(outcome)


def _cards(shown: Sequence[Item]):
    if shown and len(shown) <= GROUPED:
        yield "", len(shown), tuple(shown)
        return
    found = dict(by_outcome(shown))
    for name in sorted(found, key=_place):
        yield OUTCOMES[name], len(found[name]), found[name][:MAX_SHOWN]


def _categories(key: str, items: Sequence[Item]):
    ordered = sorted(items, key=lambda item: (_place(item.outcome), item.change))
    listed = ordered[:MAX_LISTED]
    names = dict.fromkeys(item.kind for item in items)
    for number, name in enumerate(names):
        found = tuple(item for item in listed if item.kind == name)
        if found:
            yield Category(name, f"{key}-items-{number}", found)
