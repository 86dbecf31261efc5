"""From bytes to patches: damaged files, transparency, the official resize law and its pixels."""

import dataclasses
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from samples import CFG

from srum_jax.core.patches import unpatchify
from srum_jax.data import images

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
    found = images.picture(ARRAYS[f"transform/{number}_in_u8"], cfg)
    pixels = unpatchify(found.patches, patch, rows, columns)
    assert np.abs(pixels - want).max() <= 1.01 / 127.5
    assert found.patches.dtype == np.float32
    ids = np.arange(rows)[:, None] * cfg.max_vit + np.arange(columns)
    np.testing.assert_array_equal(found.positions, ids.reshape(-1))


def test_small_pictures_are_enlarged_like_any_other():
    """A side that is a multiple of the patch is no reason to keep it short of the law's."""
    tower = dataclasses.replace(CFG.vit, patch=14, positions=70)
    cfg = dataclasses.replace(CFG, vit=tower, max_vit=70)
    assert len(images.picture(np.zeros((28, 56, 3), np.uint8), cfg).positions) == 16 * 32
    shapes_side = np.zeros((CFG.vit.patch * CFG.vit.positions,) * 2 + (3,), np.uint8)
    assert len(images.picture(shapes_side, CFG).positions) == CFG.vit.positions**2


def encoded(image, format="PNG", **how):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **how)
    return buffer.getvalue()


def test_png_and_back():
    np.testing.assert_array_equal(images.decode(images.encode_png(NOISE), name="x"), NOISE)


def test_alpha_lies_on_white():
    rgba = ARRAYS["transform/rgba_in"]
    found = images.decode(encoded(Image.fromarray(rgba)), name="x")
    assert np.abs(found.astype(int) - ARRAYS["transform/rgba_to_rgb"]).max() <= 1
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
            assert str(error).startswith("folder/a.png: not a readable image")
            refused += 1
    assert refused > 200
    short = bytearray(whole[0])
    short[whole[0].index(b"IDAT") - 1] = 5  # one wrong length: Pillow calls it a SyntaxError
    with pytest.raises(ValueError, match="folder/a.png: not a readable image"):
        images.decode(bytes(short), name="folder/a.png")


def test_lengths_are_rounded_up():
    assert [images.bucket(n, 16) for n in (0, 1, 16, 17)] == [16, 16, 16, 32]
