"""The language model of Janus: one causal stack that reads words, pictures and image tokens alike.

Llama's layers with RoPE and no biases, stacked `[L, ...]` and scanned. Rows that are read together
are padded on the left, so that all of them write their next token to the same slot of the cache;
rows that come and go have one of their own (`laid`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from srum_jax.core import param_tree
from srum_jax.data.schema import CAUSAL, Tokens
from srum_jax.models import attention, decoder_layer
from srum_jax.models.decoder_layer import finish
from srum_jax.models.janus.model_config import LlamaConfig
from srum_jax.models.layers import apart, linear, rematerialised, rms_norm, rope, rope_angles


@struct.dataclass
class Cache:
    """What rows have read: of each layer keys (after RoPE) and values, k and v [B,K,T,C].

    start [B] int32: the first slot in use of each row · length int32: slots filled, [] in all rows
    or [B] in each; the token that comes next is at RoPE position length − start.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    start: jax.Array
    length: jax.Array


def specs(cfg: LlamaConfig) -> param_tree.Specs:
    """{"blocks": stacked layers, "norm": the final one}."""
    norm = param_tree.norm(cfg.hidden, "embed", bias=False)
    return {"blocks": decoder_layer.specs(cfg, bias=False), "norm": norm}


def tokens(real: jax.Array) -> Tokens:
    """Rows whose tokens `real` bool [B,S] see each other causally; the others, which may stand
    anywhere, are padding."""
    real = real.astype(jnp.int32)
    position = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
    zero = jnp.zeros_like(real)
    return Tokens(
        segment=real,
        split=zero,
        mode=zero + CAUSAL,
        position=position,
        index=jnp.where(real > 0, position, -1),
    )


@jax.named_scope("attention_in")
def _project(p, x, cos, sin, cfg):
    y = rms_norm(x, p["ln1"], cfg.rms_eps)
    q = rope(linear(y, p["q"], jnp.float32), cos, sin)
    k = rope(linear(y, p["k"], jnp.float32), cos, sin)
    return attention.scaled(q, x.dtype), k.astype(x.dtype), linear(y, p["v"])


def stack(
    params: param_tree.Params,
    cfg: LlamaConfig,
    x: jax.Array,
    lane: Tokens,
    *,
    keep: str = "none",
    remat: str = "full",
    backend: str = "dense",
) -> tuple[jax.Array, Any]:
    """Every layer and the final norm: (hidden states [B,S,D], kept).

    x [B,S,D] and its tokens, as `tokens` makes them. keep: "none", "kv" (k, v [L,B,S,K,C]) or
    "hidden" (x after every layer [L,B,S,D], before the final norm).
    remat: a name of `layers.REMAT` · backend: of attention, as `attention.over` names them.
    """
    attend = attention.over([lane], backend)
    cos, sin = rope_angles(lane.position, cfg.head_dim, cfg.rope_theta)

    def layer(x, p):
        q, k, v = _project(p, x, cos, sin, cfg)
        with jax.named_scope("attention"):
            (o,) = attend([q], [k], [v])
        (x,) = attention.shard_tokens(finish(p, x, o, cfg.rms_eps))
        return x, {"none": None, "kv": (k, v), "hidden": x}[keep]

    (x,) = attention.shard_tokens(x)
    x, kept = jax.lax.scan(rematerialised(layer, remat), x, params["blocks"])
    return rms_norm(x, params["norm"], cfg.rms_eps), kept


def prefill(
    params: param_tree.Params,
    cfg: LlamaConfig,
    x: jax.Array,
    real: jax.Array,
    slots: int,
    *,
    backend: str = "dense",
) -> tuple[jax.Array, Cache]:
    """(hidden states [B,S,D] of rows padded on the left, their cache of `slots` >= S slots)."""
    how = dict(keep="kv", remat="none", backend=backend)
    hidden, (k, v) = stack(params, cfg, x, tokens(real), **how)
    read = x.shape[1]

    def by_layer(y):
        y = jnp.pad(jnp.swapaxes(y, 2, 3), ((0, 0),) * 3 + ((0, slots - read), (0, 0)))
        return tuple(y[i] for i in range(cfg.layers))

    start = read - jnp.sum(real, axis=1).astype(jnp.int32)
    return hidden, Cache(by_layer(k), by_layer(v), start, jnp.int32(read))


def laid(cache: Cache, slots: int) -> Cache:
    """The same rows begun at the first of `slots` slots, each of a length of its own; slots must be
    no fewer than the longest row's tokens. What lies behind a row's length is nothing's."""
    last = cache.k[0].shape[2] - 1
    at = jnp.minimum(cache.start[:, None] + jnp.arange(slots)[None], last)[:, None, :, None]
    k, v = (tuple(jnp.take_along_axis(y, at, axis=2) for y in x) for x in (cache.k, cache.v))
    return Cache(k, v, jnp.zeros_like(cache.start), cache.length - cache.start)


def _with(old: jax.Array, new: jax.Array, length: jax.Array) -> jax.Array:
    """A cache [B,K,T,C] with tokens [B,1,K,C] at the slot `length`, of all rows or of each."""
    if length.ndim:
        return old.at[jnp.arange(len(old)), :, length].set(new[:, 0], mode="drop")
    return jax.lax.dynamic_update_slice_in_dim(old, jnp.swapaxes(new, 1, 2), length, 2)


def next_token(
    params: param_tree.Params, cfg: LlamaConfig, x: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """One token a row, x [B,D], behind all that its row has read: (after the final norm [B,D], the
    cache with the token in it). The cache must have a free slot."""
    x = x[:, None]
    angles = rope_angles((cache.length - cache.start)[:, None], cfg.head_dim, cfg.rope_theta)
    length = jnp.broadcast_to(cache.length + 1, cache.start.shape)
    keys, values = [], []
    for p, k, v in zip(apart(params)["blocks"], cache.k, cache.v, strict=True):
        query, key, value = _project(p, x, *angles, cfg)
        with jax.named_scope("attention"):
            k, v = _with(k, key, cache.length), _with(v, value, cache.length)
            attended = attention.attend_one(query[:, 0], k, v, length, cache.start)
        x = finish(p, x, attended[:, None], cfg.rms_eps)
        keys.append(k)
        values.append(v)
    grown = Cache(tuple(keys), tuple(values), cache.start, cache.length + 1)
    return rms_norm(x, params["norm"], cfg.rms_eps)[:, 0], grown
