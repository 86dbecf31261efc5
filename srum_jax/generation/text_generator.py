"""Text out of the model, written token by token behind a KV cache, many contexts in one batch."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from srum_jax.core import in_flight, preemption
from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import put
from srum_jax.data.schema import Batch
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context, shared_context
from srum_jax.generation.context import Context, bucket
from srum_jax.generation.shared_context import Beginning, Places
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import mot
from srum_jax.models.bagel.model_config import BagelConfig


@dataclasses.dataclass(frozen=True)
class GeneratedText:
    """What the model wrote: text, its token ids without marks, whether it ended by itself."""

    text: str
    ids: tuple[int, ...]
    finished: bool


BROKEN = -2  # in place of a token where the logits are not finite: the row ends there


@jax.named_scope("token_step")
def step(
    params: Params, cache: mot.CacheByLayer, ids: jax.Array, *, cfg: BagelConfig, dtype: DTypeLike
) -> tuple[mot.CacheByLayer, jax.Array]:
    """Reads one token a row, ids [B]; returns the longer cache and float32 logits [B,V]."""
    und = bagel.embed_text(params, ids[:, None], dtype)
    und, cache = mot.next_token(params, cfg.llm, und, cache)
    first = jnp.zeros((len(ids), 1), jnp.int32)
    return cache, bagel.logits(params, und, first)[:, 0]


def choice(
    logits: jax.Array, seeds: jax.Array, place: jax.Array, temperature: jax.Array
) -> jax.Array:
    """The token that each row of logits [B,V] writes, int32 [B]; see `decode`. place: one for all,
    or each row's own, [B]."""

    def draw(seed, place, row, scale):
        key = jax.random.fold_in(jax.random.key(seed), place)
        return jax.random.categorical(key, row / jnp.maximum(scale, 1e-6))

    likeliest = jnp.argmax(logits, axis=-1)
    places = jnp.broadcast_to(place, seeds.shape)
    drawn = jax.lax.cond(
        jnp.any(temperature > 0),
        lambda: jax.vmap(draw)(seeds, places, logits, temperature),
        lambda: likeliest,
    )
    token = jnp.where(temperature > 0, drawn, likeliest).astype(jnp.int32)
    return jnp.where(jnp.isfinite(logits).all(-1), token, BROKEN)


def decode(
    params: Params,
    cache: mot.Cache,
    seeds: jax.Array,
    temperature: jax.Array,
    limit: jax.Array,
    *,
    cfg: BagelConfig,
    max_tokens: int,
    stop: str = "each",
    dtype: DTypeLike,
) -> tuple[jax.Array, jax.Array]:
    """Writes after each row's cache until its end mark: (ids [B,max_tokens], counts [B]) int32.

    seeds [B] uint32 and temperature [B]: 0 takes the likeliest token, otherwise one is drawn from
    softmax(logits / temperature), a function of seed and place alone. limit [B]: tokens a row may
    write. A row's ids end before its end mark; counts says where (its limit if there was none), and
    past that a mark stands only if the row wrote one, and -2 where its logits were not finite.
    `stop`: "each" row by itself; "first": all when row 0 does, as the original. The cache must have
    max_tokens free slots. With "each" a row's text does not depend on its company.
    """
    if stop not in ("each", "first"):
        raise ValueError(f"stop must be each or first, not {stop!r}")
    rows = cache.length.shape[0]
    params = mot.apart(params)  # once, before the loop

    def unfinished(carry):
        place, _, _, _, _, done = carry
        return (place < max_tokens) & ~jnp.all(done)

    def write(carry):
        place, cache, last, ids, counts, done = carry
        cache, logits = step(params, cache, last, cfg=cfg, dtype=dtype)
        token = choice(logits, seeds, place, temperature)
        done = done | (token == cfg.eos) | (token == BROKEN)
        ids = jax.lax.dynamic_update_index_in_dim(ids, token, place, axis=1)
        counts = counts + ~done
        done = done | (counts >= limit)
        if stop == "first":
            done = done | done[0]
        return place + 1, cache, token, ids, counts, done

    start = (
        0,
        mot.CacheByLayer.of(cache),
        jnp.full(rows, cfg.bos, jnp.int32),
        jnp.full((rows, max_tokens), -1, jnp.int32),
        jnp.zeros(rows, jnp.int32),
        limit <= 0,
    )
    _, _, _, ids, counts, _ = jax.lax.while_loop(unfinished, write, start)
    return ids, counts


@functools.partial(jax.jit, static_argnames=("cfg", "max_tokens", "stop", "dtype"))
def generate_text(
    params: Params,
    packed: Batch,
    seeds: jax.Array,
    temperature: jax.Array,
    limit: jax.Array,
    *,
    cfg: BagelConfig,
    max_tokens: int,
    stop: str,
    dtype: DTypeLike,
    places: Places | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`decode` behind contexts that it reads first (prefill): rows of `packed`, or `places` in
    these."""
    slots = context.capacity(packed, 0 if places else max_tokens + 1)
    cache = context.prefill(params, packed, cfg=cfg, slots=slots, dtype=dtype)
    if places:
        cache = shared_context.spread(cache, places)
    how = dict(cfg=cfg, max_tokens=max_tokens, stop=stop, dtype=dtype)
    return decode(params, cache, seeds, temperature, limit, **how)


@dataclasses.dataclass(frozen=True, eq=False)
class TextGenerator:
    """The model writing behind contexts.

    params: None where every call brings its own · batch: contexts a compiled call at most, those of
    like length together · window: tokens of a context with what may be written · min_rows: rows of
    a call are a multiple of it · batch_sharding: where rows lie, None: on the default device ·
    dtype: of products.
    """

    params: Params | None = dataclasses.field(repr=False)
    model: BagelConfig
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    batch: int
    window: int
    min_rows: int = 1
    batch_sharding: jax.sharding.Sharding | None = None
    dtype: DTypeLike = jnp.float32
    programs: context.Programs = dataclasses.field(default_factory=context.Programs, repr=False)

    def extent(self, one: Context) -> tuple[int, int]:
        """(tokens that a context takes, RoPE position that follows it)."""
        return context.extent(one)

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
        """The text that continues each context, in order; company in a batch changes nothing.

        max_tokens: written at most · temperature 0: the likeliest tokens · seeds: uint32, one a
        context (default 0) · stop: as in `decode` · params: in place of the generator's own.
        Raises ValueError for a context that exceeds the window with what may be written, BadInput
        where the model's numbers are not finite.
        """
        how = dict(window=self.window, max_text=self.model.max_text)
        for one in contexts:
            context.check_window(one, max_tokens + 1, **how)
        seeds = [0] * len(contexts) if seeds is None else seeds
        params = self.params if params is None else params
        begins = [Beginning.of(one) for one in contexts]
        order = range(len(contexts)) if stop == "first" else _by_length(contexts, begins)
        written: dict[int, GeneratedText] = {}
        asked = dict(max_tokens=max_tokens, temperature=temperature, stop=stop, params=params)
        # The last call takes the rows of the others: the program is there.
        asked |= dict(rows=context.rows_for(len(contexts), self.batch, self.min_rows))
        rows = list(zip(contexts, begins, seeds, strict=True))
        parts = (order[first : first + self.batch] for first in range(0, len(order), self.batch))
        calls = (
            (part, self._call(*zip(*(rows[i] for i in part), strict=True), **asked))
            for part in parts
        )
        for part, (ids, counts) in in_flight.fetched(calls):
            for row, i in enumerate(part):
                context.check_finite(BROKEN not in ids[row, : counts[row] + 1], "a text")
                mine = tuple(ids[row, : counts[row]].tolist())
                ended = counts[row] < max_tokens and ids[row, counts[row]] == self.model.eos
                written[i] = GeneratedText(self.tokenizer.decode(mine), mine, bool(ended))
        return [written[i] for i in range(len(contexts))]

    def _call(
        self,
        contexts: Sequence[Context],
        begins: Sequence[Beginning],
        seeds: Sequence[int],
        *,
        rows: int,
        max_tokens: int,
        temperature: float,
        stop: str,
        params: Params,
    ) -> tuple[jax.Array, jax.Array]:
        """One compiled call: as `decode`, rows of no context behind the others; what it writes may
        be in the making. Pictures that several contexts begin with are read once."""
        preemption.check()
        count, steps, read, places = len(contexts), bucket(max_tokens), rows, None
        different = len(shared_context.grouped(begins))
        if different < count:
            longest = max(context.extent(one)[0] for one in contexts)
            slots = bucket(longest) + bucket(max_tokens + 1)
            contexts, places = shared_context.rows(contexts, begins, rows, slots)
            read = context.rows_for(different, self.batch, self.min_rows)
        packed = context.pack(contexts, read, self.model.layout)
        sizes = {"texts": rows, **context.lengths(packed), "tokens written": steps, "stop": stop}
        sizes |= {"rows read": read, "slots": places.slots if places else 0}
        seed, limit = np.zeros(rows, np.uint32), np.zeros(rows, np.int32)
        seed[:count], limit[:count] = seeds, max_tokens
        per_row = (seed, np.full(rows, temperature, np.float32), limit)
        packed, per_row, places = put((packed, per_row, places), self.batch_sharding)
        with self.programs.first("the text generator", sizes):
            return generate_text(
                params,
                packed,
                *per_row,
                cfg=self.model,
                max_tokens=steps,
                stop=stop,
                dtype=np.dtype(self.dtype),
                places=places,
            )


def _by_length(contexts: Sequence[Context], begins: Sequence[Beginning]) -> list[int]:
    """Numbers of contexts, those that begin with the same pictures together, else by length."""
    lengths = [context.extent(one) for one in contexts]
    groups = [sorted(group, key=lengths.__getitem__) for group in shared_context.grouped(begins)]
    groups.sort(key=lambda group: lengths[group[-1]])
    return [i for group in groups for i in group]
