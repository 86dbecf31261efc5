"""Images out of the model: the guided sampler behind cached contexts.

Contexts are read once, into a KV cache. The branches of classifier-free guidance are further rows
of the same batch. Which steps are guided is static, so sampling is a scan per run of like steps;
images of several sizes share a batch, their latent tokens padded to a bucket.
"""

import contextlib
import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import struct
from jax.typing import DTypeLike

from srum_jax import flow
from srum_jax.config import SampleConfig
from srum_jax.core import preemption
from srum_jax.core.param_tree import Params
from srum_jax.core.patches import position_ids
from srum_jax.core.sharding import fetch, put
from srum_jax.data.schema import Batch, LayoutSizes, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context
from srum_jax.generation.context import Context, fine_bucket
from srum_jax.generation.guidance import Guidance, GuidanceCaches, SamplingParams
from srum_jax.generation.image_codec import ImageDecoder, latent_grid
from srum_jax.models import attention
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import mot
from srum_jax.models.bagel.model_config import BagelConfig

_MARKS = 2  # around an image's tokens


def candidate_seed(run_seed: int, prompt_id: int | str, k: int) -> int:
    """The seed of candidate k of a prompt: a function of its arguments alone, 32 bits."""
    return zlib.crc32(f"{run_seed}/{prompt_id}/{k}".encode())


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


def _velocity(params, cfg, caches, grid, x, time, dtype):
    """v_theta of x [B,G,·] behind each of n caches, [n,B,G,·], 0 at padding.

    Branches of a row lie side by side, so that a device that has the row has them all.
    """
    branches, ids = len(caches), jnp.array([[cfg.start_of_image, cfg.end_of_image]])
    cells = bagel.embed_cells(cfg, grid.positions, dtype)
    gen = bagel.embed_latents(params, x, time[None, None], cells)
    gen, valid = (jnp.repeat(a, branches, axis=0) for a in (gen, grid.valid))
    marks = bagel.embed_text(params, ids, dtype)
    _, gen = mot.stack_behind(
        params,
        cfg.llm,
        jnp.broadcast_to(marks, (len(gen), _MARKS, cfg.llm.hidden)),
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
    every = [c for c in (caches.cond, caches.text, caches.image) if c is not None]

    @jax.named_scope("guided_step")
    def guided_step(x, now):
        t, after, time = now
        parts = _velocity(params, cfg, every, grid, x, time, dtype)
        v, *others = parts
        v_text = None if caches.text is None else others.pop(0)
        v_image = v if image_by_cond else others.pop(0) if others else None
        u = flow.guide(
            v,
            v_text,
            v_image,
            text_scale=sampling.text_scale,
            image_scale=sampling.image_scale,
            renorm=guidance.renorm,
            renorm_min=sampling.renorm_min,
        )
        return flow.euler(x, u, t, after), (x, parts, u) if trace else None

    @jax.named_scope("plain_step")
    def plain_step(x, now):
        t, after, time = now
        (v,) = _velocity(params, cfg, [caches.cond], grid, x, time, dtype)
        return flow.euler(x, v, t, after), (x, v[None], v) if trace else None

    x, traces = grid.noise, []
    times = sampling.times
    steps = (times[:-1], times[1:], bagel.embed_time(params, times[:-1], dtype))
    for guided, first, last in guidance.runs:
        part = tuple(a[first:last] for a in steps)
        x, kept = jax.lax.scan(guided_step if guided else plain_step, x, part)
        traces.append(kept)
    return (x, traces) if trace else x


@dataclasses.dataclass(frozen=True)
class ImageRequest:
    """An image to draw after `context`, of `size` (H, W) pixels, from the noise of `seed`.

    Text guidance compares with the first `plain` items of the context or, where it is given, with
    `negative`; image guidance with `texts` (BAGEL's inferencer: the texts alone, without what the
    model thought).
    """

    context: Context
    size: tuple[int, int]
    seed: int
    plain: int = 0
    texts: Context = ()
    negative: Context | None = None

    @property
    def has_images(self) -> bool:
        return not all(isinstance(item, Text) for item in self.context)


@dataclasses.dataclass(frozen=True)
class GeneratedImage:
    """An image uint8 [H,W,3] and its latent tokens float32 [h,w,p·p·Z]."""

    image: np.ndarray
    latent: np.ndarray


def guidance_contexts(
    items: Context,
    *,
    system: Text | None = None,
    thought: Text | None = None,
    negative: Text | None = None,
) -> dict[str, Any]:
    """The contexts of an ImageRequest for what a user gave, in order (BAGEL `inferencer.py`).

    Everything is read by the condition, the thought last; the system text also by image guidance,
    which sees texts alone. Text guidance lacks the last text, or nothing if an image came after it;
    a negative prompt stands for it in the last text's place.
    """
    before = () if system is None else (system,)
    last = max((i for i, item in enumerate(items) if isinstance(item, Text)), default=len(items))
    images_after = any(not isinstance(item, Text) for item in items[last:])
    return {
        "context": (*before, *items, *(() if thought is None else (thought,))),
        "plain": len(before) + (len(items) if images_after else last),
        "texts": (*before, *(item for item in items if isinstance(item, Text))),
        "negative": negative and (*before, *items[:last], negative, *items[last + 1 :]),
    }


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


class Following(Protocol):
    """What draws step by step on the host, to be watched, stopped or begun midway."""

    def of(self, places: Sequence[int]) -> Callable[..., jax.Array]:
        """A function like `generate_latents` for the requests of these places in the list."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSampler:
    """The model drawing images behind contexts.

    params: None where every call brings its own · settings: the `sample` section of a config; at
    most `settings.batch` requests go through one compiled call, those of like length together ·
    window: tokens of a context · min_rows: rows of a call are a multiple of it · batch_sharding:
    where rows lie, None: on the default device · dtype: of products · official: as `Guidance.of` ·
    attention: how it is computed, as compute.attention says.
    """

    params: Params | None = dataclasses.field(repr=False)
    vae_params: Params = dataclasses.field(repr=False)
    model: BagelConfig
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    settings: SampleConfig
    window: int
    min_rows: int = 1
    batch_sharding: jax.sharding.Sharding | None = None
    dtype: DTypeLike = jnp.float32
    programs: context.Programs = dataclasses.field(default_factory=context.Programs, repr=False)
    official: bool = False
    attention: str = "auto"

    @functools.cached_property
    def _unstacked(self) -> Params | None:
        return None if self.params is None else mot.unstacked(self.params, self.model.llm)

    def sample(
        self,
        requests: Sequence[ImageRequest],
        *,
        settings: SampleConfig | None = None,
        params: Params | None = None,
        following: Following | None = None,
    ) -> list[GeneratedImage]:
        """An image of each request, in order; what shares a request's batch changes nothing.

        settings, params: in place of the sampler's own · following: draws in place of
        `generate_latents`. Raises ValueError for a size that the model has no positions for or a
        context that exceeds the window, BadInput where the model's numbers are not finite.
        """
        params = self._unstacked if params is None else mot.unstacked(params, self.model.llm)
        settings = settings or self.settings
        guidance = Guidance.of(settings, self.official)
        how = dict(window=self.window, max_text=self.model.max_text)
        groups: dict[tuple[str, bool], list[int]] = {}
        for i, request in enumerate(requests):
            latent_grid(request.size, self.model.layout)
            context.check_window(request.context, 0, **how)
            context.check_window(request.negative or (), 0, **how)
            negated = guidance.text and request.negative is not None
            groups.setdefault((_image_branch(request, guidance), negated), []).append(i)
        latents: dict[int, np.ndarray] = {}
        for branches, members in groups.items():
            members.sort(key=lambda i: (requests[i].size, context.extent(requests[i].context)))
            for first in range(0, len(members), settings.batch):
                preemption.check()
                part = members[first : first + settings.batch]
                draw = generate_latents if following is None else following.of(part)
                found = self._call(params, [requests[i] for i in part], branches, settings, draw)
                latents.update(zip(part, found, strict=True))
        found = [latents[i] for i in range(len(requests))]
        coder = self.vae_params, self.model, self.programs
        decoder = ImageDecoder(*coder, batch_sharding=self.batch_sharding)
        return [GeneratedImage(*pair) for pair in zip(decoder.decode(found), found, strict=True)]

    def sample_prompts(
        self, prompts: Sequence[str], seeds: Sequence[int], *, params: Params | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(images uint8 [N,H,W,3], latents float32 [N,h,w,p·p·Z]) of plain prompts.

        Of `settings.size`, one seed each. Raises ValueError as `sample`, and for an unknown word.
        """
        texts = [(self.tokenizer.text(prompt),) for prompt in prompts]
        requests = [
            ImageRequest(context=text, size=self.settings.size, seed=seed, texts=text)
            for text, seed in zip(texts, seeds, strict=True)
        ]
        found = self.sample(requests, params=params)
        return np.stack([one.image for one in found]), np.stack([one.latent for one in found])

    def _call(
        self,
        params: Params,
        requests: Sequence[ImageRequest],
        branches: tuple[str, bool],
        settings: SampleConfig,
        draw: Callable[..., jax.Array],
    ) -> list[np.ndarray]:
        """One compiled call: latents float32 [h,w,p·p·Z] of each request."""
        branch, negated = branches
        guidance, layout = Guidance.of(settings, self.official), self.model.layout
        sizes = [latent_grid(r.size, layout) for r in requests]
        rows = context.rows_for(len(requests), settings.batch, self.min_rows)
        grid = empty_grid(sizes, rows, layout)
        lengths = np.zeros((2, 2, rows), np.int32)
        seeds = np.zeros(rows, np.uint32)
        for i, r in enumerate(requests):
            lengths[0, :, i] = context.extent(r.context[: r.plain])
            lengths[1, :, i] = context.extent(r.texts)
            seeds[i] = r.seed
        packed = context.pack([r.context for r in requests], rows, layout, fine_bucket)
        texts = None
        if branch == "own":
            texts = context.pack([r.texts for r in requests], rows, layout, fine_bucket)
        negatives = None
        if negated:
            negatives = context.pack([r.negative for r in requests], rows, layout, fine_bucket)
        plain = [r.context[: r.plain] for r in requests] if guidance.text else []
        shorter = [r.texts for r in requests] if branch == "shorter" else []
        slots = tuple(context.slots(c, fine_bucket) for c in (plain, shorter))
        guidance = dataclasses.replace(guidance, slots=slots)
        compiled_for = {
            "pictures": rows,
            "latent tokens": grid.valid.shape[1],
            **context.lengths(packed),
            "image guidance": branch,
            "steps": guidance.runs[-1][2],
            "guided": sum(last - first for guided, first, last in guidance.runs if guided),
            "renorm": guidance.renorm,
            "tokens of texts": texts.und.segment.shape[1] if texts else 0,
            "tokens of negatives": context.capacity(negatives) if negatives else 0,
            "tokens of guidance": slots,
        }
        cfg = self._attending(context.capacity(packed) + grid.valid.shape[1] + _MARKS)
        packed, texts, negatives, seeds, grid = put(
            (packed, texts, negatives, seeds, grid), self.batch_sharding
        )
        whole = draw is generate_latents  # what goes step by step announces its own programs
        announced = self.programs.first("the image sampler", compiled_for) if whole else None
        with announced or contextlib.nullcontext():
            x = draw(
                params,
                packed,
                jnp.asarray(lengths),
                texts,
                seeds,
                grid,
                SamplingParams.of(settings),
                negatives,
                cfg=cfg,
                guidance=guidance,
                image_by_cond=branch == "cond",
                dtype=np.dtype(self.dtype),
            )
        x = fetch(x).astype(np.float32)
        return [rearrange(x[i, : h * w], "(h w) d -> h w d", h=h) for i, (h, w) in enumerate(sizes)]

    def _attending(self, tokens: int) -> BagelConfig:
        """The model with the attention that rows of so many tokens take where they lie."""
        at, llm, dtype = self.batch_sharding, self.model.llm, np.dtype(self.dtype).name
        platform = next(iter(at.device_set)).platform if at else jax.default_backend()
        how = dict(tokens=tokens, head_dim=llm.head_dim, dtype=dtype)
        name = attention.choose(self.attention, platform=platform, **how)
        unasked = self.attention == "auto" and name not in ("dense", "chunked")
        if unasked and not attention.passes(name, llm.heads, llm.kv_heads, llm.head_dim, dtype):
            name = "chunked"
        return dataclasses.replace(self.model, attention=name)


def _image_branch(request: ImageRequest, guidance: Guidance) -> str:
    """What image guidance compares with: nothing ("off"), a context of its own ("own"), the
    condition ("cond") or a part of it ("shorter")."""
    if not guidance.image:
        return "off"
    if request.has_images:
        return "own"
    return "cond" if len(request.texts) == len(request.context) else "shorter"
