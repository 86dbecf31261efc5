"""What a server refuses and survives: malformed bodies, too much, the wrong key, clients that go
away, its own end."""

import concurrent.futures
import contextlib
import http.client as http_client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from serving_host import asking, png, serving, url
from test_api import write_model

from srum_jax import api, serve
from srum_jax.serving import lanes, running
from srum_jax.serving.limits import Limits
from srum_jax.worlds.shapes import examples

PROMPT = "a red circle above a blue square"
LONG = {"prompt": PROMPT, "num_inference_steps": 250, "n": 2}
CHAT, DRAW = "/v1/chat/completions", "/v1/images/generations"
EDIT, SCORE = "/v1/images/edits", "/v1/score"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return api.load(write_model(folder, examples.write_tokenizer(folder / "words")))


@pytest.fixture(scope="module")
def host(model):
    bounds = Limits(images=2, texts=2, queue=3, body=200_000, pixels=64 * 64, steps=250)
    with serving(model, bounds) as made:
        yield made


@pytest.fixture
def http(host):
    with host.http() as made:
        yield made


def test_a_connection_outlives_the_pause_after_which_clients_give_theirs_up(host):
    # Where both end at once, a request meets a connection that is being closed.
    asked = http_client.HTTPConnection(host.url.removeprefix("http://"), timeout=30)
    with contextlib.closing(asked):
        for pause in (0, httpx.Limits().keepalive_expiry + 0.5, 0):
            time.sleep(pause)
            asked.request("GET", "/health")
            assert asked.getresponse().read()


def until(true, seconds=20.0):
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.02)


def idle(host):
    lanes = host.service.engine.lanes.values()
    return not host.service.active and not any(lane.busy for lane in lanes)


# ------------------------------------------------------------------------------------- malformed

WORDS = st.sampled_from(["", "red", PROMPT, "zebra", "\ud800", "\0", "x" * 3000, "tiny"])
NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.booleans())
PICTURES = st.sampled_from(
    [url(png()), url(b"x"), "data:,", "data:image/png;base64,%", "file:///x"]
)
VALUES = st.recursive(
    st.one_of(st.none(), NUMBERS, WORDS, PICTURES, st.text(max_size=9)),
    lambda some: st.one_of(
        st.lists(some, max_size=3),
        st.dictionaries(
            st.one_of(WORDS, st.sampled_from(["type", "url", "text"])), some, max_size=3
        ),
    ),
    max_leaves=6,
)
PART = st.fixed_dictionaries(
    {"type": st.one_of(st.sampled_from(["text", "image_url", "video_url"]), VALUES)},
    optional={
        "text": VALUES,
        "image_url": st.one_of(st.fixed_dictionaries({"url": st.one_of(PICTURES, VALUES)}), VALUES),
        "video_url": st.one_of(st.fixed_dictionaries({"url": PICTURES}), VALUES),
    },
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.one_of(st.sampled_from(["user", "system", "assistant"]), VALUES),
        "content": st.one_of(WORDS, VALUES, st.lists(PART, max_size=3)),
    }
)
FIELDS = st.sampled_from(
    [
        *("model", "n", "size", "seed", "num_inference_steps", "guidance_scale", "cfg_interval"),
        *("renorm", "shift", "negative_prompt", "stop", "temperature", "max_tokens", "logprobs"),
        *("top_logprobs", "modalities", "stream_options", "response_format", "think", "top_p"),
        *("chat_template_kwargs", "reasoning_effort", "partial_images", "frames", "image", "x"),
    ]
)
BODIES = st.builds(
    lambda first, more: {**more, **first},
    st.one_of(
        st.fixed_dictionaries({"messages": st.one_of(st.lists(MESSAGE, max_size=3), VALUES)}),
        st.fixed_dictionaries({"prompt": WORDS, "image": st.one_of(PICTURES, VALUES)}),
        st.fixed_dictionaries({"prompt": st.one_of(WORDS, VALUES)}),
    ),
    st.dictionaries(FIELDS, VALUES, max_size=3),
)
ALLOWED = {200, 400, 404, 413, 422, 429}


def asked(http, path, body, form):
    """Status and body of a malformed request, however it is sent."""
    if form:
        data = {k: v if isinstance(v, str) else json.dumps(v) for k, v in body.items()}
        data = {k.encode("utf-8", "replace"): v.encode("utf-8", "replace") for k, v in data.items()}
        parts = {k.decode(): (None, v) for k, v in data.items() if k != b"image"}
        return http.post(path, files={**parts, "image": ("a.png", png())})
    head = {"Content-Type": "application/json"}
    return http.post(path, content=json.dumps(body).encode("ascii"), headers=head)


def never_a_fault(http, count):
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from([CHAT, DRAW, EDIT, SCORE]), BODIES, st.booleans())
    def check(path, body, form):
        found = asked(http, path, body, form and path == EDIT)
        assert found.status_code in ALLOWED, (path, body, found.text)
        if found.status_code != 200:
            assert found.json()["error"]["message"]

    check()


def test_malformed_fields_are_refused(http):
    never_a_fault(http, 60)


@pytest.mark.slow
def test_malformed_fields_are_refused_twenty_thousand_times(http):
    never_a_fault(http, 20_000)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"a": NaN}',
        b"[" * 100_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "\xed\xa0\x80"}',
    ],
    ids=lambda b: repr(b[:12]),
)
def test_what_is_no_json_is_refused(http, body):
    found = http.post(DRAW, content=body, headers={"Content-Type": "application/json"})
    assert found.status_code == 400
    assert found.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "kind, body",
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"--b\r\nx"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\n--b--"),
        ("multipart/form-data; boundary=", b"--\r\n"),
        ("multipart/form-data; boundary=b; charset=none", b'--b\r\nContent-Disposition: form-data; '
         b'name="prompt"\r\n\r\nx\r\n--b--\r\n'),
        ("application/json", b"{}"),
    ],
)  # fmt: skip
def test_what_is_no_form_is_refused(http, kind, body):
    found = http.post(EDIT, content=body, headers={"Content-Type": kind})
    assert found.status_code == 400, found.text


def test_other_addresses_and_methods(http):
    assert http.get("/v1/none").status_code == 404
    assert http.get(CHAT).status_code == 405
    assert http.get("/v1/none").json()["error"]["type"] == "not_found_error"
    assert http.get("/health").json() == {"status": "ok", "model": "tiny"}


# -------------------------------------------------------------------------------------- too much


def header(width, height):
    """A PNG that says it is this large, and holds nothing."""
    parts = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT"
    chunks = (
        struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_large_pictures_and_bodies_are_refused(http):
    for side, said in ((50_000, "bomb"), (65, "65x65 pixels are more than 4096")):
        found = http.post(SCORE, json={"prompt": PROMPT, "image": url(header(side, side))})
        assert found.status_code == 422 and said in found.text
    found = http.post(SCORE, json={"prompt": "x" * 300_000, "image": ""})
    assert found.status_code == 413
    found = http.post(SCORE, content=(b"x" * 50_000 for _ in range(9)))  # its length is not told
    assert found.status_code in (400, 413)


def test_a_clip_of_too_many_pixels_is_refused(model, tmp_path):
    frames = [Image.new("RGB", (32, 32), (i, 0, 0)) for i in range(9)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    film = {"type": "video_url", "video_url": {"url": url((tmp_path / "a.gif").read_bytes())}}
    told = [{"role": "user", "content": [film, {"type": "text", "text": "red"}]}]
    with serving(model, Limits(clip=8 * 32 * 32)) as host, host.http() as http:
        found = http.post(CHAT, json={"messages": told})
    assert found.status_code == 422 and "8192 pixels in all" in found.text


def test_bodies_of_all_requests_together_are_bounded(model):
    with serving(model, Limits(body=100_000, bodies=150_000)) as host, host.http() as http:
        bodies = host.server.config.app.bodies
        name, port = host.url.removeprefix("http://").split(":")
        with socket.create_connection((name, int(port))) as slow:
            head = f"POST {SCORE} HTTP/1.1\r\nHost: {name}\r\nContent-Length: 90001\r\n"
            slow.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + b"x" * 90_000)
            until(lambda: bodies.held == 90_000)
            found = http.post(SCORE, json={"prompt": "x" * 80_000, "image": ""})
            assert found.status_code == 429 and found.json()["error"]["code"] == "bodies_full"
            assert found.headers["Retry-After"] == "1"
        until(lambda: bodies.held == 0)  # its client went away
        assert http.post(SCORE, json={"prompt": "x" * 80_000, "image": ""}).status_code == 400
        until(lambda: bodies.held == 0)  # the reply comes a moment before


@pytest.fixture
def slowly(monkeypatch):
    """A device whose denoising steps take a while: 250 of them more than a second."""
    step = lanes.Images.step

    def slow(self, group):
        time.sleep(0.005)
        step(self, group)

    monkeypatch.setattr(lanes.Images, "step", slow)


def test_a_full_queue_is_told_and_clients_come_again(host, http, slowly):
    client = openai.OpenAI(base_url=f"{host.url}/v1", api_key="none", max_retries=5)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        long = [pool.submit(http.post, DRAW, json=LONG)]
        until(lambda: host.service.engine.lanes["image"].works)
        long.append(pool.submit(http.post, DRAW, json=LONG))
        until(lambda: host.service.engine.waiting == 2)
        found = http.post(DRAW, json=LONG)
        assert found.status_code == 429 and int(found.headers["Retry-After"]) >= 1
        assert found.json()["error"]["code"] == "queue_full"
        later = pool.submit(client.images.generate, prompt=PROMPT, n=2)
        assert len(later.result(60).data) == 2
        assert [one.result().status_code for one in long] == [200, 200]


def test_no_request_is_larger_than_the_queue(model):
    for queue, drawn in ((3, 3), (64, Limits.drawn)):
        options = serve.parser().parse_args(["--queue", str(queue)])
        assert running.limits(options, model).drawn == drawn


def test_a_client_that_goes_away_costs_no_more(host, slowly):
    before = host.service.metrics.value("cancelled_total", kind="image")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(host.url + DRAW, json=LONG, timeout=0.3)
    stream = {**LONG, "stream": True, "partial_images": 16}
    with httpx.stream("POST", host.url + DRAW, json=stream, timeout=60) as reply:
        assert b"partial_image" in next(reply.iter_raw())
    until(lambda: idle(host))
    assert host.service.metrics.value("cancelled_total", kind="image") == before + 4


def test_a_request_that_takes_too_long_ends(model, slowly):
    with serving(model, Limits(seconds=0.2, images=2)) as host, host.http() as http:
        found = http.post(DRAW, json=LONG)
        assert found.status_code == 503 and found.json()["error"]["code"] == "timeout"
        until(lambda: idle(host))


# ------------------------------------------------------------------------------------ who may ask


def test_the_key_is_asked_for(model):
    with serving(model, key="open sesame") as host, host.http() as http:
        assert http.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics"):
            assert http.get(path).status_code == 401
        for given in ("Bearer wrong", "Basic open sesame", "Bearer", "Bearer öpen"):
            head = {"Authorization": given.encode("latin-1")}
            found = http.get("/v1/models", headers=head)
            assert found.status_code == 401
            assert found.json()["error"]["code"] == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            host.client().models.list()
        assert [m.id for m in host.client(api_key="open sesame").models.list()] == ["tiny"]


def test_a_variable_without_a_key_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("SRUM_TEST_KEY", " ")
    assert serve.main(["--api_key_env", "SRUM_TEST_KEY"]) == 2
    assert "variable SRUM_TEST_KEY is not set" in capsys.readouterr().err


def test_pages_of_other_sites_are_refused(model):
    with serving(model, hosts=["friend.example"]) as host, host.http() as http:
        assert http.get("/health", headers={"Host": "friend.example:80"}).status_code == 200
        assert http.get("/health", headers={"Host": "localhost:1"}).status_code == 200
        assert http.get("/health", headers={"Host": "evil.example"}).status_code == 403
        assert http.get("/health", headers={"Origin": "http://evil.example"}).status_code == 403
        assert http.get("/health", headers={"Origin": host.url}).status_code == 200
        assert "access-control-allow-origin" not in http.get("/health").headers


# ------------------------------------------------------------------------------------------- end


def test_metrics_are_prometheus(http):
    http.post(CHAT, json={"messages": asking("is there a red square ?", png()), "max_tokens": 2})
    text = http.get("/metrics").text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    values = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
    assert values['srum_requests_total{path="/v1/chat/completions",status="200"}'] >= 1
    assert values["srum_first_token_seconds_count"] >= 1
    assert values['srum_memory_bytes{of="process"}'] > 1e7
    assert "# TYPE srum_requests_total counter" in text
    assert "# TYPE srum_first_token_seconds histogram" in text


def test_the_log_holds_no_words_of_requests(http, caplog):
    def lines():
        return [r.getMessage() for r in caplog.records if r.getMessage().startswith("{")]

    with caplog.at_level("INFO"):
        http.post(DRAW, json={"prompt": "a red zebra"})
        http.post(DRAW, json={"prompt": PROMPT, "seed": 1})
        until(lambda: len(lines()) == 2)  # written when the reply is on its way
    assert [json.loads(one)["status"] for one in lines()] == [422, 200]
    said = [record.getMessage() for record in caplog.records]
    assert not any("zebra" in one or "circle" in one for one in said)


def test_the_log_has_words_where_asked(model, caplog):
    def said():
        lines = [r.getMessage() for r in caplog.records]
        return [json.loads(one).get("words") for one in lines if one.startswith("{")]

    with serving(model, words=True) as host, host.http() as http, caplog.at_level("INFO"):
        http.post(DRAW, json={"prompt": "a red zebra"})
        http.post(CHAT, json={"messages": asking("a blue\nzebra", png())})
        until(lambda: len(said()) == 2)
    assert said() == [["a red zebra"], ["a blue\nzebra"]]


def test_metrics_are_there_before_the_first_request(model):
    with serving(model) as host, host.http() as http:
        lines = http.get("/metrics").text.splitlines()
    for name in ("images_total", "tokens_total", 'waiting{kind="text"}', 'running{kind="image"}'):
        assert f"srum_{name} 0" in lines


def test_a_server_that_ends_takes_no_new_work(model, slowly):
    with serving(model) as host, host.http() as http:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(http.post, DRAW, json=LONG)
            until(lambda: host.service.active)
            host.service.draining = True
            found = http.post(DRAW, json={"prompt": PROMPT})
            assert found.status_code == 503 and found.json()["error"]["code"] == "draining"
            assert http.get("/health").status_code == 503
            assert running.result().status_code == 200


def test_who_waits_is_told_that_the_server_ends_at_once(model, slowly, caplog):
    with serving(model) as host, host.http() as http:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waits = pool.submit(http.post, DRAW, json=LONG)
            until(lambda: host.service.active)
            drain = running._Drain(host.service, host.server)
            for _ in range(2):  # signals
                host.loop.call_soon_threadsafe(drain.asked)
            found = waits.result(30)
    assert found.status_code == 503 and found.json()["error"]["code"] == "ending"
    assert "Exception in ASGI application" not in caplog.text


@pytest.mark.slow
def test_sigterm_finishes_what_runs(tmp_path):
    """The command itself: it says where it is, drains and ends well."""
    command = [sys.executable, "-m", "srum_jax.serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        assert said.startswith("serving shapes on http://127.0.0.1:")
        address = said.split()[-1]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            body = {"prompt": PROMPT, "n": 4, "num_inference_steps": 100}
            running = pool.submit(httpx.post, address + DRAW, json=body, timeout=120)
            drawn = re.compile(r'srum_running\{kind="image"\} [1-9]')
            until(lambda: drawn.search(httpx.get(address + "/metrics").text), 60)
            os.kill(process.pid, signal.SIGTERM)
            until(lambda: httpx.get(address + "/health").status_code == 503)
            assert len(running.result().json()["data"]) == 4
        assert process.wait(60) == 0
    with socket.socket() as free, pytest.raises(OSError):
        free.connect(("127.0.0.1", int(address.rpartition(":")[2])))
