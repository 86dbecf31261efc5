"""Dense attention: every score of a row at once, or as many as may be held. The reference.

`attend` is what other back-ends must equal, `read` what they must equal behind a cache, where all
new tokens see each other. A query that may see nothing has output 0 and no gradient.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jax.typing import DTypeLike

from srum_jax.data.schema import Tokens
from srum_jax.models.attention.keys import Keys
from srum_jax.models.attention.mask_rule import seen

NEVER = -1e30  # finite, so a query that may see nothing yields no NaN
_SCORES = 2**27  # of one row that are held at once; more are computed in parts


def scaled(q: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Queries [..., C] as attention takes them: over sqrt(C), in float32, then in `dtype`."""
    return (q.astype(jnp.float32) * (1.0 / math.sqrt(q.shape[-1]))).astype(dtype)


def fold(q: jax.Array, kv_heads: int) -> jax.Array:
    """Queries [B,S,H,C] -> [B,K,R,C]: the query heads of a group are rows of one matrix."""
    return rearrange(q, "b s (k g) c -> b k (g s) c", k=kv_heads)


def unfold(o: jax.Array, group: int) -> jax.Array:
    """[B,K,R,C] of queries as `fold` laid them -> [B,S,H,C]."""
    return rearrange(o, "b k (g s) c -> b s (k g) c", g=group)


def fold_mask(allowed: jax.Array, group: int) -> jax.Array:
    """bool [B,S,T] -> [B,1,R,T], as `fold` lays the queries."""
    return repeat(allowed, "b s t -> b 1 (g s) t", g=group)


def _in_parts(attend, width: int, q: jax.Array, *masks: jax.Array):
    """`attend(q, *masks)` for q [B,K,R,C], masks bool [B,1,R,T]: a tree of [B,K,R,·].

    Queries go in parts where a row has more than `_SCORES` scores of `width` keys each.
    """
    kv_heads, count = q.shape[1:3]
    parts = math.ceil(kv_heads * count * width / _SCORES)
    if parts == 1:
        return attend(q, *masks)
    size = math.ceil(count / parts)

    def cut(x):
        x = jnp.pad(x, ((0, 0), (0, 0), (0, parts * size - count), (0, 0)))
        return rearrange(x, "b k (n r) c -> n b k r c", n=parts)

    found = jax.lax.map(lambda part: attend(*part), tuple(map(cut, (q, *masks))))
    return jax.tree.map(lambda x: rearrange(x, "n b k r c -> b k (n r) c")[:, :, :count], found)


@jax.custom_vjp
def _folded(q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array) -> jax.Array:
    return _folded_forward(q, k, v, allowed)[0]


def _scores(q, k, allowed):
    s = jnp.einsum("bkqc,bktc->bkqt", q, k, preferred_element_type=jnp.float32)
    return jnp.where(allowed, s, NEVER)


def _folded_forward(q, k, v, allowed):
    def attend(q, allowed):
        s = _scores(q, k, allowed)
        top = jnp.max(s, axis=-1, keepdims=True)
        p = jnp.exp(s - top)
        total = jnp.sum(p, axis=-1, keepdims=True)
        o = jnp.einsum("bkqt,bktc->bkqc", p.astype(v.dtype), v, preferred_element_type=jnp.float32)
        some = top > NEVER
        return jnp.where(some, o / total, 0), jnp.where(some, top + jnp.log(total), 0)

    o, lse = _in_parts(attend, k.shape[2], q, allowed)
    return o.astype(v.dtype), (q, k, v, allowed, o, lse)


def _folded_backward(saved, g):
    # Every product keeps the S×T array untransposed: transposing it costs several times the
    # product itself on CPU.
    q, k, v, allowed, o, lse = saved
    p = jnp.exp(_scores(q, k, allowed) - lse)
    g32 = g.astype(jnp.float32)
    dv = jnp.einsum("bkqc,bkqt->bkct", g, p.astype(g.dtype))
    dp = jnp.einsum("bkqc,bktc->bkqt", g, v, preferred_element_type=jnp.float32)
    ds = p * (dp - jnp.sum(g32 * o, axis=-1, keepdims=True))
    ds = ds.astype(q.dtype)
    dq = jnp.einsum("bkqt,bktc->bkqc", ds, k)
    dk = jnp.einsum("bkqc,bkqt->bkct", q, ds)
    return dq, rearrange(dk, "b k c t -> b k t c"), rearrange(dv, "b k c t -> b k t c"), None


_folded.defvjp(_folded_forward, _folded_backward)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array) -> jax.Array:
    """Softmax attention with grouped keys: q [B,S,H,C], k, v [B,T,K,C], allowed bool [B,S,T].

    Query head i reads kv head i // (H/K); q is `scaled`; scores and softmax are float32.
    Returns [B,S,H,C]. The backward pass recomputes the scores, so nothing of size S×T is kept.
    """
    heads, kv_heads = q.shape[2], k.shape[2]
    group = heads // kv_heads
    q = fold(q, kv_heads)
    k = rearrange(k, "b t k c -> b k t c")
    v = rearrange(v, "b t k c -> b k t c")
    return unfold(_folded(q, k, v, fold_mask(allowed, group)), group)


def prepare(queries: Tokens, keys: Tokens) -> tuple[jax.Array, tuple[()]]:
    """(the mask, bool [B,S,T]; nothing of the keys alone)."""
    return seen(queries, keys), ()


def run(q: jax.Array, k: jax.Array, v: jax.Array, tables: tuple[jax.Array, tuple[()]]) -> jax.Array:
    """`attend` under the mask; q, the result [B,S,H,C], k, v [B,T,K,C]."""
    return attend(q, k, v, tables[0])


def read(q: jax.Array, pieces: Sequence[Keys]) -> jax.Array:
    """Attention of q [B,S,H,C] to all keys of the pieces that are real; returns [B,S,H,C].

    One softmax over all; pieces are read where they lie, never copied. Inference only.
    """
    kv_heads = pieces[0].k.shape[2]

    def shown(real):
        return None if real is None else rearrange(real, "b t -> b 1 1 t")

    attend = functools.partial(_softmax, pieces=[(x.k, x.v, shown(x.real)) for x in pieces])
    o = _in_parts(attend, sum(x.k.shape[1] for x in pieces), fold(q, kv_heads))
    return unfold(o.astype(pieces[0].v.dtype), q.shape[2] // kv_heads)


def _softmax(q: jax.Array, pieces: Sequence[tuple]) -> jax.Array:
    """float32 [B,K,R,C] of q [B,K,R,C] and pieces (k, v [B,T,K,C], what is seen: bool that
    broadcasts to [B,K,R,T], None: everything)."""

    def scores(k, seen):
        s = jnp.einsum("bkqc,btkc->bkqt", q, k, preferred_element_type=jnp.float32)
        return s if seen is None else jnp.where(seen, s, NEVER)

    def values(p, v):
        p = p.astype(v.dtype)
        return jnp.einsum("bkqt,btkc->bkqc", p, v, preferred_element_type=jnp.float32)

    every = [scores(k, seen) for k, _, seen in pieces]
    top = functools.reduce(jnp.maximum, [jnp.max(s, -1, keepdims=True) for s in every])
    every = [jnp.exp(s - top) for s in every]
    total = sum(jnp.sum(p, -1, keepdims=True) for p in every)
    return sum(values(p, v) for p, (_, v, _) in zip(every, pieces, strict=True)) / total
