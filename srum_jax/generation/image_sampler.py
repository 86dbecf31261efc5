"""Images out of the model: the guided sampler behind cached contexts, and the decoder.

Contexts are read once. Guidance branches are further rows of the same batch. Which steps are guided
is static, so sampling is a scan per run of like steps; images of several sizes share a batch, their
latent tokens padded to a bucket, and the autoencoder sees each at its exact size.
"""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import struct

from srum_jax import flow
from srum_jax.core.param_tree import Params
from srum_jax.core.patches import patchify, position_ids, unpatchify
from srum_jax.core.sharding import fetch
from srum_jax.data.images import to_float
from srum_jax.data.schema import NOISE, Latent, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context
from srum_jax.generation.context import Context, bucket
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import mot, vae
from srum_jax.models.bagel.model_config import BagelConfig

_PIXELS = 2**14  # that go through one call of the autoencoder, if it is more than one image


def candidate_seed(run_seed: int, prompt_id: int | str, k: int) -> int:
    """The seed of candidate k of a prompt: a function of its arguments alone, 32 bits."""
    return zlib.crc32(f"{run_seed}/{prompt_id}/{k}".encode())


@struct.dataclass
class GuidanceCaches:
    """What each row has read, with everything, without its last text, and without its images.

    text and image are the contexts that text and image guidance compare with; None: that guidance
    is off. Rows are the same in all three.
    """

    cond: mot.Cache
    text: mot.Cache | None = None
    image: mot.Cache | None = None


@struct.dataclass
class LatentGrid:
    """Images to be: noise [B,G,p·p·Z] float32, positions [B,G] int32, valid [B,G] bool."""

    noise: jax.Array
    positions: jax.Array
    valid: jax.Array


@struct.dataclass
class SamplingParams:
    """What changes without compiling anew: times [S+1] from 1 to 0, and float32 scales."""

    times: jax.Array
    text_scale: jax.Array
    image_scale: jax.Array
    renorm_min: jax.Array


def sampling_params(settings) -> SamplingParams:
    """Of the `sample` section of a config."""
    return SamplingParams(
        times=flow.sampling_times(settings.steps, settings.shift),
        text_scale=np.float32(settings.guidance),
        image_scale=np.float32(settings.image_guidance),
        renorm_min=np.float32(settings.renorm_min),
    )


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Which guidance is on, and in which runs of steps (as `guided_runs` gives)."""

    text: bool
    image: bool
    runs: tuple


def guidance(settings) -> Guidance:
    """Of the `sample` section of a config."""
    text = settings.guidance > 1
    image = settings.image_guidance > 1 and (text or settings.image_alone)
    times = flow.sampling_times(settings.steps, settings.shift)
    return Guidance(text, image, guided_runs(times, settings.guidance_interval, text or image))


def latent_grid(grids: Sequence[tuple[int, int]], rows: int, cfg: BagelConfig) -> LatentGrid:
    """Noise-free canvas of one image a row, h·w latent tokens each padded to a bucket; NumPy."""
    tokens = bucket(max(h * w for h, w in grids))
    made = LatentGrid(
        noise=np.zeros((rows, tokens, cfg.token_dim), np.float32),
        positions=np.zeros((rows, tokens), np.int32),
        valid=np.zeros((rows, tokens), bool),
    )
    for row, (h, w) in enumerate(grids):
        made.positions[row, : h * w] = position_ids(h, w, cfg.max_latent, cfg.interpolate_pos)
        made.valid[row, : h * w] = True
    return made


def guided_runs(times: np.ndarray, interval: tuple[float, float], on: bool = True):
    """((guided, first step, one past the last), …): guidance, if on, holds while lo < t <= hi."""
    lo, hi = interval
    guided = [bool(on and lo < t <= hi) for t in times[:-1]]
    runs, start = [], 0
    for flag, steps in itertools.groupby(guided):
        count = len(list(steps))
        runs.append((flag, start, start + count))
        start += count
    return tuple(runs)


def _velocity(params, cfg, cache, latent_grid, x, time, dtype):
    """v_theta of x [B,G,·], 0 at padding, behind a cache of B rows or of several branches' B."""
    branches = cache.length.shape[0] // x.shape[0]

    def tiled(a):
        return jnp.concatenate([a] * branches) if branches > 1 else a

    cells = bagel.embed_cells(cfg, latent_grid.positions, dtype)
    gen = tiled(bagel.embed_latents(params, x, time[None, None], cells))
    marks = bagel.embed_text(params, jnp.array([[cfg.start_of_image, cfg.end_of_image]]), dtype)
    valid = tiled(latent_grid.valid)
    _, gen, _ = mot.stack(
        params,
        cfg.llm,
        jnp.broadcast_to(marks, (len(gen), 2, cfg.llm.hidden)),
        gen,
        context.following(cache, 2, NOISE),
        context.following(cache, gen.shape[1], NOISE, valid),
        cache=cache,
        remat="none",
    )
    return jnp.where(valid[:, :, None], bagel.velocity(params, gen), 0)


def sample(
    params: Params,
    branches: GuidanceCaches,
    latent_grid: LatentGrid,
    sampling_params: SamplingParams,
    *,
    cfg: BagelConfig,
    runs: tuple,
    renorm: str,
    image_by_cond: bool = False,
    dtype,
    trace: bool = False,
) -> jax.Array:
    """Draws latent tokens [B,G,p·p·Z] float32 by Euler steps from `latent_grid.noise`.

    `runs` as `guided_runs` gives. `image_by_cond`: image guidance compares with the condition
    itself, for contexts without images. With `trace` also returns every step's x before it
    [S,B,G,·], its velocity of each branch [S,branches·B,G,·] and the guided one [S,B,G,·], per run.
    """
    rows = latent_grid.noise.shape[0]
    guiding = [c for c in (branches.text, branches.image) if c is not None]
    every = context.beside([branches.cond, *guiding])

    def guided_step(x, now):
        t, after, time = now
        parts = _velocity(params, cfg, every, latent_grid, x, time, dtype)
        v, *others = rearrange(parts, "(n b) g d -> n b g d", b=rows)
        v_text = None if branches.text is None else others.pop(0)
        v_image = v if image_by_cond else others.pop(0) if others else None
        u = flow.guide(
            v,
            v_text,
            v_image,
            text_scale=sampling_params.text_scale,
            image_scale=sampling_params.image_scale,
            renorm=renorm,
            renorm_min=sampling_params.renorm_min,
        )
        return flow.euler(x, u, t, after), (x, parts, u) if trace else None

    def plain_step(x, now):
        t, after, time = now
        v = _velocity(params, cfg, branches.cond, latent_grid, x, time, dtype)
        return flow.euler(x, v, t, after), (x, v, v) if trace else None

    x, traces = latent_grid.noise, []
    steps = (
        sampling_params.times[:-1],
        sampling_params.times[1:],
        bagel.embed_time(params, sampling_params.times[:-1], dtype),
    )
    for guided, first, last in runs:
        part = tuple(a[first:last] for a in steps)
        x, kept = jax.lax.scan(guided_step if guided else plain_step, x, part)
        traces.append(kept)
    return (x, traces) if trace else x


@dataclasses.dataclass(frozen=True)
class Request:
    """An image to draw after `context`, of `size` (H, W) pixels, from the noise of `seed`.

    Text guidance compares with the first `plain` items of the context, image guidance with `texts`
    (BAGEL's inferencer: the texts alone, without what the model thought).
    """

    context: Context
    size: tuple[int, int]
    seed: int
    plain: int = 0
    texts: Context = ()

    @property
    def has_images(self) -> bool:
        return not all(isinstance(item, Text) for item in self.context)


@dataclasses.dataclass(frozen=True)
class GeneratedImage:
    """An image uint8 [H,W,3] and its latent tokens float32 [h,w,p·p·Z]."""

    image: np.ndarray
    latent: np.ndarray


def guidance_contexts(
    items: Context, *, system: Text | None = None, thought: Text | None = None
) -> dict[str, Context | int]:
    """The contexts of a Request for what a user gave, in order (BAGEL `inferencer.py`).

    Everything is read by the condition, the thought last; the system text also by image guidance,
    which sees texts alone. Text guidance lacks the last text, or nothing if an image came after it.
    """
    before = () if system is None else (system,)
    last = max((i for i, item in enumerate(items) if isinstance(item, Text)), default=len(items))
    images_after = any(not isinstance(item, Text) for item in items[last:])
    return {
        "context": (*before, *items, *(() if thought is None else (thought,))),
        "plain": len(before) + (len(items) if images_after else last),
        "texts": (*before, *(item for item in items if isinstance(item, Text))),
    }


def program(cfg: BagelConfig, settings, dtype) -> Callable:
    """The compiled `run(params, packed, lengths, texts, seeds, blank, knobs, image_by_cond=)`.

    It reads the contexts `packed` (`texts`: those of image guidance, or None) and draws latents
    [B,G,p·p·Z] on the canvas `blank` from the noise of seeds [B]. `lengths` [2,2,B]: slots and
    positions of the text and the image branch's context. settings as for `drawer`.
    """
    on = guidance(settings)

    @functools.partial(jax.jit, static_argnames=("image_by_cond",))
    def run(params, packed, lengths, texts, seeds, blank, sampling_params, *, image_by_cond):
        slots = context.capacity(packed)
        cond = context.prefill(params, packed, cfg=cfg, slots=slots, dtype=dtype)
        text = context.shortened(cond, *lengths[0]) if on.text else None
        image = None
        if on.image and texts is not None:
            slots = context.capacity(texts)
            image = context.prefill(params, texts, cfg=cfg, slots=slots, dtype=dtype)
        elif on.image and not image_by_cond:
            image = context.shortened(cond, *lengths[1])

        def noise(seed):
            # Token by token the same whatever the padding: jax.random fills row by row.
            return jax.random.normal(jax.random.key(seed), blank.noise.shape[1:])

        how = dict(cfg=cfg, runs=on.runs, renorm=settings.renorm, dtype=dtype)
        filled = blank.replace(noise=jax.vmap(noise)(seeds))
        branches = GuidanceCaches(cond, text, image)
        return sample(params, branches, filled, sampling_params, image_by_cond=image_by_cond, **how)

    return run


Draw = Callable[..., list[GeneratedImage]]


def drawer(
    params: Params | None,
    vae_params: Params,
    cfg: BagelConfig,
    settings,
    *,
    window: int,
    least: int = 1,
    place: Callable = jnp.asarray,
    dtype=jnp.float32,
    programs: context.Programs | None = None,
) -> Draw:
    """`draw(requests)` -> [Drawn], in order; what shares a request's batch changes nothing.

    settings is the sample section of a config; `draw(requests, knobs)` draws with other times and
    scales, by the same programs where `guidance` says the same of them, and `params=` with other
    weights (always, where the drawer has none of its own). At most `settings.batch` requests go
    through one compiled call, those of like length together; rows are a multiple of `least`. Raises
    ValueError for a size that the model has no positions for or a context that exceeds `window`
    tokens.
    """
    programs = programs or context.Programs()
    own_params = None if params is None else mot.unstacked(params, cfg.llm)
    on = guidance(settings)

    run = program(cfg, settings, dtype)
    show = decoder(vae_params, cfg, programs=programs)

    def call(
        params, requests: Sequence[Request], kind: str, turned: SamplingParams
    ) -> list[np.ndarray]:
        grids = [grid_of(r.size, cfg) for r in requests]
        rows = context.rows_for(len(requests), settings.batch, least)
        blank = latent_grid(grids, rows, cfg)
        lengths = np.zeros((2, 2, rows), np.int32)
        seeds = np.zeros(rows, np.uint32)
        for i, r in enumerate(requests):
            lengths[0, :, i] = context.extent(r.context[: r.plain])
            lengths[1, :, i] = context.extent(r.texts)
            seeds[i] = r.seed
        packed = context.pack([r.context for r in requests], rows, cfg)
        own = context.pack([r.texts for r in requests], rows, cfg) if kind == "own" else None
        programs.note(
            "the sampler",
            rows=rows,
            latent_grid=blank.valid.shape[1],
            **context.lengths(packed),
            image_guidance=kind,
            steps=on.runs[-1][2],
            guided=sum(last - first for guided, first, last in on.runs if guided),
            renorm=settings.renorm,
            **({"texts": own.und.segment.shape[1]} if own else {}),
        )
        packed, own, seeds, blank = jax.tree.map(place, (packed, own, seeds, blank))
        x = run(
            params,
            packed,
            jnp.asarray(lengths),
            own,
            seeds,
            blank,
            turned,
            image_by_cond=kind == "cond",
        )
        x = fetch(x).astype(np.float32)
        return [rearrange(x[i, : h * w], "(h w) d -> h w d", h=h) for i, (h, w) in enumerate(grids)]

    def draw(
        requests: Sequence[Request],
        turned: SamplingParams | None = None,
        params: Params | None = None,
    ) -> list[GeneratedImage]:
        params = own_params if params is None else mot.unstacked(params, cfg.llm)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            grid_of(request.size, cfg)
            context.check_window(request.context, 0, cfg, window)
            kind = "off"
            if on.image and request.has_images:
                kind = "own"
            elif on.image:
                kind = "cond" if len(request.texts) == len(request.context) else "shorter"
            groups.setdefault(kind, []).append(i)
        latents: dict[int, np.ndarray] = {}
        for kind, members in groups.items():
            members.sort(key=lambda i: (requests[i].size, context.extent(requests[i].context)))
            for first in range(0, len(members), settings.batch):
                part = members[first : first + settings.batch]
                some = [requests[i] for i in part]
                found = call(params, some, kind, turned or sampling_params(settings))
                latents.update(zip(part, found, strict=True))
        found = [latents[i] for i in range(len(requests))]
        return [GeneratedImage(*pair) for pair in zip(show(found), found, strict=True)]

    return draw


def grid_of(size: tuple[int, int], cfg: BagelConfig) -> tuple[int, int]:
    """Latent tokens (h, w) of an image of `size` pixels. Raises ValueError for other sizes."""
    pixels = cfg.token_pixels
    if any(s < pixels or s % pixels for s in size):
        raise ValueError(f"an image of {size[0]}x{size[1]}: sides must be multiples of {pixels}")
    if max(size) > pixels * cfg.max_latent:
        raise ValueError(
            f"an image of {size[0]}x{size[1]} pixels is {size[0] // pixels}x{size[1] // pixels} "
            f"latent tokens; the model has positions for {cfg.max_latent} a side "
            f"({pixels * cfg.max_latent} pixels)"
        )
    return size[0] // pixels, size[1] // pixels


def _by_size(shapes: Sequence[tuple], pixels: int) -> list[list[int]]:
    """Numbers of like-shaped pictures, in parts of at most _PIXELS pixels (one at least)."""
    groups: dict[tuple, list[int]] = {}
    for i, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(i)
    parts = []
    for (h, w), members in groups.items():
        count = 1
        while 2 * count * h * w * pixels <= _PIXELS:
            count *= 2
        parts += [members[first : first + count] for first in range(0, len(members), count)]
    return parts


def decoding(cfg: BagelConfig) -> Callable:
    """The compiled `decode(vae_params, tokens)`: [N,h,w,p·p·Z] -> images uint8 [N,H,W,3]."""

    @jax.jit
    def decode(vae_params, tokens):
        flat = rearrange(tokens, "n h w d -> n (h w) d")
        latents = unpatchify(flat, cfg.latent_patch, *tokens.shape[1:3])
        return vae.to_uint8(vae.decode(vae_params, cfg.vae, latents))

    return decode


def decoder(vae_params: Params, cfg: BagelConfig, *, programs: context.Programs) -> Callable:
    """`show(latents)`: latent tokens [h,w,p·p·Z] each -> images uint8 [H,W,3] each."""
    decode = decoding(cfg)

    def show(latents: Sequence[np.ndarray]) -> list[np.ndarray]:
        images: dict[int, np.ndarray] = {}
        for part in _by_size([x.shape[:2] for x in latents], cfg.token_pixels**2):
            rows = context.rows_for(len(part), 2**30)
            tokens = np.zeros((rows, *latents[part[0]].shape), np.float32)
            tokens[: len(part)] = [latents[i] for i in part]
            programs.note("the decoder", rows=rows, grid=tokens.shape[1:3])
            images.update(zip(part, fetch(decode(vae_params, tokens)), strict=False))
        return [images[i] for i in range(len(latents))]

    return show


def encoder(vae_params: Params, cfg: BagelConfig, *, programs: context.Programs) -> Callable:
    """`encode(image, seed=None)`: uint8 [H,W,3] -> the clean Latent that stands for it.

    The posterior's mean; with a seed, a sample of it, as the original always draws.
    """

    @jax.jit
    def latent(vae_params, image, noise):
        z = vae.encode(vae_params, cfg.vae, image, noise)
        return patchify(z, cfg.latent_patch)[0]

    def encode(image: np.ndarray, seed: int | None = None) -> Latent:
        h, w = grid_of(image.shape[:2], cfg)
        programs.note("the encoder", size=image.shape[:2])
        noise = None
        if seed is not None:
            p = cfg.latent_patch
            noise = jax.random.normal(jax.random.key(seed), (1, h * p, w * p, cfg.vae.z))
        tokens = fetch(latent(vae_params, to_float(image)[None], noise))
        return Latent(rearrange(tokens, "(h w) d -> h w d", h=h), size=image.shape[:2], noisy=False)

    return encode


Paint = Callable[..., tuple[np.ndarray, np.ndarray]]


def painter(
    params: Params | None,
    vae_params: Params,
    cfg: BagelConfig,
    tokenizer: Tokenizer,
    settings,
    *,
    place: Callable = jnp.asarray,
    dtype=jnp.float32,
) -> Paint:
    """`paint(prompts, seeds)` -> (images uint8 [N,H,W,3], latents float32 [N,h,w,p·p·Z]).

    `drawer` for plain prompts and images of `settings.size`, always in calls of `settings.batch`
    rows: a shard made again is the same to the bit. `params=` as for `draw`. Raises
    ValueError for a size that the model cannot draw, a prompt too long, or an unknown word.
    """
    grid_of(settings.size, cfg)
    draw = drawer(
        params,
        vae_params,
        cfg,
        settings,
        window=cfg.max_text,
        least=settings.batch,
        place=place,
        dtype=dtype,
    )

    def paint(prompts, seeds, params=None):
        texts = [(Text(np.array(tokenizer.encode(p), np.int32)),) for p in prompts]
        drawn = draw(
            [
                Request(context=text, size=settings.size, seed=seed, texts=text)
                for text, seed in zip(texts, seeds, strict=True)
            ],
            params=params,
        )
        return np.stack([d.image for d in drawn]), np.stack([d.latent for d in drawn])

    return paint
