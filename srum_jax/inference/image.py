"""Images out of the model: the guided sampler over a cached prompt, and the decoder.

The prompt's keys and values are computed once. Guidance branches are further rows of the same
batch. Which steps are guided is static, so sampling is a scan per run of like steps, and one
compiled program draws any prompts of a length.
"""

import functools
import itertools
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from srum_jax import flow
from srum_jax.core.params import Params
from srum_jax.core.patches import position_ids, unpatchify
from srum_jax.data.images import bucket
from srum_jax.data.schema import CAUSAL, NOISE, PAD_SEGMENT, Tokens
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.models import bagel, mot, vae
from srum_jax.models.config import BagelConfig

_REAL = PAD_SEGMENT + 1


def candidate_seed(run_seed: int, prompt_id: int | str, k: int) -> int:
    """The seed of candidate k of a prompt: a function of its arguments alone, 32 bits."""
    return zlib.crc32(f"{run_seed}/{prompt_id}/{k}".encode())


def prefill(
    params: Params, cfg: BagelConfig, ids: jax.Array, lengths: jax.Array, dtype
) -> mot.Cache:
    """Cache of one text per row: ids [B,T] (bos … eos), lengths [B]; length 0 is no text."""
    place = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    real = place < lengths[:, None]
    zero = jnp.zeros_like(ids)
    text = Tokens(
        segment=jnp.where(real, _REAL, PAD_SEGMENT),
        split=zero,
        mode=zero + CAUSAL,
        position=place,
        index=place,
    )
    none = jax.tree.map(lambda x: x[:, :0], text)
    und = bagel.embed_text(params, ids, dtype)
    _, _, cache = mot.stack(params, cfg.llm, und, und[:, :0], text, none, keep="kv", remat=False)
    return cache


def _image_tokens(rows: int, count: int, position: jax.Array) -> Tokens:
    """`count` tokens of the noisy image that follows the prompt, all at one position [B]."""
    one = jnp.ones((rows, count), jnp.int32)
    return Tokens(
        segment=one * _REAL,
        split=one,
        mode=one * NOISE,
        position=one * position[:, None],
        index=one,
    )


def _velocity(params, cfg, cache, position, marks, x, t, grid, dtype):
    """v_theta of x [B,G,·] at time t behind a cached prompt; `marks` [B,2,D] bracket the image."""
    rows, count = x.shape[:2]
    ids = jnp.asarray(position_ids(*grid, cfg.max_latent, cfg.interpolate_pos))
    gen = bagel.embed_latents(
        params,
        cfg,
        x,
        jnp.full((rows, 1), t),
        jnp.broadcast_to(ids, (rows, count)),
        jnp.zeros((rows, count), jnp.int32),
        dtype=dtype,
    )
    _, gen, _ = mot.stack(
        params,
        cfg.llm,
        marks,
        gen,
        _image_tokens(rows, 2, position),
        _image_tokens(rows, count, position),
        cache=cache,
        remat=False,
    )
    return bagel.velocity(params, gen)


def guided_runs(times: np.ndarray, interval: tuple[float, float], scale: float):
    """[(guided, first step, one past the last)]: guidance holds while lo < t <= hi."""
    lo, hi = interval
    guided = [bool(scale > 1 and lo < t <= hi) for t in times[:-1]]
    runs, start = [], 0
    for flag, steps in itertools.groupby(guided):
        count = len(list(steps))
        runs.append((flag, start, start + count))
        start += count
    return runs


def sample(
    params: Params,
    ids: jax.Array,
    lengths: jax.Array,
    noise: jax.Array,
    *,
    cfg: BagelConfig,
    settings,
    grid: tuple[int, int],
    dtype,
) -> jax.Array:
    """Draws latents for prompts: ids [B,T], lengths [B], noise [B,G,p·p·Z] -> [B,G,p·p·Z].

    settings: steps, shift, guidance, guidance_interval, renorm, renorm_min. Text guidance compares
    with an empty context (no text, position 0), as the original does.
    """
    rows = ids.shape[0]
    times = flow.sampling_times(settings.steps, settings.shift)
    runs = guided_runs(times, settings.guidance_interval, settings.guidance)
    if any(guided for guided, _, _ in runs):
        ids = jnp.concatenate([ids, ids])
        lengths = jnp.concatenate([lengths, jnp.zeros_like(lengths)])
    cache = prefill(params, cfg, ids, lengths, dtype)
    soi_eoi = jnp.array([[cfg.start_of_image, cfg.end_of_image]])
    marks = jnp.broadcast_to(
        bagel.embed_text(params, soi_eoi, dtype), (len(ids), 2, cfg.llm.hidden)
    )
    only = jax.tree.map(lambda x: x[:, :rows], (cache.k, cache.v))
    plain_cache = mot.Cache(*only, tokens=jax.tree.map(lambda x: x[:rows], cache.tokens))

    def guided_step(x, span):
        t, after = span
        both = _velocity(
            params, cfg, cache, lengths, marks, jnp.concatenate([x, x]), t, grid, dtype
        )
        v = flow.guide(
            both[:rows],
            both[rows:],
            None,
            text_scale=settings.guidance,
            image_scale=1.0,
            renorm=settings.renorm,
            renorm_min=settings.renorm_min,
        )
        return flow.euler(x, v, t, after), None

    def plain_step(x, span):
        t, after = span
        v = _velocity(params, cfg, plain_cache, lengths[:rows], marks[:rows], x, t, grid, dtype)
        return flow.euler(x, v, t, after), None

    x = noise
    spans = (jnp.asarray(times[:-1]), jnp.asarray(times[1:]))
    for guided, first, last in runs:
        span = tuple(a[first:last] for a in spans)
        x, _ = jax.lax.scan(guided_step if guided else plain_step, x, span)
    return x


def decode(vae_params: Params, tokens: jax.Array, *, cfg: BagelConfig, grid) -> jax.Array:
    """Latent tokens [B,G,p·p·Z] -> images uint8 [B,H,W,3]."""
    latents = unpatchify(tokens, cfg.latent_patch, *grid)
    return vae.to_uint8(vae.decode(vae_params, cfg.vae, latents))


Paint = Callable[[Sequence[str], Sequence[int]], tuple[np.ndarray, np.ndarray]]


def painter(
    params: Params,
    vae_params: Params,
    cfg: BagelConfig,
    tokenizer: Tokenizer,
    settings,
    *,
    place: Callable = jnp.asarray,
    dtype=jnp.float32,
) -> Paint:
    """`paint(prompts, seeds)` -> (images uint8 [N,H,W,3], latents float32 [N,h,w,p·p·Z]).

    settings is the sample section of the config. Work goes through calls of `settings.batch`
    prompts; a short last call is padded, so that one program serves. Raises ValueError for a size
    that is no multiple of a token's pixels, a prompt too long, or an unknown word.
    """
    pixels = cfg.token_pixels
    if any(s % pixels for s in settings.size):
        raise ValueError(f"sample.size={settings.size} must be multiples of {pixels} pixels")
    grid = tuple(s // pixels for s in settings.size)
    if max(grid) > cfg.max_latent:
        raise ValueError(
            f"sample.size={settings.size} is {grid} latent tokens; the model has positions for "
            f"{cfg.max_latent} a side"
        )
    draw = jax.jit(functools.partial(sample, cfg=cfg, settings=settings, grid=grid, dtype=dtype))
    show = jax.jit(functools.partial(decode, cfg=cfg, grid=grid))

    @jax.jit
    def noise(seeds):
        shape = (grid[0] * grid[1], cfg.token_dim)
        return jax.vmap(lambda s: jax.random.normal(jax.random.key(s), shape))(seeds)

    def paint(prompts, seeds):
        texts = [[cfg.bos, *tokenizer.encode(p), cfg.eos] for p in prompts]
        width = bucket(max(map(len, texts)), 16)
        if width > cfg.max_text:
            raise ValueError(f"a prompt of {width} tokens exceeds the context of {cfg.max_text}")
        images, latents = [], []
        for first in range(0, len(texts), settings.batch):
            part = texts[first : first + settings.batch]
            ids = np.zeros((settings.batch, width), np.int32)
            lengths = np.zeros(settings.batch, np.int32)
            seed = np.zeros(settings.batch, np.uint32)
            for i, text in enumerate(part):
                ids[i, : len(text)], lengths[i] = text, len(text)
                seed[i] = seeds[first + i]
            x = draw(params, place(ids), place(lengths), noise(place(seed)))
            picture = show(vae_params, x)
            images.append(np.asarray(picture)[: len(part)])
            latents.append(np.asarray(x, np.float32)[: len(part)])
        tokens = np.concatenate(latents)
        return np.concatenate(images), rearrange(tokens, "n (h w) d -> n h w d", h=grid[0])

    return paint
