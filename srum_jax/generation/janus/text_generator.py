"""Text out of Janus, behind texts and pictures: many contexts in one batch, or one as it comes."""

import dataclasses
import functools
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import fetch, put
from srum_jax.generation import context, text_stream
from srum_jax.generation.base import BROKEN, BaseTextGenerator, GeneratedText
from srum_jax.generation.context import Context, bucket
from srum_jax.generation.janus import template, writing
from srum_jax.generation.janus.template import Row, Template
from srum_jax.models.janus.model_config import JanusConfig
from srum_jax.models.layers import apart


@dataclasses.dataclass(frozen=True, eq=False)
class TextGenerator(BaseTextGenerator):
    """Janus answering behind contexts. A row always ends by itself, as the original answers one
    question a call."""

    model: JanusConfig

    @functools.cached_property
    def _template(self) -> Template:
        return Template(self.tokenizer, self.model.vit.positions**2)

    def extent(self, one: Context) -> tuple[int, int]:
        """(tokens that a context takes with the template around it, position that follows)."""
        tokens = self._template.asking(one).length
        return tokens, tokens

    def read(self, one: Context, max_tokens: int) -> Row:
        """The context in the template."""
        row = self._template.asking(one)
        how = dict(window=self.window, max_text=self.model.max_text)
        template.check_window(row, max_tokens, **how)
        return row

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without the blank that it begins with."""
        return self.tokenizer.decode(ids).lstrip()

    def _groups(self, read: Sequence[Row], stop: str) -> list[list[int]]:
        return template.by_length(read)

    def _call(self, read, per_row, max_tokens, stop, params) -> tuple[jax.Array, jax.Array]:
        rows = len(per_row[0])
        given = *template.padded(read, rows, self.model.pad), *per_row
        ids, real, *per_row = put(given, self.batch_sharding)
        patches = template.pictures(read, rows)
        steps, shown = bucket(max_tokens), 0 if patches is None else len(patches)
        sizes = {"texts": rows, "tokens read": ids.shape[1], "pictures": shown}
        with self.programs.first("the text generator", sizes | {"tokens written": steps}):
            return writing.write_texts(
                params,
                ids,
                real,
                patches,
                *per_row,
                cfg=self.model,
                words=len(self.tokenizer),
                max_tokens=steps,
                dtype=np.dtype(self.dtype),
            )


@functools.partial(jax.jit, static_argnames=("cfg", "slots", "dtype"))
def _read(params: Params, ids, real, patches, *, cfg, slots, dtype):
    hidden, cache = writing.read(params, ids, real, patches, cfg=cfg, slots=slots, dtype=dtype)
    return hidden[:, -1], cache


@functools.partial(
    jax.jit, static_argnames=("cfg", "words", "dtype"), donate_argnames=("hidden", "cache")
)
def _written(params: Params, hidden, cache, seeds, place, temperature, *, cfg, words, dtype):
    """The token at `place`, and hidden states and cache after it."""
    token, _ = writing.token(params, hidden, seeds, place, temperature, words=words)
    return token, *writing.go_on(params, token, cache, cfg=cfg, dtype=dtype)


_apart = jax.jit(apart)


def stream(
    generator: TextGenerator, one: Context, *, max_tokens: int, **how: Any
) -> Generator[str, None, GeneratedText]:
    """Yields the answer to a context in pieces of whole characters; otherwise as
    `text_stream.stream`, which says what `how` may be."""
    row = generator.read(one, max_tokens)
    tokens = _tokens(generator, row, max_tokens, **how)
    return text_stream.pieces(generator, tokens, generator.model.eos)


def _tokens(
    generator: TextGenerator, row: Row, max_tokens: int, temperature: float = 0.0, seed: int = 0
) -> Iterator[int]:
    """Token after token, the end mark too; max_tokens of them at most."""
    cfg, first = generator.model, generator.programs.first
    count = context.rows_for(1, generator.batch, generator.min_rows)
    ids, real = template.padded([row], count, cfg.pad)
    slots = ids.shape[1] + bucket(max_tokens)
    given = ids, real, np.full(count, seed, np.uint32), np.full(count, temperature, np.float32)
    ids, real, seeds, warmth = put(given, generator.batch_sharding)
    how = dict(cfg=cfg, dtype=np.dtype(generator.dtype))
    sizes = {"texts": count, "tokens read": ids.shape[1], "slots": slots}
    with first("the reading before a text", sizes | {"pictures": len(row.patches)}):
        patches = template.pictures([row], 1)
        hidden, cache = _read(generator.params, ids, real, patches, slots=slots, **how)
    writing_params = _apart(generator.params)  # once a text, not in every call
    how["words"] = len(generator.tokenizer)
    for place in range(max_tokens):
        with first("the writing of a token", sizes):
            last, hidden, cache = _written(
                writing_params, hidden, cache, seeds, jnp.int32(place), warmth, **how
            )
        token = int(fetch(last)[0])
        context.check_finite(token != BROKEN, "a text")
        yield token
