"""The verifier: clean pictures pass, anything else does not."""

import random

import numpy as np
import pytest
from scipy import ndimage

from srum_jax.data import shapes
from srum_jax.evals.shapes import see, verify, verify_region

PLACED = {
    "pair": ((("red", "circle"), (0, 0)), (("blue", "square"), (1, 1))),
    "triple": (
        (("red", "circle"), (0, 0)),
        (("blue", "square"), (1, 1)),
        (("green", "cross"), (0, 1)),
    ),
    "twins": ((("cyan", "triangle"), (0, 0)), (("cyan", "triangle"), (1, 0))),
    "one": ((("red", "circle"), (0, 1)),),
}


def picture(name, seed=0):
    rng = random.Random(seed)
    things = tuple(shapes.place(rng, pair, cell) for pair, cell in PLACED[name])
    return shapes.draw(shapes.Scene(things, (24.0, 26.0, 30.0))), things


def changed(image, sigma=0.0, noise=0.0, seed=0):
    soft = ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0))
    soft += np.random.default_rng(seed).normal(0, noise, image.shape)
    return np.clip(soft + 0.5, 0, 255).astype(np.uint8)


def rate(change, count=150):
    made = [shapes.clean_image(8, i) for i in range(count)]
    return sum(verify(change(image), text).right for text, image in made) / count


def test_clean_pictures_are_right():
    for i in range(1200):
        text, image = shapes.clean_image(3, i)
        verdict = verify(image, text)
        assert verdict.right and all(verdict.objects) and verdict.reason == "", (i, text, verdict)
    for i in range(1200):
        text, image = shapes.generation_example(3, i)
        verdict = verify(image, text)
        assert verdict.right and len(verdict.found) == len(verdict.objects), (i, text, verdict)


def test_boxes_found_are_the_drawn_ones():
    for seed in range(20):
        image, things = picture("triple", seed)
        found = {(color, shape): box for color, shape, box in verify(image, "a red circle").found}
        for thing in things:
            assert np.abs(np.subtract(found[thing.pair], thing.box)).max() <= 1


@pytest.mark.parametrize(
    "name, right, wrong",
    [
        (
            "one",
            "a red circle",
            ["a red square", "a blue circle", "two red circles", "a red circle and a blue square"],
        ),
        (
            "twins",
            "two cyan triangles",
            ["three cyan triangles", "two cyan squares", "a cyan triangle", "two blue triangles"],
        ),
        (
            "pair",
            "a red circle and a blue square",
            [
                "a blue circle and a red square",
                "a red circle and a green square",
                "a red circle",
                "a red circle and a blue cross",
                "a red circle , a blue square and a green cross",
            ],
        ),
        (
            "pair",
            "a red circle left of a blue square",
            [
                "a red circle right of a blue square",
                "a blue square left of a red circle",
                "a red circle below a blue square",
                "a blue square above a red circle",
            ],
        ),
        ("pair", "a blue square below a red circle", ["a blue square left of a red circle"]),
        (
            "triple",
            "a red circle , a blue square and a green cross",
            [
                "a red circle , a blue square and a green circle",
                "a red circle and a blue square",
                "a blue circle , a red square and a green cross",
                "a red circle left of a blue square",
            ],
        ),
    ],
)
def test_a_prompt_one_change_away_is_wrong(name, right, wrong):
    image, _ = picture(name)
    assert verify(image, right).right
    for text in wrong:
        verdict = verify(image, text)
        assert not verdict.right and verdict.reason, text


def test_objects_say_which_demand_is_met():
    image, _ = picture("pair")
    assert verify(image, "a blue square and a green cross").objects == (True, False)
    assert verify(image, "a green cross and a blue square").objects == (False, True)
    assert verify(image, "two red circles").objects == (True, False)
    flipped = verify(image, "a red circle right of a blue square")
    assert flipped.objects == (True, True) and not flipped.right


def test_the_same_column_is_neither_left_nor_right():
    rng = random.Random(1)
    a, b = (
        shapes.place(rng, p, c)
        for p, c in ((("red", "circle"), (0, 0)), (("blue", "square"), (1, 0)))
    )
    image = shapes.draw(shapes.Scene((a, b), (20.0, 20.0, 20.0)))
    assert verify(image, "a red circle above a blue square").right
    for word in ("left", "right"):
        assert not verify(image, f"a red circle {word} of a blue square").right


def test_softness_of_a_decoder_passes():
    assert rate(lambda x: changed(x, sigma=0.6)) >= 0.99
    assert rate(lambda x: changed(x, noise=10)) >= 0.99
    assert rate(lambda x: changed(x, sigma=0.5, noise=8)) >= 0.99
    halfway = lambda x: np.clip(  # noqa: E731
        ndimage.shift(x.astype(float), (0.5, 0.5, 0), order=1, mode="nearest") + 0.5, 0, 255
    ).astype(np.uint8)
    assert rate(halfway) >= 0.97


def test_blur_fails():
    assert rate(lambda x: changed(x, sigma=1.2)) <= 0.25
    assert rate(lambda x: changed(x, sigma=1.6)) <= 0.02


@pytest.mark.parametrize("flaw", ["half", "mixed", "cut"])
def test_malformed_objects_are_no_objects(flaw):
    rng = random.Random(2)
    for _ in range(300):
        scene = shapes.scatter(rng, [shapes.pick(rng, shapes.PAIRS)])
        seen = see(shapes.draw_flawed(rng, scene, 0, flaw))
        assert seen and all(thing.flaw for thing in seen), (flaw, scene, seen)


def test_one_malformed_object_spoils_the_picture():
    rng = random.Random(2)
    text = "a red circle and a blue square"
    for flaw in ("half", "mixed", "cut"):
        scene = shapes.scatter(rng, [("red", "circle"), ("blue", "square")])
        verdict = verify(shapes.draw_flawed(rng, scene, 0, flaw), text)
        assert not verdict.right and verdict.objects == (False, True)


def test_quarters_of_two_shapes_fail():
    # What a patchwise generator makes: each quarter of the object decided on its own.
    rng = random.Random(4)
    for size in (9, 11, 13):
        for shape, other in (
            ("circle", "square"),
            ("square", "circle"),
            ("triangle", "square"),
            ("cross", "circle"),
        ):
            cover = shapes.template(shape, size).copy()
            half = size // 2
            cover[:half, :half] = shapes.template(other, size)[:half, :half]
            cover[half:, half:] = shapes.template(other, size)[half:, half:]
            image = np.full((32, 32, 3), 25.0)
            tone = shapes.PALETTE[int(rng.random() * 6)]
            part = image[2 : 2 + size, 2 : 2 + size]
            part += cover[..., None] * (tone - part)
            assert all(thing.flaw for thing in see(image.astype(np.uint8))), (size, shape, other)


def test_empty_and_noise_pictures_show_nothing():
    empty = np.full((32, 32, 3), 25, np.uint8)
    assert see(empty) == () and not verify(empty, "a red circle").right
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert verify(noise, "a red circle").found == ()


def test_a_region_is_right_if_it_holds_one_demanded_object():
    image, (circle, square) = picture("pair")
    text = "a red circle and a green cross"
    grown = tuple(np.add(circle.box, (-1, -1, 1, 1)))
    assert verify_region(image, circle.box, text) and verify_region(image, grown, text)
    assert not verify_region(image, square.box, text)
    assert not verify_region(image, (0, 0, 32, 32), text)  # two objects
    assert not verify_region(image, (17, 0, 32, 15), text)  # none
    x0, y0, x1, y1 = circle.box
    assert not verify_region(image, (x0, y0, (x0 + x1) / 2 + 1, y1), text)  # cut through
    flawed = shapes.draw_flawed(random.Random(0), shapes.Scene((circle,), (20.0,) * 3), 0, "cut")
    assert not verify_region(flawed, circle.box, text)


def test_other_pictures_and_prompts_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        see(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        see(np.zeros((32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="not of the shapes world"):
        verify(np.zeros((32, 32, 3), np.uint8), "a dog")
