"""From tokens to the text that a client gets: whole characters, stop texts, the thought apart."""

import dataclasses
from collections.abc import Sequence

from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation.text_rows import Token
from srum_jax.generation.text_stream import UNFINISHED

OPENS, CLOSES = "<think>", "</think>"


@dataclasses.dataclass(frozen=True)
class Piece:
    """What came to a text: of the thought, of the answer, and the tokens that were read for it."""

    thought: str = ""
    text: str = ""
    tokens: tuple[Token, ...] = ()


class Writer:
    """A text in the making. stop: texts at the first of which it ends, without it · think: whether
    a thought comes first, up to </think> · bare: it begins with the first character that is no
    blank."""

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str], think: bool, *, bare: bool = False
    ):
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.thinking, self.bare = think, bare
        self.stopped = False
        self.count = 0
        self._ids: list[int] = []
        self._whole = ""  # of all tokens so far, without a character that is not whole
        self._sent = 0  # characters of it that were given
        self._fresh: list[Token] = []
        self._opened = self._answered = False

    def add(self, token: Token) -> Piece | None:
        """What a token makes certain, or None. After `stopped` nothing more is to be added."""
        self.count += 1
        self._ids.append(token.id)
        self._fresh.append(token)
        whole = self.tokenizer.decode(self._ids).rstrip(UNFINISHED)
        if len(whole) > len(self._whole) and whole.startswith(self._whole):
            self._whole = whole
        return self._given(last=False)

    def end(self) -> Piece | None:
        """What is left at the end."""
        if not self.stopped:
            self._whole = self.tokenizer.decode(self._ids)
        return self._given(last=True)

    def _given(self, last: bool) -> Piece | None:
        """What follows what was given; unless it is the last, without what may begin a mark."""
        thought = self._thought(last) if self.thinking else ""
        text = "" if self.thinking else self._answer(last)
        if not (thought or text):
            return None
        fresh, self._fresh = tuple(self._fresh), []
        return Piece(thought, text, fresh)

    def _thought(self, last: bool) -> str:
        fresh = self._past(OPENS, last) if not self._opened else self._whole[self._sent :]
        if fresh is None:
            return ""
        self._opened = True
        thought, mark, _ = fresh.partition(CLOSES)
        self.thinking = not mark
        if not mark and not last:
            thought = fresh[: len(fresh) - _begun(fresh, (CLOSES,))]
        self._sent += len(thought) + len(mark)
        return thought if self.thinking else thought.rstrip()

    def _past(self, mark: str, last: bool) -> str | None:
        """What follows a mark at the beginning, if it is there; None where that is not certain."""
        fresh = self._whole[self._sent :].lstrip()
        if mark.startswith(fresh) and not last:
            return None
        self._sent = len(self._whole) - len(fresh.removeprefix(mark))
        return fresh.removeprefix(mark)

    def _answer(self, last: bool) -> str:
        fresh = self._whole[self._sent :]
        if (self._opened or self.bare) and not self._answered:  # between thought and answer, say
            self._sent += len(fresh) - len(fresh.lstrip())
            fresh = fresh.lstrip()
        ends = [at for at in (fresh.find(text) for text in self.stop) if at >= 0]
        if ends:
            self.stopped = True
            self._whole = self._whole[: self._sent + min(ends)]
            fresh = fresh[: min(ends)]
        elif not last:
            fresh = fresh[: len(fresh) - _begun(fresh, self.stop)]
        self._sent += len(fresh)
        self._answered = self._answered or bool(fresh)
        return fresh


def _begun(text: str, marks: Sequence[str]) -> int:
    """Characters at the end of `text` that may be the beginning of a mark."""
    most = max((len(mark) - 1 for mark in marks), default=0)
    for count in range(min(most, len(text)), 0, -1):
        if any(mark.startswith(text[-count:]) for mark in marks):
            return count
    return 0
