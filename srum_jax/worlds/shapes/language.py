"""The prompts of the shapes world: what can be said, in which words, and which split it is in.

Owns `Content` (what a prompt demands, without its wording), its wordings, the grammar that reads a
prompt back, and the split rule: contents are ranked by a hash inside their category (and apart for
those with held-out pairs), the first 60 % are train, the next 10 % validation, the rest test.
Lists of five objects and more are too many to be ranked: their hash alone says it.
Two wordings of one content ("A left of B", "B right of A") are always in one split.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from srum_jax.core.errors import quoted
from srum_jax.core.registry import SPLITS
from srum_jax.worlds.shapes.rendering import (
    COLORS,
    SHAPES,
    SIZES,
    Pair,
    Scene,
    Thing,
    pick,
    shuffled,
)
from srum_jax.worlds.shapes.setting import SMALL, Setting

PAIRS: tuple[Pair, ...] = tuple(itertools.product(COLORS, SHAPES))
HELD_OUT: frozenset[Pair] = frozenset(
    {
        ("red", "triangle"),
        ("green", "cross"),
        ("blue", "circle"),
        ("yellow", "square"),
        ("purple", "cross"),
        ("cyan", "triangle"),
        ("pink", "circle"),
        ("white", "square"),
    }
)
RELATIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
RELATION_WORDS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FEW = 4  # objects of the categories up to "quad"; "many", "groups" and lists by number have more
LISTS = {2: "attr", 3: "triple", 4: "quad"} | {n: NUMBERS[n] for n in range(FEW + 1, 10)}
LISTED = {"train": 2400, "validation": 400, "test": 1200}  # prompts of each longer list
# Single and count have few contents; this salt spreads colours and shapes evenly over their splits.
_SALT = (4378).to_bytes(2, "big")
_SHARE = {"train": 0.6, "validation": 0.1}


@dataclass(frozen=True)
class Content:
    """What a prompt demands: exactly these pairs, for spatial a relation, and perhaps their sizes.

    `pairs` is sorted, but for spatial it is (A, B) with `relation` "left" or "above" from A to B.
    `sizes` ("small" or "big" of each pair) is empty where a prompt leaves them open; the categories
    single and size may state them. "count" and "many" are several alike, "groups" several of one
    kind and several of another, five objects or more together. The category "mixed" (some alike,
    and others) describes scenes; no prompt has it.
    """

    category: str
    pairs: tuple[Pair, ...]
    relation: str = ""
    sizes: tuple[str, ...] = ()

    @property
    def held_out(self) -> bool:
        return any(pair in HELD_OUT for pair in self.pairs)


@dataclass(frozen=True)
class ScenePrompt:
    """A prompt's words, its category, and whether it names a pair held out of pretraining."""

    text: str
    category: str
    held_out: bool


def content_of(pairs: Sequence[Pair]) -> Content:
    """The content, without relation and sizes, of a scene of one to nine pairs."""
    pairs = tuple(sorted(pairs))
    counts = Counter(pairs)
    if len(pairs) == 1:
        return Content("single", pairs)
    if len(counts) == 1:
        return Content("count" if len(pairs) <= FEW else "many", pairs)
    if len(counts) == len(pairs):
        return Content(LISTS[len(pairs)], pairs)
    two_groups = len(counts) == 2 and min(counts.values()) > 1 and len(pairs) > FEW
    return Content("groups" if two_groups else "mixed", pairs)


def sized(pairs: Sequence[Pair], sizes: Sequence[str]) -> Content:
    """The content of one or two different pairs, each of its size."""
    pairs, sizes = zip(*sorted(zip(pairs, sizes, strict=True)), strict=True)
    return Content("single" if len(pairs) == 1 else "size", pairs, sizes=sizes)


def spatial(first: Pair, relation: str, second: Pair) -> Content:
    """The content of "first <relation> second", right and below turned into left and above."""
    if relation in ("right", "below"):
        first, relation, second = second, OPPOSITE[relation], first
    return Content("spatial", (first, second), relation)


def name(pair: Pair, size: str = "") -> str:
    """ "a red circle", "a big red circle" """
    return " ".join(("a", *filter(None, (size,)), *pair))


def plural(shape: str) -> str:
    """The word for several of a shape."""
    return shape + ("es" if shape == "cross" else "s")


def several(pair: Pair, number: int) -> str:
    """ "two red circles" """
    return f"{NUMBERS[number]} {pair[0]} {plural(pair[1])}"


def ways_to_say(content: Content) -> int:
    """How many prompt texts have this content: 0 (mixed), or n! of n things to be named."""
    if content.category == "mixed":
        return 0
    return math.factorial(len(set(content.pairs)))


def wording(content: Content, number: int) -> str:
    """Text `number` (0 ≤ number < ways_to_say) with this content."""
    if content.category in ("count", "many", "groups"):
        alike = [several(pair, count) for pair, count in Counter(content.pairs).items()]
        return " and ".join(reversed(alike) if number else alike)
    sizes = content.sizes or ("",) * len(content.pairs)
    names = [name(pair, size) for pair, size in zip(content.pairs, sizes, strict=True)]
    if content.category == "spatial":
        relation = OPPOSITE[content.relation] if number else content.relation
        return f" {RELATION_WORDS[relation]} ".join(reversed(names) if number else names)
    *others, last = _order(names, number)
    return f"{' , '.join(others)} and {last}" if others else last


def wordings(content: Content) -> tuple[str, ...]:
    """Every prompt text with this content."""
    return tuple(wording(content, i) for i in range(ways_to_say(content)))


def _order(names: Sequence[str], number: int) -> list[str]:
    """Permutation `number` of the names, as `itertools.permutations` counts them."""
    left, found = list(names), []
    while left:
        place, number = divmod(number, math.factorial(len(left) - 1))
        found.append(left.pop(place))
    return found


@functools.lru_cache(maxsize=65536)
def parse(text: str, setting: Setting = SMALL) -> Content:
    """The content of a prompt's text.  ValueError for a text outside the setting's grammar."""
    words = text.lower().replace(",", " , ").split()
    try:
        content = _parse_words(words)
    except (ValueError, IndexError):
        content = None
    if content is None or len(content.pairs) > setting.most:
        raise ValueError(
            f"prompt {quoted(text)} is not of the shapes world: see "
            "srum_jax/worlds/shapes/language.py for its forms"
        )
    return content


def _parse_words(words: list[str]) -> Content | None:
    if words[0] in NUMBERS[2:]:
        return _parse_counts(words)
    pairs, sizes, links, at = [], [], [], 0
    while at < len(words):
        size = words[at + 1] if words[at + 1] in SIZES else ""
        first = at + 2 if size else at + 1
        pair = tuple(words[first : first + 2])
        if words[at] != "a" or pair not in PAIRS:
            return None
        pairs.append(pair)
        sizes.append(size)
        end = words.index("a", at + 1) if "a" in words[at + 1 :] else len(words)
        links.append(" ".join(words[first + 2 : end]))
        at = end
    if links[-1] or len(set(pairs)) != len(pairs):
        return None
    links = links[:-1]
    if any(sizes):
        return sized(pairs, sizes) if all(sizes) and links in ([], ["and"]) else None
    listing = [*[","] * (len(pairs) - 2), "and"] if len(pairs) > 1 else []
    if links == listing and len(pairs) <= max(LISTS):
        return content_of(pairs)
    phrases = {phrase: relation for relation, phrase in RELATION_WORDS.items()}
    if len(links) == 1 and links[0] in phrases:
        return spatial(pairs[0], phrases[links[0]], pairs[1])
    return None


def _parse_counts(words: list[str]) -> Content | None:
    """Of "two red circles" and "two red circles and three blue squares"."""
    singular = {plural(s): s for s in SHAPES}
    groups = [words[:3], words[4:]] if words[3:4] == ["and"] else [words]
    pairs: list[Pair] = []
    for number, color, noun in groups:  # ValueError for more or fewer words
        pair = (color, singular.get(noun, ""))
        if number not in NUMBERS[2:] or pair not in PAIRS or pair in pairs:
            return None
        pairs += [pair] * NUMBERS.index(number)
    content = content_of(pairs) if len(pairs) <= max(LISTS) else None
    return content if content and content.category in ("count", "many", "groups") else None


def _hash(content: Content) -> int:
    text = f"{content.category}|{content.pairs}|{content.relation}|{content.sizes}"
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=_SALT).digest()
    return int.from_bytes(digest, "big")


@functools.cache
def _all(category: str) -> tuple[Content, ...]:
    """All contents of a category (or "mixed"), in a fixed order."""
    couples = tuple(itertools.combinations(PAIRS, 2))
    if category == "single":
        return tuple(content_of([p]) for p in PAIRS) + tuple(
            sized([p], [size]) for p in PAIRS for size in SIZES
        )
    if category == "size":
        both = tuple(itertools.product(SIZES, repeat=2))
        return tuple(sized(c, sizes) for c in couples for sizes in both)
    if category == "spatial":
        return tuple(spatial(a, r, b) for a, b in couples for r in RELATIONS)
    if category in ("count", "many"):
        numbers = range(2, FEW + 1) if category == "count" else range(FEW + 1, max(LISTS) + 1)
        return tuple(content_of([p] * n) for p in PAIRS for n in numbers)
    if category == "groups":
        alike = [p for p in itertools.product(range(2, 8), repeat=2) if FEW < sum(p) <= max(LISTS)]
        return tuple(content_of([a] * n + [b] * m) for a, b in couples for n, m in alike)
    if category == "mixed":
        two_and_one = tuple(content_of([a, a, b]) for a, b in itertools.permutations(PAIRS, 2))
        two_and_two = tuple(content_of([a, a, b, b]) for a, b in couples)
        return two_and_one + two_and_two
    number = {"attr": 2, "triple": 3, "quad": 4}[category]
    return tuple(content_of(c) for c in itertools.combinations(PAIRS, number))


def _listed(category: str) -> int:
    """How many objects a list of more than FEW names; 0 for other categories."""
    return next((n for n, known in LISTS.items() if known == category and n > FEW), 0)


@functools.cache
def _split_table(category: str) -> dict[Content, str]:
    table = {}
    for held_out in (False, True):
        ranked = sorted((c for c in _all(category) if c.held_out == held_out), key=_hash)
        first = round(_SHARE["train"] * len(ranked))
        second = first + max(round(_SHARE["validation"] * len(ranked)), 1)
        for i, content in enumerate(ranked):
            table[content] = SPLITS[(i >= first) + (i >= second)]
    return table


def split_of(content: Content) -> str:
    """ "train", "validation" or "test"; the rule of the whole world.  KeyError if impossible."""
    if len(content.pairs) > FEW and content.category not in ("many", "groups"):
        share = _hash(content) / 2**64
        first, second = _SHARE["train"], _SHARE["train"] + _SHARE["validation"]
        return SPLITS[(share >= first) + (share >= second)]
    return _split_table(content.category)[content]


def draw(rng: random.Random, split: str, category: str, held_out: bool = True) -> Content:
    """A content of a category in a split, drawn evenly; held_out=False leaves held-out pairs out.

    Beside the categories of `contents` there is "crowd": five to nine objects, some of them alike.
    """
    number = _listed(category)
    if not number and category != "crowd":
        return pick(rng, contents(split, category, held_out))
    known = PAIRS if held_out else tuple(p for p in PAIRS if p not in HELD_OUT)
    while True:
        if number:
            pairs = shuffled(rng, known)[:number]
        else:
            few = shuffled(rng, known)[: pick(rng, (2, 3, 3, 4, 5))]
            pairs = [pick(rng, few) for _ in range(pick(rng, range(FEW + 1, max(LISTS) + 1)))]
        content = content_of(pairs)
        wanted = content.category == (category if number else "mixed")
        if wanted and split_of(content) == split:
            return content


@functools.cache
def contents(split: str, category: str, held_out: bool = True) -> tuple[Content, ...]:
    """The contents of a category (or "mixed") in a split; held_out=False leaves those out.

    Of a list of more than FEW objects, LISTED of them, drawn once and for all.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    if number := _listed(category):
        return tuple(c for c in _some_lists(number)[split] if held_out or not c.held_out)
    table = _split_table(category)
    return tuple(c for c in _all(category) if table[c] == split and (held_out or not c.held_out))


@functools.cache
def _some_lists(number: int) -> dict[str, tuple[Content, ...]]:
    """LISTED different lists of so many objects of each split."""
    rng = random.Random(number)
    found: dict[str, dict[Content, None]] = {split: {} for split in SPLITS}
    while any(len(found[split]) < count for split, count in LISTED.items()):
        content = content_of(shuffled(rng, PAIRS)[:number])
        split = split_of(content)
        if len(found[split]) < LISTED[split]:
            found[split][content] = None
    return {split: tuple(some) for split, some in found.items()}


@functools.cache
def prompts(split: str, setting: Setting = SMALL) -> tuple[ScenePrompt, ...]:
    """Every content of the split as one prompt, its wording picked by the content's hash."""
    found = []
    for category in setting.prompts:
        for content in contents(split, category):
            text = wording(content, (_hash(content) >> 7) % ways_to_say(content))
            found.append(ScenePrompt(text, category, content.held_out))
    return tuple(found)


def balanced_prompts(
    split: str, count: int, seed: int = 0, setting: Setting = SMALL
) -> tuple[ScenePrompt, ...]:
    """`count` different prompts of the split, taken in turn from the categories.

    A category that runs out (there are few single prompts) leaves its turns to the others.
    The first n of a longer list are the shorter list.  ValueError if the split has too few.
    """
    everything = prompts(split, setting)
    if not 0 < count <= len(everything):
        raise ValueError(f"{count} prompts asked of split {split!r}: give 1..{len(everything)}")
    rng = random.Random(seed)
    queues = [shuffled(rng, [p for p in everything if p.category == c]) for c in setting.prompts]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    return tuple(itertools.islice((p for p in turns if p is not None), count))


def holds(first: Thing, relation: str, second: Thing) -> bool:
    """Whether first is strictly left of / right of / above / below second, by cells."""
    if relation in ("right", "below"):
        first, relation, second = second, OPPOSITE[relation], first
    return first.col < second.col if relation == "left" else first.row < second.row


def scene_contents(scene: Scene) -> tuple[Content, ...]:
    """Every content that the scene shows exactly: its own; with its sizes and relations if they
    can be said of it."""
    pairs = [t.pair for t in scene.things]
    found = [content_of(pairs)]
    if found[0].category == "attr":
        a, b = scene.things
        found += [spatial(a.pair, r, b.pair) for r in RELATIONS if holds(a, r, b)]
    if found[0].category in ("single", "attr"):
        found.append(sized(pairs, [t.scale for t in scene.things]))
    return tuple(c for c in found if c.category != "mixed")


def say(rng: random.Random, content: Content) -> str:
    """One of the content's wordings."""
    return wording(content, int(rng.random() * ways_to_say(content)))
