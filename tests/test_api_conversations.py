"""Conversations and streams through the API: one packed context, and the same text in pieces."""

import pathlib

import jax
import numpy as np
import pytest
import test_api
import tiny
from PIL import Image
from samples import jit

from srum_jax import api, inputs
from srum_jax.core.errors import BadInput
from srum_jax.data import images as pictures
from srum_jax.data import packing
from srum_jax.data.schema import Example, Lanes, Text
from srum_jax.generation import image_request, text_rows
from srum_jax.models.bagel import model as bagel_model
from srum_jax.worlds.shapes import examples

RED, BLUE = test_api.PROMPTS[0], test_api.PROMPTS[2]
COLOR, THERE, COUNT = test_api.QUESTIONS
FIRST, SECOND = test_api.image(1), test_api.image(2)


@pytest.fixture(scope="module")
def bagel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return api.load(test_api.write_model(folder, examples.write_tokenizer(folder / "words")))


def user(*content):
    return {"role": "user", "content": list(content)}


def assistant(text):
    return {"role": "assistant", "content": text}


CHAT = [user(FIRST, COLOR), assistant("red"), user(BLUE, SECOND, COUNT)]


@jit
def teacher(params, batch):
    t = jax.numpy.zeros(batch.noisy.shape)
    und, _, _ = bagel_model.forward(params, tiny.MODEL, batch, batch.latents, t, remat="none")
    return bagel_model.logits(params, und, batch.label_slots)


def by_hand(bagel):
    """The items of CHAT: every text between its marks, every picture where it stands."""
    text = bagel.tokenizer.text

    def look(image):
        return pictures.picture(image, tiny.MODEL.layout)

    return (look(FIRST), text(COLOR), text("red"), text(BLUE), look(SECOND), text(COUNT))


def test_several_turns_are_one_packed_context(bagel):
    """What is written is what the training forward finds likeliest behind the whole of it."""
    written = bagel._write([by_hand(bagel)], (), 6)[0]
    answer = bagel.answer(CHAT)
    assert answer.text == written.text and len(written.ids) == 6
    given = (*by_hand(bagel), Text(np.array(written.ids, np.int32), loss=True))
    need = Lanes(*map(int, packing.size(Example(given))))
    logits = teacher(bagel.params, packing.pack([[Example(given)]], need, tiny.MODEL.layout))
    assert tuple(np.argmax(logits[0, :6], axis=-1).tolist()) == written.ids


def test_every_part_is_read_in_its_place(bagel):
    (found,) = bagel._asked(CHAT, None, None, 1)
    for a, b in zip(found, by_hand(bagel), strict=True):
        jax.tree.map(np.testing.assert_array_equal, vars(a), vars(b))
    swapped = [user(SECOND, COLOR), assistant("red"), user(BLUE, FIRST, COUNT)]
    answers = bagel.answer([CHAT, swapped, COUNT])
    assert len({a.text for a in answers}) > 1 and answers[0] == bagel.answer(CHAT)
    one = [{"role": "user", "content": [FIRST, SECOND, COLOR]}]
    assert bagel.answer(one) == bagel.answer(COLOR, [FIRST, SECOND])
    spoken = [{"role": "system", "content": COLOR}, {"role": "user", "content": COLOR}]
    assert bagel.answer(spoken).text


def test_parts_have_several_forms(bagel, tmp_path):
    path = pathlib.Path(tmp_path / "a.png")
    path.write_bytes(pictures.encode_png(FIRST))
    typed = [
        {"type": "image", "image": str(path)},
        {"type": "text", "text": COLOR},
    ]
    want = bagel.answer(COLOR, FIRST)
    for content in (typed, [path, COLOR], [Image.open(path), COLOR], [FIRST, COLOR]):
        assert bagel.answer([{"role": "user", "content": content}]) == want


@pytest.mark.slow
def test_drawing_reads_a_conversation_as_it_stands(bagel):
    clean, look = bagel.reader.latents, bagel.reader.picture
    text = bagel.tokenizer.text
    items = (clean(FIRST), look(FIRST), text(RED), clean(SECOND), look(SECOND), text(BLUE))
    chat = [user(FIRST, RED, SECOND, BLUE)]
    for drawn, settings in (
        (bagel.edit(None, chat, seeds=[3]), bagel.generation_config.edit),
        (bagel.generate(chat, seeds=[3]), bagel.generation_config.generate),
    ):
        contexts = image_request.guidance_contexts(items)
        job = image_request.ImageRequest(**contexts, size=(32, 32), seed=3)
        with jax.set_mesh(bagel.mesh):
            (want,) = bagel.sampler.sample([job], settings=settings)
        np.testing.assert_array_equal(drawn[0].latents, want.latent)
        assert drawn[0].prompt == BLUE
    (same,) = bagel.edit(FIRST, RED, seeds=[3])
    (chat,) = bagel.edit(None, [user(FIRST, RED)], seeds=[3])
    np.testing.assert_array_equal(same.latents, chat.latents)


@pytest.mark.parametrize(
    "messages, message",
    [
        ([{"role": "usr", "content": COLOR}], "role = 'usr' is not known: did you mean \"user\"?"),
        ([{"rôle": "user"}], 'message 1: unknown key "rôle": did you mean "role"?'),
        ([{"role": "user", "content": []}], "message 1 has no content"),
        ([{"role": "user"}], "message 1 has no content"),
        ([user(COLOR), assistant("red")], "the last message must be the user's"),
        ([user(FIRST)], "the last message must be the user's, with a text in it"),
        ([user(" ")], "a text is empty"),
        ([user({"type": "video", "video": 1})], "a part is"),
        ([user({"type": "text", "text": 5})], "the text of a part must be a text"),
        ([user(np.zeros((4, 4)), COLOR)], "an image is a path"),
        ([user("nowhere.png"), COLOR], "is a text, or give a list of texts"),
        ([[user(COLOR)], 5], "is a text, or a list of messages"),
    ],
)
def test_what_is_no_conversation_is_refused(bagel, messages, message):
    with pytest.raises(BadInput) as caught:
        bagel.answer(messages)
    assert message in str(caught.value)


def test_images_of_a_conversation_are_in_it(bagel):
    with pytest.raises(BadInput, match="belong into its messages"):
        bagel.answer(CHAT, FIRST)
    with pytest.raises(BadInput, match="no video"):
        bagel.answer(CHAT, video=[(0.0, FIRST)])
    with pytest.raises(BadInput, match=f"no image for '{RED}'"):
        bagel.edit(None, [user(RED)])


# ------------------------------------------------------------------------------------------ streams


@pytest.mark.parametrize("how", [{}, {"temperature": 3.0, "seed": 4}, {"max_tokens": 1}])
def test_a_stream_is_the_answer_in_pieces(bagel, how):
    want = bagel.answer(COUNT, FIRST, **how)
    pieces, stream = [], bagel.stream(COUNT, FIRST, **how)
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            assert end.value == want
            break
    assert "".join(pieces) == want.text and all(pieces)
    assert len(pieces) == len(want.text.split())
    assert "".join(bagel.stream(CHAT)) == bagel.answer(CHAT).text


def test_a_stream_stops_when_it_is_closed(bagel, monkeypatch):
    calls, write = [], text_rows._written
    monkeypatch.setattr(text_rows, "_written", lambda *a, **k: calls.append(a) or write(*a, **k))
    stream = bagel.stream(COUNT, FIRST)
    first = next(stream)
    stream.close()
    assert len(calls) == 1 and bagel.answer(COUNT, FIRST).text.startswith(first)
    assert list(stream) == []


def test_a_stream_is_refused_at_once(bagel):
    for ask, message in (
        (lambda: bagel.stream([COUNT, COUNT]), "stream: give a single question"),
        (lambda: bagel.stream(COUNT, max_tokens=0), "max_tokens must be at least 1"),
        (lambda: bagel.stream(COUNT, temperature=-1), "temperature must be a number from 0"),
        (lambda: bagel.stream(COUNT, [FIRST] * 16), "the context window is 256"),
        (lambda: bagel.stream("is this mauve ?"), "'mauve'"),
    ):
        with pytest.raises(ValueError) as caught:
            ask()
        assert message in str(caught.value)


def test_requests_are_texts_or_conversations():
    two = inputs.requests([COLOR, [user(COLOR)]], "q")
    assert two[0] == COLOR and str(two[1]) == COLOR and inputs.requests([], "q") == []
    assert inputs.single([user(COLOR)]) and not inputs.single([[user(COLOR)]])
