"""What a model can read: which words, in which language, how long.

Lists of prompts (`prompts.py`) are read as somebody; whoever judges reads no lists and needs this
alone.
"""

import dataclasses

from srum_jax.core.errors import quoted
from srum_jax.data import languages
from srum_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class PromptReader:
    """What a model can read: prompts in a language of `data/languages.py` ("": any), in words that
    `tokenizer` has (None: any), of up to `window` tokens with the marks around them (0: any)."""

    language: str = ""
    tokenizer: Tokenizer | None = None
    window: int = 0

    def read(self, text: str) -> str:
        """`text` as the model reads it. Raises ValueError naming the word or the length."""
        said = languages.normalise(self.language, text, "prompt")
        self.check(said)
        return said

    def check(self, said: str) -> None:
        """Raises ValueError for what is in the language and has other words, or too many."""
        if self.tokenizer is None:
            return
        tokens = len(self.tokenizer.encode(said)) + 2
        if self.window and tokens > self.window:
            raise ValueError(
                f"text {quoted(said)} takes {tokens} tokens; the context window is {self.window}"
            )


ANYBODY = PromptReader()  # reads every text as it is
