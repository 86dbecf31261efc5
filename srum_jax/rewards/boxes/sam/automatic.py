"""Every mask of an image that Segment Anything finds by itself: its automatic mask generator.

A grid of points prompts the model, three masks a point; those that the model itself expects to be
good and that hardly change with the threshold are kept, and repeats are suppressed by their boxes
(facebookresearch/segment-anything, `automatic_mask_generator.py`, without crops of the image and
without the filling of small holes). Where transformers' mask-generation pipeline and the original
differ, this follows the pipeline, but for the resize of the image, which is Pillow's as in the
original (values differ by at most one level of 255): a stability equal to its threshold is dropped.
Two things are its own: a mask of no pixel is never kept, and the two resizes from the decoder's
masks to the image are one product with a matrix a side.

Every array on the device has a fixed shape, save that a new size of image compiles anew.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from etils import epath
from PIL import Image

from srum_jax.core.param_tree import Params
from srum_jax.data.masks import bilinear_points
from srum_jax.rewards.boxes.regions import check_image, suppress
from srum_jax.rewards.boxes.sam import model as sam_model
from srum_jax.rewards.boxes.sam import weights as sam_weights
from srum_jax.rewards.boxes.sam.config import SamConfig

MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # of red, green, blue, of 255
STD = np.array([58.395, 57.12, 57.375], np.float32)
_AT_ONCE = 8  # masks of the image's size that are in memory


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """Which masks are kept; the original's defaults. Raises ValueError for what means nothing."""

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou: float = 0.88  # expected IoU that a mask must exceed; 0 or less: all
    stability: float = 0.95  # IoU of the masks at two thresholds to exceed; 0 or less: all
    stability_offset: float = 1.0  # logits between the threshold and either of those two
    mask_threshold: float = 0.0  # logit from which a pixel is inside
    box_nms: float = 0.7  # IoU of boxes above which the mask of lower expected IoU goes

    def __post_init__(self):
        if min(self.points_per_side, self.points_per_batch) < 1:
            raise ValueError("points_per_side and points_per_batch must be 1 or more")
        if not 0 <= self.box_nms <= 1 or not self.stability_offset >= 0:
            raise ValueError("box_nms must lie in [0, 1], stability_offset be 0 or more")


@dataclasses.dataclass(frozen=True)
class Masks:
    """The masks of an image, by falling IoU; M may be 0."""

    masks: np.ndarray  # bool [M, H, W]
    boxes: np.ndarray  # float32 [M, 4]: x0, y0, x1, y1 in pixels, upper ends excluded
    iou: np.ndarray  # float32 [M], the model's own guess
    stability: np.ndarray  # float32 [M], in [0, 1]


@dataclasses.dataclass(frozen=True)
class MaskGenerator:
    """A model with its settings; cfg and params as `sam_weights.load` gives them.

    Raises ValueError for a model that reads other images than RGB.
    """

    cfg: SamConfig
    params: Params
    settings: MaskSettings = MaskSettings()

    def __post_init__(self):
        if self.cfg.vision.channels != 3:
            raise ValueError(f"images have 3 channels, this model reads {self.cfg.vision.channels}")

    @classmethod
    def from_folder(
        cls, folder: epath.PathLike, settings: MaskSettings = MaskSettings()
    ) -> "MaskGenerator":
        """The model in a folder in the Hugging Face layout, its params on the device.

        Raises FileNotFoundError or ValueError naming the file, the tensor or the field.
        """
        cfg, params = sam_weights.load(folder)
        return cls(cfg, jax.tree.map(jnp.asarray, params), settings)

    def generate(self, images: Sequence[np.ndarray]) -> list[Masks]:
        """All masks of images uint8 [H, W, 3].

        Raises ValueError for another array, and where the model's numbers are not finite.
        """
        images = [check_image(image) for image in images]
        return [_generate(self.params, self.cfg, self.settings, image) for image in images]


# ------------------------------------------------------------------------- to the model and back


def input_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) of an image whose longer side becomes `side` pixels."""
    scale = side / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def pixels(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [side, side, 3]: resized, normalised, zeros below or right."""
    height, width = input_size(*image.shape[:2], side)
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    out = np.zeros((side, side, 3), np.float32)
    out[:height, :width] = (np.asarray(small, np.float32) - MEAN) / STD
    return out


def _bilinear(inputs: int, outputs: int) -> np.ndarray:
    """Matrix float64 [outputs, inputs] of a bilinear resize without antialiasing."""
    places, weights = bilinear_points(outputs, inputs)
    matrix = np.zeros((outputs, inputs))
    np.add.at(matrix, (np.arange(outputs)[:, None], places), weights)
    return matrix


def _to_image(decoded: int, side: int, used: int, original: int) -> np.ndarray:
    """Matrix [original, decoded] of one side: up to the input, the padding off, to the image."""
    up, back = _bilinear(decoded, side)[:used], _bilinear(used, original)
    return (back @ up).astype(np.float32)


# ----------------------------------------------------------------------------------- on the device

_encode = jax.jit(sam_model.encode, static_argnums=1)


@functools.partial(jax.jit, static_argnums=1)
def _decode(params, cfg, embeddings, points):
    """points [P, 2] -> logits [P·M, 4g, 4g], IoU [P·M]."""
    tokens = sam_model.prompt_tokens(params, cfg, points=rearrange(points, "p xy -> 1 p 1 xy"))
    logits, iou = sam_model.decode(
        params, cfg, embeddings, tokens, sam_model.prompt_masks(params, cfg)
    )
    return rearrange(logits, "1 p m h w -> (p m) h w"), rearrange(iou, "1 p m -> (p m)")


def _resize(logits, rows, columns):
    # HIGHEST: fewer bits would move the masks' edges.
    return jnp.einsum(
        "hi,ij,wj->hw", rows, logits, columns, precision=jax.lax.Precision.HIGHEST, optimize=True
    )


@jax.jit
def _measure(logits, rows, columns, threshold, offset):
    """logits [K, 4g, 4g] -> stability [K], boxes int [K, 4] with both ends included."""

    def one(logits):
        full = _resize(logits, rows, columns)
        inner = jnp.sum(full > threshold + offset)
        outer = jnp.sum(full > threshold - offset)
        mask = full > threshold
        ends = []
        for line in (mask.any(axis=0), mask.any(axis=1)):  # columns, rows
            ends.append((jnp.argmax(line), line.shape[0] - 1 - jnp.argmax(line[::-1])))
        (x0, x1), (y0, y1) = ends
        box = jnp.where(mask.any(), jnp.stack([x0, y0, x1, y1]), -1)
        return inner / jnp.maximum(outer, 1), box

    return jax.lax.map(one, logits, batch_size=_AT_ONCE)


@jax.jit
def _inside(logits, rows, columns, threshold):
    """logits [K, 4g, 4g] -> bool [K, H, W]."""
    return jax.lax.map(lambda x: _resize(x, rows, columns) > threshold, logits, batch_size=_AT_ONCE)


# ------------------------------------------------------------------------------------- on the host


def _generate(params: Params, cfg: SamConfig, settings: MaskSettings, image: np.ndarray) -> Masks:
    side, decoded = cfg.vision.image, 4 * cfg.vision.grid
    size = image.shape[:2]
    used = input_size(*size, side)
    rows, columns = (_to_image(decoded, side, u, n) for u, n in zip(used, size, strict=True))
    embeddings = _encode(params, cfg, pixels(image, side)[None])

    logits, iou, stability, boxes = [], [], [], []
    for points, count in _batches(settings, used):
        found, guesses = _decode(params, cfg, embeddings, points)
        guesses = np.asarray(guesses)[: count * cfg.decoder.masks]
        if not np.isfinite(guesses).all():
            raise ValueError("Segment Anything gave numbers that are not finite: check its weights")
        good = np.flatnonzero((guesses > settings.pred_iou) | (settings.pred_iou <= 0))
        for chosen, real in _chunks(good, settings.points_per_batch):
            part = found[chosen]
            measured = _measure(
                part, rows, columns, settings.mask_threshold, settings.stability_offset
            )
            steady, ends = (np.asarray(x)[:real] for x in measured)
            keep = (steady > settings.stability) | (settings.stability <= 0)
            keep &= ends[:, 0] >= 0
            logits.append(np.asarray(part)[:real][keep])
            iou.append(guesses[chosen[:real]][keep])
            stability.append(steady[keep])
            boxes.append(ends[keep])

    kept = np.zeros(0, int)
    if logits:
        logits, iou, stability, boxes = map(np.concatenate, (logits, iou, stability, boxes))
        kept = np.array(suppress(boxes, iou, settings.box_nms), int)
    masks = np.zeros((len(kept), *size), bool)
    for start, (chosen, real) in enumerate(_chunks(kept, settings.points_per_batch)):
        inside = _inside(logits[chosen], rows, columns, settings.mask_threshold)
        first = start * settings.points_per_batch
        masks[first : first + real] = np.asarray(inside)[:real]
    if not len(kept):
        return Masks(masks, *(np.zeros((0, *n), np.float32) for n in ((4,), (), ())))
    ends = boxes[kept] + np.array([0, 0, 1, 1])
    return Masks(masks, ends.astype(np.float32), iou[kept], stability[kept])


def _batches(settings: MaskSettings, used: tuple[int, int]) -> Iterator[tuple[np.ndarray, int]]:
    """(points float32 [points_per_batch, 2] in pixels of the input, how many of them are real)."""
    at = (np.arange(settings.points_per_side) + 0.5) / settings.points_per_side
    x, y = np.meshgrid(at * used[1], at * used[0])
    points = np.stack([x.ravel(), y.ravel()], axis=-1).astype(np.float32)
    for chosen, real in _chunks(np.arange(len(points)), settings.points_per_batch):
        yield points[chosen], real


def _chunks(indices: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Pieces of exactly `size`, the last filled up with its first index, and what is real of it."""
    for start in range(0, len(indices), size):
        piece = indices[start : start + size]
        yield np.concatenate([piece, np.full(size - len(piece), piece[0])]), len(piece)
