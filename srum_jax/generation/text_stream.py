"""Text out of the model as it is written: token by token from the host.

The same tokens as `TextGenerator.generate` writes, each a call of its own of the same step.
"""

import functools
from collections.abc import Generator, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import fetch, put
from srum_jax.data.schema import Batch
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context, text_generator
from srum_jax.generation.base import BROKEN, BaseTextGenerator, GeneratedText
from srum_jax.generation.context import Context
from srum_jax.generation.text_generator import TextGenerator
from srum_jax.models.bagel import mot
from srum_jax.models.bagel.model_config import BagelConfig

UNFINISHED = "\ufffd"  # what decoding gives in place of bytes that are no whole character


@functools.partial(jax.jit, static_argnames=("cfg", "slots", "dtype", "stacked"))
def _read(
    params: Params,
    packed: Batch,
    *,
    cfg: BagelConfig,
    slots: int,
    dtype: DTypeLike,
    stacked: bool,
) -> mot.WritingCache:
    cache = context.prefill(params, packed, cfg=cfg, slots=slots, dtype=dtype)
    return mot.WritingCache.of(cache, stacked=stacked)


@functools.partial(jax.jit, static_argnames=("cfg", "dtype"), donate_argnames="cache")
def _written(
    params: Params,
    cache: mot.WritingCache,
    last: jax.Array,
    seeds: jax.Array,
    place: jax.Array,
    temperature: jax.Array,
    *,
    cfg: BagelConfig,
    dtype: DTypeLike,
) -> tuple[mot.WritingCache, jax.Array]:
    """The cache with the tokens `last` [B] read, and the tokens that follow, int32 [B]."""
    cache, logits = text_generator.step(params, cache, last, cfg=cfg, dtype=dtype)
    return cache, text_generator.choice(logits, seeds, place, temperature)


def stream(
    generator: TextGenerator,
    one: Context,
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Generator[str, None, GeneratedText]:
    """Yields the text that continues a context, in pieces of whole characters; returns all of it.

    The pieces together are the text that `generator.generate` gives for the same arguments. Closing
    the generator stops writing. Raises ValueError at once for a context that exceeds the window
    with what may be written; BadInput on the way where the model's numbers are not finite.
    """
    generator.read(one, max_tokens)
    tokens = _tokens(generator, one, max_tokens, temperature, seed)
    return pieces(generator, tokens, generator.model.eos)


def _tokens(
    generator: TextGenerator, one: Context, max_tokens: int, temperature: float, seed: int
) -> Iterator[int]:
    """Token after token, the end mark too; max_tokens of them at most."""
    cfg, first = generator.model, generator.programs.first
    rows = context.rows_for(1, generator.batch, generator.min_rows)
    packed = context.pack([one], rows, cfg.layout)
    slots = context.capacity(packed, context.bucket(max_tokens) + 1)
    sizes = {"texts": rows, **context.lengths(packed), "slots": slots}
    per_row = (np.full(rows, seed, np.uint32), np.full(rows, temperature, np.float32))
    per_row += (np.full(rows, cfg.bos, np.int32),)
    packed, (seeds, warmth, last) = put((packed, per_row), generator.batch_sharding)
    how = dict(cfg=cfg, dtype=np.dtype(generator.dtype))
    params = generator.params
    with first("the reading before a text", sizes):
        stacked = text_generator.stays_stacked(params)
        cache = _read(params, packed, slots=slots, stacked=stacked, **how)
    writing = text_generator.writing_params(params)  # once a text, not in every call
    for place in range(max_tokens):
        with first("the writing of a token", sizes):
            cache, last = _written(writing, cache, last, seeds, jnp.int32(place), warmth, **how)
        token = int(fetch(last)[0])
        context.check_finite(token != BROKEN, "a text")
        yield token


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
