"""A film's frame as players show it: what its container and its own flags say beside the pixels.

Owns the way from a decoded frame of PyAV to an RGB picture: fields, colours, crop, square pixels,
which way is up. Needs PyAV, imported where a film is shown.
"""

import dataclasses
import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

from srum_jax.data import hdr, images

AvFrame = AvStream = Any  # of PyAV: av.VideoFrame, av.video.stream.VideoStream
_UNNAMED = 2  # the number of no colour matrix (ITU-T H.273)
_UNREAD = {8, *range(10, 18)}  # those that FFmpeg's swscale would take for BT.601
_MIN_WOVEN = 16  # pixels of a side, for the filter that takes fields apart
# Matroska's elements from the file to a track's picture, and what is hidden there.
_TO_PICTURE = ("18538067", "1654ae6b", "ae", "e0")
_LEFT_TOP_RIGHT_BOTTOM = ("54cc", "54bb", "54dd", "54aa")


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a container says of all frames of a stream."""

    ratio: Fraction | None  # width to height of a pixel
    crop: tuple[int, int, int, int]  # pixels hidden left, above, right, below

    @classmethod
    def of(cls, stream: AvStream) -> "Shown":
        """What is said of a stream of PyAV."""
        return cls(stream.sample_aspect_ratio, _crop(stream))

    def size(self, frame: AvFrame) -> tuple[int, int]:
        """(width, height) of a frame in square pixels, before it is turned."""
        left, top, right, bottom = self._box(frame)
        return _square(right - left, bottom - top, self.ratio)

    def picture(self, before: AvFrame | None, frame: AvFrame, after: AvFrame | None) -> Image.Image:
        """RGB of a frame; those beside it, or None, help where it is made of two fields.

        Raises ValueError for colours by a matrix that is not read.
        """
        frame = _whole(before, frame, after)
        picture = images.rgb(_screen(frame))
        box = self._box(frame)
        if box != (0, 0, *picture.size):
            picture = picture.crop(box)
        size = self.size(frame)
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        for step in _turns(frame):
            picture = picture.transpose(step)
        return picture

    def _box(self, frame) -> tuple[int, int, int, int]:
        """Left, upper, right and lower edge of what is shown; all, where the crop leaves none."""
        left, top, right, bottom = self.crop
        right, bottom = frame.width - right, frame.height - bottom
        hidden = left >= right or top >= bottom
        return (0, 0, frame.width, frame.height) if hidden else (left, top, right, bottom)


def neighbours(frames: Iterable) -> Iterator[tuple]:
    """Each of some frames as (the one before, itself, the one after), None at the ends."""
    before = frame = None
    for after in frames:
        if frame is not None:
            yield before, frame, after
        before, frame = frame, after
    if frame is not None:
        yield before, frame, None


def _crop(stream) -> tuple[int, int, int, int]:
    """Pixels that a container hides left, above, right and below: Matroska's crop, MP4's clap.

    PyAV does not give them, but FFmpeg writes them: into the header of a Matroska file, which is
    read instead. Nothing is hidden where that cannot hold the codec.
    """
    import av

    header = io.BytesIO()
    try:
        with av.open(header, "w", format="matroska") as copy:
            copy.add_stream_from_template(stream, opaque=True)
            copy.start_encoding()
    except (ValueError, av.FFmpegError):
        return 0, 0, 0, 0
    element = header.getvalue()
    for name in _TO_PICTURE:
        element = _elements(element)[name]
    said = _elements(element)
    left, top, right, bottom = (
        int.from_bytes(said.get(name, b"")) for name in _LEFT_TOP_RIGHT_BOTTOM
    )
    return left, top, right, bottom


def _elements(data: bytes) -> dict[str, bytes]:
    """EBML elements (RFC 8794) that FFmpeg wrote, by id in hexadecimal digits."""
    found, at = {}, 0
    while at < len(data):
        name = data[at : at + 9 - data[at].bit_length()]
        at += len(name)
        size = data[at : at + 9 - data[at].bit_length()]
        at += len(size)
        end = at + (int.from_bytes(size) & ((1 << 7 * len(size)) - 1))
        found[name.hex()] = data[at:end]
        at = end
    return found


def _whole(before, frame, after):
    """A frame of two fields, taken at two times, as that of the first; others as they are."""
    if not frame.interlaced_frame or min(frame.width, frame.height) < _MIN_WOVEN:
        return frame
    from av.filter import Graph

    kind = (frame.width, frame.height, frame.format.name)
    graph = Graph()
    source = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base="1/1000",
        colorspace=str(int(frame.colorspace)),
        range=str(int(frame.color_range)),
    )
    steps = graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
    graph.link_nodes(source, *steps).configure()
    for one in (before, frame, after):
        same = one is not None and (one.width, one.height, one.format.name) == kind
        graph.push(one if same else frame)
    graph.pull()  # the one before
    return graph.pull()


def _screen(frame) -> Image.Image:
    """RGBA of a frame as an ordinary screen shows its colours."""
    colours = hdr.Colours(int(frame.color_trc), int(frame.color_primaries), _peak(frame))
    matrix = _matrix(frame)
    if colours.plain:
        return Image.fromarray(frame.to_ndarray(format="rgba", **matrix))
    deep = frame.to_ndarray(format="rgba64le", **matrix)
    made = np.empty(deep.shape, np.uint8)
    made[..., :3], made[..., 3] = colours.to_srgb(deep[..., :3]), deep[..., 3] >> 8
    return Image.fromarray(made)


def _peak(frame) -> float:
    """The brightest light of an HDR frame in cd/m²: of the film, else of the screen it was made on.

    Structures AVContentLightMetadata and AVMasteringDisplayMetadata of FFmpeg 8.
    """
    if int(frame.color_trc) != hdr.PQ:
        return hdr.PEAK
    said = {data.type.name: bytes(data) for data in frame.side_data}
    if level := said.get("CONTENT_LIGHT_LEVEL"):
        if brightest := int(np.frombuffer(level[:4], np.uint32)[0]):
            return float(brightest)
    if screen := said.get("MASTERING_DISPLAY_METADATA"):
        *_, above, below, _, known = np.frombuffer(screen[:88], np.int32).tolist()
        if known and above > 0 and below > 0:
            return above / below
    return hdr.PEAK


def _matrix(frame) -> dict[str, int]:
    """The colour matrix where the file names none: players take BT.709 in high definition.

    Raises ValueError for one that is not read.
    """
    from av.video.reformatter import Colorspace

    if frame.format.is_rgb:
        return {}
    if (named := int(frame.colorspace)) in _UNREAD:
        raise ValueError(f"colours by matrix {named} of H.273 are not read; make it BT.709")
    if named != _UNNAMED:
        return {}
    if int(frame.color_trc) in (hdr.PQ, hdr.HLG):
        return {"src_colorspace": Colorspace.BT2020}
    high = frame.width >= 1280 or frame.height > 576
    return {"src_colorspace": Colorspace.ITU709} if high else {}


def _square(width: int, height: int, ratio: Fraction | None) -> tuple[int, int]:
    """The size at which pixels whose width is `ratio` times their height are square."""
    if not ratio or ratio == 1:
        return width, height
    if ratio > 1:
        return round(width * ratio), height
    return width, round(height / ratio)


def _turns(frame) -> list[Image.Transpose]:
    """How to turn and mirror a frame, by the nearest right angle of its display matrix.

    The matrix [a b u; c d v; …] shows the stored point (p, q) at (a p + c q, b p + d q).
    """
    matrix = next((m for m in frame.side_data if m.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return []
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix)[:36], np.int32).tolist()
    steps = []
    if abs(b) + abs(c) > abs(a) + abs(d):  # rows become columns
        steps.append(Image.Transpose.TRANSPOSE)
        a, d = c, b
    if a < 0:
        steps.append(Image.Transpose.FLIP_LEFT_RIGHT)
    if d < 0:
        steps.append(Image.Transpose.FLIP_TOP_BOTTOM)
    return steps
