"""What Janus-Pro reads around what a user says, and rows of it padded on the left.

A prompt is `BOS <|User|>: PROMPT\\n\\n<|Assistant|>:` and the mark that begins an image; a question
stands behind a system text, with an image's tokens where it is shown. Words are joined before they
are cut into tokens: cut alone, "a" after ": " would be another token.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from srum_jax.core.errors import BadInput
from srum_jax.data.schema import Latent, Picture, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation.context import Context, bucket

USER, ASSISTANT = "<|User|>", "<|Assistant|>"
PAD, IMAGE = "<｜▁pad▁｜>", "<image_placeholder>"
MARKS = (
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<begin_of_image>", "<end_of_image>"),
    *(PAD, IMAGE, USER, ASSISTANT),
)
# What answers were trained behind (deepseek-ai/Janus, its conversation template).
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
ONLY_WORDS = (
    "Janus-Pro draws from words alone: its drawing side has never read a picture or a thought, so "
    "it can neither edit nor go on from one"
)

Ids = np.ndarray  # int32 [T]


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """What is read: ids int32 [T], and the patches [P,p·p·3] of the pictures at their places."""

    ids: Ids
    patches: tuple[np.ndarray, ...] = ()

    @property
    def length(self) -> int:
        """Its tokens."""
        return len(self.ids)


@dataclasses.dataclass(frozen=True, eq=False)
class Branches:
    """What is shown, and each question about it: branches that go on there."""

    shown: Row
    questions: tuple[Ids, ...]

    @property
    def length(self) -> int:
        """Tokens of all."""
        return self.shown.length + sum(map(len, self.questions))


@dataclasses.dataclass(frozen=True, eq=False)
class Template:
    """The template in the words of one model; patches: tokens of a picture."""

    tokenizer: Tokenizer = dataclasses.field(repr=False)
    patches: int

    def drawing(self, context: Context) -> Row:
        """A prompt. Raises BadInput where it is more than a text."""
        if len(context) > 1 or not all(isinstance(item, Text) for item in context):
            raise BadInput(ONLY_WORDS)
        prompt = self._said(context[0]) if context else ""
        said = f": {prompt}\n\n" if prompt else ":"
        t = self.tokenizer
        return Row(self._joined(t.bos, USER, said, ASSISTANT, ":", t.image_start))

    def asking(self, context: Context, system: str = SYSTEM) -> Row:
        """A request with pictures in it, up to where the answer begins."""
        return self._asking(context, system, close=True)

    def shared(self, pictures: Sequence[Picture], system: str = "") -> Row:
        """What all questions about the pictures begin with; `question` gives the rest."""
        return self._asking(tuple(pictures), system or SYSTEM, close=False)

    def question(self, words: str, shown: bool) -> Ids:
        """What follows `shared`; shown: whether that has pictures."""
        return self._joined(f"{'' if shown else ' '}{words.strip()}\n\n", ASSISTANT, ":")

    def _asking(self, context: Context, system: str, *, close: bool) -> Row:
        parts: list[str | int] = [self.tokenizer.bos, f"{system}\n\n", USER, ": "]
        shown = []
        for i, item in enumerate(context):
            if isinstance(item, Latent):
                raise BadInput("Janus-Pro answers about pictures, not about latents")
            parts += ["\n"] * (i > 0)
            if isinstance(item, Text):
                parts.append(self._said(item))
                continue
            shown.append(item.patches)
            mark = self.tokenizer.id(IMAGE)
            parts.append(self.tokenizer.image_start)
            parts += [mark] * self.patches
            parts.append(self.tokenizer.image_end)
        if close:
            parts += ["\n\n", ASSISTANT, ":"]
        elif context:
            parts.append("\n")
        else:
            parts[-1] = ":"  # the blank belongs to the word that follows
        return Row(self._joined(*parts), tuple(shown))

    def _said(self, text: Text) -> str:
        return self.tokenizer.decode(text.ids).strip()

    def _joined(self, *parts: str | int) -> Ids:
        """Ids of texts, those side by side as one, of marks by their names, and of ids."""
        ids: list[int] = []
        waiting = ""
        for part in (*parts, ""):
            if isinstance(part, str) and part not in (USER, ASSISTANT, ""):
                waiting += part
                continue
            if waiting:
                ids += self.tokenizer.encode(waiting)
                waiting = ""
            if part != "":
                ids.append(part if isinstance(part, int) else self.tokenizer.id(part))
        return np.array(ids, np.int32)


@dataclasses.dataclass(frozen=True)
class Prompts:
    """How the model reads a prompt before an image that it learns to draw: the template without
    the marks at its ends, which packing puts there, and padding where the words are dropped."""

    tokenizer: Tokenizer

    def items(self, prompt: str, dropped: bool = False) -> tuple[Text, ...]:
        """What stands before the image. Raises ValueError naming an unknown word."""
        said = Template(self.tokenizer, 0).drawing((self.tokenizer.text(prompt),)).ids[1:-1]
        return (Text(np.full_like(said, self.tokenizer.id(PAD)) if dropped else said),)


def padded(rows: Sequence[Row], count: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 [count,S], which are real bool [count,S]) of rows padded on the left to a bucket;
    rows of nothing, whose one token is `pad`, behind them."""
    longest = bucket(max(len(row.ids) for row in rows))
    ids = np.full((count, longest), pad, np.int32)
    real = np.zeros((count, longest), bool)
    real[:, -1] = True
    for i, row in enumerate(rows):
        ids[i, longest - len(row.ids) :] = row.ids
        real[i, longest - len(row.ids) :] = True
    return ids, real


def pictures(rows: Sequence[Row], count: int) -> np.ndarray | None:
    """Patches of all rows in order, float32 [N,P,p·p·3], filled up to as many as `count` rows like
    the fullest have; None of none."""
    every = [patches for row in rows for patches in row.patches]
    if not every:
        return None
    most = max(len(row.patches) for row in rows)
    out = np.zeros((count * most, *every[0].shape), np.float32)
    out[: len(every)] = every
    return out


def by_length(rows: Sequence[Row | Branches]) -> list[list[int]]:
    """Places of the rows that are padded to the same length: company then changes nothing."""
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(bucket(row.length), []).append(i)
    return [groups[length] for length in sorted(groups)]


def check_window(row: Row, more: int, *, window: int, max_text: int) -> None:
    """Raises ValueError if a row and `more` tokens after it exceed the window or the model's
    positions."""
    room = min(window, max_text)
    if len(row.ids) + more > room:
        raise ValueError(
            f"the request takes {len(row.ids)} tokens ({len(row.patches)} pictures) and up to "
            f"{more} more are to follow: the context window is {room}; use fewer images, a shorter "
            "text, or ask for less"
        )
