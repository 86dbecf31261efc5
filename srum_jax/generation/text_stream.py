"""Text out of the model as it is written: token by token from the host.

The same tokens as `TextGenerator.generate` writes, each a step of a group of rows that holds this
text alone.
"""

from collections.abc import Generator, Iterator
from types import ModuleType

from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context
from srum_jax.generation.base import BROKEN, BaseImageSampler, BaseTextGenerator, GeneratedText
from srum_jax.generation.text_rows import TextRequest

UNFINISHED = "\ufffd"  # what decoding gives in place of bytes that are no whole character


def stream(
    family: ModuleType,
    generator: BaseTextGenerator,
    sampler: BaseImageSampler,
    request: TextRequest,
) -> Generator[str, None, GeneratedText]:
    """Yields the text that a request asks for, in pieces of whole characters; returns all of it.

    family: of generator and sampler, a model's. The pieces together are the text that
    `generator.generate` gives for the same arguments. Closing the generator stops writing. Raises
    ValueError at once for a context that exceeds the window with what may be written; BadInput on
    the way where the model's numbers are not finite.
    """
    generator.read(request.context, request.max_tokens)
    tokens = _tokens(family, generator, sampler, request)
    return pieces(generator, tokens, generator.model.eos)


def _tokens(
    family: ModuleType,
    generator: BaseTextGenerator,
    sampler: BaseImageSampler,
    request: TextRequest,
) -> Iterator[int]:
    """Token after token, the end mark too; at most as many as the request asks for."""
    rows = family.TextRows(generator, family.TextRows.slots_for(generator, request), most=1)
    rows.join([request])
    writing = family.writing_params(generator, sampler)  # once a text, not in every call
    for _ in range(request.max_tokens):
        ((_, token),) = rows.step(writing)
        context.check_finite(token.id != BROKEN, "a text")
        yield token.id


def pieces(
    words: Tokenizer | BaseTextGenerator, tokens: Iterator[int], eos: int
) -> Generator[str, None, GeneratedText]:
    """Pieces of text as soon as no later token can change them: a character may take several."""
    ids: list[int] = []
    sent, finished = "", False
    for token in tokens:
        if finished := token == eos:
            break
        ids.append(token)
        whole = words.decode(ids).rstrip(UNFINISHED)
        if len(whole) > len(sent) and whole.startswith(sent):
            yield whole[len(sent) :]
            sent = whole
    text = words.decode(ids)
    if rest := text[len(sent) :]:
        yield rest
    return GeneratedText(text, tuple(ids), finished)
