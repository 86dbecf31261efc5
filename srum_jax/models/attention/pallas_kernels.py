"""Kernels of attention for GPUs: FlashAttention-2 (Dao 2023) with an interval of keys a query.

Written in Pallas and lowered to Triton, which JAX has called deprecated since 0.11 and still has in
0.12. A program has one block of one row and head; references are parts of arrays in the card's
memory, read where they are indexed. Imported only where the back-end runs.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from srum_jax.models.attention.dense import NEVER


@dataclasses.dataclass(frozen=True)
class How:
    """scale: of scores · block: places of one program · step: places of the other side that it
    reads at a time, a divisor of `block` · interpret: run without a GPU."""

    scale: float
    block: int
    step: int
    interpret: bool

    @property
    def exponent(self) -> float:
        """Of scores in powers of 2, which the card computes faster."""
        return self.scale * math.log2(math.e)


def _steps(first, end, step: int):
    """(first, last + 1) of the steps on the other side that a block meets."""
    low = jnp.min(jnp.where(end > first, first, np.iinfo(np.int32).max))
    return jax.lax.div(low, step), jax.lax.div(jnp.max(end) + (step - 1), step)


def _forward(q, k, v, first, end, o, lse, *, how: How):
    """Outputs of a block of queries over the keys they see, and log₂ of their sums."""
    queries, first, end = q[...], first[...], end[...]

    def add(i, carry):
        total, top, out = carry
        at = pl.ds(i * how.step, how.step)
        values = v[at, :]
        s = triton.dot(queries, k[at, :], trans_b=True) * how.exponent
        s = jnp.where(_inside(i, how.step, first, end), s, NEVER)
        new = jnp.maximum(top, jnp.max(s, axis=1))
        p, shrunk = jnp.exp2(s - new[:, None]), jnp.exp2(top - new)
        out = out * shrunk[:, None] + triton.dot(p.astype(values.dtype), values)
        return total * shrunk + jnp.sum(p, axis=1), new, out

    none = jnp.zeros(first.shape, jnp.float32)
    # The maximum starts above NEVER: hidden keys count nothing even where no key was seen yet.
    start = none, none + NEVER / 2, jnp.zeros(queries.shape, jnp.float32)
    total, top, out = jax.lax.fori_loop(*_steps(first, end, how.step), add, start)
    total = jnp.where(total > 0, total, 1.0)
    o[...] = (out / total[:, None]).astype(o.dtype)
    lse[...] = top + jnp.log2(total)


def _inside(i, step: int, first, end):
    """Which of a block of queries see which keys of step i: bool [block, step]."""
    key = (i * step + jax.lax.iota(jnp.int32, step))[None]
    return (key >= first[:, None]) & (key < end[:, None])


def _of_queries(q, k, v, g, lse, own, first, end, dq, *, how: How):
    """Gradients of a block of queries; `own`: the sum of g·o over features."""
    queries, pull, lse, own, first, end = (x[...] for x in (q, g, lse, own, first, end))

    def add(i, dq):
        at = pl.ds(i * how.step, how.step)
        keys = k[at, :]
        s = triton.dot(queries, keys, trans_b=True) * how.exponent
        p = jnp.where(_inside(i, how.step, first, end), jnp.exp2(s - lse[:, None]), 0.0)
        ds = p * (triton.dot(pull, v[at, :], trans_b=True) - own[:, None])
        return dq + triton.dot(ds.astype(keys.dtype), keys)

    start = jnp.zeros(queries.shape, jnp.float32)
    out = jax.lax.fori_loop(*_steps(first, end, how.step), add, start)
    dq[...] = (out * how.scale).astype(dq.dtype)


def _of_keys(q, k, v, g, lse, own, first, end, seen_from, seen_to, dk, dv, *, how: How):
    """Gradients of a block of keys and values, summed over the query heads that read them."""
    keys, values = k[...], v[...]
    low, high = _steps(seen_from[...], seen_to[...], how.step)
    key = (pl.program_id(0) * how.block + jax.lax.iota(jnp.int32, how.block))[:, None]

    def head(h, carry):
        def add(i, carry):
            dk, dv = carry
            at = pl.ds(i * how.step, how.step)
            queries, pull = q[h, at, :], g[h, at, :]
            inside = (key >= first[at][None]) & (key < end[at][None])
            s = triton.dot(keys, queries, trans_b=True) * how.exponent
            p = jnp.where(inside, jnp.exp2(s - lse[h, at][None]), 0.0)
            dv = dv + triton.dot(p.astype(pull.dtype), pull)
            ds = p * (triton.dot(values, pull, trans_b=True) - own[h, at][None])
            return dk + triton.dot(ds.astype(queries.dtype), queries), dv

        return jax.lax.fori_loop(low, high, add, carry)

    start = jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32)
    out_k, out_v = jax.lax.fori_loop(0, q.shape[0], head, start)
    dk[...] = (out_k * how.scale).astype(dk.dtype)
    dv[...] = out_v.astype(dv.dtype)


# --------------------------------------------------------------------------- over whole arrays


def _run(kernel, how: How, grid, ins, outs, *arrays):
    """A kernel on a grid of (blocks, heads, rows); `outs` are pairs of a shape and its parts.

    Blocks turn fastest: programs that run together then read the same head of the other side.
    """
    shapes, specs = zip(*outs, strict=True)
    return pl.pallas_call(
        functools.partial(kernel, how=how),
        grid=grid,
        in_specs=ins,
        out_specs=specs,
        out_shape=shapes,
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=2),
        interpret=how.interpret,
        name=f"attention{kernel.__name__}",
    )(*arrays)


def _by_queries(how: How, q, k):
    """(grid, and the parts that a program has of queries, of keys, of numbers a query and head,
    of numbers a query) where each program has a block of queries."""
    rows, heads, count, size = q.shape
    group = heads // k.shape[1]
    return (
        (count // how.block, heads, rows),
        pl.BlockSpec((None, None, how.block, size), lambda i, h, b: (b, h, i, 0)),
        pl.BlockSpec((None, None, *k.shape[2:]), lambda i, h, b: (b, jax.lax.div(h, group), 0, 0)),
        pl.BlockSpec((None, None, how.block), lambda i, h, b: (b, h, i)),
        pl.BlockSpec((None, how.block), lambda i, h, b: (b, i)),
    )


def _by_keys(how: How, q, k):
    """The same where each program has a block of keys, and last the parts of numbers a key."""
    rows, kv_heads, count, size = k.shape
    group = q.shape[1] // kv_heads
    return (
        (count // how.block, kv_heads, rows),
        pl.BlockSpec((None, group, *q.shape[2:]), lambda i, h, b: (b, h, 0, 0)),
        pl.BlockSpec((None, None, how.block, size), lambda i, h, b: (b, h, i, 0)),
        pl.BlockSpec((None, group, q.shape[2]), lambda i, h, b: (b, h, 0)),
        pl.BlockSpec((None, q.shape[2]), lambda i, h, b: (b, 0)),
        pl.BlockSpec((None, how.block), lambda i, h, b: (b, i)),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(how: How, q: jax.Array, k: jax.Array, v: jax.Array, spans) -> jax.Array:
    """Attention of q [B,H,S,C] to k, v [B,K,T,C]; S and T multiples of how.block, C a power of 2.

    spans: (first, end) of every query [B,S] and of every key [B,T], int32: a query sees the keys
    first … end - 1; no query outside a key's span sees it. What sees nothing has output 0.
    """
    return _attend_forward(how, q, k, v, spans)[0]


def _attend_forward(how, q, k, v, spans):
    grid, queries, keys, numbers, span = _by_queries(how, q, k)
    outs = (_like(q), queries), (jax.ShapeDtypeStruct(q.shape[:3], jnp.float32), numbers)
    ins = [queries, keys, keys, span, span]
    o, lse = _run(_forward, how, grid, ins, outs, q, k, v, *spans[:2])
    return o, (q, k, v, spans, o, lse)


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _attend_backward(how, saved, g):
    q, k, v, spans, o, lse = saved
    own = jnp.sum(g.astype(jnp.float32) * o.astype(jnp.float32), axis=-1)
    given = q, k, v, g.astype(q.dtype), lse, own
    grid, queries, keys, numbers, span = _by_queries(how, q, k)
    ins = [queries, keys, keys, queries, numbers, numbers, span, span]
    (dq,) = _run(_of_queries, how, grid, ins, [(_like(q), queries)], *given, *spans[:2])
    grid, queries, keys, numbers, span, own_span = _by_keys(how, q, k)
    ins = [queries, keys, keys, queries, numbers, numbers, span, span, own_span, own_span]
    outs = (_like(k), keys), (_like(v), keys)
    dk, dv = _run(_of_keys, how, grid, ins, outs, *given, *spans)
    return dq, dk, dv, None


attend.defvjp(_attend_forward, _attend_backward)
