"""From tokens to text: whole characters, stop texts across tokens, the thought apart."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from srum_jax.data.tokenizer import MARKS, Tokenizer
from srum_jax.generation.text_generator import GeneratedText
from srum_jax.generation.text_rows import Token
from srum_jax.outputs import Answer
from srum_jax.serving.writer import Writer


def made():
    """A byte-level tokenizer without merges: every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({w: i for i, w in enumerate([*alphabet, *MARKS])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return Tokenizer(inner, "bytes")


BYTES = made()


def written(text, stop=(), think=False):
    """(thought, answer, pieces, whether it stopped) of a text that comes byte by byte."""
    writer, pieces = Writer(BYTES, stop, think), []
    for id in BYTES.encode(text):
        if piece := writer.add(Token(id)):
            pieces.append(piece)
        if writer.stopped:
            break
    if piece := writer.end():
        pieces.append(piece)
    thought, answer = ("".join(getattr(p, n) for p in pieces) for n in ("thought", "text"))
    return thought, answer, pieces, writer.stopped


@pytest.mark.parametrize("text", ["plain", "Grüße, 世界!", "👩‍🚀 flies", ""])
def test_characters_come_whole_and_at_once(text):
    _, answer, pieces, stopped = written(text)
    assert answer == text and not stopped
    assert [p.text for p in pieces] == list(text)
    assert sum(len(p.tokens) for p in pieces) == len(text.encode())


@pytest.mark.parametrize(
    "text, stop, want",
    [
        ("one two three", ["two"], "one "),
        ("aab aabc", ["aabc"], "aab "),
        ("one two", ["three"], "one two"),
        ("xyz", ["yz", "z"], "x"),
        ("x", ["x"], ""),
        ("so: STO", ["STOP"], "so: STO"),
        ("世界。終", ["。"], "世界"),
    ],
)
def test_texts_end_before_a_stop(text, stop, want):
    _, answer, _, stopped = written(text, stop)
    assert answer == want and stopped == (want != text)


@settings(max_examples=100, deadline=None)
@given(st.text("ab<", max_size=12), st.lists(st.text("ab<", min_size=1, max_size=4), max_size=3))
def test_stops_are_the_first_in_the_text(text, stop):
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    _, answer, _, stopped = written(text, stop)
    assert stopped == bool(ends)
    if not ends:
        assert answer == text
    else:  # the stop whose last character came first
        last = min(ends)[0]
        assert answer == text[: min(at for end, at in ends if end == last)]


@settings(max_examples=100, deadline=None)
@given(st.text("a <t", max_size=10), st.text("b <t", max_size=10), st.booleans(), st.booleans())
def test_thoughts_are_those_of_the_api(thought, answer, opened, closed):
    text = ("<think>" if opened else "") + thought + ("</think>" if closed else "") + answer
    want = Answer.of(GeneratedText(text, (), True), think=True)
    mine, said, _, _ = written(text, think=True)
    assert said.strip() == want.text
    assert mine.strip() == want.thought.removeprefix("<think>").strip()  # of one without its end
