"""Attention over blocks of queries and keys with a running softmax: any mask, nothing of size S×T.

Written in plain XLA, so it runs everywhere. A block of queries meets only those blocks of keys that
one of its queries sees something of. Where all of them see all of it there is no mask; elsewhere
their part of it is made from the tokens when they meet, and once more in the backward pass.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import struct

from srum_jax.data.schema import Tokens
from srum_jax.models.attention.dense import NEVER
from srum_jax.models.attention.keys import Keys
from srum_jax.models.attention.mask_rule import seen

# Tokens of a block. On a CPU the scores of a few heads stay in its caches.
_QUERIES, _KEYS = 256, 512


@struct.dataclass
class QueryBlocks:
    """Blocks of a row's queries: their `tokens` [B,I,s], and the blocks of keys that each meets,
    the first `count` [B,I] numbers of `others` [B,I,J] int32, of which it sees the first `whole`
    [B,I] wholly."""

    tokens: Tokens
    others: jax.Array
    whole: jax.Array
    count: jax.Array


def _blocks(x: jax.Array, size: int, axis: int = 0) -> jax.Array:
    """[..., S, ...] -> [..., N, s, ...] along an axis, the last block filled up with 0 (a token of
    zeros is padding)."""
    size = min(size, x.shape[axis])
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, -x.shape[axis] % size)
    x = jnp.pad(x, pads)
    return x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])


def prepare(queries: Tokens, keys: Tokens) -> tuple[QueryBlocks, Tokens]:
    """(blocks of the queries and whom they meet, blocks of the keys [B,J,t])."""
    queries = jax.tree.map(lambda x: _blocks(x, _QUERIES, 1), queries)
    keys = jax.tree.map(lambda x: _blocks(x, _KEYS, 1), keys)

    def meets(queries):  # of one block in every row, [B,s]
        every = jax.tree.map(lambda x: rearrange(x, "b j t -> b (j t)"), keys)
        found = rearrange(seen(queries, every), "b s (j t) -> b s j t", j=keys.segment.shape[1])
        return jnp.all(found, axis=(1, 3)), jnp.any(found, axis=(1, 3))

    found = jax.lax.map(meets, jax.tree.map(lambda x: rearrange(x, "b i s -> i b s"), queries))
    whole, met = (rearrange(x, "i b j -> b i j").astype(jnp.int32) for x in found)
    others = jnp.argsort(-met - whole, axis=-1, stable=True).astype(jnp.int32)
    return QueryBlocks(queries, others, jnp.sum(whole, axis=-1), jnp.sum(met, axis=-1)), keys


def _at(tree, i: jax.Array):
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), tree)


def _meeting_all(of: QueryBlocks, meet: Callable, start):
    """`start` carried through `meet(n, carry, masked)` with each block of keys that a block meets;
    `masked`: some query does not see some key of it."""
    carry = jax.lax.fori_loop(0, of.whole, functools.partial(meet, masked=False), start)
    return jax.lax.fori_loop(of.whole, of.count, functools.partial(meet, masked=True), carry)


def _scores(q, k, queries, keys, masked):
    """float32 [R,t] of q [R,C], R = group · s, and k [t,C]; NEVER where hidden, if `masked`."""
    s = jnp.einsum("rc,tc->rt", q, k, preferred_element_type=jnp.float32)
    if not masked:
        return s
    queries, keys = jax.tree.map(lambda x: x[None], (queries, keys))
    allowed = seen(queries, keys)
    by_head = rearrange(s, "(g s) t -> g s t", s=allowed.shape[1])
    return jnp.where(allowed, by_head, NEVER).reshape(s.shape)


# What queries [...,R,C] have of the keys met so far: their sum [...,R,C], the greatest score and
# the sum of exponentials [...,R,1], all float32.
_Met = tuple[jax.Array, jax.Array, jax.Array]


def _unmet(q: jax.Array) -> _Met:
    one = jnp.zeros((*q.shape[:-1], 1), jnp.float32)
    # The maximum starts above NEVER: hidden keys count nothing even where none was seen yet.
    return jnp.zeros(q.shape, jnp.float32), one + NEVER / 2, one


def _met(before: _Met, s: jax.Array, v: jax.Array) -> _Met:
    """With keys of scores s [...,R,t] and values v [...,t,C] besides."""
    o, top, total = before
    new = jnp.maximum(top, jnp.max(s, axis=-1, keepdims=True))
    p, shrunk = jnp.exp(s - new), jnp.exp(top - new)
    part = jnp.einsum(
        "...rt,...tc->...rc", p.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return o * shrunk + part, new, total * shrunk + jnp.sum(p, axis=-1, keepdims=True)


# One row and kv head, in blocks: q [I,R,C] of the queries that read it, k, v [J,t,C].
@jax.custom_vjp
def _head(
    q: jax.Array, k: jax.Array, v: jax.Array, queries: QueryBlocks, keys: Tokens
) -> jax.Array:
    return _head_forward(q, k, v, queries, keys)[0]


def _head_forward(q, k, v, queries, keys):
    def block(x):
        q, of = x

        def meet(n, carry, masked):
            k_, v_, tokens = _at((k, v, keys), of.others[n])
            return _met(carry, _scores(q, k_, of.tokens, tokens, masked), v_)

        o, top, total = _meeting_all(of, meet, _unmet(q))
        some = total > 0
        total = jnp.where(some, total, 1)
        return o / total, jnp.where(some, top + jnp.log(total), 0)

    o, lse = jax.lax.map(block, (q, queries))
    return o.astype(v.dtype), (q, k, v, queries, keys, o, lse)


def _head_backward(saved, g):
    q, k, v, queries, keys, o, lse = saved
    own = jnp.sum(g.astype(jnp.float32) * o, axis=-1, keepdims=True)

    def block(sums, x):
        q, g, lse, own, of = x

        def meet(n, carry, masked):
            dq, dk, dv = carry
            j = of.others[n]
            k_, v_, tokens = _at((k, v, keys), j)
            p = jnp.exp(_scores(q, k_, of.tokens, tokens, masked) - lse)
            dp = jnp.einsum("rc,tc->rt", g, v_, preferred_element_type=jnp.float32)
            ds = (p * (dp - own)).astype(q.dtype)
            # The scores stay untransposed: transposing them costs more than the product on CPU.
            into = functools.partial(jnp.einsum, "rc,rt->ct", preferred_element_type=jnp.float32)
            dq = dq + jnp.einsum("rt,tc->rc", ds, k_, preferred_element_type=jnp.float32)
            return dq, dk.at[j].add(into(q, ds)), dv.at[j].add(into(g, p.astype(g.dtype)))

        start = (jnp.zeros(q.shape, jnp.float32), *sums)
        dq, *sums = _meeting_all(of, meet, start)
        return tuple(sums), dq

    none = jnp.zeros((k.shape[0], k.shape[2], k.shape[1]), jnp.float32)
    (dk, dv), dq = jax.lax.scan(block, (none, none), (q, g, lse, own, queries))
    dk, dv = (rearrange(x, "j c t -> j t c").astype(k.dtype) for x in (dk, dv))
    return dq.astype(q.dtype), dk, dv, None, None


_head.defvjp(_head_forward, _head_backward)


def run(q: jax.Array, k: jax.Array, v: jax.Array, tables: tuple[QueryBlocks, Tokens]) -> jax.Array:
    """Attention of q [B,S,H,C] to k, v [B,T,K,C] under `mask_rule.seen`; returns [B,S,H,C]."""
    count, group = q.shape[1], q.shape[2] // k.shape[2]

    def one(row):
        q, k, v, queries, keys = row
        q = rearrange(_blocks(q, _QUERIES), "i s (k g) c -> k i (g s) c", g=group)
        k, v = (rearrange(_blocks(x, _KEYS), "j t k c -> k j t c") for x in (k, v))
        o = jax.lax.map(lambda head: _head(*head, queries, keys), (q, k, v))
        return rearrange(o, "k i (g s) c -> (i s) (k g) c", g=group)[:count]

    # Row after row: each has blocks of its own to meet. Head after head: scores stay small.
    return jax.lax.map(one, (q, k, v, *tables))


def _key_blocks(piece: Keys) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
    """(blocks k, v [J,B,K,t,C] and real [J,B,t] of a piece, how many hold anything real)."""
    real = piece.real
    if real is None:
        real = jnp.ones(piece.k.shape[:2], bool)
    k, v = (rearrange(_blocks(x, _KEYS, 1), "b j t k c -> j b k t c") for x in (piece.k, piece.v))
    real = rearrange(_blocks(real, _KEYS, 1), "b j t -> j b t")
    some = jnp.any(real, axis=(1, 2))
    return (k, v, real), jnp.max(jnp.where(some, jnp.arange(1, len(some) + 1), 0))


def read(q: jax.Array, pieces: Sequence[Keys]) -> jax.Array:
    """Attention of q [B,S,H,C] to all keys of the pieces that are real; returns [B,S,H,C].

    Inference only: its backward pass would keep the scores.
    """
    group, dtype = q.shape[2] // pieces[0].k.shape[2], pieces[0].v.dtype
    every = [_key_blocks(piece) for piece in pieces]

    def block(q):
        found = _unmet(q)
        for blocks, count in every:

            def meet(j, met, blocks=blocks):
                k, v, real = _at(blocks, j)
                s = jnp.einsum("bkrc,bktc->bkrt", q, k, preferred_element_type=jnp.float32)
                return _met(met, jnp.where(real[:, None, None], s, NEVER), v)

            found = jax.lax.fori_loop(0, count, meet, found)
        o, _, total = found
        return (o / jnp.where(total > 0, total, 1)).astype(dtype)

    blocks = rearrange(_blocks(q, _QUERIES, 1), "b i s (k g) c -> i b k (g s) c", g=group)
    o = rearrange(jax.lax.map(block, blocks), "i b k (g s) c -> b (i s) (k g) c", g=group)
    return o[:, : q.shape[1]]
