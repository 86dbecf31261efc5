"""bfloat16 as the original rounds: its numbers, and its attention's order, in NumPy and float64.

`flash_attn_varlen_func` of FlashAttention 2: products sum in float32; the softmax's numerators and
the gradients of scores are rounded before they are multiplied, every result once; the gradients
are made with the rounded output. `r` rounds to bfloat16; `exact` in its place gives the reference.
"""

from collections.abc import Callable

import ml_dtypes
import numpy as np

Round = Callable[[np.ndarray], np.ndarray]


def bf16(x):
    """The nearest bfloat16 numbers, in float64."""
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def exact(x):
    return x


def error(found, wanted):
    """Root of the mean squared difference."""
    return float(np.sqrt(np.mean(np.square(np.asarray(found, np.float64) - wanted))))


def linear(x, p, r: Round):
    """x [S,I] times p["w"] [I,…], with p["b"] if there is one: summed, then rounded once."""
    bias = p["b"].reshape(-1) if "b" in p else 0
    return r(x @ p["w"].reshape(x.shape[-1], -1) + bias)


def _weights(q, k, allowed):
    """(the softmax's numerators [H,S,T], their sums [H,S,1]); 0 where a query sees nothing."""
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    s = np.where(allowed, np.einsum("shc,thc->hst", q, k), -np.inf)
    top = s.max(axis=-1, keepdims=True)
    p = np.exp(s - np.where(np.isfinite(top), top, 0))
    total = p.sum(axis=-1, keepdims=True)
    return p, np.where(total > 0, total, 1)


def attended(q, k, v, allowed, r: Round):
    """One row: q [S,H,C], scaled; k, v [T,K,C]; allowed bool [S,T] or True -> [S,H,C]."""
    p, total = _weights(q, k, allowed)
    v = np.repeat(v, q.shape[1] // k.shape[1], axis=1)
    return r(np.einsum("hst,thc->shc", r(p), v) / total.swapaxes(0, 1))


def gradients(q, k, v, allowed, pull, r: Round):
    """Of sum(attended · pull), pull [S,H,C], in q, k and v."""
    group = q.shape[1] // k.shape[1]
    p, total = _weights(q, k, allowed)
    p = p / total
    wide_k, wide_v = (np.repeat(x, group, axis=1) for x in (k, v))
    own = np.einsum("shc,shc->hs", pull, attended(q, k, v, allowed, r))[..., None]
    ds = r(p * (np.einsum("shc,thc->hst", pull, wide_v) - own))

    def summed(x):  # over the queries of a key's group
        return r(x.reshape(len(x), -1, group, x.shape[-1]).sum(axis=2))

    return (
        r(np.einsum("hst,thc->shc", ds, wide_k)),
        summed(np.einsum("hst,shc->thc", ds, q)),
        summed(np.einsum("hst,shc->thc", r(p), pull)),
    )


def passes(q, k, v, allowed, pull, r: Round):
    """{part: [B,·,·,C]} of the output and the gradients, of rows [B,…] of the above."""
    rows = [
        (attended(*row[:4], r), *gradients(*row, r))
        for row in zip(q, k, v, allowed, pull, strict=True)
    ]
    return dict(zip(("o", "dq", "dk", "dv"), map(np.array, zip(*rows, strict=True)), strict=True))


def assert_errs_no_more(found, given, slack):
    """That the parts `found` of `passes` of `given`, numbers of bfloat16, err at most `slack` times
    as much as the original's order of rounding does."""
    wanted, theirs = passes(*given, exact), passes(*given, bf16)
    shares = {
        part: error(values, wanted[part]) / error(theirs[part], wanted[part])
        for part, values in found.items()
    }
    assert all(0 < share <= slack for share in shares.values()), shares
