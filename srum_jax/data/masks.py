"""Where a region lies in its image, pixel by pixel: masks as bytes, resized, and over tokens.

Owns the stored form of a mask, the way boxes and masks follow their image through a resize, and the
share of every latent token that a region covers (`cover`, on the host: a batch carries it only
where there are masks; boxes alone are located on the device, `rewards/maps.py`).

Masks are bool [H,W]; boxes (x0, y0, x1, y1) in pixels, upper ends excluded, fractions cut towards
zero. Axes: R regions, P points that a token reads.
"""

import io
from collections.abc import Sequence

import numpy as np
from einops import rearrange, reduce
from PIL import Image, ImageFilter

from srum_jax.data.images import check_size, readable, resized
from srum_jax.data.letterbox import place
from srum_jax.data.schema import LayoutSizes, Sampling

POINTS = {"centre": 4, "area": 1}  # what a token reads: four pixels at its centre, or its cell


# -------------------------------------------------------------------------------- as stored bytes


def encode(mask: np.ndarray) -> bytes:
    """bool [H,W] -> PNG bytes, one bit a pixel. Raises ValueError for an array of another kind."""
    buffer = io.BytesIO()
    Image.fromarray(_checked(mask)).convert("1").save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def decode(data: bytes, size: tuple[int, int], *, name: str) -> np.ndarray:
    """PNG bytes -> bool [H,W] of an image of `size` (H, W) pixels.

    Raises ValueError naming `name` for damaged bytes, for a PNG of more than one bit a pixel, and,
    before any pixel is decoded, for another size than the image's.
    """
    with readable(name, "mask"):
        image = Image.open(io.BytesIO(data), formats=("PNG",))
    height, width = size
    if image.size != (width, height):
        raise ValueError(
            f"{name}: a mask of {image.size[0]}x{image.size[1]} pixels for an image of "
            f"{width}x{height}: they must be of one size"
        )
    check_size(*image.size, name=name)
    if image.mode != "1":
        raise ValueError(f"{name}: a mask has one bit a pixel, this PNG is of mode {image.mode}")
    with readable(name, "mask"):
        return np.array(image, bool)


def _checked(mask: np.ndarray) -> np.ndarray:
    if mask.dtype != bool or mask.ndim != 2 or not mask.size:
        raise ValueError(f"a mask is bool [H,W], not {mask.dtype} {list(mask.shape)}")
    return mask


# -------------------------------------------------------------------- through the image's resize


def resize(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [H,W] -> bool of `size` (h, w), through the filter that resizes its image.

    A pixel belongs to the mask if white paint on it keeps half its brightness or more through
    `images.resize`. A mask too thin for that keeps the pixels where most of it is left, so none
    vanishes.
    """
    height, width = size
    if _checked(mask).shape == (height, width):
        return mask
    paint = Image.fromarray(mask.astype(np.uint8) * 255)
    kept = np.asarray(paint.resize((width, height), Image.Resampling.BICUBIC)) >= 128
    if kept.any() or not mask.any():
        return kept
    left = np.asarray(paint.convert("F").resize((width, height), Image.Resampling.BICUBIC))
    return left == left.max()


def resize_boxes(boxes: np.ndarray, size: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Boxes [R,4] of an image of `size` (H, W) -> whole pixels of it resized to `new` (h, w).

    float32 [R,4]: cut to whole pixels of the image as everywhere, scaled as it is, and rounded to
    the nearest pixel edge; a box that held pixels of the image still holds one, others are empty.
    """
    old, new = np.array(size[::-1]), np.array(new[::-1])
    boxes = np.trunc(np.asarray(boxes, np.float64).reshape(-1, 4))
    low, high = np.clip(boxes[:, :2], 0, old), np.clip(boxes[:, 2:], 0, old)
    first, last = (np.floor(end * new / old + 0.5) for end in (low, high))
    vanished = (low < high) & (first >= last)
    middle = np.floor((low + high) * new / (2 * old))
    first, last = np.where(vanished, middle, first), np.where(vanished, middle + 1, last)
    return np.concatenate([first, last], axis=1).astype(np.float32)


def latent_boxes(boxes: np.ndarray, size: tuple[int, int], layout: LayoutSizes) -> np.ndarray:
    """Boxes [R,4] of an image of `size` (H, W) where `images.latent_image` puts what they hold:
    whole pixels, float32 [R,4], as `resize_boxes`."""
    long = layout.max_latent * layout.token_pixels
    if layout.square:
        top, left, rows, columns = place(*size, long)
        return resize_boxes(boxes, size, (rows, columns)) + np.float32([left, top, left, top])
    step = layout.token_pixels
    width, height = resized(size[1], size[0], long=long, short=long // 2, stride=step)
    return resize_boxes(boxes, size, (height, width))


def dilated(
    boxes: np.ndarray,
    masks: Sequence[np.ndarray | None] | None,
    size: tuple[int, int],
    pixels: int,
) -> tuple[np.ndarray, tuple[np.ndarray | None, ...] | None]:
    """Boxes float32 [R,4] and masks (or None) of an image of `size` (H, W), each grown by `pixels`
    on every side and cut to the image: what a latent's receptive field carries a region to."""
    low, high = boxes[:, :2] - pixels, boxes[:, 2:] + pixels
    ends = np.clip(low, 0, None), np.clip(high, None, np.array(size[::-1]))
    grown = np.concatenate(ends, axis=1).astype(np.float32) if pixels else boxes
    if masks is None or not pixels:
        return grown, None if masks is None else tuple(masks)
    return grown, tuple(None if mask is None else _grown(mask, pixels) for mask in masks)


def _grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    paint = Image.fromarray(_checked(mask).astype(np.uint8) * 255)
    return np.asarray(paint.filter(ImageFilter.MaxFilter(2 * pixels + 1))) > 0


# ------------------------------------------------------------------------------ over latent tokens


def cover(
    boxes: np.ndarray,
    masks: Sequence[np.ndarray | None] | None,
    size: tuple[int, int],
    grid: tuple[int, int],
    sampling: Sampling,
) -> tuple[np.ndarray, np.ndarray]:
    """(inside [h·w,P,R], weights [h·w,P]), float32, of an image of `size` (H, W), `grid` (h, w).

    inside: the share of what a token reads that a region's mask, or its box if it has none, covers:
    of "area" the token's cell of H/h × W/w pixels (P = 1, exact), of "centre" each of the four
    pixels of the bilinear sample (P = 4, 0 or 1), whose weights sum to 1. Raises ValueError for a
    mask that is not bool of the image's size.
    """
    masks = (None,) * len(boxes) if masks is None else masks
    if len(masks) != len(boxes):
        raise ValueError(f"{len(masks)} masks for {len(boxes)} boxes: give one a box, or None")
    if sampling == "area":
        share, points = _of_cells, [np.ones((n, 1)) for n in grid]
        reads = [_cells(*n) for n in zip(grid, size, strict=True)]
    else:
        share = _of_pixels
        reads, points = zip(*map(bilinear_points, grid, size), strict=True)
    inside = np.zeros((*grid, POINTS[sampling], len(masks)), np.float32)
    for r, (box, mask) in enumerate(zip(boxes, masks, strict=True)):
        if mask is not None and _checked(mask).shape != tuple(size):
            raise ValueError(
                f"region {r}: a mask of {list(mask.shape)} pixels for an image of {list(size)}"
            )
        rows, cols = _box(box, size)
        found = share(rows, cols, mask, reads)
        inside[..., r] = rearrange(found, "(h a) (w b) -> h w (a b)", h=grid[0], w=grid[1])
    weights = np.einsum("ha,wb->hwab", *points).astype(np.float32)
    return (
        rearrange(inside, "h w p r -> (h w) p r"),
        rearrange(weights, "h w a b -> (h w) (a b)"),
    )


def _box(box: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The rows, bool [H], and columns, bool [W], that a box holds."""
    x0, y0, x1, y1 = np.trunc(box)
    rows, cols = (np.arange(n) for n in size)
    return (y0 <= rows) & (rows < y1), (x0 <= cols) & (cols < x1)


def _of_cells(rows, cols, mask, reads) -> np.ndarray:
    """The share [h,w] of each cell that a mask, or else a box of rows and columns, covers."""
    down, across = reads
    (h, height), (w, width) = down.shape, across.shape
    if mask is None:
        return np.outer(np.float64(down @ rows), across @ cols) / (height * width)
    if height % h == 0 and width % w == 0:  # whole pixels in every cell: counting is much faster
        counted = reduce(mask.view(np.uint8), "(h a) x -> h x", _sum, h=h)
        return reduce(counted, "h (w b) -> h w", _sum, w=w) / (height // h * (width // w))
    return np.float64(down @ mask.astype(np.float32)) @ across.T / (height * width)


def _sum(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.add.reduce(values, axis=axes, dtype=np.int32)


def _of_pixels(rows, cols, mask, reads) -> np.ndarray:
    """Which of the pixels read, [2h,2w], a mask, or else a box of rows and columns, holds."""
    y, x = (read.ravel() for read in reads)
    return np.outer(rows[y], cols[x]) if mask is None else mask[np.ix_(y, x)]


def _cells(tokens: int, pixels: int) -> np.ndarray:
    """How much of each pixel lies in each of `tokens` equal cells along one axis, in 1/tokens.

    float32 [tokens, pixels] of whole numbers, so sums over an axis are exact.
    """
    pixel, cell = np.arange(pixels) * tokens, np.arange(tokens)[:, None] * pixels
    shared = np.minimum(pixel + tokens, cell + pixels) - np.maximum(pixel, cell)
    return np.maximum(shared, 0).astype(np.float32)


def bilinear_points(tokens: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """The two pixels, int [tokens,2], that each token's sample reads along one axis, and their
    weights, float64 [tokens,2].

    The rule of a bilinear resize from `pixels` to `tokens` with align_corners=False and no
    antialias, in whole numbers.
    """
    source = np.maximum(pixels * (2 * np.arange(tokens) + 1) - tokens, 0)
    low, rest = np.divmod(source, 2 * tokens)
    upper = rest / (2 * tokens)
    return (
        np.stack([low, np.minimum(low + 1, pixels - 1)], -1),
        np.stack([1 - upper, upper], -1),
    )
