"""Latents out of noise: Euler steps of the guided velocity behind cached contexts.

Contexts are read once, into a KV cache. The branches of classifier-free guidance are further rows
of the same batch. Which steps are guided is static, so sampling is a scan per run of like steps;
images of several sizes share a batch, their latent tokens padded to a bucket.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import struct
from jax.typing import DTypeLike

from srum_jax import flow
from srum_jax.core.param_tree import Params
from srum_jax.core.patches import position_ids
from srum_jax.data.schema import Batch, LayoutSizes
from srum_jax.generation import context
from srum_jax.generation.context import fine_bucket
from srum_jax.generation.guidance import Guidance, GuidanceCaches, SamplingParams
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import mot
from srum_jax.models.bagel.model_config import BagelConfig

MARKS = 2  # around an image's tokens


@struct.dataclass
class LatentGrid:
    """Images to be: noise [B,G,p·p·Z] float32, positions [B,G] int32, valid [B,G] bool.

    full: all rows that hold an image fill all its tokens.
    """

    noise: jax.Array
    positions: jax.Array
    valid: jax.Array
    full: bool = struct.field(pytree_node=False, default=False)


def empty_grid(sizes: Sequence[tuple[int, int]], rows: int, layout: LayoutSizes) -> LatentGrid:
    """Noise-free grid of one image a row, h·w latent tokens each padded to a bucket; NumPy."""
    counts = {h * w for h, w in sizes}
    tokens = fine_bucket(max(counts))
    made = LatentGrid(
        full=counts == {tokens},
        noise=np.zeros((rows, tokens, layout.token_dim), np.float32),
        positions=np.zeros((rows, tokens), np.int32),
        valid=np.zeros((rows, tokens), bool),
    )
    for row, (h, w) in enumerate(sizes):
        made.positions[row, : h * w] = position_ids(h, w, layout.max_latent, layout.interpolate_pos)
        made.valid[row, : h * w] = True
    return made


def velocity(
    params: Params,
    cfg: BagelConfig,
    caches: Sequence[mot.Cache],
    grid: LatentGrid,
    x: jax.Array,
    time: jax.Array,
    dtype: DTypeLike,
) -> jax.Array:
    """v_theta of x [B,G,·] behind each of n caches, [n,B,G,·], 0 at padding; time: embedded, of
    each row or of all, [B or 1,1,D].

    Branches of a row lie side by side, so that a device that has the row has them all.
    """
    branches, ids = len(caches), jnp.array([[cfg.start_of_image, cfg.end_of_image]])
    cells = bagel.embed_cells(cfg, grid.positions, dtype)
    gen = bagel.embed_latents(params, x, time, cells)
    gen, valid = (jnp.repeat(a, branches, axis=0) for a in (gen, grid.valid))
    marks = bagel.embed_text(params, ids, dtype)
    _, gen = mot.stack_behind(
        params,
        cfg.llm,
        jnp.broadcast_to(marks, (len(gen), MARKS, cfg.llm.hidden)),
        gen,
        caches,
        valid=None if grid.full else valid,
        backend=cfg.attention,
    )
    v = jnp.where(valid[:, :, None], bagel.velocity(params, gen), 0)
    return rearrange(v, "(b n) g d -> n b g d", n=branches)


def sample_latents(
    params: Params,
    caches: GuidanceCaches,
    grid: LatentGrid,
    sampling: SamplingParams,
    *,
    cfg: BagelConfig,
    guidance: Guidance,
    image_by_cond: bool = False,
    dtype: DTypeLike,
    trace: bool = False,
) -> jax.Array:
    """Draws latent tokens [B,G,p·p·Z] float32 by Euler steps from `grid.noise`.

    `image_by_cond`: image guidance compares with the condition itself, for contexts without images.
    With `trace` also returns every step's x before it [S,B,G,·], its velocity of each branch
    [S,branches,B,G,·] and the guided one [S,B,G,·], per run.
    """
    every = caches.branches()

    @jax.named_scope("guided_step")
    def guided_step(x, now):
        t, after, time = now
        parts = velocity(params, cfg, every, grid, x, time[None, None], dtype)
        u = _guided(parts, caches, sampling, guidance.renorm, image_by_cond)
        return flow.euler(x, u, t, after), (x, parts, u) if trace else None

    @jax.named_scope("plain_step")
    def plain_step(x, now):
        t, after, time = now
        (v,) = velocity(params, cfg, [caches.cond], grid, x, time[None, None], dtype)
        return flow.euler(x, v, t, after), (x, v[None], v) if trace else None

    x, traces = grid.noise, []
    times = sampling.times
    steps = (times[:-1], times[1:], bagel.embed_time(params, times[:-1], dtype))
    for guided, first, last in guidance.runs:
        part = tuple(a[first:last] for a in steps)
        x, kept = jax.lax.scan(guided_step if guided else plain_step, x, part)
        traces.append(kept)
    return (x, traces) if trace else x


def _guided(parts, caches, scales, renorm, image_by_cond):
    """The guided velocity [B,G,·] of those of all branches; scales: one each, or [B,1,1]."""
    v, *others = parts
    v_text = None if caches.text is None else others.pop(0)
    v_image = v if image_by_cond else others.pop(0) if others else None
    return flow.guide(
        v,
        v_text,
        v_image,
        text_scale=scales.text_scale,
        image_scale=scales.image_scale,
        renorm=renorm,
        renorm_min=scales.renorm_min,
    )


@struct.dataclass
class RowSteps:
    """A step of each row, its own: float32 [B] times before and after it, and the scales."""

    time: jax.Array
    after: jax.Array
    text_scale: jax.Array
    image_scale: jax.Array
    renorm_min: jax.Array


@jax.named_scope("step_of_rows")
def step_rows(
    params: Params,
    caches: GuidanceCaches,
    grid: LatentGrid,
    steps: RowSteps,
    *,
    cfg: BagelConfig,
    renorm: str,
    image_by_cond: bool = False,
    dtype: DTypeLike,
) -> jax.Array:
    """`grid.noise` [B,G,p·p·Z] after one Euler step of each row, as one of `sample_latents`; rows
    may be at different steps. Guided where `caches` has more than the condition's, or image
    guidance compares with that."""
    own = jax.tree.map(lambda x: x[:, None, None], steps)
    time = bagel.embed_time(params, steps.time, dtype)[:, None]
    parts = velocity(params, cfg, caches.branches(), grid, grid.noise, time, dtype)
    v = _guided(parts, caches, own, renorm, image_by_cond)
    return flow.euler(grid.noise, v, own.time, own.after)


def read_contexts(
    params: Params,
    packed: Batch,
    lengths: jax.Array,
    texts: Batch | None,
    negatives: Batch | None,
    *,
    cfg: BagelConfig,
    guidance: Guidance,
    image_by_cond: bool,
    dtype: DTypeLike,
) -> GuidanceCaches:
    """The caches of all branches; arguments as of `generate_latents`."""

    slots = guidance.slots

    def read(batch):
        room = context.capacity(batch)
        return context.prefill(params, batch, cfg=cfg, slots=room, dtype=dtype)

    cond, text, image = read(packed), None, None
    if guidance.text:
        text = read(negatives) if negatives else context.shortened(cond, *lengths[0], slots[0])
    if guidance.image and texts is not None:
        image = read(texts)
    elif guidance.image and not image_by_cond:
        image = context.shortened(cond, *lengths[1], slots[1])
    return GuidanceCaches(cond, text, image)


def start_noise(seeds: jax.Array, grid: LatentGrid) -> jax.Array:
    """Noise [B,G,p·p·Z] float32 of seeds uint32 [B]."""

    def noise(seed):
        # Token by token the same whatever the padding: jax.random fills row by row.
        return jax.random.normal(jax.random.key(seed), grid.noise.shape[1:])

    return jax.vmap(noise)(seeds)


@functools.partial(jax.jit, static_argnames=("cfg", "guidance", "image_by_cond", "dtype"))
def generate_latents(
    params: Params,
    packed: Batch,
    lengths: jax.Array,
    texts: Batch | None,
    seeds: jax.Array,
    grid: LatentGrid,
    sampling: SamplingParams,
    negatives: Batch | None = None,
    *,
    cfg: BagelConfig,
    guidance: Guidance,
    image_by_cond: bool,
    dtype: DTypeLike,
) -> jax.Array:
    """Reads the contexts `packed` and draws latents [B,G,p·p·Z] float32 on `grid`.

    lengths [2,2,B]: slots and positions of the text and the image branch's context · texts,
    negatives: the contexts of image and of text guidance where `packed` does not hold them · seeds
    uint32 [B]: of the noise.
    """
    how = dict(cfg=cfg, guidance=guidance, image_by_cond=image_by_cond, dtype=dtype)
    caches = read_contexts(params, packed, lengths, texts, negatives, **how)
    filled = grid.replace(noise=start_noise(seeds, grid))
    return sample_latents(params, caches, filled, sampling, **how)
