"""Thoughts through the server: a field of their own, whole and in streams, before answers and
images; what a model cannot think is refused by that field."""

import numpy as np
import openai
import pytest
import thinking_model
from serving_host import asking, pixels, png, serving
from test_api import PROMPTS, QUESTIONS, write_model

from srum_jax import api
from srum_jax.serving.limits import Limits
from srum_jax.worlds.shapes import examples


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thinker")
    return api.load(write_model(folder, *thinking_model.words(folder / "words"), seed=9))


@pytest.fixture(scope="module")
def client(model):
    with serving(model, Limits(images=2, texts=2)) as host:
        yield host.client()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A client of a model that lacks the words of the requests to think."""
    folder = tmp_path_factory.mktemp("model")
    model = api.load(write_model(folder, examples.write_tokenizer(folder / "words")))
    with serving(model, Limits(images=2, texts=2)) as host:
        yield host.client()


def ask(client, **how):
    told = asking(QUESTIONS[0], png(1))
    return client.chat.completions.create(model="tiny", messages=told, **how)


ASKED = [
    {"think": True},
    {"reasoning_effort": "low"},
    {"chat_template_kwargs": {"enable_thinking": True}},
]


@pytest.mark.parametrize("how", ASKED, ids=lambda how: next(iter(how)))
def test_a_thought_is_a_field_of_its_own(client, model, how):
    want = model.answer(QUESTIONS[0], pixels(png(1)), think=True)
    assert want.thought
    (choice,) = ask(client, extra_body=how).choices
    assert choice.message.reasoning_content == want.thought
    assert choice.message.content == want.text
    assert not hasattr(ask(client).choices[0].message, "reasoning_content")


def test_a_thought_comes_in_pieces(client, model):
    want = model.answer(QUESTIONS[0], pixels(png(1)), think=True)
    deltas = [one.choices[0].delta for one in ask(client, stream=True, extra_body=ASKED[0])]
    thoughts = [one.reasoning_content for one in deltas if hasattr(one, "reasoning_content")]
    assert len(thoughts) > 1 and "".join(thoughts).strip() == want.thought
    assert "".join(one.content or "" for one in deltas) == want.text


def test_an_image_is_thought_of_before(client, model):
    (want,) = model.generate(PROMPTS[0], seed=1, think=True)
    how = {"prompt": PROMPTS[0], "extra_body": {"seed": 1, "think": True}}
    (found,) = client.images.generate(**how).data
    *_, last = client.images.generate(stream=True, **how)
    told = [{"role": "user", "content": PROMPTS[0]}]
    more = how["extra_body"] | {"modalities": ["image"]}
    said = client.chat.completions.create(model="tiny", messages=told, extra_body=more)
    message = said.choices[0].message
    url = message.images[0]["image_url"]["url"].partition(",")[2]
    for thought, picture in (
        (found.reasoning_content, found.b64_json),
        (last.reasoning_content, last.b64_json),
        (message.reasoning_content, url),
    ):
        assert thought.strip() == want.thought
        assert np.abs(pixels(picture).astype(int) - want.image).max() <= 1


def test_who_cannot_think_says_so(client, plain):
    assert client.models.list().data[0].thinks is True
    assert plain.models.list().data[0].thinks is False
    with pytest.raises(openai.UnprocessableEntityError, match="cannot think") as e:
        ask(plain, extra_body=ASKED[0])
    assert e.value.param == "think" and "tokenizer" not in e.value.message  # no path of ours
    with pytest.raises(openai.UnprocessableEntityError) as e:
        plain.images.generate(prompt=PROMPTS[0], stream=True, extra_body=ASKED[0])
    assert e.value.param == "think"
