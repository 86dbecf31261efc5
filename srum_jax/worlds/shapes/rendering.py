"""Drawing the shapes world: scenes of coloured shapes as 32x32 pictures, whole, spoiled or cropped.

Owns the palette, the shape templates, `Scene`/`Thing`, placing things in cells, and every pixel.
A picture is uint8 [32, 32, 3]; positions are pixels with the origin at the top left; a box is
(x0, y0, x1, y1), the upper ends excluded.  Random numbers come from `random.Random.random()`
alone, whose stream Python promises not to change, so pictures are the same on every machine.
"""

from __future__ import annotations

import bisect
import functools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from einops import reduce

SIDE = 32
CELL = 16
SIZES = {"small": (9,), "big": (12, 13)}  # side of a thing's box, in pixels
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan", "pink", "white")
SHAPES = ("circle", "square", "triangle", "cross")
PALETTE = np.array(
    [
        [228, 48, 44],
        [44, 176, 68],
        [52, 92, 236],
        [240, 208, 48],
        [168, 60, 204],
        [52, 208, 220],
        [244, 132, 184],
        [232, 232, 232],
    ],
    np.float32,
)
FLAWS = ("half", "mixed", "cut", "blurred")
CELLS = ((0, 0), (0, 1), (1, 0), (1, 1))

Pair = tuple[str, str]  # (color, shape)
Box = tuple[int, int, int, int]

_SHADE = 10.0  # an object's colour lies within this of the palette, per channel
_DARK = (14.0, 40.0)  # range of a background channel


@dataclass(frozen=True)
class Thing:
    """One object: its colour and shape, its cell (row, col in 0..1) and where it lies, in pixels.

    `size` is the side of its square box (one of `SIZES`), `centre` is (x, y), `tone` its exact RGB
    colour.
    """

    color: str
    shape: str
    row: int
    col: int
    size: int
    centre: tuple[float, float]
    box: Box
    tone: tuple[float, float, float]

    @property
    def pair(self) -> Pair:
        """Colour and shape."""
        return self.color, self.shape

    @property
    def scale(self) -> str:
        """ "small" or "big" """
        return next(name for name, sizes in SIZES.items() if self.size in sizes)


@dataclass(frozen=True)
class Scene:
    """One to four things on a dark ground (RGB, each channel 14..40), at most one in a cell."""

    things: tuple[Thing, ...]
    ground: tuple[float, float, float]


def pick(rng: random.Random, items: Sequence) -> Any:
    """A uniformly drawn item."""
    return items[int(rng.random() * len(items))]


def weighted(rng: random.Random, table: Iterable[tuple[Any, float]]) -> Any:
    """A key drawn by its relative weight from (key, weight) rows."""
    keys, weights = zip(*table, strict=True)
    at = rng.random() * sum(weights)
    return keys[min(bisect.bisect_right(list(accumulate(weights)), at), len(keys) - 1)]


def shuffled(rng: random.Random, items: Sequence) -> list:
    """The items in a uniformly drawn order."""
    return [items[i] for _, i in sorted((rng.random(), i) for i in range(len(items)))]


def place(rng: random.Random, pair: Pair, cell: tuple[int, int], scale: str = "") -> Thing:
    """A thing of the colour and shape in the cell, with drawn size, offset and tone.

    `scale` is "small", "big" or "" (either). It keeps one pixel free on each side of its cell, so
    neighbours never touch.
    """
    size = pick(rng, SIZES[scale or pick(rng, tuple(SIZES))])
    slack = CELL - 1 - size
    x = cell[1] * CELL + 1 + int(rng.random() * slack)
    y = cell[0] * CELL + 1 + int(rng.random() * slack)
    base = PALETTE[COLORS.index(pair[0])]
    tone = tuple(float(c) + _SHADE * (2 * rng.random() - 1) for c in base)
    return Thing(
        pair[0],
        pair[1],
        cell[0],
        cell[1],
        size,
        (x + size / 2, y + size / 2),
        (x, y, x + size, y + size),
        tone,
    )


def ground(rng: random.Random) -> tuple[float, float, float]:
    """A dark, slightly tinted background colour."""
    low, high = _DARK
    level = low + (high - low) * rng.random()
    return tuple(min(high, max(low, level + 6 * (2 * rng.random() - 1))) for _ in range(3))


def scatter(rng: random.Random, pairs: Sequence[Pair], scales: Sequence[str] = ()) -> Scene:
    """A scene of these pairs in drawn cells, of these scales if they are given."""
    placed = zip(pairs, shuffled(rng, CELLS), scales or ("",) * len(pairs), strict=False)
    return Scene(tuple(place(rng, *one) for one in placed), ground(rng))


def shifted(thing: Thing, right: int, down: int) -> Thing:
    """The thing so many pixels further right and down, in the cell that its centre is then in."""
    x0, y0, x1, y1 = thing.box
    x, y = thing.centre[0] + right, thing.centre[1] + down
    box = (x0 + right, y0 + down, x1 + right, y1 + down)
    return replace(thing, row=int(y // CELL), col=int(x // CELL), centre=(x, y), box=box)


@functools.cache
def template(shape: str, size: int) -> np.ndarray:
    """How much of each pixel the shape covers, from 8x8 samples: float32 [size, size] in 0..1."""
    n = 8
    axis = (np.arange(size * n) + 0.5) / (size * n) * 2 - 1  # -1..1 over the box
    y, x = np.meshgrid(axis, axis, indexing="ij")
    if shape == "circle":
        inside = x * x + y * y <= 1
    elif shape == "square":
        inside = np.ones_like(x, bool)
    elif shape == "triangle":
        inside = np.abs(x) <= (y + 1) / 2
    elif shape == "cross":
        inside = (np.abs(x) <= 0.36) | (np.abs(y) <= 0.36)
    else:
        raise ValueError(f"shape {shape!r} is none of {', '.join(SHAPES)}")
    cover = reduce(inside.astype(np.float32), "(h a) (w b) -> h w", "mean", a=n, b=n)
    cover.setflags(write=False)
    return cover


def empty_picture(ground_color: Sequence[float]) -> np.ndarray:
    """A picture of nothing but the ground, float32 [32, 32, 3] in 0..255."""
    image = np.empty((SIDE, SIDE, 3), np.float32)
    image[:] = ground_color
    return image


def stamp(image: np.ndarray, cover: np.ndarray, corner: tuple[int, int], tone: Any) -> None:
    """Blends `tone` (RGB or [h, w, 3]) into a float picture in place; corner is (x, y)."""
    x, y = corner
    h, w = cover.shape
    part = image[y : y + h, x : x + w]
    part += cover[..., None] * (np.asarray(tone, np.float32) - part)


def finish(image: np.ndarray) -> np.ndarray:
    """The float picture as uint8 [32, 32, 3]."""
    return (np.clip(image, 0, 255) + 0.5).astype(np.uint8)


def draw(scene: Scene) -> np.ndarray:
    """The scene as uint8 [32, 32, 3]; a pure function of the scene."""
    image = empty_picture(scene.ground)
    for thing in scene.things:
        stamp(image, template(thing.shape, thing.size), thing.box[:2], thing.tone)
    return finish(image)


def draw_flawed(rng: random.Random, scene: Scene, index: int, flaw: str) -> np.ndarray:
    """The scene with thing `index` malformed, uint8 [32, 32, 3].

    half: one half is another shape; mixed: one half has another colour; cut: about half of it is
    missing; blurred: its cell is smeared (sigma 1.2..2.4 px).
    """
    image = empty_picture(scene.ground)
    for i, thing in enumerate(scene.things):
        cover, tone = template(thing.shape, thing.size), thing.tone
        if i == index:
            cover, tone = _spoil(rng, thing, flaw)
        stamp(image, cover, thing.box[:2], tone)
    if flaw == "blurred":
        thing = scene.things[index]
        y, x = thing.row * CELL, thing.col * CELL
        smear = blur_matrix(CELL, pick(rng, (1.2, 1.4, 1.6, 2.0, 2.4)))
        cell = image[y : y + CELL, x : x + CELL]
        cell[:] = _along_both(smear, cell, smear)
    return finish(image)


def _spoil(rng: random.Random, thing: Thing, flaw: str):
    """Cover and tone of a malformed thing."""
    cover = template(thing.shape, thing.size).copy()
    if flaw == "blurred":
        return cover, thing.tone
    tone = np.broadcast_to(np.asarray(thing.tone, np.float32), (*cover.shape, 3)).copy()
    first = int(rng.random() * 2)  # which half changes
    middle = thing.size // 2
    half = slice(0, middle) if first else slice(middle, None)
    part = (half, slice(None)) if rng.random() < 0.5 else (slice(None), half)
    if flaw == "half":
        other = pick(rng, [s for s in SHAPES if s != thing.shape])
        cover[part] = template(other, thing.size)[part]
    elif flaw == "mixed":
        tone[part] = PALETTE[COLORS.index(pick(rng, [c for c in COLORS if c != thing.color]))]
    elif flaw == "cut":
        cover[part] = 0
    else:
        raise ValueError(f"flaw {flaw!r} is none of {', '.join(FLAWS)}")
    return cover, tone


@functools.cache
def blur_matrix(length: int, sigma: float) -> np.ndarray:
    """Gaussian smoothing along one axis, rows summing to one: float32 [length, length]."""
    at = np.arange(length)
    weight = np.exp(-((at[:, None] - at) ** 2) / (2 * sigma * sigma))
    return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def _along_both(rows: np.ndarray, image: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """rows [a, h] and columns [b, w] applied to image [h, w, 3]: [a, b, 3].

    Two plain products: far quicker than einsum at this size, and millions are drawn.
    """
    height, width, _ = image.shape
    half = (rows @ image.reshape(height, -1)).reshape(len(rows), width, 3)
    turned = np.ascontiguousarray(half.transpose(1, 0, 2)).reshape(width, -1)
    return (columns @ turned).reshape(len(columns), len(rows), 3).transpose(1, 0, 2)


@functools.cache
def _resize_matrix(source: int, target: int) -> np.ndarray:
    """Bilinear resize along one axis with half-pixel centres and clamped ends: [target, source]."""
    at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    low = np.minimum(at.astype(int), max(source - 2, 0))
    matrix = np.zeros((target, source), np.float32)
    matrix[np.arange(target), low] += 1 - (at - low)
    matrix[np.arange(target), np.minimum(low + 1, source - 1)] += at - low
    return matrix


def crop(image: np.ndarray, box: Sequence[float], margin: int = 1) -> np.ndarray:
    """The box and `margin` px around it, clipped to the picture, resized bilinearly to 32x32."""
    height, width = image.shape[:2]
    x0, y0 = max(int(box[0]) - margin, 0), max(int(box[1]) - margin, 0)
    x1, y1 = min(int(box[2]) + margin, width), min(int(box[3]) + margin, height)
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"box {tuple(box)} covers no pixel of a {height}x{width} picture")
    part = image[y0:y1, x0:x1].astype(np.float32)
    return finish(_along_both(_resize_matrix(y1 - y0, SIDE), part, _resize_matrix(x1 - x0, SIDE)))


@functools.lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    """A fixed bank of unit noise [64, 32, 32, 3] (RandomState: its stream is frozen)."""
    return np.random.RandomState(0).standard_normal((64, SIDE, SIDE, 3)).astype(np.float32)


def soften(rng: random.Random, image: np.ndarray) -> np.ndarray:
    """The picture as a decoder might give it back: a little blurred (sigma <= .5) and noisy."""
    smooth = blur_matrix(SIDE, pick(rng, (0.3, 0.4, 0.5)))
    soft = _along_both(smooth, image.astype(np.float32), smooth)
    return finish(soft + (6 * rng.random()) * pick(rng, _grain()))
