"""Janus's texts that are written together, a token of each at a step; new ones join between steps.

The same tokens as the `TextGenerator` writes of each alone.
"""

import functools
from collections.abc import Sequence

import jax
from flax import struct
from jax.typing import DTypeLike

from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import put
from srum_jax.generation import text_rows
from srum_jax.generation.janus import template, writing
from srum_jax.generation.janus.text_generator import TextGenerator
from srum_jax.generation.row_group import capacity
from srum_jax.generation.text_rows import TextRequest, with_likeliest
from srum_jax.models.janus import llama
from srum_jax.models.janus.model_config import JanusConfig


@struct.dataclass
class _State:
    hidden: jax.Array  # [B,D]: after what was read last
    cache: llama.Cache


@functools.partial(jax.jit, static_argnames=("cfg", "slots", "dtype"))
def _read(
    params: Params,
    ids: jax.Array,
    real: jax.Array,
    patches: jax.Array | None,
    *,
    cfg: JanusConfig,
    slots: int,
    dtype: DTypeLike,
) -> _State:
    how = dict(cfg=cfg, slots=ids.shape[1], dtype=dtype)
    hidden, cache = writing.read(params, ids, real, patches, **how)
    return _State(hidden[:, -1], llama.laid(cache, slots))


@functools.partial(
    jax.jit, static_argnames=("cfg", "words", "likeliest", "dtype"), donate_argnames="state"
)
def _written(
    params: Params,
    state: _State,
    seeds: jax.Array,
    places: jax.Array,
    temperature: jax.Array,
    *,
    cfg: JanusConfig,
    words: int,
    likeliest: int,
    dtype: DTypeLike,
) -> tuple[_State, tuple[jax.Array, ...]]:
    """As `generation.text_rows` has it; words: as of `writing.token`."""
    token, logits = writing.token(params, state.hidden, seeds, places, temperature, words=words)
    hidden, cache = writing.go_on(params, token, state.cache, cfg=cfg, dtype=dtype)
    found = with_likeliest(token, writing.written(logits, words), likeliest)
    return _State(hidden, cache), found


class TextRows(text_rows.TextRows):
    """Texts whose caches have `slots` slots. most: of them at once."""

    @staticmethod
    def slots_for(generator: TextGenerator, request: TextRequest) -> int:
        """Slots of the group that a request belongs to. Raises ValueError for too long a one."""
        row = generator.read(request.context, request.max_tokens)
        return capacity(row.length + request.max_tokens, generator.window)

    def _read(self, requests: Sequence[TextRequest], rows: int) -> _State:
        generator = self.generator
        read = [generator.read(one.context, one.max_tokens) for one in requests]
        ids, real = template.padded(read, rows, generator.model.pad)
        patches = template.pictures(read, rows)
        shown = 0 if patches is None else len(patches)
        sizes = {"texts": rows, "tokens read": ids.shape[1], "pictures": shown}
        ids, real = put((ids, real), generator.batch_sharding)
        with generator.programs.first("the reading before texts", sizes | {"slots": self.slots}):
            return _read(generator.params, ids, real, patches, slots=self.slots, **self._how())

    def _step(self, writing: Params, *rows: jax.Array, likeliest: int) -> tuple:
        words = len(self.generator.tokenizer)
        how = dict(words=words, likeliest=likeliest, **self._how())
        return _written(writing, self.state, *rows, **how)
