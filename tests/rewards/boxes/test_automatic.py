"""Automatic masks against transformers' mask-generation pipeline, and part by part."""

import json
import pathlib

import jax
import numpy as np
import pytest

from srum_jax.config import MeshConfig
from srum_jax.core import sharding
from srum_jax.rewards.boxes.sam import automatic as sam_automatic
from srum_jax.rewards.boxes.sam import weights as sam_weights
from srum_jax.rewards.boxes.sam.automatic import MaskGenerator, MaskSettings

GOLDENS = pathlib.Path(__file__).parents[2] / "goldens"
PIPELINE = np.load(GOLDENS / "sam_masks.npz")  # by make_sam_masks.py beside it
GIVEN = json.loads(str(PIPELINE["settings"]))
SETTINGS = MaskSettings(
    points_per_side=GIVEN["points_per_crop"],
    points_per_batch=GIVEN["points_per_batch"],
    pred_iou=GIVEN["pred_iou_thresh"],
    stability=GIVEN["stability_score_thresh"],
    stability_offset=GIVEN["stability_score_offset"],
    mask_threshold=GIVEN["mask_threshold"],
    box_nms=GIVEN["crops_nms_thresh"],
)
IMAGES = [PIPELINE[f"{i}/image"] for i in range(3)]


@pytest.fixture(autouse=True)
def exact_matmuls():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def model():
    return sam_weights.load(GOLDENS / "samA")


@pytest.fixture(scope="module")
def found(model):
    with jax.default_matmul_precision("highest"):
        return MaskGenerator(*model, SETTINGS).generate(IMAGES)


@pytest.mark.parametrize("i", range(3))
def test_masks_are_those_of_the_pipeline(found, i):
    ours, want = found[i], PIPELINE[f"{i}/masks"]
    assert ours.masks.dtype == bool and ours.masks.shape == want.shape and len(want) >= 5
    np.testing.assert_allclose(ours.iou, PIPELINE[f"{i}/scores"], atol=1e-4)
    np.testing.assert_array_equal(ours.boxes[:, :2], PIPELINE[f"{i}/boxes"][:, :2])
    np.testing.assert_array_equal(ours.boxes[:, 2:], PIPELINE[f"{i}/boxes"][:, 2:] + 1)
    differ = (ours.masks != want).sum((1, 2))
    assert (differ <= 0.01 * (ours.masks | want).sum((1, 2))).all(), differ
    assert (ours.stability > SETTINGS.stability).all() and (ours.stability <= 1).all()
    for mask, (x0, y0, x1, y1) in zip(ours.masks, ours.boxes.astype(int), strict=True):
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        inside = mask[y0:y1, x0:x1]
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


@pytest.mark.parametrize("i", range(3))
def test_pixels_are_those_of_the_pipeline(i):
    """Its resize rounds a few values differently: by one level of 255."""
    off = np.abs(sam_automatic.pixels(IMAGES[i], 64) - PIPELINE[f"{i}/pixels"].transpose(1, 2, 0))
    assert off.max() <= 1.001 / sam_automatic.STD.min()
    assert (off > 1e-4).mean() < 0.002


@pytest.mark.slow
def test_the_batches_of_points_do_not_matter(model, found):
    other = MaskSettings(**{**vars(SETTINGS), "points_per_batch": 20})
    for a, b in zip(MaskGenerator(*model, other).generate(IMAGES[:1]), found[:1], strict=True):
        np.testing.assert_array_equal(a.masks, b.masks)
        np.testing.assert_allclose(a.iou, b.iou, atol=1e-5)
        np.testing.assert_allclose(a.stability, b.stability, atol=1e-5)


def test_one_compilation_serves_every_image(model, found):
    jitted = (sam_automatic._encode, sam_automatic._decode)
    before = [f._cache_size() for f in jitted]
    other = np.roll(IMAGES[0], 7, axis=1)[:40]
    MaskGenerator(*model, SETTINGS).generate([other])
    assert [f._cache_size() for f in jitted] == before


@pytest.mark.slow
def test_images_are_cut_over_devices_in_buckets_and_stay_what_they_are(model, found, monkeypatch):
    """Five images of two sizes on two devices: each has the masks it has alone."""
    one = sharding.make_mesh(MeshConfig(data=1, fsdp=1, tensor=2, context=1), jax.devices()[:2])
    mesh, (cfg, params) = sharding.row_mesh(one), model
    generator = MaskGenerator(
        cfg, jax.device_put(params, sharding.replicated(mesh)), SETTINGS, mesh
    )
    encode, shapes = sam_automatic._encode, []

    def watched(params, cfg, pixels):
        shapes.append([shard.data.shape[0] for shard in pixels.addressable_shards])
        return encode(params, cfg, pixels)

    monkeypatch.setattr(sam_automatic, "_encode", watched)
    order = [2, 0, 2, 0, 2]
    together = generator.generate([IMAGES[i] for i in order])
    assert shapes == [[2, 2], [1, 1]]  # three images in a bucket of four, two in one of two
    for ours, i in zip(together, order, strict=True):
        np.testing.assert_array_equal(ours.masks, found[i].masks)
        np.testing.assert_array_equal(ours.boxes, found[i].boxes)
        np.testing.assert_allclose(ours.iou, found[i].iou, atol=1e-5)
        np.testing.assert_allclose(ours.stability, found[i].stability, atol=1e-5)
    before = encode._cache_size(), sam_automatic._decode._cache_size()
    generator.generate([IMAGES[0]])
    generator.generate([IMAGES[2]] * 4)
    assert (encode._cache_size(), sam_automatic._decode._cache_size()) == before


def test_an_image_may_have_no_masks(model):
    for settings in (
        MaskSettings(**{**vars(SETTINGS), "pred_iou": 9.0}),
        MaskSettings(**{**vars(SETTINGS), "mask_threshold": 99.0, "pred_iou": 0, "stability": 0}),
    ):
        (none,) = MaskGenerator(*model, settings).generate(IMAGES[:1])
        assert none.masks.shape == (0, 48, 80) and none.boxes.shape == (0, 4)
        assert none.iou.shape == none.stability.shape == (0,)
    assert MaskGenerator(*model).generate([]) == []


def test_bad_input_is_refused(model):
    run = MaskGenerator(*model, SETTINGS).generate
    with pytest.raises(ValueError, match="float64"):
        run([np.zeros((4, 4, 3))])
    cfg, params = model
    broken = jax.tree.map(lambda x: x * np.nan, params)
    with pytest.raises(ValueError, match="not finite"):
        MaskGenerator(cfg, broken, SETTINGS).generate(IMAGES[:1])
    for wrong in ({"points_per_side": 0}, {"box_nms": 1.5}, {"stability_offset": -1.0}):
        with pytest.raises(ValueError):
            MaskSettings(**wrong)


def test_sizes_of_the_input_are_rounded_as_in_the_original():
    assert sam_automatic.input_size(480, 641, 1024) == (767, 1024)
    assert sam_automatic.input_size(1024, 1024, 1024) == (1024, 1024)
    assert sam_automatic.input_size(1, 5000, 1024) == (1, 1024)  # the original's would be no pixel


def test_points_lie_in_the_middle_of_a_grids_cells_row_by_row():
    settings = MaskSettings(points_per_side=2, points_per_batch=3)
    batches = list(sam_automatic._batches(settings, (40, 64)))
    assert [count for _, count in batches] == [3, 1]
    points = np.concatenate([points[:count] for points, count in batches])
    np.testing.assert_allclose(points, [[16, 10], [48, 10], [16, 30], [48, 30]])
    assert all(points.shape == (3, 2) for points, _ in batches)


@pytest.mark.parametrize("used, original", [(64, 80), (38, 48), (1, 1), (50, 20)])
def test_the_matrix_is_both_resizes(used, original):
    x = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    up = jax.image.resize(x, (64, 3), "bilinear", antialias=False)[:used]
    want = jax.image.resize(up, (original, 3), "bilinear", antialias=False)
    np.testing.assert_allclose(sam_automatic._to_image(32, 64, used, original) @ x, want, atol=1e-5)


def test_stability_and_boxes_of_known_logits():
    logits = np.full((3, 6, 8), -9.0, np.float32)
    logits[0, 2:4, 3:7] = 5.0
    logits[0, 2, 3] = 0.5  # inside, but not by the offset
    logits[1, 5, 7] = -0.5  # outside, but not by the offset
    logits[1, 0, 0] = 3.0
    stability, boxes = sam_automatic._measure(
        logits[None], np.eye(6, dtype=np.float32), np.eye(8, dtype=np.float32), 0.0, 1.0
    )
    np.testing.assert_allclose(stability[0], [7 / 8, 1 / 2, 0])
    np.testing.assert_array_equal(boxes[0], [[3, 2, 6, 3], [0, 0, 0, 0], [-1, -1, -1, -1]])
