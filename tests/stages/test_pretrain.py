"""The stage's rows: pictures with questions and images to draw, never more than a row holds."""

import dataclasses

import numpy as np
import pytest
import tiny

from srum_jax.data import packing, shapes, sources
from srum_jax.data.schema import Lanes
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.stages import pretrain

LANES = Lanes(und=160, gen=32, vit=16, labels=32, images=2, regions=0)
CAPTIONS = ["a red circle", "two blue squares", "a red circle and a blue square"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return Tokenizer.from_folder(shapes.write_tokenizer(tmp_path_factory.mktemp("words")).parent)


@pytest.fixture(scope="module")
def row(words):
    cfg = tiny.load_config("")
    latents = np.zeros((len(CAPTIONS), *tiny.GRID), np.float32)
    return lambda number: pretrain.row(
        number, cfg=cfg, model=tiny.MODEL, tokenizer=words, captions=CAPTIONS, latents=latents
    )


def used(examples):
    return sum(packing.size(e) for e in examples)


def test_a_row_is_a_function_of_its_number(row):
    one, again = row(5), row(5)
    assert len(one) == 3  # a picture with questions, two images to draw
    assert [packing.size(e).tolist() for e in one] == [packing.size(e).tolist() for e in again]
    assert len(one[0].items) == 1 + 6
    np.testing.assert_array_equal(one[0].items[0].patches, again[0].items[0].patches)
    assert not np.array_equal(one[0].items[0].patches, row(6)[0].items[0].patches)
    drawn = [e.items[-1].noise_id for n in range(3) for e in row(n)[1:]]
    assert sorted(drawn[:3]) == sorted(drawn[3:]) == [0, 1, 2]  # every scene once an epoch
    assert used(one)[1:5].tolist() == [32, 16, used(one)[3], 2]


def test_rows_that_fit_stay_as_they_are(row):
    for number in range(20):
        examples = row(number)
        assert pretrain.fitted(examples, LANES) == examples


def test_last_questions_are_left_out_where_texts_are_long(words):
    image = np.zeros((32, 32, 3), np.uint8)
    long = "is the red circle left or right of the blue square ?"
    asked = sources.questions(words, tiny.MODEL, image, [(long, "neither")] * 8)
    caption = sources.text_to_image(
        words, CAPTIONS[2], np.zeros(tiny.GRID, np.float32), size=(32, 32), noise_id=0
    )
    examples = [asked, caption]
    assert used(examples)[0] > LANES.und
    fitted = pretrain.fitted(examples, LANES)
    assert fitted[1] is caption and fitted[0].items == asked.items[:8]  # 7 of 8 questions
    assert used(fitted)[0] <= LANES.und < used(fitted)[0] + 17
    few = dataclasses.replace(LANES, labels=5)  # other lanes count as well
    assert used(pretrain.fitted(examples, few))[3] == 4
    packing.pack([fitted], LANES, tiny.MODEL)
    # What no question can help is left to packing to say.
    small = dataclasses.replace(LANES, gen=8)
    with pytest.raises(ValueError, match="gen needs 16"):
        packing.pack([pretrain.fitted(examples, small)], small, tiny.MODEL)
