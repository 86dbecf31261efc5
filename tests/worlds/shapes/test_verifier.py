"""The verifier: clean pictures pass, anything else does not."""

import random

import numpy as np
import pytest
from scipy import ndimage

from srum_jax.worlds.shapes import changes, examples, language, questions, rendering
from srum_jax.worlds.shapes.changes import Edit, edited
from srum_jax.worlds.shapes.verifier import see, verify, verify_caption, verify_edit, verify_region

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
    things = tuple(rendering.place(rng, pair, cell) for pair, cell in PLACED[name])
    return rendering.draw(rendering.Scene(things, (24.0, 26.0, 30.0))), things


def changed(image, sigma=0.0, noise=0.0, seed=0):
    soft = ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0))
    soft += np.random.default_rng(seed).normal(0, noise, image.shape)
    return np.clip(soft + 0.5, 0, 255).astype(np.uint8)


def rate(change, count=150):
    made = [examples.clean_image(8, i) for i in range(count)]
    return sum(verify(change(image), text).right for text, image in made) / count


def test_clean_pictures_are_right():
    for i in range(600):
        text, image = examples.clean_image(3, i)
        verdict = verify(image, text)
        assert verdict.right and all(verdict.objects) and verdict.reason == "", (i, text, verdict)
    for i in range(600):
        text, image = examples.generation_example(3, i)
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
            [
                "three cyan triangles",
                "four cyan triangles",
                "two cyan squares",
                "a cyan triangle",
                "two blue triangles",
            ],
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


def sized(**scales):
    """A red circle and a blue square of these sizes."""
    rng = random.Random(len(scales["red"]) + 2 * len(scales["blue"]))
    red = rendering.place(rng, ("red", "circle"), (0, 0), scales["red"])
    blue = rendering.place(rng, ("blue", "square"), (1, 0), scales["blue"])
    return rendering.draw(rendering.Scene((red, blue), (24.0, 26.0, 30.0)))


def test_sizes_are_verified():
    for red in rendering.SIZES:
        for blue in rendering.SIZES:
            image = sized(red=red, blue=blue)
            assert verify(image, "a red circle and a blue square").right
            for said in rendering.SIZES:
                for told in rendering.SIZES:
                    verdict = verify(image, f"a {told} blue square and a {said} red circle")
                    assert verdict.right == ((said, told) == (red, blue))
                    assert verdict.objects == (True, True)  # both are there
    image, (thing,) = picture("one")
    other = next(size for size in rendering.SIZES if size != thing.scale)
    assert verify(image, f"a {thing.scale} red circle").right
    verdict = verify(image, f"a {other} red circle")
    assert verdict.reason == f"a red circle is not {other}"


def test_a_size_between_is_neither():
    cover = rendering.template("square", 10)[None].repeat(2, 0).mean(0)
    image = np.full((32, 32, 3), 25.0)
    image[3:13, 4:14] += cover[..., None] * (rendering.PALETTE[0] - 25)
    image[3:13, 14] += 0.5 * (rendering.PALETTE[0] - 25)  # half a pixel more each way
    image[13, 4:14] += 0.5 * (rendering.PALETTE[0] - 25)
    (seen,) = see(image.astype(np.uint8))
    assert seen.pair == ("red", "square") and seen.flaw == seen.scale == ""
    assert not any(
        verify(image.astype(np.uint8), f"a {s} red square").right for s in rendering.SIZES
    )


@pytest.mark.parametrize("change", [lambda x: changed(x, sigma=0.6), lambda x: changed(x, noise=8)])
def test_sizes_survive_a_decoder(change):
    rng = random.Random(6)
    made = [rendering.scatter(rng, [rendering.pick(rng, language.PAIRS)]) for _ in range(150)]
    right = [
        [seen.scale for seen in see(change(rendering.draw(scene)))] == [scene.things[0].scale]
        for scene in made
    ]
    assert np.mean(right) >= 0.97


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
        rendering.place(rng, p, c)
        for p, c in ((("red", "circle"), (0, 0)), (("blue", "square"), (1, 0)))
    )
    image = rendering.draw(rendering.Scene((a, b), (20.0, 20.0, 20.0)))
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
    for _ in range(450):
        scene = rendering.scatter(rng, [rendering.pick(rng, language.PAIRS)])
        seen = see(rendering.draw_flawed(rng, scene, 0, flaw))
        assert seen and all(thing.flaw for thing in seen), (flaw, scene, seen)


def test_one_malformed_object_spoils_the_picture():
    rng = random.Random(2)
    text = "a red circle and a blue square"
    for flaw in ("half", "mixed", "cut"):
        scene = rendering.scatter(rng, [("red", "circle"), ("blue", "square")])
        verdict = verify(rendering.draw_flawed(rng, scene, 0, flaw), text)
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
            cover = rendering.template(shape, size).copy()
            half = size // 2
            cover[:half, :half] = rendering.template(other, size)[:half, :half]
            cover[half:, half:] = rendering.template(other, size)[half:, half:]
            image = np.full((32, 32, 3), 25.0)
            tone = rendering.pick(rng, rendering.PALETTE)
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
    flawed = rendering.draw_flawed(
        random.Random(0), rendering.Scene((circle,), (20.0,) * 3), 0, "cut"
    )
    assert not verify_region(flawed, circle.box, text)


# -------------------------------------------------------------------------------- edits, captions


def spoilt(rng, edit):
    """Scenes that the edit must not end in: an object too many, or one of them another."""
    target = edit.target
    extra = edited(rng, target, "add")
    if extra is not None:
        yield extra.target
    for kind in ("recolor", "move", "remove"):
        further = edited(rng, target, kind)
        if further is not None and not set(edit.kept) <= set(further.kept):
            yield further.target
    for thing in target.things:
        rest = tuple(t for t in target.things if t != thing)
        shape = next(
            s for s in rendering.SHAPES if (thing.color, s) != edit.new and s != thing.shape
        )
        another = rendering.place(rng, (thing.color, shape), (thing.row, thing.col))
        yield rendering.Scene((*rest, another), target.ground)


@pytest.mark.parametrize("kind", changes.EDITS)
def test_an_edit_is_right_if_just_that_has_changed(kind):
    rng, refused = random.Random(1), 0
    for edit in (e for e in changes.edit_set("test", 100) if e.kind == kind):
        assert verify_edit(rendering.draw(edit.target), edit)
        assert not verify_edit(rendering.draw(edit.source), edit)
        flawed = rendering.draw_flawed(rng, edit.target, 0, "mixed")
        assert not verify_edit(flawed, edit)
        for scene in spoilt(rng, edit):
            assert not verify_edit(rendering.draw(scene), edit), (edit.instruction, scene)
            refused += 1
    assert refused > 60


def test_where_an_edit_leaves_a_choice_any_is_right():
    rng = random.Random(2)
    a, b = (
        rendering.place(rng, pair, cell, "big")
        for pair, cell in ((("red", "circle"), (0, 0)), (("blue", "square"), (0, 1)))
    )
    scene = rendering.Scene((a, b), (20.0, 20.0, 20.0))
    new = ("green", "cross")
    added = rendering.Scene((a, b, rendering.place(rng, new, (1, 0))), scene.ground)
    edit = Edit("add", scene, "add a green cross .", added, new, None)
    for cell in ((1, 0), (1, 1)):
        either = rendering.Scene((a, b, rendering.place(rng, new, cell)), scene.ground)
        assert verify_edit(rendering.draw(either), edit)
    # A thing kept may be drawn anew in its cell, smaller and shifted, but not in another cell.
    again = rendering.place(rng, a.pair, (0, 0), "small")
    assert verify_edit(
        rendering.draw(rendering.Scene((again, *added.things[1:]), scene.ground)), edit
    )
    there = rendering.place(rng, a.pair, (1, 1))
    assert not verify_edit(
        rendering.draw(rendering.Scene((there, *added.things[1:]), scene.ground)), edit
    )


def test_a_caption_says_all_that_the_scene_shows():
    rng = random.Random(3)
    a = rendering.place(rng, ("red", "circle"), (0, 0), "big")
    b = rendering.place(rng, ("blue", "square"), (1, 0), "small")
    scene = rendering.Scene((a, b), (20.0, 20.0, 20.0))
    for text, right in {
        "a red circle and a blue square": True,
        "A blue square and a red circle": True,
        "a red circle above a blue square": True,
        "a blue square below a red circle": True,
        "a big red circle and a small blue square": True,
        "a small red circle and a small blue square": False,
        "a red circle left of a blue square": False,
        "a red circle below a blue square": False,
        "a red circle": False,
        "a red circle , a blue square and a green cross": False,
        "a blue circle and a red square": False,
        "a red circle and a blue": False,
        "a dog": False,
        "": False,
    }.items():
        assert verify_caption(text, scene) is right, text
    three = rendering.Scene((a, rendering.place(rng, a.pair, (0, 1)), b), scene.ground)
    assert not verify_caption("a red circle and a blue square", three)
    for made in questions.caption_set("test", 40):
        said = [
            text for content in language.scene_contents(made) for text in language.wordings(content)
        ]
        assert said and all(verify_caption(text, made) for text in said)


def test_other_pictures_and_prompts_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        see(np.zeros((48, 48, 3), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        see(np.zeros((32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="not of the shapes world"):
        verify(np.zeros((32, 32, 3), np.uint8), "a dog")
