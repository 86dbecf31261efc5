"""The streams of shapes pictures with questions: what is learned from, and what is asked in tests.

Owns `Mix`, the shares of the understanding stream, and the sets of questions and of scenes to be
described.  The forms of the questions are in `question_forms`.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, replace

import numpy as np

from srum_jax.worlds.shapes import language
from srum_jax.worlds.shapes import rendering as render
from srum_jax.worlds.shapes.language import name
from srum_jax.worlds.shapes.question_forms import (
    CROP_KINDS,
    KINDS,
    SCENE_KINDS,
    ShapesQuestion,
    View,
    ask,
    crop_questions,
)
from srum_jax.worlds.shapes.rendering import Scene, Thing, pick, weighted
from srum_jax.worlds.shapes.setting import SMALL, Setting, Shares


@dataclass(frozen=True)
class Mix:
    """Shares of the understanding stream; what `simple`, `pairs` and `crops` leave is any scene.

    simple: one or two clean objects, mostly "where is it" (relations are learned through these);
    pairs: two objects, mostly relations; crops: one object cut out, `malformed` of them spoilt or
    empty; flawed: of the other scenes, those with one malformed object; warped: of well-made
    pictures, those whose outlines are moved by up to .6 px, as drawn ones are; soft:
    pictures made a little blurred and noisy, as decoded ones are.  `questions` is the most an image
    gets; the kind tables are relative weights.
    """

    simple: float = 0.35
    pairs: float = 0.22
    crops: float = 0.18
    malformed: float = 0.3
    flawed: float = 0.12
    warped: float = 0.0
    soft: float = 0.3
    questions: int = 8
    simple_kinds: tuple[tuple[str, float], ...] = (
        ("position", 0.36),
        ("relation_choice", 0.16),
        ("relation_yesno", 0.1),
        ("color", 0.06),
        ("shape", 0.06),
        ("size", 0.06),
        ("exists", 0.05),
        ("count", 0.04),
        ("caption_right", 0.06),
        ("caption", 0.05),
    )
    pair_kinds: tuple[tuple[str, float], ...] = (
        ("relation_choice", 0.26),
        ("relation_yesno", 0.26),
        ("position", 0.1),
        ("caption_right", 0.18),
        ("size", 0.06),
        ("color", 0.03),
        ("shape", 0.03),
        ("exists", 0.03),
        ("caption", 0.05),
    )
    scene_kinds: tuple[tuple[str, float], ...] = (
        ("color", 0.08),
        ("shape", 0.1),
        ("size", 0.06),
        ("exists", 0.12),
        ("count", 0.2),
        ("position", 0.08),
        ("relation_choice", 0.1),
        ("relation_yesno", 0.1),
        ("caption_right", 0.12),
        ("caption", 0.06),
    )

    def __post_init__(self):
        for field in ("simple", "pairs", "crops", "malformed", "flawed", "warped", "soft"):
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


def scene_of(
    rng: random.Random,
    split: str,
    categories: Shares,
    held_out: bool = True,
    setting: Setting = SMALL,
) -> Scene:
    """A scene whose content is of the split, its category drawn by weight; held_out=False leaves
    out held-out pairs."""
    content = language.draw(rng, split, weighted(rng, categories), held_out)
    return render.scatter(rng, content.pairs, content.sizes, setting)


def crop_example(
    rng: random.Random, split: str, mix: Mix, setting: Setting = SMALL
) -> tuple[np.ndarray, tuple[ShapesQuestion, ...]]:
    """A crop of a scene's object with its questions; `mix.malformed` of them malformed or empty.

    Jitter: the margin around the box is 0..2 px.  Empty crops show background or an object's rim.
    """
    scene = scene_of(rng, split, setting.seen, setting=setting)
    index = int(rng.random() * len(scene.things))
    thing, margin = scene.things[index], pick(rng, (0, 1, 1, 1, 2))
    if rng.random() >= mix.malformed:
        # "no" questions of well-made crops fill up what malformed ones leave to half and half.
        no_share = 1 - mix.malformed / (1 - mix.malformed)
        image = render.crop(_well_made(rng, scene, mix), thing.box, margin)
        return image, crop_questions(rng, thing.pair, thing.pair, no_share)
    flaw = pick(rng, (*setting.flaws, "outside", "empty"))
    if flaw == "empty":
        rest = tuple(t for i, t in enumerate(scene.things) if i != index)
        image = render.crop(render.draw(replace(scene, things=rest)), thing.box, 1)
    elif flaw == "outside":  # well drawn, but the crop shows only part of it
        image = render.crop(render.draw(scene), _beside(rng, thing, setting.side), 0)
    else:
        image = render.crop(render.draw_flawed(rng, scene, index, flaw), thing.box, margin)
    return image, crop_questions(rng, None, thing.pair)


def _well_made(rng: random.Random, scene: Scene, mix: Mix) -> np.ndarray:
    image = render.draw(scene)
    if mix.warped and rng.random() < mix.warped:
        image = render.finish(render.warped(rng, image.astype(np.float32), 0.6 * rng.random()))
    return image


def _beside(rng: random.Random, thing: Thing, side: int) -> tuple[int, int, int, int]:
    """The thing's box moved by half its size along one axis, inwards where the border is near."""
    shift, (x, y), size = thing.size // 2, thing.box[:2], thing.size
    if rng.random() < 0.5:
        x += -shift if x - shift >= 0 and (rng.random() < 0.5 or x + shift + size > side) else shift
    else:
        y += -shift if y - shift >= 0 and (rng.random() < 0.5 or y + shift + size > side) else shift
    return x, y, min(x + size, side), min(y + size, side)


_SIMPLE = (("single", 0.3), ("attr", 0.7))
_PAIR = (("attr", 1.0),)


def understanding_example(
    seed: int, index: int, mix: Mix = Mix(), split: str = "train", setting: Setting = SMALL
) -> tuple[np.ndarray, tuple[ShapesQuestion, ...]]:
    """Image uint8 [S, S, 3] (a crop: [32, 32, 3]) and 1..mix.questions questions; a pure function
    of its arguments.

    Scenes have contents of `split` only; pairs held out of generation do appear.
    """
    rng = stream_rng(seed, index, 1)
    draw = rng.random()
    if draw < mix.crops:
        image, questions = crop_example(rng, split, mix, setting)
    elif draw < mix.crops + mix.simple:
        image, questions = _scene_example(rng, setting, split, _SIMPLE, mix.simple_kinds, mix)
    elif draw < mix.crops + mix.simple + mix.pairs:
        how = (_PAIR, mix.pair_kinds, mix, mix.flawed)
        image, questions = _scene_example(rng, setting, split, *how)
    else:
        how = (setting.seen, mix.scene_kinds, mix, mix.flawed)
        image, questions = _scene_example(rng, setting, split, *how)
    if rng.random() < mix.soft:
        image = render.soften(rng, image)
    return image, questions[: mix.questions]


def _scene_example(
    rng, setting: Setting, split: str, categories: Shares, kinds, mix: Mix, flawed: float = 0.0
):
    scene = scene_of(rng, split, categories, setting=setting)
    if len(scene.things) > 1 and rng.random() < flawed:
        index = int(rng.random() * len(scene.things))
        image = render.draw_flawed(rng, scene, index, pick(rng, setting.flaws))
        view = View(scene, split, index)
    else:
        image = _well_made(rng, scene, mix)
        # Malformed scenes answer captions with "no" only; well-made ones make up for it.
        view = View(scene, split, None, 0.5 / (1 - flawed) if len(scene.things) > 1 else 0.5)
    found: list[ShapesQuestion] = []
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
        question = ShapesQuestion(f"is there {name(scene.things[0].pair)} ?", "no", "exists")
        found.append(question)
    return image, tuple(found)


def stream_rng(seed: int, index: int, stream: int) -> random.Random:
    """The random numbers of example `index` of a stream, independent of all other examples."""
    if seed < 0 or index < 0:
        raise ValueError(f"seed {seed} and index {index} must not be negative")
    return random.Random((seed << 72) | (stream << 64) | index)


@functools.lru_cache(maxsize=4)
def qa_set(
    split: str, count: int, seed: int = 0, setting: Setting = SMALL
) -> tuple[tuple[np.ndarray, ShapesQuestion], ...]:
    """`count` questions, each with its own image uint8 [S, S, 3], kinds in turn (no captions).

    Yes and no are about even per kind; 30 % of crops are malformed; scenes are of the split.
    """
    found: list[tuple[np.ndarray, ShapesQuestion]] = []
    index = 0
    while len(found) < count:
        rng = stream_rng(seed, index, 2)
        index += 1
        kind = KINDS[len(found) % len(KINDS)]
        if kind in CROP_KINDS:
            image, questions = crop_example(rng, split, Mix(), setting)
            question = pick(rng, [q for q in questions if q.kind == kind])
        else:
            scene = scene_of(rng, split, setting.seen, setting=setting)
            image, question = render.draw(scene), ask(rng, View(scene, split), kind)
        if question is not None:
            found.append((image, question))
    return tuple(found)


def scene_questions(
    split: str, kinds: tuple[str, ...], count: int, stream: int
) -> tuple[tuple[Scene, ShapesQuestion], ...]:
    """`count` questions of SCENE_KINDS, in turn, each about its own scene of the split."""
    found, index = [], 0
    while len(found) < count:
        rng = stream_rng(0, index, stream)
        index += 1
        scene = scene_of(rng, split, SMALL.seen)
        if question := ask(rng, View(scene, split), kinds[len(found) % len(kinds)]):
            found.append((scene, question))
    return tuple(found)


@functools.lru_cache(maxsize=4)
def caption_set(
    split: str, count: int, seed: int = 0, setting: Setting = SMALL
) -> tuple[Scene, ...]:
    """`count` scenes of the split that a caption can describe."""
    found, index = [], 0
    while len(found) < count:
        rng = stream_rng(seed, index, 14)
        scene = scene_of(rng, split, setting.described, setting=setting)
        index += 1
        if language.scene_contents(scene):
            found.append(scene)
    return tuple(found)
