"""Attention of one new token a row behind its cache: writing text."""

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
    q = rearrange(q, "b (k g) c -> b k g c", k=k.shape[1])
    s = _scores(q, k, length, start)
    p = jnp.exp(s - jnp.max(s, axis=-1, keepdims=True))
    total = jnp.sum(p, axis=-1, keepdims=True)
    o = jnp.einsum("bkgt,bktc->bkgc", p.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return rearrange((o / total).astype(v.dtype), "b k g c -> b (k g) c")


def attend_new(
    q: jax.Array,
    key: jax.Array,
    value: jax.Array,
    k: jax.Array,
    v: jax.Array,
    length: jax.Array,
    seen: jax.Array,
) -> jax.Array:
    """`attend_one` over a cache and the token itself, whose key and value [B,K,C] are not in it
    yet; seen bool [B]: rows whose token sees itself. One softmax over all."""
    q = rearrange(q, "b (k g) c -> b k g c", k=k.shape[1])
    s = _scores(q, k, length)
    own = jnp.einsum("bkgc,bkc->bkg", q, key, preferred_element_type=jnp.float32)[..., None]
    own = jnp.where(seen[:, None, None, None], own, NEVER)
    top = jnp.maximum(jnp.max(s, axis=-1, keepdims=True), own)
    p, p_own = jnp.exp(s - top), jnp.exp(own - top)
    total = jnp.sum(p, axis=-1, keepdims=True) + p_own
    o = jnp.einsum("bkgt,bktc->bkgc", p.astype(v.dtype), v, preferred_element_type=jnp.float32)
    o = o + p_own.astype(v.dtype).astype(jnp.float32) * value[:, :, None].astype(jnp.float32)
    return rearrange((o / total).astype(v.dtype), "b k g c -> b (k g) c")


def _scores(
    q: jax.Array, k: jax.Array, length: jax.Array, start: jax.Array | None = None
) -> jax.Array:
    """Scores float32 [B,K,G,T] of q [B,K,G,C]; NEVER where a slot is not used."""
    slot = jnp.arange(k.shape[2])[None]
    used = slot < length[:, None]
    if start is not None:
        used = used & (slot >= start[:, None])
    used = rearrange(used, "b t -> b 1 1 t")
    s = jnp.einsum("bkgc,bktc->bkgt", q, k, preferred_element_type=jnp.float32)
    return jnp.where(used, s, NEVER)
