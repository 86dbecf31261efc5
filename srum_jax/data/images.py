"""Pictures from bytes to model input: decoding, the resize law, patches.

Owns the way from an untrusted file to uint8 [H,W,3], and from there to a `Picture` for the
understanding tower. Positions of patches are ids in the tower's square table.
"""

import io
import math

import numpy as np
from PIL import Image

from srum_jax.core.patches import patchify, position_ids
from srum_jax.data.schema import Picture
from srum_jax.models.config import BagelConfig

MAX_PIXELS = 14 * 14 * 9 * 1024  # of one resized picture (BAGEL `data/transforms.py`)
MIN_SHORT = 224  # pixels; smaller towers use their own side


def encode_png(image: np.ndarray) -> bytes:
    """uint8 [H,W,3] -> PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def decode(data: bytes, *, name: str) -> np.ndarray:
    """Image bytes -> uint8 [H,W,3], alpha composited on white. Raises ValueError naming `name`."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as e:  # on damaged bytes its readers raise errors of many kinds
        raise ValueError(f"{name}: not a readable image ({e})") from e
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def resized(
    width: int, height: int, *, long: int, short: int, stride: int, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """(width, height) after BAGEL's resize: within long and short edge, multiples of stride.

    MaxLongEdgeMinShortEdgeResize of the original, its rescue of too large areas included (which
    scales by the ratio of areas, not its root).
    """

    def scaled(w, h, scale):
        return tuple(max(stride, round(round(v * scale) / stride) * stride) for v in (w, h))

    scale = min(long / max(width, height), 1.0)
    scale = max(scale, short / min(width, height))
    w, h = scaled(width, height, scale)
    if w * h > max_pixels:
        w, h = scaled(w, h, max_pixels / (w * h))
    if max(w, h) > long:
        w, h = scaled(w, h, long / max(w, h))
    return w, h


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 in 0..255 -> float32 in [-1, 1]."""
    return image.astype(np.float32) / np.float32(127.5) - 1


def picture(image: np.ndarray, cfg: BagelConfig) -> Picture:
    """uint8 [H,W,3] -> patches and ids of the understanding tower, resized by the law above."""
    p = cfg.vit.patch
    side = p * cfg.vit.positions
    h, w = image.shape[:2]
    size = resized(w, h, long=side, short=min(MIN_SHORT, side), stride=p)
    if size != (w, h):
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    w, h = size
    ids = position_ids(h // p, w // p, cfg.max_vit, cfg.interpolate_pos)
    return Picture(patchify(to_float(image), p), ids)


def bucket(length: int, step: int) -> int:
    """`length` rounded up to a multiple of `step`, so that few shapes are compiled."""
    return max(step, math.ceil(length / step) * step)
