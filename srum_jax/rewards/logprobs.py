"""The first token of a reply, as servers of the chat-completions interface list it.

Owns the forms in which `logprobs` come. Servers agree on `logprobs.content[i]` with `token`,
`logprob`, `bytes` and `top_logprobs`; some give the older `tokens`, `token_logprobs` and
`top_logprobs`. A token is known by its spelling alone, in bytes, and a leading blank belongs to it.
What cannot be read as probabilities of an answer is refused in words and never guessed at.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # of a message, by server
_BLANKS = ("\u2581".encode(), "\u0120".encode())  # a blank as SentencePiece and byte-level BPE do
_TOKEN_ID = b"token_id:"  # vLLM with --return-tokens-as-token-ids
_OVER = 0.01  # by which rounding may bring listed probabilities above 1


@dataclasses.dataclass(frozen=True)
class FirstToken:
    """The likeliest first tokens of a reply: {spelling: probability}, the likeliest first.

    bound: what the probability of a token that is not listed is at most, in [0, 1].
    """

    listed: Mapping[bytes, float]
    bound: float

    @property
    def text(self) -> str:
        """The likeliest one."""
        return next(iter(self.listed)).decode("utf-8", "replace")

    def p(self, token: str) -> float | None:
        """The probability of a token spelled so, to the byte; None where it is not listed."""
        return self.listed.get(token.encode("utf-8", "replace"))


def first_token(choice: Mapping[str, Any], text: str, *, finished: bool) -> FirstToken:
    """What a reply's choice lists of its first token.

    text: the words of its message · finished: whether they ended by themselves. Tokens of one
    spelling count together. Raises ValueError that says why there is nothing to read: no list, one
    in a form that is not known, numbers that are no log-probabilities, token ids in place of texts,
    or the first token of a thought in place of the answer's.
    """
    own, top = _at_first(choice.get("logprobs"))
    listed: dict[bytes, float] = {}
    for spelling, p in _probabilities(top):
        listed[spelling] = listed.get(spelling, 0.0) + p
    for spelling, p in _probabilities(own):
        listed.setdefault(spelling, p)
    total = sum(listed.values())
    if not 0 < total <= 1 + _OVER:
        raise ValueError(f"the listed probabilities add up to {total:.3g}")
    first = next(spelling for spelling, _ in _probabilities(own))
    if _of_a_thought(choice.get("message"), text, first, finished):
        raise ValueError("the listed token begins a thought, not the answer")
    ranked = dict(sorted(listed.items(), key=lambda one: -one[1]))
    bound = max(0.0, min(*ranked.values(), 1.0 - total, 1.0))
    return FirstToken({one: min(p, 1.0) for one, p in ranked.items()}, bound)


def _at_first(given: Any) -> tuple[list[tuple], list[tuple]]:
    """The first token and the likeliest in its place, each as (text, bytes or None, logprob)."""
    try:
        if given.get("content") is not None:
            one = given["content"][0]
            return [_entry(one)], [_entry(other) for other in one.get("top_logprobs") or ()]
        own = [(given["tokens"][0], None, given["token_logprobs"][0])]
        top = (given.get("top_logprobs") or [None])[0] or {}
        return own, [(text, None, logprob) for text, logprob in top.items()]
    except (AttributeError, LookupError, TypeError):
        raise ValueError("the reply has no logprobs") from None


def _entry(one: Mapping[str, Any]) -> tuple:
    return one["token"], one.get("bytes"), one["logprob"]


def _probabilities(entries: Iterable[tuple]) -> Iterator[tuple[bytes, float]]:
    """(spelling, probability) of listed tokens. Raises ValueError for what is none."""
    for text, raw, logprob in entries:
        if logprob is None:
            logprob = -math.inf  # JSON has no other way to write it
        number = isinstance(logprob, (int, float)) and not isinstance(logprob, bool)
        if not (number and logprob < 1):
            raise ValueError("the reply lists numbers that are no log-probability")
        spelling = _spelling(text, raw)
        if spelling.startswith(_TOKEN_ID):
            raise ValueError("the server lists token ids in place of texts")
        yield spelling, math.exp(max(logprob, -1e4))


def _spelling(text: Any, raw: Any) -> bytes:
    """A token's bytes; `raw` is what the server gives as such, if anything."""
    try:
        spelling = bytes(raw or ()) if isinstance(raw, list) else b""
    except (TypeError, ValueError):
        spelling = b""
    if not spelling:
        if not isinstance(text, str):
            raise ValueError("the reply lists what is no token")
        spelling = text.encode("utf-8", "replace")
    for blank in _BLANKS:
        if spelling.startswith(blank):
            return b" " + spelling.removeprefix(blank)
    return spelling


def _of_a_thought(message: Any, text: str, first: bytes, finished: bool) -> bool:
    """Whether the first token is one of what a model thinks before it answers.

    Some servers list those too, or cut a thought at the limit and give no answer at all.
    """
    token = first.decode("utf-8", "replace").strip()
    if token.startswith("<think"):
        return True
    if isinstance(message, Mapping) and any(message.get(name) for name in _THOUGHTS):
        return not (token and text.lstrip().startswith(token))
    return not text and not finished and token.isprintable() and bool(token.strip("\ufffd"))
