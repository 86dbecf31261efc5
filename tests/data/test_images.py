"""From bytes to patches: damaged files, transparency, the official resize law and its pixels."""

import dataclasses
import io
import json
import pathlib
import struct
import warnings
import zlib

import hypothesis_cases
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image, ImageFile
from samples import CFG
from tiny import SHAPES

from srum_jax.core.patches import unpatchify
from srum_jax.data import images
from srum_jax.models.bagel.model_config import BAGEL_7B_MOT

COMMON = pathlib.Path(__file__).parents[1] / "goldens" / "common"
CASES = json.loads((COMMON / "common.json").read_text())
ARRAYS = np.load(COMMON / "common.npz")
NOISE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)


def test_sizes_after_resizing_are_the_official_ones():
    assert len(CASES["resize_sizes"]) == 180
    for case in CASES["resize_sizes"]:
        found = images.resized(
            case["width"],
            case["height"],
            long=case["max_image_size"],
            short=case["min_image_size"],
            stride=case["image_stride"],
            max_pixels=case.get("max_pixels", images.MAX_PIXELS) / case["img_num"],
        )
        assert found == (case["out_w"], case["out_h"]), case
    # Rounded to pixels first: 1071 / 2 -> 536 = 33.5 strides -> 34, where 535.5 would give 33.
    assert images.resized(2048, 1071, long=1024, short=256, stride=16) == (1024, 544)


@pytest.mark.parametrize("number", range(len(CASES["transforms"])))
def test_pictures_have_the_official_pixels(number, monkeypatch):
    """A tower whose side, stride and shortest side are the case's."""
    case = CASES["transforms"][number]
    patch, side = case["image_stride"], case["max_image_size"]
    tower = dataclasses.replace(CFG.vit, patch=patch, positions=side // patch)
    cfg = dataclasses.replace(CFG, vit=tower, max_vit=side // patch)
    monkeypatch.setattr(images, "MIN_SHORT", case["min_image_size"])
    want = ARRAYS[f"transform/{number}_out"].transpose(1, 2, 0)
    rows, columns = (n // patch for n in want.shape[:2])
    found = images.picture(ARRAYS[f"transform/{number}_in_u8"], cfg.layout)
    pixels = unpatchify(found.patches, patch, rows, columns)
    assert np.abs(pixels - want).max() <= 1.01 / 127.5
    assert found.patches.dtype == np.float32
    ids = np.arange(rows)[:, None] * cfg.max_vit + np.arange(columns)
    np.testing.assert_array_equal(found.positions, ids.reshape(-1))


@pytest.mark.parametrize("number", range(len(CASES["transforms"])))
def test_resizing_gives_the_official_bytes(number):
    case = CASES["transforms"][number]
    law = dict(long=case["max_image_size"], short=case["min_image_size"])
    source, want = (ARRAYS[f"transform/{number}_{part}_u8"] for part in ("in", "resized"))
    found = images.resize(source, stride=case["image_stride"], **law)
    assert found.dtype == np.uint8 and found.shape == want.shape
    assert np.abs(found.astype(int) - want).max() <= 1
    if law["short"] * 2 == law["long"]:  # a model whose autoencoder takes such pictures
        patch = case["image_stride"] // CFG.vae.downsample
        cfg = dataclasses.replace(CFG, latent_patch=patch, max_latent=law["long"] // (2 * patch))
        np.testing.assert_array_equal(images.latent_image(source, cfg.layout), found)
    with pytest.raises(ValueError, match="uint8 .H,W,3., not float64"):
        images.resize(source / 255, stride=8, **law)


def test_pictures_for_the_autoencoder_have_the_official_sizes():
    sizes = set()
    for case in CASES["resize_sizes"]:
        if (case["transform"], case["img_num"]) == ("vae_infer", 1) and case["width"] < 2000:
            image = np.zeros((case["height"], case["width"], 3), np.uint8)
            found = images.latent_image(image, BAGEL_7B_MOT.layout).shape
            assert found == (case["out_h"], case["out_w"], 3), case
            sizes.add(found)
    assert len(sizes) >= 5


def test_a_picture_of_the_shapes_world_stays_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(images.latent_image(image, SHAPES.layout), image)
    for twice in (False, True):
        found = images.picture(image, SHAPES.layout, twice=twice)
        pixels = unpatchify(found.patches, SHAPES.vit.patch, 4, 4)
        np.testing.assert_array_equal(pixels, images.to_float(image))


def test_resizing_twice_is_what_the_original_does_on_request():
    """5x7 pixels become 16x24 for the autoencoder, and those 4x8 for the tower."""
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    once, twice = (images.picture(image, CFG.layout, twice=t) for t in (False, True))
    assert once.patches.shape == twice.patches.shape
    steps = Image.fromarray(image)
    for size in ((16, 24), (4, 8)):
        steps = steps.resize(size, Image.Resampling.BICUBIC)
    pixels = unpatchify(twice.patches, CFG.vit.patch, 4, 2)
    np.testing.assert_array_equal(pixels, images.to_float(np.asarray(steps)))
    assert np.abs(once.patches - twice.patches).max() > 0.05


def test_small_pictures_are_enlarged_like_any_other():
    """A side that is a multiple of the patch is no reason to keep it short of the law's."""
    tower = dataclasses.replace(CFG.vit, patch=14, positions=70)
    cfg = dataclasses.replace(CFG, vit=tower, max_vit=70)
    assert len(images.picture(np.zeros((28, 56, 3), np.uint8), cfg.layout).positions) == 16 * 32
    shapes_side = np.zeros((CFG.vit.patch * CFG.vit.positions,) * 2 + (3,), np.uint8)
    assert len(images.picture(shapes_side, CFG.layout).positions) == CFG.vit.positions**2


def encoded(image, format="PNG", **how):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **how)
    return buffer.getvalue()


def test_png_and_back():
    np.testing.assert_array_equal(images.decode(images.encode_png(NOISE), name="x"), NOISE)


def test_alpha_lies_on_white():
    rgba = ARRAYS["transform/rgba_in"]
    found = images.decode(encoded(Image.fromarray(rgba)), name="x")
    np.testing.assert_array_equal(found, ARRAYS["transform/rgba_to_rgb"])
    black = Image.new("RGB", (2, 1))
    black.putpixel((1, 0), (9, 9, 9))
    see_through = encoded(black, transparency=(9, 9, 9))
    assert images.decode(see_through, name="x").tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA"])
def test_every_mode_becomes_rgb(mode):
    flat = Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode)
    data = encoded(flat, "TIFF" if mode == "CMYK" else "PNG")
    found = images.decode(data, name="x")
    assert found.dtype == np.uint8 and found.shape == (2, 3, 3) and (found == 255).all()


def test_damaged_bytes_are_refused_by_name():
    rng = np.random.default_rng(0)
    whole = [encoded(Image.fromarray(NOISE), f) for f in ("PNG", "JPEG", "GIF", "WEBP")]
    refused = 0
    for data in (b"", b"no image", *whole * 100):
        broken = bytearray(data[: rng.integers(0, len(data) + 1)])
        for place in rng.integers(0, max(1, min(len(broken), 80)), 4):
            broken[place : place + 1] = bytes([rng.integers(0, 256)])
        try:
            images.decode(bytes(broken), name="folder/a.png")
        except ValueError as error:
            assert str(error).startswith("folder/a.png: ")
            refused += "not a readable image" in str(error)
    assert refused > 200
    short = bytearray(whole[0])
    short[whole[0].index(b"IDAT") - 1] = 5  # one wrong length: Pillow calls it a SyntaxError
    with pytest.raises(ValueError, match="folder/a.png: not a readable image"):
        images.decode(bytes(short), name="folder/a.png")


# A 3x2 picture stored so that the EXIF orientation of this number turns it upright.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("number", STORED)
def test_photographs_are_turned_upright(number):
    upright = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 10
    stored = np.ascontiguousarray(STORED[number](upright))
    exif = Image.Exif()
    exif[0x0112] = number
    for how in (dict(format="PNG"), dict(format="WEBP", lossless=True)):
        data = encoded(Image.fromarray(stored), exif=exif, **how)
        np.testing.assert_array_equal(images.decode(data, name="x"), upright)
        np.testing.assert_array_equal(images.decode(data, name="x", released=True), stored)


def test_a_damaged_orientation_changes_nothing():
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0"):
        data = encoded(Image.fromarray(NOISE), "PNG", exif=exif)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own word about it
            np.testing.assert_array_equal(images.decode(data, name="x"), NOISE)
            opened = Image.open(io.BytesIO(data))
            np.testing.assert_array_equal(images.from_pil(opened, name="x"), NOISE)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(format):
    values = np.array([[0, 256, 257 * 77, 65535]], np.uint16)
    found = images.decode(encoded(Image.fromarray(values), format), name="x")
    assert found[0, :, 0].tolist() == [0, 1, 77, 255] and (found == found[..., :1]).all()
    wide = encoded(Image.fromarray(values.astype(np.float32)), "TIFF")
    with pytest.raises(ValueError, match="x: .*32 bits a pixel"):
        images.decode(wide, name="x")


def test_gray_with_transparency_lies_on_white():
    found = images.decode(encoded(Image.new("LA", (2, 1), (40, 0))), name="x")
    assert (found == 255).all()
    gray = Image.fromarray(np.array([[0, 500, 65535]], np.uint16))
    found = images.decode(encoded(gray, transparency=500), name="x")
    assert found[0, :, 0].tolist() == [0, 255, 255]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth, color, row, *more, behind=(), width=2):
    """A PNG of one row, written chunk by chunk."""
    header = struct.pack(">IIBBBBB", width, 1, depth, color, 0, 0, 0)
    parts = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(b"\0" + row)), *behind]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in [*parts, (b"IEND", b"")])


def tiff(bits, photometric, row, *more, width=2):
    """A TIFF of one row; `more`: (tag, value) of further short fields."""
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    tags += [(278, 1), (279, len(row)), *more]
    fields = b"".join(struct.pack("<HHIHH", tag, 3, 1, v, 0) for tag, v in sorted(tags))
    where = struct.pack("<I", 8 + len(row))
    return b"II*\0" + where + row + struct.pack("<H", len(tags)) + fields + b"\0" * 4


PALETTE = (b"PLTE", bytes([9, 9, 9, 200, 0, 0]))
TWO = {  # what two pixels of a PNG show, by gray value or colour
    "gray of 1 bit": (png(1, 0, b"\x40", (b"tRNS", b"\0\0")), [255, 255]),
    "gray of 2 bits": (png(2, 0, b"\x60", (b"tRNS", b"\0\1")), [255, 170]),
    "gray of 4 bits": (png(4, 0, b"\x1f", (b"tRNS", b"\0\1")), [255, 255]),
    "gray of 8 bits": (png(8, 0, b"\x01\x07", (b"tRNS", b"\0\1")), [255, 7]),
    "gray of 16 bits": (png(16, 0, b"\1\xf4\0\0", (b"tRNS", b"\1\xf4")), [255, 0]),
    "gray and alpha": (png(8, 4, b"\x28\0\x28\xff"), [255, 40]),
    "gray and alpha of 16 bits": (png(16, 4, b"\x28\x28\0\0\x28\x28\xff\xff"), [255, 40]),
    "colours of 8 bits": (png(8, 2, bytes(range(6)), (b"tRNS", b"\0\0\0\1\0\2")), [255, (3, 4, 5)]),
    "colours of 16 bits": (
        png(16, 2, b"\1\0\2\0\3\0\0\1\0\2\0\3", (b"tRNS", b"\1\0\2\0\3\0")),
        [255, 0],
    ),
    "colours and alpha of 16 bits": (png(16, 6, b"\1\1" * 3 + b"\0\0" + b"\xff" * 8), [255, 255]),
    "palette of 1 bit": (png(1, 3, b"\x40", PALETTE, (b"tRNS", b"\0")), [255, (200, 0, 0)]),
    "palette of 4 bits": (png(4, 3, b"\x01", PALETTE, (b"tRNS", b"\xff\0")), [9, 255]),
    "TIFF, white is 0": (tiff(8, 0, b"\0\xff"), [255, 0]),
    "TIFF of 4 bits, white is 0": (tiff(4, 0, b"\x0f"), [255, 0]),
    "TIFF of 16 bits, white is 0": (tiff(16, 0, b"\0\0\xff\xff"), [255, 0]),
    "TIFF of 16 bits": (tiff(16, 1, b"\0\0\xff\xff"), [0, 255]),
    "TIFF of 12 bits": (tiff(12, 1, b"\0\x0f\xff"), [0, 255]),
}


@pytest.mark.parametrize("kind", TWO)
def test_every_depth_colour_type_and_transparency(kind):
    data, want = TWO[kind]
    found = images.decode(data, name="x")
    assert found.shape == (1, 2, 3)
    np.testing.assert_array_equal(found[0], [np.broadcast_to(one, 3) for one in want])
    pillow = images.from_pil(Image.open(io.BytesIO(data)), name="x")
    np.testing.assert_array_equal(found, pillow)


def test_an_inverted_tiff_lies_as_it_should():
    found = images.decode(tiff(16, 0, b"\0\0\xff\xff", (274, 6)), name="x")
    assert found[:, 0, 0].tolist() == [255, 0] and found.shape == (2, 1, 3)


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "YCbCr", "RGBX", "I;16", "HSV"])
def test_pillow_images_of_other_modes(mode):
    image = Image.new(mode, (3, 2))
    assert images.from_pil(image, name="x").shape == (2, 3, 3)


def test_prints_and_photographs_of_other_colours():
    """Four inks, as a TIFF and as Adobe's inverted JPEG, and a JPEG's luma and chroma."""
    red = Image.new("RGB", (16, 16), (250, 10, 10))
    for data in (encoded(red.convert("CMYK"), f) for f in ("JPEG", "TIFF")):
        assert np.abs(images.decode(data, name="x").astype(int) - (250, 10, 10)).max() < 12
    pages = dict(save_all=True, append_images=[Image.new("RGB", (5, 5))])
    assert images.decode(encoded(red, "TIFF", **pages), name="x").shape == (16, 16, 3)


BIG = zlib.compress(b"\0" * (images.MAX_TEXT + 1))
TEXTS = {
    "a profile": (b"iCCP", b"icc\0\0" + BIG),
    "a text": (b"tEXt", b"workflow\0" + b"x" * (70 * 2**20)),
    "a packed text": (b"zTXt", b"workflow\0\0" + BIG),
    "an international text": (b"iTXt", b"workflow\0\1\0\0\0" + BIG),
    "a record": (b"zTXt", b"Raw profile type exif\0\0" + BIG),
    "XMP": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BIG),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_what_a_png_tells_beside_its_pixels_may_be_of_any_size(kind):
    for data in (
        png(8, 0, b"\1\2", TEXTS[kind]),
        png(8, 0, b"\1\2", behind=[TEXTS[kind]]),
    ):
        assert images.decode(data, name="x")[0, :, 0].tolist() == [1, 2]
    cut = png(8, 0, b"\1\2", TEXTS[kind])[:-30]
    with pytest.raises(ValueError, match="x: not a readable image"):
        images.decode(cut, name="x")


def test_a_text_of_a_png_may_turn_it():
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    assert images.decode(png(8, 0, b"\1\2", (b"iTXt", xmp)), name="x").shape == (2, 1, 3)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\0\0\0\x18ftypheic" + bytes(40), "a HEIC, AVIF or film"),
        (b"<!doctype html><html></html>", "an HTML page, not the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b"", "an empty file"),
        (b"%PDF-1.7 and so on", "damaged, or of a format that is not read; PNG, JPEG, WEBP, GIF"),
    ],
)
def test_what_is_no_picture_is_told_in_short(data, message):
    with pytest.raises(ValueError, match=f"^a.png: not a readable image .{message}") as e:
        images.decode(data, name="a.png")
    assert len(str(e.value)) < 150 and "0x" not in str(e.value)


SEEDS = [encoded(Image.fromarray(NOISE[:5, :6]), f) for f in images.FORMATS]
SEEDS += [data for data, _ in TWO.values()] + [png(8, 0, b"\1\2", (b"iCCP", b"i\0\0" + BIG[:99]))]
SEEDS.append(encoded(Image.fromarray(NOISE[:5, :6]), "GIF", save_all=True))
PLACES = st.integers(0, 2**16)
EDITS = st.lists(st.tuples(PLACES, st.binary(min_size=1, max_size=4)), max_size=3)


@hypothesis_cases.counts(quick=1000)
@pytest.mark.filterwarnings("ignore")  # Pillow's own word about damaged fields
def test_any_bytes_are_a_picture_or_a_refusal(cases, monkeypatch):
    # A picture as large as may be takes seconds to decode: here the largest is small.
    monkeypatch.setattr(images, "MAX_FILE_PIXELS", 2**20)

    def check(seed, edits, cut, released):
        data = bytearray(seed)
        for place, new in edits:
            data[place % len(data) : place % len(data) + len(new)] = new
        data = bytes(data[: max(cut, 1) if cut < len(data) else None])
        found = hypothesis_cases.value_or_refusal(
            lambda: images.decode(data, name="a.png", released=released), names="a.png"
        )
        assert found is None or (found.ndim, found.dtype) == (3, np.uint8)

    cut = PLACES | st.just(2**16)
    how = dict(seed=st.sampled_from(SEEDS), edits=EDITS, cut=cut, released=st.booleans())
    hypothesis_cases.run(check, cases, **how)


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
        found = images.decode(data, name="x")
        assert found.shape == (3, 4, 3) and (found == (255, 0, 0)).all()


def png_header(width, height):
    """The start of a PNG that declares a size, and no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"\0\0\0\0IEND\xaeB`\x82"
    check = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + check + end


@pytest.mark.parametrize(
    "size, message",
    [
        ((8193, 8192), "8193x8192 pixels are more than 67108864; scale it down"),
        ((60000, 60000), "not a readable image .*3600000000 pixels"),
        ((2001, 20), "2001x20 pixels have sides of over 100:1"),
        ((1, 101), "1x101 pixels have sides of over 100:1"),
        ((0, 5), "0x5 pixels show nothing|not a readable image"),
    ],
)
def test_absurd_sizes_are_refused_before_decoding(size, message, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=f"^folder/a.png: {message}"):
        images.decode(png_header(*size), name="folder/a.png")


def test_sides_of_a_hundred_to_one_are_read():
    assert images.decode(encoded(Image.new("L", (200, 2))), name="x").shape == (2, 200, 3)


@pytest.mark.parametrize("format", ["EPS", "PPM", "TGA", "ICO", "PDF"])
def test_formats_outside_the_list_are_refused(format):
    data = encoded(Image.fromarray(NOISE), format)
    with pytest.raises(ValueError, match="^x: not a readable image"):
        images.decode(data, name="x")


@pytest.mark.parametrize("format", images.FORMATS)
def test_truncated_files_are_refused(format):
    whole = encoded(Image.fromarray(NOISE), format)
    assert images.decode(whole, name="x").shape == NOISE.shape
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(ValueError, match="^x: not a readable image"):
            images.decode(whole[: int(len(whole) * share)], name="x")


def test_files_are_read_by_path(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(images.encode_png(NOISE))
    np.testing.assert_array_equal(images.load(path), NOISE)
    np.testing.assert_array_equal(images.load(str(path)), NOISE)
    exif = Image.Exif()
    exif[0x0112] = 3
    path.write_bytes(encoded(Image.fromarray(NOISE), exif=exif))
    np.testing.assert_array_equal(images.load(path), NOISE[::-1, ::-1])
    np.testing.assert_array_equal(images.load(path, released=True), NOISE)
    with pytest.raises(FileNotFoundError, match="b.png: no such picture"):
        images.load(tmp_path / "b.png")
    with pytest.raises(ValueError, match="is a folder"):
        images.load(tmp_path)
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ValueError, match="a.png: more than"):
        images.load(path)


def test_the_original_reader_is_an_option():
    """It drops the alpha of gray pictures and clips 16 bits; RGBA it puts on white as we do."""

    def both(image):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return [
            images.decode(buffer.getvalue(), name="x", released=released)[0, 0].tolist()
            for released in (False, True)
        ]

    assert both(Image.new("LA", (2, 2), (40, 0))) == [[255] * 3, [40] * 3]
    assert both(Image.new("RGBA", (2, 2), (40, 50, 60, 0))) == [[255] * 3] * 2
    ours, original = both(Image.fromarray(np.full((2, 2), 257 * 100, np.uint16)))
    assert ours == [100] * 3 and original == [255] * 3
