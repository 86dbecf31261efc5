"""Text out of Janus, behind texts and pictures: many contexts in one batch, or one as it comes."""

import dataclasses
import functools
from collections.abc import Generator, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from srum_jax.core import in_flight, preemption
from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import fetch, put
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context, text_stream
from srum_jax.generation.context import Context, bucket
from srum_jax.generation.janus import template, writing
from srum_jax.generation.janus.template import Row, Template
from srum_jax.generation.text_generator import BROKEN, GeneratedText
from srum_jax.models.janus.model_config import JanusConfig
from srum_jax.models.layers import apart


@dataclasses.dataclass(frozen=True, eq=False)
class TextGenerator:
    """The model answering behind contexts; arguments as of BAGEL's `TextGenerator`."""

    params: Params | None = dataclasses.field(repr=False)
    model: JanusConfig
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    batch: int
    window: int
    min_rows: int = 1
    batch_sharding: jax.sharding.Sharding | None = None
    dtype: DTypeLike = jnp.float32
    programs: context.Programs = dataclasses.field(default_factory=context.Programs, repr=False)

    @functools.cached_property
    def _template(self) -> Template:
        return Template(self.tokenizer, self.model.vit.positions**2)

    def extent(self, one: Context) -> tuple[int, int]:
        """(tokens that a context takes with the template around it, position that follows)."""
        tokens = len(self._template.asking(one).ids)
        return tokens, tokens

    def row(self, one: Context, max_tokens: int) -> Row:
        """What is read of a context. Raises ValueError where it exceeds the window."""
        row = self._template.asking(one)
        how = dict(window=self.window, max_text=self.model.max_text)
        template.check_window(row, max_tokens, **how)
        return row

    def generate(
        self,
        contexts: Sequence[Context],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        stop: str = "each",
        params: Params | None = None,
    ) -> list[GeneratedText]:
        """The text that answers each context, in order; company in a batch changes nothing.

        Arguments and errors as of BAGEL's; a row always ends by itself, as the original answers
        one question a call, so `stop` changes nothing.
        """
        rows = [self.row(one, max_tokens) for one in contexts]
        seeds = [0] * len(contexts) if seeds is None else seeds
        params = self.params if params is None else params
        calls = (
            (part, self._call([rows[i] for i in part], [seeds[i] for i in part], count, **how))
            for part, count in self._parts(rows)
            for how in [dict(max_tokens=max_tokens, temperature=temperature, params=params)]
        )
        written: dict[int, GeneratedText] = {}
        for part, (ids, counts) in in_flight.fetched(calls):
            for row, i in enumerate(part):
                context.check_finite(BROKEN not in ids[row, : counts[row] + 1], "a text")
                mine = tuple(ids[row, : counts[row]].tolist())
                ended = counts[row] < max_tokens and ids[row, counts[row]] == self.model.eos
                text = self.tokenizer.decode(mine).lstrip()
                written[i] = GeneratedText(text, mine, bool(ended))
        return [written[i] for i in range(len(contexts))]

    def _parts(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], int]]:
        """(places of a call, its rows): those of one length and of as many pictures together."""
        for members in template.by_length(rows):
            count = context.rows_for(len(members), self.batch, self.min_rows)
            for first in range(0, len(members), self.batch):
                preemption.check()
                yield members[first : first + self.batch], count

    def _call(
        self,
        rows: Sequence[Row],
        seeds: Sequence[int],
        count: int,
        *,
        max_tokens: int,
        temperature: float,
        params: Params,
    ) -> tuple[jax.Array, jax.Array]:
        """One compiled call: as `writing.write`; what it writes may be in the making."""
        ids, real = template.padded(rows, count, self.model.pad)
        seed, limit = np.zeros(count, np.uint32), np.zeros(count, np.int32)
        seed[: len(rows)], limit[: len(rows)] = seeds, max_tokens
        warmth, patches = np.full(count, temperature, np.float32), template.pictures(rows, count)
        ids, real, seed, warmth, limit = put((ids, real, seed, warmth, limit), self.batch_sharding)
        steps, shown = bucket(max_tokens), 0 if patches is None else len(patches)
        sizes = {"texts": count, "tokens read": ids.shape[1], "pictures": shown}
        with self.programs.first("the text generator", sizes | {"tokens written": steps}):
            return writing.write_texts(
                params,
                ids,
                real,
                patches,
                *(seed, warmth, limit),
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
    generator: TextGenerator,
    one: Context,
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Generator[str, None, GeneratedText]:
    """Yields the answer to a context in pieces of whole characters; returns all of it.

    The pieces together are the text that `generator.generate` gives for the same arguments. Raises
    ValueError at once for a context that exceeds the window; BadInput on the way where the model's
    numbers are not finite.
    """
    row = generator.row(one, max_tokens)
    tokens = _tokens(generator, row, max_tokens, temperature, seed)
    return _without_blanks(text_stream.pieces(generator.tokenizer, tokens, generator.model.eos))


def _without_blanks(pieces: Generator) -> Generator[str, None, GeneratedText]:
    begun = False
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            return dataclasses.replace(end.value, text=end.value.text.lstrip())
        piece = piece if begun else piece.lstrip()
        if piece:
            begun = True
            yield piece


def _tokens(
    generator: TextGenerator, row: Row, max_tokens: int, temperature: float, seed: int
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
