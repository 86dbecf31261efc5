"""A server under the load of another's tool, locust: questions, captions and drawings.

    python -m venv .venv-locust && .venv-locust/bin/pip install locust
    srum serve --warm --queue 1000 &
    .venv-locust/bin/locust -f benchmarks/locustfile.py --headless --host http://127.0.0.1:8000 \\
        --users 16 --spawn-rate 16 --run-time 60s

The requests of `benchmarks/serving.py`, each user asking again at once. locust prints requests a
second, failures and percentiles of each kind, and of the first token of streams.
"""

import base64
import itertools
import struct
import time
import zlib

from locust import HttpUser, events, task

PROMPTS = ("a red circle above a blue square", "a green cross", "two blue squares")
_SIDE = 32


def _png() -> bytes:
    """Two squares, 32x32."""
    rows = bytearray()
    for y in range(_SIDE):
        rows.append(0)
        for x in range(_SIDE):
            red, blue = 4 <= x < 14 and 4 <= y < 14, 18 <= x < 28 and 18 <= y < 28
            rows += bytes((220, 40, 40) if red else (40, 80, 230) if blue else (0, 0, 0))
    chunks = (
        b"IHDR" + struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 2, 0, 0, 0),
        b"IDAT" + zlib.compress(bytes(rows)),
        b"IEND",
    )
    said = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(said)


SHOWN = "data:image/png;base64," + base64.b64encode(_png()).decode()
_numbers = itertools.count()


class Client(HttpUser):
    """Asks for an answer, a caption and a drawing with the same chance."""

    @task
    def answer(self) -> None:
        """A word about a picture."""
        self._chat("answer", "is there a red square ?")

    @task
    def caption(self) -> None:
        """Some words about it."""
        self._chat("caption", "describe the image .")

    @task
    def drawing(self) -> None:
        """An image of the model's own size."""
        number = next(_numbers)
        body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number}
        self.client.post("/v1/images/generations", json=body, name="drawing")

    def _chat(self, name: str, text: str) -> None:
        picture = {"type": "image_url", "image_url": {"url": SHOWN}}
        content = [picture, {"type": "text", "text": text}]
        body = {"messages": [{"role": "user", "content": content}], "stream": True}
        began, first = time.monotonic(), None
        how = dict(json=body, stream=True, name=name, catch_response=True)
        with self.client.post("/v1/chat/completions", **how) as reply:
            ended = False
            for line in reply.iter_lines():
                if first is None and b'"content": "' in line and b'"content": ""' not in line:
                    first = time.monotonic() - began
                ended = ended or line == b"data: [DONE]"
            if reply.status_code == 200 and not ended:
                reply.failure("the stream has no end")
            reply.request_meta["response_time"] = (time.monotonic() - began) * 1000
        if first is not None:
            kind = dict(request_type="TTFT", name=f"{name}, first token")
            events.request.fire(
                **kind, response_time=first * 1000, response_length=0, exception=None, context={}
            )
