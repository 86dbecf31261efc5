"""The prompts of the shapes world: what can be said, in which words, and which split it is in.

Owns `Content` (what a prompt demands, without its wording), its wordings, the grammar that reads a
prompt back, and the split law: contents are ranked by a hash inside their category (and apart for
those with held-out pairs), the first 60 % are train, the next 10 % validation, the rest test.
Two wordings of one content ("A left of B", "B right of A") are always in one split.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from srum_jax.data.shapes_render import COLORS, SHAPES, Pair, Scene, Thing, pick, shuffled

SPLITS = ("train", "validation", "test")
CATEGORIES = ("single", "attr", "spatial", "count", "triple")
PAIRS: tuple[Pair, ...] = tuple(itertools.product(COLORS, SHAPES))
HELD_OUT: frozenset[Pair] = frozenset(
    {
        ("red", "triangle"),
        ("green", "cross"),
        ("blue", "circle"),
        ("yellow", "square"),
        ("purple", "cross"),
        ("cyan", "triangle"),
    }
)
RELATIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
RELATION_WORDS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
NUMBERS = ("zero", "one", "two", "three", "four")
# Single and count have few contents; this salt spreads colours and shapes evenly over their splits.
_SALT = (4378).to_bytes(2, "big")
_SHARE = {"train": 0.6, "validation": 0.1}


@dataclass(frozen=True)
class Content:
    """What a prompt demands: exactly these pairs, and for spatial a relation.

    `pairs` is sorted, but for spatial it is (A, B) with `relation` "left" or "above" from A to B.
    The category "mixed" (two alike and one other) describes scenes; no prompt has it.
    """

    category: str
    pairs: tuple[Pair, ...]
    relation: str = ""

    @property
    def held_out(self) -> bool:
        return any(pair in HELD_OUT for pair in self.pairs)


@dataclass(frozen=True)
class Prompt:
    """A prompt's words, its category, and whether it names a pair held out of pretraining."""

    text: str
    category: str
    held_out: bool


def content_of(pairs: Sequence[Pair]) -> Content:
    """The content, without relation, of a scene of one to three pairs."""
    pairs = tuple(sorted(pairs))
    kinds = len(set(pairs))
    if len(pairs) == 1:
        return Content("single", pairs)
    if kinds == 1:
        return Content("count", pairs)
    if kinds < len(pairs):
        return Content("mixed", pairs)
    return Content("attr" if len(pairs) == 2 else "triple", pairs)


def spatial(first: Pair, relation: str, second: Pair) -> Content:
    """The content of "first <relation> second", right and below turned into left and above."""
    if relation in ("right", "below"):
        first, relation, second = second, OPPOSITE[relation], first
    return Content("spatial", (first, second), relation)


def name(pair: Pair) -> str:
    """ "a red circle" """
    return f"a {pair[0]} {pair[1]}"


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def wordings(content: Content) -> tuple[str, ...]:
    """Every prompt text with this content (1, 2 or 6)."""
    if content.category == "mixed":
        return ()
    if content.category == "single":
        return (name(content.pairs[0]),)
    if content.category == "count":
        color, shape = content.pairs[0]
        return (f"{NUMBERS[len(content.pairs)]} {color} {plural(shape)}",)
    if content.category == "spatial":
        a, b = content.pairs
        back = OPPOSITE[content.relation]
        return (
            f"{name(a)} {RELATION_WORDS[content.relation]} {name(b)}",
            f"{name(b)} {RELATION_WORDS[back]} {name(a)}",
        )
    orders = itertools.permutations(name(p) for p in content.pairs)
    joint = "{} and {}" if content.category == "attr" else "{} , {} and {}"
    return tuple(joint.format(*order) for order in orders)


@functools.lru_cache(maxsize=65536)
def parse(text: str) -> Content:
    """The content of a prompt's text.  ValueError for a text outside the grammar."""
    words = text.lower().replace(",", " , ").split()
    try:
        content = _parse_words(words)
    except (ValueError, IndexError):
        content = None
    if content is None:
        raise ValueError(
            f"prompt {text!r} is not of the shapes world: see "
            "srum_jax/data/shapes_language.py for its five forms"
        )
    return content


def _parse_words(words: list[str]) -> Content | None:
    singular = {plural(s): s for s in SHAPES}
    if len(words) == 3 and words[0] in ("two", "three"):
        pair = (words[1], singular.get(words[2], ""))
        return Content("count", (pair,) * NUMBERS.index(words[0])) if pair in PAIRS else None
    pairs, links, at = [], [], 0
    while at < len(words):
        pair = tuple(words[at + 1 : at + 3])
        if words[at] != "a" or pair not in PAIRS:
            return None
        pairs.append(pair)
        end = words.index("a", at + 1) if "a" in words[at + 1 :] else len(words)
        links.append(" ".join(words[at + 3 : end]))
        at = end
    if links[-1] or len(set(pairs)) != len(pairs):
        return None
    links = links[:-1]
    if links in ([], ["and"], [",", "and"]):
        return content_of(pairs)
    phrases = {phrase: relation for relation, phrase in RELATION_WORDS.items()}
    if len(links) == 1 and links[0] in phrases:
        return spatial(pairs[0], phrases[links[0]], pairs[1])
    return None


def _hash(content: Content) -> int:
    text = f"{content.category}|{content.pairs}|{content.relation}"
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=_SALT).digest()
    return int.from_bytes(digest, "big")


@functools.lru_cache(maxsize=1)
def _everything() -> dict[str, tuple[Content, ...]]:
    """All contents by category, in a fixed order."""
    couples = tuple(itertools.combinations(PAIRS, 2))
    return {
        "single": tuple(content_of([p]) for p in PAIRS),
        "attr": tuple(content_of(c) for c in couples),
        "spatial": tuple(spatial(a, r, b) for a, b in couples for r in RELATIONS),
        "count": tuple(content_of([p] * n) for p in PAIRS for n in (2, 3)),
        "triple": tuple(content_of(c) for c in itertools.combinations(PAIRS, 3)),
        "mixed": tuple(content_of([a, a, b]) for a, b in itertools.permutations(PAIRS, 2)),
    }


@functools.lru_cache(maxsize=1)
def _split_table() -> dict[Content, str]:
    table = {}
    for group in _everything().values():
        for held_out in (False, True):
            ranked = sorted((c for c in group if c.held_out == held_out), key=_hash)
            first = round(_SHARE["train"] * len(ranked))
            second = first + max(round(_SHARE["validation"] * len(ranked)), 1)
            for i, content in enumerate(ranked):
                table[content] = SPLITS[(i >= first) + (i >= second)]
    return table


def split_of(content: Content) -> str:
    """ "train", "validation" or "test"; the law of the whole world.  KeyError if impossible."""
    return _split_table()[content]


@functools.cache
def contents(split: str, category: str, held_out: bool = True) -> tuple[Content, ...]:
    """The contents of a category (or "mixed") in a split; held_out=False leaves those out."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    return tuple(
        c for c in _everything()[category] if split_of(c) == split and (held_out or not c.held_out)
    )


@functools.cache
def prompts(split: str) -> tuple[Prompt, ...]:
    """Every content of the split as one prompt, its wording picked by the content's hash."""
    found = []
    for category in CATEGORIES:
        for content in contents(split, category):
            texts = wordings(content)
            text = texts[(_hash(content) >> 7) % len(texts)]
            found.append(Prompt(text, category, content.held_out))
    return tuple(found)


def balanced_prompts(split: str, count: int, seed: int = 0) -> tuple[Prompt, ...]:
    """`count` different prompts of the split, taken in turn from the categories.

    A category that runs out (there are few single prompts) leaves its turns to the others.
    The first n of a longer list are the shorter list.  ValueError if the split has too few.
    """
    everything = prompts(split)
    if not 0 < count <= len(everything):
        raise ValueError(f"{count} prompts asked of split {split!r}: give 1..{len(everything)}")
    rng = random.Random(seed)
    queues = [shuffled(rng, [p for p in everything if p.category == c]) for c in CATEGORIES]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    return tuple(itertools.islice((p for p in turns if p is not None), count))


def holds(first: Thing, relation: str, second: Thing) -> bool:
    """Whether first is strictly left of / right of / above / below second, by cells."""
    if relation in ("right", "below"):
        first, relation, second = second, OPPOSITE[relation], first
    return first.col < second.col if relation == "left" else first.row < second.row


def scene_contents(scene: Scene) -> tuple[Content, ...]:
    """Every content that the scene shows exactly: its own, and its relations if it has a pair."""
    found = [content_of([t.pair for t in scene.things])]
    if found[0].category == "attr":
        a, b = scene.things
        found += [spatial(a.pair, r, b.pair) for r in RELATIONS if holds(a, r, b)]
    return tuple(c for c in found if c.category != "mixed")


def say(rng: random.Random, content: Content) -> str:
    """One of the content's wordings."""
    return pick(rng, wordings(content))


def same_things(content: Content, pairs: Sequence[Pair]) -> bool:
    """Whether these pairs are exactly the ones that the content demands."""
    return Counter(content.pairs) == Counter(pairs)
