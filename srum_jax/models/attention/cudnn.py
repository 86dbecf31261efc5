"""Attention by cuDNN on NVIDIA GPUs: float16 or bfloat16; scores are never stored.

Any mask, as a bias of size S×T that is read in full in every layer, no block skipped (`run`).
Where a row's queries all read the same keys, their number says which: no mask (`read`).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from srum_jax.data.schema import Tokens
from srum_jax.models.attention.keys import Keys, joined
from srum_jax.models.attention.mask_rule import seen

_IMPLEMENTATION = "cudnn"  # tests put the plain one of the same function in its place


def _even(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """cuDNN's backward pass needs even lengths under a mask."""
    return jnp.pad(x, [(0, x.shape[a] % 2 if a in axes else 0) for a in range(x.ndim)])


def _check(k: jax.Array) -> None:
    if _IMPLEMENTATION == "cudnn" and k.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"cuDNN attention needs bfloat16 or float16, not {k.dtype}")


def prepare(queries: Tokens, keys: Tokens) -> tuple[jax.Array, tuple[()]]:
    """(the mask, bool [B,S,T]; nothing of the keys alone)."""
    return seen(queries, keys), ()


def run(q: jax.Array, k: jax.Array, v: jax.Array, tables: tuple[jax.Array, tuple[()]]) -> jax.Array:
    """Attention of q [B,S,H,C] to k, v [B,T,K,C] under the mask; returns [B,S,H,C].

    Raises ValueError for float32; cuDNN itself refuses head sizes it cannot do.
    """
    allowed, _ = tables
    _check(k)
    o = jax.nn.dot_product_attention(
        _even(q, (1,)),
        _even(k, (1,)),
        _even(v, (1,)),
        mask=_even(allowed, (1, 2))[:, None],
        scale=1.0,
        implementation=_IMPLEMENTATION,
    )
    # Where nothing may be seen cuDNN takes the mean of all values.
    return jnp.where(jnp.any(allowed, axis=-1)[:, :, None, None], o[:, : q.shape[1]], 0)


def read(q: jax.Array, pieces: Sequence[Keys]) -> jax.Array:
    """Attention of q [B,S,H,C] to all keys of the pieces that are real; returns [B,S,H,C].

    What is real must come first, in all pieces together: it is brought there unless no piece but
    the last has padding. The last has its own padding last. Raises ValueError as `run`.
    """
    _check(pieces[0].k)
    keys = joined(pieces)
    k, v, count = keys.k, keys.v, None
    if keys.real is not None:
        count = jnp.sum(keys.real, axis=1, dtype=jnp.int32)
        if any(piece.real is not None for piece in pieces[:-1]):
            order = jnp.argsort(~keys.real, axis=1, stable=True)[:, :, None, None]
            k, v = (jnp.take_along_axis(x, order, axis=1) for x in (k, v))
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=count, scale=1.0, implementation=_IMPLEMENTATION
    )
