"""Judges that suites ask about what models drew or changed: a loaded model, or a server.

Owns how a `JudgeRequest` is put to each and what its reply means. Decoding is greedy. A judge that
cannot reply says why in the status; nothing is made up in its place, and nothing raises for what a
server does or for words that a model lacks. What else is asked beside a request changes nothing.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from srum_jax.data import languages
from srum_jax.data.images import MIN_SHORT, picture
from srum_jax.data.schema import LayoutSizes
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.evals.suite import NO_LOGPROBS, JudgeReply, JudgeRequest
from srum_jax.generation import context
from srum_jax.generation.answer_scorer import AnswerScorer
from srum_jax.generation.text_generator import TextGenerator
from srum_jax.rewards.external import ChatReply, ChatRequest, Endpoint, ExternalText
from srum_jax.rewards.judge import OK, UNKNOWN_WORDS
from srum_jax.rewards.written import TOO_LONG

SELF = "self-judge"  # a model that judges itself; never beside published numbers
AT_ONCE = 64  # requests whose images lie in memory together
FEW_WORDS = 8  # tokens that a server writes where the first one is wanted, so that a word is whole
_PIXELS_A_TOKEN = 28 * 28  # of an image, as most judges read it (Qwen2-VL and its successors)
_LETTERS_A_TOKEN = 4


class SuiteJudge(Protocol):
    """Whoever is asked about images.

    name, revision: which judge, and its weights or version, as far as is known · decoding: how it
    replies and in which size it sees images, in JSON.
    """

    name: str
    revision: str
    decoding: Mapping[str, Any]

    def ask(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """One reply a request, in order."""
        ...


# ---------------------------------------------------------------------------------- a loaded model


@dataclasses.dataclass(frozen=True, eq=False)
class SelfJudge:
    """A loaded model as a judge, the examined one or another.

    language: the world's that the model was trained on, "" for any text (`data/languages.py`).
    It reads the system prompt, then the images, then the text. A request with words that it lacks
    gets UNKNOWN_WORDS, one that does not fit its context window TOO_LONG. Of `first_token` texts
    the first token counts: two texts that begin with the same one both have its probability; a text
    that a vocabulary of words lacks has 0. Raises BadInput where the model's numbers are not
    finite.
    """

    generator: TextGenerator
    scorer: AnswerScorer
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    layout: LayoutSizes
    language: str = ""
    name: str = SELF
    revision: str = ""

    @property
    def decoding(self) -> Mapping[str, Any]:
        """See `SuiteJudge`."""
        patch = self.layout.vit_patch
        side = patch * self.layout.vit_side
        short = min(MIN_SHORT, side)
        size = f"long side at most {side} pixels, short side at least {short}, multiples of {patch}"
        return {
            "words": "the likeliest tokens, up to the limit of each request",
            "first token": "softmax over the whole vocabulary",
            "images": size,
        }

    def ask(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """See `SuiteJudge`; AT_ONCE requests at a time."""
        replies: list[JudgeReply] = []
        for start in range(0, len(requests), AT_ONCE):
            some = [requests[i] for i in range(start, min(start + AT_ONCE, len(requests)))]
            replies += self._replies(some)
        return replies

    def _replies(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        read = [self._read(request) for request in requests]
        replies = {i: JudgeReply(status=one) for i, one in enumerate(read) if isinstance(one, str)}
        for places in _alike(requests, [i for i in range(len(requests)) if i not in replies]):
            some = [requests[i] for i in places]
            wanted = bool(some[0].first_token)
            found = self._first(some, places, read) if wanted else self._words(some, places, read)
            replies |= dict(zip(places, found, strict=True))
        return [replies[i] for i in range(len(requests))]

    def _words(self, requests, places, read) -> list[JudgeReply]:
        """What is written, of requests with the same limit."""
        contexts = [read[i].items for i in places]
        found = self.generator.generate(contexts, max_tokens=requests[0].max_tokens)
        return [JudgeReply(one.text) for one in found]

    def _first(self, requests, places, read) -> list[JudgeReply]:
        """The likeliest first tokens, and the probabilities of those that are wanted."""
        tokens = [read[i].first for i in places]
        distinct = [sorted({i for i in ids.values() if i is not None}) for ids in tokens]
        found = self.scorer.first_answers(
            [tuple(r.images) for r in requests],
            [[read[i].text] for i in places],
            [[ids] for ids in distinct],
            systems=[r.system for r in requests],
        )
        replies = []
        for wanted, ids, ((p, likeliest),) in zip(tokens, distinct, found, strict=True):
            of = dict(zip(ids, p.tolist(), strict=True))
            each = {text: of.get(i, 0.0) for text, i in wanted.items()}
            replies.append(JudgeReply(self.tokenizer.decode([likeliest]), p=each))
        return replies

    def _read(self, request: JudgeRequest) -> "_Read | str":
        """What the model reads of a request, or the status of what it cannot."""
        try:
            text = languages.normalise(self.language, request.text, "question")
            told = (self.tokenizer.text(request.system),) if request.system else ()
            words = self.tokenizer.text(text)
        except ValueError:
            return UNKNOWN_WORDS
        first = {one: self._first_id(one) for one in request.first_token}
        if first and set(first.values()) == {None}:
            return UNKNOWN_WORDS
        items = (*told, *(picture(one, self.layout) for one in request.images), words)
        more = 1 if first else request.max_tokens + 1
        how = dict(window=self.generator.window, max_text=self.generator.model.max_text)
        try:
            context.check_window(items, more, **how)
        except ValueError:
            return TOO_LONG
        return _Read(items, text, first)

    def _first_id(self, text: str) -> int | None:
        try:
            return next(iter(self.tokenizer.encode(text)), None)
        except ValueError:
            return None


@dataclasses.dataclass(frozen=True)
class _Read:
    """A request as a model reads it: items of a context, the question among them, and the first
    token of each wanted text, None for one that it has none for."""

    items: context.Context
    text: str
    first: Mapping[str, int | None]


def _alike(requests: Sequence[JudgeRequest], places: Iterable[int]) -> list[list[int]]:
    """Places of requests that go to the model together: of one limit and about as many images, so
    that none lengthens the rows of another kind."""
    groups: dict[tuple, list[int]] = {}
    for i in places:
        one = requests[i]
        limit = 0 if one.first_token else one.max_tokens
        groups.setdefault((limit, min(len(one.images), 3)), []).append(i)
    return [groups[key] for key in sorted(groups)]


# ---------------------------------------------------------------------------------------- a server


@dataclasses.dataclass(frozen=True, eq=False)
class ExternalJudge:
    """The server at `endpoint` as a judge; the limit of words is each request's own.

    revision: of the judge, in place of what the server says · tokenizer: of the served model, by
    which the first tokens of texts are known; without it a text is its own first token · sleep:
    takes seconds. Statuses are those of `rewards/external.py`, and NO_LOGPROBS where the server
    lists no first tokens; its words are then kept. Raises BadInput where the key is missing.
    """

    endpoint: Endpoint
    revision: str = ""
    tokenizer: Tokenizer | None = dataclasses.field(default=None, repr=False)
    sleep: Callable[[float], None] = dataclasses.field(default=time.sleep, repr=False)
    source: ExternalText = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        source = ExternalText.connect(self.endpoint, sleep=self.sleep)
        object.__setattr__(self, "source", source)

    @property
    def name(self) -> str:
        """The model's name at the server."""
        return self.endpoint.model

    @property
    def decoding(self) -> Mapping[str, Any]:
        """See `SuiteJudge`."""
        return {
            "temperature": 0.0,
            "seed": 0,
            "words": "up to the limit of each request",
            "first token": "the listed tokens of that spelling",
            "images": "in full, as PNG; the server resizes",
        }

    def ask(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """See `SuiteJudge`; at most AT_ONCE requests with their images in memory."""
        replies = []
        for start in range(0, len(requests), AT_ONCE):
            some = [requests[i] for i in range(start, min(start + AT_ONCE, len(requests)))]
            said = self.source.ask([_chat(one) for one in some])
            replies += [
                dataclasses.replace(self._reply(one, chat), served=chat.model)
                for one, chat in zip(some, said, strict=True)
            ]
        return replies

    def _reply(self, request: JudgeRequest, chat: ChatReply) -> JudgeReply:
        if chat.failure:
            return JudgeReply(status=chat.failure)
        if not request.first_token:
            return JudgeReply(chat.text)
        if chat.first is None:
            self.source.reasons.setdefault(NO_LOGPROBS, chat.unlisted)
            return JudgeReply(chat.text, NO_LOGPROBS)
        p = {text: chat.first.p(self._spelled(text)) for text in request.first_token}
        bound = chat.first.bound if None in p.values() else 0.0
        return JudgeReply(chat.first.text, OK, {text: x or 0.0 for text, x in p.items()}, bound)

    def _spelled(self, text: str) -> str:
        """The first token of a text."""
        if self.tokenizer is None:
            return text
        try:
            return self.tokenizer.decode(self.tokenizer.encode(text)[:1])
        except ValueError:
            return text


def _chat(request: JudgeRequest) -> ChatRequest:
    wanted = bool(request.first_token)
    return ChatRequest(
        tuple(request.images),
        request.text,
        system=request.system,
        max_tokens=FEW_WORDS if wanted else request.max_tokens,
        first_token=wanted,
    )


def said_first(words: str, texts: Sequence[str]) -> dict[str, float]:
    """1 for the text that the words begin with, as a whole word, 0 for the others.

    What may stand for probabilities where a judge has none (NO_LOGPROBS); whoever uses it says so.
    Of texts that differ by blanks alone the first one counts; none does where the words begin with
    another.
    """
    first = next(iter(words.split()), "").strip(".,!?;:\"'*`()[]")
    found = next((text for text in texts if text.strip() == first), None) if first else None
    return {text: float(text == found) for text in texts}


# ----------------------------------------------------------------------------------- what it costs


@dataclasses.dataclass(frozen=True)
class JudgeCost:
    """What asking costs: requests, images in them, and tokens about read and at most written."""

    requests: int
    images: int
    read: int
    written: int

    @property
    def tokens_estimate(self) -> int:
        """Tokens altogether."""
        return self.read + self.written

    def __str__(self) -> str:
        return (
            f"{self.requests:,} requests with {self.images:,} images: about {self.read:,} tokens "
            f"read and at most {self.written:,} written"
        )


def cost(requests: Sequence[JudgeRequest], times: int = 1, look_at: int = 200) -> JudgeCost:
    """What asking all of them costs, by so many that lie evenly among them; nothing is asked.

    times: how often all are asked, as once a model that is examined. A token is taken for four
    letters of a text, and for 28 by 28 pixels of an image; what a server counts differs.
    """
    count = len(requests)
    seen = [_sizes(requests[i]) for i in np.linspace(0, count - 1, min(count, look_at)).astype(int)]
    scale = times * count / max(1, len(seen))
    images, read, written = (
        round(sum(sizes) * scale) for sizes in zip(*seen, (0, 0, 0), strict=True)
    )
    return JudgeCost(times * count, images, read, written)


def _sizes(request: JudgeRequest) -> tuple[int, int, int]:
    """Images, tokens read and tokens written of one request."""
    pixels = sum(image.shape[0] * image.shape[1] for image in request.images)
    letters = len(request.system) + len(request.text)
    written = FEW_WORDS if request.first_token else request.max_tokens
    read = -(-pixels // _PIXELS_A_TOKEN) - (-letters // _LETTERS_A_TOKEN)
    return len(request.images), read, written
