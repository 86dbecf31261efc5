"""Pieces of a text that is being written: whole characters, whatever tokens they are cut into."""

import numpy as np
import pytest
import samples
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from srum_jax.core.errors import BadInput
from srum_jax.data.tokenizer import MARKS, Tokenizer
from srum_jax.generation import bagel, text_stream
from srum_jax.generation.text_generator import TextGenerator
from srum_jax.generation.text_rows import TextRequest

EOS = 10**6


@pytest.fixture(scope="module")
def by_bytes():
    """A byte-level tokenizer without merges: every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: i for i, word in enumerate([*alphabet, *MARKS])}
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return Tokenizer(inner, "bytes")


def run(tokenizer, ids):
    pieces = []
    stream = text_stream.pieces(tokenizer, iter(ids), EOS)
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


@pytest.mark.parametrize("text", ["plain", "Grüße, 世界!", "👩‍🚀 flies 🚀", "e\u0301", "a\ufffdb"])
def test_characters_come_whole(by_bytes, text):
    ids = by_bytes.encode(text)
    assert len(ids) == len(text.encode())
    pieces, written = run(by_bytes, [*ids, EOS, 5, 5])
    assert pieces == list(text) if "\ufffd" not in text else "".join(pieces) == text
    assert written.text == text and written.finished and written.ids == tuple(ids)


def test_what_is_cut_in_a_character_is_said_at_the_end(by_bytes):
    ids = by_bytes.encode("ab世")[:-1]
    pieces, written = run(by_bytes, ids)
    assert pieces[:2] == ["a", "b"] and "".join(pieces) == written.text == by_bytes.decode(ids)
    assert not written.finished


def test_bytes_that_are_no_text_pass(by_bytes):
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 256, 200)]
    pieces, written = run(by_bytes, ids)
    assert "".join(pieces) == written.text == by_bytes.decode(ids)


def test_numbers_that_are_not_finite_give_no_text(by_bytes):
    params = samples.weights()
    params["lm_head"]["w"][0, 7] = np.nan
    generator = TextGenerator(params, samples.CFG, by_bytes, batch=2, window=64)
    request = TextRequest((samples.text(np.random.default_rng(0), 3),), max_tokens=3)
    with pytest.raises(BadInput, match="for a text are NaN or infinite"):
        next(text_stream.stream(bagel, generator, None, request))
