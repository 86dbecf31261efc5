"""Every mask of an image that Segment Anything finds by itself: its automatic mask generator.

A grid of points prompts the model, three masks a point; those that the model itself expects to be
good and that hardly change with the threshold are kept, and repeats are suppressed by their boxes
(facebookresearch/segment-anything, `automatic_mask_generator.py`, without crops of the image and
without the filling of small holes). Where transformers' mask-generation pipeline and the original
differ, this follows the pipeline, but for the resize of the image, which is Pillow's as in the
original (values differ by at most one level of 255): a stability equal to its threshold is dropped.
Two things are its own: a mask of no pixel is never kept, and the two resizes from the decoder's
masks to the image are one product with a matrix a side.

Images of one size are taken together, as many on each device as `BUCKETS` says, and cut over the
devices. Every array on the device has a fixed shape: a new size of image or another bucket compiles
anew, nothing else does.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from etils import epath
from PIL import Image

from srum_jax.core import device_clock, sharding
from srum_jax.core.param_tree import Params
from srum_jax.data.masks import bilinear_points
from srum_jax.generation.context import Programs
from srum_jax.rewards.boxes.regions import check_image, suppress
from srum_jax.rewards.boxes.sam import model as sam_model
from srum_jax.rewards.boxes.sam import weights as sam_weights
from srum_jax.rewards.boxes.sam.sizes import SamSizes

MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # of red, green, blue, of 255
STD = np.array([58.395, 57.12, 57.375], np.float32)
BUCKETS = (1, 2)  # images on a device at a time; one takes 1 GiB, in attention over all its patches
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

    mesh: of devices that images are cut over along its rows, each with all of `params`; None: the
    default device. Raises ValueError for a model that reads other images than RGB.
    """

    cfg: SamSizes
    params: Params
    settings: MaskSettings = MaskSettings()
    mesh: jax.sharding.Mesh | None = None
    programs: Programs = dataclasses.field(default_factory=Programs, repr=False, compare=False)

    def __post_init__(self):
        if self.cfg.vision.channels != 3:
            raise ValueError(f"images have 3 channels, this model reads {self.cfg.vision.channels}")

    @classmethod
    def from_folder(
        cls,
        folder: epath.PathLike,
        settings: MaskSettings = MaskSettings(),
        mesh: jax.sharding.Mesh | None = None,
    ) -> "MaskGenerator":
        """The model in a folder in the Hugging Face layout, its params on every device of `mesh`.

        Raises FileNotFoundError or ValueError naming the file, the tensor or the field.
        """
        cfg, params = sam_weights.load(folder)
        at = None if mesh is None else sharding.replicated(mesh)
        return cls(cfg, jax.device_put(params, at), settings, mesh)

    def generate(self, images: Sequence[np.ndarray]) -> list[Masks]:
        """All masks of images uint8 [H, W, 3].

        Raises ValueError for another array, and where the model's numbers are not finite.
        """
        images = [check_image(image) for image in images]
        by_size: dict[tuple[int, int], list[int]] = {}
        for place, image in enumerate(images):
            by_size.setdefault(image.shape[:2], []).append(place)
        found: dict[int, Masks] = {}
        whole = contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)
        devices = 1 if self.mesh is None else sharding.row_ways(self.mesh)
        most = BUCKETS[-1] * devices
        parts = [p[i : i + most] for p in by_size.values() for i in range(0, len(p), most)]
        with whole:
            for part in parts:
                rows = devices * next(b for b in BUCKETS if b * devices >= len(part))
                filled = [images[i] for i in part + part[:1] * (rows - len(part))]
                found |= zip(part, self._together(filled, len(part)), strict=True)
        return [found[place] for place in range(len(images))]

    def _together(self, images: Sequence[np.ndarray], real: int) -> list[Masks]:
        """The masks of the first `real` of images of one size, a bucket of them."""
        vision, settings, size = self.cfg.vision, self.settings, images[0].shape[:2]
        side, used = vision.image, input_size(*size, vision.image)
        sides = zip(used, size, strict=True)
        rows, columns = (_to_image(4 * vision.grid, side, u, n) for u, n in sides)
        inputs = self._put(np.stack([pixels(image, side) for image in images]))
        with self.programs.first("Segment Anything's encoder", {"pictures": len(images)}):
            embeddings = _encode(self.params, self.cfg, inputs)
        device_clock.sent(embeddings)
        found = [_Found() for _ in range(real)]
        for points, count in _batches(settings, used):
            sizes = {"pictures": len(images), "points": len(points)}
            with self.programs.first("Segment Anything's decoder", sizes):
                logits, guesses = _decode(self.params, self.cfg, embeddings, points)
            device_clock.sent(guesses)
            guesses = np.asarray(guesses)[:, : count * self.cfg.decoder.masks]
            if not np.isfinite(guesses).all():
                raise ValueError(
                    "Segment Anything gave numbers that are not finite: check its weights"
                )
            good = (guesses[:real] > settings.pred_iou) | (settings.pred_iou <= 0)
            indices = [np.flatnonzero(one) for one in good]
            for chosen, counts in _pieces(indices, len(images), settings.points_per_batch):
                part = _take(logits, self._put(chosen))
                steady, ends = map(
                    np.asarray,
                    _measure(
                        part, rows, columns, settings.mask_threshold, settings.stability_offset
                    ),
                )
                part = np.asarray(part)
                for n, k in enumerate(counts):
                    keep = (steady[n, :k] > settings.stability) | (settings.stability <= 0)
                    keep &= ends[n, :k, 0] >= 0
                    own = guesses[n, chosen[n, :k]]
                    found[n].add(keep, part[n, :k], own, steady[n, :k], ends[n, :k])
        return self._masks([one.distinct(settings.box_nms) for one in found], images, rows, columns)

    def _masks(
        self,
        found: Sequence["_Kept"],
        images: Sequence[np.ndarray],
        rows: np.ndarray,
        columns: np.ndarray,
    ) -> list[Masks]:
        """Of each of `found` the masks in the size of its image."""
        size, at_once = images[0].shape[:2], self.settings.points_per_batch
        masks = [np.zeros((len(one.iou), *size), bool) for one in found]
        decoded = 4 * self.cfg.vision.grid
        indices = [np.arange(len(one.iou)) for one in found]
        for start, (chosen, counts) in enumerate(_pieces(indices, len(images), at_once)):
            logits = np.zeros((*chosen.shape, decoded, decoded), np.float32)
            for n, k in enumerate(counts):
                logits[n, :k] = found[n].logits[chosen[n, :k]]
            inside = _inside(self._put(logits), rows, columns, self.settings.mask_threshold)
            inside = np.asarray(inside)
            for n, k in enumerate(counts):
                masks[n][start * at_once : start * at_once + k] = inside[n, :k]
        return [
            Masks(mask, one.boxes, one.iou, one.stability)
            for mask, one in zip(masks, found, strict=True)
        ]

    def _put(self, x: np.ndarray) -> jax.Array:
        """Rows of an array on their devices."""
        return jax.device_put(x, None if self.mesh is None else sharding.batch_sharding(self.mesh))


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
    """embeddings [N, g, g, C], points [P, 2] -> logits [N, P·M, 4g, 4g], IoU [N, P·M]."""
    tokens = sam_model.prompt_tokens(params, cfg, points=rearrange(points, "p xy -> 1 p 1 xy"))
    logits, iou = sam_model.decode(
        params, cfg, embeddings, tokens, sam_model.prompt_masks(params, cfg)
    )
    return rearrange(logits, "n p m h w -> n (p m) h w"), rearrange(iou, "n p m -> n (p m)")


@jax.jit
def _take(logits, chosen):
    """logits [N, L, …], chosen [N, K] -> [N, K, …]."""
    return jax.vmap(lambda one, indices: one[indices])(logits, chosen)


def _each(function, logits):
    """`function` of every [4g, 4g] of logits [N, K, 4g, 4g], of all images at once, [N, K, …]."""
    of_mask = rearrange(logits, "n k h w -> k n h w")
    found = jax.lax.map(jax.vmap(function), of_mask, batch_size=_AT_ONCE)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), found)


def _resize(logits, rows, columns):
    # HIGHEST: fewer bits would move the masks' edges.
    return jnp.einsum(
        "hi,ij,wj->hw", rows, logits, columns, precision=jax.lax.Precision.HIGHEST, optimize=True
    )


@jax.jit
def _measure(logits, rows, columns, threshold, offset):
    """logits [N, K, 4g, 4g] -> stability [N, K], boxes int [N, K, 4], both ends included."""

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

    return _each(one, logits)


@jax.jit
def _inside(logits, rows, columns, threshold):
    """logits [N, K, 4g, 4g] -> bool [N, K, H, W]."""
    return _each(lambda x: _resize(x, rows, columns) > threshold, logits)


# ------------------------------------------------------------------------------------- on the host


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Masks of an image as they were decoded: logits [K, 4g, 4g]; the others as in `Masks`."""

    logits: np.ndarray
    boxes: np.ndarray
    iou: np.ndarray
    stability: np.ndarray


@dataclasses.dataclass
class _Found:
    """What is found of an image, piece by piece."""

    parts: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)

    def add(self, keep: np.ndarray, *values: np.ndarray) -> None:
        """logits, IoU, stability and ends of masks, of which those of `keep` stay."""
        self.parts.append(tuple(value[keep] for value in values))

    def distinct(self, overlap: float) -> _Kept:
        """Those that remain where boxes overlap by more than this IoU, by falling IoU."""
        if not sum(len(iou) for _, iou, *_ in self.parts):
            empty = (np.zeros((0, *shape), np.float32) for shape in ((1, 1), (4,), (), ()))
            return _Kept(*empty)
        logits, iou, stability, ends = map(np.concatenate, zip(*self.parts, strict=True))
        kept = np.array(suppress(ends, iou, overlap), int)
        boxes = (ends[kept] + np.array([0, 0, 1, 1])).astype(np.float32)
        return _Kept(logits[kept], boxes, iou[kept], stability[kept])


def _pieces(
    indices: Sequence[np.ndarray], rows: int, size: int
) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Pieces [rows, size] of every image's indices, side by side, and how many of each are real.

    What is missing of a row is filled up with its first index, or 0.
    """
    for start in range(0, max(map(len, indices)), size):
        piece = [part[start : start + size] for part in indices]
        chosen = np.zeros((rows, size), int)
        for n, part in enumerate(piece):
            chosen[n] = part[0] if len(part) else 0
            chosen[n, : len(part)] = part
        yield chosen, [len(part) for part in piece]


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
