"""Drawing the shapes world: scenes of coloured shapes as pictures, whole, spoiled or cropped.

Owns the palette, the shape templates, `Scene`/`Thing`, placing things in cells, and every pixel.
A picture is uint8 [S, S, 3], S the side of its setting (32 or 64), a crop always [32, 32, 3];
positions are pixels with the origin at the top left; a box is
(x0, y0, x1, y1), the upper ends excluded.  Random numbers come from `random.Random.random()`
alone, whose stream Python promises not to change, so pictures are the same on every machine.
"""

from __future__ import annotations

import bisect
import functools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from einops import reduce
from scipy import ndimage

from srum_jax.worlds.shapes.setting import SETTINGS, SMALL, Setting

SIDE = 32  # pixels a side of a crop, of whichever setting
SIZES = ("small", "big")
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

Pair = tuple[str, str]  # (color, shape)
Box = tuple[int, int, int, int]

_SHADE = 10.0  # an object's colour lies within this of the palette, per channel
_DARK = (14.0, 40.0)  # range of a background channel
_KNOTS = 7  # px between two places that `warped` moves independently
# Shapes whose blend with another is neither; of circle and square it is a square with soft corners.
_UNLIKE = {
    shape: tuple(s for s in SHAPES if s != shape and {s, shape} != {"circle", "square"})
    for shape in SHAPES
}
_SCALES = {  # by size: what is big in one setting is small in none
    size: scale for one in SETTINGS.values() for scale in SIZES for size in one.sizes(scale)
}


@dataclass(frozen=True)
class Thing:
    """One object: its colour and shape, its cell (row, col) and where it lies, in pixels.

    `size` is the side of its square box (one of its setting's), `centre` is (x, y), `tone` its
    exact RGB colour.
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
        return _SCALES[self.size]


@dataclass(frozen=True)
class Scene:
    """Things on a dark ground (RGB, each channel 14..40), at least one, at most one in a cell."""

    things: tuple[Thing, ...]
    ground: tuple[float, float, float]
    setting: Setting = SMALL


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


def place(
    rng: random.Random,
    pair: Pair,
    cell: tuple[int, int],
    scale: str = "",
    setting: Setting = SMALL,
) -> Thing:
    """A thing of the colour and shape in the cell, with drawn size, offset and tone.

    `scale` is "small", "big" or "" (either). It keeps one pixel free on each side of its cell, so
    neighbours never touch.
    """
    size = pick(rng, setting.sizes(scale or pick(rng, SIZES)))
    slack = setting.cell - 1 - size
    x = cell[1] * setting.cell + 1 + int(rng.random() * slack)
    y = cell[0] * setting.cell + 1 + int(rng.random() * slack)
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


def scatter(
    rng: random.Random,
    pairs: Sequence[Pair],
    scales: Sequence[str] = (),
    setting: Setting = SMALL,
) -> Scene:
    """A scene of these pairs in drawn cells, of these scales if they are given."""
    placed = zip(pairs, shuffled(rng, setting.cells), scales or ("",) * len(pairs), strict=False)
    return Scene(tuple(place(rng, *one, setting) for one in placed), ground(rng), setting)


def shifted(thing: Thing, right: int, down: int, setting: Setting = SMALL) -> Thing:
    """The thing so many pixels further right and down, in the cell that its centre is then in."""
    x0, y0, x1, y1 = thing.box
    x, y = thing.centre[0] + right, thing.centre[1] + down
    box = (x0 + right, y0 + down, x1 + right, y1 + down)
    row, col = setting.cell_at(x, y)
    return replace(thing, row=row, col=col, centre=(x, y), box=box)


def _between() -> dict[str, tuple[str, ...]]:
    """For each colour those whose mean with it is near no colour of the palette, drawn tones'
    spread allowed for."""
    means = (PALETTE[:, None] + PALETTE) / 2
    distance = np.sqrt(((means[:, :, None] - PALETTE) ** 2).sum(-1)).min(-1)
    return {
        color: tuple(other for j, other in enumerate(COLORS) if distance[i, j] > 75)
        for i, color in enumerate(COLORS)
    }


_BETWEEN = _between()


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


def empty_picture(scene: Scene) -> np.ndarray:
    """A picture of nothing but the scene's ground, float32 [S, S, 3] in 0..255."""
    image = np.empty((scene.setting.side, scene.setting.side, 3), np.float32)
    image[:] = scene.ground
    return image


def stamp(image: np.ndarray, cover: np.ndarray, corner: tuple[int, int], tone: Any) -> None:
    """Blends `tone` (RGB or [h, w, 3]) into a float picture in place; corner is (x, y)."""
    x, y = corner
    h, w = cover.shape
    part = image[y : y + h, x : x + w]
    part += cover[..., None] * (np.asarray(tone, np.float32) - part)


def finish(image: np.ndarray) -> np.ndarray:
    """The float picture as uint8 of the same shape."""
    return (np.clip(image, 0, 255) + 0.5).astype(np.uint8)


def draw(scene: Scene) -> np.ndarray:
    """The scene as uint8 [S, S, 3]; a pure function of the scene."""
    image = empty_picture(scene)
    for thing in scene.things:
        stamp(image, template(thing.shape, thing.size), thing.box[:2], thing.tone)
    return finish(image)


def draw_flawed(rng: random.Random, scene: Scene, index: int, flaw: str) -> np.ndarray:
    """The scene with thing `index` malformed, uint8 [S, S, 3].

    half: one half is another shape; mixed: one half has another colour; cut: about half of it is
    missing; blurred: its cell is smeared (sigma 1.2..2.4 px); blend: two shapes at once, each
    half there; bite: a round piece of it is missing; tint: its colour lies between two; warp: its
    outline is moved by up to 2..3 px; stretch: it is 3 or 4 px shorter along one axis.
    """
    return _with_flaws(rng, scene, {index: flaw})


def draw_imperfect(
    rng: random.Random, scene: Scene, share: float, flaws: Sequence[str]
) -> np.ndarray:
    """The scene with each thing malformed with probability `share`, in one of `flaws` (see
    `draw_flawed`), uint8 [S, S, 3]."""
    things = range(len(scene.things))
    return _with_flaws(rng, scene, {i: pick(rng, flaws) for i in things if rng.random() < share})


def _with_flaws(rng: random.Random, scene: Scene, flaws: Mapping[int, str]) -> np.ndarray:
    """The scene with the things of these numbers malformed, uint8 [S, S, 3]."""
    image, side = empty_picture(scene), scene.setting.cell
    for i, thing in enumerate(scene.things):
        cover, tone = template(thing.shape, thing.size), thing.tone
        if i in flaws:
            cover, tone = _spoil(rng, thing, flaws[i])
        stamp(image, cover, thing.box[:2], tone)
    for i, flaw in flaws.items():
        y, x = scene.things[i].row * side, scene.things[i].col * side
        cell = image[y : y + side, x : x + side]
        if flaw == "blurred":
            smear = blur_matrix(side, pick(rng, (1.2, 1.4, 1.6, 2.0, 2.4)))
            cell[:] = _along_both(smear, cell, smear)
        elif flaw == "warp":
            cell[:] = warped(rng, cell, 2.0 + rng.random())
    return finish(image)


def warped(rng: random.Random, image: np.ndarray, reach: float) -> np.ndarray:
    """A picture [h, w, 3], float32, whose pixels are moved smoothly, by up to `reach` px along each
    axis: what a model draws that knows a shape but not its outline."""
    height, width, _ = image.shape
    rows, columns = (_resize_matrix(side // _KNOTS + 1, side) for side in (height, width))
    moves = []
    for _ in range(2):
        knots = [[2 * rng.random() - 1 for _ in columns[0]] for _ in rows[0]]
        moves.append(reach * (rows @ np.array(knots, np.float32) @ columns.T))
    at = np.mgrid[:height, :width] + np.stack(moves)
    move = functools.partial(ndimage.map_coordinates, coordinates=at, order=1, mode="nearest")
    return np.stack([move(channel) for channel in np.moveaxis(image, -1, 0)], -1)


def _spoil(rng: random.Random, thing: Thing, flaw: str):
    """Cover and tone of a malformed thing."""
    cover = template(thing.shape, thing.size).copy()
    if flaw in ("blurred", "warp"):  # what becomes of its whole cell
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
    elif flaw == "blend":
        shapes = _UNLIKE[thing.shape]
        cover = (cover + template(pick(rng, shapes), thing.size)) / 2
    elif flaw == "bite":
        rows, cols = np.nonzero(cover > 0.5)
        at = int(rng.random() * len(rows))
        y, x = np.ogrid[: thing.size, : thing.size]
        near = (y - rows[at]) ** 2 + (x - cols[at]) ** 2
        cover[near <= (thing.size * (0.25 + 0.1 * rng.random())) ** 2] = 0
    elif flaw == "stretch":
        shorter = _resize_matrix(thing.size, thing.size - pick(rng, (3, 4)))
        cover = shorter @ cover if first else cover @ shorter.T
        tone = thing.tone
    elif flaw == "tint":
        other = PALETTE[COLORS.index(pick(rng, _BETWEEN[thing.color]))]
        tone = (tone + other) / 2
    else:
        raise ValueError(f"flaw {flaw!r} is none that a thing can have")
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


@functools.cache
def _grain(side: int) -> np.ndarray:
    """A fixed bank of unit noise [64, side, side, 3] (RandomState: its stream is frozen)."""
    return np.random.RandomState(0).standard_normal((64, side, side, 3)).astype(np.float32)


def soften(rng: random.Random, image: np.ndarray) -> np.ndarray:
    """The picture as a decoder might give it back: a little blurred (sigma <= .5) and noisy."""
    side = len(image)
    smooth = blur_matrix(side, pick(rng, (0.3, 0.4, 0.5)))
    soft = _along_both(smooth, image.astype(np.float32), smooth)
    return finish(soft + (6 * rng.random()) * pick(rng, _grain(side)))
