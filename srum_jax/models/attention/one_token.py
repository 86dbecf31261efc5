"""Attention of one new token a row, whose key and value the cache already holds: writing text."""

import jax
import jax.numpy as jnp
from einops import rearrange

from srum_jax.models.attention.dense import NEVER


def attend_one(
    q: jax.Array, k: jax.Array, v: jax.Array, length: jax.Array, start: jax.Array | None = None
) -> jax.Array:
    """Softmax attention of one query a row over the first `length` [B] slots of its cache, without
    those before `start` [B], where that is given.

    q [B,H,C] (`scaled`), k, v [B,K,T,C]: heads lie before slots, as the products read them. Scores
    and softmax are float32. Returns [B,H,C] in v's dtype.
    """
    kv_heads, slots = k.shape[1:3]
    q = rearrange(q, "b (k g) c -> b k g c", k=kv_heads)
    slot = jnp.arange(slots)[None]
    used = slot < length[:, None]
    if start is not None:
        used = used & (slot >= start[:, None])
    used = rearrange(used, "b t -> b 1 1 t")
    s = jnp.einsum("bkgc,bktc->bkgt", q, k, preferred_element_type=jnp.float32)
    s = jnp.where(used, s, NEVER)
    p = jnp.exp(s - jnp.max(s, axis=-1, keepdims=True))
    total = jnp.sum(p, axis=-1, keepdims=True)
    o = jnp.einsum("bkgt,bktc->bkgc", p.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return rearrange((o / total).astype(v.dtype), "b k g c -> b (k g) c")
