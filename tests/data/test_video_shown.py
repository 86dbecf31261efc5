"""Frames as players show them: what a container says beside the pixels; any bytes of a film."""

import io
import struct
import tempfile
from fractions import Fraction

import av
import hypothesis_cases
import numpy as np
import pytest
from av.stream import Disposition
from films import (
    HEIGHT,
    RED,
    WIDTH,
    corner,
    cropped_matroska,
    cropped_mp4,
    cropped_quicktime,
    film,
    flat,
    of_fields,
    tagged,
    woven,
)
from hypothesis import strategies as st
from PIL import Image

from srum_jax.data import hdr, images, video, video_shown

SIZES = [(64, 48), (96, 64)]
SCREEN = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)"


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


MIXED = ("prog", "tff", "prog")
FIELDS = ("tff", "bff")  # whether a frame's upper or lower lines are the earlier ones


def combing(picture):
    """The largest step between two lines."""
    return np.abs(np.diff(picture[..., 1].astype(int), axis=0)).max()


@pytest.mark.parametrize("first", FIELDS)
@pytest.mark.parametrize(
    "container, codec, pixels, options",
    [
        ("matroska", "ffv1", "yuv444p", {}),
        ("mp4", "libx264", "yuv420p", {"qp": "1"}),
        ("mpegts", "mpeg2video", "yuv420p", {"flags": "+ildct+ilme", "b": "9000000"}),
        ("mov", "prores_ks", "yuv422p10le", {"flags": "+ildct"}),
    ],
)
def test_films_of_fields_show_the_first_without_combs(
    container, codec, pixels, options, first, tmp_path
):
    if codec == "libx264":
        options = options | {"x264-params": f"{first}=1"}
    frames = [of_fields(woven(n, first), first, pixels) for n in range(5)]
    for frame in frames:
        frame.pts = None
    found = read(tmp_path, film(frames, container, codec, pixels, options=options), 5)
    np.testing.assert_allclose([t for t, _ in found], [0, 0.2, 0.4, 0.6, 0.8], atol=2e-3)
    for number, (_, picture) in enumerate(found):
        assert combing(picture) < 10
        bar = picture[31, :, 1] > 130
        assert bar.sum() == 16 and bar.argmax() == 4 + 16 * number


def test_a_container_may_say_that_frames_are_fields(tmp_path):
    data = film(
        [woven(n, "tff") for n in range(3)],
        "mov",
        "v210",
        "yuv422p10le",
        context={"field_order": 2},
    )
    assert all(combing(picture) < 10 for _, picture in read(tmp_path, data, 3))


def test_stripes_that_are_no_fields_stay(tmp_path):
    frames = [of_fields(woven(n, "tff"), how, "yuv444p") for n, how in enumerate(MIXED)]
    data = film(frames, pixels="yuv444p", times=[0, 0.2, 0.4])
    assert [combing(p) > 100 for _, p in read(tmp_path, data, 3)] == [True, False, True]


@pytest.mark.parametrize("pixels", ["yuv444p10le", "yuv420p10le", "yuv444p12le"])
@pytest.mark.parametrize("transfer", [hdr.PQ, hdr.HLG])
def test_hdr_is_shown_as_on_an_ordinary_screen(transfer, pixels, tmp_path):
    """White paper, 58 % of PQ and 75 % of HLG, is light gray; as it is stored it would be dim."""
    white = {hdr.PQ: 0.5807, hdr.HLG: 0.75}[transfer]
    signal = np.zeros((16, 32, 3))
    signal[:, 8:], signal[:, 16:] = white, 1
    found = shown(tmp_path, tagged(signal, 9, transfer, 9, pixels)).astype(int)
    for left, want in ((2, 0), (12, 230), (28, 255)):
        assert np.abs(found[8, left] - want).max() <= 3


@pytest.mark.parametrize("primaries, matrix", [(9, 9), (12, 1)])
def test_wide_colours_are_brought_to_srgb(primaries, matrix, tmp_path):
    signal = np.broadcast_to(np.divide(RED, 255), (HEIGHT, WIDTH, 3))
    deep = np.rint(65535 * signal).astype(np.uint16)
    want = hdr.Colours(transfer=1, primaries=primaries).to_srgb(deep).astype(int)
    assert np.abs(want - RED).max() > 8
    found = shown(tmp_path, tagged(signal, matrix, 1, primaries))
    assert np.abs(found - want).max() <= 2


@pytest.mark.parametrize(
    "told, want",
    [("max-cll=203,100", 255), ("max-cll=4000,100", 208), ("max-cll=0,0", 230)]
    + [(f"{SCREEN}L(40000000,1)", 208), (f"{SCREEN}L(2030000,1)", 255)],
)
def test_the_brightest_light_that_a_film_names_counts(told, want, tmp_path):
    frame = av.VideoFrame.from_ndarray(np.full((32, 64, 3), 38057, np.uint16), format="rgb48le")
    frame = frame.reformat(format="yuv420p10le", dst_colorspace=9, dst_color_range=1)
    how = "lossless=1:bframes=0:log-level=none:colorprim=9:transfer=16:colormatrix=9:hdr10=1"
    options = {"x265-params": f"{how}:{told}"}
    data = film([frame] * 2, "mp4", "libx265", "yuv420p10le", options=options)
    assert np.abs(shown(tmp_path, data).astype(int) - want).max() <= 2


def test_colours_that_are_not_read_are_refused(tmp_path):
    frame = av.VideoFrame.from_ndarray(corner(), format="rgb24").reformat(format="yuv444p")
    frame.colorspace = 8
    data = film([frame], pixels="yuv444p", context={"colorspace": 8})
    with pytest.raises(ValueError, match="clip: .*matrix 8 of H.273 are not read; make it BT.709"):
        read(tmp_path, data)


@pytest.mark.parametrize("make", [cropped_matroska, cropped_mp4, cropped_quicktime])
@pytest.mark.parametrize("left, top, right, bottom", [(8, 2, 4, 6), (0, 0, 0, 9), (3, 1, 0, 0)])
def test_what_a_container_hides_is_not_shown(make, left, top, right, bottom, tmp_path):
    want = corner()[top : HEIGHT - bottom, left : WIDTH - right].astype(int)
    found = shown(tmp_path, make(left, top, right, bottom))
    assert found.shape == want.shape and np.abs(found - want).max() < 8


def test_a_crop_comes_before_stretching_and_turning(tmp_path):
    how = dict(context={"sample_aspect_ratio": Fraction(2)}, matrix=(90, False, False))
    found = shown(tmp_path, cropped_mp4(8, 2, 4, 6, **how))
    assert found.shape == (2 * (WIDTH - 12), HEIGHT - 8, 3)
    assert found[-2, 1, 0] > 150 > found[1, 1, 0]  # its upper left corner is below


def test_a_crop_that_leaves_nothing_is_refused_or_hides_nothing(tmp_path):
    with pytest.raises(ValueError, match="not a readable clip"):
        read(tmp_path, cropped_matroska(30, 0, 30, 0))
    smaller = av.VideoFrame(WIDTH, HEIGHT, "rgb24")  # than those that the crop was for
    assert video_shown.FrameGeometry(None, (30, 0, 30, 0)).size(smaller) == (WIDTH, HEIGHT)


def test_a_cameras_frames_with_exif_are_read(tmp_path):
    buffer, tags = io.BytesIO(), Image.Exif()
    tags[0x010F] = "a camera"
    Image.fromarray(corner()).save(buffer, "JPEG", exif=tags, quality=95)
    with tempfile.NamedTemporaryFile() as file, av.open(file.name, "w", "mov") as out:
        stream = out.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        stream.set_display_rotation(90)
        for number in range(3):
            packet = av.Packet(buffer.getvalue())
            packet.stream, packet.time_base = stream, Fraction(1, 5)
            packet.pts = packet.dts = number
            out.mux(packet)
        out.close()
        found = shown(tmp_path, file.read())
    assert found.shape == (WIDTH, HEIGHT, 3) and found[-2, 1, 0] > 150 > found[1, 1, 0]


def test_frames_outside_an_edit_list_are_not_shown(tmp_path):
    """Ten frames of 0.2 s, of which the list shows those from 0.4 s to 1.4 s."""
    frames = [flat((20 * n + 20,) * 3) for n in range(10)]
    data = bytearray(film(frames, "mp4", "libx264", "yuv420p", options={"qp": "1"}))
    at = data.index(b"elst") + 12
    ((lasts, starts),) = struct.iter_unpack(">Ii", data[at : at + 8])
    assert lasts == 2000
    data[at : at + 8] = struct.pack(">Ii", 1000, starts + round(0.4 * 5 * 2048))
    found = read(tmp_path, bytes(data), 99)
    np.testing.assert_allclose([t for t, _ in found], [0, 0.2, 0.4, 0.6, 0.8], atol=2e-3)
    np.testing.assert_allclose([p[5, 5, 0] for _, p in found], [60, 80, 100, 120, 140], atol=4)


@pytest.mark.parametrize("default", [0, 1])
def test_of_several_films_the_default_is_shown(default, tmp_path):
    with tempfile.NamedTemporaryFile() as file, av.open(file.name, "w", "matroska") as out:
        streams = [out.add_stream("ffv1", rate=5) for _ in range(2)]
        for number, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = 16 << number, 16, "bgr0"
            stream.disposition = Disposition.default if number == default else Disposition(0)
        for _ in range(3):
            for stream in streams:
                picture = flat(RED, (stream.width, stream.height))
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            out.mux(stream.encode())
        out.close()
        found = read(tmp_path, file.read(), 9)
    assert [p.shape for _, p in found] == [(16, 16 << default, 3)] * 3


def test_a_film_may_change_its_size(tmp_path):
    parts = [film([flat(RED, size)] * 4, "h264", "libx264", "yuv420p") for size in SIZES]
    with tempfile.NamedTemporaryFile() as file, av.open(file.name, "w", "mpegts") as out:
        stream = None
        for number, part in enumerate(parts):
            with av.open(io.BytesIO(part), format="h264") as one:
                stream = stream or out.add_stream_from_template(one.streams.video[0])
                for place, packet in enumerate(p for p in one.demux() if p.size):
                    packet.stream, packet.time_base = stream, Fraction(1, 5)
                    packet.pts = packet.dts = 4 * number + place
                    out.mux(packet)
        out.close()
        found = read(tmp_path, file.read(), 99)
    shapes = [picture.shape for _, picture in found]
    assert shapes[0] == (*SIZES[0][::-1], 3) and shapes[-1] == (*SIZES[1][::-1], 3)


def test_a_containers_shape_of_pixels_comes_before_the_codecs(tmp_path):
    how = dict(context={"sample_aspect_ratio": Fraction(4, 3)})
    data = film([corner()] * 2, "mp4", "libx264", "yuv420p", **how)
    at = data.index(b"pasp") + 4
    data = data[:at] + struct.pack(">II", 2, 1) + data[at + 8 :]
    assert shown(tmp_path, data).shape == (16, 64, 3)


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
SEEDS += [make(8, 2, 4, 6) for make in (cropped_mp4, cropped_matroska, cropped_quicktime)]
SEEDS += [tagged(corner() / 255, 9, transfer, 9) for transfer in (hdr.PQ, hdr.HLG)]
SEEDS.append(
    film(
        [of_fields(woven(n, "tff"), "tff", "yuv420p") for n in range(3)],
        pixels="yuv420p",
        times=[0, 1, 2],
    )
)
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
def test_any_bytes_are_a_clip_or_a_refusal(cases, tmp_path, monkeypatch):
    # A frame as large as may be takes seconds to decode: here the largest is small.
    monkeypatch.setattr(images, "MAX_FILE_PIXELS", 2**20)

    def check(seed, edits, cut):
        data = bytearray(seed)
        for place, new in edits:
            data[place % len(data) : place % len(data) + len(new)] = new
        hypothesis_cases.write(tmp_path / "clip", data[: max(cut, 1)])
        found = hypothesis_cases.value_or_refusal(
            lambda: video.frames(tmp_path / "clip", 2), names="clip"
        )
        for seconds, picture in found or []:
            assert np.isfinite(seconds) and picture.dtype == np.uint8 and picture.ndim == 3
            images.check_size(picture.shape[1], picture.shape[0], name="clip")

    cut = PLACES | st.just(2**16)
    hypothesis_cases.run(check, cases, seed=st.sampled_from(SEEDS), edits=EDITS, cut=cut)
