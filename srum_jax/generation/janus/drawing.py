"""Image tokens one after another: a prompt is read once, then a scan of fixed length draws all.

The rows of guidance are further rows of the same batch: those with the prompts first, then those
without their words. Both read the token that was drawn. A token is a function of its row's seed and
of its place alone, so what else is in a batch changes nothing.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from srum_jax.core.param_tree import Params
from srum_jax.models.autoencoder_blocks import to_uint8
from srum_jax.models.janus import llama, model, vq
from srum_jax.models.janus.model_config import JanusConfig
from srum_jax.models.layers import apart


@struct.dataclass
class Drawn:
    """codes int32 [B,n], whether all numbers of a row were finite bool [B] and, where a trace is
    asked for, every step's logits before guidance float32 [n,rows,codes]."""

    codes: jax.Array
    finite: jax.Array
    raw: jax.Array | None = None


def chosen(
    logits: jax.Array, seeds: jax.Array, place: jax.Array, temperature: jax.Array, top_k: int
) -> jax.Array:
    """The token that each row of logits [B,codes] draws at `place`, int32 [B]; temperature 0 takes
    the likeliest, top_k > 0 leaves the others out. place, temperature: one for all, or each row's
    own, [B]."""
    likeliest = jnp.argmax(logits, axis=-1)
    place, temperature = (jnp.broadcast_to(x, seeds.shape) for x in (place, temperature))
    scaled = logits / jnp.maximum(temperature, 1e-6)[:, None]
    if top_k:
        least = jax.lax.top_k(scaled, top_k)[0][:, -1:]
        scaled = jnp.where(scaled < least, -jnp.inf, scaled)

    def draw(seed, place, row):
        return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), place), row)

    drawn = jax.vmap(draw)(seeds, place, scaled)
    return jnp.where(temperature > 0, drawn, likeliest).astype(jnp.int32)


def draw(
    params: Params,
    prompts: jax.Array,
    real: jax.Array,
    seeds: jax.Array,
    temperature: jax.Array,
    scale: jax.Array,
    *,
    cfg: JanusConfig,
    guided: bool,
    negatives: tuple[jax.Array, jax.Array] | None = None,
    top_k: int = 0,
    dtype: DTypeLike,
    trace: bool = False,
) -> Drawn:
    """Draws `cfg.image_tokens` tokens after each prompt, in raster order.

    prompts int32 [B,P] padded on the left, each ending in the mark that begins an image · real bool
    [B,P] · seeds uint32 [B] · temperature [] of the guided logits, 0: the likeliest · scale [] of
    guidance; guided False: the condition alone, without further rows · negatives: prompts and
    `real` to compare with, of the same shapes, in place of the prompts without their words ·
    top_k 0: all tokens.
    """
    rows, count = prompts.shape[0], cfg.image_tokens
    if guided:
        others = negatives or (model.unconditional(prompts, real, cfg.pad), real)
        prompts, real = (jnp.concatenate(two) for two in zip((prompts, real), others, strict=True))
    x = model.embed_text(params, prompts, dtype)
    slots = prompts.shape[1] + count
    hidden, cache = llama.prefill(params, cfg.llm, x, real, slots, backend=cfg.attention)
    params = apart(params)  # once, before the loop

    def choose(hidden, place):
        raw = model.image_logits(params, hidden)
        logits = model.guided((raw[:rows], raw[rows:]), scale) if guided else raw
        token = chosen(logits, seeds, place, temperature, top_k)
        return token, jnp.isfinite(logits).all(axis=-1), raw if trace else None

    @jax.named_scope("image_token_step")
    def step(carry, place):
        hidden, cache = carry
        token, finite, raw = choose(hidden, place)
        both = jnp.concatenate([token, token]) if guided else token
        x = model.embed_image_tokens(params, both, dtype)
        return llama.next_token(params, cfg.llm, x, cache), (token, finite, raw)

    start = hidden[:, -1], cache
    (hidden, _), steps = jax.lax.scan(step, start, jnp.arange(count - 1))
    last = choose(hidden, count - 1)
    codes, finite, raw = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), steps, last)
    return Drawn(codes.T, finite.all(axis=0), raw)


draw_codes = jax.jit(draw, static_argnames=("cfg", "guided", "top_k", "dtype", "trace"))


@functools.partial(jax.jit, static_argnames="cfg")
def decode_codes(
    vq_params: Params, codes: jax.Array, *, cfg: JanusConfig
) -> tuple[jax.Array, jax.Array]:
    """Codes int32 [N,h,w] -> (images uint8 [N,H,W,3], whether each was finite bool [N])."""

    def one(codes):  # of many at once the decoder's features would take gigabytes
        (decoded,) = vq.decode(vq_params, cfg.vq, codes[None])
        return to_uint8(decoded), jnp.isfinite(decoded).all()

    return jax.lax.map(one, codes, batch_size=min(4, codes.shape[0]))
