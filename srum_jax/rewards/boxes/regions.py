"""Regions of an image that are worth a question: what they are, who finds the simple ones, crops.

Owns the one interface of all proposers and what is done to whatever they propose: cut to the
image, an area band, suppression of repeats, a limit that keeps small ones too. The proposers that
need nothing but pixels are here; those that need a model or a file are in `proposers.py`. Whether a
region shows what the prompt asks is the judge's business. Boxes are (x0, y0, x1, y1) in pixels,
the upper ends excluded.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from srum_jax.core.param_tree import Params

Box = tuple[float, float, float, float]

CONTRAST = 48  # levels of 255, in any channel, by which a pixel differs from the background
MIN_AREA = 0.012  # of the image, below which a group of pixels is a speck
MAX_REGIONS = 16  # a picture of specks must not cost a thousand questions
SAME_BOX = 0.9  # intersection over union from which two boxes are one


@dataclasses.dataclass(frozen=True)
class ProposedRegion:
    """A place in an image: its box and, where the proposer knows it, its mask, bool [H, W]."""

    box: Box
    mask: np.ndarray | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class PromptedImage:
    """What proposers and judges get: image uint8 [H, W, 3], its prompt, the candidate's id."""

    image: np.ndarray
    prompt: str = ""
    id: str = ""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is kept of proposals: areas as shares of the image, in [0, 1]; the intersection over
    union of boxes above which the smaller one is a repeat; how many regions an image."""

    min_area: float = 0.0
    max_area: float = 1.0
    overlap: float = SAME_BOX
    max_regions: int = MAX_REGIONS


DEFAULT = Limits()


class Proposer(Protocol):
    """A way to find regions.

    name: stands beside every region · separates: a box holds one whole object, so boxes may be
    counted and assigned to the prompt's objects; otherwise they only say where to ask · limits: of
    what is kept, which `propose` applies.
    """

    name: str
    separates: bool
    limits: Limits

    def find(
        self, images: Sequence[PromptedImage], *, params: Params | None = None
    ) -> list[list[ProposedRegion]]:
        """One list of regions an image. params: the model's, where it finds them itself;
        None: those it was opened with."""


def check_image(image: np.ndarray) -> np.ndarray:
    """The image itself; ValueError unless it is uint8 [H, W, 3] with at least one pixel."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image is {image.dtype}{list(image.shape)}: expected uint8 [H, W, 3]")
    return image


def foreground(image: np.ndarray) -> np.ndarray:
    """Which pixels are not background, bool [H, W].

    The background is the most common colour along the rim (of 16 levels a channel, refined to the
    mean of its pixels), so a plain ground of any colour and a little noise both work, however much
    of it is covered.
    """
    rim = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    coarse = (rim >> 4).astype(np.int32) @ np.array([256, 16, 1])
    common = rim[coarse == np.bincount(coarse).argmax()].mean(axis=0)
    return np.abs(image - common).max(axis=-1) >= CONTRAST


def find_components(image: np.ndarray) -> list[Box]:
    """One box around every group of touching (also diagonally) foreground pixels."""
    labels, _ = ndimage.label(foreground(image), structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel())
    found = ndimage.find_objects(labels)
    return [
        (float(cols.start), float(rows.start), float(cols.stop), float(rows.stop))
        for area, (rows, cols) in zip(areas[1:], found, strict=True)
        if area >= MIN_AREA * labels.size
    ]


def find_grid(image: np.ndarray, cells: int) -> list[Box]:
    """The cells of a regular grid of cells x cells that hold some foreground.

    Cells of plain background are left out: they hold nothing, so no score of theirs would mean
    anything.
    """
    mask = foreground(image)
    rows = np.linspace(0, mask.shape[0], cells + 1).round().astype(int)
    cols = np.linspace(0, mask.shape[1], cells + 1).round().astype(int)
    return [
        (float(x0), float(y0), float(x1), float(y1))
        for y0, y1 in zip(rows[:-1], rows[1:], strict=True)
        for x0, x1 in zip(cols[:-1], cols[1:], strict=True)
        if mask[y0:y1, x0:x1].sum() >= MIN_AREA * mask.size
    ]


@dataclasses.dataclass(frozen=True)
class ComponentsProposer:
    """Groups of touching foreground pixels: for pictures on a plain ground."""

    limits: Limits = DEFAULT
    name: ClassVar[str] = "components"
    separates: ClassVar[bool] = True

    def find(
        self, images: Sequence[PromptedImage], *, params: Params | None = None
    ) -> list[list[ProposedRegion]]:
        return [[ProposedRegion(box) for box in find_components(one.image)] for one in images]


@dataclasses.dataclass(frozen=True)
class GridProposer:
    """The cells of a grid of cells x cells that hold some foreground. Raises ValueError for fewer
    than 1 a side."""

    cells: int = 2
    limits: Limits = DEFAULT
    name: ClassVar[str] = "grid"
    separates: ClassVar[bool] = False

    def __post_init__(self):
        if self.cells < 1:
            raise ValueError(f"a grid of {self.cells} cells a side: give 1 or more")

    def find(
        self, images: Sequence[PromptedImage], *, params: Params | None = None
    ) -> list[list[ProposedRegion]]:
        return [[ProposedRegion(box) for box in find_grid(one.image, self.cells)] for one in images]


def overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box [4] with others [R, 4]: [R], 0 for empty boxes."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    return shared / np.maximum(union, 1e-9)


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Non-maximum suppression: places of the boxes [R, 4] by falling score [R], without those whose
    intersection over union with a better one exceeds `threshold`. The earlier of equals stays."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    kept: list[int] = []
    for index in np.argsort(-np.asarray(scores), kind="stable"):
        if not kept or overlap(boxes[index], boxes[kept]).max() <= threshold:
            kept.append(int(index))
    return kept


def suppress_repeats(boxes: Sequence[Box], threshold: float = SAME_BOX) -> list[int]:
    """`suppress` where the larger box is the better one."""
    array = np.array(boxes, np.float64).reshape(-1, 4)
    return suppress(array, (array[:, 2:] - array[:, :2]).prod(axis=1), threshold)


def _cut(region: ProposedRegion, height: int, width: int) -> ProposedRegion | None:
    """The region inside the image; None where nothing of it is."""
    x0, y0, x1, y1 = region.box
    box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if not all(map(np.isfinite, region.box)) or int(box[0]) >= box[2] or int(box[1]) >= box[3]:
        return None
    if region.mask is not None and region.mask.shape != (height, width):
        raise ValueError(f"a mask of {region.mask.shape} for an image of {(height, width)}")
    return dataclasses.replace(region, box=tuple(map(float, box)))


def area(region: ProposedRegion) -> float:
    """Pixels: those of the mask, otherwise of the box."""
    if region.mask is not None:
        return float(region.mask.sum())
    x0, y0, x1, y1 = region.box
    return (x1 - x0) * (y1 - y0)


def _spread(found: Sequence[ProposedRegion], most: int) -> list[ProposedRegion]:
    """At most `most` of regions in order of size, evenly over the order: small ones stay too."""
    if len(found) <= most:
        return list(found)
    return [found[i] for i in np.linspace(0, len(found) - 1, most).round().astype(int)]


def clean(
    found: Sequence[ProposedRegion], height: int, width: int, limits: Limits
) -> tuple[ProposedRegion, ...]:
    """Proposals of an image as they are judged: cut, banded, without repeats, largest box first."""
    inside = [r for region in found if (r := _cut(region, height, width)) is not None]
    low, high = (share * height * width for share in (limits.min_area, limits.max_area))
    banded = [region for region in inside if low <= area(region) <= high]
    kept = [banded[i] for i in suppress_repeats([region.box for region in banded], limits.overlap)]
    return tuple(_spread(kept, limits.max_regions))


def propose(
    proposer: Proposer, images: Sequence[PromptedImage], *, params: Params | None = None
) -> list[tuple[ProposedRegion, ...]]:
    """Different regions of each image, largest box first, within the proposer's limits.

    Raises ValueError for a thing that is no image, or a proposer that answers for too few.
    """
    for one in images:
        check_image(one.image)
    found = proposer.find(images, params=params)
    if len(found) != len(images):
        raise ValueError(f"{proposer.name} proposed for {len(found)} of {len(images)} images")
    return [
        clean(regions, *one.image.shape[:2], proposer.limits)
        for one, regions in zip(images, found, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Proposals:
    """Images with the regions of one proposer, which judges are asked about.

    regions: of each image, as `propose` gives them · proposer, separates: its name, and whether a
    region of it is an object.
    """

    images: Sequence[PromptedImage]
    regions: Sequence[tuple[ProposedRegion, ...]]
    proposer: str
    separates: bool

    @classmethod
    def of(
        cls, proposer: Proposer, images: Sequence[PromptedImage], *, params: Params | None = None
    ) -> "Proposals":
        """Those that `proposer` makes; raises ValueError as `propose` does."""
        found = propose(proposer, images, params=params)
        return cls(images, found, proposer.name, proposer.separates)


def outline(image: np.ndarray, box: Box) -> np.ndarray:
    """The image with a white frame, lined in black, just outside a box: visible on any ground.

    uint8 [H, W, 3] -> the same; lines are 1/192 of the shorter side, at least a pixel.
    """
    framed = Image.fromarray(check_image(image))
    draw = ImageDraw.Draw(framed)
    line = max(1, min(framed.size) // 192)
    x0, y0, x1, y1 = (int(v) for v in box)
    for inner, color in ((0, "black"), (line, "white"), (2 * line, "black")):
        grown = (x0 - inner - line, y0 - inner - line, x1 + inner + line - 1, y1 + inner + line - 1)
        draw.rectangle(grown, outline=color, width=line)
    return np.asarray(framed)


def crop(image: np.ndarray, box: Box, margin: int = 1, side: int = 0) -> np.ndarray:
    """The box and `margin` pixels around it, resized bilinearly to the image's own size, or so that
    its longer side has `side` pixels, if that is not 0.

    uint8 [H, W, 3] -> uint8 [h, w, 3]. Raises ValueError for a box that holds no pixel of it.
    """
    image = check_image(image)
    height, width = image.shape[:2]
    x0, y0 = max(int(box[0]) - margin, 0), max(int(box[1]) - margin, 0)
    x1, y1 = min(int(box[2]) + margin, width), min(int(box[3]) + margin, height)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"box {tuple(box)} holds no pixel of an image of {width}x{height}")
    part = Image.fromarray(image[y0:y1, x0:x1])
    size = (width, height)
    if side:
        scale = side / max(part.size)
        size = tuple(max(1, round(n * scale)) for n in part.size)
    return np.asarray(part.resize(size, Image.Resampling.BILINEAR))
