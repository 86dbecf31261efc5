"""Pictures inside the report's file: data URIs, thumbnails, and maps of numbers as colours."""

import base64
import dataclasses
import io

import numpy as np
from PIL import Image

from srum_jax.data import images

THUMB = 288  # longest side, in pixels, of a picture put into the page
SMALL = 128  # up to this longest side a picture is shown pixel by pixel


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A picture as a data URI ("": its file is not there), with the size of the original."""

    uri: str
    width: int
    height: int

    @property
    def pixelated(self) -> bool:
        """Smoothing would hide what a model drew into a small picture."""
        return max(self.width, self.height) <= SMALL


MISSING = Thumbnail("", 1, 1)


def picture(data: bytes, name: str) -> Thumbnail:
    """The bytes of an image file as a Thumbnail; large ones are shrunk: the page stays small.

    Raises ValueError naming `name` for what `images.decode` refuses.
    """
    small = Image.fromarray(images.decode(data, name=name))
    size = small.size
    if data.startswith(b"\x89PNG") and max(size) <= THUMB:
        return Thumbnail(_uri(images.without_texts(data), "png"), *size)
    small.thumbnail((THUMB, THUMB))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=88)
    return Thumbnail(_uri(out.getvalue(), "jpeg"), *size)


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# Cividis: even in lightness, and the same to all common kinds of colour vision.
_CIVIDIS = np.array(
    [
        [0, 34, 78],
        [53, 69, 108],
        [102, 105, 112],
        [148, 142, 119],
        [200, 184, 102],
        [254, 232, 56],
    ],
    np.float64,
)


def heat(values: np.ndarray, lo: float, hi: float) -> Thumbnail:
    """float [h, w] as an h by w picture, dark blue at `lo` to yellow at `hi`, half transparent.

    A cell that is not finite is fully transparent.
    """
    x = np.clip((values - lo) / (hi - lo) if hi > lo else np.full_like(values, 0.5), 0, 1)
    finite = np.isfinite(x)
    position = np.where(finite, x, 0.0) * (len(_CIVIDIS) - 1)
    below = np.minimum(position.astype(int), len(_CIVIDIS) - 2)
    share = (position - below)[..., None]
    rgb = _CIVIDIS[below] * (1 - share) + _CIVIDIS[below + 1] * share
    alpha = np.where(finite, 205, 0)[..., None]
    out = io.BytesIO()
    Image.fromarray(np.concatenate([rgb, alpha], -1).astype(np.uint8)).save(out, "PNG")
    return Thumbnail(_uri(out.getvalue(), "png"), values.shape[1], values.shape[0])
