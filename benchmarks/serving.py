"""Serving under load: many clients, beside the same API served one request at a time.

    python benchmarks/serving.py
    python benchmarks/serving.py --clients 1,16 --seconds 30 --json serving.json
    python benchmarks/serving.py --soak 600

Two servers of one model, each in a process of its own, are asked in turn by the same clients: one
as `srum serve` is, one that lets a request in when the one before has its reply. Requests are
mixed: questions and captions, streamed, and drawings. While one server is asked the other is idle.
Then short answers are asked alone, and while others draw. A soak asks for so many seconds with
clients of which every tenth vanishes, and counts replies that are lost.
"""

import argparse
import asyncio
import base64
import collections
import dataclasses
import io
import itertools
import json
import pathlib
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
from PIL import Image

PROMPTS = ["a red circle above a blue square", "a green cross", "two blue squares"]
KINDS = ("answer", "caption", "drawing")
_TURNS = 4  # of each server and number of clients: what else the machine does meets both


@dataclasses.dataclass(frozen=True)
class Reply:
    """A request that was answered: its kind, when it ended, seconds to its first token or byte and
    to its last, tokens or images."""

    kind: str
    ended: float
    first: float
    last: float
    amount: int


# ------------------------------------------------------------------------------------- the servers


def serve(model: str, serial: bool) -> None:
    """A server in this process until its input ends; says its address."""
    from srum_jax import api
    from srum_jax.core import console
    from srum_jax.serving import running, warming
    from srum_jax.serving.app import application
    from srum_jax.serving.limits import Limits

    console.cache_compiled_programs()
    loaded = api.load(model)
    bounds = Limits(queue=1000, together=running.together(loaded))
    service = running.served(loaded, "model", bounds)
    app = application(service)
    bound = running.bound("127.0.0.1", 0)

    async def run() -> None:
        await warming.warm(service)
        server = running.Server(OneAtATime(app) if serial else app)
        print(f"http://127.0.0.1:{bound.getsockname()[1]}", flush=True)
        ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        ended.add_done_callback(lambda _: setattr(server, "should_exit", True))
        await server.serve(sockets=[bound])

    asyncio.run(run())


class OneAtATime:
    """An ASGI application that lets one request in at a time."""

    def __init__(self, app: Callable):
        self.app, self.free = app, asyncio.Lock()

    async def __call__(self, scope, receive, send):
        async with self.free:
            await self.app(scope, receive, send)


class Server:
    """A server in a process of its own."""

    def __init__(self, model: str, serial: bool):
        command = [sys.executable, __file__, "--model", model, "--serve"]
        command += ["serial"] if serial else ["batched"]
        how = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(command, **how)
        self.url = self.process.stdout.readline().strip()
        assert self.url, "the server did not start"

    def end(self) -> None:
        """Ends it."""
        self.process.stdin.close()
        self.process.wait(60)


# ------------------------------------------------------------------------------------- the clients


def picture() -> str:
    """A data: URL of squares."""
    made = np.zeros((32, 32, 3), np.uint8)
    made[4:14, 4:14], made[18:28, 18:28] = (220, 40, 40), (40, 80, 230)
    out = io.BytesIO()
    Image.fromarray(made).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


SHOWN = {"type": "image_url", "image_url": {"url": picture()}}


def chat(text: str) -> dict[str, Any]:
    """The body of a question about the picture."""
    content = [SHOWN, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}], "stream": True}


async def ask(http: httpx.AsyncClient, kind: str, number: int) -> Reply:
    """One request, and how long it took. Raises httpx.HTTPError where it is lost."""
    began = time.monotonic()
    if kind == "drawing":
        body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number}
        reply = await http.post("/v1/images/generations", json=body)
        reply.raise_for_status()
        amount, first = len(reply.json()["data"]), time.monotonic()
    else:
        said = {"answer": "is there a red square ?", "caption": "describe the image ."}[kind]
        amount, first = 0, 0.0
        async with http.stream("POST", "/v1/chat/completions", json=chat(said)) as reply:
            reply.raise_for_status()
            async for line in reply.aiter_lines():
                if '"content": "' in line and '"content": ""' not in line:
                    first, amount = first or time.monotonic(), amount + 1
    ended = time.monotonic()
    return Reply(kind, ended, (first or ended) - began, ended - began, amount)


async def load(
    url: str, clients: int, seconds: float, kinds: tuple[str, ...] = KINDS
) -> list[Reply]:
    """Replies that so many clients get, each asking again at once, kinds in turn."""
    limit, numbers = time.monotonic() + seconds, itertools.count()
    found: list[Reply] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)

    async def client(http: httpx.AsyncClient, first: int) -> None:
        for turn in itertools.count(first):
            if time.monotonic() >= limit:
                return
            reply = await ask(http, kinds[turn % len(kinds)], next(numbers))
            if reply.ended < limit:
                found.append(reply)

    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        await asyncio.gather(*(client(http, i) for i in range(clients)))
    return found


def measured(replies: list[Reply], seconds: float) -> dict[str, Any]:
    """Requests, tokens and images a second; milliseconds of each kind."""
    out: dict[str, Any] = {"requests_per_second": len(replies) / seconds}
    for name, kinds in (("tokens", ("answer", "caption")), ("images", ("drawing",))):
        out[f"{name}_per_second"] = sum(r.amount for r in replies if r.kind in kinds) / seconds
    for kind in KINDS:
        if own := [r for r in replies if r.kind == kind]:
            times = np.percentile([r.last for r in own], [50, 95, 99]) * 1e3
            out[kind] = {"n": len(own), **dict(zip(("p50", "p95", "p99"), times, strict=True))}
            out[kind]["first_p50"], out[kind]["first_p95"] = (
                np.percentile([r.first for r in own], [50, 95]) * 1e3
            )
    return out


async def beside(url: str, seconds: float) -> dict[str, Any]:
    """p95 of short answers in milliseconds, asked alone and while 16 others draw."""
    alone = await load(url, 1, seconds, ("answer",))
    drawing = asyncio.create_task(load(url, 16, seconds + 2, ("drawing",)))
    await asyncio.sleep(1)
    while_drawn = await load(url, 1, seconds, ("answer",))
    await drawing
    p95 = [float(np.percentile([r.last for r in x], 95) * 1e3) for x in (alone, while_drawn)]
    return {"alone_p95": p95[0], "while_drawn_p95": p95[1], "ratio": p95[1] / p95[0]}


async def soak(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """Counts of replies, of clients that vanished on purpose, and of what was lost."""
    counts: collections.Counter[str] = collections.Counter()
    limit, numbers = time.monotonic() + seconds, itertools.count()
    chance = random.Random(0)

    async def client(http: httpx.AsyncClient) -> None:
        while time.monotonic() < limit:
            number = next(numbers)
            asked = asyncio.ensure_future(ask(http, KINDS[number % len(KINDS)], number))
            if number % 10 == 0:
                await asyncio.sleep(chance.random() * 0.3)
                asked.cancel()
                counts["vanished"] += 1
                await asyncio.gather(asked, return_exceptions=True)
                continue
            try:
                await asked
                counts["answered"] += 1
            except httpx.HTTPError as e:
                counts[f"lost: {type(e).__name__}"] += 1

    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
        left = (await http.get("/metrics")).text
    running = [
        line for line in left.splitlines() if line.startswith(("srum_running", "srum_waiting"))
    ]
    return {**counts, "left": running}


# -------------------------------------------------------------------------------------- the figures


def versions() -> dict[str, str]:
    """What the figures are of."""
    import jax
    import starlette
    import uvicorn

    names = {"jax": jax, "starlette": starlette, "uvicorn": uvicorn}
    return {"python": platform.python_version()} | {k: v.__version__ for k, v in names.items()}


def table(results: dict[str, Any]) -> str:
    """For people."""
    head = (
        "| clients | server | requests/s | tokens/s | images/s | answer p50, p95 | first token p50 "
    )
    head += "| caption p50, p95 | drawing p50, p95, p99 | × one at a time |\n"
    rows = [head, "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"]
    for clients, both in results["load"].items():
        for name, x in both.items():
            answer, caption, drawing = (x.get(k, {}) for k in KINDS)

            def ms(of: dict, *keys: str) -> str:
                return ", ".join(f"{of[k]:.0f}" for k in keys) if of else "-"

            ratio = x["requests_per_second"] / both["serial"]["requests_per_second"]
            cells = [clients, name, f"{x['requests_per_second']:.1f}"]
            cells += [f"{x['tokens_per_second']:.0f}", f"{x['images_per_second']:.1f}"]
            cells += [ms(answer, "p50", "p95"), ms(answer, "first_p50")]
            cells += [ms(caption, "p50", "p95"), ms(drawing, "p50", "p95", "p99"), f"{ratio:.1f}"]
            rows.append(f"| {' | '.join(cells)} |\n")
    return "".join(rows)


def main() -> None:
    """Runs the command line."""
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("--model", default="shapes")
    made.add_argument("--clients", default="1,4,16,64")
    made.add_argument("--seconds", type=float, default=20.0, help="of each server and number")
    made.add_argument("--soak", type=float, default=0.0, help="seconds of a soak alone")
    made.add_argument("--json", type=pathlib.Path)
    made.add_argument("--serve", choices=("serial", "batched"), help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.serve:
        serve(options.model, options.serve == "serial")
        return
    results: dict[str, Any] = {"versions": versions(), "date": time.strftime("%Y-%m-%d")}
    if options.soak:
        server = Server(options.model, serial=False)
        results["soak"] = asyncio.run(soak(server.url, 16, options.soak))
        server.end()
        print(json.dumps(results, indent=1))
    else:
        servers = {name: Server(options.model, name == "serial") for name in ("serial", "batched")}
        results["load"] = {}
        for clients in options.clients.split(","):
            both = results["load"][clients] = {}
            replies: dict[str, list[Reply]] = {name: [] for name in servers}
            for _ in range(_TURNS):
                for name, server in servers.items():
                    part = options.seconds / _TURNS
                    replies[name] += asyncio.run(load(server.url, int(clients), part))
            for name, found in replies.items():
                both[name] = measured(found, options.seconds)
        results["beside"] = asyncio.run(beside(servers["batched"].url, options.seconds))
        for server in servers.values():
            server.end()
        print(table(results))
        print(json.dumps(results["beside"]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
