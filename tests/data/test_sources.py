"""What samples look like: items, losses, and whose text is dropped."""

import numpy as np
import pytest
import tiny

from srum_jax.data import packing, sources
from srum_jax.data.schema import Branch, Latent, Picture, Regions, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.worlds.shapes import changes, examples


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return Tokenizer.from_folder(examples.write_tokenizer(tmp_path_factory.mktemp("words")).parent)


def test_text_to_image(words):
    latent = np.zeros(tiny.GRID, np.float32)
    regions = Regions(np.zeros((2, 4)), np.zeros(2), 0.5)
    more = dict(size=(32, 32), noise_id=7)
    made = sources.text_to_image(words, "a red circle", latent, regions=regions, **more)
    prompt, image = made.items
    assert isinstance(prompt, Text) and not prompt.loss
    assert isinstance(image, Latent) and image.noisy and image.tokens is latent
    assert (image.noise_id, image.size, image.regions) == (7, (32, 32), regions)
    assert packing.size(made).tolist() == [3 + 2 + 2, 16, 0, 0, 1, 2]
    (alone,) = sources.text_to_image(words, None, latent, **more).items
    assert isinstance(alone, Latent) and alone.regions is None
    # A prompt of no words is a prompt still.
    assert len(sources.text_to_image(words, "", latent, **more).items) == 2


def test_questions(words):
    image = np.zeros((32, 32, 3), np.uint8)
    pairs = [("what color is the square ?", "red"), ("is there a red circle ?", "no")]
    picture, *branches = sources.questions(words, tiny.MODEL.layout, (image,), pairs).items
    assert isinstance(picture, Picture) and picture.patches.shape == (16, 8 * 8 * 3)
    assert picture.patches.min() == picture.patches.max() == -1
    assert all(isinstance(branch, Branch) for branch in branches)
    said = [[words.decode(text.ids) for text in branch.texts] for branch in branches]
    assert said == [list(pair) for pair in pairs]
    assert [[text.loss for text in branch.texts] for branch in branches] == [[False, True]] * 2


def test_questions_about_several_pictures(words):
    frames, asked = changes.several_example(0, 0)
    pairs = [(q.text, q.answer) for q in asked]
    made = sources.questions(words, tiny.MODEL.layout, frames, iter(pairs))
    pictures, branches = made.items[: len(frames)], made.items[len(frames) :]
    alone = [sources.questions(words, tiny.MODEL.layout, (f,), pairs).items[0] for f in frames]
    for picture, one in zip(pictures, alone, strict=True):  # all before the questions, in order
        np.testing.assert_array_equal(picture.patches, one.patches)
    assert not np.array_equal(pictures[0].patches, pictures[1].patches)
    assert [words.decode(b.texts[1].ids) for b in branches] == [answer for _, answer in pairs]
    assert packing.size(made)[2] == 16 * len(frames)


def test_edit(words):
    before, after = (np.full(tiny.GRID, value, np.float32) for value in (1, 2))
    source = np.zeros((32, 32, 3), np.uint8)
    more = dict(size=(32, 32), noise_id=9)
    made = sources.edit(
        words, tiny.MODEL.layout, source, before, "remove the red circle .", after, **more
    )
    clean, seen, instruction, target = made.items
    assert isinstance(clean, Latent) and not clean.noisy and clean.tokens is before
    assert isinstance(seen, Picture) and seen.patches.max() == -1
    assert words.decode(instruction.ids) == "remove the red circle ." and not instruction.loss
    assert target.noisy and target.tokens is after and target.noise_id == 9
    assert clean.size == target.size == (32, 32)
    without = sources.edit(words, tiny.MODEL.layout, source, before, None, after, **more).items
    assert [type(item) for item in without] == [Latent, Picture, Latent]


def test_texts_are_dropped_by_number_alone():
    drops = [sources.dropped(0, i, 0.1) for i in range(4000)]
    assert drops == [sources.dropped(0, i, 0.1) for i in range(4000)]
    assert np.mean(drops) == pytest.approx(0.1, abs=0.015)
    assert drops != [sources.dropped(1, i, 0.1) for i in range(4000)]
    assert not any(sources.dropped(0, i, 0.0) for i in range(100))
    assert all(sources.dropped(0, i, 1.0) for i in range(100))
    # A larger share drops more of the same ones.
    assert all(sources.dropped(0, i, 0.2) for i in np.flatnonzero(drops))
