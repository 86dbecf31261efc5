"""The Mixture-of-Transformers stack: two experts, joint attention (BAGEL `qwen2_navit.py`).

und rows and gen rows live in separate lanes, so each expert computes only its own tokens; only
attention sees both, in lane order [und, gen], behind what a row's cache already holds. Layers are
stacked `[L, ...]` and scanned.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from srum_jax.core import param_tree, sharding
from srum_jax.data.schema import Tokens
from srum_jax.models import attention, decoder_layer
from srum_jax.models.bagel.model_config import LLMConfig
from srum_jax.models.decoder_layer import finish
from srum_jax.models.layers import apart, linear, rematerialised, rms_norm, rope, rope_angles

HiddenStates = tuple[jax.Array, jax.Array]  # und [B,U,D], gen [B,G,D]


@struct.dataclass
class Cache:
    """What each row has read: keys (after k_norm and RoPE) and values, k, v [L,B,T,K,C].

    length [B] int32: slots in use; later tokens see all of them. position [B] int32: the RoPE
    position that comes next (an image of any size takes one).
    """

    k: jax.Array
    v: jax.Array
    length: jax.Array
    position: jax.Array


@struct.dataclass
class WritingCache:
    """A cache to which token after token is added: of each layer k and v [B,K,T,C], heads before
    slots, as attention reads them, layers apart or stacked [L,B,K,T,C]; length and position as of
    `Cache`."""

    k: tuple[jax.Array, ...] | jax.Array
    v: tuple[jax.Array, ...] | jax.Array
    length: jax.Array
    position: jax.Array

    @classmethod
    def of(cls, cache: Cache, *, stacked: bool = False) -> "WritingCache":
        """The same keys and values."""
        if stacked:
            k, v = (jnp.swapaxes(x, 2, 3) for x in (cache.k, cache.v))
        else:
            k, v = (tuple(jnp.swapaxes(y, 1, 2) for y in x) for x in (cache.k, cache.v))
        return cls(k, v, cache.length, cache.position)


def expert_specs(cfg: LLMConfig) -> param_tree.Specs:
    """One expert's stacked layers."""
    norm = param_tree.norm(cfg.head_dim, None, bias=False, stack=cfg.layers)
    return {**decoder_layer.specs(cfg, bias=True), "q_norm": norm, "k_norm": norm}


_UNROLLED = 8  # layers of a model small enough for one long program


def specs(cfg: LLMConfig) -> param_tree.Specs:
    """Both experts' layers and final norms."""
    return {
        "blocks": {"und": expert_specs(cfg), "gen": expert_specs(cfg)},
        "norm": {
            "und": param_tree.norm(cfg.hidden, "embed", bias=False),
            "gen": param_tree.norm(cfg.hidden, "embed", bias=False),
        },
    }


def unstacked(params: param_tree.Params, cfg: LLMConfig) -> param_tree.Params:
    """`apart` if layers are few; many stay as they are, for the length of the program."""
    return params if cfg.layers > _UNROLLED else apart(params)


@jax.named_scope("attention_in")
def _project(p, x, cos, sin, cfg):
    # Queries and keys are float32 from their products on and rounded once, here.
    y = rms_norm(x, p["ln1"], cfg.rms_eps)
    q = rope(rms_norm(linear(y, p["q"]), p["q_norm"], cfg.rms_eps, jnp.float32), cos, sin)
    k = rope(rms_norm(linear(y, p["k"]), p["k_norm"], cfg.rms_eps, jnp.float32), cos, sin)
    return attention.scaled(q, x.dtype), k.astype(x.dtype), linear(y, p["v"])


def stack(
    params: param_tree.Params,
    cfg: LLMConfig,
    und: jax.Array,
    gen: jax.Array,
    und_tokens: Tokens,
    gen_tokens: Tokens,
    *,
    keep: str = "none",
    remat: str = "full",
    backend: str = "dense",
) -> tuple[jax.Array, jax.Array, Any]:
    """Runs every layer and the final norms.

    und [B,U,D], gen [B,G,D] (either lane may have length 0) and their tokens. `keep` is "none",
    "kv" (returns k, v [L,B,U+G,K,C] of these tokens, in lane order) or "hidden" (returns every
    layer's (und, gen), stacked [L, ...]). Returns (und, gen, kept); kept is None for "none". Layers
    may be stacked or, from `unstacked`, apart. `remat`: a name of `layers.REMAT`. `backend`: of
    attention, as `attention.over` names them.
    """
    attend = attention.over((und_tokens, gen_tokens), backend)
    und, gen = attention.shard_tokens(und, gen)
    angles_u, angles_g = (
        rope_angles(lane.position, cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
        for lane in (und_tokens, gen_tokens)
    )

    def block(x, layer):
        (und, gen), kv = _layer(layer[0], x, (angles_u, angles_g), attend, cfg)
        und, gen = attention.shard_tokens(und, gen)
        kept = {"none": None, "kv": kv, "hidden": (und, gen)}[keep]
        return (und, gen), kept

    body = rematerialised(block, remat)
    unroll = _unroll(cfg) if remat == "none" else 1
    (und, gen), kept = _through(body, (und, gen), params["blocks"], None, unroll)
    return *_normed(params, und, gen, cfg), kept


def next_token(
    params: param_tree.Params, cfg: LLMConfig, x: jax.Array, cache: WritingCache
) -> tuple[jax.Array, WritingCache]:
    """The und expert on one text token a row, x [B,1,D], behind all that its row has read.

    Returns (after the final norm [B,1,D], the cache with the token in it). A row whose cache is
    full does not keep its token, nor see it. Behind a stacked cache layers are scanned, and
    parameters must be stacked too; otherwise these may be apart already (`apart`).
    """
    angles = rope_angles(cache.position[:, None], cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
    row, slots = jnp.arange(len(x)), cache.k[0].shape[2]
    length = jnp.minimum(cache.length + 1, slots)
    kept = cache.length < slots

    def through(x, layer):
        p, k, v = layer
        query, key, value = _project(p, x, *angles, cfg)
        new = key[:, 0], value[:, 0]
        with jax.named_scope("attention"):
            attended = attention.attend_new(query[:, 0], *new, k, v, cache.length, kept)
        return finish(p, x, attended[:, None], cfg.rms_eps), new

    # Tokens are put into caches once all of these were read: a TPU that puts one in and reads on
    # brings a cache onto the chip whole, and writes it back whole.
    if isinstance(cache.k, tuple):
        new = []
        for layer, *past in zip(apart(params)["blocks"], cache.k, cache.v, strict=True):
            x, both = through(x, (layer["und"], *past))
            new.append(both)
        x, new = jax.lax.optimization_barrier((x, new))
        keys, values = zip(*new, strict=True)
    else:
        x, (keys, values) = jax.lax.scan(through, x, (params["blocks"]["und"], cache.k, cache.v))
    position = cache.position + (length - cache.length)
    keys = _with(cache.k, keys, row, cache.length)
    values = _with(cache.v, values, row, cache.length)
    grown = WritingCache(keys, values, length, position)
    return rms_norm(x, params["norm"]["und"], cfg.rms_eps), grown


def _with(past, new, row: jax.Array, slot: jax.Array):
    """Keys or values of a `WritingCache` with those of a token in every layer, each [B,K,C], apart
    or stacked; none in rows whose slot is behind the last one."""
    if isinstance(past, tuple):
        both = zip(past, new, strict=True)
        return tuple(old.at[row, :, slot].set(y, mode="drop") for old, y in both)
    return past.at[:, row, :, slot].set(jnp.swapaxes(new, 0, 1), mode="drop")


def stack_behind(
    params: param_tree.Params,
    cfg: LLMConfig,
    und: jax.Array,
    gen: jax.Array,
    caches: Sequence[Cache],
    *,
    valid: jax.Array | None = None,
    backend: str = "dense",
) -> HiddenStates:
    """Runs new tokens that all see each other, in every branch of their rows: (und, gen) after the
    final norms.

    und [B·n,U,D] and gen [B·n,G,D]: row b·n + i goes on where row b of `caches[i]` ends, all its
    tokens at that position. valid bool [B·n,G]: which of gen are real (None: all). Layers as in
    `stack`. `backend`: of attention, as `attention.behind` names them. Where lanes are cut over
    devices, the long one is by rows, and weights are gathered; of the other, if it is short, the
    features are, as the weights', which stay where they are.
    """
    u = und.shape[1]
    position = jnp.stack([cache.position for cache in caches], axis=1).reshape(-1, 1)
    angles = (rope_angles(position, cfg.head_dim, cfg.rope_theta, cfg.rope_scaling),) * 2
    real = None if valid is None else jnp.pad(valid, ((0, 0), (u, 0)), constant_values=True)

    def cut(und, gen):
        short = und.shape[0] * u < cfg.hidden
        return _by_features(und) if short else _by_rows(und), _by_rows(gen)

    def block(x, layer):
        p, prefix = layer
        read = zip(prefix, caches, strict=True)
        pasts = [attention.Past(k, v, cache.length) for (k, v), cache in read]

        def seen(q, k, v):
            o = attention.behind(*map(_joined, (q, k, v)), real, pasts, backend)
            return o[:, :u], o[:, u:]

        x, _ = _layer(p, x, angles, seen, cfg)
        return cut(*x), None

    prefix = tuple((cache.k, cache.v) for cache in caches)
    x, _ = _through(block, cut(und, gen), params["blocks"], prefix, _unroll(cfg))
    return _normed(params, *x, cfg)


def _by_rows(x: jax.Array) -> jax.Array:
    return attention.shard_tokens(x)[0]


def _by_features(x: jax.Array) -> jax.Array:
    """Cut as the rows of weights are, so that products with these are summed, not gathered."""
    rows = None if x.shape[0] % sharding.axis_size("data") else "data"
    return sharding.constrain(x, rows, None, "fsdp")


def _joined(lanes: Sequence[jax.Array]) -> jax.Array:
    return jnp.concatenate(lanes, axis=1)


def _unroll(cfg: LLMConfig) -> int:
    """Layers that a scan has in one turn where nothing is kept for a backward pass: copying what
    is kept into stacked arrays costs more than the longer program."""
    return cfg.layers if cfg.layers <= _UNROLLED else 1


def _layer(
    p: param_tree.Params, x: HiddenStates, angles: Sequence, attend: Callable, cfg: LLMConfig
) -> tuple[HiddenStates, HiddenStates]:
    """(both lanes after a layer, k and v of their tokens in lane order); `attend` takes queries,
    keys and values, each a lane's pair, and gives such a pair."""
    und, gen = x
    q_u, k_u, v_u = _project(p["und"], und, *angles[0], cfg)
    q_g, k_g, v_g = _project(p["gen"], gen, *angles[1], cfg)
    with jax.named_scope("attention"):
        o_u, o_g = attend((q_u, q_g), (k_u, k_g), (v_u, v_g))
    und = finish(p["und"], und, o_u, cfg.rms_eps)
    gen = finish(p["gen"], gen, o_g, cfg.rms_eps)
    return (und, gen), (_joined((k_u, k_g)), _joined((v_u, v_g)))


def _through(
    body: Callable, x: HiddenStates, blocks: param_tree.Params, prefix: Any, unroll: int
) -> tuple[HiddenStates, Any]:
    """(x after every layer, what `body(x, (layer, its part of prefix))` kept, stacked [L, ...]).

    Layers are stacked, and scanned `unroll` at a time, or apart.
    """
    if not isinstance(blocks, tuple):
        return jax.lax.scan(body, x, (blocks, prefix), unroll=unroll)
    every = []
    for i, layer in enumerate(blocks):
        x, kept = body(x, (layer, jax.tree.map(lambda y, i=i: y[i], prefix)))
        every.append(kept)
    return x, jax.tree.map(lambda *y: jnp.stack(y), *every)


def _normed(params, und, gen, cfg):
    und = rms_norm(und, params["norm"]["und"], cfg.rms_eps)
    return und, rms_norm(gen, params["norm"]["gen"], cfg.rms_eps)
