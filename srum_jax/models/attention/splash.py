"""Attention by the Pallas kernel for TPUs ("splash"), its mask given as intervals of packed order.

Queries and keys are brought into packed order by their index maps, and back. A query's interval
travels in the kernel's one number a query; blocks of keys that no query of a block sees are never
fetched. A query whose keys are no interval becomes NaN: `choice.py` keeps such rows away.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import struct

from srum_jax.data.schema import Tokens
from srum_jax.models.attention import intervals
from srum_jax.models.attention.keys import Keys, joined

LONGEST = 2**16 - 1  # keys of a row: an end has 16 bits
_LANES = 128  # blocks and head sizes are multiples of it
_BLOCK = 512  # queries and keys of a block, in rows that are long enough
_INTERPRET = False  # tests run the kernel without a TPU


@struct.dataclass
class QueryTables:
    """Tables of a row's queries, in packed order and padded to whole blocks (S' of them).

    order, back [B,S]: into packed order and out of it · interval [B,S'] int32: first + end·2¹⁶ ·
    good, broken [B,S] bool: sees an interval; sees something that is none · of each block of
    queries and of keys [B,I,J] int32: `runs` whether they meet, `next_keys` which keys to fetch
    there, `next_queries` which queries, where keys are the outer loop.
    """

    order: jax.Array
    back: jax.Array
    interval: jax.Array
    good: jax.Array
    broken: jax.Array
    runs: jax.Array
    next_keys: jax.Array
    next_queries: jax.Array


def _block(count: int) -> int:
    return _BLOCK if count >= 2 * _BLOCK else _LANES


def _whole(x: jax.Array, axis: int, size: int) -> jax.Array:
    """x with zeros after it up to a multiple of `size` along an axis."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, -x.shape[axis] % size)
    return jnp.pad(x, pads)


def prepare(queries: Tokens, keys: Tokens) -> tuple[QueryTables, jax.Array]:
    """(tables of the queries, packed order of the keys [B,T]). Raises ValueError for long rows."""
    count, total = queries.segment.shape[1], keys.segment.shape[1]
    if total > LONGEST:
        raise ValueError(f"splash attention reads rows of at most {LONGEST} tokens, not {total}")
    order, order_keys = intervals.order(queries), intervals.order(keys)
    sorted_keys = intervals.take(keys, order_keys)
    first, end, whole = intervals.bounds(intervals.take(queries, order), sorted_keys)
    some = end > first
    first, end = (_whole(x, 1, _block(count)) for x in (first, end))

    step = _block(total)
    blocks = functools.partial(rearrange, pattern="b (i s) -> b i s", s=_block(count))
    low = jnp.min(jnp.where(blocks(end) > blocks(first), blocks(first), total), axis=-1)
    high = jnp.max(blocks(end), axis=-1)
    # A block of queries that see nothing meets the first keys: its sums stay finite.
    low, high = jnp.where(high > 0, low // step, 0), jnp.maximum(-(-high // step), 1)
    j = jnp.arange(-(-total // step), dtype=jnp.int32)[None, None]
    low, high = low[:, :, None], high[:, :, None]
    runs = (j >= low) & (j < high)
    i = jnp.arange(runs.shape[1], dtype=jnp.int32)[None, :, None]
    top = jnp.min(jnp.where(runs, i, i.size - 1), axis=1, keepdims=True)
    bottom = jnp.max(jnp.where(runs, i, 0), axis=1, keepdims=True)
    tables = QueryTables(
        order=order,
        back=jnp.argsort(order, axis=1),
        interval=first | (end << 16),
        good=some & whole,
        broken=~whole,
        runs=runs.astype(jnp.int32),
        # What does not run fetches what runs next to it, so nothing is fetched in vain.
        next_keys=jnp.clip(j, low, high - 1),
        next_queries=jnp.clip(i, jnp.minimum(top, bottom), bottom),
    )
    return tables, order_keys


def _within(interval, key):
    """The kernel's mask: `interval` of each query, `key` the place of each key."""
    return (key >= (interval & 0xFFFF)) & (key < ((interval >> 16) & 0xFFFF))


def _kernel(row: QueryTables, queries: int, keys: int) -> Any:
    """The kernel of one row's tables."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as lib
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as info

    def mask_info(following):
        return info.MaskInfo(
            data_next=following[None],
            mask_next=None,
            block_mask=row.runs[None],
            partial_mask_blocks=None,
            q_sequence=row.interval,
        )

    return lib.SplashAttentionKernel(
        mask_info(row.next_keys),
        mask_info(row.next_keys),
        mask_info(row.next_queries),
        block_sizes=lib.BlockSizes(
            block_q=queries,
            block_kv=keys,
            block_q_dkv=queries,
            block_kv_dkv=keys,
            block_q_dq=queries,
            block_kv_dq=keys,
        ),
        is_mqa=False,
        save_residuals=False,
        mask_value=lib.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=None,
        mask_function=_within,
        interpret=_INTERPRET,
    )


def run(
    q: jax.Array, k: jax.Array, v: jax.Array, tables: tuple[QueryTables, jax.Array]
) -> jax.Array:
    """Attention of q [B,S,H,C] to k, v [B,T,K,C] under `mask_rule.seen`; returns [B,S,H,C]."""
    of, order_keys = tables
    count, size = q.shape[1], q.shape[-1]
    block_q, block_k = _block(count), _block(k.shape[1])

    def laid(x, order, block):
        x = _whole(_whole(intervals.take(x, order), 1, block), 3, _LANES)
        return rearrange(x, "b s h c -> b h s c")

    q = laid(q, of.order, block_q)
    k, v = (laid(x, order_keys, block_k) for x in (k, v))

    def one(row):
        tables, *qkv = row
        return _kernel(tables, block_q, block_k)(*qkv)

    # Row after row: each has its own tables.
    o = jax.lax.map(one, (of, q, k, v))
    o = rearrange(o, "b h s c -> b s h c")[:, :count, :, :size]
    o = jnp.where(of.good[:, :, None, None], o, 0)
    o = jnp.where(of.broken[:, :, None, None], np.nan, o)
    return intervals.take(o, of.back)


def _fitting(count: int) -> int:
    """The largest block that pads `count` tokens by a sixteenth at most, or the one that pads
    least."""
    sizes = range(_BLOCK, 0, -_LANES)
    padded = {size: -(-count // size) * size for size in sizes}
    fine = [size for size in sizes if 16 * padded[size] <= 17 * count]
    return fine[0] if fine else min(sizes, key=padded.__getitem__)


def read(q: jax.Array, pieces: Sequence[Keys]) -> jax.Array:
    """Attention of q [B,S,H,C] to all keys of the pieces that are real; returns [B,S,H,C].

    Padding has a segment of its own, which no query reads; no array is as large as S×T.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as lib
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    keys, (count, heads, size) = joined(pieces), q.shape[1:]
    block_q, block_k = _fitting(count), _fitting(keys.k.shape[1])
    real = jnp.ones(keys.k.shape[:2], bool) if keys.real is None else keys.real

    def laid(x, block):
        return rearrange(_whole(_whole(x, 1, block), 3, _LANES), "b s h c -> b h s c")

    q, k, v = laid(q, block_q), laid(keys.k, block_k), laid(keys.v, block_k)
    real = _whole(real, 1, block_k).astype(jnp.int32)
    everything = masks.MultiHeadMask([masks.FullMask((q.shape[2], k.shape[2]))] * heads)
    kernel = lib.make_splash_mha_single_device(
        everything,
        block_sizes=lib.BlockSizes(block_q=block_q, block_kv=block_k),
        interpret=_INTERPRET,
    )
    one = jnp.ones(q.shape[2], jnp.int32)
    o = jax.vmap(lambda q, k, v, real: kernel(q, k, v, lib.SegmentIds(one, real)))(q, k, v, real)
    return rearrange(o, "b h s c -> b s h c")[:, :count, :, :size]
