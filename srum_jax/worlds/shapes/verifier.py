"""The exact verifier of the shapes world: does this picture show what this prompt says?

Owns finding objects in pixels and judging them.  It reads pixels only: connected components on the
dark ground, distance to the palette, overlap with the shape templates.  Right means exactly the
demanded objects, each well made, nothing else, and the relation between their cells.  Strict on
smeared, half-made and two-coloured objects; lenient on what an autoencoder does to clean ones.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import reduce
from scipy import ndimage

from srum_jax.worlds.shapes import reasons
from srum_jax.worlds.shapes.changes import Edit
from srum_jax.worlds.shapes.language import Content, name, parse, scene_contents
from srum_jax.worlds.shapes.rendering import (
    COLORS,
    PALETTE,
    SHAPES,
    Box,
    Pair,
    Scene,
    template,
)
from srum_jax.worlds.shapes.setting import SETTINGS, SMALL, Setting, of_side

GROUND_DISTANCE = 60.0  # RGB distance from the ground at which a pixel belongs to an object
SPECK = 8  # components of fewer pixels are noise, not objects
COLOR_DISTANCE = 55.0  # from an object's tone to its palette colour (drawn tones: within 18)
COLOR_MARGIN = 20.0  # how much nearer the best palette colour must be than the second
TONE_SPREAD = 36.0  # how far an inner pixel may be off the line from the ground to the tone
# (decoded ones: within 18; halves of pink and white, taken for one tone between them: 40),
MIN_TONE = 0.45  # how weak it may be on that line (softness darkens corners),
TONE_WRONG = 0.12  # and the share of inner pixels that may break these
OVERLAP = 0.91  # least overlap (Tanimoto, sharpened cover) with the template: half-made reach .905
OVERLAP_MARGIN = 0.05  # over the best template of another shape
WRONG_PIXELS = 2  # pixels whose cover is off by more than .6: half-made shapes have more
EDGE_ERROR = 0.66  # px: cover error per length of outline; a Gaussian blur gives about .8 sigma
_PAD = 3
_CORNERS = tuple(2 + i / 2 for i in range(6))  # an object's corner in its window
# Of each shape in a unit box: its area, how far down its centroid is, and its outline's length.
_AREA = np.array([np.pi / 4, 1.0, 0.5, 0.5904])
_CENTROID = np.array([0.5, 0.5, 2 / 3, 0.5])
_OUTLINE = dict(zip(SHAPES, (np.pi, 4.0, 1 + 5**0.5, 4.0), strict=True))


@dataclass(frozen=True)
class DetectedObject:
    """One object found: its box in px; `flaw` is "" or why it is not a well-made object.

    `scale` is "small", "big", or "" where its size lies between.
    """

    color: str
    shape: str
    box: Box
    flaw: str = ""
    scale: str = ""

    @property
    def pair(self) -> Pair:
        return self.color, self.shape


@dataclass(frozen=True)
class PictureVerdict:
    """`objects`: per demanded object, in the prompt's order, whether a well-made one is there;
    `found`: the well-made objects as (color, shape, box); `reason`: "" if right."""

    right: bool
    objects: tuple[bool, ...]
    found: tuple[tuple[str, str, Box], ...]
    reason: str


def verify(image: np.ndarray, prompt: str) -> PictureVerdict:
    """Judges a picture, uint8 of its setting's size, against a prompt of the shapes world.

    ValueError for another kind of picture or a prompt outside the setting's grammar.
    """
    setting = setting_of(image)
    content = parse(prompt, setting)
    seen = see(image)
    made = [s for s in seen if not s.flaw]
    left = Counter(s.pair for s in made)
    objects = []
    for pair in demanded(prompt, setting):
        objects.append(left[pair] > 0)
        left[pair] -= objects[-1]
    reason = _reason(content, seen, made, tuple(objects), setting)
    found = tuple((s.color, s.shape, s.box) for s in made)
    return PictureVerdict(not reason, tuple(objects), found, reason)


def verify_edit(image: np.ndarray, edit: Edit) -> bool:
    """Whether a picture shows what the edit demands, and nothing else changed.

    The things it keeps must be where they were (by cell), well made, of their colour and shape;
    what it makes or moves where it must be; sizes may differ.
    """
    return not edit_fault(image, edit)


def edit_fault(image: np.ndarray, edit: Edit) -> str:
    """Why `verify_edit` finds a picture wrong; "" if it is right."""
    seen, setting = see(image), setting_of(image)
    for thing in seen:
        if thing.flaw:
            return reasons.malformed(thing.box, thing.flaw, setting)
    found = [(s.pair, cell_of(s.box, setting)) for s in seen]
    kept = [(t.pair, (t.row, t.col)) for t in edit.kept]
    return reasons.of_edit(kept, edit.new, edit.cell, found, setting)


def verify_caption(text: str, scene: Scene) -> bool:
    """Whether a caption says what the scene shows, all of it and nothing else."""
    return not caption_fault(text, scene)


def caption_fault(text: str, scene: Scene) -> str:
    """Why `verify_caption` finds a caption wrong; "" if it is right."""
    try:
        right = parse(text, scene.setting) in scene_contents(scene)
    except ValueError:
        right = False
    return "" if right else reasons.of_caption(text, scene)


def verify_region(image: np.ndarray, box: Sequence[float], prompt: str) -> bool:
    """Whether the box holds one object, well made, that the prompt names: see `region_shows`."""
    return region_shows(image, box, prompt) is not None


def region_shows(image: np.ndarray, box: Sequence[float], prompt: str) -> Pair | None:
    """Which of the prompt's objects the box (x0, y0, x1, y1 in px) holds, alone and well made.

    An object is in the box if its centre is; at least 80 % of it must be.
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    inside = []
    for seen in see(image):
        a, b, c, d = seen.box
        if x0 <= (a + c) / 2 <= x1 and y0 <= (b + d) / 2 <= y1:
            covered = (min(c, x1) - max(a, x0)) * (min(d, y1) - max(b, y0))
            inside.append((seen, covered / ((c - a) * (d - b))))
    if len(inside) != 1:
        return None
    seen, covered = inside[0]
    wanted = parse(prompt, setting_of(image)).pairs
    return seen.pair if not seen.flaw and covered >= 0.8 and seen.pair in wanted else None


def stated(image: np.ndarray, prompt: str) -> dict[str | Pair, bool]:
    """What the prompt states of its objects besides colour and shape, and whether it is so: under
    "relation" and under the pair whose size it states. Of objects that are not there nothing."""
    setting = setting_of(image)
    content = parse(prompt, setting)
    return _stated(content, [s for s in see(image) if not s.flaw], setting)


def _stated(content: Content, made, setting: Setting) -> dict[str | Pair, bool]:
    """`stated` of the well-made objects."""
    there = {s.pair: s for s in reversed(made)}
    found: dict[str | Pair, bool] = {}
    if content.relation and set(content.pairs) <= set(there):
        axis = 1 if content.relation == "left" else 0  # of (row, column)
        first, second = (cell_of(there[p].box, setting)[axis] for p in content.pairs)
        found["relation"] = first < second
    sized = zip(content.pairs, content.sizes, strict=bool(content.sizes))
    return found | {pair: there[pair].scale == size for pair, size in sized if pair in there}


def demanded(prompt: str, setting: Setting = SMALL) -> tuple[Pair, ...]:
    """The pairs that the prompt demands, in the order of its words."""
    content = parse(prompt, setting)
    if len(set(content.pairs)) < len(content.pairs):
        return content.pairs
    return tuple(sorted(content.pairs, key=lambda pair: prompt.lower().find(name(pair))))


def _reason(content: Content, seen, made, objects, setting: Setting) -> str:
    """Why the picture is wrong, or "" if it is right."""
    for thing in seen:
        if thing.flaw:
            return reasons.malformed(thing.box, thing.flaw, setting)
    if not all(objects) or len(made) != len(objects):
        return reasons.of_objects(content.pairs, [thing.pair for thing in made])
    is_so = _stated(content, made, setting)
    if not is_so.get("relation", True):
        return reasons.of_relation(content)
    for pair, size in zip(content.pairs, content.sizes, strict=bool(content.sizes)):
        if not is_so[pair]:
            return f"{name(pair)} is not {size}"
    return ""


def cell_of(box: Sequence[float], setting: Setting) -> tuple[int, int]:
    """(row, column) of the cell in which the centre of a box lies."""
    return setting.cell_at((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)


def setting_of(image: np.ndarray) -> Setting:
    """The setting that a picture is of, by its size. ValueError for one that is of none."""
    found = of_side(image.shape[0])
    if found is None or image.shape != (found.side, found.side, 3) or image.dtype != np.uint8:
        known = " or ".join(f"[{one.side}, {one.side}, 3]" for one in SETTINGS.values())
        raise ValueError(
            f"the shapes verifier reads uint8 {known}, not "
            f"{image.dtype} {list(image.shape)}: give it the picture unscaled"
        )
    return found


def see(image: np.ndarray) -> tuple[DetectedObject, ...]:
    """The objects of a picture, uint8 of its setting's size, malformed ones with their flaw."""
    return _see(image.tobytes(), setting_of(image))


@functools.lru_cache(maxsize=256)  # the regions of one picture are asked about one by one
def _see(data: bytes, setting: Setting) -> tuple[DetectedObject, ...]:
    side, bank = setting.side, _bank(setting)
    pixels = np.frombuffer(data, np.uint8).reshape(side, side, 3).astype(np.float32)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    ground = np.sort(rim, axis=0)[len(rim) // 2]
    padded = _PAD + side + bank.window
    light = np.zeros((padded, padded, 3), np.float32)
    light[_PAD : _PAD + side, _PAD : _PAD + side] = pixels - ground
    labels, _ = ndimage.label((light * light).sum(-1) > GROUND_DISTANCE**2)
    areas = np.bincount(labels.ravel())
    boxes = ndimage.find_objects(labels)
    return tuple(
        _look(bank, light, labels, ground, i + 1, where)
        for i, where in enumerate(boxes)
        if areas[i + 1] >= SPECK
    )


def _look(
    bank: _Bank, light, labels, ground, label: int, where: tuple[slice, slice]
) -> DetectedObject:
    """Judges one component; `light` (picture minus ground) and `labels` are padded."""
    smallest, largest = bank.setting.fitted
    small, big = bank.setting.limits
    y, x = where[0].start - _PAD, where[1].start - _PAD
    height, width = where[0].stop - _PAD - y, where[1].stop - _PAD - x
    box = (x, y, x + width, y + height)
    if abs(height - width) > 2 or not smallest - 1 <= max(height, width) <= largest + 1.5:
        return DetectedObject("none", "none", box, f"{width}x{height} px is no object's size")
    window = (slice(y, y + bank.window), slice(x, x + bank.window))
    part, label_part = light[window], labels[window]
    own = part[label_part == label]
    strength = (own * own).sum(-1)
    core = own[strength >= 0.6 * strength.max()]
    tone = np.sort(core, axis=0)[len(core) // 2]
    color = _color(tone + ground)
    if color is None:
        return DetectedObject("none", "none", box, "its colour is none of the palette")
    cover = np.clip(part @ (tone / (tone @ tone)), 0, 1)
    cover[(label_part != label) & (label_part != 0)] = 0
    fit, flaw = _shape(bank, cover)
    if not flaw and _two_toned(part, tone, fit):
        flaw = "not of one colour"
    if flaw:
        return DetectedObject("none", "none", box, flaw)
    scale = "small" if fit.size <= small else "big" if fit.size >= big else ""
    return DetectedObject(color, fit.shape, box, scale=scale)


def _color(tone: np.ndarray) -> str | None:
    """The palette colour of an RGB tone; None where none is near or two are."""
    distance = np.sqrt(((PALETTE - tone) ** 2).sum(-1))
    best = int(distance.argmin())
    second = np.partition(distance, 1)[1]
    near = distance[best] <= COLOR_DISTANCE and second - distance[best] >= COLOR_MARGIN
    return COLORS[best] if near else None


@dataclass(frozen=True)
class _Fit:
    """A template in the window: shape, size (px), cover [w, w], its corner (y, x)."""

    shape: str
    size: float
    cover: np.ndarray
    corner: tuple[float, float]


def _overlaps(bank: _Bank, cover: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per shape, the 27 templates near where area and centroid put it: rows of the bank and
    their Tanimoto overlaps with the cover, both [shapes, 27]."""
    axis = np.arange(bank.window, dtype=np.float32) + 0.5
    strides = np.array([bank.grid[1] * bank.grid[2], bank.grid[2], 1])
    around = np.array(list(itertools.product((-1, 0, 1), repeat=3))) @ strides
    solid = np.where(cover > 0.15, cover, 0)
    down, across = solid.sum(1), solid.sum(0)
    area = float(down.sum())
    size = np.sqrt(area / _AREA)
    pose = np.stack(
        [
            size - bank.sizes[0],
            axis @ down / area - _CENTROID * size - _CORNERS[0],
            axis @ across / area - 0.5 * size - _CORNERS[0],
        ],
        axis=-1,
    )
    # A neighbour on both sides, in half-pixel steps.
    step = np.clip(np.rint(2 * pose).astype(int), 1, np.array(bank.grid) - 2)
    rows = (np.arange(len(SHAPES)) * np.prod(bank.grid) + step @ strides)[:, None] + around
    sharpened = _sharpen(cover).ravel()
    both = bank.sharp[rows.ravel()] @ sharpened
    overlap = both / (bank.squares[rows.ravel()] + sharpened @ sharpened - both)
    return rows, overlap.reshape(rows.shape)


def _shape(bank: _Bank, cover: np.ndarray) -> tuple[_Fit, str]:
    """The template that fits the window best, and a flaw or ""."""
    rows, overlap = _overlaps(bank, cover)
    best = overlap.max(1)
    index = int(best.argmax())
    row = int(rows[index, overlap[index].argmax()])
    _, i, j, k = np.unravel_index(row, (len(SHAPES), *bank.grid))
    corner = (_CORNERS[j], _CORNERS[k])
    fit = _Fit(SHAPES[index], bank.sizes[i], bank.soft[row].reshape(cover.shape), corner)
    if best[index] < OVERLAP or best[index] - np.partition(best, -2)[-2] < OVERLAP_MARGIN:
        return fit, "its outline is no shape's"
    error = np.abs(fit.cover - cover)
    if np.count_nonzero(error > 0.6) > WRONG_PIXELS:
        return fit, "a part of its outline is wrong"
    if error.sum() > EDGE_ERROR * _OUTLINE[fit.shape] * fit.size:
        return fit, "its edge is smeared"
    return fit, ""


def _two_toned(part: np.ndarray, tone: np.ndarray, fit: _Fit) -> bool:
    """Whether too many pixels inside the object have another colour than the whole."""
    inside = part[fit.cover > 0.95]
    strength = inside @ (tone / (tone @ tone))
    off = inside - strength[:, None] * tone
    wrong = (strength < MIN_TONE) | ((off * off).sum(1) > TONE_SPREAD**2)
    return np.count_nonzero(wrong) > TONE_WRONG * len(inside)


def _sharpen(cover: np.ndarray) -> np.ndarray:
    """Cover pushed towards 0 and 1, so that a soft edge in the right place costs little."""
    return np.clip((cover - 0.5) * 2.5 + 0.5, 0, 1)


@dataclass(frozen=True)
class _Bank:
    """Of a setting, covers [n, w·w] of all shapes x sizes x corners y x corners x, sharpened
    covers, and the sums of their squares [n]; windows of w x w pixels, sizes in px."""

    setting: Setting
    window: int
    sizes: tuple[float, ...]
    soft: np.ndarray
    sharp: np.ndarray
    squares: np.ndarray

    @property
    def grid(self) -> tuple[int, int, int]:
        """How many sizes, corners down and corners across there are."""
        return len(self.sizes), len(_CORNERS), len(_CORNERS)


@functools.cache
def _bank(setting: Setting) -> _Bank:
    """All templates in half-pixel sizes and positions, drawn at twice the resolution."""
    smallest, largest = setting.fitted
    sizes = tuple(np.arange(smallest, largest + 0.25, 0.5).tolist())
    window = int(largest) + 6
    fine = np.zeros((len(SHAPES), len(sizes), *[len(_CORNERS)] * 2, *[2 * window] * 2), np.float32)
    for i, shape in enumerate(SHAPES):
        for j, size in enumerate(sizes):
            cover = template(shape, int(2 * size))
            for k, y in enumerate(_CORNERS):
                for m, x in enumerate(_CORNERS):
                    rows, columns = (slice(int(2 * v), int(2 * (v + size))) for v in (y, x))
                    fine[i, j, k, m, rows, columns] = cover
    soft = reduce(fine, "s z y x (h a) (w b) -> (s z y x) (h w)", "mean", a=2, b=2)
    sharp = _sharpen(soft)
    return _Bank(setting, window, sizes, soft, sharp, (sharp * sharp).sum(-1))
