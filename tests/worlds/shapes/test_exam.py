"""How the world's questions, captions and edits are put to a model, and which are called right."""

import dataclasses
import random
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from srum_jax.data.schema import Latent, Picture, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.evals.model_under_test import ModelUnderTest
from srum_jax.generation import image_request, image_sampler, text_generator
from srum_jax.worlds.shapes import changes, exam, examples, language, question_forms, rendering
from srum_jax.worlds.shapes import questions as shapes_questions


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """One that can read; what it does is given by each test."""
    words = Tokenizer.from_folder(examples.write_tokenizer(tmp_path_factory.mktemp("words")).parent)
    none = dict.fromkeys(("sampler", "scorer", "generator", "encoder"))
    return ModelUnderTest(layout=tiny.MODEL.layout, tokenizer=words, batch=4, **none)


def seen(pictures):
    """What tells pictures apart."""
    return b"".join(p.tobytes() for p in (pictures if isinstance(pictures, tuple) else (pictures,)))


def test_answers_are_right_by_their_likeliest_word_in_the_order_asked(model):
    asked = shapes_questions.qa_set("validation", 12) + changes.several_set("validation", 12)
    wrong = {0, 5, 13, 20}
    known = {
        (seen(pictures), q.text): "neither" if i in wrong and q.answer != "neither" else q.answer
        for i, (pictures, q) in enumerate(asked)
    }
    calls = []

    def ask(images, questions):
        calls.append({len(i) for i in images})
        return [
            [model.tokenizer.id(known[seen(pictures), question])]
            for pictures, (question,) in zip(images, questions, strict=True)
        ]

    requests = exam.questions("validation", 12, 12)
    replies = dataclasses.replace(model, scorer=SimpleNamespace(likeliest=ask)).answers(requests)
    verdicts = exam.judge_answers(requests, replies)
    for request, reply, verdict, (pictures, q) in zip(
        requests, replies, verdicts, asked, strict=True
    ):
        assert (request.question, request.truth, request.category) == (q.text, q.answer, q.kind)
        assert reply == known[seen(pictures), q.text]
        assert verdict.right == (reply == q.answer) and verdict.category == q.kind
    assert {one.right for one in verdicts} == {False, True}
    assert len({one.id for one in verdicts}) == len(verdicts)
    one, two, clips = calls  # no clip lengthens the row of a picture; all lengths share a program
    assert one == {1} and two == {2} and min(clips) > 2 and len(clips) > 1
    assert model.answers(()) == []


def test_captions_are_judged_by_the_scene(model):
    scenes = shapes_questions.caption_set("validation", 10)
    said = [language.wordings(language.scene_contents(scene)[0])[-1] for scene in scenes]
    said[3], said[7] = said[4], "a red"

    def write(contexts, *, max_tokens):
        assert len(contexts) == len(scenes)
        for picture, request in contexts:
            assert isinstance(picture, Picture)
            assert model.tokenizer.decode(request.ids) == question_forms.DESCRIBE
        assert max_tokens >= max(len(model.tokenizer.encode(words)) for words in said)
        return [text_generator.GeneratedText(words, (), True) for words in said]

    requests = exam.captions("validation", 10)
    replies = dataclasses.replace(model, generator=SimpleNamespace(generate=write)).texts(requests)
    assert replies == said
    found = exam.judge_captions(requests, replies)
    assert [one.right for one in found] == [i not in (3, 7) for i in range(10)]
    assert [one.category for one in found] == [
        language.scene_contents(s)[0].category for s in scenes
    ]


def test_texts_of_several_lengths_keep_their_order(model):
    requests = [
        dataclasses.replace(one, max_tokens=limit)
        for one, limit in zip(exam.captions("validation", 4), (3, 9, 3, 5), strict=True)
    ]

    def write(contexts, *, max_tokens):
        return [
            text_generator.GeneratedText(f"{max_tokens} {i}", (), True)
            for i in range(len(contexts))
        ]

    found = dataclasses.replace(model, generator=SimpleNamespace(generate=write)).texts(requests)
    assert found == ["3 0", "9 0", "3 1", "5 0"]


def test_edits_are_read_as_in_training_and_judged_by_what_changed(model):
    edits = changes.edit_set("validation", 8)
    latent = np.zeros(tiny.GRID, np.float32)

    def encode(pixels):
        return Latent(latent + pixels.mean(), size=pixels.shape[:2], noisy=False)

    def draw(requests, settings=None):
        assert len({r.seed for r in requests}) == len(requests)
        for request, edit in zip(requests, edits, strict=True):
            clean, picture, words = request.context
            before = rendering.draw(edit.source)
            assert isinstance(clean, Latent) and clean.tokens.max() == before.mean()
            assert isinstance(picture, Picture) and isinstance(words, Text)
            assert model.tokenizer.decode(words.ids) == edit.instruction
            assert request.size == (32, 32) and request.plain == 2  # guidance keeps the picture
        scenes = [e.source if i in (2, 5) else e.target for i, e in enumerate(edits)]
        return [image_request.GeneratedImage(rendering.draw(scene), latent) for scene in scenes]

    requests = exam.edits("validation", 8)
    assert [r.seed for r in requests] == [image_sampler.candidate_seed(0, i, 0) for i in range(8)]
    model = dataclasses.replace(
        model, encoder=SimpleNamespace(encode=encode), sampler=SimpleNamespace(sample=draw)
    )
    replies = model.edits(requests)
    found = exam.judge_edits(requests, replies)
    assert [one.right for one in found] == [i not in (2, 5) for i in range(8)]
    assert [one.instruction for one in requests] == [e.instruction for e in edits]
    assert [one.category for one in found] == [*changes.EDITS, *changes.EDITS]
    assert np.array_equal(replies[2], rendering.draw(edits[2].source))


def test_the_verifier_says_nothing_of_what_it_cannot_read():
    scene = rendering.draw(shapes_questions.caption_set("validation", 1)[0])
    exact = exam.ShapesVerifier()
    assert exact.right(scene, "a dog") is None
    assert exact.right(np.zeros((48, 48, 3), np.uint8), "a red circle") is None
    assert exact.right(np.zeros_like(scene), "a red circle") is False


def test_every_verdict_of_wrong_has_a_reason_in_words():
    asked = exam.edits("test", 12)
    kept = exam.judge_edits(asked, [request.image for request in asked])
    said = {verdict.category: verdict.reason for verdict in kept}
    assert all(not verdict.right and verdict.reason for verdict in kept)
    assert "should not be there" in said["remove"] and "there is no " in said["add"]
    done = exam.judge_edits(asked, [rendering.draw(request.truth.target) for request in asked])
    assert all(verdict.right and not verdict.reason for verdict in done)
    questions = exam.questions("test", 1, 0)
    (verdict,) = exam.judge_answers(questions, ["frog"])
    assert verdict.reason == f"said frog; {questions[0].truth} is right"
    captions = exam.captions("test", 8)
    found = exam.judge_captions(captions, ["a frog", *["a red circle"] * 7])
    assert found[0].reason.startswith("not a caption of this world; it shows a")
    assert all(verdict.right != bool(verdict.reason) for verdict in found)


@pytest.mark.parametrize(
    "prompt, drawn, reason",
    [
        (
            "three red circles",
            [("red", "circle")] * 2,
            "two objects, three were asked for; missing: a red circle",
        ),
        (
            "a red circle",
            [("red", "circle"), ("blue", "cross")],
            "two objects, one was asked for; too many: a blue cross",
        ),
        ("a red circle", [("red", "square")], "missing: a red circle; there instead: a red square"),
    ],
)
def test_a_drawing_that_is_wrong_says_how(prompt, drawn, reason):
    scene = rendering.scatter(random.Random(1), drawn)
    record = {"id": "0-0", "category": "x", "prompt": prompt, "image": rendering.draw(scene)}
    (verdict,) = exam.judge_drawings([record])
    assert verdict.reason == reason
