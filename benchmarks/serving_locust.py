"""The load of `serving.py` by somebody else's tool: Locust's users ask a running `srum serve`.

    pip install locust && srum serve --port 8000
    locust -f benchmarks/serving_locust.py --host http://127.0.0.1:8000 --headless -u 16 -t 60s

A user asks a question, a caption and a drawing in equal parts, without a pause. Locust counts a
reply as lost that is not one of 200, or that takes longer than a minute.
"""

import base64
import io
import itertools

import numpy as np
from locust import FastHttpUser, task
from PIL import Image

PROMPTS = ["a red circle above a blue square", "a green cross", "two blue squares"]


def picture() -> str:
    """A data: URL of a red square."""
    made = np.zeros((32, 32, 3), np.uint8)
    made[4:14, 4:14] = 220, 40, 40
    out = io.BytesIO()
    Image.fromarray(made).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


SHOWN = {"type": "image_url", "image_url": {"url": picture()}}


class Visitor(FastHttpUser):
    """Somebody who goes on asking."""

    network_timeout = 60.0
    numbers = itertools.count()

    def _chat(self, text: str, name: str) -> None:
        content = [SHOWN, {"type": "text", "text": text}]
        body = {"messages": [{"role": "user", "content": content}]}
        self.client.post("/v1/chat/completions", json=body, name=name)

    @task
    def answer(self) -> None:
        """A word about a picture."""
        self._chat("is there a red square ?", "answer")

    @task
    def caption(self) -> None:
        """A sentence about it."""
        self._chat("describe the image .", "caption")

    @task
    def drawing(self) -> None:
        """A picture of its own seed."""
        number = next(self.numbers)
        body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number}
        self.client.post("/v1/images/generations", json=body, name="drawing")
