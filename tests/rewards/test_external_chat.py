"""An external judge asked for more than words about one picture: what goes out, what comes."""

import base64
import io
import logging as python_logging
import os
from unittest import mock

import numpy as np
import pytest
from judge_server import IMAGE, Server, listed, reply, with_logprobs
from PIL import Image

from srum_jax.rewards import external
from srum_jax.rewards.external import ChatReply, ChatRequest, ExternalText

OTHER = np.full((6, 20, 3), 200, np.uint8)
ONE = ChatRequest((IMAGE,), "is it red?", first_token=True, max_tokens=8)


@pytest.fixture
def serve():
    servers = []

    def start(behave):
        servers.append(Server(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ask(server, *requests, environ=None, **how):
    with mock.patch.dict(os.environ, environ or {}):
        source = ExternalText.connect(
            server.endpoint(**how), sleep=server.waits.append, counts=server.counts
        )
    return source.ask(requests), source


def pixels(part):
    kind, _, data = part["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_images_come_before_the_text_and_the_system_prompt_before_both(serve):
    server = serve(lambda handler, _: handler.give(reply("4", model="m-2026-01-01")))
    request = ChatRequest((IMAGE, OTHER), "what changed?", "You judge.", seed=3, max_tokens=77)
    (given,), _ = ask(server, request)
    assert given == ChatReply("4", model="m-2026-01-01")
    ((_, _, body),) = server.http.asked
    system, user = body["messages"]
    assert system == {"role": "system", "content": "You judge."} and user["role"] == "user"
    first, second, words = user["content"]
    assert (pixels(first) == IMAGE).all() and (pixels(second) == OTHER).all()
    assert words == {"type": "text", "text": "what changed?"}
    assert (body["max_tokens"], body["seed"], body["temperature"]) == (77, 3, 0.0)
    assert "logprobs" not in body and "top_logprobs" not in body


def test_a_text_alone(serve):
    server = serve(lambda handler, _: handler.give(reply()))
    ask(server, ChatRequest((), "hello"))
    body = server.http.asked[0][2]
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert body["max_tokens"] == 1024  # the endpoint's


def test_first_tokens_are_asked_for_and_read(serve):
    server = serve(lambda h, _: h.give(with_logprobs(listed({"Yes": -0.1, "No": -3.0}))))
    (given,), _ = ask(server, ONE)
    body = server.http.asked[0][2]
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 8)
    assert given.text == "Yes" and given.first.p("No") == pytest.approx(np.exp(-3.0))
    assert given.unlisted == "" and not given.finished


@pytest.mark.parametrize("logprobs", ["absent", None, {"content": None}, {"content": [5]}])
def test_a_server_without_logprobs_still_gives_words(serve, logprobs):
    """vLLM gives null where it was not started for them; others pass over the field."""
    given = reply("Yes") if logprobs == "absent" else with_logprobs(logprobs, "Yes", "stop")
    server = serve(lambda handler, _: handler.give(given))
    (said,), _ = ask(server, ONE)
    assert said == ChatReply("Yes", unlisted="the reply has no logprobs")
    assert len(server.http.asked) == 1


# What real servers say, with its source.
REFUSALS = {
    # openai-python, issue 433
    "OpenAI": (400, {"error": {"message": "Unrecognized request argument supplied: logprobs"}}),
    "OpenAI's right": (
        403,
        {"error": {"message": "You are not allowed to request logprobs from this model"}},
    ),
    # groq-python, issue 25
    "Groq": (400, {"error": {"message": "`logprobs` is not supported with this model"}}),
    # GoogleCloudPlatform/generative-ai, issue 2947; mscraftsman/generative-ai, issue 135
    "Gemini": (400, {"error": {"message": "Logprobs is not enabled for models/gemini-2.5-pro"}}),
    # FastAPI's way of naming a field that its model does not have (vllm, issue 3657)
    "FastAPI": (422, {"detail": [{"loc": ["body", "top_logprobs"], "msg": "Extra inputs"}]}),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_server_that_refuses_logprobs_is_asked_without(serve, name, caplog):
    code, said = REFUSALS[name]

    def behave(handler, number):
        refused = "logprobs" in handler.server.asked[number][2]
        handler.give(said, code) if refused else handler.give(reply("Yes"))

    server = serve(behave)
    with caplog.at_level(python_logging.WARNING):
        given, _ = ask(server, ONE, ONE, concurrency=1, attempts=1)
    assert given == [ChatReply("Yes", unlisted="the reply has no logprobs")] * 2
    assert len(server.http.asked) == 4  # 20, 5, none; then none at once
    assert caplog.text.count("refuses 'top_logprobs': it is left out") == 1


@pytest.mark.parametrize(
    "said",
    [
        "Requested sample logprobs of 20, which is greater than max allowed: 5",  # vLLM
        "5 is less than 20 - 'top_logprobs'",
    ],
)
def test_a_server_with_a_lower_limit_is_asked_for_fewer(serve, said):
    def behave(handler, number):
        if handler.server.asked[number][2]["top_logprobs"] > 5:
            return handler.give({"object": "error", "message": said, "code": 400}, 400)
        handler.give(with_logprobs(listed({"Yes": -0.1})))

    server = serve(behave)
    given, _ = ask(server, ONE, ONE, concurrency=1)
    assert [one.first.text for one in given] == ["Yes", "Yes"]
    assert [body["top_logprobs"] for *_, body in server.http.asked] == [20, 5, 5]


def test_a_refusal_of_another_kind_is_not_taken_for_one_of_logprobs(serve):
    server = serve(lambda handler, _: handler.give({"error": "logprobs? no model m"}, 404))
    (given,), _ = ask(server, ChatRequest((), "a"))  # it did not ask for them
    assert given == ChatReply(failure=external.DENIED, lost=True) and len(server.http.asked) == 1


def test_a_thought_that_took_all_words_leaves_an_empty_answer(serve):
    """vLLM and SGLang with a parser of thoughts: content is null. Asking again gives the same."""
    server = serve(lambda handler, _: handler.give(reply(None, "length")))
    (given,), _ = ask(server, ChatRequest((), "a"))
    assert given == ChatReply("", finished=False) and len(server.http.asked) == 1


@pytest.mark.parametrize("model", [None, 5, ["m"], {}])
def test_a_name_that_is_none_is_left_out(serve, model):
    server = serve(lambda handler, _: handler.give(reply(model=model)))
    (given,), _ = ask(server, ChatRequest((), "a"))
    assert given == ChatReply("0.5")


def test_redirects_are_not_followed_and_the_key_is_in_no_message(serve, caplog):
    other = serve(lambda handler, _: handler.give(reply()))
    server = serve(lambda h, _: h.give(b"sk-sesame logprobs", 307, Location=other.url))
    with caplog.at_level(python_logging.DEBUG):
        (given,), source = ask(server, ONE, environ={"K": "sk-sesame"}, key_env="K")
    assert given.failure == external.DENIED and not other.http.asked
    assert all(
        headers["Authorization"] == "Bearer sk-sesame" for _, headers, _ in server.http.asked
    )
    assert "sesame" not in caplog.text + repr(source) + str(source.reasons)
