"""What containers say of a whole film: turns, shape, light, for whose players and which eye."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from films import HEIGHT, RED, WIDTH, copied, corner, dolby, film, flat, matroska_of, with_box

from srum_jax.data import video


def shown(tmp_path, data):
    """A film's one picture of those that were asked for."""
    (tmp_path / "clip").write_bytes(data)
    ((_, picture),) = video.frames(tmp_path / "clip", 1)
    return picture


@pytest.mark.parametrize("degrees, turned", [(90, np.rot90), (180, lambda a: np.rot90(a, 2))])
def test_matroska_turns_by_the_roll_of_its_projection(degrees, turned, tmp_path):
    found = shown(tmp_path, film([corner()] * 2, matrix=(degrees, False, False)))
    np.testing.assert_array_equal(found, turned(corner()))


@pytest.mark.parametrize("container", ["matroska", "mpegts", "mov", "avi", "flv"])
def test_every_container_may_say_how_oblong_they_are(container, tmp_path):
    how = dict(options={"qp": "0"}, context={"sample_aspect_ratio": Fraction(2)})
    data = copied(film([corner()] * 2, "mp4", "libx264", "yuv444p", **how), container)
    assert shown(tmp_path, data).shape == (HEIGHT, 2 * WIDTH, 3)


@pytest.mark.parametrize("size", ["54b0814054ba8110", "54b0810454ba810154b28103"])
def test_matroska_names_a_size_or_a_shape_to_show(size, tmp_path):
    """64 x 16 pixels, or four to one."""
    assert shown(tmp_path, matroska_of(size)).shape == (HEIGHT, 2 * WIDTH, 3)


LIGHT = struct.unpack(">i", struct.pack(">HH", 203, 100))
SCREEN_BOX = struct.pack(">8H2I", 13250, 34500, 7500, 3000, 34000, 16000, 15635, 16450, 2030000, 1)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize(
    "kind, told", [(b"clli", LIGHT), (b"mdcv", struct.unpack(">6i", SCREEN_BOX))]
)
def test_the_brightest_light_may_be_named_by_the_container(kind, told, container, tmp_path):
    frame = av.VideoFrame.from_ndarray(np.full((32, 64, 3), 38057, np.uint16), format="rgb48le")
    frame = frame.reformat(format="yuv420p10le", dst_colorspace=9, dst_color_range=1)
    how = "lossless=1:bframes=0:log-level=none:colorprim=9:transfer=16:colormatrix=9"
    data = film([frame] * 2, "mp4", "libx265", "yuv420p10le", options={"x265-params": how})
    data = with_box(data, kind, *told)
    data = data if container == "mp4" else copied(data, container)
    assert np.abs(shown(tmp_path, data).astype(int) - 255).max() <= 2


@pytest.mark.parametrize(
    "tag, transfer, refused",
    [("dvh1", "undef", True), ("dvh1", "smpte2084", False), ("hvc1", "undef", False)],
)
def test_dolby_vision_with_nothing_for_other_players_is_refused(tag, transfer, refused, tmp_path):
    how = f"lossless=1:bframes=0:log-level=none:transfer={transfer}"
    data = film(
        *([flat((40, 40, 40), (64, 32))] * 2, "mp4", "libx265", "yuv420p10le"),
        options={"x265-params": how},
        context={"codec_tag": tag},
    )
    if not refused:
        assert shown(tmp_path, data).shape == (32, 64, 3)
        return
    with pytest.raises(ValueError, match="clip: .*Dolby Vision .* is not read"):
        shown(tmp_path, data)


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize(
    "profile, others, refused",
    [(5, 0, True), (10, 0, True), (4, 2, False), (7, 6, False), (8, 1, False)],
)
def test_dolby_vision_says_in_every_container_what_others_see(
    profile, others, refused, container, tmp_path
):
    data = dolby(container, profile, others)
    if not refused:
        assert shown(tmp_path, data).shape == (32, 64, 3)
        return
    with pytest.raises(ValueError, match="clip: .*Dolby Vision .* is not read"):
        shown(tmp_path, data)


EYES = RED, (40, 40, 40)  # what the left one sees, and the right one


def eyes(axis, left_first):
    pictures = [flat(colour) for colour in EYES]
    return np.concatenate(pictures if left_first else pictures[::-1], axis)


@pytest.mark.parametrize(
    "how, axis, left_first",
    [
        ("left_right", 1, True),
        ("right_left", 1, False),
        ("top_bottom", 0, True),
        ("bottom_top", 0, False),
    ],
)
def test_of_two_eyes_in_a_picture_the_left_ones_is_shown(how, axis, left_first, tmp_path):
    data = film([eyes(axis, left_first)] * 2, metadata={"stereo_mode": how})
    found = shown(tmp_path, data)
    assert found.shape == (HEIGHT, WIDTH, 3) and np.abs(found.astype(int) - EYES[0]).max() < 8


def test_frames_may_say_themselves_that_two_eyes_lie_in_them(tmp_path):
    how = {"qp": "0", "x264-params": "frame-packing=4"}  # one above the other
    data = film([eyes(0, True)] * 2, "mp4", "libx264", "yuv444p", options=how)
    found = shown(tmp_path, data)
    assert found.shape == (HEIGHT, WIDTH, 3) and np.abs(found.astype(int) - EYES[0]).max() < 8


@pytest.mark.parametrize("number, size", [(0, (16, 32)), (1, (8, 32)), (2, (16, 16))])
def test_mp4_says_where_eyes_lie(number, size, tmp_path):
    """In a box of five bytes, the last of them the number: the next three are not read."""
    data = film([corner()] * 2, "mp4", "libx264", "yuv444p", options={"qp": "0"})
    assert shown(tmp_path, with_box(data, b"st3d", 0, number << 24)).shape == (*size, 3)
