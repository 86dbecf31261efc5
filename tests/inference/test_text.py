"""Answers: what the training forward says, whatever else is asked in the same call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from srum_jax.data import packing, shapes
from srum_jax.data.images import picture
from srum_jax.data.schema import Example, Lanes, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.inference import text
from srum_jax.models import bagel

CFG = tiny.MODEL
ASKED = [shapes.understanding_example(5, i) for i in range(7)]
IMAGES = [image for image, _ in ASKED]
QUESTIONS = [[q.text for q in asked if q.kind != "caption"] for _, asked in ASKED]


@jax.jit
def first_answer(params, batch):
    und, _, _ = bagel.forward(params, CFG, batch, batch.latents, jnp.zeros((1, 0)), remat=False)
    return jax.nn.softmax(bagel.logits(params, und, batch.label_slots))[0, 0]


@pytest.fixture(scope="module")
def params():
    return tiny.weights(scale=0.7)[0]  # so large that what is asked and shown matters


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(shapes.write_tokenizer(tmp_path_factory.mktemp("words")).parent)


@pytest.fixture(scope="module")
def ask(params, tokenizer):
    return text.asker(params, CFG, tokenizer, rows=4)


@pytest.fixture(scope="module")
def answers(ask):
    return ask(IMAGES, QUESTIONS)


def test_probabilities_of_the_whole_vocabulary(answers):
    assert [a.shape for a in answers] == [(len(q), CFG.llm.vocab) for q in QUESTIONS]
    for a in answers:
        assert a.dtype == np.float32 and (a >= 0).all()
        np.testing.assert_allclose(a.sum(-1), 1, atol=1e-5)
    assert len({len(q) for q in QUESTIONS}) > 1  # rows of different length


def test_an_answer_is_the_training_forward(params, tokenizer, answers):
    """One question behind its picture, as an ordinary sample of a training row."""
    lanes = Lanes(und=48, gen=0, vit=16, labels=2, images=0, regions=0)
    for i, n in ((0, 0), (0, 2), (5, 1)):
        question = Text(np.array(tokenizer.encode(QUESTIONS[i][n]), np.int32))
        answer = Text(np.zeros(0, np.int32), loss=True)
        example = Example((picture(IMAGES[i], CFG), question, answer))
        want = first_answer(params, packing.pack([[example]], lanes, CFG))
        np.testing.assert_allclose(answers[i][n], want, atol=1e-5)


def test_other_questions_change_nothing(ask, answers):
    alone = ask(IMAGES, [q[-1:] for q in QUESTIONS])
    turned = ask(IMAGES, [q[::-1] for q in QUESTIONS])
    for a, one, back in zip(answers, alone, turned, strict=True):
        np.testing.assert_allclose(one, a[-1:], atol=1e-5)
        np.testing.assert_allclose(back, a[::-1], atol=1e-5)


def test_other_images_change_nothing(ask, answers):
    order = [6, 2]
    few = ask([IMAGES[i] for i in order], [QUESTIONS[i] for i in order])
    for found, i in zip(few, order, strict=True):
        np.testing.assert_allclose(found, answers[i], atol=1e-5)


def test_the_image_and_the_question_both_matter(ask, answers):
    swapped = ask(IMAGES[1:2], QUESTIONS[:1])[0]
    assert np.abs(swapped - answers[0]).max() > 1e-2
    assert np.abs(answers[0][0] - answers[0][1]).max() > 1e-2


def test_nothing_asked_and_faults(ask):
    assert ask([], []) == []
    with pytest.raises(ValueError, match="2 images, but questions for 1"):
        ask(IMAGES[:2], QUESTIONS[:1])
    with pytest.raises(ValueError, match="'pink'"):
        ask(IMAGES[:1], [["is this pink ?"]])
