"""Frames of clips: which ones, when, upright and on white; damaged and oversized clips refused."""

import io
import sys
import tempfile

import av
import films
import hypothesis_cases
import numpy as np
import pytest
from PIL import Image

from srum_jax.data import images, video

PILLOW = ["GIF", "WEBP", "PNG"]
LEVELS = np.arange(0, 240, 20)  # brightness of frame 0, 1, …


def flat(level, size=(32, 16)):
    """A gray frame with a red bar along its top: width 32, height 16."""
    picture = np.full((size[1], size[0], 3), level, np.uint8)
    picture[:4] = (255, 0, 0)
    return Image.fromarray(picture)


def animation(format, levels=LEVELS, **how):
    first, *rest = (flat(level) for level in levels)
    buffer = io.BytesIO()
    how = {"duration": 50, "lossless": True} | how
    first.save(buffer, format, save_all=True, append_images=rest, **how)
    return buffer.getvalue()


def movie(container="mp4", codec="libx264", *, rotation=0, noise=False, **how):
    """A clip of 5 frames a second."""
    rng = np.random.default_rng(0)
    with tempfile.NamedTemporaryFile() as file, av.open(file.name, "w", container, **how) as out:
        stream = out.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for level in LEVELS:
            picture = rng.integers(0, 256, (16, 32, 3), np.uint8) if noise else flat(level)
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        out.close()
        return file.read()


def read(tmp_path, data, count):
    path = tmp_path / "clip"
    path.write_bytes(data)
    return video.frames(path, count)


def levels(found):
    return [int(picture[12, 20, 0]) for _, picture in found]


@pytest.mark.parametrize(
    "total, count, wanted",
    [
        (12, 1, [0]),
        (12, 2, [0, 11]),
        (12, 4, [0, 4, 7, 11]),
        (3, 8, [0, 1, 2]),
        (1, 5, [0]),
        (100, 5, [0, 25, 50, 74, 99]),
    ],
)
def test_frames_are_spread_evenly(total, count, wanted):
    assert video.spread(np.arange(total) / 30, count) == wanted


def test_frames_of_uneven_times_are_spread_by_time():
    assert video.spread([0, 0.1, 0.2, 0.3, 9], 4) == [0, 3, 4]
    assert video.spread([0, 1, 2, 2.1, 2.2, 2.3, 4], 3) == [0, 2, 6]
    assert video.spread([5, 5, 5], 3) == [0, 1, 2] and video.spread([3], 2) == [0]


@pytest.mark.parametrize("format", PILLOW)
def test_animations_without_pyav(format, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    durations = [100 * (n % 3 + 1) for n in range(len(LEVELS))]
    data = animation(format, duration=durations)
    found = read(tmp_path, data, 4)
    assert all(p.shape == (16, 32, 3) and p.dtype == np.uint8 for _, p in found)
    np.testing.assert_allclose(levels(found), LEVELS[[0, 4, 8, 11]], atol=2)
    starts = np.cumsum([0, *durations]) / 1000
    np.testing.assert_allclose([t for t, _ in found], starts[[0, 4, 8, 11]], atol=1e-6)
    assert len(read(tmp_path, data, 99)) == len(LEVELS)


def test_a_file_that_gives_no_durations(tmp_path):
    found = read(tmp_path, animation("GIF", duration=0), 3)
    np.testing.assert_allclose([t for t, _ in found], [0, 0.6, 1.1], atol=1e-6)


def test_a_picture_that_stands_still_is_a_clip_of_one_frame(tmp_path):
    ((seconds, picture),) = read(tmp_path, images.encode_png(np.asarray(flat(9))), 8)
    assert seconds == 0 and (picture == np.asarray(flat(9))).all()


def test_transparency_lies_on_white(tmp_path):
    frames = [Image.new("RGBA", (4, 3), (0, 0, n, 0)) for n in (1, 2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    found = read(tmp_path, buffer.getvalue(), 2)
    assert len(found) == 2 and all((p == 255).all() for _, p in found)


def test_a_picture_for_programs_without_animation_is_no_frame(tmp_path):
    data = animation("PNG", levels=[77, *LEVELS], default_image=True)
    found = read(tmp_path, data, 99)
    assert levels(found) == LEVELS.tolist() and found[0][0] == 0


@pytest.mark.parametrize(
    "container, codec",
    [("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4"), ("mpegts", "libx264")],
)
def test_movies(container, codec, tmp_path):
    data = movie(container, codec)
    found = read(tmp_path, data, 4)
    np.testing.assert_allclose(levels(found), LEVELS[[0, 4, 7, 11]], atol=8)
    np.testing.assert_allclose([t for t, _ in found], [0, 0.8, 1.4, 2.2], atol=2e-3)
    assert all(p.shape == (16, 32, 3) and p[1, 5, 0] > 200 > 80 > p[1, 5, 2] for _, p in found)
    assert len(read(tmp_path, data, 99)) == len(LEVELS)


def test_a_phones_clip_is_turned_upright(tmp_path):
    """A clip stored lying, with its top (red) where its rotation brings it."""
    for rotation, bar in (
        (90, np.s_[:, 1]),
        (-90, np.s_[:, -2]),
        (180, np.s_[-2, :]),
    ):
        ((_, picture),) = read(tmp_path, movie(rotation=rotation), 1)
        assert picture.shape == ((16, 32, 3) if rotation == 180 else (32, 16, 3))
        assert picture[bar][:, 0].min() > 200 and picture[8, 8, 0] < 60


def test_only_the_frames_asked_for_are_made(tmp_path, monkeypatch):
    made = []
    real = images.rgb
    monkeypatch.setattr(images, "rgb", lambda image: made.append(1) or real(image))
    read(tmp_path, animation("GIF"), 3)
    assert len(made) == 3
    for clip in (animation("GIF"), movie()):
        read(tmp_path, clip, 3)
        with monkeypatch.context() as m, pytest.raises(ValueError, match="clip: 4 frames of 32x16"):
            m.setattr(video, "MAX_KEPT_PIXELS", 3 * 32 * 16)
            read(tmp_path, clip, 3)
            read(tmp_path, clip, 4)
        for limit, value in (("MAX_FRAMES", 11), ("MAX_CLIP_PIXELS", 12 * 32 * 16 - 1)):
            with monkeypatch.context() as m, pytest.raises(ValueError, match="clip: more than"):
                m.setattr(video, limit, value)
                read(tmp_path, clip, 1)
        with monkeypatch.context() as m, pytest.raises(ValueError, match="32x16 pixels are more"):
            m.setattr(images, "MAX_FILE_PIXELS", 500)
            read(tmp_path, clip, 1)


@pytest.mark.parametrize(
    "make",
    [
        *(lambda f=f: animation(f, levels=range(0, 250, 5)) for f in PILLOW),
        lambda: movie(noise=True),
        lambda: movie(noise=True, options={"movflags": "faststart"}),
        lambda: movie("matroska", noise=True),
        lambda: movie("avi", "mpeg4", noise=True),
    ],
)
def test_truncated_clips_are_refused(make, tmp_path):
    data = make()
    assert len(read(tmp_path, data, 2)) == 2
    for share in (0.2, 0.4, 0.6):
        with pytest.raises(ValueError, match="clip: not a readable clip"):
            read(tmp_path, data[: int(len(data) * share)], 2)


@pytest.mark.parametrize("missing", [1, 9, 16])
def test_a_clip_with_a_hole_is_refused(tmp_path, missing):
    data = movie("mpegts", noise=True)
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    shows = [int.from_bytes(packet[1:3], "big") & 0x1FFF == 0x100 for packet in packets]
    begins = [at for at, packet in enumerate(packets) if shows[at] and packet[1] & 0x40]
    # Within a frame, of whole frames, the end of one and the beginning of another. FFmpeg tells no
    # hole in the first or the last.
    for first in range(begins[1] + 1, begins[-1] - missing):
        after = first + missing
        if any(shows[first:after]):
            with pytest.raises(
                ValueError, match=r"clip: not a readable clip \(frame \d+ is damaged"
            ):
                read(tmp_path, b"".join(packets[:first] + packets[after:]), 2)


def test_damaged_clips_are_read_or_refused_by_name(tmp_path):
    rng, refused = np.random.default_rng(0), 0
    for data in [animation(f) for f in PILLOW] + [movie(), movie("avi", "mpeg4")]:
        for _ in range(20):
            broken = bytearray(data)
            for place in rng.integers(0, len(data), 8):
                broken[place] = rng.integers(256)
            try:
                read(tmp_path, bytes(broken), 2)
            except ValueError as error:
                assert str(error).startswith(f"{tmp_path / 'clip'}: ")
                refused += 1
    assert refused > 30


def test_what_is_no_clip_is_refused(tmp_path, monkeypatch):
    sound = io.BytesIO()
    with av.open(sound, "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp")
        silence.rate = 8000
        out.mux(stream.encode(silence))
        out.mux(stream.encode())
    with pytest.raises(ValueError, match="clip: not a readable clip .it has no pictures of"):
        read(tmp_path, sound.getvalue(), 1)
    for data in (b"", b"no clip", b"GIF89a"):
        with pytest.raises(ValueError, match="clip: not a readable clip"):
            read(tmp_path, data, 1)
    with pytest.raises(ValueError, match="0 frames asked for"):
        read(tmp_path, movie(), 0)
    with pytest.raises(ValueError, match="is a folder"):
        video.frames(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match="no.mp4: no such clip"):
        video.frames(tmp_path / "no.mp4", 1)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r'pip install "srum_jax\[video\]"; or give a GIF'):
        read(tmp_path, movie(), 1)


def test_lists_of_other_files_are_not_followed(tmp_path):
    (tmp_path / "part.ts").write_bytes(movie("mpegts"))
    play = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\n{tmp_path}/part.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(play)
    with open(tmp_path / "list.m3u8", "rb") as file, av.open(file) as clip:
        assert clip.format.name == "hls"  # unrestricted, it is read
    with pytest.raises(ValueError, match="not a readable clip"):
        video.frames(tmp_path / "list.m3u8", 1)


@pytest.mark.parametrize("place", [1, 2], ids=["colours", "transparency"])
@pytest.mark.parametrize(
    "codec, start, size, large",  # what begins a frame, 32x16 in its bits, and 16384x16384
    [
        ("libvpx", "9d012a", "20001000", "ff3fff3f"),
        ("libvpx-vp9", "498342", "0001f000f6", "03fff3fff6"),
    ],
)
def test_a_size_that_a_transparent_frame_names_is_not_believed(
    codec, start, size, large, place, tmp_path
):
    start, size, large = map(bytes.fromhex, (start, size, large))
    options = {} if codec == "libvpx-vp9" else {"auto-alt-ref": "0"}
    clip = films.film([films.corner()] * 2, "webm", codec, "yuva420p", options=options)
    parts = clip.split(start)
    assert parts[place].startswith(size)
    parts[place] = large + parts[place][len(size) :]
    (tmp_path / "a.webm").write_bytes(start.join(parts))
    found = hypothesis_cases.value_or_refusal(
        lambda: video.frames(tmp_path / "a.webm", 2), names="a.webm"
    )
    assert found is None
