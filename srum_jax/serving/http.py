"""Between a socket and the endpoints: who may ask, bodies, streams, errors, a line of the log."""

import asyncio
import contextlib
import dataclasses
import hmac
import ipaddress
import json
import time
import urllib.parse
import uuid
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from absl import logging
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from srum_jax.serving.limits import Limits
from srum_jax.serving.metrics import Metrics
from srum_jax.serving.refusals import Refusal
from srum_jax.serving.service import refusal

_BODY_SECONDS = 120.0  # that a client may take to send a request
_WORDS = 2000  # characters of a text that the log has
_OPEN = ("/", "/health", "/page.js", "/page.css")  # without a key


class Json(Response):
    """A JSON body in ASCII: whatever a text holds can be sent."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Its bytes."""
        return json.dumps(content, allow_nan=False).encode("ascii")


class Events(Response):
    """Server-sent events, one already there; ends when they do or the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: AsyncIterator[bytes]):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.first, self.rest = first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        with contextlib.suppress(ClientDisconnect):
            await unless_gone(receive, self._sent(send))

    async def _sent(self, send: Send) -> None:
        async with contextlib.aclosing(self.rest) as rest:
            await send(_part(self.first))
            try:
                async for data in rest:
                    await send(_part(data))
            except Exception as e:
                told = _refused(e)
                await send(_part(f"data: {json.dumps(told.body())}\n\n".encode("ascii")))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _part(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def events(several: AsyncIterator[bytes], receive: Receive) -> Events:
    """A stream, begun: what is wrong before its first event has a status of its own."""
    try:
        first = await unless_gone(receive, anext(several))
    except BaseException:
        await several.aclose()
        raise
    return Events(first, several)


async def unless_gone(receive: Receive, work: Coroutine) -> Any:
    """What comes of `work`, which is let go of when the client goes away. Raises ClientDisconnect
    then."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Bodies:
    """Bytes of bodies that are in memory, of all requests together; most: at once."""

    def __init__(self, most: int):
        self.most, self.held = most, 0

    def take(self, count: int) -> None:
        """More of them. Raises Refusal 429 where that are too many."""
        if self.held + count > self.most:
            told = "too many large requests are read at once; try again later"
            raise Refusal(429, told, code="bodies_full", retry_after=1)
        self.held += count


async def body(request: Request, limits: Limits) -> bytes:
    """All of a request's body. Raises Refusal 413 where it is larger than it may be, 429 where all
    requests together are."""
    held, seen = request.scope["app"].bodies, request.scope["seen"]
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told[:20]) > limits.body:
        raise _too_large(limits)
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                held.take(len(part))
                seen.held += len(part)
                data += part
                if len(data) > limits.body:
                    raise _too_large(limits)
    except TimeoutError:
        raise Refusal(400, "the body did not come in time") from None
    return bytes(data)


def _too_large(limits: Limits) -> Refusal:
    told = f"a body may have {limits.body} bytes; send smaller or fewer pictures"
    return Refusal(413, told, code="body_too_large")


def _refused(error: BaseException) -> Refusal:
    """What a client is told; a fault of ours goes to the log, not to it."""
    if isinstance(error, HTTPException):
        said = {404: "there is no such address here", 405: "this address takes another method"}
        return Refusal(error.status_code, said.get(error.status_code, error.detail))
    if isinstance(error, asyncio.CancelledError):  # a server that is told to end at once
        return Refusal(503, "the server ends", code="ending")
    told = refusal(error)
    if isinstance(told, Refusal):
        return told
    name = uuid.uuid4().hex[:12]
    logging.error("fault %s", name, exc_info=error)
    return Refusal(500, f"a fault of the server; its log names it {name}")


@dataclasses.dataclass(frozen=True)
class Guard:
    """Around all addresses: key, host and origin are looked at, errors get OpenAI's form, and the
    log a line of JSON a request.

    key: that clients must give, "" for none · hosts: names of this server beside addresses and
    localhost; None: any · paths: those that are counted by their names · words: whether the log
    has what a request says, which endpoints `note` · bodies: of all requests.
    """

    app: ASGIApp
    metrics: Metrics
    key: str = dataclasses.field(repr=False)
    hosts: frozenset[str] | None
    paths: frozenset[str]
    words: bool
    bodies: Bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seen = _Seen(send)
        try:
            self._check(Request(scope))
            # With an application in its scope the router raises what it refuses.
            await self.app({**scope, "app": self, "seen": seen}, receive, seen)
        except ClientDisconnect:
            seen.status = seen.status or 499
        except (Exception, asyncio.CancelledError) as e:
            told = _refused(e)
            if seen.status:  # it had begun: nothing can be said any more
                return
            await Json(told.body(), told.status, told.headers())(scope, receive, seen)
        finally:
            self.bodies.held -= seen.held
            self._tell(scope, seen)

    def _check(self, request: Request) -> None:
        """Raises Refusal 401 without the key, 403 for what another site's page makes a browser
        send."""
        host = request.headers.get("host", "")
        if self.hosts is not None and not _here(host, self.hosts):
            raise Refusal(403, "this server does not answer to that name (--allow_host)")
        origin = request.headers.get("origin")
        if origin and urllib.parse.urlsplit(origin).netloc.lower() != host.lower():
            raise Refusal(403, "pages of other origins may not ask this server")
        if not self.key or request.url.path in _OPEN:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.key.encode())
        if scheme.lower() != "bearer" or not same:
            told = "the key is missing or wrong: Authorization: Bearer KEY"
            raise Refusal(401, told, code="invalid_api_key")

    def _tell(self, scope: Scope, seen: "_Seen") -> None:
        path = scope["path"] if scope["path"] in self.paths else "other"
        took = time.monotonic() - seen.began
        self.metrics.add("requests_total", path=path, status=str(seen.status))
        self.metrics.observe("request_seconds", took, path=path)
        line = {"method": scope["method"], "path": scope["path"][:100], "status": seen.status}
        line |= {"seconds": round(took, 4), "bytes": seen.bytes}
        if self.words and seen.words:
            line["words"] = seen.words
        if path not in ("/health", "/metrics"):
            logging.info("%s", json.dumps(line))


def note(request: Request, *words: str) -> None:
    """What a request says, for the log of a `Guard` that is to have it."""
    request.scope["seen"].words += [one[:_WORDS] for one in words]


def _here(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header names this machine by address, localhost or one of `names`."""
    name = urllib.parse.urlsplit(f"//{host}").hostname or ""
    if name == "localhost" or name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _Seen:
    """`send`, which notes what is sent."""

    def __init__(self, send: Send):
        self.send, self.status, self.bytes = send, 0, 0
        self.held = 0  # bytes of the request's body
        self.began, self.words = time.monotonic(), []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.bytes += len(message.get("body", b""))
        await self.send(message)
