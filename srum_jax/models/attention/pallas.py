"""Attention by our own kernels for GPUs (`pallas_kernels.py`), masks as intervals of packed order.

Nothing of size S×T is stored, and keys that no query of a block sees are neither read nor computed,
in either pass. Queries and keys are brought into packed order by their index maps, and back. A
query whose keys are no interval becomes NaN: `intervals.gap` finds such samples before.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import struct

from srum_jax.data.schema import Tokens
from srum_jax.models.attention import intervals

_BLOCK = 128  # queries, or in the backward pass keys, of one program
_STEP = 64  # keys, or queries, that a program reads at a time
_NARROWEST = 16  # features that a product needs at least
_INTERPRET = False  # tests run the kernels without a GPU


@struct.dataclass
class Queries:
    """Tables of a row's queries, in packed order.

    order, back [B,S] int32: into packed order and out of it · first, end [B,S'] int32, padded to
    whole blocks: the keys that a query sees, 0, 0 for nothing · broken [B,S] bool: sees what is no
    interval · seen_from, seen_to [B,T'] int32, of the keys: the queries that see a key and those
    between them.
    """

    order: jax.Array
    back: jax.Array
    first: jax.Array
    end: jax.Array
    broken: jax.Array
    seen_from: jax.Array
    seen_to: jax.Array


def _whole(x: jax.Array, axis: int, size: int) -> jax.Array:
    """x with zeros after it up to a multiple of `size` along an axis."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, -x.shape[axis] % size)
    return jnp.pad(x, pads)


@jax.custom_vjp
def _moved(x: jax.Array, order: jax.Array, back: jax.Array) -> jax.Array:
    """`intervals.take`, whose gradient goes back by the other order: no scatter, slow on GPUs."""
    return intervals.take(x, order)


_moved.defvjp(
    lambda x, order, back: (intervals.take(x, order), back),
    lambda back, g: (intervals.take(g, back), None, None),
)


def prepare(queries: Tokens, keys: Tokens) -> tuple[Queries, tuple[jax.Array, jax.Array]]:
    """(tables of the queries, of the keys [B,T]: into packed order and out of it)."""
    order, order_keys = intervals.order(queries), intervals.order(keys)
    queries, keys = intervals.take(queries, order), intervals.take(keys, order_keys)
    first, end, whole = intervals.bounds(queries, keys)
    spans = (first, end, *intervals.seen_by(queries, keys))
    first, end, seen_from, seen_to = (_whole(x, 1, _BLOCK) for x in spans)
    back, back_keys = jnp.argsort(order, axis=1), jnp.argsort(order_keys, axis=1)
    of_queries = Queries(order, back, first, end, ~whole, seen_from, seen_to)
    return of_queries, (order_keys, back_keys)


def run(q: jax.Array, k: jax.Array, v: jax.Array, tables) -> jax.Array:
    """Attention of q [B,S,H,C] to k, v [B,T,K,C] under `mask_rule.seen`; returns [B,S,H,C].

    Raises ValueError for float32, for which the kernels' blocks are too large for a card.
    """
    from srum_jax.models.attention import pallas_kernels as kernels

    if not _INTERPRET and q.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"attention by pallas needs bfloat16 or float16, not {q.dtype}")
    of, of_keys = tables
    count, size = q.shape[1], q.shape[-1]
    wide = max(_NARROWEST, 1 << (size - 1).bit_length())  # a power of 2, as Triton needs

    def laid(x, order, back):
        x = _whole(_whole(_moved(x, order, back), 1, _BLOCK), 3, wide)
        return rearrange(x, "b s h c -> b h s c")

    how = kernels.How(scale=size**-0.5, block=_BLOCK, step=_STEP, interpret=_INTERPRET)
    spans = of.first, of.end, of.seen_from, of.seen_to
    q, k, v = laid(q, of.order, of.back), laid(k, *of_keys), laid(v, *of_keys)
    o = kernels.attend(how, q, k, v, spans)
    o = rearrange(o, "b h s c -> b s h c")[:, :count, :, :size]
    o = jnp.where(of.broken[:, :, None, None], np.nan, o)
    return _moved(o, of.back, of.order)
