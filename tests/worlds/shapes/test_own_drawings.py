"""What a base drew, as pictures to read: every answer is the verifier's, both kinds are even."""

import collections

import numpy as np
import pytest

from srum_jax.worlds.shapes import language, own_drawings, rendering, verifier
from srum_jax.worlds.shapes.questions import stream_rng
from srum_jax.worlds.shapes.setting import LARGE

COUNT = 48


def draw(captions, seeds):
    """Pictures of the captions, every third with a blend in place of its first object."""
    images = []
    for text, seed in zip(captions, seeds, strict=True):
        rng = stream_rng(0, seed, 99)
        scene = rendering.scatter(rng, language.parse(text, LARGE).pairs, setting=LARGE)
        flawed = rendering.draw_flawed(rng, scene, 0, "blend") if seed % 3 == 0 else None
        images.append(rendering.draw(scene) if flawed is None else flawed)
    return np.stack(images)


@pytest.fixture(scope="module")
def drawings():
    return own_drawings.looked_at(**own_drawings.drawn(draw, COUNT, 0, LARGE))


def test_the_verifier_says_what_is_right(drawings):
    assert drawings.images.shape == (COUNT, 64, 64, 3)
    assert len(set(drawings.captions)) == COUNT
    assert all(language.split_of(language.parse(c, LARGE)) == "train" for c in drawings.captions)
    assert sorted([*drawings.right, *drawings.wrong]) == list(range(COUNT))
    assert drawings.right and set(drawings.wrong) >= set(range(0, COUNT, 3))
    assert {i for i, _ in drawings.malformed} == set(range(0, COUNT, 3))
    assert all(not one.flaw for _, one in drawings.made)


def test_half_of_the_crops_are_of_well_made_objects(drawings):
    made = 0
    for index in range(200):
        image, questions = own_drawings.crop_example(drawings, 0, index)
        color, shape, *asked = questions
        assert image.shape == (32, 32, 3) and asked
        made += color.answer != "none"
        for one in asked:  # what is there is "yes", what it should have been "no"
            assert one.answer == ("no" if color.answer == "none" else "yes")
            if one.answer == "yes":
                assert one.text == f"is this {language.name((color.answer, shape.answer))} ?"
    assert 70 < made < 130
    again, questions = own_drawings.crop_example(drawings, 0, 7)
    first = own_drawings.crop_example(drawings, 0, 7)
    np.testing.assert_array_equal(first[0], again)
    assert first[1] == questions


def test_a_malformed_object_is_asked_about_as_what_is_missing(drawings):
    asked = 0
    for index in range(100):
        questions = own_drawings.crop_example(drawings, 1, index)[1]
        if questions[0].answer == "none":
            missing = set()
            for i, _ in drawings.malformed:
                lacks = collections.Counter(verifier.demanded(drawings.captions[i], LARGE))
                seen = verifier.see(drawings.images[i])
                missing |= set(lacks - collections.Counter(one.pair for one in seen))
            assert questions[2].text in {f"is this {language.name(pair)} ?" for pair in missing}
            asked += 1
    assert asked > 30


def test_whole_pictures_are_asked_about_as_the_verifier_sees_them(drawings):
    answers = collections.Counter()
    for index in range(200):
        image, (whole, *exists) = own_drawings.picture_example(drawings, 0, index)
        caption = whole.text.removeprefix("does the image show ").removesuffix(" ?")
        assert (whole.answer == "yes") == verifier.verify(image, caption).right
        answers[whole.answer] += 1
        there = {f"is there {language.name(one.pair)} ?" for one in verifier.see(image)}
        assert 0 < len(exists) <= own_drawings.OBJECTS
        for one in exists:
            assert (one.answer == "yes") == (one.text in there)
    assert 70 < answers["yes"] < 130


def test_drawings_without_a_right_one_serve_too(drawings):
    few = own_drawings.looked_at(np.array(drawings.captions[:1]), drawings.images[:1])
    assert few.wrong == [0] and not few.right
    assert own_drawings.picture_example(few, 0, 0)[1][0].answer == "no"
