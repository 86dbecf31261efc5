"""Text out of the model, written token by token behind a KV cache, many contexts in one batch."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from srum_jax.core import sharding
from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import put
from srum_jax.data.schema import Batch
from srum_jax.generation import context, shared_context
from srum_jax.generation.base import BROKEN, BaseTextGenerator
from srum_jax.generation.base import GeneratedText as GeneratedText  # part of what is here
from srum_jax.generation.context import Context, bucket
from srum_jax.generation.shared_context import Beginning, Places
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import mot
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.models.layers import cut

_cut = jax.jit(cut)
SPARE = 1.1  # times what a device holds of a model: a tenth for its programs


def stays_stacked(params: Params, room: int | None = None) -> bool:
    """Whether layers stay stacked while a text is written, as a device has too little memory for
    those of the understanding expert once more, apart.

    room: bytes that programs may use on a device, None: on those that are here.
    Stacked layers are scanned for every token; a TPU reads each of them where it lies, other
    machines move several times the bytes (docs/performance.md).
    """
    if isinstance(params["blocks"], tuple):
        return False
    if room is None:
        room = sharding.memory(jax.local_devices()[0])
    held, more = map(sharding.bytes_per_device, (params, params["blocks"]["und"]))
    return SPARE * (held + more) > room


def writing_params(params: Params) -> Params:
    """The parameters as `step` reads them where each token is a call of its own: layer by layer, of
    the expert that writes alone; or as they are (`stays_stacked`)."""
    if stays_stacked(params):
        return params
    return {**params, "blocks": tuple({"und": one} for one in _cut(params["blocks"]["und"]))}


@jax.named_scope("token_step")
def step(
    params: Params, cache: mot.WritingCache, ids: jax.Array, *, cfg: BagelConfig, dtype: DTypeLike
) -> tuple[mot.WritingCache, jax.Array]:
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
    stacked: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Writes after each row's cache until its end mark: (ids [B,max_tokens], counts [B]) int32.

    seeds [B] uint32 and temperature [B]: 0 takes the likeliest token, otherwise one is drawn from
    softmax(logits / temperature), a function of seed and place alone. limit [B]: tokens a row may
    write. A row's ids end before its end mark; counts says where (its limit if there was none), and
    past that a mark stands only if the row wrote one, and -2 where its logits were not finite.
    `stop`: "each" row by itself; "first": all when row 0 does, as the original. The cache must have
    max_tokens free slots. With "each" a row's text does not depend on its company. `stacked`:
    layers stay so, as `stays_stacked` says.
    """
    if stop not in ("each", "first"):
        raise ValueError(f"stop must be each or first, not {stop!r}")
    rows = cache.length.shape[0]
    if stacked:
        # What the loop wants laid out in another way is so only once the reading needs no memory.
        params, cache = jax.lax.optimization_barrier((params, cache))
    else:
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
        mot.WritingCache.of(cache, stacked=stacked),
        jnp.full(rows, cfg.bos, jnp.int32),
        jnp.full((rows, max_tokens), -1, jnp.int32),
        jnp.zeros(rows, jnp.int32),
        limit <= 0,
    )
    _, _, _, ids, counts, _ = jax.lax.while_loop(unfinished, write, start)
    return ids, counts


@functools.partial(jax.jit, static_argnames=("cfg", "max_tokens", "stop", "dtype", "stacked"))
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
    stacked: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """`decode` behind contexts that it reads first (prefill): rows of `packed`, or `places` in
    these."""
    slots = context.capacity(packed, 0 if places else max_tokens + 1)
    cache = context.prefill(params, packed, cfg=cfg, slots=slots, dtype=dtype)
    if places:
        cache = shared_context.spread(cache, places)
    how = dict(cfg=cfg, max_tokens=max_tokens, stop=stop, dtype=dtype, stacked=stacked)
    return decode(params, cache, seeds, temperature, limit, **how)


@dataclasses.dataclass(frozen=True, eq=False)
class TextGenerator(BaseTextGenerator):
    """BAGEL writing behind contexts."""

    model: BagelConfig

    def extent(self, one: Context) -> tuple[int, int]:
        """(tokens that a context takes, RoPE position that follows it)."""
        return context.extent(one)

    def read(self, one: Context, max_tokens: int) -> tuple[Context, Beginning]:
        """The context, and the pictures that it begins with."""
        how = dict(window=self.window, max_text=self.model.max_text)
        context.check_window(one, max_tokens + 1, **how)
        return one, Beginning.of(one)

    def _groups(self, read: Sequence[tuple[Context, Beginning]], stop: str) -> list[Sequence[int]]:
        return [range(len(read)) if stop == "first" else _by_length(read)]

    def _call(self, read, per_row, max_tokens, stop, params) -> tuple[jax.Array, jax.Array]:
        """Pictures that several contexts begin with are read once."""
        contexts, begins = zip(*read, strict=True)
        rows, steps, places = len(per_row[0]), bucket(max_tokens), None
        reading = rows
        different = len(shared_context.grouped(begins))
        if different < len(contexts):
            longest = max(context.extent(one)[0] for one in contexts)
            slots = bucket(longest) + bucket(max_tokens + 1)
            contexts, places = shared_context.rows(contexts, begins, rows, slots)
            reading = context.rows_for(different, self.batch, self.min_rows)
        packed = context.pack(contexts, reading, self.model.layout)
        sizes = {"texts": rows, **context.lengths(packed), "tokens written": steps, "stop": stop}
        sizes |= {"rows read": reading, "slots": places.slots if places else 0}
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
                stacked=stays_stacked(params),
            )


def _by_length(read: Sequence[tuple[Context, Beginning]]) -> list[int]:
    """Numbers of contexts, those that begin with the same pictures together, else by length."""
    lengths, begins = [context.extent(one) for one, _ in read], [begin for _, begin in read]
    groups = [sorted(group, key=lengths.__getitem__) for group in shared_context.grouped(begins)]
    groups.sort(key=lambda group: lengths[group[-1]])
    return [i for group in groups for i in group]
