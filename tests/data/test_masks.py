"""Masks as bytes, beside their image through a resize, and over latent tokens."""

import io

import numpy as np
import pytest
from PIL import Image

from srum_jax.data import images, masks

SIZES = [(1, 1), (7, 13), (64, 48), (33, 100)]


def blob(size, seed=0):
    """A random shape, bool [H,W]: neither empty nor all."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[: size[0], : size[1]]
    wave = np.sin(rng.uniform(0.1, 0.4) * y + rng.uniform(0, 6)) + np.sin(rng.uniform(0.1, 0.4) * x)
    return wave > np.quantile(wave, 0.6)


# -------------------------------------------------------------------------------- as stored bytes


@pytest.mark.parametrize("size", SIZES)
def test_bytes_give_the_mask_back(size):
    for mask in (blob(size), np.zeros(size, bool), np.ones(size, bool)):
        found = masks.decode(masks.encode(mask), size, name="m")
        assert found.dtype == bool
        np.testing.assert_array_equal(found, mask)


def test_a_mask_of_an_object_is_small():
    y, x = np.ogrid[:1024, :1024]
    disc = (y - 400) ** 2 + (x - 600) ** 2 < 250**2
    assert len(masks.encode(disc)) < 4000


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "m: not a readable mask"),
        (b"P4\n2 2\n\x00\x00", "m: not a readable mask"),
        (masks.encode(blob((16, 24)))[:50], "m: not a readable mask"),
        (masks.encode(blob((24, 16))), "m: a mask of 16x24 pixels for an image of 24x16"),
        (png(np.zeros((16, 24), np.uint8)), "m: a mask has one bit a pixel, this PNG is of mode L"),
        (png(np.zeros((16, 24, 3), np.uint8)), "m: a mask has one bit a pixel.* mode RGB"),
    ],
)
def test_other_bytes_are_refused_by_name(data, message):
    with pytest.raises(ValueError, match=message):
        masks.decode(data, (16, 24), name="m")


def test_a_flipped_bit_is_noticed():
    data = bytearray(masks.encode(blob((64, 64))))
    data[len(data) // 2] ^= 4
    with pytest.raises(ValueError, match="m: not a readable mask"):
        masks.decode(bytes(data), (64, 64), name="m")


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4)), np.zeros((4, 4, 1), bool), np.zeros((0, 4), bool)]
)
def test_only_masks_are_encoded(bad):
    with pytest.raises(ValueError, match=r"a mask is bool \[H,W\], not"):
        masks.encode(bad)


# -------------------------------------------------------------------- through the image's resize

HOW = [  # sizes up, down, as they are; odd, and not square
    dict(long=64, short=32, stride=16),
    dict(long=200, short=150, stride=8),
    dict(long=48, short=16, stride=1),
]
RANDOM = np.random.default_rng(7).integers(9, 150, (6, 2))
SOURCES = [(50, 70), (33, 20), (128, 128), (17, 61), *map(tuple, RANDOM.tolist())]


def painted(mask):
    return np.repeat(mask[..., None], 3, axis=-1).astype(np.uint8) * 255


@pytest.mark.parametrize("size", SOURCES)
@pytest.mark.parametrize("how", HOW, ids=lambda how: f"{how['long']}-{how['stride']}")
def test_mask_and_image_stay_aligned(size, how):
    mask = blob(size, seed=size[0])
    image = images.resize(painted(mask), **how)
    found = masks.resize(mask, image.shape[:2])
    assert found.shape == image.shape[:2] and found.dtype == bool
    np.testing.assert_array_equal(found, image[..., 0] >= 128)
    assert abs(found.mean() - mask.mean()) < 0.1


@pytest.mark.parametrize("size", SOURCES)
@pytest.mark.parametrize("how", HOW, ids=lambda how: f"{how['long']}-{how['stride']}")
def test_box_and_image_stay_aligned(size, how):
    """Every end of a box lies within half a pixel of where paint ends in the resized image."""
    rng = np.random.default_rng(size[1])
    for _ in range(10):
        low = rng.integers(0, np.array(size[::-1]) - 8)
        high = np.minimum(low + rng.integers(8, 60, 2), size[::-1])
        mask = np.zeros(size, bool)
        mask[low[1] : high[1], low[0] : high[0]] = True
        image = images.resize(painted(mask), **how)
        new = image.shape[:2]
        box = np.array([[*low, *high]], np.float32) + np.float32(0.4)  # cut towards zero
        x0, y0, x1, y1 = masks.resize_boxes(box, size, new)[0].astype(int)
        scale = np.array(new[::-1]) / size[::-1]
        edges = np.array([x0, y0, x1, y1]) - np.concatenate([low * scale, high * scale])
        assert np.abs(edges).max() <= 0.5 + 1e-6
        # Paint and box differ by less than one pixel along the rim.
        drawn = np.zeros(new, bool)
        drawn[y0:y1, x0:x1] = True
        shown = image[..., 0] >= 128
        core = np.zeros(new, bool)
        core[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = True
        wide = np.zeros(new, bool)
        wide[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = True
        assert (shown | ~core).all() and (~shown | wide).all()


def test_an_image_that_stays_as_it_is_keeps_mask_and_boxes():
    mask = blob((48, 64))
    assert masks.resize(mask, (48, 64)) is mask
    boxes = np.array([[0, 3, 17, 40], [63, 47, 64, 48]], np.float32)
    np.testing.assert_array_equal(masks.resize_boxes(boxes, (48, 64), (48, 64)), boxes)


def test_nothing_thin_vanishes_and_nothing_outside_appears():
    for at in range(0, 64, 7):
        line = np.zeros((64, 64), bool)
        line[:, at] = True
        found = masks.resize(line, (4, 4))
        assert found[:, at // 16].any() and found.sum() <= 4
        box = masks.resize_boxes(np.array([[at, 0, at + 1, 64]]), (64, 64), (4, 4))[0]
        assert box.tolist() == [at // 16, 0, at // 16 + 1, 4]
    assert not masks.resize(np.zeros((64, 64), bool), (4, 4)).any()
    outside = np.array([[-9, 0, 0, 9], [64, 0, 70, 9], [5, 9, 5, 20], [9, 20, 5, 30]])
    found = masks.resize_boxes(outside, (64, 64), (16, 16))
    assert ((found[:, 0] >= found[:, 2]) | (found[:, 1] >= found[:, 3])).all()
    corner = masks.resize_boxes(np.array([[-90, -90, 1, 1]]), (64, 64), (16, 16))
    assert corner.tolist() == [[0, 0, 1, 1]]


# ------------------------------------------------------------------------------ over latent tokens

GRIDS = [((32, 48), (4, 6)), ((25, 33), (3, 4)), ((5, 6), (8, 3)), ((7, 7), (7, 7))]
NONE = np.zeros(4, np.float32)


@pytest.mark.parametrize("size, grid", GRIDS)
def test_area_is_the_mean_over_each_cell(size, grid):
    shape = blob(size, seed=1)
    inside, weights = masks.cover(NONE[None], [shape], size, grid, "area")
    fine = shape.repeat(grid[0], axis=0).repeat(grid[1], axis=1)
    want = fine.reshape(grid[0], size[0], grid[1], size[1]).mean((1, 3))
    assert inside.shape == (grid[0] * grid[1], 1, 1) and inside.dtype == np.float32
    np.testing.assert_allclose(inside[:, 0, 0], want.ravel(), rtol=1e-6)
    assert (weights == 1).all()
    full, _ = masks.cover(NONE[None], [np.ones(size, bool)], size, grid, "area")
    assert (full == 1).all()


@pytest.mark.parametrize("size, grid", GRIDS)
def test_centre_is_the_bilinear_sample(size, grid):
    from srum_jax.rewards import maps

    shape = blob(size, seed=2)
    inside, weights = masks.cover(NONE[None], [shape], size, grid, "centre")
    assert inside.shape == (grid[0] * grid[1], 4, 1) and set(np.unique(inside)) <= {0, 1}
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    want = maps.sample_map(shape.astype(np.float32), *grid)
    found = (inside[..., 0] * weights).sum(-1)
    np.testing.assert_allclose(found.reshape(grid), want, atol=1e-5)


@pytest.mark.parametrize("size, grid", GRIDS)
@pytest.mark.parametrize("sampling", ["centre", "area"])
def test_a_box_covers_what_its_painted_mask_does(size, grid, sampling):
    rng = np.random.default_rng(3)
    low = rng.uniform(-3, size[1], (6, 2))
    boxes = np.concatenate([low, low + rng.uniform(-1, 20, (6, 2))], 1).astype(np.float32)
    rows, cols = np.arange(size[0])[:, None], np.arange(size[1])
    shapes = [
        (y0 <= rows) & (rows < y1) & (x0 <= cols) & (cols < x1)
        for x0, y0, x1, y1 in np.trunc(boxes)
    ]
    by_boxes = masks.cover(boxes, None, size, grid, sampling)
    by_masks = masks.cover(NONE + boxes, shapes, size, grid, sampling)
    for found, want in zip(by_boxes, by_masks, strict=True):
        np.testing.assert_array_equal(found, want)
    mixed = masks.cover(boxes, [shapes[0], *[None] * 5], size, grid, sampling)
    np.testing.assert_array_equal(mixed[0], by_boxes[0])


def test_no_regions_and_wrong_masks():
    inside, weights = masks.cover(np.zeros((0, 4)), None, (8, 8), (2, 2), "centre")
    assert inside.shape == (4, 4, 0) and weights.shape == (4, 4)
    with pytest.raises(ValueError, match=r"region 0: a mask of \[8, 9\] pixels for an image of"):
        masks.cover(NONE[None], [np.ones((8, 9), bool)], (8, 8), (2, 2), "area")
    with pytest.raises(ValueError, match="a mask is bool"):
        masks.cover(NONE[None], [np.ones((8, 8))], (8, 8), (2, 2), "area")
    with pytest.raises(ValueError, match="2 masks for 1 boxes"):
        masks.cover(NONE[None], [None, None], (8, 8), (2, 2), "area")


def test_regions_grow_with_their_masks():
    boxes = np.array([[4, 5, 8, 9], [0, 0, 3, 32]], np.float32)
    mask = np.zeros((32, 24), bool)
    mask[5:9, 4:8] = True
    same, shown = masks.dilated(boxes, (mask, None), (32, 24), 0)
    assert same is boxes and shown == (mask, None)
    grown, (wider, none) = masks.dilated(boxes, (mask, None), (32, 24), 3)
    assert grown.tolist() == [[1, 2, 11, 12], [0, 0, 6, 32]] and none is None
    by_box = np.zeros_like(mask)
    by_box[2:12, 1:11] = True
    np.testing.assert_array_equal(wider, by_box)  # a mask that fills its box grows as the box does
    assert masks.dilated(boxes, None, (32, 24), 30)[0].tolist() == [[0, 0, 24, 32]] * 2
