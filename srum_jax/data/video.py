"""Frames of a clip: GIF, animated WebP and PNG by Pillow, MP4 and its like by PyAV.

Owns the way from an untrusted clip to a few frames, uint8 [H,W,3], and their times; `video_shown`
makes pictures of PyAV's frames. A clip is decoded twice, for the times of its frames and to keep
the wanted ones: memory holds these and their neighbours alone, and no header is believed about
lengths. PyAV is the extra `video`, imported where a clip needs it.
"""

import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from srum_jax.core import places
from srum_jax.data import images, video_shown

# What PyAV may read: single files. Play lists and the like could name other files or hosts.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv"
MAX_FRAMES = 50_000  # of a clip: 27 minutes at 30 a second
MAX_CLIP_PIXELS = 2**37  # of all its frames together: enough for these at 1920x1080
MAX_KEPT_PIXELS = 2**29  # of the frames asked for: 1.6 GB
UNTIMED = 0.1  # seconds that viewers show a frame whose file gives no duration
UNTIMED_RATE = 25  # frames a second of a film that gives neither times nor a rate

# Seconds, (width, height) before it is turned, and what makes the RGB picture until the next one.
Frame = tuple[float, tuple[int, int], Callable[[], Image.Image]]


def frames(
    path: epath.PathLike, count: int, *, most: int | None = None
) -> list[tuple[float, np.ndarray]]:
    """`count` frames spread evenly over a clip: [(seconds from its start, uint8 [H,W,3])].

    They are those that begin nearest to as many times, each once: fewer than `count` where the clip
    has fewer. A frame is as players show it: the first of its two fields if it has them, cropped,
    turned and mirrored as the file says, transparency on white, pixels square, colours by the
    matrix and range that are given, in high definition BT.709 where none is, and HDR and wide gamut
    as sRGB, of two eyes in a picture the left one's. Not done: spherical pictures are shown as they
    are stored.

    most: pixels of all its frames together, None: MAX_CLIP_PIXELS. Raises FileNotFoundError if
    there is no such file, ValueError for a folder, a damaged or truncated clip, one past the limits
    above, and for a format that needs PyAV where that is not installed.
    """
    path = places.place(path, "a clip")
    if count < 1:
        raise ValueError(f"{path}: {count} frames asked for; ask for 1 or more")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name one clip in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such clip")
    most = MAX_CLIP_PIXELS if most is None else most
    wanted = set(spread([seconds for seconds, _, _ in _decoded(path, most)], count))
    kept, pixels = [], 0
    for number, (seconds, (width, height), picture) in enumerate(_decoded(path, most)):
        if number not in wanted:
            continue
        pixels += width * height
        if pixels > MAX_KEPT_PIXELS:
            raise ValueError(
                f"{path}: {len(wanted)} frames of {width}x{height} pixels are too many at once; "
                "ask for fewer or scale the clip down"
            )
        with images.readable(str(path), "clip"):
            kept.append((seconds, np.asarray(picture())))
    return kept


def spread(times: Sequence[float], count: int) -> list[int]:
    """Numbers of up to `count` frames that begin at `times`, in seconds: nearest to times that are
    evenly spaced, first and last among them."""
    numbers = np.arange(len(times))
    growing = np.maximum.accumulate(times) + 1e-9 * numbers  # where several begin at one time
    places = np.interp(np.linspace(growing[0], growing[-1], count), growing, numbers)
    return sorted({round(float(x)) for x in places.round(6)})


def _decoded(path: epath.Path, most: int) -> Iterator[Frame]:
    """Every frame in order; at least one."""
    number, pixels = 0, 0
    with path.open("rb") as file:
        start = file.read(12)
        file.seek(0)
        pillow = start.startswith((b"GIF8", b"\x89PNG")) or start[8:] == b"WEBP"
        for frame in (_by_pillow if pillow else _by_pyav)(file, str(path)):
            number, pixels = number + 1, pixels + frame[1][0] * frame[1][1]
            if number > MAX_FRAMES or pixels > most:
                raise ValueError(
                    f"{path}: more than {MAX_FRAMES} frames, or {most} pixels in all; "
                    "cut the clip or scale it down"
                )
            yield frame
    if not number:
        raise ValueError(f"{path}: not a readable clip (it shows nothing)")


def _by_pillow(file, name: str) -> Iterator[Frame]:
    with images.readable(name, "clip"):
        start = file.read(8)
        file.seek(0)
        if start.startswith(b"\x89PNG"):
            file = io.BytesIO(images.without_texts(file.read(images.MAX_FILE_BYTES)))
        clip = Image.open(file, formats=("GIF", "WEBP", "PNG"))
    seconds, number = 0.0, 0
    while True:
        images.check_size(*clip.size, name=name)
        with images.readable(name, "clip"):
            clip.load()
        if number or not clip.info.get("default_image"):  # shown only where nothing moves
            yield seconds, clip.size, functools.partial(images.rgb, clip)
            seconds += clip.info.get("duration", 0) / 1000 or UNTIMED
        number += 1
        with images.readable(name, "clip"):
            try:
                clip.seek(number)
            except EOFError:
                return


def _by_pyav(file, name: str) -> Iterator[Frame]:
    try:
        import av
    except ImportError as e:
        raise ValueError(
            f'{name}: such a clip needs PyAV: pip install "srum_jax[video]"; or give a GIF'
        ) from e
    with images.readable(name, "clip"):
        clip = av.open(file, options={"format_whitelist": CONTAINERS})
    with clip:
        stream = _stream(clip, name)
        images.check_size(stream.width, stream.height, name=name)
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": str(images.MAX_FILE_PIXELS)}
        with images.readable(name, "clip"):
            yield from _of_stream(clip, stream)


def _stream(clip, name: str):
    """The stream that players show: not a cover, which may come first."""
    from av.stream import Disposition

    known = [s for s in clip.streams.video if s.codec_context is not None]
    if not known:
        raise ValueError(f"{name}: not a readable clip (it has no pictures of a known kind)")
    shown = [s for s in known if not s.disposition & Disposition.attached_pic]
    if not shown:
        raise ValueError(f"{name}: not a readable clip (its only picture is a cover)")
    best = clip.streams.best("video")
    return best if best in shown else shown[0]


@dataclasses.dataclass(frozen=True)
class _Transparent:
    """libvpx, which decodes the transparency of VP8 and VP9; FFmpeg's own decoders ignore it.

    It believes any size that a frame names, and is busy with it for minutes: `guards`, FFmpeg's own
    for the colours and for the transparency, decode each packet first and refuse what is larger
    than the stream.
    """

    libvpx: Any
    guards: tuple[Any, Any]

    @classmethod
    def of(cls, stream, name: str) -> "_Transparent":
        import av

        guards = tuple(av.CodecContext.create(stream.codec_context.name, "r") for _ in range(2))
        for guard in guards:
            # Rows are counted as they lie in memory, up to 64 pixels longer.
            guard.options = {"max_pixels": str((stream.width + 64) * stream.height)}
        return cls(av.CodecContext.create(name, "r"), guards)

    def decode(self, packet) -> list:
        """The frames of a packet; None: those that are still to come."""
        import av

        if packet is not None:
            parts = [bytes(packet)]
            if packet.has_sidedata("matroska_block_additional"):  # its kind in 8 bytes, a frame
                parts.append(bytes(packet.get_sidedata("matroska_block_additional"))[8:])
            for guard, part in zip(self.guards, parts, strict=False):
                guard.decode(av.Packet(part))
        return self.libvpx.decode(packet)


def _decoder(stream):
    """What decodes a stream's packets."""
    import av

    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return stream.codec_context
    return _Transparent.of(stream, name)


def _of_stream(clip, stream) -> Iterator[Frame]:
    """Frames of an open clip's stream. ValueError for damaged ones, and if the file ends early."""
    first, rate = None, float(stream.average_rate or UNTIMED_RATE)
    shown = video_shown.FrameGeometry.of(stream)
    decoded = video_shown.neighbours(_whole_stream(clip, stream))
    for number, (before, frame, after) in enumerate(decoded):
        # Containers without times: frames at an even rate.
        untimed = frame.pts is None or stream.time_base is None
        seconds = number / rate if untimed else float(frame.pts * stream.time_base)
        first = seconds if first is None else first
        size = shown.size(frame)
        images.check_size(*size, name=f"frame {number}")
        yield seconds - first, size, functools.partial(shown.picture, before, frame, after)


def _whole_stream(clip, stream) -> Iterator:
    """Frames of PyAV, none of them damaged, to the end that the file names."""
    number, end, decoder = 0, 0.0, _decoder(stream)
    for packet in clip.demux():  # sound too: it may be what lasts to the end
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index != stream.index:
            continue
        if packet.is_corrupt:  # what is left of it may well be shown as if it were whole
            raise ValueError(f"frame {number} is damaged, or one close to it")
        for frame in decoder.decode(packet if packet.size else None):
            if frame.is_corrupt:
                raise ValueError(f"frame {number} is damaged")
            yield frame
            number += 1
    lasts = (clip.duration or 0) / 1e6  # the file's own word, in microseconds
    if "matroska" not in clip.format.name:  # whose duration counts from 0, wherever it starts
        end -= (clip.start_time or 0) / 1e6
    if end < lasts - max(0.5, 0.05 * lasts):
        raise ValueError(f"it ends after {end:.1f} of {lasts:.1f} seconds")
