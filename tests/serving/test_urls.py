"""Addresses in requests: opened of named hosts alone, whatever a redirect or a name server says."""

import dataclasses
import http.server
import socket
import threading
import time

import openai
import pytest
from serving_host import asking, png, serving
from test_api import write_model

from srum_jax import api, serve
from srum_jax.core.errors import BadInput
from srum_jax.serving import fetching
from srum_jax.serving.fetching import Fetcher, Host
from srum_jax.serving.limits import Limits
from srum_jax.worlds.shapes import examples

QUESTION = "what color is the circle ?"


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """Another host, good or bad as the path says."""

    protocol_version = "HTTP/1.1"
    asked: list[str] = []

    def do_GET(self):  # noqa: N802
        self.asked.append(self.path)
        body, head, status = png(1), {}, 200
        if self.path.startswith("/to?"):
            status, body, head = 302, b"", {"Location": self.path.partition("?")[2]}
        elif self.path == "/none":
            status = 404
        elif self.path == "/packed":
            head = {"Content-Encoding": "gzip"}
        elif self.path == "/text":
            body = b"no picture"
        self.send_response(status)
        for item in head.items():
            self.send_header(*item)
        if self.path == "/endless":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.pour(b"10000\r\n" + bytes(2**16) + b"\r\n", 0)
        elif self.path == "/slow":
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.pour(b"x", 0.05)
        else:
            said = 10**9 if self.path == "/large" else len(body)
            self.send_header("Content-Length", str(said))
            self.end_headers()
            self.wfile.write(body)

    def pour(self, data, pause):
        """Sends it again and again, until nobody listens."""
        try:
            for _ in range(1000):
                self.wfile.write(data)
                time.sleep(pause)
        except OSError:
            pass

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def elsewhere():
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made.server_address[1]
    made.shutdown()
    made.server_close()


@pytest.fixture(scope="module")
def host(tmp_path_factory, elsewhere):
    folder = tmp_path_factory.mktemp("model")
    model = api.load(write_model(folder, examples.write_tokenizer(folder / "words")))
    with serving(model, Limits(images=2, texts=2, pictures=4)) as made:
        names = (f"127.0.0.1:{elsewhere}", f"localhost:{elsewhere}", "named.example")
        hosts = tuple(map(Host.of, names))
        made.service.fetcher = Fetcher(hosts, most=100_000, seconds=60)
        yield made


@pytest.fixture
def asked():
    Elsewhere.asked.clear()
    return Elsewhere.asked


def ask(host, address, kind="image_url"):
    shown = {"type": kind, kind: {"url": address}}
    told = [{"role": "user", "content": [shown, {"type": "text", "text": QUESTION}]}]
    found = host.client().chat.completions.create(model="tiny", messages=told)
    return found.choices[0].message.content


def test_a_picture_of_a_named_host_is_read(host, elsewhere, asked):
    want = host.client().chat.completions.create(model="tiny", messages=asking(QUESTION, png(1)))
    want = want.choices[0].message.content
    address = f"http://127.0.0.1:{elsewhere}"
    assert ask(host, f"{address}/a.png?size=1") == want
    assert ask(host, f"{address}/to?/to?{address}/a.png") == want  # there, and there again
    assert asked == ["/a.png?size=1", f"/to?/to?{address}/a.png", f"/to?{address}/a.png", "/a.png"]


@pytest.mark.parametrize(
    "address",
    [
        "http://other.example/a.png",
        "http://127.0.0.1/a.png",
        "http://127.0.0.1:{other}/a.png",
        "https://127.0.0.1:{port}@evil.example/a.png",
        "http://user:word@127.0.0.1:{port}/a.png",
        "http://127.1:{port}/a.png",
        "http://2130706433:{port}/a.png",
        "http://127.0.0.1:{port}/a b.png",
        "http://127.0.0.1:{port}/a\r\nX: y",
        "http://[::1]:{port}/a.png",
        "http://[127.0.0.1:{port}/a.png",
        "http://127.0.0.1:port/a.png",
        "ftp://127.0.0.1:{port}/a.png",
        "file:///etc/hostname",
    ],
)
def test_other_addresses_are_not_opened(host, elsewhere, asked, address):
    with pytest.raises(openai.BadRequestError) as e:
        ask(host, address.replace("{port}", str(elsewhere)).replace("{other}", str(elsewhere - 1)))
    assert e.value.code == "invalid_image_url" and "image_url" in e.value.param
    assert asked == []


@pytest.mark.parametrize("to", ["http://evil.example/", "http://127.0.0.1:1/", "file:///x", "//["])
def test_a_redirect_is_a_new_address(host, elsewhere, asked, to):
    with pytest.raises(openai.APIStatusError) as e:
        ask(host, f"http://127.0.0.1:{elsewhere}/to?{to}")
    assert e.value.status_code in (400, 422) and len(asked) == 1


@pytest.mark.parametrize(
    "path, said",
    [
        ("/none", "404"),
        ("/packed", "packed"),
        ("/large", "more than 100000 bytes"),
        ("/endless", "more than 100000 bytes"),
        ("/to?/to?/to?/to?/a.png", "3 redirects"),
        ("/text", "image"),
    ],
)
def test_what_gives_no_picture_is_told(host, elsewhere, path, said):
    with pytest.raises(openai.UnprocessableEntityError, match=said) as e:
        ask(host, f"http://127.0.0.1:{elsewhere}{path}")
    assert "image_url" in e.value.param
    with host.http() as http:  # a score's picture likewise
        body = {"prompt": "a red circle", "image": f"http://127.0.0.1:{elsewhere}{path}"}
        found = http.post("/v1/score", json=body)
    assert found.status_code == 422 and found.json()["error"]["param"] == "image"


def test_what_comes_too_slowly_is_told(host, elsewhere, monkeypatch):
    hasty = dataclasses.replace(host.service.fetcher, seconds=0.3)
    monkeypatch.setattr(host.service, "fetcher", hasty)
    with pytest.raises(openai.UnprocessableEntityError, match="within 0.3 seconds"):
        ask(host, f"http://127.0.0.1:{elsewhere}/slow")


def test_a_name_that_leads_inside_is_not_opened(host, elsewhere, asked, monkeypatch):
    with pytest.raises(openai.UnprocessableEntityError, match="no public address"):
        ask(host, f"http://localhost:{elsewhere}/a.png")
    inside = [(socket.AF_INET, 1, 6, "", (one, 443)) for one in ("10.0.0.7", "169.254.169.254")]
    looked_up = socket.getaddrinfo

    def look_up(name, *args, **how):
        return inside if name == "named.example" else looked_up(name, *args, **how)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(openai.UnprocessableEntityError, match="no public address"):
        ask(host, "https://named.example/a.png", "video_url")
    assert asked == []


@pytest.mark.parametrize(
    "address, is_public",
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("::ffff:93.184.215.14", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("::ffff:127.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::a00:1", False),
    ],
)
def test_public_addresses(address, is_public):
    assert fetching.public(address) == is_public


def test_hosts_are_named_plainly():
    assert Host.of("Pictures.Example.") == Host("pictures.example")
    assert Host.of("[::1]:8080") == Host("::1", 8080)
    for wrong in ("https://a.example", "a.example/x", "*.example", "a b", "", "a:0", "a:99999"):
        with pytest.raises(BadInput, match="--allow_urls"):
            Host.of(wrong)


def test_is_off_by_default():
    assert Fetcher().hosts == () and serve.parser().parse_args([]).allow_urls == []


def test_the_command_refuses_what_is_no_host(capsys):
    assert serve.main(["--allow_urls", "https://a.example"]) == 2
    assert "--allow_urls: 'https://a.example' is no HOST" in capsys.readouterr().err
