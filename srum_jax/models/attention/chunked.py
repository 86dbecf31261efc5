"""Attention over chunks of keys with a running softmax: memory O(S · chunk), any mask.

Written in plain XLA, so it runs everywhere. Each chunk's part of the mask is made from the tokens,
and the backward pass makes it again: nothing of size S×T exists. No chunk is skipped.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from srum_jax.data.schema import Tokens
from srum_jax.models.attention.dense import NEVER, fold, fold_mask, unfold
from srum_jax.models.attention.law import seen

_KEYS = 512  # in a chunk


def _cut(x: jax.Array, fill: float) -> jax.Array:
    """[B,T,...] -> [N,B,t,...], the last chunk filled up."""
    size = min(_KEYS, x.shape[1])
    spare = -x.shape[1] % size
    x = jnp.pad(x, ((0, 0), (0, spare)) + ((0, 0),) * (x.ndim - 2), constant_values=fill)
    return rearrange(x, "b (n t) ... -> n b t ...", t=size)


def _chunks(k: jax.Array, v: jax.Array, keys: Tokens):
    # A filler key is of segment -1, which no query has.
    return _cut(k, 0), _cut(v, 0), jax.tree.map(lambda x: _cut(x, -1), keys)


def _scores(q, k, queries, keys):
    s = jnp.einsum("bkrc,btkc->bkrt", q, k, preferred_element_type=jnp.float32)
    group = q.shape[2] // queries.segment.shape[1]
    return jnp.where(fold_mask(seen(queries, keys), group), s, NEVER)


@jax.custom_vjp
def _folded(q: jax.Array, k: jax.Array, v: jax.Array, queries: Tokens, keys: Tokens) -> jax.Array:
    return _forward(q, k, v, queries, keys)[0]


def _forward(q, k, v, queries, keys):
    def add(carry, chunk):
        o, top, total = carry
        k, v, keys = chunk
        s = _scores(q, k, queries, keys)
        new = jnp.maximum(top, jnp.max(s, axis=-1, keepdims=True))
        p, shrunk = jnp.exp(s - new), jnp.exp(top - new)
        part = jnp.einsum("bkrt,btkc->bkrc", p.astype(v.dtype), v, preferred_element_type=o.dtype)
        total = total * shrunk + jnp.sum(p, axis=-1, keepdims=True)
        return (o * shrunk + part, new, total), None

    one = jnp.zeros((*q.shape[:3], 1), jnp.float32)
    # The maximum starts above NEVER: hidden keys count nothing even where no key was seen yet.
    start = (jnp.zeros(q.shape, jnp.float32), one + NEVER / 2, one)
    (o, top, total), _ = jax.lax.scan(add, start, _chunks(k, v, keys))
    some = total > 0
    o = jnp.where(some, o / jnp.where(some, total, 1), 0)
    lse = jnp.where(some, top + jnp.log(jnp.where(some, total, 1)), 0)
    return o.astype(v.dtype), (q, k, v, queries, keys, o, lse)


def _backward(saved, g):
    q, k, v, queries, keys, o, lse = saved
    own = jnp.sum(g.astype(jnp.float32) * o, axis=-1, keepdims=True)

    def add(dq, chunk):
        k, v, keys = chunk
        p = jnp.exp(_scores(q, k, queries, keys) - lse)
        dp = jnp.einsum("bkrc,btkc->bkrt", g, v, preferred_element_type=jnp.float32)
        ds = (p * (dp - own)).astype(q.dtype)
        dq = dq + jnp.einsum("bkrt,btkc->bkrc", ds, k, preferred_element_type=dq.dtype)
        # The large array stays untransposed: transposing it costs more than the product on CPU.
        return dq, (
            jnp.einsum("bkrc,bkrt->bkct", q, ds),
            jnp.einsum("bkrc,bkrt->bkct", g, p.astype(g.dtype)),
        )

    dq, parts = jax.lax.scan(add, jnp.zeros(q.shape, jnp.float32), _chunks(k, v, keys))
    dk, dv = (rearrange(x, "n b k c t -> b (n t) k c")[:, : k.shape[1]] for x in parts)
    return dq.astype(q.dtype), dk, dv, None, None


_folded.defvjp(_forward, _backward)


def prepare(queries: Tokens, keys: Tokens) -> tuple[Tokens, Tokens]:
    """The tokens themselves: masks are made chunk by chunk."""
    return queries, keys


def run(q: jax.Array, k: jax.Array, v: jax.Array, tables: tuple[Tokens, Tokens]) -> jax.Array:
    """Attention of q [B,S,H,C] to k, v [B,T,K,C] under `law.seen`; returns [B,S,H,C]."""
    kv_heads = k.shape[2]
    return unfold(_folded(fold(q, kv_heads), k, v, *tables), q.shape[2] // kv_heads)
