"""The forms of questions about one shapes picture, each with a one-word answer.

Owns their words and their balance: a wanted answer is drawn first and the question made to fit, so
no word, colour, shape or relation tells the answer without the picture.  Wrong captions come from
the same split as right ones; otherwise "never seen" would mean "no".
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from srum_jax.worlds.shapes import language
from srum_jax.worlds.shapes import rendering as render
from srum_jax.worlds.shapes.language import NUMBERS, RELATION_WORDS, RELATIONS, Content, name
from srum_jax.worlds.shapes.rendering import COLORS, SHAPES, Pair, Scene, Thing, pick, weighted

SCENE_KINDS = (
    "color",
    "shape",
    "size",
    "exists",
    "count",
    "position",
    "relation_choice",
    "relation_yesno",
    "caption_right",
)
CROP_KINDS = ("crop_color", "crop_shape", "crop_is")
KINDS = (*SCENE_KINDS, *CROP_KINDS)
DESCRIBE = "describe the image ."


@dataclass(frozen=True)
class ShapesQuestion:
    """A question's words, its answer (one word; a caption for kind "caption") and its kind."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class View:
    """What questions may be asked of: a scene of the split, thing number `flawed` malformed.

    With a malformed thing, questions stay with what is certain.  `yes_share` is how often a
    caption question of a well-made scene wants "yes".
    """

    scene: Scene
    split: str
    flawed: int | None = None
    yes_share: float = 0.5

    @functools.cached_property
    def things(self) -> tuple[Thing, ...]:
        """The well-made things."""
        return tuple(t for i, t in enumerate(self.scene.things) if i != self.flawed)

    @functools.cached_property
    def single(self) -> tuple[Thing, ...]:
        """The well-made things that "the red circle" names uniquely."""
        pairs = [t.pair for t in self.scene.things]
        return tuple(t for t in self.things if pairs.count(t.pair) == 1)


def color_question(rng: random.Random, view: View) -> ShapesQuestion | None:
    """What colour the only thing of a shape has; None if no shape is alone."""
    shapes = [t.shape for t in view.things]
    things = [t for t in view.things if shapes.count(t.shape) == 1]
    if view.flawed is not None or not things:
        return None
    thing = pick(rng, things)
    return ShapesQuestion(f"what color is the {thing.shape} ?", thing.color, "color")


def shape_question(rng: random.Random, view: View) -> ShapesQuestion | None:
    """What shape the only thing of a colour has; None if no colour is alone."""
    colors = [t.color for t in view.things]
    things = [t for t in view.things if colors.count(t.color) == 1]
    if view.flawed is not None or not things:
        return None
    thing = pick(rng, things)
    return ShapesQuestion(f"what shape is the {thing.color} object ?", thing.shape, "shape")


def size_question(rng: random.Random, view: View) -> ShapesQuestion | None:
    """Whether the only thing of its kind is big or small; None if none is alone."""
    if not view.single:
        return None
    thing = pick(rng, view.single)
    return ShapesQuestion(f"is the {thing.color} {thing.shape} big or small ?", thing.scale, "size")


def exists_question(rng: random.Random, view: View) -> ShapesQuestion | None:
    """Whether there is a thing: as often yes as no."""
    pairs = [t.pair for t in view.things]
    if rng.random() < 0.5:
        return ShapesQuestion(f"is there {name(pick(rng, pairs))} ?", "yes", "exists")
    if view.flawed is not None and rng.random() < 0.7:
        pair = view.scene.things[view.flawed].pair
        if pair in pairs:
            return None
    else:
        pair = _near_pair(rng, pick(rng, pairs), {t.pair for t in view.scene.things})
    return ShapesQuestion(f"is there {name(pair)} ?", "no", "exists")


def _near_pair(rng: random.Random, pair: Pair, avoid: set[Pair]) -> Pair:
    """A pair not in `avoid`: half the time other parts of the scene, else one word changed."""
    if rng.random() < 0.5:
        colors, shapes = {c for c, _ in avoid}, {s for _, s in avoid}
        mixed = [p for p in language.PAIRS if p[0] in colors and p[1] in shapes and p not in avoid]
        if mixed:
            return pick(rng, mixed)
    draw = rng.random()
    near = [
        p
        for p in language.PAIRS
        if p not in avoid
        and (draw < 0.25 or (p[0] == pair[0] if draw < 0.625 else p[1] == pair[1]))
    ]
    return pick(rng, near or [p for p in language.PAIRS if p not in avoid])


def count_question(rng: random.Random, view: View) -> ShapesQuestion | None:
    """How many there are of something; None where the picture was changed."""
    if view.flawed is not None:
        return None
    things = view.things
    draw = rng.random()
    if draw < 0.3:
        return ShapesQuestion("how many objects are there ?", NUMBERS[len(things)], "count")
    if draw < 0.65:
        options = {language.plural(s): sum(t.shape == s for t in things) for s in SHAPES}
    else:
        counts = Counter(t.pair for t in things)
        absent = _near_pair(rng, pick(rng, things).pair, set(counts))
        options = {f"{c} {language.plural(s)}": counts[c, s] for c, s in (*counts, absent)}
    # The wanted number first: most phrases have none, and "zero" would be the lazy answer.
    number = weighted(
        rng, [(n, (1, 1, 3)[n] if n < 3 else 5) for n in sorted(set(options.values()))]
    )
    phrase = pick(rng, [p for p, n in options.items() if n == number])
    return ShapesQuestion(f"how many {phrase} are there ?", NUMBERS[number], "count")


def position_question(rng: random.Random, view: View) -> ShapesQuestion | None:
    """Where the only thing of its kind lies, in the middle "neither"; None if none is alone."""
    things = view.single
    if not things:
        return None
    thing = pick(rng, things)
    if rng.random() < 0.5:
        answer = _side(thing.col, view.scene.setting.grid, ("left", "right"))
        return ShapesQuestion(
            f"is the {thing.color} {thing.shape} left or right ?", answer, "position"
        )
    answer = _side(thing.row, view.scene.setting.grid, ("above", "below"))
    return ShapesQuestion(
        f"is the {thing.color} {thing.shape} above or below ?", answer, "position"
    )


def _side(place: int, grid: int, ends: tuple[str, str]) -> str:
    """The word for a row or column of a grid."""
    return ends[0] if place == 0 else ends[1] if place == grid - 1 else "neither"


def relation_choice_question(rng: random.Random, view: View) -> ShapesQuestion | None:
    """On which side of one thing another lies; None without two that are alone."""
    things = view.single
    if len(things) < 2:
        return None
    a, b = render.shuffled(rng, things)[:2]
    words = ("left", "right") if rng.random() < 0.5 else ("above", "below")
    answer = next((r for r in words if language.holds(a, r, b)), "neither")
    link = "left or right of" if words[0] == "left" else "above or below"
    return ShapesQuestion(
        f"is the {a.color} {a.shape} {link} the {b.color} {b.shape} ?", answer, "relation_choice"
    )


def relation_yesno_question(rng: random.Random, view: View) -> ShapesQuestion | None:
    """Half "no" are the opposite relation and half are neither, where the scene has both."""
    things = view.single
    if len(things) < 2:
        return None
    a, b = render.shuffled(rng, things)[:2]
    true = [r for r in RELATIONS if language.holds(a, r, b)]
    opposite = [language.OPPOSITE[r] for r in true]
    neither = [r for r in RELATIONS if r not in true and r not in opposite]
    if rng.random() < 0.5:
        relation, answer = pick(rng, true), "yes"
    else:
        wanted = opposite if rng.random() < 0.5 else neither
        relation, answer = pick(rng, wanted or opposite), "no"
    return ShapesQuestion(
        f"is the {a.color} {a.shape} {RELATION_WORDS[relation]} the {b.color} {b.shape} ?",
        answer,
        "relation_yesno",
    )


def caption_right_question(rng: random.Random, view: View) -> ShapesQuestion | None:
    """Right means exactly this: nothing missing, nothing extra, nothing malformed."""
    true = language.scene_contents(view.scene)
    right = [c for c in true if language.split_of(c) == view.split]
    if not right:
        return None
    # Relations and sizes are asked about more often than the objects alone.
    content = pick(rng, right if len(right) == 1 or rng.random() < 0.4 else right[1:])
    answer = "yes" if view.flawed is None else "no"
    if view.flawed is None and rng.random() >= view.yes_share:
        content, answer = _wrong_content(rng, content, view.split, true), "no"
        if content is None:
            return None
    text = language.say(rng, content)
    return ShapesQuestion(f"does the image show {text} ?", answer, "caption_right")


def _wrong_content(
    rng: random.Random, content: Content, split: str, true: tuple[Content, ...]
) -> Content | None:
    """A content of the split that is not true of the scene; usually one change away."""
    for _ in range(12):
        wrong = _changed(rng, content, split)
        if wrong not in true and language.split_of(wrong) == split:
            return wrong
    return None


def _changed(rng: random.Random, content: Content, split: str) -> Content:
    """Another content: relation, sizes, one word, two swapped words, one pair less, or any."""
    draw, pairs = rng.random(), list(content.pairs)
    if content.sizes and draw < 0.5:
        return language.sized(pairs, [pick(rng, tuple(render.SIZES)) for _ in pairs])
    if content.category == "spatial" and draw < 0.5:
        if draw < 0.25:
            return replace(content, pairs=tuple(reversed(pairs)))
        return language.spatial(pairs[0], pick(rng, RELATIONS), pairs[1])
    if draw < 0.6:
        return language.draw(rng, split, content.category)
    if content.category in ("count", "many", "groups"):
        return _changed_count(rng, content, draw < 0.8)
    at = int(rng.random() * len(pairs))
    free = content.category != "spatial" and not content.sizes
    if draw < 0.7 and len(pairs) > 1 and free:
        pairs = pairs[:at] + pairs[at + 1 :]
    elif draw < 0.8 and len(pairs) > 1:
        other = (at + 1) % len(pairs)
        (c, s), (d, t) = pairs[at], pairs[other]
        pairs[at], pairs[other] = (d, s), (c, t)
    else:
        pairs[at] = _one_word(rng, pairs[at])
    if len(set(pairs)) != len(pairs):
        return content
    if content.category == "spatial":
        return language.spatial(pairs[0], content.relation, pairs[1])
    if content.sizes:
        return language.sized(pairs, content.sizes)
    return language.content_of(pairs)


def _changed_count(rng: random.Random, content: Content, word: bool) -> Content:
    """Another content of several alike: one kind with another `word`, or in another number."""
    counts = Counter(content.pairs)
    kinds = tuple(counts)
    at = pick(rng, kinds) if len(kinds) > 1 else kinds[0]
    if word:
        new = _one_word(rng, at)
        if new in counts:
            return content
        return language.content_of([new if pair == at else pair for pair in content.pairs])
    others = [pair for pair in content.pairs if pair != at]
    most = language.FEW if content.category == "count" else max(language.LISTS) - len(others)
    number = pick(rng, range(2 if content.category != "many" else language.FEW + 1, most + 1))
    changed = language.content_of(others + [at] * number)
    return changed if changed.category == content.category else content


def _one_word(rng: random.Random, pair: Pair) -> Pair:
    """The pair with another colour or another shape."""
    if rng.random() < 0.5:
        return pick(rng, [c for c in COLORS if c != pair[0]]), pair[1]
    return pair[0], pick(rng, [s for s in SHAPES if s != pair[1]])


def caption_question(rng: random.Random, view: View) -> ShapesQuestion | None:
    """What the picture shows."""
    if view.flawed is not None:
        return None
    found = [c for c in language.scene_contents(view.scene) if language.split_of(c) == view.split]
    return (
        ShapesQuestion(DESCRIBE, language.say(rng, pick(rng, found)), "caption") if found else None
    )


_ASK: dict[str, Callable[[random.Random, View], ShapesQuestion | None]] = {
    "color": color_question,
    "shape": shape_question,
    "size": size_question,
    "exists": exists_question,
    "count": count_question,
    "position": position_question,
    "relation_choice": relation_choice_question,
    "relation_yesno": relation_yesno_question,
    "caption_right": caption_right_question,
    "caption": caption_question,
}


def ask(rng: random.Random, view: View, kind: str) -> ShapesQuestion | None:
    """One question of a scene kind (or "caption"); None where the scene does not allow it."""
    return _ASK[kind](rng, view)


def crop_questions(
    rng: random.Random, pair: Pair | None, look: Pair, no_share: float = 1.0
) -> tuple[ShapesQuestion, ...]:
    """The crop questions: `pair` is what is there (None: malformed or empty), `look` what it
    resembles; a well-made crop also gets a "no" question in `no_share` of the cases."""
    color, shape = pair or ("none", "none")
    found = [
        ShapesQuestion("what color is this ?", color, "crop_color"),
        ShapesQuestion("what shape is this ?", shape, "crop_shape"),
    ]
    if pair is None:
        return (*found, ShapesQuestion(f"is this {name(look)} ?", "no", "crop_is"))
    found.append(ShapesQuestion(f"is this {name(pair)} ?", "yes", "crop_is"))
    if rng.random() < no_share:
        other = (
            _one_word(rng, pair)
            if rng.random() < 0.75
            else pick(rng, [p for p in language.PAIRS if p != pair])
        )
        found.append(ShapesQuestion(f"is this {name(other)} ?", "no", "crop_is"))
    return tuple(found)
