"""Texts that are written together, a token of each at a step; new ones join between steps.

The same tokens as `TextGenerator.generate` writes of each alone.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike

from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import fetch, put
from srum_jax.data.schema import Batch
from srum_jax.generation import context, text_generator
from srum_jax.generation.context import Context
from srum_jax.generation.row_group import RowGroup, capacity, row_numbers
from srum_jax.generation.text_generator import TextGenerator
from srum_jax.models.bagel import mot
from srum_jax.models.bagel.model_config import BagelConfig

LIKELIEST = 20  # tokens that probabilities are given of at most


@dataclasses.dataclass(frozen=True, eq=False)
class TextRequest:
    """A text to write behind `context`: tokens at most, temperature, seed uint32; whether the
    probabilities of tokens are wanted."""

    context: Context
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    probabilities: bool = False


@dataclasses.dataclass(frozen=True)
class Token:
    """A token that was written: its id, its log-probability at temperature 1 and those of the
    likeliest tokens, the likeliest first; empty where they were not asked for."""

    id: int
    logprob: float = 0.0
    likeliest: tuple[tuple[int, float], ...] = ()


@struct.dataclass
class _State:
    cache: mot.WritingCache
    last: jax.Array  # int32 [B]: the token that is read next


@functools.partial(jax.jit, static_argnames=("cfg", "slots", "dtype", "stacked"))
def _read(
    params: Params,
    packed: Batch,
    *,
    cfg: BagelConfig,
    slots: int,
    dtype: DTypeLike,
    stacked: bool,
) -> _State:
    cache = context.prefill(params, packed, cfg=cfg, slots=slots, dtype=dtype)
    first = jnp.full(len(cache.length), cfg.bos, jnp.int32)
    return _State(mot.WritingCache.of(cache, stacked=stacked), first)


@functools.partial(jax.jit, static_argnames=("cfg", "likeliest", "dtype"), donate_argnames="state")
def _written(
    params: Params,
    state: _State,
    seeds: jax.Array,
    places: jax.Array,
    temperature: jax.Array,
    *,
    cfg: BagelConfig,
    likeliest: int,
    dtype: DTypeLike,
) -> tuple[_State, tuple[jax.Array, ...]]:
    """The state after a token of every row; the tokens int32 [B] and, of so many likeliest, the
    log-probability [B] of each, and ids and log-probabilities [B,·] of the likeliest."""
    cache, logits = text_generator.step(params, state.cache, state.last, cfg=cfg, dtype=dtype)
    token = text_generator.choice(logits, seeds, places, temperature)
    return _State(cache, jnp.maximum(token, 0)), with_likeliest(token, logits, likeliest)


def with_likeliest(token: jax.Array, logits: jax.Array, count: int) -> tuple[jax.Array, ...]:
    """Tokens [B] and, where `count` is not 0, the log-probability [B] of each by logits [B,V], and
    ids and log-probabilities [B,count] of the likeliest."""
    if not count:
        return (token,)
    logprobs = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(logprobs, jnp.maximum(token, 0)[:, None], axis=1)[:, 0]
    best, ids = jax.lax.top_k(logprobs, count)
    return token, own, ids, best


class TextRows(RowGroup):
    """Texts whose caches have `slots` slots. most: of them at once."""

    def __init__(self, generator: TextGenerator, slots: int, most: int):
        super().__init__(row_numbers(most, generator.min_rows))
        self.generator, self.slots = generator, slots
        self._written: dict[TextRequest, int] = {}  # tokens of each

    @staticmethod
    def slots_for(generator: TextGenerator, request: TextRequest) -> int:
        """Slots of the group that a request belongs to."""
        extent, _ = context.extent(request.context)
        return capacity(extent + request.max_tokens + 1, generator.window)

    def join(self, requests: Sequence[TextRequest]) -> None:
        """Reads the contexts of requests, which are written from the next step on."""
        self.place(requests, self._read(requests, self.rows_for(len(requests))))
        self._written |= dict.fromkeys(requests, 0)

    def _read(self, requests: Sequence[TextRequest], rows: int) -> Params:
        """The state of so many rows before their first token."""
        generator, slots = self.generator, max(self.slots, 1)
        packed = context.pack([r.context for r in requests], rows, generator.model.layout)
        sizes = {"texts": rows, **context.lengths(packed), "slots": slots}
        packed = put(packed, generator.batch_sharding)
        with generator.programs.first("the reading before texts", sizes):
            stacked = text_generator.stays_stacked(generator.params)
            return _read(generator.params, packed, slots=slots, stacked=stacked, **self._how())

    def leave(self, requests: Sequence[TextRequest]) -> None:
        """Lets requests go, finished or not."""
        super().leave(requests)
        for one in requests:
            self._written.pop(one, None)

    def written(self, request: TextRequest) -> int:
        """Tokens of a request so far."""
        return self._written[request]

    def step(self, writing: Params) -> list[tuple[TextRequest, Token]]:
        """A token of every request; writing: of `writing_params`. A token that is no number of the
        model's is `text_generator.BROKEN`."""
        held, generator = self.held, self.generator
        seeds = np.array([one.seed if one else 0 for one in held], np.uint32)
        warmth = np.array([one.temperature if one else 0 for one in held], np.float32)
        places = np.array([self._written[one] if one else 0 for one in held], np.int32)
        wanted = any(one.probabilities for one in self.requests)
        likeliest = min(LIKELIEST, generator.model.llm.vocab) if wanted else 0
        sizes = {"texts": len(held), "slots": self.slots, "likeliest": likeliest}
        rows = put((seeds, places, warmth), generator.batch_sharding)
        with generator.programs.first("a token of texts", sizes):
            self.state, found = self._step(writing, *rows, likeliest=likeliest)
        found = [fetch(x) for x in found]
        tokens = []
        for row, one in enumerate(held):
            if one is not None:
                self._written[one] += 1
                tokens.append((one, _token(row, one, *found)))
        return tokens

    def _step(self, writing: Params, *rows: jax.Array, likeliest: int) -> tuple:
        """The state after a token of every row, and what `with_likeliest` gives."""
        return _written(writing, self.state, *rows, likeliest=likeliest, **self._how())

    def _how(self) -> dict:
        return dict(cfg=self.generator.model, dtype=np.dtype(self.generator.dtype))


def _token(row: int, request: TextRequest, tokens, own=None, ids=None, best=None) -> Token:
    if not request.probabilities:
        return Token(int(tokens[row]))
    pairs = zip(ids[row].tolist(), best[row].tolist(), strict=True)
    return Token(int(tokens[row]), float(own[row]), tuple(pairs))


def writing_params(generator: TextGenerator, sampler: Any = None) -> Params:
    """`text_generator.writing_params` of a model, made once. sampler: nothing of it is used."""
    return text_generator.writing_params(generator.params)
