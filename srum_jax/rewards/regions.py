"""Who proposes regions: boxes of an image that are worth a question, and crops of them.

A proposer looks at pixels only; whether a box shows what the prompt asks is the judge's business.
Boxes are (x0, y0, x1, y1) in pixels, the upper ends excluded.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

Box = tuple[float, float, float, float]
Find = Callable[[np.ndarray], list[Box]]  # image uint8 [H, W, 3] -> boxes

CONTRAST = 48  # levels of 255, in any channel, by which a pixel differs from the background
MIN_AREA = 0.012  # of the image, below which a group of pixels is a speck
MAX_REGIONS = 16  # the largest are kept; a picture of specks must not cost a thousand questions
SAME_BOX = 0.9  # intersection over union from which two boxes are one


@dataclasses.dataclass(frozen=True)
class Proposer:
    """A way to find regions. `separates`: a box holds one whole object, so boxes may be counted
    and assigned to the prompt's objects; otherwise they only say where to look."""

    name: str
    find: Find
    separates: bool


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

    Cells of plain background are left out: they show nothing, so no score of theirs would mean
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


# name -> what makes the proposer, given the grid's cells a side
PROPOSERS: dict[str, Callable[[int], Proposer]] = {
    "components": lambda cells: Proposer("components", find_components, separates=True),
    "grid": lambda cells: Proposer("grid", functools.partial(find_grid, cells=cells), False),
}


def proposer(name: str, cells: int = 2) -> Proposer:
    """The named proposer; `cells` a side for "grid". ValueError for a name or number unknown."""
    if name not in PROPOSERS:
        raise ValueError(f"proposer {name!r} is none of {', '.join(PROPOSERS)}")
    if cells < 1:
        raise ValueError(f"a grid of {cells} cells a side: give 1 or more")
    return PROPOSERS[name](cells)


def overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box [4] with others [R, 4]: [R], 0 for empty boxes."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    return shared / np.maximum(union, 1e-9)


def suppress(boxes: list[Box], threshold: float = SAME_BOX) -> list[Box]:
    """The boxes, largest first, without those that repeat a larger one (overlap > threshold)."""
    array = np.array(boxes, np.float64).reshape(-1, 4)
    order = np.argsort(-(array[:, 2:] - array[:, :2]).prod(axis=1), kind="stable")
    kept: list[int] = []
    for index in order:
        if not kept or overlap(array[index], array[kept]).max() <= threshold:
            kept.append(int(index))
    return [boxes[index] for index in kept]


def propose(how: Proposer, image: np.ndarray) -> list[Box]:
    """At most MAX_REGIONS different boxes of an image uint8 [H, W, 3], largest first.

    Raises ValueError for a thing that is no image.
    """
    return suppress(how.find(check_image(image)))[:MAX_REGIONS]


def crop(image: np.ndarray, box: Box, margin: int = 1) -> np.ndarray:
    """The box and `margin` pixels around it, resized bilinearly to the image's own size.

    uint8 [H, W, 3] -> uint8 [H, W, 3]. Raises ValueError for a box that holds no pixel of it.
    """
    image = check_image(image)
    height, width = image.shape[:2]
    x0, y0 = max(int(box[0]) - margin, 0), max(int(box[1]) - margin, 0)
    x1, y1 = min(int(box[2]) + margin, width), min(int(box[3]) + margin, height)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"box {tuple(box)} holds no pixel of an image of {width}x{height}")
    part = Image.fromarray(image[y0:y1, x0:x1])
    return np.asarray(part.resize((width, height), Image.Resampling.BILINEAR))
