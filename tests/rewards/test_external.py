"""A judge over the network, with a server that misbehaves: every failure is a status."""

import base64
import collections
import email.utils
import io
import json
import logging as python_logging
import socket
import threading
import time

import numpy as np
import pytest
from judge_server import IMAGE, Server, reply
from PIL import Image

from srum_jax.core.errors import BadInput
from srum_jax.rewards import external, written
from srum_jax.rewards.boxes import regions
from srum_jax.rewards.boxes.regions import PromptedImage, Proposals
from srum_jax.rewards.external import Endpoint, ExternalText, FirstProcess
from srum_jax.rewards.judge import JudgeSettings
from srum_jax.rewards.written import QuestionRequest, WrittenAnswer, WrittenJudge


@pytest.fixture
def serve():
    servers = []

    def start(behave):
        servers.append(Server(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def lost(status):
    """What a judge gives that got no answer, one that the content filter kept excepted."""
    return WrittenAnswer("", failure=status, lost=status != external.FILTERED)


def test_what_is_sent(serve):
    server = serve(lambda handler, _: handler.give(reply()))
    answers = server.ask(environ={"MY_KEY": "sesame"}, key_env="MY_KEY", temperature=0.7)
    assert answers == [WrittenAnswer("0.5")] and server.counts == {"requests": 1}
    ((path, headers, body),) = server.http.asked
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer sesame"
    assert (body["model"], body["temperature"], body["seed"]) == ("m", 0.7, 0)
    assert body["max_tokens"] == 1024
    (message,) = body["messages"]
    picture, words = message["content"]
    kind, _, data = picture["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64" and words["text"] == "question 0"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) == IMAGE).all()


def test_answers_keep_their_order_and_few_are_asked_at_a_time(serve):
    lock, now, most = threading.Lock(), [0], [0]

    def behave(handler, number):
        question = handler.server.asked[number][2]["messages"][0]["content"][1]["text"]
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02 if question.endswith(("0", "2")) else 0.005)
        with lock:
            now[0] -= 1
        handler.give(reply(question))

    server = serve(behave)
    answers = server.ask(count=9, concurrency=3)
    assert [answer.text for answer in answers] == [f"question {n}" for n in range(9)]
    assert 1 < most[0] <= 3


def test_an_answer_cut_by_its_limit_is_not_finished(serve):
    server = serve(lambda handler, _: handler.give(reply("0.", "length")))
    assert server.ask() == [WrittenAnswer("0.", finished=False)]


@pytest.mark.parametrize("code", [429, 500, 503, 529])
def test_patience(serve, code):
    server = serve(
        lambda handler, n: handler.give(reply()) if n == 2 else handler.give(b"no", code)
    )
    assert server.ask(wait=0.5) == [WrittenAnswer("0.5")] and server.waits == [0.5, 1.0]
    status = external.RATE_LIMITED if code == 429 else external.SERVER_ERROR
    assert server.counts == {"requests": 3, f"requests {status}": 2}


def test_patience_ends(serve):
    server = serve(lambda handler, _: handler.give(b"", 429))
    answers = server.ask(attempts=4, wait=2.0, longest_wait=5.0)
    assert answers == [lost(external.RATE_LIMITED)]
    assert server.waits == [2, 4, 5] and len(server.http.asked) == 4


@pytest.mark.parametrize(
    "header,waits,asked",
    [
        ("7", [7], 2),
        ("0", [1], 2),
        ("61", [], 1),  # longer than we would wait
        ("9" * 400, [], 1),
        ("soon", [1], 2),
        ("-5", [1], 2),
        ("", [1], 2),
        ("٣", [1], 2),
        ("Fri, 01 Jan 1999 00:00:00 GMT", [1], 2),
        ("in two hours", [], 1),  # a date then
    ],
)
def test_retry_after(serve, header, waits, asked):
    if header == "in two hours":
        header = email.utils.formatdate(time.time() + 7200, usegmt=True)
    name = {"Retry_After": header.encode().decode("latin-1")}
    server = serve(lambda h, n: h.give(reply()) if n else h.give(b"", 429, **name))
    (answer,) = server.ask()
    assert server.waits == waits and len(server.http.asked) == asked
    assert answer.failure == ("" if asked == 2 else external.RATE_LIMITED)


@pytest.mark.parametrize("code", [301, 302, 307, 308, 400, 401, 402, 403, 404, 413])
def test_refusals_are_final_and_redirects_are_not_followed(serve, code):
    other = serve(lambda handler, _: handler.give(reply("1.0")))
    server = serve(lambda handler, _: handler.give(reply(), code, Location=other.url))
    of_the_question = code in (400, 413)
    status = external.REFUSED if of_the_question else external.DENIED
    assert server.ask() == [lost(status)]
    assert len(server.http.asked) == 1 and not other.http.asked


BAD_BODIES = [
    *(b"", b"null", b"[]", b"0.5", b'"0.5"', b"{", b"<html>", b'{"choices": []}', b"\xff\xfe{}"),
    *(b"[" * 100_000, b"9" * 10_000, json.dumps(reply()).encode().replace(b"0.5", b"\xff")),
    *(json.dumps(reply(text)).encode() for text in (None, 0.5, ["0.5"], {"text": "0.5"})),
    *(json.dumps(reply(why=why)).encode() for why in (None, "tool_calls", 1)),
    json.dumps({"choices": reply()["choices"] * 2}).encode(),
    json.dumps({"choices": {"0": reply()["choices"][0]}}).encode(),
    json.dumps({"choices": [{"message": {"content": "0.5"}}]}).encode(),
    json.dumps({"choices": [{"message": "0.5", "finish_reason": "stop"}]}).encode(),
    json.dumps({"error": {"message": "overloaded"}}).encode(),
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda body: ascii(body[:40]))
def test_replies_that_are_not_as_agreed(serve, body):
    server = serve(lambda handler, n: handler.give(body) if n < 2 else handler.give(reply()))
    assert server.ask(attempts=2) == [lost(external.BAD_REPLY)]
    assert len(server.http.asked) == 2
    assert server.ask(attempts=2) == [WrittenAnswer("0.5")]


def broken_chunks(handler, _):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'5\r\n{"cho\r\nzz\r\n')


@pytest.mark.parametrize(
    "behave,status",
    [
        (lambda h, _: h.give(reply(), length=5000), external.BAD_REPLY),  # cut off
        (lambda h, _: h.give(reply(), length=10), external.BAD_REPLY),
        (lambda h, _: h.give(reply(filler="x" * 6000)), external.BAD_REPLY),  # too large
        (lambda h, _: h.give(b"", 204), external.BAD_REPLY),
        (lambda h, _: h.wfile.write(b"hello\r\n\r\n"), external.BAD_REPLY),
        (
            lambda h, _: h.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500),
            external.BAD_REPLY,
        ),
        (broken_chunks, external.BAD_REPLY),
        (lambda h, _: h.give(reply(why="content_filter")), external.FILTERED),
        (lambda h, _: None, external.UNREACHABLE),  # hangs up
        (lambda h, _: h.give(b"", 408), external.TIMEOUT),
    ],
)
def test_broken_transport(serve, behave, status, monkeypatch):
    monkeypatch.setattr(external, "MAX_REPLY", 4000)
    assert serve(behave).ask(attempts=1) == [lost(status)]


def test_no_server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = ExternalText.connect(Endpoint(f"http://127.0.0.1:{port}", "m", attempts=2, wait=0.0))
    (answer,) = source.answer([QuestionRequest(IMAGE, "a")], temperature=0.0, params=None)
    assert answer == lost(external.UNREACHABLE)


def slowly(handler, _):
    handler.send_response(200)
    handler.send_header("Content-Length", "4000")
    handler.end_headers()
    for _ in range(60):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def slow_headers(handler, _):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(60):
        handler.wfile.write(b"a: b\r\n")
        time.sleep(0.05)


@pytest.mark.parametrize("behave", [lambda *_: time.sleep(3), slowly, slow_headers])
def test_time_outs_bound_the_whole_reply(serve, behave):
    server, begun = serve(behave), time.perf_counter()
    assert server.ask(timeout=0.2, attempts=2) == [lost(external.TIMEOUT)]
    assert time.perf_counter() - begun < 2 and server.counts["requests timeout"] == 2


def test_one_bad_answer_does_not_spoil_the_others(serve):
    def behave(handler, number):
        question = handler.server.asked[number][2]["messages"][0]["content"][1]["text"]
        handler.give(reply("0.5") if question != "question 1" else b"{")

    answers = serve(behave).ask(count=3)
    assert [answer.failure for answer in answers] == ["", external.BAD_REPLY, ""]


WHOLE_REPLIES = [
    b"\xef\xbb\xbf" + json.dumps(reply()).encode(),
    *(json.dumps(reply(why=why)).encode() for why in ("eos", "eos_token", "stop_sequence")),
    json.dumps(reply([{"type": "text", "text": "0."}, {"type": "text", "text": "5"}])).encode(),
    json.dumps(
        reply([{"type": "thinking", "thinking": "0.1"}, {"type": "text", "text": "0.5"}])
    ).encode(),
]


@pytest.mark.parametrize("body", WHOLE_REPLIES, ids=lambda body: ascii(body[:60]))
def test_whole_replies_of_other_servers(serve, body):
    assert serve(lambda handler, _: handler.give(body)).ask() == [WrittenAnswer("0.5")]


@pytest.mark.parametrize("ending", ["", "/", "/chat/completions", "/chat/completions/"])
def test_an_address_may_be_given_to_its_end(serve, ending):
    server = serve(lambda handler, _: handler.give(reply()))
    server.ask(base_url=server.url + ending)
    assert server.http.asked[0][0] == "/v1/chat/completions"


def test_a_field_that_a_server_refuses_is_renamed_or_left_out(serve, caplog):
    """The words of the refusals are OpenAI's and FastAPI's."""

    def behave(handler, number):
        body = handler.server.asked[number][2]
        if "max_tokens" in body:
            said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            said += "'max_completion_tokens' instead."
            return handler.give({"error": {"message": said, "type": "invalid"}}, 400)
        if "seed" in body:
            detail = [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]
            return handler.give({"detail": detail}, 422)
        if "temperature" in body:
            said = "Unsupported value: 'temperature' does not support 0 with this model."
            return handler.give({"error": {"message": said}}, 400)
        handler.give(reply())

    server = serve(behave)
    with caplog.at_level(python_logging.WARNING):
        assert server.ask(count=3, concurrency=1, attempts=1) == [WrittenAnswer("0.5")] * 3
    assert len(server.http.asked) == 6  # learnt once, three fields
    last = server.http.asked[-1][2]
    assert set(last) == {"model", "messages", "max_completion_tokens"}
    assert caplog.text.count("refuses 'max_tokens': it is sent as 'max_completion_tokens'") == 1
    assert caplog.text.count("refuses 'seed': it is left out") == 1


def test_a_field_that_no_name_helps_is_no_endless_loop(serve):
    everything = "max_tokens, max_completion_tokens, seed, temperature: no"
    server = serve(lambda handler, _: handler.give({"error": everything}, 400))
    assert server.ask() == [lost(external.REFUSED)]
    assert len(server.http.asked) == 3


def test_the_reason_is_told_once_in_the_servers_words(serve, caplog):
    body = {"error": {"message": "The model `m` does not exist\n\x1b[31m" + "x" * 9000}}
    server = serve(lambda handler, _: handler.give(body, 404))
    with caplog.at_level(python_logging.WARNING):
        server.ask(count=9)
    assert caplog.text.count("HTTP 404: The model `m` does not exist") == 1
    assert "\x1b" not in caplog.text and len(caplog.text) < 500
    assert server.counts == {"requests": 9, "requests denied": 9}


# -- the key and the settings ----------------------------------------------------------------------


def test_the_key_is_in_no_message(serve, caplog):
    secret = "sk-open-sesame"
    with caplog.at_level(python_logging.DEBUG):
        echo = f"{'x' * 190} {secret}"  # half of the key would fit into what is told
        server = serve(lambda handler, _: handler.give(echo.encode(), 401))
        server.ask(environ={"KEY": secret}, key_env="KEY")
        for bad in (f"{secret}\n", f"{secret} x", f"{secret}é", ""):
            with pytest.raises(BadInput, match="key_env|KEY holds no key") as error:
                server.ask(environ={"KEY": bad}, key_env="KEY")
            assert "sesame" not in str(error.value)
    assert len(server.http.asked) == 1 and "sk-" not in caplog.text
    with pytest.raises(BadInput, match="that key_env names is not set") as error:
        server.ask(key_env="SESAME")  # it may be the key itself
    assert "SESAME" not in str(error.value)
    with pytest.raises(BadInput, match="key_env must be the name of an") as error:
        server.ask(key_env=secret)
    assert "sesame" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            dict(base_url=url)
            for url in (
                *("", "localhost:8000", "ftp://a/v1", "file:///etc/passwd", "http://", "//a/v1"),
                *("http://me:secret@a/v1", "http://a/v1?key=secret", "http://a/v1#x", "http://a:x"),
                *("http://a:0", "http://a b/v1", "http://a/\r\nX: y", "http://é/v1", "http://[a"),
            )
        ),
        dict(model=""),
        dict(timeout=0.0),
        dict(timeout=float("nan")),
        dict(timeout=float("inf")),
        dict(attempts=0),
        dict(concurrency=0),
        dict(max_tokens=-1),
        dict(wait=-1.0),
        dict(wait=100.0),
        dict(longest_wait=float("inf")),
    ],
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(BadInput) as error:
        Endpoint(**(dict(base_url="https://a/v1", model="m") | wrong))
    assert "secret" not in str(error.value)


# -- as a judge ------------------------------------------------------------------------------------


def test_it_judges_by_the_shared_reader_and_asks_again(serve):
    def behave(handler, number):
        body = handler.server.asked[number][2]
        words = body["messages"][0]["content"][1]["text"]
        if "Region 1:" not in words:
            return handler.give(b"", 500)
        handler.give(reply("Region 7: 0.5" if body["temperature"] == 0 else "Region 1: -0.5"))

    image = np.full((32, 32, 3), 20, np.uint8)
    image[4:14, 4:14] = 200
    server, counts = serve(behave), collections.Counter()
    source = ExternalText.connect(
        Endpoint(server.url, "m", attempts=2), sleep=server.waits.append, counts=server.counts
    )
    judging = WrittenJudge(source, JudgeSettings(view="coordinates"), counts)
    images = [PromptedImage(image, "a horse", "x")]
    (judged,) = judging.judge(Proposals.of(regions.ComponentsProposer(), images))
    assert (judged.regions[0].score, judged.regions[0].status) == (-0.5, "ok")
    assert judged.image_status == external.SERVER_ERROR and np.isnan(judged.image_score)
    assert counts == {
        "questions": 4,
        "questions repeated": 1,
        "strangers": 1,
        written.UNANSWERED: 2,
    }
    assert server.counts == {"requests": 6, "requests server error": 4}


def test_processes_that_judge_together_get_the_answers_of_the_first(serve, monkeypatch):
    server = serve(lambda handler, n: handler.give(reply(f"0.{n}", "length" if n else "stop")))
    source = FirstProcess(ExternalText.connect(Endpoint(server.url, "m", concurrency=1)))
    requests = [QuestionRequest(IMAGE, "a")] * 2
    given = source.answer(requests, temperature=0.0, params=None)
    assert given == [WrittenAnswer("0.0"), WrittenAnswer("0.1", finished=False)]
    told = []
    monkeypatch.setattr(external.jax, "process_index", lambda: 1)
    monkeypatch.setattr(
        external.distributed, "from_first", lambda own, _: told.append(own) or '[{"text": "0.9"}]'
    )
    assert source.answer(requests, temperature=0.0, params=None) == [WrittenAnswer("0.9")]
    assert told == ["[]"] and len(server.http.asked) == 2


def test_statuses_do_not_clash():
    every = (*written.STATUSES, *external.STATUSES)
    assert len(set(every)) == len(every)
