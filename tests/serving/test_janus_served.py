"""A Janus-Pro that is served: what it gives is as alone, what it cannot do is refused by reason."""

import asyncio
import concurrent.futures

import numpy as np
import openai
import pytest
import tiny_janus
from serving_host import asking, pixels, png, serving

from srum_jax import api
from srum_jax.serving import warming
from srum_jax.serving.limits import Limits

PROMPT, QUESTION = "a red circle", "what is it ?"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_janus.save(tmp_path_factory.mktemp("janus"))
    return api.load(folder, precision="float32")


@pytest.fixture(scope="module")
def host(model):
    with serving(model, Limits(images=4, texts=4)) as made:
        yield made


@pytest.fixture(scope="module")
def client(host):
    return host.client()


def ask(client, *pictures, **how):
    return client.chat.completions.create(model="tiny", messages=asking(QUESTION, *pictures), **how)


def test_answers_and_streams_are_the_apis(client, model):
    how = {"temperature": 1.5, "seed": 7, "max_tokens": 6}
    want = model.answer(QUESTION, [pixels(png(1))], **how)
    found = ask(client, png(1), **how)
    assert found.choices[0].message.content == want.text
    parts = list(ask(client, png(1), stream=True, logprobs=True, top_logprobs=2, **how))
    said = "".join(one.choices[0].delta.content or "" for one in parts if one.choices)
    assert said == want.text


def same(image, want):
    """Of the same codes: what the decoder rounds moves a pixel by one part of 256 at most."""
    assert np.abs(image.astype(int) - want).max() <= 1


def test_images_are_the_apis(client, model):
    how = {"seed": 5, "guidance_scale": 2.0, "temperature": 0.7, "top_k": 9}
    found = client.images.generate(prompt=PROMPT, n=2, extra_body=how)
    want = model.generate(PROMPT, n=2, seed=5, guidance=2.0, temperature=0.7, top_k=9)
    for mine, other in zip(found.data, want, strict=True):
        same(pixels(mine.b64_json), other.image)


def test_a_stream_of_an_image_shows_its_way(client):
    how = {"seed": 5}
    events = client.images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body=how)
    *partial, last = list(events)
    assert [(e.step, e.steps) for e in partial] == [(4, 16), (8, 16), (12, 16)]
    side, whole = tiny_janus.CFG.image_side, pixels(last.b64_json)
    for event in partial:  # rows of the grid that are drawn, then grey
        image, rows = pixels(event.b64_json), side * event.step // event.steps
        assert (image[rows:] == 127).all() and (image[:rows] != 127).any()
    want = client.images.generate(prompt=PROMPT, extra_body=how).data[0].b64_json
    same(whole, pixels(want))


def test_company_changes_nothing(client, host):
    def text(i):
        how = dict(temperature=1.2 if i % 2 else 0.0, seed=i, max_tokens=2 + i)
        return ask(client, png(i), **how).choices[0].message.content

    def image(i):
        how = {"seed": i, "guidance_scale": 1.5 + i % 2}
        found = client.images.generate(prompt=PROMPT + " !" * i, extra_body=how)
        return pixels(found.data[0].b64_json)

    alone = [text(i) for i in range(3)], [image(i) for i in range(4)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        texts = [pool.submit(text, i) for i in range(3) for _ in range(2)]
        images = [pool.submit(image, i) for i in range(4)]
        assert [one.result() for one in texts[::2]] == alone[0]
        assert [one.result() for one in texts[1::2]] == alone[0]
        for one, want in zip(images, alone[1], strict=True):
            same(one.result(), want)
    filled = host.service.metrics.value
    assert filled("filled_rows_total", kind="image") > filled("steps_total", kind="image")


REFUSED = [
    ({"num_inference_steps": 9}, "num_inference_steps", "guidance_scale, temperature, top_k"),
    ({"cfg_interval": [0, 1]}, "cfg_interval", "does not draw by it"),
    ({"renorm": "global"}, "renorm", "does not draw by it"),
    ({"size": "16x16"}, "size", "Janus-Pro draws 8x8 pixels"),
    ({"think": True}, "think", "draws from words alone"),
]


@pytest.mark.parametrize("how, param, said", REFUSED)
def test_what_it_does_not_draw_by_is_refused(client, how, param, said):
    with pytest.raises(openai.BadRequestError, match=said) as e:
        client.images.generate(prompt=PROMPT, extra_body=how)
    assert e.value.param == param


def test_an_edit_is_refused_with_the_reason(client):
    why = "draws from words alone: .* it can neither edit nor go on from one"
    with pytest.raises(openai.BadRequestError, match=why):
        client.images.edit(image=("a.png", png(1)), prompt=PROMPT)
    with pytest.raises(openai.BadRequestError, match=why):
        ask(client, png(1), extra_body={"modalities": ["image"]})
    assert client.models.list().data[0].edits is False


@pytest.mark.slow
def test_programs_are_made_before_the_first_request(model, host):
    asyncio.run(warming.warm(host.service))
    before = len(model.programs.compiled)
    with host.http() as http:
        body = {"prompt": PROMPT, "seed": 1}
        assert http.post("/v1/images/generations", json=body).status_code == 200
    assert len(model.programs.compiled) == before
