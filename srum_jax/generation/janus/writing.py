"""Words one after another behind what a row has read: texts with pictures at their places."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from srum_jax.core.param_tree import Params
from srum_jax.generation.text_generator import BROKEN, choice
from srum_jax.models.janus import llama, model
from srum_jax.models.janus.model_config import JanusConfig
from srum_jax.models.layers import apart


def read(
    params: Params,
    ids: jax.Array,
    real: jax.Array,
    patches: jax.Array | None,
    *,
    cfg: JanusConfig,
    slots: int,
    dtype: DTypeLike,
) -> tuple[jax.Array, llama.Cache]:
    """(hidden states [B,S,D], cache of `slots`) of rows int32 [B,S] padded on the left, real bool
    [B,S]; pictures as of `model.embed`."""
    x = model.embed(params, cfg, ids, patches, dtype=dtype)
    return llama.prefill(params, cfg.llm, x, real, slots, backend=cfg.attention)


def token(
    params: Params,
    hidden: jax.Array,
    seeds: jax.Array,
    place: jax.Array,
    temperature: jax.Array,
    *,
    words: int,
) -> tuple[jax.Array, jax.Array]:
    """(what each row of hidden states [B,D] writes at `place`, one for all or each row's own [B],
    int32 [B], BROKEN where its numbers are not finite; logits [B,V])."""
    logits = model.logits(params, hidden)
    chosen = choice(written(logits, words), seeds, place, temperature)
    return jnp.where(jnp.isfinite(logits).all(-1), chosen, BROKEN), logits


def written(logits: jax.Array, words: int) -> jax.Array:
    """Logits [B,V] of the ids below `words`; the others have no text and are never written."""
    return jnp.where(jnp.arange(logits.shape[-1])[None] >= words, -1e30, logits)


def go_on(
    params: Params, last: jax.Array, cache: llama.Cache, *, cfg: JanusConfig, dtype: DTypeLike
) -> tuple[jax.Array, llama.Cache]:
    """(hidden states [B,D] after the tokens `last` int32 [B], the longer cache)."""
    x = model.embed_text(params, jnp.maximum(last, 0), dtype)
    return llama.next_token(params, cfg.llm, x, cache)


def write(
    params: Params,
    ids: jax.Array,
    real: jax.Array,
    patches: jax.Array | None,
    seeds: jax.Array,
    temperature: jax.Array,
    limit: jax.Array,
    *,
    cfg: JanusConfig,
    words: int,
    max_tokens: int,
    dtype: DTypeLike,
    trace: bool = False,
) -> tuple[jax.Array, ...]:
    """Writes after each row until its end mark: (ids [B,max_tokens], counts [B]) int32.

    seeds [B] uint32 and temperature [B] as of `text_generator.choice` · limit [B]: tokens a row may
    write · words: ids below it have a text, the others are never written. A row's ids end before
    its end mark; counts says where, and past that a mark stands only if the row wrote one, and
    BROKEN where its logits were not finite. With trace also every step's logits [max_tokens,B,V].
    """
    rows = ids.shape[0]
    how = dict(cfg=cfg, slots=ids.shape[1] + max_tokens, dtype=dtype)
    hidden, cache = read(params, ids, real, patches, **how)
    params = apart(params)

    def unfinished(carry):
        return (carry[0] < max_tokens) & ~jnp.all(carry[-1])

    def step(carry):
        place, hidden, cache, out, counts, kept, done = carry
        chosen, logits = token(params, hidden, seeds, place, temperature, words=words)
        done = done | (chosen == cfg.eos) | (chosen == BROKEN)
        out = jax.lax.dynamic_update_index_in_dim(out, chosen, place, axis=1)
        counts = counts + ~done
        done = done | (counts >= limit)
        if trace:
            kept = jax.lax.dynamic_update_index_in_dim(kept, logits, place, axis=0)
        hidden, cache = go_on(params, chosen, cache, cfg=cfg, dtype=dtype)
        return place + 1, hidden, cache, out, counts, kept, done

    start = (
        0,
        hidden[:, -1],
        cache,
        jnp.full((rows, max_tokens), -1, jnp.int32),
        jnp.zeros(rows, jnp.int32),
        jnp.zeros((max_tokens, rows, cfg.llm.vocab)) if trace else None,
        limit <= 0,
    )
    _, _, _, out, counts, kept, _ = jax.lax.while_loop(unfinished, step, start)
    return (out, counts, kept) if trace else (out, counts)


write_texts = jax.jit(write, static_argnames=("cfg", "words", "max_tokens", "dtype", "trace"))
