"""Frames of a clip: GIF, animated WebP and PNG by Pillow, MP4 and its like by PyAV.

Owns the way from an untrusted clip to a few frames, uint8 [H,W,3], and their times. A clip is
decoded twice, to count its frames and to keep the wanted ones: memory holds these alone, and no
header is believed. PyAV is the extra `video`, imported where a clip needs it.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath
from PIL import Image

from srum_jax.data import images

# What PyAV may read: single files. Play lists and the like could name other files or hosts.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv"
MAX_FRAMES = 50_000  # of a clip: 27 minutes at 30 a second
MAX_CLIP_PIXELS = 2**37  # of all its frames together: enough for these at 1920x1080
MAX_KEPT_PIXELS = 2**29  # of the frames asked for: 1.6 GB
UNTIMED = 0.1  # seconds that viewers show a frame whose file gives no duration

# Seconds, (width, height) as stored, and what makes the RGB picture until the next frame is due.
Frame = tuple[float, tuple[int, int], Callable[[], Image.Image]]


def frames(path: epath.PathLike, count: int) -> list[tuple[float, np.ndarray]]:
    """`count` frames spread evenly over a clip: [(seconds from its start, uint8 [H,W,3])].

    They are numbers round(linspace(0, T-1, count)) of its T frames, each once: fewer than `count`
    where T is smaller. Transparency lies on white and phones' clips are upright, as in
    `images.decode`; pixels are taken as square. Raises FileNotFoundError if there is no such file,
    ValueError for a folder, a damaged or truncated clip, one past the limits above, and for a
    format that needs PyAV where that is not installed.
    """
    path = epath.Path(path)
    if count < 1:
        raise ValueError(f"{path}: {count} frames asked for; ask for 1 or more")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name one clip in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such clip")
    wanted = set(spread(sum(1 for _ in _decoded(path)), count))
    kept, pixels = [], 0
    for number, (seconds, (width, height), picture) in enumerate(_decoded(path)):
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


def spread(total: int, count: int) -> list[int]:
    """Numbers of up to `count` of `total` frames: evenly spaced, first and last among them."""
    return sorted({round(float(x)) for x in np.linspace(0, total - 1, count)})


def _decoded(path: epath.Path) -> Iterator[Frame]:
    """Every frame in order; at least one."""
    number, pixels = 0, 0
    with path.open("rb") as file:
        start = file.read(12)
        file.seek(0)
        pillow = start.startswith((b"GIF8", b"\x89PNG")) or start[8:] == b"WEBP"
        for frame in (_by_pillow if pillow else _by_pyav)(file, str(path)):
            number, pixels = number + 1, pixels + frame[1][0] * frame[1][1]
            if number > MAX_FRAMES or pixels > MAX_CLIP_PIXELS:
                raise ValueError(
                    f"{path}: more than {MAX_FRAMES} frames, or {MAX_CLIP_PIXELS} pixels in all; "
                    "cut the clip or scale it down"
                )
            yield frame
    if not number:
        raise ValueError(f"{path}: not a readable clip (it shows nothing)")


def _by_pillow(file, name: str) -> Iterator[Frame]:
    with images.readable(name, "clip"):
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
        if not clip.streams.video or clip.streams.video[0].codec_context is None:
            raise ValueError(f"{name}: not a readable clip (it has no pictures of a known kind)")
        stream = clip.streams.video[0]
        images.check_size(stream.width, stream.height, name=name)
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": str(images.MAX_FILE_PIXELS)}
        with images.readable(name, "clip"):
            yield from _of_stream(clip, stream)


def _of_stream(clip, stream) -> Iterator[Frame]:
    """Frames of an open clip's stream. ValueError for damaged ones, and if the file ends early."""
    number, first, end = 0, None, 0.0
    for packet in clip.demux():  # sound too: it may be what lasts to the end
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        for frame in packet.decode() if packet.stream.index == stream.index else ():
            if frame.is_corrupt:
                raise ValueError(f"frame {number} is damaged")
            # Containers without times: frames at an even rate.
            seconds = number / float(stream.average_rate) if frame.time is None else frame.time
            first = seconds if first is None else first
            size = (frame.width, frame.height)
            yield seconds - first, size, functools.partial(_picture, frame)
            number += 1
    lasts = (clip.duration or 0) / 1e6  # the file's own word, in microseconds
    end -= (clip.start_time or 0) / 1e6
    if end < lasts - max(0.5, 0.05 * lasts):
        raise ValueError(f"it ends after {end:.1f} of {lasts:.1f} seconds")


def _picture(frame) -> Image.Image:
    """Upright RGB: a frame may ask to be turned counter-clockwise by its `rotation` in degrees."""
    return frame.to_image().rotate(frame.rotation, expand=True)
