"""Frames as players show them: what a container says beside the pixels; any bytes of a film."""

import io
import tempfile
from fractions import Fraction

import av
import hypothesis_cases
import numpy as np
import pytest
from av.stream import Disposition
from hypothesis import strategies as st
from PIL import Image

from srum_jax.data import images, video

WIDTH, HEIGHT = 32, 16
RED = (200, 30, 60)


def flat(colour, size=(WIDTH, HEIGHT)):
    return np.broadcast_to(np.uint8(colour), (size[1], size[0], len(colour))).copy()


def corner(alpha=None):
    """Gray, with red in its upper left quarter."""
    made = flat((90, 90, 90))
    made[: HEIGHT // 2, : WIDTH // 2] = RED
    return made


def film(pictures, container="matroska", codec="ffv1", pixels="bgr0", *, times=None, **how):
    """The bytes of a film of `pictures` (RGB or RGBA arrays, or frames), five a second.

    how: options, of the encoder; context, attributes of it; matrix, (degrees, hflip, vflip).
    """
    with tempfile.NamedTemporaryFile() as file, av.open(file.name, "w", container) as out:
        stream = out.add_stream(codec, rate=5, options=how.get("options", {}))
        first = pictures[0]
        shape = (first.height, first.width) if isinstance(first, av.VideoFrame) else first.shape
        stream.height, stream.width, stream.pix_fmt = shape[0], shape[1], pixels
        for name, value in how.get("context", {}).items():
            setattr(stream.codec_context, name, value)
        if "matrix" in how:
            degrees, hflip, vflip = how["matrix"]
            stream.set_display_rotation(degrees, hflip=hflip, vflip=vflip)
        for number, picture in enumerate(pictures):
            frame = picture
            if not isinstance(picture, av.VideoFrame):
                names = {3: "rgb24", 4: "rgba"}
                frame = av.VideoFrame.from_ndarray(picture, format=names[picture.shape[2]])
            if times:
                frame.pts, frame.time_base = round(1000 * times[number]), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        out.close()
        return file.read()


def read(tmp_path, data, count=1):
    (tmp_path / "clip").write_bytes(data)
    return video.frames(tmp_path / "clip", count)


def shown(tmp_path, data):
    ((_, picture),) = read(tmp_path, data)
    return picture


@pytest.mark.parametrize(
    "container, codec, pixels, options",
    [
        ("mov", "qtrle", "argb", {}),
        ("mov", "png", "rgba", {}),
        ("mov", "prores_ks", "yuva444p10le", {}),
        ("matroska", "ffv1", "yuva420p", {}),
        ("matroska", "ffv1", "yuva444p16le", {}),
        ("matroska", "ffv1", "bgra", {}),
        ("webm", "libvpx-vp9", "yuva420p", {}),
        ("webm", "libvpx", "yuva420p", {"auto-alt-ref": "0"}),
    ],
)
def test_transparency_lies_on_white(container, codec, pixels, options, tmp_path):
    picture = np.dstack([flat((40, 40, 40)), np.zeros((HEIGHT, WIDTH), np.uint8)])
    picture[:, WIDTH // 2 :, 3] = 255
    data = film([picture] * 3, container, codec, pixels, options=options)
    found = read(tmp_path, data, 3)
    assert len(found) == 3 and found[-1][0] == pytest.approx(0.4, abs=2e-3)
    for _, one in found:
        assert (one[:, :12] > 250).all() and np.abs(one[:, 20:].astype(int) - 40).max() < 8


@pytest.mark.parametrize(
    "matrix, turned",
    [
        ((0, False, False), lambda a: a),
        ((90, False, False), np.rot90),
        ((180, False, False), lambda a: np.rot90(a, 2)),
        ((-90, False, False), lambda a: np.rot90(a, -1)),
        ((0, True, False), lambda a: a[:, ::-1]),
        ((0, False, True), lambda a: a[::-1]),
    ],
)
def test_films_are_turned_and_mirrored_as_they_say(matrix, turned, tmp_path):
    data = film([corner()] * 2, "mp4", "libx264", "yuv444p", matrix=matrix, options={"qp": "0"})
    want = turned(corner()).astype(int)
    found = shown(tmp_path, data)
    assert found.shape == want.shape and np.abs(found - want).max() < 8


@pytest.mark.parametrize(
    "numbers, turned",
    [
        ((0, -1, -1, 0), lambda a: np.rot90(a)[:, ::-1]),
        ((0, 1, 1, 0), lambda a: a.swapaxes(0, 1)),
        ((-1, 0, 0, -1), lambda a: a[::-1, ::-1]),
    ],
)
def test_a_matrix_may_turn_and_mirror(numbers, turned, tmp_path):
    a, b, c, d = (n * 65536 for n in numbers)
    with tempfile.NamedTemporaryFile() as file, av.open(file.name, "w", "mp4") as out:
        stream = out.add_stream("libx264", rate=5, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv444p"
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        out.mux(stream.encode(av.VideoFrame.from_ndarray(corner(), format="rgb24")))
        out.mux(stream.encode())
        out.close()
        found = shown(tmp_path, file.read())
    want = turned(corner()).astype(int)
    assert found.shape == want.shape and np.abs(found - want).max() < 8


@pytest.mark.parametrize(
    "ratio, size", [(Fraction(2), (64, 16)), (Fraction(1, 2), (32, 32)), (Fraction(4, 3), (43, 16))]
)
def test_pixels_are_made_square(ratio, size, tmp_path):
    how = dict(context={"sample_aspect_ratio": ratio})
    found = shown(tmp_path, film([corner()] * 2, "mp4", "libx264", "yuv420p", **how))
    assert found.shape == (size[1], size[0], 3)
    assert found[1, 1, 0] > 150 > found[-2, -2, 0]


@pytest.mark.parametrize("matrix, kind", [(1, "BT.709"), (5, "BT.601"), (9, "BT.2020")])
@pytest.mark.parametrize("span", [1, 2])
def test_colours_are_read_by_the_matrix_and_range_that_are_named(matrix, kind, span, tmp_path):
    frame = av.VideoFrame.from_ndarray(flat(RED), format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range=span)
    frame.colorspace, frame.color_range = matrix, span
    named = dict(colorspace=matrix, color_range=span)
    found = shown(tmp_path, film([frame], pixels="yuv420p", context=named))
    assert np.abs(found.astype(int) - RED).max() < 5


@pytest.mark.parametrize("size, matrix", [((720, 576), 5), ((1280, 720), 1), ((64, 720), 1)])
def test_a_film_that_names_no_matrix_has_that_of_its_size(size, matrix, tmp_path):
    frame = av.VideoFrame.from_ndarray(flat(RED, size), format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range=1)
    frame.colorspace = frame.color_range = 2
    frame.color_range = 0
    found = shown(tmp_path, film([frame], pixels="yuv420p"))
    assert np.abs(found[5, 5].astype(int) - RED).max() < 5


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv444p12le", "gray", "gray16le", "yuv410p"])
def test_depths_and_subsamplings(pixels, tmp_path):
    found = shown(tmp_path, film([flat((120, 120, 120))], pixels=pixels))
    assert np.abs(found.astype(int) - 120).max() < 4


def test_frames_are_taken_by_their_times(tmp_path):
    """Ten frames at once, then a long one: evenly in time is not evenly in number."""
    times = [7 + 0.02 * n for n in range(10)] + [9.0, 11.0]
    data = film([flat((20 * n,) * 3) for n in range(12)], times=times)
    found = read(tmp_path, data, 3)
    np.testing.assert_allclose([t for t, _ in found], [0, 2, 4], atol=2e-3)
    np.testing.assert_allclose([p[5, 5, 0] for _, p in found], [0, 200, 220], atol=2)


def covered(*, with_film):
    with tempfile.NamedTemporaryFile() as file, av.open(file.name, "w", "mp4") as out:
        cover = out.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
        cover.disposition = Disposition.attached_pic
        other = out.add_stream("libx264" if with_film else "aac", rate=5 if with_film else 8000)
        if with_film:
            other.width, other.height, other.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        picture = flat((7, 7, 7), (64, 48))
        out.mux(cover.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(cover.encode())
        for _ in range(5 if with_film else 0):
            out.mux(other.encode(av.VideoFrame.from_ndarray(flat(RED), format="rgb24")))
        out.mux(other.encode())
        out.close()
        return file.read()


def test_a_cover_is_no_film(tmp_path):
    found = read(tmp_path, covered(with_film=True), 9)
    assert len(found) == 5 and all(p.shape == (HEIGHT, WIDTH, 3) for _, p in found)
    with pytest.raises(ValueError, match="its only picture is a cover"):
        read(tmp_path, covered(with_film=False))


SEEDS = [
    film([corner()] * 3, *kind)
    for kind in (
        ("matroska", "ffv1", "yuva420p"),
        ("mp4", "libx264", "yuv420p"),
        ("mov", "qtrle", "argb"),
        ("avi", "mpeg4", "yuv420p"),
        ("mpegts", "mpeg2video", "yuv420p"),
        ("webm", "libvpx-vp9", "yuva420p"),
    )
]
for kind in ("GIF", "WEBP", "PNG"):
    buffer = io.BytesIO()
    Image.fromarray(corner()).save(
        buffer, kind, save_all=True, append_images=[Image.fromarray(flat(RED))]
    )
    SEEDS.append(buffer.getvalue())
PLACES = st.integers(0, 2**16)
EDITS = st.lists(st.tuples(PLACES, st.binary(min_size=1, max_size=4)), min_size=1, max_size=4)


@hypothesis_cases.counts(quick=150)
@pytest.mark.filterwarnings("ignore")  # Pillow's own word about damaged fields
def test_any_bytes_are_a_clip_or_a_refusal(cases, tmp_path):
    def check(seed, edits, cut):
        data = bytearray(seed)
        for place, new in edits:
            data[place % len(data) : place % len(data) + len(new)] = new
        (tmp_path / "clip").write_bytes(data[: max(cut, 1)])
        found = hypothesis_cases.value_or_refusal(
            lambda: video.frames(tmp_path / "clip", 2), names="clip"
        )
        for seconds, picture in found or []:
            assert np.isfinite(seconds) and picture.dtype == np.uint8 and picture.ndim == 3
            images.check_size(picture.shape[1], picture.shape[0], name="clip")

    cut = PLACES | st.just(2**16)
    hypothesis_cases.run(check, cases, seed=st.sampled_from(SEEDS), edits=EDITS, cut=cut)
