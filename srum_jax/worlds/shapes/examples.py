"""The streams of training examples of the shapes world, and its words.

Each example is a pure function of (seed, index): captions with pictures to draw, pictures for the
autoencoder. Owns the shares of their kinds, the vocabulary, and the tokenizer's file. Captions to
draw never name the pairs of `language.HELD_OUT`, though understanding sees them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from srum_jax.worlds.shapes.language import (
    FEW,
    NUMBERS,
    PAIRS,
    Content,
    content_of,
    plural,
    say,
)
from srum_jax.worlds.shapes.language import draw as draw_content
from srum_jax.worlds.shapes.questions import stream_rng
from srum_jax.worlds.shapes.rendering import (
    COLORS,
    SHAPES,
    SIZES,
    Scene,
    crop,
    draw,
    draw_flawed,
    draw_imperfect,
    ground,
    pick,
    place,
    scatter,
    shuffled,
    soften,
    weighted,
)
from srum_jax.worlds.shapes.setting import SMALL, Setting, Shares

# Not clean alone: drawn and judged pictures are flawed, soft, or crops, and must survive as such.
AUTOENCODER_SHARES = {"clean": 0.76, "flawed": 0.14, "softened": 0.07, "crop": 0.03}
MALFORMED = ("half", "mixed", "cut")  # of drawn pictures; the verifier accepts none of them
VOCAB_SIZE = 96
_SMALL_NUMBERS = NUMBERS[: FEW + 1]  # the others came later, and stand behind all other words
SPECIALS = ("<pad>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
WORDS = (
    ",",
    ".",
    "?",
    "a",
    "and",
    "left",
    "right",
    "above",
    "below",
    "of",
    *_SMALL_NUMBERS,
    *COLORS,
    *SHAPES,
    *(plural(s) for s in SHAPES),
    "what",
    "color",
    "is",
    "the",
    "shape",
    "object",
    "objects",
    "there",
    "how",
    "many",
    "are",
    "or",
    "neither",
    "does",
    "image",
    "show",
    "this",
    "none",
    "yes",
    "no",
    "describe",
    *SIZES,
    "which",
    "has",
    "more",
    "first",
    "second",
    "changed",
    "nothing",
    "added",
    "removed",
    "place",
    "moved",
    "that",
    "did",
    "move",
    "way",
    "up",
    "down",
    "add",
    "remove",
    "make",
)


def scene_for(rng: random.Random, content: Content, setting: Setting = SMALL) -> Scene:
    """A scene that shows the content exactly, its objects in drawn cells."""
    if content.category != "spatial":
        return scatter(rng, content.pairs, content.sizes, setting)
    grid = setting.grid
    along, across = int(rng.random() * grid), int(rng.random() * grid)
    low, high = (0, 1) if grid == 2 else sorted(shuffled(rng, range(grid))[:2])
    cells = ((along, low), (across, high))
    if content.relation != "left":
        cells = tuple((col, row) for row, col in cells)
    things = tuple(
        place(rng, pair, cell, "", setting) for pair, cell in zip(content.pairs, cells, strict=True)
    )
    return Scene(things, ground(rng), setting)


def generation_example(
    seed: int,
    index: int,
    shares: Shares | None = None,
    setting: Setting = SMALL,
    malformed: float = 0.0,
) -> tuple[str, np.ndarray]:
    """A caption of the train split without held-out pairs, and a picture uint8 [S, S, 3] of it.

    Categories come by `shares` (by default the setting's), contents evenly within a category,
    wordings evenly within a content. Each object is malformed with probability `malformed`, in one
    of `MALFORMED`, whatever the caption: no guidance takes that away.
    """
    rng = stream_rng(seed, index, 0)
    category = weighted(rng, setting.drawn if shares is None else shares)
    content = draw_content(rng, "train", category, held_out=False)
    caption, scene = say(rng, content), scene_for(rng, content, setting)
    return caption, draw_imperfect(rng, scene, malformed, MALFORMED)


def clean_image(seed: int, index: int, setting: Setting = SMALL) -> tuple[str, np.ndarray]:
    """A caption and a clean picture uint8 [S, S, 3]: all pairs evenly, held-out ones included.

    One object to as many as there is room for, for checking the autoencoder.
    """
    rng = stream_rng(seed, index, 3)
    number = 1 + int(rng.random() * setting.most)
    scene = scatter(rng, [pick(rng, PAIRS) for _ in range(number)], setting=setting)
    content = content_of([t.pair for t in scene.things])
    if content.category == "mixed":
        scene = scatter(rng, shuffled(rng, PAIRS)[:number], setting=setting)
        content = content_of([t.pair for t in scene.things])
    return say(rng, content), draw(scene)


def autoencoder_image(seed: int, index: int) -> np.ndarray:
    """A picture uint8 [32, 32, 3] for training the autoencoder: kinds by `AUTOENCODER_SHARES`.

    One to four objects, more of them more often, of all pairs evenly; at times all alike.
    """
    rng = stream_rng(seed, index, 7)
    number = pick(rng, (1, 2, 2, 3, 3, 4, 4))
    pairs = [pick(rng, PAIRS) for _ in range(number)]
    if rng.random() < 0.12:
        pairs = pairs[:1] * number
    scene = scatter(rng, pairs)
    kind = weighted(rng, AUTOENCODER_SHARES.items())
    if kind == "flawed":
        return draw_flawed(rng, scene, int(rng.random() * number), pick(rng, SMALL.flaws))
    if kind == "softened":
        return soften(rng, draw(scene))
    if kind == "crop":
        return crop(draw(scene), pick(rng, scene.things).box)
    return draw(scene)


def vocabulary(setting: Setting = SMALL, specials: Sequence[str] = SPECIALS) -> dict[str, int]:
    """Word -> id, in a fixed order: the specials, punctuation, words; below VOCAB_SIZE."""
    more = NUMBERS[FEW + 1 : setting.most + 1]
    return {word: i for i, word in enumerate((*specials, *WORDS, *more))}


def write_tokenizer(
    folder: str | Path,
    setting: Setting = SMALL,
    specials: Sequence[str] = SPECIALS,
    unread: Sequence[str] = (),
) -> Path:
    """Writes `tokenizer.json` (word level, lower-case, `, . ?` apart) and gives its path back.

    specials: marks that come before the words · unread: texts that are passed over.
    """
    vocab = vocabulary(setting, specials)
    special = [
        {
            "id": i,
            "content": word,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, word in enumerate(specials)
    ]
    steps: list[dict] = [
        {"type": "Replace", "pattern": {"String": one}, "content": ""} for one in unread
    ]
    steps.append({"type": "Lowercase"})
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": steps} if unread else steps[-1],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": "[,.?]"},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "WhitespaceSplit"},
            ],
        },
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    }
    path = Path(folder) / "tokenizer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
