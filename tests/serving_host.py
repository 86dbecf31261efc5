"""A server in a thread of the tests' process, and clients for it."""

import asyncio
import base64
import contextlib
import dataclasses
import io
import threading
from typing import Any

import httpx
import numpy as np
import openai
from PIL import Image

from srum_jax import api
from srum_jax.serving import running
from srum_jax.serving.app import application
from srum_jax.serving.limits import Limits
from srum_jax.serving.service import Service


@dataclasses.dataclass(frozen=True)
class Host:
    """Where it listens, and its service."""

    url: str
    service: Service
    server: running.Server
    loop: asyncio.AbstractEventLoop

    def client(self, **how: Any) -> openai.OpenAI:
        """OpenAI's client."""
        key = how.pop("api_key", "none")
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **how)

    def http(self) -> httpx.Client:
        """A plain client."""
        return httpx.Client(base_url=self.url, timeout=120)


@contextlib.contextmanager
def serving(model: api.Model, bounds: Limits | None = None, **how: Any):
    """A `Host` of a model; how: of `application`."""
    service = running.served(model, "tiny", bounds or Limits())
    bound = running.bound("127.0.0.1", 0)
    started = threading.Event()
    server = running.Server(application(service, **how), started.set)
    loop = asyncio.new_event_loop()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(server.serve(sockets=[bound]))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield Host(f"http://127.0.0.1:{bound.getsockname()[1]}", service, server, loop)
    finally:
        server.should_exit = True
        thread.join(30)
        service.engine.stop()
        bound.close()


def png(seed: int = 0, size: tuple[int, int] = (32, 32)) -> bytes:
    """A picture of coarse noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    made, out = Image.fromarray(noise).resize(size[::-1], Image.Resampling.NEAREST), io.BytesIO()
    made.save(out, "PNG")
    return out.getvalue()


def url(data: bytes, media: str = "image/png") -> str:
    """A data: URL."""
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def pixels(data: bytes | str) -> np.ndarray:
    """uint8 [H,W,3] of a picture's bytes, or of them in base64."""
    data = base64.b64decode(data) if isinstance(data, str) else data
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def asking(text: str, *pictures: bytes) -> list[dict[str, Any]]:
    """Messages of a question about pictures."""
    shown = [{"type": "image_url", "image_url": {"url": url(one)}} for one in pictures]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]
