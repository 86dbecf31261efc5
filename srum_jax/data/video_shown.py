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
_DOLBY = {"dvh1", "dvhe", "dva1", "dvav", "dav1"}  # for players of Dolby Vision alone
_UNNAMED_KINDS = 16  # of side data that FFmpeg may have beyond PyAV's list
_MIN_WOVEN = 16  # pixels of a side, for the filter that takes fields apart
# From a file to its one track: elements of Matroska, boxes of QuickTime.
_TO_TRACK = ("18538067", "1654ae6b", "ae")
_TO_ENTRIES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
# Elements of a Matroska track.
_PICTURE, _LEFT_TOP_RIGHT_BOTTOM = "e0", ("54cc", "54bb", "54dd", "54aa")
_ADDITION, _KIND, _CONTENT = "41e4", "41e7", "41ed"
_DOLBY_RECORDS = (b"dvcC", b"dvvC", b"dvwC")
_BESIDE, _BELOW, _SWAPPED = 1, 2, 1  # how two eyes lie in a frame (AVStereo3D of FFmpeg)


@dataclasses.dataclass(frozen=True)
class FrameGeometry:
    """What a container says of all frames of a stream."""

    ratio: Fraction | None  # width to height of a pixel
    crop: tuple[int, int, int, int]  # pixels hidden left, above, right, below

    @classmethod
    def of(cls, stream: AvStream) -> "FrameGeometry":
        """What is said of a stream of PyAV.

        Raises ValueError for colours of Dolby Vision that no other player shows (IPT-PQ-c2 of
        profile 5, which no frame names).
        """
        track = _track(stream)
        if _dolby_alone(stream, track):
            raise ValueError("Dolby Vision that only its players show is not read; make it HDR10")
        return cls(stream.sample_aspect_ratio, _crop(stream, track))

    def size(self, frame: AvFrame) -> tuple[int, int]:
        """(width, height) of a frame, both eyes, in square pixels, before it is turned."""
        left, top, right, bottom = self._box(frame)
        return _square(right - left, bottom - top, self.ratio)

    def picture(self, before: AvFrame | None, frame: AvFrame, after: AvFrame | None) -> Image.Image:
        """RGB of a frame; those beside it, or None, help where it is made of two fields.

        Raises ValueError for colours by a matrix that is not read.
        """
        peak = _peak(frame, before, after)
        frame = _whole(before, frame, after)
        picture = images.rgb(_screen(frame, peak))
        box = _left_eye(frame, self._box(frame))
        if box != (0, 0, *picture.size):
            picture = picture.crop(box)
        size = _square(*picture.size, self.ratio)
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


def _track(stream) -> list[tuple[str, bytes]]:
    """A stream's elements in a Matroska file; none where its codec has no place there.

    PyAV gives little of what a container says of a stream, but FFmpeg writes it into the header of
    a copy, which is read instead, whatever the container of the stream is.
    """
    track = _header(stream, "matroska")
    for name in _TO_TRACK if track else ():
        track = dict(_elements(track))[name]
    return list(_elements(track))


def _dolby_alone(stream, track) -> bool:
    """Whether a film's colours are for players of Dolby Vision alone.

    Its configuration record (Dolby Vision Streams Within the ISO Base Media File Format, 3.2) says
    what else its base layer is: 0 is nothing. Without one, a tag that is Dolby's says it of a base
    layer whose colours have no name.
    """
    for addition in (dict(_elements(data)) for name, data in track if name == _ADDITION):
        if addition.get(_KIND) in _DOLBY_RECORDS:
            return addition[_CONTENT][4] >> 4 == 0
    codec = stream.codec_context
    return codec.codec_tag in _DOLBY and int(codec.color_trc) == _UNNAMED


def _crop(stream, track) -> tuple[int, int, int, int]:
    """Pixels that a container hides left, above, right and below: Matroska's crop, MP4's clap.

    Of codecs that Matroska cannot hold FFmpeg writes them into the header of a QuickTime file.
    """
    if track:
        said = dict(_elements(dict(track)[_PICTURE]))
        return tuple(int.from_bytes(said.get(name, b"")) for name in _LEFT_TOP_RIGHT_BOTTOM)
    if header := _header(stream, "mov"):
        for name in _TO_ENTRIES:
            header = _boxes(header)[name]
        (entry,) = _boxes(header[8:]).values()
        clap = _boxes(entry[78:]).get(b"clap")
        return _aperture(clap, stream.width, stream.height) if clap else (0, 0, 0, 0)
    return 0, 0, 0, 0


def _left_eye(frame, box) -> tuple[int, int, int, int]:
    """The part of a box that the left eye sees, where the frame holds two eyes' pictures."""
    how = _side_data(frame).get("STEREO3D", bytes(8))
    kind, flags = np.frombuffer(how[:8], np.int32).tolist()
    left, top, right, bottom = box
    second = bool(flags & _SWAPPED)
    if kind == _BESIDE:
        half = (right - left) // 2
        return (left + half * second, top, left + half * (1 + second), bottom)
    if kind == _BELOW:
        half = (bottom - top) // 2
        return (left, top + half * second, right, top + half * (1 + second))
    return box


def _header(stream, container: str) -> bytes:
    """A file that FFmpeg writes for a stream, without frames; nothing where it cannot."""
    import av

    header = io.BytesIO()
    flags = {"movflags": "empty_moov"} if container == "mov" else {}
    try:
        with av.open(header, "w", format=container, options=flags) as copy:
            copy.add_stream_from_template(stream, opaque=True)
            copy.start_encoding()
    except (ValueError, av.FFmpegError):
        return b""
    return header.getvalue()


def _elements(data: bytes) -> Iterator[tuple[str, bytes]]:
    """EBML elements (RFC 8794) that FFmpeg wrote: (id in hexadecimal digits, content)."""
    at = 0
    while at < len(data):
        name = data[at : at + 9 - data[at].bit_length()]
        at += len(name)
        size = data[at : at + 9 - data[at].bit_length()]
        at += len(size)
        end = at + (int.from_bytes(size) & ((1 << 7 * len(size)) - 1))
        yield name.hex(), data[at:end]
        at = end


def _boxes(data: bytes) -> dict[bytes, bytes]:
    """Boxes (ISO/IEC 14496-12) that FFmpeg wrote, by kind."""
    found, at = {}, 0
    while at + 8 <= len(data):
        end = at + max(8, int.from_bytes(data[at : at + 4]))
        found[data[at + 4 : at + 8]] = data[at + 8 : end]
        at = end
    return found


def _aperture(clap: bytes, width: int, height: int) -> tuple[int, int, int, int]:
    """What a clean aperture hides: its width, height and the shift of its middle, as fractions."""
    numbers = np.frombuffer(clap[:32], ">i4").tolist()
    wide, high, right, down = map(Fraction, numbers[::2], numbers[1::2])
    left, top = int((width - wide) / 2 + right), int((height - high) / 2 + down)
    return left, top, int(width - wide) - left, int(height - high) - top


def _whole(before, frame, after):
    """A frame of two fields, taken at two times, as that of the first; others as they are."""
    if not frame.interlaced_frame or min(frame.width, frame.height) < _MIN_WOVEN:
        return frame
    kind = (frame.width, frame.height, frame.format.name)
    graph = _graph(frame, ("bwdif", "mode=send_frame:deint=interlaced"))
    for one in (before, frame, after):
        same = one is not None and (one.width, one.height, one.format.name) == kind
        graph.push(one if same else frame)
    graph.pull()  # the one before
    return graph.pull()


def _side_data(frame) -> dict[str, bytes]:
    """What is said of one frame, by PyAV's names, without what it has no names for."""
    from av.sidedata.sidedata import Type

    try:
        found = frame.side_data
    except ValueError:  # EXIF and others that are newer than PyAV's list
        first = max(kind.value for kind in Type) + 1
        unnamed = range(first, first + _UNNAMED_KINDS)
        graph = _graph(frame, *(("sidedata", f"mode=delete:type={kind}") for kind in unnamed))
        graph.push(frame)
        found = graph.pull().side_data
    numbered = (found[i] for i in range(len(found)))  # to go over it gives kinds from PyAV 19 on
    return {data.type.name: bytes(data) for data in numbered}


def _graph(frame, *filters: tuple[str, str]):
    """Filters of FFmpeg, by name and options, for frames like this one."""
    from av.filter import Graph

    graph = Graph()
    source = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base="1/1000",
        colorspace=str(int(frame.colorspace)),
        range=str(int(frame.color_range)),
    )
    steps = [graph.add(*one) for one in filters]
    graph.link_nodes(source, *steps, graph.add("buffersink")).configure()
    return graph


def _screen(frame, peak: float) -> Image.Image:
    """RGBA of a frame as an ordinary screen shows its colours; peak: in cd/m², of HDR."""
    colours = hdr.Colours(int(frame.color_trc), int(frame.color_primaries), peak)
    matrix = _matrix(frame)
    if colours.plain:
        return Image.fromarray(frame.to_ndarray(format="rgba", **matrix))
    deep = frame.to_ndarray(format="rgba64le", **matrix)
    made = np.empty(deep.shape, np.uint8)
    made[..., :3], made[..., 3] = colours.to_srgb(deep[..., :3]), deep[..., 3] >> 8
    return Image.fromarray(made)


def _peak(frame, *beside) -> float:
    """The brightest light of an HDR frame in cd/m²: of the film, else of the screen it was made on.

    It is the film's, and the same for all; FFmpeg 9 leaves it out of the first frame. Structures
    AVContentLightMetadata and AVMasteringDisplayMetadata of FFmpeg 8 and 9.
    """
    if int(frame.color_trc) != hdr.PQ:
        return hdr.PEAK
    told = [_side_data(one) for one in (frame, *beside) if one is not None]
    for level in (said["CONTENT_LIGHT_LEVEL"] for said in told if "CONTENT_LIGHT_LEVEL" in said):
        if brightest := int(np.frombuffer(level[:4], np.uint32)[0]):
            return float(brightest)
    name = "MASTERING_DISPLAY_METADATA"
    for screen in (said[name] for said in told if name in said):
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
    matrix = _side_data(frame).get("DISPLAYMATRIX")
    if matrix is None:
        return []
    a, b, _, c, d, *_ = np.frombuffer(matrix[:36], np.int32).tolist()
    steps = []
    if abs(b) + abs(c) > abs(a) + abs(d):  # rows become columns
        steps.append(Image.Transpose.TRANSPOSE)
        a, d = c, b
    if a < 0:
        steps.append(Image.Transpose.FLIP_LEFT_RIGHT)
    if d < 0:
        steps.append(Image.Transpose.FLIP_TOP_BOTTOM)
    return steps
