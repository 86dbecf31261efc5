"""A judge's server that behaves as told, on this machine, and a judge that asks it."""

import collections
import contextlib
import http.server
import json
import os
import threading
from unittest import mock

import numpy as np

from srum_jax.rewards.external import Endpoint, ExternalText
from srum_jax.rewards.written import QuestionRequest

IMAGE = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)


def reply(text="0.5", why="stop", **more):
    return {"choices": [{"message": {"content": text}, "finish_reason": why}], **more}


def listed(entries, own=None, raw=True, **more):
    """`logprobs` of a first token as OpenAI lists it: entries {token: logprob}, the first one's own
    unless told otherwise; raw: with its bytes."""

    def entry(token, logprob):
        given = {"bytes": list(token.encode())} if raw else {"bytes": None}
        return {"token": token, "logprob": logprob, **given}

    top = [entry(*one) for one in entries.items()]
    first = top[0] if own is None else entry(*own)
    return {"content": [{**first, "top_logprobs": top}], "refusal": None, **more}


def with_logprobs(logprobs, text="Yes", why="length", **more):
    """A reply with that field in its choice, whatever it is."""
    made = reply(text, why, **more)
    made["choices"][0]["logprobs"] = logprobs
    return made


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append((self.path, dict(self.headers), json.loads(body)))
        with contextlib.suppress(OSError):
            self.server.behave(self, number)
        self.close_connection = True

    def give(self, body, code=200, length=None, **headers):
        """Answers; `length`: what the header says in place of the true one."""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server:
    """A server that behaves as told, and a judge that asks it; `waits` are the pauses it made."""

    def __init__(self, behave):
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.block_on_close = False
        self.http.behave, self.http.asked, self.http.lock = behave, [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.waits, self.counts = [], collections.Counter()
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def ask(self, count=1, environ=None, temperature=0.0, **how):
        with mock.patch.dict(os.environ, environ or {}):
            source = ExternalText.connect(
                self.endpoint(**how), sleep=self.waits.append, counts=self.counts
            )
        requests = [QuestionRequest(IMAGE, f"question {n}", seed=n) for n in range(count)]
        return source.answer(requests, temperature=temperature, params=None)

    def endpoint(self, **how):
        return Endpoint(**(dict(base_url=self.url, model="m", timeout=5.0, attempts=3) | how))

    def close(self):
        self.http.shutdown()
        self.http.server_close()
