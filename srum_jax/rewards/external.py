"""A judge behind the chat-completions interface that OpenAI introduced and most servers speak.

Owns the way over the network: pictures and a question go out as one `POST {base_url}/chat/
completions`, a `ChatReply` comes back, or a `WrittenAnswer` for `written.py`. Nothing that the
other side does ends the run from here: what gives no text to read is a status, told once in the
server's words.
Redirects are never followed and no proxy is used, so that pictures and the key reach the named host
alone. The key comes from an environment variable and is neither stored in a config nor logged.
"""

import base64
import collections
import concurrent.futures
import contextlib
import dataclasses
import email.utils
import http.client
import json
import os
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from srum_jax.core import distributed
from srum_jax.core.constraints import Variable, WebAddress
from srum_jax.core.errors import BadInput
from srum_jax.core.param_tree import Params
from srum_jax.data.images import encode_png
from srum_jax.rewards import logprobs
from srum_jax.rewards.logprobs import FirstToken
from srum_jax.rewards.written import QuestionRequest, TextSource, WrittenAnswer

TIMEOUT = "timeout"  # no whole reply in time
RATE_LIMITED = "rate limited"  # HTTP 429
SERVER_ERROR = "server error"  # HTTP 5xx
DENIED = "denied"  # HTTP 401, 402, 404 and the like: of the key, the account or the address
REFUSED = "refused"  # other HTTP codes, redirects among them: of what was asked
FILTERED = "filtered"  # the server's content filter kept the answer
UNREACHABLE = "unreachable"  # no connection, or one that broke before a reply
BAD_REPLY = "bad reply"  # cut off, too large, not UTF-8, not JSON, fields missing
STATUSES = (
    *(TIMEOUT, RATE_LIMITED, SERVER_ERROR, DENIED, REFUSED, FILTERED, UNREACHABLE, BAD_REPLY),
)
FINAL = (DENIED, REFUSED, FILTERED)  # asking again at once gives the same

PATH = "/chat/completions"
_DENIALS = (401, 402, 403, 404, 405, 407, 421)
ENDS = ("stop", "eos", "eos_token", "stop_sequence", "end_turn")  # finish_reason of whole answers
CUTS = ("length", "max_tokens")
# How fields are sent that some servers refuse by name, and what is then tried in turn: other names
# (of "logprobs" smaller numbers of tokens); the last leaves it out.
FORMS = {
    "max_tokens": ("max_tokens", "max_completion_tokens", ""),
    "seed": ("seed", ""),
    "temperature": ("temperature", ""),
    "logprobs": (20, 5, 0),
}
MAX_REPLY = 4 * 2**20  # bytes
MAX_SAID = 2**16  # bytes of a refusal that are read
MOST_TOLD = 200  # characters of one that are told
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where the judge listens and how patiently it is asked.

    base_url: http or https, such as "http://localhost:8000/v1" · model: its name there · key_env:
    name of the environment variable with the key; empty: no key · timeout: seconds for a whole
    reply · attempts: requests for one answer at most · wait: seconds before the second, doubled
    before every further one, at most longest_wait; a server that asks for more than that is given
    up · concurrency: requests at a time · max_tokens: of an answer.
    """

    base_url: str
    model: str
    key_env: str = ""
    timeout: float = 120.0
    attempts: int = 4
    wait: float = 1.0
    longest_wait: float = 60.0
    concurrency: int = 8
    max_tokens: int = 1024

    @property
    def root(self) -> str:
        """The path that paths of the interface follow."""
        return urllib.parse.urlsplit(self.base_url).path.rstrip("/").removesuffix(PATH).rstrip("/")

    def __post_init__(self):
        if not self.base_url:
            raise BadInput('base_url is empty: give one such as "http://localhost:8000/v1"')
        for name, rule in (("base_url", WebAddress()), ("key_env", Variable())):
            if problem := rule.problem(getattr(self, name)):
                raise BadInput(f"{name} {problem}")
        if not self.model:
            raise BadInput("model is empty: name one that the server offers")
        for name in ("timeout", "attempts", "concurrency", "max_tokens"):
            if not 0 < getattr(self, name) < float("inf"):
                raise BadInput(f"{name} must be a positive number, got {getattr(self, name)}")
        if not 0 <= self.wait <= self.longest_wait < float("inf"):
            raise BadInput(
                f"wait {self.wait} and longest_wait {self.longest_wait}: from 0, the second not "
                "less than the first"
            )


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """What is asked: images, uint8 [H,W,3] each, in full size, and then the text.

    system: a system prompt, "" for none · seed: uint32, of words that are sampled · max_tokens: of
    the answer, None: the endpoint's · first_token: whether its likeliest first tokens are wanted.
    """

    images: tuple[np.ndarray, ...]
    text: str
    system: str = ""
    seed: int = 0
    max_tokens: int | None = None
    first_token: bool = False


@dataclasses.dataclass(frozen=True)
class ChatReply:
    """What came back: a text and whether it ended by itself.

    first: its first token, where that was wanted and the server lists it; else `unlisted` says why
    it is not there · failure, lost: as of a `WrittenAnswer` · model: as the server calls it.
    """

    text: str = ""
    finished: bool = True
    first: FirstToken | None = None
    unlisted: str = ""
    failure: str = ""
    lost: bool = False
    model: str = ""


class _Failed(Exception):
    """No answer: the status, why in words, and the seconds the server asks to wait, if any."""

    def __init__(self, status: str, reason: str = "", wait: float | None = None):
        super().__init__(status)
        self.status, self.reason, self.wait = status, reason or status, wait


@dataclasses.dataclass(frozen=True)
class ExternalText:
    """The service at `endpoint` as a `TextSource`; make it by `connect`.

    headers: of every request, with the key · sleep: takes seconds · counts: gets "requests" and
    "requests <status>" of those that failed added · reasons: gets the first words met for each of
    these statuses · fields: of a request, in the FORMS that the server takes; one that it names in
    a refusal gets its next form from then on.
    """

    endpoint: Endpoint
    headers: Mapping[str, str] = dataclasses.field(repr=False)
    sleep: Callable[[float], None] = time.sleep
    counts: collections.Counter = dataclasses.field(
        default_factory=collections.Counter, compare=False
    )
    reasons: dict[str, str] = dataclasses.field(default_factory=dict, compare=False)
    fields: dict[str, str | int] = dataclasses.field(
        default_factory=lambda: {name: forms[0] for name, forms in FORMS.items()}, compare=False
    )
    _lock: threading.Lock = dataclasses.field(
        default_factory=threading.Lock, init=False, repr=False, compare=False
    )

    @classmethod
    def connect(
        cls,
        endpoint: Endpoint,
        *,
        sleep: Callable[[float], None] = time.sleep,
        counts: collections.Counter | None = None,
        reasons: dict[str, str] | None = None,
    ) -> "ExternalText":
        """With the key that the environment holds. Raises BadInput for one that is missing or
        cannot be sent; nothing is sent yet."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        headers |= _key(endpoint)
        counts = collections.Counter() if counts is None else counts
        return cls(endpoint, headers, sleep, counts, {} if reasons is None else reasons)

    def answer(
        self, requests: Sequence[QuestionRequest], *, temperature: float, params: Params | None
    ) -> list[WrittenAnswer]:
        """See `TextSource`; `endpoint.concurrency` requests at a time. `params` play no part."""
        asked = []
        for one in requests:
            images = () if one.image is None else (one.image,)
            asked.append(ChatRequest(images, one.text, seed=one.seed))
        return [
            WrittenAnswer(reply.text, reply.finished, reply.failure, reply.lost)
            for reply in self.ask(asked, temperature=temperature)
        ]

    def ask(self, requests: Sequence[ChatRequest], *, temperature: float = 0.0) -> list[ChatReply]:
        """One reply a request, in order; `endpoint.concurrency` of them at a time."""
        with concurrent.futures.ThreadPoolExecutor(self.endpoint.concurrency) as pool:
            return list(pool.map(lambda request: self._reply(request, temperature), requests))

    def _reply(self, request: ChatRequest, temperature: float) -> ChatReply:
        at, attempt = self.endpoint, 0
        while True:
            fields = dict(self.fields)
            if not request.first_token:
                fields["logprobs"] = 0
            body = json.dumps(_body(at, request, temperature, fields)).encode()
            self._count("requests")
            try:
                return _read(_post(at, self.headers, body), request)
            except _Failed as failed:
                status, reason, asked = failed.status, failed.reason, failed.wait
            if status in (REFUSED, DENIED) and self._adapted(reason, fields):
                continue
            self._note(status, reason)
            attempt += 1
            pause = max(min(at.wait * 2.0 ** (attempt - 1), at.longest_wait), asked or 0.0)
            if status in FINAL or pause > at.longest_wait or attempt == at.attempts:
                return ChatReply(failure=status, lost=status != FILTERED)
            self.sleep(pause)

    def _adapted(self, reason: str, sent: Mapping[str, str | int]) -> bool:
        """Whether the refusal names a field of the request, which now has another form."""
        names = {f: form if isinstance(form, str) else "top_logprobs" for f, form in sent.items()}
        pattern = {f: name.replace("top_", "(top_)?") for f, name in names.items()}
        named = [f for f in sent if sent[f] and re.search(rf"\b{pattern[f]}\b", reason, re.I)]
        with self._lock:
            for field in named:
                form = FORMS[field][FORMS[field].index(sent[field]) + 1]
                if self.fields[field] == sent[field]:  # of several requests the first one says it
                    self.fields[field] = form
                    done = f"is sent as {form!r}" if form else "is left out"
                    logging.warning("the external judge refuses %r: it %s", names[field], done)
        return bool(named)

    def _note(self, status: str, reason: str) -> None:
        """Counts a failure; each reason is told once."""
        self._count(f"requests {status}")
        secret = self.headers.get("Authorization", "").removeprefix("Bearer ")
        reason = (reason.replace(secret, "***") if secret else reason)[:MOST_TOLD]
        with self._lock:
            new = status not in self.reasons
            self.reasons.setdefault(status, reason)
        if new:
            logging.warning("the external judge gives no answer: %s", reason)

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


@dataclasses.dataclass(frozen=True)
class FirstProcess:
    """`source` as all processes of a run share it: the first one asks, and all get its answers.

    For images that all processes judge together: a service answers no two of them alike, and what
    follows from a score must be the same everywhere. All must ask alike.
    """

    source: TextSource

    def answer(
        self, requests: Sequence[QuestionRequest], *, temperature: float, params: Params | None
    ) -> list[WrittenAnswer]:
        """See `TextSource`."""
        answers = []
        if jax.process_index() == 0:
            answers = self.source.answer(requests, temperature=temperature, params=params)
        given = json.dumps([dataclasses.asdict(one) for one in answers])
        return [WrittenAnswer(**one) for one in json.loads(distributed.from_first(given, "judge"))]


def reach(at: Endpoint, *, timeout: float = 10.0) -> None:
    """Asks the server for its list of models, to know before a run that it answers.

    One that has no such list answers too. Raises BadInput where there is no answer within `timeout`
    seconds, the key is missing, or the server does not take it.
    """
    headers, connection = _key(at), _connection(at, timeout)
    try:
        connection.request("GET", at.root + "/models", headers=headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as e:
        raise BadInput(f"the judge at {at.base_url} does not answer: {e}; is it running?") from e
    finally:
        connection.close()
    if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        which = f"the key in {at.key_env}" if at.key_env else "a request without a key"
        raise BadInput(f"the judge at {at.base_url} refuses {which} (HTTP {status})")


def _key(at: Endpoint) -> dict[str, str]:
    """The header with the key, where the endpoint names one."""
    if not at.key_env:
        return {}
    key = os.environ.get(at.key_env, "")
    if not key:
        raise BadInput("the environment variable that key_env names is not set, or empty")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise BadInput(f"the environment variable {at.key_env} holds no key: it has odd characters")
    url = urllib.parse.urlsplit(at.base_url)
    if url.scheme == "http" and url.hostname not in _LOCAL:
        logging.warning("the key in %s goes to %s unencrypted", at.key_env, url.hostname)
    return {"Authorization": f"Bearer {key}"}


def _body(
    at: Endpoint, request: ChatRequest, temperature: float, fields: Mapping[str, str | int]
) -> dict:
    """The JSON of a request; `fields`: the forms of those in FORMS."""
    content: list[dict] = []
    for image in request.images:
        data = base64.b64encode(encode_png(image)).decode()
        url = {"url": f"data:image/png;base64,{data}"}
        content.append({"type": "image_url", "image_url": url})
    content.append({"type": "text", "text": request.text})
    told = [{"role": "system", "content": request.system}] if request.system else []
    limit = at.max_tokens if request.max_tokens is None else request.max_tokens
    values = {"temperature": temperature, "seed": request.seed, "max_tokens": limit}
    listed = fields["logprobs"]
    return {
        "model": at.model,
        "messages": [*told, {"role": "user", "content": content}],
        **{name: values[field] for field, name in fields.items() if field in values and name},
        **({"logprobs": True, "top_logprobs": listed} if listed else {}),
    }


def _post(at: Endpoint, headers: Mapping[str, str], body: bytes) -> bytes:
    """The bytes of a reply with code 200. Raises _Failed for everything else."""
    connection = _connection(at, at.timeout)
    expired = threading.Event()
    lines: list[socket.socket] = []  # the connection forgets its own while a reply is being read

    def expire() -> None:  # a server may send a byte a second for ever
        expired.set()
        for line in lines:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(line, socket.SHUT_RDWR)

    clock = threading.Timer(at.timeout, expire)
    clock.daemon = True
    clock.start()
    try:
        connection.connect()
        lines.append(connection.sock)
        if expired.is_set():
            raise _Failed(TIMEOUT)
        with contextlib.suppress(BrokenPipeError):  # refused before all was sent: the reply says it
            connection.request("POST", at.root + PATH, body, dict(headers))
        with connection.getresponse() as reply:
            if reply.status != http.client.OK:
                raise _refusal(reply)
            data = reply.read(MAX_REPLY + 1)
            if len(data) > MAX_REPLY or reply.length:  # length: what is still to come
                raise _Failed(BAD_REPLY)
    except (OSError, http.client.HTTPException, ValueError, _Failed) as error:
        if expired.is_set() or isinstance(error, TimeoutError):
            raise _Failed(TIMEOUT) from None
        if isinstance(error, _Failed):
            raise
        early = isinstance(error, (OSError, http.client.RemoteDisconnected))
        raise _Failed(UNREACHABLE if early else BAD_REPLY, f"{UNREACHABLE}: {error}") from None
    finally:
        clock.cancel()
        connection.close()
    if expired.is_set():
        raise _Failed(TIMEOUT)
    return data


def _connection(at: Endpoint, timeout: float) -> http.client.HTTPConnection:
    url = urllib.parse.urlsplit(at.base_url)
    https = url.scheme == "https"
    connect = http.client.HTTPSConnection if https else http.client.HTTPConnection
    return connect(url.hostname, url.port, timeout=timeout)


def _refusal(reply: http.client.HTTPResponse) -> _Failed:
    """What a reply with another code than 200 means, with what it says itself."""
    code, wait = reply.status, _seconds(reply.getheader("Retry-After"))
    if code == http.client.TOO_MANY_REQUESTS:
        status = RATE_LIMITED
    elif code == http.client.REQUEST_TIMEOUT:
        status = TIMEOUT
    elif code >= 500:
        status = SERVER_ERROR
    elif code < 300:
        status = BAD_REPLY
    else:
        status = DENIED if code in _DENIALS or code < 400 else REFUSED
    patient = status in (RATE_LIMITED, SERVER_ERROR)
    return _Failed(status, f"HTTP {code}: {_said(reply)}", wait if patient else None)


def _said(reply: http.client.HTTPResponse) -> str:
    """What an error's body says, on one line."""
    text = reply.read(MAX_SAID).decode("utf-8", "replace")
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
        error = json.loads(text)
        error = error.get("error", error)
        text = error if isinstance(error, str) else error.get("message") or text
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    return " ".join(shown.split()) or reply.reason


def _seconds(header: str | None) -> float | None:
    """A Retry-After header, seconds or a date; None if there is none or it cannot be read."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _read(data: bytes, request: ChatRequest) -> ChatReply:
    """The answer in a reply. Raises _Failed for one that is not as agreed, or was filtered."""
    try:
        reply = json.loads(data.decode("utf-8-sig"))
        (choice,) = reply["choices"]
        text, why = _content(choice["message"]["content"]), choice["finish_reason"]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise _Failed(BAD_REPLY, "a reply without an answer in it") from None
    if why == "content_filter":
        raise _Failed(FILTERED)
    if text is None and why in CUTS:
        text = ""  # a thought took all that it might write
    if not isinstance(text, str) or why not in (*ENDS, *CUTS):
        raise _Failed(BAD_REPLY, f"a reply that ended by {str(why)[:40]!r}")
    first, unlisted, finished = None, "", why in ENDS
    if request.first_token:
        try:
            first = logprobs.first_token(choice, text, finished=finished)
        except ValueError as e:
            unlisted = str(e)
    called = reply.get("model")
    model = called if isinstance(called, str) else ""
    return ChatReply(text, finished, first, unlisted, model=model)


def _content(given: Any) -> Any:
    """The text of an answer that comes in parts; what a model thought is none of them."""
    if not isinstance(given, list):
        return given
    texts = [part["text"] for part in given if part["type"] in ("text", "output_text")]
    return "".join(texts) if texts else None
