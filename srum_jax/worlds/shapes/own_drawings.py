"""What a base draws itself, as pictures to read, so that a judge of drawings has seen some.

Owns `Drawings`, how they are made, and the examples of them: one object cut out, well made or not,
and a whole picture with what it should show. The verifier knows the answers.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from srum_jax.core import console
from srum_jax.worlds.shapes import language, verifier
from srum_jax.worlds.shapes import rendering as render
from srum_jax.worlds.shapes.language import name
from srum_jax.worlds.shapes.question_forms import ShapesQuestion, crop_questions
from srum_jax.worlds.shapes.questions import stream_rng
from srum_jax.worlds.shapes.rendering import COLORS, PALETTE, Pair, pick
from srum_jax.worlds.shapes.setting import Setting
from srum_jax.worlds.shapes.verifier import DetectedObject

# Draws captions, with a seed each: uint8 [N, S, S, 3].
Draw = Callable[[Sequence[str], Sequence[int]], np.ndarray]
AT_ONCE = 256  # captions
OBJECTS = 3  # of a whole picture that are asked about, at most
Found = tuple[int, DetectedObject]  # number of a picture, and an object in it


@dataclass(frozen=True)
class Drawings:
    """Captions, the pictures uint8 [N, S, S, 3] drawn from them, and what is in them.

    right, wrong: numbers of pictures that do and do not show their captions · made, malformed: the
    objects of all pictures.
    """

    captions: Sequence[str]
    images: np.ndarray
    right: Sequence[int]
    wrong: Sequence[int]
    made: Sequence[Found]
    malformed: Sequence[Found]


def drawn(draw: Draw, count: int, seed: int, setting: Setting) -> dict[str, np.ndarray]:
    """`count` training captions, all categories alike, and a drawing of each: what `looked_at`
    takes."""
    captions = [p.text for p in language.balanced_prompts("train", count, seed, setting)]
    images = []
    for first in console.progress(range(0, count, AT_ONCE), desc="draw", unit="batch"):
        texts = captions[first : first + AT_ONCE]
        images.append(np.asarray(draw(texts, range(first, first + len(texts)))))
    return {"captions": np.array(captions), "images": np.concatenate(images)}


def looked_at(captions: np.ndarray, images: np.ndarray) -> Drawings:
    """The pictures with what the verifier sees in them, a few milliseconds each."""
    pictures = list(zip(captions.tolist(), images, strict=True))
    right = [verifier.verify(image, caption).right for caption, image in pictures]
    found = [(i, one) for i, (_, image) in enumerate(pictures) for one in verifier.see(image)]
    return Drawings(
        captions=captions.tolist(),
        images=images,
        right=np.flatnonzero(right).tolist(),
        wrong=np.flatnonzero(np.logical_not(right)).tolist(),
        made=[one for one in found if not one[1].flaw],
        malformed=[one for one in found if one[1].flaw],
    )


def crop_example(
    drawings: Drawings, seed: int, index: int
) -> tuple[np.ndarray, tuple[ShapesQuestion, ...]]:
    """A crop [32, 32, 3] of an object of some drawing, and its questions; a pure function.

    Half of the objects are well made. One that is not is asked about as what it should have been.
    """
    rng = stream_rng(seed, index, 20)
    i, one = pick(rng, _one_of(rng, drawings.made, drawings.malformed))
    image = drawings.images[i]
    crop = render.crop(image, one.box, pick(rng, (0, 1, 1, 1, 2)))
    if one.flaw:
        return crop, crop_questions(rng, None, _meant(rng, image, drawings.captions[i], one))
    return crop, crop_questions(rng, one.pair, one.pair, 0.0)


def _one_of(rng: random.Random, first: Sequence, second: Sequence) -> Sequence:
    """One of the two, as often as the other; the one that holds something where one is empty."""
    chosen, other = (first, second) if rng.random() < 0.5 else (second, first)
    return chosen or other


def _meant(rng: random.Random, image: np.ndarray, caption: str, one: DetectedObject) -> Pair:
    """What a malformed object should have been: of what the caption demands and the picture lacks,
    or of all where it lacks nothing, one of the nearest colour."""
    setting = verifier.setting_of(image)
    demanded = verifier.demanded(caption, setting)
    missing = Counter(demanded) - Counter(other.pair for other in verifier.see(image))
    x0, y0, x1, y1 = one.box
    tone = image[(y0 + y1) // 2, (x0 + x1) // 2].astype(np.float32)
    pairs = sorted(missing or set(demanded))
    away = [float(((PALETTE[COLORS.index(color)] - tone) ** 2).sum()) for color, _ in pairs]
    return pick(rng, [pair for pair, far in zip(pairs, away, strict=True) if far == min(away)])


def picture_example(
    drawings: Drawings, seed: int, index: int
) -> tuple[np.ndarray, tuple[ShapesQuestion, ...]]:
    """A drawing with whether it shows its caption and whether objects are there; a pure function.

    Half of the drawings are right, where there are some.
    """
    rng = stream_rng(seed, index, 21)
    i = pick(rng, _one_of(rng, drawings.right, drawings.wrong))
    image, caption = drawings.images[i], drawings.captions[i]
    verdict = verifier.verify(image, caption)
    answer = "yes" if verdict.right else "no"
    asked = [ShapesQuestion(f"does the image show {caption} ?", answer, "caption_right")]
    there = {(color, shape) for color, shape, _ in verdict.found}
    demanded = sorted(set(verifier.demanded(caption, verifier.setting_of(image))))
    for pair in render.shuffled(rng, demanded)[:OBJECTS]:
        known = "yes" if pair in there else "no"
        asked.append(ShapesQuestion(f"is there {name(pair)} ?", known, "exists"))
    return image, tuple(asked)
