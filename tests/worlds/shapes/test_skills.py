"""How the world's questions, captions and edits are put to a model, and which are called right."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from srum_jax.data.schema import Latent, Picture, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import image_sampler, text_generator
from srum_jax.worlds.shapes import examples as shapes
from srum_jax.worlds.shapes import skills


@pytest.fixture(scope="module")
def able(tmp_path_factory):
    """One that can read; what it does is given by each test."""
    words = Tokenizer.from_folder(shapes.write_tokenizer(tmp_path_factory.mktemp("words")).parent)
    none = dict.fromkeys(("scorer", "generator", "sampler", "encoder"))
    return skills.ShapesSkills(cfg=tiny.MODEL, tokenizer=words, batch=4, **none)


def seen(pictures):
    """What tells pictures apart."""
    return b"".join(p.tobytes() for p in (pictures if isinstance(pictures, tuple) else (pictures,)))


def test_answers_are_right_by_their_likeliest_word_in_the_order_asked(able):
    asked = shapes.qa_set("validation", 12) + shapes.several_set("validation", 12)
    wrong = {0, 5, 13, 20}
    known = {
        (seen(pictures), q.text): "neither" if i in wrong and q.answer != "neither" else q.answer
        for i, (pictures, q) in enumerate(asked)
    }
    calls = []

    def ask(images, questions):
        calls.append({len(i) if isinstance(i, tuple) else 1 for i in images})
        rows = np.full((len(images), 1, shapes.VOCAB_SIZE), 0.1, np.float32)
        for row, pictures, (question,) in zip(rows, images, questions, strict=True):
            row[0, able.tokenizer.id(known[seen(pictures), question])] = 0.2
        return list(rows)

    found = skills.answered(
        dataclasses.replace(able, scorer=SimpleNamespace(probabilities=ask)), asked
    )
    for one, (pictures, q) in zip(found, asked, strict=True):
        given = known[seen(pictures), q.text]
        assert one == {
            "kind": q.kind,
            "question": q.text,
            "answer": q.answer,
            "given": given,
            "right": given == q.answer,
        }
    assert {one["right"] for one in found} == {False, True}
    one, two, clips = calls  # no clip lengthens the row of a picture; all lengths share a program
    assert one == {1} and two == {2} and min(clips) > 2 and len(clips) > 1
    assert skills.answered(able, ()) == []


def test_captions_are_judged_by_the_scene(able):
    scenes = shapes.caption_set("validation", 10)
    said = [shapes.wordings(shapes.scene_contents(scene)[0])[-1] for scene in scenes]
    said[3], said[7] = said[4], "a red"

    def write(contexts, *, max_tokens):
        assert len(contexts) == len(scenes)
        for picture, request in contexts:
            assert isinstance(picture, Picture)
            assert able.tokenizer.decode(request.ids) == shapes.DESCRIBE
        assert max_tokens >= max(len(able.tokenizer.encode(words)) for words in said)
        return [text_generator.GeneratedText(words, (), True) for words in said]

    found = skills.described(
        dataclasses.replace(able, generator=SimpleNamespace(generate=write)), scenes
    )
    assert [one["given"] for one in found] == said
    assert [one["right"] for one in found] == [i not in (3, 7) for i in range(10)]
    assert [one["kind"] for one in found] == [shapes.scene_contents(s)[0].category for s in scenes]


def test_edits_are_read_as_in_training_and_judged_by_what_changed(able):
    edits = shapes.edit_set("validation", 8)
    latent = np.zeros(tiny.GRID, np.float32)

    def encode(pixels):
        return Latent(latent + pixels.mean(), size=pixels.shape[:2], noisy=False)

    def draw(requests):
        assert len({r.seed for r in requests}) == len(requests)
        for request, edit in zip(requests, edits, strict=True):
            clean, picture, words = request.context
            before = shapes.draw(edit.source)
            assert isinstance(clean, Latent) and clean.tokens.max() == before.mean()
            assert isinstance(picture, Picture) and isinstance(words, Text)
            assert able.tokenizer.decode(words.ids) == edit.instruction
            assert request.size == (32, 32) and request.plain == 2  # guidance keeps the picture
        scenes = [e.source if i in (2, 5) else e.target for i, e in enumerate(edits)]
        return [image_sampler.GeneratedImage(shapes.draw(scene), latent) for scene in scenes]

    able = dataclasses.replace(
        able, encoder=SimpleNamespace(encode=encode), sampler=SimpleNamespace(sample=draw)
    )
    found = skills.edited(able, edits)
    assert [one["right"] for one in found] == [i not in (2, 5) for i in range(8)]
    assert [one["instruction"] for one in found] == [e.instruction for e in edits]
    assert [one["kind"] for one in found] == [*shapes.EDITS, *shapes.EDITS]
    assert np.array_equal(found[2]["image"], shapes.draw(edits[2].source))
