"""OpenAI's own client asks the server: chats, streams, images, edits, scores, what is refused."""

import asyncio
import concurrent.futures
import math

import numpy as np
import openai
import pytest
from PIL import Image
from serving_host import asking, pixels, png, serving, url
from test_api import write_model

from srum_jax import api
from srum_jax.serving import warming
from srum_jax.serving.limits import Limits
from srum_jax.worlds.shapes import examples

QUESTION = "what color is the circle ?"
PROMPT = "a red circle above a blue square"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return api.load(write_model(folder, examples.write_tokenizer(folder / "words")))


@pytest.fixture(scope="module")
def host(model):
    with serving(model, Limits(images=4, texts=4)) as made:
        yield made


@pytest.fixture(scope="module")
def client(host):
    return host.client()


def ask(client, text=QUESTION, *pictures, **how):
    return client.chat.completions.create(model="tiny", messages=asking(text, *pictures), **how)


# ------------------------------------------------------------------------------------------ chat


def test_an_answer_is_the_apis(client, model):
    for how in ({}, {"temperature": 1.5, "seed": 7, "max_tokens": 4}):
        found = ask(client, QUESTION, png(1), png(2), **how)
        want = model.answer(QUESTION, [pixels(png(1)), pixels(png(2))], **how)
        (choice,) = found.choices
        assert (choice.message.content, choice.message.role) == (want.text, "assistant")
        assert choice.finish_reason == ("stop" if want.finished else "length")
        assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_a_stream_is_the_answer_in_pieces(client):
    whole = ask(client, QUESTION, png(1), max_tokens=5, logprobs=True, top_logprobs=2)
    parts = list(
        ask(
            client,
            *(QUESTION, png(1)),
            max_tokens=5,
            logprobs=True,
            top_logprobs=2,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *parts, counted = parts
    said = [one.choices[0] for one in parts]
    assert said[0].delta.role == "assistant" and said[-1].finish_reason == "length"
    assert "".join(one.delta.content or "" for one in said) == whole.choices[0].message.content
    assert len([one for one in said if one.delta.content]) > 1
    tokens = [token for one in said if one.logprobs for token in one.logprobs.content]
    for mine, other in zip(tokens, whole.choices[0].logprobs.content, strict=True):
        assert (mine.token, len(mine.top_logprobs)) == (other.token, 2)
        assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert mine.top_logprobs[0].logprob == pytest.approx(mine.logprob, abs=1e-6)
    assert counted.choices == [] and counted.usage == whole.usage


def test_an_answer_ends_before_a_stop_text(client):
    whole = ask(client, QUESTION, png(1), max_tokens=6).choices[0].message.content
    second = whole.split()[1]
    found = ask(client, QUESTION, png(1), max_tokens=6, stop=[second, "zebra"]).choices[0]
    assert found.message.content == whole[: whole.index(second)]
    assert found.finish_reason == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_has_no_more_tokens_than_asked_for(client, name):
    found = ask(client, QUESTION, png(1), **{name: 2})
    assert found.usage.completion_tokens == 2 and found.choices[0].finish_reason == "length"


def test_the_operator_bounds_answers_and_pictures(model):
    with serving(model, Limits(images=1, texts=1, tokens=3, pictures=2)) as host:
        found = ask(host.client(), QUESTION, png(1), max_tokens=50)
        assert found.usage.completion_tokens == 3
        with pytest.raises(BAD, match="at most 2") as e:
            ask(host.client(), QUESTION, png(1), png(2), png(3))
        assert (e.value.param, e.value.code) == ("messages", "too_many_images")
        images = [(f"{i}.png", png(i)) for i in range(3)]
        with pytest.raises(BAD, match="at most 2") as e:
            host.client().images.edit(image=images, prompt="red circle")
        assert e.value.param == "image"


def shown(data):
    return {"type": "image", "image": pixels(data)}


def test_messages_of_every_role_are_read(client, model):
    first, second = png(3), png(4)
    told = [
        {"role": "system", "content": "red blue"},
        *asking(QUESTION, first),
        {"role": "assistant", "content": "red"},
        *asking("is there a red square ?", second),
    ]
    found = client.chat.completions.create(model="tiny", messages=told)
    plain = [
        {"role": "system", "content": "red blue"},
        {"role": "user", "content": [shown(first), QUESTION]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [shown(second), "is there a red square ?"]},
    ]
    assert found.choices[0].message.content == model.answer(plain).text


def test_pictures_after_the_text_are_read_first(client):
    (turn,) = asking(QUESTION, png(1))
    turned = [{**turn, "content": turn["content"][::-1]}]
    found = client.chat.completions.create(model="tiny", messages=turned)
    assert (
        found.choices[0].message.content == ask(client, QUESTION, png(1)).choices[0].message.content
    )


def test_a_clip_is_its_frames(client, model, tmp_path):
    frames = [Image.fromarray(pixels(png(i))) for i in range(4)]
    path = tmp_path / "clip.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    film = {"type": "video_url", "video_url": {"url": url(path.read_bytes(), "image/gif")}}
    told = [{"role": "user", "content": [film, {"type": "text", "text": QUESTION}]}]
    found = client.chat.completions.create(model="tiny", messages=told, extra_body={"frames": 3})
    want = model.answer(QUESTION, video=path, frames=3)
    assert found.choices[0].message.content == want.text


def test_requests_of_benchmarks_are_read(client):
    """As lmms-eval and VLMEvalKit write them (2026): the text first, more tokens than the window
    has, details of pictures, fields that ask for nothing."""
    shown = {"type": "image_url", "image_url": {"url": url(png(1)), "detail": "low"}}
    words = {"type": "text", "text": QUESTION}
    want = ask(client, QUESTION, png(1), max_tokens=100).choices[0].message.content
    for content, more in (
        ([words, shown], {"max_tokens": 1024, "temperature": 0}),
        ([shown, words], {"max_tokens": 2048, "temperature": 0, "n": 1}),
        ([words, shown], {"max_completion_tokens": 1024, "response_format": {"type": "text"}}),
    ):
        told = [{"role": "user", "content": content}]
        found = client.chat.completions.create(model="tiny", messages=told, **more)
        assert found.choices[0].message.content.startswith(want)


# ---------------------------------------------------------------------------------------- images


def test_images_are_the_apis(client, model):
    how = {"seed": 5, "num_inference_steps": 2, "guidance_scale": 2.0}
    found = client.images.generate(prompt=PROMPT, n=2, size="32x16", extra_body=how)
    want = model.generate(PROMPT, n=2, seed=5, steps=2, guidance=2.0, size=(16, 32))
    for mine, other in zip(found.data, want, strict=True):
        assert mine.noise_seed == other.seed
        shown = pixels(mine.b64_json)
        assert shown.shape == (16, 32, 3)
        assert np.abs(shown.astype(int) - other.image).max() <= 1
    assert found.seed == 5
    same = client.images.generate(prompt=PROMPT, n=2, size="32x16", extra_body=how)
    assert [one.b64_json for one in same.data] == [one.b64_json for one in found.data]


@pytest.mark.parametrize(
    "told, meant",
    [
        ({"cfg_interval": [0.0, 0.3]}, {"guidance_interval": (0.0, 0.3)}),
        ({"renorm": "none"}, {"renorm": "none"}),
        ({"renorm_min": 1.0}, {"renorm_min": 1.0}),
        ({"shift": 1.0}, {"shift": 1.0}),
        ({"negative_prompt": "two blue squares"}, {"negative": "two blue squares"}),
    ],
    ids=lambda how: next(iter(how)),
)
def test_the_samplers_own_fields_are_the_apis(client, model, told, meant):
    def drawn(**more):
        found = client.images.generate(prompt=PROMPT, extra_body={"seed": 5, **more})
        return pixels(found.data[0].b64_json).astype(int)

    (want,) = model.generate(PROMPT, seed=5, **meant)
    assert np.abs(drawn(**told) - want.image).max() <= 1
    assert np.abs(drawn() - want.image).max() > 1  # it does something


def test_images_without_a_seed_differ_and_say_theirs(client):
    one, other = (client.images.generate(prompt=PROMPT) for _ in range(2))
    assert one.seed != other.seed
    again = client.images.generate(prompt=PROMPT, extra_body={"seed": one.seed})
    assert again.data[0].b64_json == one.data[0].b64_json


def test_a_stream_of_an_image_shows_its_way(client):
    how = {"seed": 5}
    events = list(
        client.images.generate(prompt=PROMPT, stream=True, partial_images=2, extra_body=how)
    )
    assert [e.type.rpartition(".")[2] for e in events] == 2 * ["partial_image"] + ["completed"]
    assert [e.partial_image_index for e in events[:2]] == [0, 1]
    whole = client.images.generate(prompt=PROMPT, extra_body=how)
    assert events[-1].b64_json == whole.data[0].b64_json
    assert all(pixels(e.b64_json).shape == (32, 32, 3) for e in events)


def test_edits_are_the_apis(client, model):
    images = [("a.png", png(1)), ("b.png", png(2))]
    found = client.images.edit(image=images, prompt="red circle", extra_body={"seed": 2})
    (want,) = model.edit([[pixels(png(1)), pixels(png(2))]], ["red circle"], seed=2)
    assert np.abs(pixels(found.data[0].b64_json).astype(int) - want.image).max() <= 1


def test_an_edit_is_held_to_its_picture_as_told(client, model):
    def edited(**more):
        found = client.images.edit(
            image=("a.png", png(1)), prompt="red circle", extra_body={"seed": 2, **more}
        )
        return pixels(found.data[0].b64_json).astype(int)

    (want,) = model.edit([pixels(png(1))], ["red circle"], seed=2, image_guidance=6.0)
    assert np.abs(edited(image_guidance_scale=6.0) - want.image).max() <= 1
    assert np.abs(edited() - want.image).max() > 1  # it does something


def test_an_edit_has_the_size_of_its_picture(client):
    with pytest.raises(BAD) as e:
        client.images.edit(image=("a.png", png(1)), prompt="red circle", size="16x16")
    assert e.value.param == "size"
    told = {"model": "tiny", "messages": asking("red circle", png(1))}
    with pytest.raises(BAD) as e:
        client.chat.completions.create(
            **told, extra_body={"modalities": ["image"], "size": "16x16"}
        )
    assert e.value.param == "size"


def test_a_chat_draws_where_asked(client, model):
    how = {"modalities": ["text", "image"], "seed": 4}
    told = [{"role": "user", "content": PROMPT}]
    found = client.chat.completions.create(model="tiny", messages=told, extra_body=how)
    data = found.choices[0].message.images[0]["image_url"]["url"].partition(",")[2]
    (want,) = model.generate(PROMPT, seed=4)
    assert np.abs(pixels(data).astype(int) - want.image).max() <= 1


def test_scores_are_the_apis(client, model):
    body = {"prompt": PROMPT, "image": url(png(1))}
    found = client.post("/score", body=body, cast_to=object)
    want = model.score(pixels(png(1)), PROMPT)
    assert found["status"] == want.status
    if not math.isnan(want.score):
        assert found["score"] == pytest.approx(want.score, abs=1e-5)
    assert [tuple(r["box"]) for r in found["regions"]] == [r.box for r in want.regions]


# -------------------------------------------------------------------------------------- together


def test_company_changes_nothing(client, host):
    """Many at once, of every kind and length, are to the letter and the pixel what each is alone;
    of pixels that rounding may move, at most one of 256 parts."""

    def text(i):
        how = dict(temperature=1.2 if i % 2 else 0.0, seed=i, max_tokens=2 + i)
        return ask(client, QUESTION, png(i), **how).choices[0].message.content

    def image(i):
        how = {"seed": i, "num_inference_steps": 2 + i % 3, "guidance_scale": 1.5 + i % 2}
        return pixels(client.images.generate(prompt=PROMPT, extra_body=how).data[0].b64_json)

    alone = [text(i) for i in range(5)], [image(i) for i in range(5)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        texts = [pool.submit(text, i) for i in range(5) for _ in range(2)]
        images = [pool.submit(image, i) for i in range(5)]
        assert [one.result() for one in texts[::2]] == alone[0]
        assert [one.result() for one in texts[1::2]] == alone[0]
        for one, want in zip(images, alone[1], strict=True):
            assert np.abs(one.result().astype(int) - want).max() <= 1
    filled = host.service.metrics.value
    assert filled("filled_rows_total", kind="image") > filled("steps_total", kind="image")
    assert filled("filled_rows_total", kind="text") > filled("steps_total", kind="text")


@pytest.mark.slow
def test_programs_are_made_before_the_first_request(model):
    with serving(model, Limits(images=2, texts=2)) as host:
        asyncio.run(warming.warm(host.service))
        made = list(model.programs.compiled)
        client = host.client()
        for n in (1, 2):
            client.images.generate(prompt=PROMPT, n=n)
        ask(client, QUESTION, png(1))
        assert model.programs.compiled == made


# --------------------------------------------------------------------------------------- refused

FIELD = "messages[0].content[0].image_url"
PART, WORDS = "messages[0].content[0]", {"type": "text", "text": "red"}
WIDE = {"type": "image_url", "image_url": {"url": url(png()), "max_pixels": 9}}
BAD, UNREADABLE = openai.BadRequestError, openai.UnprocessableEntityError


@pytest.mark.parametrize(
    "how, kind, param",
    [
        ({"temperature": -1.0}, BAD, "temperature"),
        ({"top_p": 0.5}, BAD, "top_p"),
        ({"extra_body": {"colour": 1}}, BAD, "colour"),
        ({"extra_body": {"max_tokens": "many"}}, BAD, "max_tokens"),
        ({"extra_body": {"guidance_scale": 2}}, BAD, "guidance_scale"),
        ({"extra_body": {"partial_images": 2, "modalities": ["image"]}}, BAD, "partial_images"),
        ({"model": "other"}, openai.NotFoundError, "model"),
        ({"messages": [{"role": "user", "content": [{**WORDS, "x": 1}]}]}, BAD, PART),
        ({"messages": [{"role": "user", "content": [WIDE, WORDS]}]}, BAD, f"{PART}.image_url"),
        ({"messages": []}, BAD, "messages"),
        ({"messages": [{"role": "user", "content": "zebra"}]}, UNREADABLE, "messages"),
        ({"messages": asking("red", b"none")}, UNREADABLE, FIELD),
        ({"messages": asking("red " * 300)}, BAD, "messages"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(client, how, kind, param):
    asked = {"model": "tiny", "messages": asking(QUESTION), **how}
    with pytest.raises(kind) as e:
        client.chat.completions.create(**asked)
    assert e.value.param == param and e.value.body["message"]


@pytest.mark.parametrize(
    "how, param",
    [
        ({"size": "33x32"}, "size"),
        ({"size": "32"}, "size"),
        ({"n": 9}, "n"),
        ({"response_format": "url"}, "response_format"),
        ({"quality": "hd"}, "quality"),
        ({"extra_body": {"guidance_scale": -1}}, "guidance_scale"),
        ({"extra_body": {"renorm": "most"}}, "renorm"),
        ({"extra_body": {"num_inference_steps": 10**6}}, "num_inference_steps"),
        ({"extra_body": {"cfg_interval": [0.9, 0.1]}}, "cfg_interval"),
    ],
)
def test_what_is_wrong_with_a_drawing_is_named(client, how, param):
    with pytest.raises(openai.BadRequestError) as e:
        client.images.generate(prompt=PROMPT, **how)
    assert e.value.param == param


def test_no_address_of_a_request_is_opened(client, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    for address in (f"file://{tmp_path}/a.png", str(tmp_path / "a.png"), "http://127.0.0.1/a.png"):
        shown = [
            {"type": "image_url", "image_url": {"url": address}},
            {"type": "text", "text": "red"},
        ]
        with pytest.raises(openai.BadRequestError, match="data:"):
            told = [{"role": "user", "content": shown}]
            client.chat.completions.create(model="tiny", messages=told)
