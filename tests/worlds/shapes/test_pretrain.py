"""The stage's rows: pictures with questions and images to draw, never more than a row holds."""

import dataclasses

import numpy as np
import pytest
import tiny

from srum_jax import config
from srum_jax.configs import shapes64_drawing, shapes_janus_pretrain, shapes_pretrain
from srum_jax.data import packing, sources
from srum_jax.data.schema import Example, Lanes
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.stages import preflight
from srum_jax.stages.manifest import Workdir
from srum_jax.worlds.shapes import examples as shapes_examples
from srum_jax.worlds.shapes import pretrain

CAPTIONS = ["a red circle", "two blue squares", "a red circle and a blue square"]
EDITS = ["remove the red circle .", "move the blue square up ."]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return Tokenizer.from_folder(
        shapes_examples.write_tokenizer(tmp_path_factory.mktemp("words")).parent
    )


PLAN = pretrain.PLANS["shapes"]


@pytest.fixture(scope="module")
def lanes():
    """Of a row that reads one picture."""
    return PLAN.usual.lanes


@pytest.fixture(scope="module")
def pool():
    latents, edits = (np.zeros((len(texts), *tiny.GRID), np.float32) for texts in (CAPTIONS, EDITS))
    pictures = np.zeros((len(EDITS), 32, 32, 3), np.uint8)
    return pretrain.Pool(CAPTIONS, latents, EDITS, pictures, edits, edits + 1)


@pytest.fixture(scope="module")
def row(words, pool):
    def make(number, several=False, text_dropout=0.0):
        how = dict(seed=0, layout=tiny.MODEL.layout, tokenizer=words, pool=pool)
        plan = PLAN.other if several else PLAN.usual
        return pretrain.row(number, plan, text_dropout=text_dropout, **how)

    return make


def test_pictures_are_encoded_once_for_each_number_of_them(tmp_path, monkeypatch):
    made = []

    def encoded(encoder, seed, scenes, edits, malformed, setting):
        made.append((scenes, edits))
        some = {name: np.zeros(edits) for name in ("sources", "before", "after")}
        words = {"captions": np.array(["a"] * scenes), "instructions": np.array(["b"] * edits)}
        return {**words, "latents": np.arange(scenes), **some}

    monkeypatch.setattr(pretrain, "_encoded", encoded)
    for scenes, edits in ((3, 2), (3, 2), (3, 4), (5, 4), (5, 4)):
        found = pretrain.encode(tmp_path, None, seed=0, scenes=scenes, edits=edits)
        assert found.captions == ["a"] * scenes and found.instructions == ["b"] * edits
        assert len(found.latents) == scenes and len(found.after) == edits
    assert made == [(3, 2), (3, 4), (5, 4)]
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for left in (b"", whole[:-70], whole[:200] + b"\1" * 9 + whole[209:], b"garbage", b"\0" * 99):
        path.write_bytes(left)
        pretrain.encode(tmp_path, None, seed=0, scenes=5, edits=4)
        assert made.pop() == (5, 4) and path.read_bytes() == whole


def used(examples):
    return sum(packing.size(e) for e in examples)


def kinds(examples):
    """What the samples of a row are, by their items."""
    return [[type(item).__name__ for item in example.items] for example in examples]


def test_a_row_is_a_function_of_its_number(row):
    one, again = row(5), row(5)
    assert [packing.size(e).tolist() for e in one] == [packing.size(e).tolist() for e in again]
    np.testing.assert_array_equal(one[0].items[0].patches, again[0].items[0].patches)
    assert not np.array_equal(one[0].items[0].patches, row(6)[0].items[0].patches)
    asked, *drawn, edit = kinds(one)  # a picture with questions, two images to draw, an edit
    assert asked == ["Picture"] + ["Branch"] * PLAN.usual.mix.questions
    assert drawn == [["Text", "Latent"]] * 2
    assert edit == ["Latent", "Picture", "Text", "Latent"]


def test_every_scene_and_edit_comes_once_an_epoch(row):
    rows = [row(number) for number in range(3)]
    drawn = [e.items[-1].noise_id for examples in rows for e in examples[1:3]]
    assert sorted(drawn[:3]) == sorted(drawn[3:]) == [0, 1, 2]
    edits = [row(number)[3].items[-1] for number in range(4)]
    noise = [latent.noise_id for latent in edits]  # none of the drawn scenes' numbers
    assert sorted(noise[:2]) == sorted(noise[2:]) == [3, 4]
    assert all((latent.tokens == 1).all() for latent in edits)  # what comes after


def test_some_steps_read_pairs_and_clips(row):
    usual, other = PLAN.usual, PLAN.other
    assert [PLAN.rows(step) for step in range(6)] == [usual, usual, other] * 2
    seen = set()
    for number in range(16):
        made = [tuple(e) for e in kinds(row(number, several=True))]
        assert made[-2:] == [("Text", "Latent")] * 2  # captions are drawn there too, no edits
        numbers = [e.count("Picture") for e in made[:-2]]
        assert numbers == [2, 2] or (len(numbers) == 1 and numbers[0] in (4, 5, 6, 8))
        for n, sample in zip(numbers, made[:-2], strict=True):  # pictures first, then questions
            assert set(sample[:n]) == {"Picture"} and set(sample[n:]) == {"Branch"}
        seen.add(numbers[0])
    assert 2 in seen and len(seen) > 2


def test_texts_may_be_dropped(row):
    made = row(0, text_dropout=1.0)
    assert kinds(made)[1:] == [["Latent"], ["Latent"], ["Latent", "Picture", "Latent"]]


def test_rows_that_fit_stay_as_they_are(row, lanes):
    """Nearly all do; every one is packed."""
    for several, sizes in ((False, lanes), (True, PLAN.other.lanes)):
        whole = 0
        for number in range(24):
            examples = row(number, several)
            fitted = pretrain.fitted(examples, sizes)
            assert (used(fitted) <= dataclasses.astuple(sizes)).all()
            assert [len(e.items) for e in fitted][1:] == [len(e.items) for e in examples][1:]
            whole += fitted == examples
        assert whole >= 20
        packing.pack([fitted], sizes, tiny.MODEL.layout)


def test_last_questions_are_left_out_where_texts_are_long(words):
    lanes = Lanes(und=160, gen=32, vit=16, labels=32, images=2, regions=0)
    image = np.zeros((32, 32, 3), np.uint8)
    long = "is the red circle left or right of the blue square ?"
    asked = sources.questions(words, tiny.MODEL.layout, (image,), [(long, "neither")] * 8)
    caption = sources.text_to_image(
        words, CAPTIONS[2], np.zeros(tiny.GRID, np.float32), size=(32, 32), noise_id=0
    )
    examples = [asked, caption]
    assert used(examples)[0] > lanes.und
    fitted = pretrain.fitted(examples, lanes)
    assert fitted[1] is caption and fitted[0].items == asked.items[:8]  # 7 of 8 questions
    assert used(fitted)[0] <= lanes.und < used(fitted)[0] + 17
    few = dataclasses.replace(lanes, labels=5)  # other lanes count as well
    assert used(pretrain.fitted(examples, few))[3] == 4
    packing.pack([fitted], lanes, tiny.MODEL.layout)
    # What no question can help is left to packing to say.
    small = dataclasses.replace(lanes, gen=8)
    with pytest.raises(ValueError, match="gen needs 16"):
        packing.pack([pretrain.fitted(examples, small)], small, tiny.MODEL.layout)


def test_samples_are_left_out_where_no_question_can_be(row, lanes):
    """From the last on; the one that is asked about stays."""
    examples = row(0)
    one_question = Example(examples[0].items[:2])
    need = used([one_question, *examples[1:3]])[0]
    short = dataclasses.replace(lanes, und=int(need))
    fitted = pretrain.fitted(examples, short)
    assert kinds(fitted) == [["Picture", "Branch"], ["Text", "Latent"], ["Text", "Latent"]]
    packing.pack([fitted], short, tiny.MODEL.layout)


@pytest.mark.parametrize(
    "made, fits",
    [(shapes_pretrain, False), (shapes_janus_pretrain, False), (shapes64_drawing, True)],
)
def test_drawing_alone_is_learned_where_rows_read_nothing(tmp_path, made, fits):
    values, found = made.get_config(), preflight.Checks(("autoencoder", "pretrain"))
    values.pretrain.trainable = "gen"
    pretrain.check(config.load(values), Workdir(tmp_path), found)
    assert any("pretrain.trainable" in problem for problem in found.problems) != fits
