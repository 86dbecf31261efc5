"""Pictures from files and bytes to model input: decoding, the resize rule, patches.

Owns the way from an untrusted file to uint8 [H,W,3], and from there to the pixels that the
autoencoder encodes and to a `Picture` for the understanding tower. Positions of patches are ids in
the tower's square table.
"""

import contextlib
import hashlib
import io
import zlib
from collections.abc import Iterator

import numpy as np
from etils import epath
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from srum_jax.core import places
from srum_jax.core.errors import quoted
from srum_jax.core.files import mistaken
from srum_jax.core.patches import patchify, position_ids
from srum_jax.data.letterbox import letterbox, levels
from srum_jax.data.schema import LayoutSizes, Picture

MAX_PIXELS = 14 * 14 * 9 * 1024  # of one resized picture (BAGEL `data/transforms.py`)
MIN_SHORT = 224  # pixels; smaller towers use their own side
# What a file may ask for. Only formats that Pillow reads itself: others start outside programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_FILE_BYTES = 256 * 2**20
MAX_FILE_PIXELS = 8192**2
MAX_RATIO = 100  # of the longer side to the shorter
MAX_TEXT = 2**20  # bytes of a text in a PNG that may say which way is up
# PNG chunks that may inflate to anything, and the texts among them that may hold an orientation.
_TEXTS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
_ORIENTING = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")


def encode_png(image: np.ndarray) -> bytes:
    """uint8 [H,W,3] -> PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def digest(image: np.ndarray) -> str:
    """16 hex digits of the pixels of uint8 [H,W,3]."""
    shape = "x".join(map(str, image.shape)).encode()
    return hashlib.sha256(shape + b" " + image.tobytes()).hexdigest()[:16]


def load(path: epath.PathLike, *, released: bool = False) -> np.ndarray:
    """A picture file -> uint8 [H,W,3], by `decode`.

    Raises FileNotFoundError if there is none, ValueError for a folder, for more than
    MAX_FILE_BYTES and for what `decode` refuses.
    """
    path = places.place(path, "a picture")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name one picture in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such picture file")
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{path}: more than {MAX_FILE_BYTES // 2**20} MiB; save it smaller")
    return decode(data, name=str(path), released=released)


def decode(
    data: bytes, *, name: str, released: bool = False, most: int | None = None
) -> np.ndarray:
    """Image bytes -> uint8 [H,W,3], alpha composited on white; of an animation, the first frame.

    A picture is turned the way its EXIF record says, if that can be read. `released` gives the
    pixels of the original's reader: not turned, gray with alpha without its alpha, 16 bits clipped
    to 8. Raises ValueError naming `name` for damaged or truncated bytes, for formats other than
    FORMATS, and, before any pixel is decoded, for sizes that `check_size` refuses; `most`: pixels,
    None: MAX_FILE_PIXELS.
    """
    with readable(name, data=data):
        image = Image.open(io.BytesIO(without_texts(data)), formats=FORMATS)
    check_size(*image.size, name=name, most=most)
    return from_pil(image, name=name, released=released)


def from_pil(image: Image.Image, *, name: str, released: bool = False) -> np.ndarray:
    """A Pillow image -> uint8 [H,W,3], turned and composited as by `decode`. Raises as that."""
    check_size(*image.size, name=name)
    with readable(name):
        if released:
            image.load()
            return np.asarray(_released(image))
        raw = _raw_mode(image)
        image.load()
        upright, tags = _upright(image), getattr(image, "tag_v2", {})
        if upright.mode.startswith("I;16"):
            white = 4095 if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else 65535
            inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
            upright = _eight_bits(upright, white, inverted)
        elif "transparency" in upright.info:
            upright.info["transparency"] = _shown(upright.info["transparency"], raw)
        return np.asarray(rgb(upright))


def _raw_mode(image: Image.Image) -> str:
    """How a PNG stores its colours, "L;4" for gray of four bits; known until it is loaded."""
    raw = image.tile[0].args if image.format == "PNG" and image.tile else ""
    return raw if isinstance(raw, str) else ""


def _shown(transparent, raw: str):
    """A PNG's transparent colour, which is in the file's bits, in Pillow's eight."""
    if raw == "RGB;16B":
        return tuple(value >> 8 for value in transparent)
    return transparent * {"L;2": 85, "L;4": 17}.get(raw, 1)


def without_texts(data: bytes) -> bytes:
    """The bytes of a PNG without colour profiles and texts, none of which changes a pixel here; of
    other formats as they are.

    Pillow refuses pictures for the size of what these hold, and would inflate it. Texts that may
    say which way is up stay where they are of at most MAX_TEXT.
    """
    if not data.startswith(b"\x89PNG"):
        return data
    kept, at = [data[:8]], 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if kind not in _TEXTS or _orients(kind, data[at + 8 : end - 4]):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _orients(kind: bytes, text: bytes) -> bool:
    """Whether a text may say which way is up, in few bytes."""
    if len(text) > MAX_TEXT or not text.startswith(_ORIENTING):
        return False
    packed = text.partition(b"\0")[2]
    if kind == b"iTXt":  # a flag, the method, language, translated keyword
        packed = packed[2:].split(b"\0", 2)[-1] if packed[:1] == b"\1" else b""
    elif kind == b"zTXt":
        packed = packed[1:]
    else:
        return True
    inflate = zlib.decompressobj()
    with contextlib.suppress(zlib.error):
        inflate.decompress(packed, MAX_TEXT)
    return not inflate.unconsumed_tail


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the record is damaged, the pixels are not
        return image


@contextlib.contextmanager
def readable(name: str, what: str = "image", *, data: bytes = b"") -> Iterator[None]:
    """Errors of a reader, of many kinds on damaged bytes, become a ValueError naming `name`.

    `data` is the file's beginning: what it is instead, where that can be told.
    """
    try:
        yield
    except UnidentifiedImageError as e:
        raise ValueError(f"{name}: not a readable {what} ({_instead(data)})") from e
    except Exception as e:
        raise ValueError(f"{name}: not a readable {what} ({quoted(str(e), 200)[1:-1]})") from e


def _instead(data: bytes) -> str:
    if wrong := mistaken(data):
        return wrong
    film = data[4:8] == b"ftyp"
    what = "a HEIC, AVIF or film" if film else "damaged, or of a format that is not read"
    return f"{what}; {', '.join(FORMATS)} are read"


def check_size(width: int, height: int, *, name: str, most: int | None = None) -> None:
    """ValueError for a declared size of no pixels, of more than `most`, or of absurd sides."""
    if min(width, height) < 1:
        raise ValueError(f"{name}: {width}x{height} pixels show nothing")
    most = MAX_FILE_PIXELS if most is None else most
    if width * height > most:
        raise ValueError(f"{name}: {width}x{height} pixels are more than {most}; scale it down")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(
            f"{name}: {width}x{height} pixels have sides of over {MAX_RATIO}:1; crop it"
        )


def rgb(image: Image.Image) -> Image.Image:
    """A Pillow image of any mode -> RGB: transparency on white, 16 bits scaled to 8.

    Raises ValueError for integers and floats of 32 bits, which have no agreed white. RGBA and
    named colours are composited as in BAGEL `data/data_utils.py`, pil_img2rgb.
    """
    if image.mode.startswith("I;16"):
        image = _eight_bits(image, 65535, inverted=False)
    elif image.mode in ("I", "F"):
        raise ValueError("32 bits a pixel, or a sign, and no agreed white; save it with 8 or 16")
    elif image.mode == "La":
        image = image.convert("LA")
    return _on_white(image) if image.has_transparency_data else image.convert("RGB")


def _eight_bits(image: Image.Image, white: int, inverted: bool) -> Image.Image:
    """A gray image of 16 bits -> "L", what is transparent as white."""
    values = np.minimum(np.array(image), white)
    values = white - values if inverted else values
    values[np.array(image) == image.info.get("transparency", -1)] = white
    return Image.fromarray(np.round(values / (white / 255)).astype(np.uint8))


def _released(image: Image.Image) -> Image.Image:
    """BAGEL `data/data_utils.py`, pil_img2rgb, to the letter."""
    transparent = image.mode == "RGBA" or "transparency" in image.info
    return _on_white(image) if transparent else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


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


def resize(
    image: np.ndarray, *, long: int, short: int, stride: int, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """uint8 [H,W,3] -> uint8 [h,w,3] of the size that `resized` gives, by bicubic filtering.

    Raises ValueError for an array of another kind.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"a picture is uint8 [H,W,3], not {image.dtype} {list(image.shape)}")
    h, w = image.shape[:2]
    size = resized(w, h, long=long, short=short, stride=stride, max_pixels=max_pixels)
    if size == (w, h):
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 in 0..255 -> float32 in [-1, 1]."""
    return image.astype(np.float32) / np.float32(127.5) - 1


def latent_image(image: np.ndarray, layout: LayoutSizes) -> np.ndarray:
    """uint8 [H,W,3] -> uint8 [h,w,3] for the autoencoder: whole latent tokens, all with positions.

    BAGEL's vae_transform: long side at most 1024 pixels, short side at least 512, multiples of 16.
    Of a square layout the one size that there is.
    """
    long = layout.max_latent * layout.token_pixels
    if layout.square:
        return letterbox(image, long)
    return resize(image, long=long, short=long // 2, stride=layout.token_pixels)


def picture(image: np.ndarray, layout: LayoutSizes, *, twice: bool = False) -> Picture:
    """uint8 [H,W,3] -> patches and ids of the understanding tower, resized by the rule above.

    BAGEL's vit_transform: long side at most 980 pixels, short side at least 224, multiples of 14.
    `twice` resizes by `latent_image` first, as the original's inferencer does (`inferencer.py`,
    also for questions); by default the picture is resized once, which keeps more of its detail.
    Of a square layout the picture is fitted into the tower's square (`data/letterbox.py`).
    """
    if layout.square:
        boxed = letterbox(image, layout.vit_patch * layout.vit_side)
        ids = position_ids(layout.vit_side, layout.vit_side, layout.vit_positions)
        return Picture(patchify(levels(boxed), layout.vit_patch), ids)
    if twice:
        image = latent_image(image, layout)
    p = layout.vit_patch
    side = p * layout.vit_side
    image = resize(image, long=side, short=min(MIN_SHORT, side), stride=p)
    h, w = image.shape[:2]
    ids = position_ids(h // p, w // p, layout.vit_positions, layout.interpolate_pos)
    return Picture(patchify(to_float(image), p), ids)
