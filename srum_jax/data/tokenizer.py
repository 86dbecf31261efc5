"""Words to ids and back, from a Hugging Face `tokenizer.json` (word level or byte-pair).

Owns reading that file and the four marks that a packed sample needs: begin and end of text
(`<|im_start|>`, `<|im_end|>`), begin and end of an image (`<|vision_start|>`, `<|vision_end|>`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tokenizers

MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")


class Tokenizer:
    """A read-only tokenizer.  `bos`, `eos`, `image_start`, `image_end` are the marks' ids."""

    def __init__(self, inner: tokenizers.Tokenizer, source: str):
        self._inner = inner
        self._source = source
        self.bos, self.eos, self.image_start, self.image_end = (self.id(m) for m in MARKS)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Reads `folder/tokenizer.json`.

        FileNotFoundError without that file, ValueError if it cannot be read or lacks a mark.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; a model folder needs tokenizer.json")
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a readable tokenizer.json: {error}") from error
        return cls(inner, str(path))

    def __len__(self) -> int:
        """How many ids are in use; a model's vocabulary may be larger."""
        return self._inner.get_vocab_size()

    def id(self, word: str) -> int:
        """The id of one token as written in the vocabulary.  ValueError if it is not there."""
        found = self._inner.token_to_id(word)
        if found is None:
            raise ValueError(f"token {word!r} is not in {self._source}")
        return found

    def encode(self, text: str) -> list[int]:
        """The text's ids, no marks added.  ValueError naming a word that has no id."""
        try:
            return self._inner.encode(text, add_special_tokens=False).ids
        except Exception as error:  # a word-level model without <unk> raises bare Exception
            raise ValueError(f"text {text!r}: {self._unknown(text)}") from error

    def decode(self, ids: Iterable[int]) -> str:
        """The words of the ids, marks left out."""
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=True)

    def _unknown(self, text: str) -> str:
        if self._inner.normalizer is not None:
            text = self._inner.normalizer.normalize_str(text)
        words = [word for word, _ in self._inner.pre_tokenizer.pre_tokenize_str(text)]
        unknown = next((w for w in words if self._inner.token_to_id(w) is None), None)
        return f"the word {unknown!r} is not in {self._source}; use the words listed there"
