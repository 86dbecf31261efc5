"""Words to ids and back, from a checkpoint folder's own files.

Owns reading `tokenizer.json` (word level or byte-pair) or Qwen2's `vocab.json` + `merges.txt`,
and the four marks that a sample needs: begin and end of text, begin and end of an image. They are
`<|im_start|>`, `<|im_end|>`, `<|vision_start|>` and `<|vision_end|>` unless a family has others.
"""

from __future__ import annotations

import codecs
import difflib
import pathlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from etils import epath
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from srum_jax.core.errors import quoted
from srum_jax.core.files import mistaken, read_json, read_object
from srum_jax.data.schema import LayoutSizes, Text

MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# Qwen2's rule for cutting text into pieces (its published tokenizer.json): contractions, words with
# one leading sign, single digits, runs of signs, line ends, other white space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What follows Qwen2.5's vocabulary of 151643 (its published tokenizer_config.json), up to the marks
# of a picture; the rest of that list stands for nothing in BAGEL.
QWEN_ADDED = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
)


class Tokenizer:
    """A read-only tokenizer.  `bos`, `eos`, `image_start`, `image_end` are the marks' ids."""

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        source: str,
        *,
        marks_in_text: bool = False,
        marks: Sequence[str] = MARKS,
    ):
        self._inner = inner
        self._source = source
        self._marks = tuple(marks)
        ids = [self.id(m) for m in marks]
        if len(set(ids)) < len(marks):
            raise ValueError(f"{source}: the marks {', '.join(marks)} share ids: {ids}")
        self.bos, self.eos, self.image_start, self.image_end, *_ = ids
        inner.add_special_tokens(list(marks))  # gives no new ids; a file may call them plain words
        inner.encode_special_tokens = not marks_in_text
        added = inner.get_added_tokens_decoder().items()
        self._special = set() if marks_in_text else {i for i, token in added if token.special}
        word = inner.model.unk_token  # what a file may give in place of unknown words
        self._no_word = None if word is None else inner.token_to_id(word)
        self._check_bytes()

    @classmethod
    def with_own_marks(cls, folder: epath.PathLike, marks: Sequence[str]) -> Tokenizer:
        """Reads `folder/tokenizer.json` of a family with other marks: the four, then further ones
        that no text may spell. FileNotFoundError or ValueError as `from_folder`."""
        path = epath.Path(folder) / "tokenizer.json"
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; a model folder needs it")
        return cls(_from_json(path), str(path), marks=marks)

    @classmethod
    def from_folder(cls, folder: epath.PathLike, *, marks_in_text: bool = False) -> Tokenizer:
        """Reads `folder/tokenizer.json`, else builds Qwen2's tokenizer from its own files.

        Those are `vocab.json`, `merges.txt` and, if there, `tokenizer_config.json` with the tokens
        added after the vocabulary; without it, Qwen2.5's follow. A byte-pair vocabulary that lacks
        a mark gets it at the end, as in BAGEL's loader (`data/data_utils.py`, add_special_tokens);
        `check` finds out whether the model agrees.

        A text is words alone: where it spells a mark or another special token, that is read as
        ordinary characters, or refused by a word-level vocabulary. So no prompt can end its own
        text or open an image. `marks_in_text` gives the original's behaviour: the mark's id.

        FileNotFoundError without these files; ValueError naming file (and line) if one cannot be
        read, two words share an id, ids have holes, a byte has no token, or a mark is missing.
        """
        folder = epath.Path(folder)
        path = folder / "tokenizer.json"
        if path.exists():
            inner = _from_json(path)
        elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            path = folder / "vocab.json"
            inner = _qwen2(folder)
        else:
            raise FileNotFoundError(
                f"{path}: no such file; a model folder needs tokenizer.json, or vocab.json and "
                "merges.txt"
            )
        if isinstance(inner.model, models.BPE):
            inner.add_special_tokens(list(MARKS))
        return cls(inner, str(path), marks_in_text=marks_in_text)

    def with_marks(self) -> Tokenizer:
        """The same with `marks_in_text`."""
        copy = tokenizers.Tokenizer.from_str(self._inner.to_str())
        return Tokenizer(copy, self._source, marks_in_text=True, marks=self._marks)

    def check(self, layout: LayoutSizes, where: str) -> None:
        """Compares ids with a model's; `where` names the file that `layout` was read from.

        Raises ValueError naming both files and all ids that differ or lie past the vocabulary.
        """
        names = ("bos", "eos", "start_of_image", "end_of_image")
        ours = (self.bos, self.eos, self.image_start, self.image_end)
        problems = [
            f"{name} is {getattr(layout, name)} there and {found} ({mark}) here"
            for name, mark, found in zip(names, self._marks, ours, strict=False)
            if getattr(layout, name) != found
        ]
        last = max(self._inner.get_vocab(with_added_tokens=True).values())
        if last >= layout.vocab:
            problems.append(f"the model has {layout.vocab} ids and id {last} is in use here")
        if problems:
            raise ValueError(f"{self._source} does not fit {where}: {'; '.join(problems)}")

    def __len__(self) -> int:
        """How many ids are in use; a model's vocabulary may be larger."""
        return self._inner.get_vocab_size()

    def id(self, word: str) -> int:
        """The id of one token as written in the vocabulary.  ValueError if it is not there."""
        found = self._inner.token_to_id(word)
        if found is None:
            raise ValueError(f"token {quoted(word)} is not in {self._source}")
        return found

    @property
    def word_level(self) -> bool:
        """Whether every token is a whole word or sign, and there are no others."""
        return not isinstance(self._inner.model, models.BPE)

    def answers(self, word: str) -> tuple[int, ...]:
        """The ids of the single tokens that spell `word` as the first of an answer.

        Of a byte-pair vocabulary also with a capital, in capitals, after a blank, and as a digit
        ("two", "Two", "TWO", " two", "2"); several tokens share the probability of one answer.
        ValueError if none does.
        """
        if self.word_level:
            return (self.id(word),)
        spelt = [word, word.capitalize(), word.upper()]
        if word in NUMBERS:
            spelt.append(str(NUMBERS.index(word)))
        pieces = [self.encode(blank + one) for one in spelt for blank in ("", " ")]
        found = tuple(dict.fromkeys(ids[0] for ids in pieces if len(ids) == 1))
        if not found:
            raise ValueError(f"{quoted(word)} is not a single token of {self._source}")
        return found

    def encode(self, text: str) -> list[int]:
        """The text's ids, no marks added.  ValueError naming a word that has no id."""
        try:
            read = self._inner.encode(text, add_special_tokens=False)
        except Exception as error:  # a word-level model without <unk> raises bare Exception
            raise ValueError(f"text {quoted(text)}: {self._unknown(text)}") from error
        ids = read.ids
        if self._no_word in ids:
            start, end = read.offsets[ids.index(self._no_word)]
            raise ValueError(f"text {quoted(text)}: {self._lacks(text[start:end])}")
        for i in self._special.intersection(ids):
            raise ValueError(
                f"text {quoted(text)} contains {quoted(self._inner.id_to_token(i))}, which is no "
                f"word but a mark of {self._file}; leave it out"
            )
        return ids

    def text(self, words: str, *, loss: bool = False) -> Text:
        """The words as an item of a sample, ids int32 [T]; loss: they are a target.

        ValueError naming a word that has no id.
        """
        return Text(np.array(self.encode(words), np.int32), loss=loss)

    def decode(self, ids: Iterable[int]) -> str:
        """The words of the ids, special tokens left out."""
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=True)

    def _unknown(self, text: str) -> str:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # half of a surrogate pair
            return f"the character at {error.start} is no Unicode text; leave it out"
        if self._inner.normalizer is not None:
            text = self._inner.normalizer.normalize_str(text)
        cut = self._inner.pre_tokenizer
        words = [text] if cut is None else [word for word, _ in cut.pre_tokenize_str(text)]
        return self._lacks(next((w for w in words if self._inner.token_to_id(w) is None), ""))

    def _lacks(self, word: str) -> str:
        near = difflib.get_close_matches(word[:80], self._inner.get_vocab(), cutoff=0.7)
        hint = f"near are {', '.join(near)}" if near else "use the words listed there"
        return f"the word {quoted(word)} is not in {self._file}; {hint}"

    @property
    def _file(self) -> str:
        """Its name alone: what is said of a text may go to who sent it, folders are the host's."""
        return pathlib.PurePath(self._source).name

    def _check_bytes(self) -> None:
        """A byte-level model drops bytes that have no token without a word."""
        if not isinstance(self._inner.decoder, decoders.ByteLevel):
            return
        missing = sorted(c for c in _BYTES if self._inner.token_to_id(c) is None)
        if missing:
            raise ValueError(
                f"{self._source}: {len(missing)} of the 256 byte tokens are missing, such as "
                f"{missing[0]!r}"
            )


def _from_json(path: epath.Path) -> tokenizers.Tokenizer:
    """The tokenizer of a file, without what a library that used it left there for its batches or
    its training: texts would be cut, filled up, or read in another way each time."""
    data = path.read_bytes()
    try:
        made = tokenizers.Tokenizer.from_buffer(data.removeprefix(codecs.BOM_UTF8))
    except Exception as error:  # the library raises bare Exception
        wrong = mistaken(data) or quoted(str(error))
        raise ValueError(f"{path} is not a readable tokenizer.json: {wrong}") from error
    if not isinstance(made.model, models.BPE | models.WordLevel):
        kind = type(made.model).__name__
        raise ValueError(f"{path}: of the kind {kind}; WordLevel and BPE are read")
    made.no_truncation()
    made.no_padding()
    if isinstance(made.model, models.BPE):
        made.model.dropout = None
    return made


_BYTES = pre_tokenizers.ByteLevel.alphabet()


def _qwen2(folder: epath.Path) -> tokenizers.Tokenizer:
    """Qwen2's byte-level BPE from vocab.json, merges.txt and, if there, tokenizer_config.json."""
    vocab = _vocabulary(folder / "vocab.json")
    model = models.BPE(vocab=vocab, merges=_merges(folder / "merges.txt", vocab))
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    config = folder / "tokenizer_config.json"
    declared = _added(config) if config.exists() else None
    if declared is None:
        declared = [(None, AddedToken(t, normalized=False, special=True)) for t in QWEN_ADDED]
    for want, token in declared:
        inner.add_tokens([token])
        found = inner.token_to_id(token.content)
        if want not in (None, found):
            raise ValueError(
                f"{config}: {quoted(token.content)} has id {want}, but {found} is the next after "
                f"{folder / 'vocab.json'} and the tokens before it"
            )
    return inner


def _vocabulary(path: epath.Path) -> dict[str, int]:
    """vocab.json: {token: id}, every id from 0 up once."""
    vocab = read_object(path)
    for word, i in vocab.items():
        if type(i) is not int:
            what = f"the id of {quoted(word)} must be an integer, got {quoted(i)}"
            raise ValueError(f"{path}: {what}")
    times = Counter(vocab.values())
    twice = [i for i, n in times.items() if n > 1]
    if twice:
        one, other, *_ = (quoted(w) for w, i in vocab.items() if i == twice[0])
        raise ValueError(f"{path}: {one} and {other} share the id {quoted(twice[0])}")
    hole = next((i for i in range(len(vocab)) if i not in times), None)
    if hole is not None:
        raise ValueError(f"{path}: {len(vocab)} tokens, but none has the id {hole}")
    return vocab


def _merges(path: epath.Path, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """merges.txt: a pair of tokens a line, whose join is a token too; maybe a version line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8 text ({e})") from e
    merges = []
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = tuple(line.split(" "))
        if len(pair) != 2 or not all(pair):
            raise ValueError(f"{path} line {number}: {quoted(line)} is not two tokens with a space")
        unknown = [t for t in (*pair, "".join(pair)) if t not in vocab]
        if unknown:
            raise ValueError(f"{path} line {number}: {quoted(unknown[0])} is not in vocab.json")
        merges.append(pair)
    return merges


def _added(path: epath.Path) -> list[tuple[int, AddedToken]] | None:
    """(id, token) of tokenizer_config.json's `added_tokens_decoder` by id; None without it."""
    config = read_json(path)
    table = config.get("added_tokens_decoder") if isinstance(config, dict) else config
    if table is None:
        return None
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    try:
        return sorted(
            (
                (int(i), AddedToken(t["content"], **{k: t[k] for k in flags if k in t}))
                for i, t in table.items()
            ),
            key=lambda pair: pair[0],
        )
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise ValueError(
            f"{path}: added_tokens_decoder must map ids to objects with a content "
            f"({quoted(repr(e))})"
        ) from e
