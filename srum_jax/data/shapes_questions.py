"""Questions about shapes pictures with one-word answers, and the stream of examples to learn from.

Owns the question forms, their balance, and `Mix`, the shares of the understanding stream.
Balance: a wanted answer is drawn first and the question made to fit, so no word, colour, shape or
relation tells the answer without the picture.  Wrong captions come from the same split as right
ones; otherwise "never seen" would mean "no".
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from srum_jax.data import shapes_language as language
from srum_jax.data import shapes_render as render
from srum_jax.data.shapes_language import NUMBERS, RELATION_WORDS, RELATIONS, Content, name
from srum_jax.data.shapes_render import COLORS, SHAPES, Pair, Scene, Thing, pick, weighted

SCENE_KINDS = (
    "color",
    "shape",
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
class Question:
    """A question's words, its answer (one word; a caption for kind "caption") and its kind."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Mix:
    """Shares of the understanding stream; what `simple`, `pairs` and `crops` leave is any scene.

    simple: one or two clean objects, mostly "where is it" (relations are learned through these);
    pairs: two objects, mostly relations; crops: one object cut out, `malformed` of them spoilt or
    empty; flawed: of the other scenes, those with one malformed object; soft: pictures made a
    little blurred and noisy, as decoded ones are.  `questions` is the most an image gets; the
    kind tables are relative weights.
    """

    simple: float = 0.35
    pairs: float = 0.22
    crops: float = 0.18
    malformed: float = 0.3
    flawed: float = 0.12
    soft: float = 0.3
    questions: int = 8
    simple_kinds: tuple[tuple[str, float], ...] = (
        ("position", 0.4),
        ("relation_choice", 0.16),
        ("relation_yesno", 0.1),
        ("color", 0.08),
        ("shape", 0.08),
        ("exists", 0.05),
        ("count", 0.04),
        ("caption_right", 0.06),
        ("caption", 0.03),
    )
    pair_kinds: tuple[tuple[str, float], ...] = (
        ("relation_choice", 0.28),
        ("relation_yesno", 0.28),
        ("position", 0.1),
        ("caption_right", 0.18),
        ("color", 0.05),
        ("shape", 0.05),
        ("exists", 0.03),
        ("caption", 0.03),
    )
    scene_kinds: tuple[tuple[str, float], ...] = (
        ("color", 0.1),
        ("shape", 0.12),
        ("exists", 0.12),
        ("count", 0.2),
        ("position", 0.08),
        ("relation_choice", 0.1),
        ("relation_yesno", 0.1),
        ("caption_right", 0.15),
        ("caption", 0.03),
    )

    def __post_init__(self):
        for field in ("simple", "pairs", "crops", "malformed", "flawed", "soft"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"Mix.{field} is {getattr(self, field)}: give a share in 0..1")
        if self.simple + self.pairs + self.crops > 1:
            raise ValueError("Mix.simple + pairs + crops exceeds 1: lower one of them")
        if self.malformed > 0.5:
            raise ValueError("Mix.malformed above 0.5 leaves yes and no unbalanced: lower it")
        if self.questions < 1:
            raise ValueError(f"Mix.questions is {self.questions}: give 1 or more")
        for table in (self.simple_kinds, self.pair_kinds, self.scene_kinds):
            for kind, weight in table:
                if kind not in (*SCENE_KINDS, "caption") or weight < 0:
                    raise ValueError(
                        f"Mix kind table entry {(kind, weight)}: unknown kind or "
                        f"negative weight; kinds: {', '.join(SCENE_KINDS)}, caption"
                    )


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


def color_question(rng: random.Random, view: View) -> Question | None:
    shapes = [t.shape for t in view.things]
    things = [t for t in view.things if shapes.count(t.shape) == 1]
    if view.flawed is not None or not things:
        return None
    thing = pick(rng, things)
    return Question(f"what color is the {thing.shape} ?", thing.color, "color")


def shape_question(rng: random.Random, view: View) -> Question | None:
    colors = [t.color for t in view.things]
    things = [t for t in view.things if colors.count(t.color) == 1]
    if view.flawed is not None or not things:
        return None
    thing = pick(rng, things)
    return Question(f"what shape is the {thing.color} object ?", thing.shape, "shape")


def exists_question(rng: random.Random, view: View) -> Question | None:
    pairs = [t.pair for t in view.things]
    if rng.random() < 0.5:
        return Question(f"is there {name(pick(rng, pairs))} ?", "yes", "exists")
    if view.flawed is not None and rng.random() < 0.7:
        pair = view.scene.things[view.flawed].pair
        if pair in pairs:
            return None
    else:
        pair = _near_pair(rng, pick(rng, pairs), {t.pair for t in view.scene.things})
    return Question(f"is there {name(pair)} ?", "no", "exists")


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


def count_question(rng: random.Random, view: View) -> Question | None:
    if view.flawed is not None:
        return None
    things = view.things
    draw = rng.random()
    if draw < 0.3:
        return Question("how many objects are there ?", NUMBERS[len(things)], "count")
    if draw < 0.65:
        options = {language.plural(s): sum(t.shape == s for t in things) for s in SHAPES}
    else:
        counts = Counter(t.pair for t in things)
        absent = _near_pair(rng, pick(rng, things).pair, set(counts))
        options = {f"{c} {language.plural(s)}": counts[c, s] for c, s in (*counts, absent)}
    # The wanted number first: most phrases have none, and "zero" would be the lazy answer.
    number = weighted(rng, [(n, (1, 1, 3, 5)[n]) for n in sorted(set(options.values()))])
    phrase = pick(rng, [p for p, n in options.items() if n == number])
    return Question(f"how many {phrase} are there ?", NUMBERS[number], "count")


def position_question(rng: random.Random, view: View) -> Question | None:
    things = view.single
    if not things:
        return None
    thing = pick(rng, things)
    if rng.random() < 0.5:
        answer = "right" if thing.col else "left"
        return Question(f"is the {thing.color} {thing.shape} left or right ?", answer, "position")
    answer = "below" if thing.row else "above"
    return Question(f"is the {thing.color} {thing.shape} above or below ?", answer, "position")


def relation_choice_question(rng: random.Random, view: View) -> Question | None:
    things = view.single
    if len(things) < 2:
        return None
    a, b = render.shuffled(rng, things)[:2]
    words = ("left", "right") if rng.random() < 0.5 else ("above", "below")
    answer = next((r for r in words if language.holds(a, r, b)), "neither")
    link = "left or right of" if words[0] == "left" else "above or below"
    return Question(
        f"is the {a.color} {a.shape} {link} the {b.color} {b.shape} ?", answer, "relation_choice"
    )


def relation_yesno_question(rng: random.Random, view: View) -> Question | None:
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
    return Question(
        f"is the {a.color} {a.shape} {RELATION_WORDS[relation]} the {b.color} {b.shape} ?",
        answer,
        "relation_yesno",
    )


def caption_right_question(rng: random.Random, view: View) -> Question | None:
    """Right means exactly this: nothing missing, nothing extra, nothing malformed."""
    true = language.scene_contents(view.scene)
    right = [c for c in true if language.split_of(c) == view.split]
    if not right:
        return None
    # A pair's relation is asked more often than the pair alone.
    content = pick(rng, right if len(right) == 1 or rng.random() < 0.4 else right[1:])
    answer = "yes" if view.flawed is None else "no"
    if view.flawed is None and rng.random() >= view.yes_share:
        content, answer = _wrong_content(rng, content, view.split, true), "no"
        if content is None:
            return None
    text = language.say(rng, content)
    return Question(f"does the image show {text} ?", answer, "caption_right")


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
    """Another content: relation, one word, two swapped words, one pair less or more, or any."""
    draw, pairs = rng.random(), list(content.pairs)
    if content.category == "spatial" and draw < 0.5:
        if draw < 0.25:
            return replace(content, pairs=tuple(reversed(pairs)))
        return language.spatial(pairs[0], pick(rng, RELATIONS), pairs[1])
    if draw < 0.6:
        return pick(rng, language.contents(split, content.category))
    if content.category == "count":
        number = len(pairs) if draw < 0.8 else 5 - len(pairs)
        pair = pairs[0] if number != len(pairs) else _one_word(rng, pairs[0])
        return language.content_of([pair] * number)
    at = int(rng.random() * len(pairs))
    if draw < 0.7 and len(pairs) > 1 and content.category != "spatial":
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
    return language.content_of(pairs)


def _one_word(rng: random.Random, pair: Pair) -> Pair:
    """The pair with another colour or another shape."""
    if rng.random() < 0.5:
        return pick(rng, [c for c in COLORS if c != pair[0]]), pair[1]
    return pair[0], pick(rng, [s for s in SHAPES if s != pair[1]])


def caption_question(rng: random.Random, view: View) -> Question | None:
    if view.flawed is not None:
        return None
    found = [c for c in language.scene_contents(view.scene) if language.split_of(c) == view.split]
    return Question(DESCRIBE, language.say(rng, pick(rng, found)), "caption") if found else None


_ASK: dict[str, Callable[[random.Random, View], Question | None]] = {
    "color": color_question,
    "shape": shape_question,
    "exists": exists_question,
    "count": count_question,
    "position": position_question,
    "relation_choice": relation_choice_question,
    "relation_yesno": relation_yesno_question,
    "caption_right": caption_right_question,
    "caption": caption_question,
}


def ask(rng: random.Random, view: View, kind: str) -> Question | None:
    """One question of a scene kind (or "caption"); None where the scene does not allow it."""
    return _ASK[kind](rng, view)


def crop_questions(
    rng: random.Random, pair: Pair | None, look: Pair, no_share: float = 1.0
) -> tuple[Question, ...]:
    """The crop questions: `pair` is what is there (None: malformed or empty), `look` what it
    resembles; a well-made crop also gets a "no" question in `no_share` of the cases."""
    color, shape = pair or ("none", "none")
    found = [
        Question("what color is this ?", color, "crop_color"),
        Question("what shape is this ?", shape, "crop_shape"),
    ]
    if pair is None:
        return (*found, Question(f"is this {name(look)} ?", "no", "crop_is"))
    found.append(Question(f"is this {name(pair)} ?", "yes", "crop_is"))
    if rng.random() < no_share:
        other = (
            _one_word(rng, pair)
            if rng.random() < 0.75
            else pick(rng, [p for p in language.PAIRS if p != pair])
        )
        found.append(Question(f"is this {name(other)} ?", "no", "crop_is"))
    return tuple(found)


def scene_of(rng: random.Random, split: str, categories: tuple[tuple[str, float], ...]) -> Scene:
    """A scene whose content is of the split, its category drawn by weight."""
    category = weighted(rng, categories)
    return render.scatter(
        rng, render.shuffled(rng, pick(rng, language.contents(split, category)).pairs)
    )


def crop_example(
    rng: random.Random, split: str, malformed: float
) -> tuple[np.ndarray, tuple[Question, ...]]:
    """A crop of a scene's object with its questions; a share of the crops is malformed or empty.

    Jitter: the margin around the box is 0..2 px.  Empty crops show background or an object's rim.
    """
    scene = scene_of(rng, split, _ANY)
    index = int(rng.random() * len(scene.things))
    thing, margin = scene.things[index], pick(rng, (0, 1, 1, 1, 2))
    if rng.random() >= malformed:
        # "no" questions of well-made crops fill up what malformed ones leave to half and half.
        no_share = 1 - malformed / (1 - malformed)
        image = render.crop(render.draw(scene), thing.box, margin)
        return image, crop_questions(rng, thing.pair, thing.pair, no_share)
    flaw = pick(rng, (*render.FLAWS, "outside", "empty"))
    if flaw == "empty":
        rest = tuple(t for i, t in enumerate(scene.things) if i != index)
        image = render.crop(render.draw(replace(scene, things=rest)), thing.box, 1)
    elif flaw == "outside":  # well drawn, but the crop shows only part of it
        image = render.crop(render.draw(scene), _beside(rng, thing), 0)
    else:
        image = render.crop(render.draw_flawed(rng, scene, index, flaw), thing.box, margin)
    return image, crop_questions(rng, None, thing.pair)


def _beside(rng: random.Random, thing: Thing) -> tuple[int, int, int, int]:
    """The thing's box moved by half its size along one axis, inwards where the border is near."""
    shift, (x, y), size = thing.size // 2, thing.box[:2], thing.size
    if rng.random() < 0.5:
        x += -shift if x - shift >= 0 and (rng.random() < 0.5 or x + shift + size > 32) else shift
    else:
        y += -shift if y - shift >= 0 and (rng.random() < 0.5 or y + shift + size > 32) else shift
    return x, y, min(x + size, render.SIDE), min(y + size, render.SIDE)


_SIMPLE = (("single", 0.3), ("attr", 0.7))
_PAIR = (("attr", 1.0),)
_ANY = (("single", 0.1), ("attr", 0.3), ("count", 0.2), ("triple", 0.25), ("mixed", 0.15))


def understanding_example(
    seed: int, index: int, mix: Mix = Mix(), split: str = "train"
) -> tuple[np.ndarray, tuple[Question, ...]]:
    """Image uint8 [32, 32, 3] and 1..mix.questions questions; a pure function of its arguments.

    Scenes have contents of `split` only; pairs held out of generation do appear.
    """
    rng = stream_rng(seed, index, 1)
    draw = rng.random()
    if draw < mix.crops:
        image, questions = crop_example(rng, split, mix.malformed)
    elif draw < mix.crops + mix.simple:
        image, questions = _scene_example(rng, split, _SIMPLE, mix.simple_kinds, mix, 0.0)
    elif draw < mix.crops + mix.simple + mix.pairs:
        image, questions = _scene_example(rng, split, _PAIR, mix.pair_kinds, mix, mix.flawed)
    else:
        image, questions = _scene_example(rng, split, _ANY, mix.scene_kinds, mix, mix.flawed)
    if rng.random() < mix.soft:
        image = render.soften(rng, image)
    return image, questions[: mix.questions]


def _scene_example(rng, split, categories, kinds, mix: Mix, flawed: float):
    scene = scene_of(rng, split, categories)
    if len(scene.things) > 1 and rng.random() < flawed:
        index = int(rng.random() * len(scene.things))
        image = render.draw_flawed(rng, scene, index, pick(rng, render.FLAWS))
        view = View(scene, split, index)
    else:
        image = render.draw(scene)
        # Malformed scenes answer captions with "no" only; well-made ones make up for it.
        view = View(scene, split, None, 0.5 / (1 - flawed) if len(scene.things) > 1 else 0.5)
    found: list[Question] = []
    # Most kinds do not fit a malformed scene; trying longer would fill it with "no" to captions.
    for _ in range(mix.questions if view.flawed is not None else 3 * mix.questions):
        if len(found) == mix.questions:
            break
        question = ask(rng, view, weighted(rng, kinds))
        # Yes/no questions may repeat: a scene has fewer true sentences than false ones, and
        # dropping repeats would make "no" the better guess.
        if question and (question.answer in ("yes", "no") or question not in found):
            found.append(question)
    if not found:  # a malformed scene can lack every other question
        question = Question(f"is there {name(scene.things[0].pair)} ?", "no", "exists")
        found.append(question)
    return image, tuple(found)


def stream_rng(seed: int, index: int, stream: int) -> random.Random:
    """The random numbers of example `index` of a stream, independent of all other examples."""
    if seed < 0 or index < 0:
        raise ValueError(f"seed {seed} and index {index} must not be negative")
    return random.Random((seed << 72) | (stream << 64) | index)


@functools.lru_cache(maxsize=4)
def qa_set(split: str, count: int, seed: int = 0) -> tuple[tuple[np.ndarray, Question], ...]:
    """`count` questions, each with its own image uint8 [32, 32, 3], kinds in turn (no captions).

    Yes and no are about even per kind; 30 % of crops are malformed; scenes are of the split.
    """
    found: list[tuple[np.ndarray, Question]] = []
    index = 0
    while len(found) < count:
        rng = stream_rng(seed, index, 2)
        index += 1
        kind = KINDS[len(found) % len(KINDS)]
        if kind in CROP_KINDS:
            image, questions = crop_example(rng, split, 0.3)
            question = pick(rng, [q for q in questions if q.kind == kind])
        else:
            scene = scene_of(rng, split, _ANY)
            image, question = render.draw(scene), ask(rng, View(scene, split), kind)
        if question is not None:
            found.append((image, question))
    return tuple(found)
