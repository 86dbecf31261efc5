"""Attention by cuDNN on NVIDIA GPUs: float16 or bfloat16, any mask, as a bias of size S×T.

No block is skipped; the mask of a row is read in full in every layer, scores are never stored.
"""

import jax
import jax.numpy as jnp

from srum_jax.data.schema import Tokens
from srum_jax.models.attention.mask_rule import seen

_IMPLEMENTATION = "cudnn"  # tests put the plain one of the same function in its place


def _even(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """cuDNN's backward pass needs even lengths under a mask."""
    return jnp.pad(x, [(0, x.shape[a] % 2 if a in axes else 0) for a in range(x.ndim)])


def prepare(queries: Tokens, keys: Tokens) -> tuple[jax.Array, tuple[()]]:
    """(the mask, bool [B,S,T]; nothing of the keys alone)."""
    return seen(queries, keys), ()


def run(q: jax.Array, k: jax.Array, v: jax.Array, tables: tuple[jax.Array, tuple[()]]) -> jax.Array:
    """Attention of q [B,S,H,C] to k, v [B,T,K,C] under the mask; returns [B,S,H,C].

    Raises ValueError for float32; cuDNN itself refuses head sizes it cannot do.
    """
    allowed, _ = tables
    if _IMPLEMENTATION == "cudnn" and k.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"cuDNN attention needs bfloat16 or float16, not {k.dtype}")
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
