"""Proposers on pictures with known contents; crops; suppression of repeats."""

import random

import numpy as np
import pytest

from srum_jax.rewards.boxes import regions
from srum_jax.worlds.shapes import language
from srum_jax.worlds.shapes import rendering as render

COMPONENTS = regions.ComponentsProposer()


def proposed(how, image):
    """The boxes of one image."""
    (found,) = regions.propose(how, [regions.PromptedImage(image)])
    return [region.box for region in found]


def picture(*boxes, size=(32, 32), noise=0):
    """Bright rectangles on a dark ground."""
    rng = np.random.default_rng(0)
    image = np.full((*size, 3), 25, np.int32)
    for n, (x0, y0, x1, y1) in enumerate(boxes):
        image[y0:y1, x0:x1] = np.roll([220, 60, 40], n)
    return np.clip(image + rng.integers(-noise, noise + 1, image.shape), 0, 255).astype(np.uint8)


def test_components_are_the_objects_largest_first():
    image = picture((2, 3, 12, 14), (18, 16, 26, 30), noise=12)
    assert proposed(COMPONENTS, image) == [(18, 16, 26, 30), (2, 3, 12, 14)]


def test_any_plain_background_and_size():
    image = 255 - picture((5, 10, 50, 30), size=(60, 80))
    assert proposed(COMPONENTS, image) == [(5, 10, 50, 30)]


def test_specks_and_empty_pictures_give_nothing():
    assert proposed(COMPONENTS, picture((4, 4, 6, 6), noise=12)) == []
    assert proposed(regions.GridProposer(4), picture(noise=12)) == []


def test_components_find_every_object_of_clean_scenes():
    rng = random.Random(0)
    for category in ("single", "attr", "count", "triple") * 10:
        pairs = render.pick(rng, language.contents("train", category)).pairs
        scene = render.scatter(rng, pairs)
        found = sorted(proposed(COMPONENTS, render.draw(scene)))
        assert len(found) == len(scene.things)
        for box, true in zip(found, sorted(thing.box for thing in scene.things), strict=True):
            assert np.abs(np.subtract(box, true)).max() <= 2


def test_grid_keeps_cells_with_something_in_them():
    image = picture((2, 3, 12, 14), (18, 16, 26, 30), size=(32, 31))
    assert proposed(regions.GridProposer(2), image) == [
        (0.0, 0.0, 16.0, 16.0),
        (16.0, 16.0, 31.0, 32.0),
    ]
    assert len(proposed(regions.GridProposer(1), image)) == 1
    assert not regions.GridProposer().separates and COMPONENTS.separates


def test_not_more_regions_than_the_limit():
    boxes = [(8 * i, 8 * j, 8 * i + 6, 8 * j + 6) for i in range(6) for j in range(6)]
    image = picture(*boxes, size=(48, 48))
    assert len(proposed(COMPONENTS, image)) == regions.MAX_REGIONS


def test_suppress_keeps_the_larger_of_repeats():
    boxes = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.5, 10.0), (0.0, 0.0, 5.0, 10.0)]
    assert regions.suppress_repeats(boxes) == [1, 2]
    assert regions.suppress_repeats(boxes, threshold=0.4) == [1]
    assert regions.suppress_repeats([]) == []


def test_suppression_keeps_the_better_box():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [4, 4, 4, 4], [4, 4, 4, 4]])
    scores = np.array([0.5, 0.9, 0.7, 0.1, 0.1])
    assert regions.suppress(boxes, scores, 0.8) == [1, 2, 3, 4]
    assert regions.suppress(boxes, scores, 0.9) == [1, 2, 0, 3, 4]


def test_crop_has_the_picture_s_size_and_what_the_box_holds():
    image = picture((4, 4, 12, 12))
    made = regions.crop(image, (4, 4, 12, 12), margin=0)
    assert made.shape == image.shape and made.dtype == np.uint8
    assert (made == image[5, 5]).all()
    bordered = regions.crop(image, (4, 4, 12, 12), margin=1)
    assert (bordered[0, 0] < 80).all() and (bordered[16, 16] == image[5, 5]).all()


def test_crop_is_what_the_base_was_taught_on():
    scene = render.scatter(random.Random(3), [("red", "cross"), ("blue", "square")])
    image = render.draw(scene)
    for thing in scene.things:
        ours = regions.crop(image, thing.box).astype(int)
        assert np.abs(ours - render.crop(image, thing.box)).max() <= 2


@pytest.mark.parametrize("box", [(40, 0, 50, 9), (3, 3, 1, 9), (-9, -9, -4, -4)])
def test_crop_of_nothing_is_refused(box):
    with pytest.raises(ValueError, match="no pixel"):
        regions.crop(picture(), box)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="cells"):
        regions.GridProposer(0)
    for bad in (
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match="uint8"):
            proposed(COMPONENTS, bad)


def test_proposals_are_cut_to_the_image_and_banded_by_area():
    boxes = [
        (-5.0, -5.0, 10.0, 10.0),
        (0.0, 0.0, 32.0, 32.0),
        (4.0, 4.0, 5.0, 5.0),
        (40.0, 0.0, 50.0, 9.0),
    ]
    found = [regions.ProposedRegion(box) for box in boxes]
    band = regions.Limits(min_area=0.01, max_area=0.9)
    assert [r.box for r in regions.clean(found, 32, 32, band)] == [(0.0, 0.0, 10.0, 10.0)]
    everything = [r.box for r in regions.clean(found, 32, 32, regions.DEFAULT)]
    assert everything == [(0.0, 0.0, 32.0, 32.0), (0.0, 0.0, 10.0, 10.0), (4.0, 4.0, 5.0, 5.0)]


def test_the_area_of_a_region_is_that_of_its_mask():
    mask = np.zeros((32, 32), bool)
    mask[3, 3:13] = True
    thin = regions.ProposedRegion((3.0, 3.0, 13.0, 13.0), mask)
    assert regions.area(thin) == 10
    assert regions.clean([thin], 32, 32, regions.Limits(min_area=0.05)) == ()


def test_a_limit_keeps_small_regions_too():
    found = [regions.ProposedRegion((0.0, 0.0, float(side), float(side))) for side in range(1, 33)]
    kept = regions.clean(found, 32, 32, regions.Limits(overlap=1.0, max_regions=4))
    assert [r.box[2] for r in kept] == [32.0, 22.0, 11.0, 1.0]


def test_an_outline_lies_outside_its_box_and_shows_on_any_ground():
    for ground in (0, 255, 128):
        image = np.full((400, 400, 3), ground, np.uint8)
        made = regions.outline(image, (100, 120, 200, 240))
        assert (made[120:240, 100:200] == ground).all()
        assert (made != image).any(axis=-1).sum() > 500
    regions.outline(image, (0, 0, 400, 400))


def test_a_proposer_that_forgets_an_image_is_an_error():
    class Broken(regions.ComponentsProposer):
        def find(self, images, *, params=None):
            return []

    with pytest.raises(ValueError, match="0 of 1"):
        regions.propose(Broken(), [regions.PromptedImage(picture())])
