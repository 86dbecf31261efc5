"""Images that are drawn together, a denoising step of each at a time; new ones join between steps.

What is drawn of each is what `ImageSampler.sample` draws of it alone, up to rounding. Rows may be
at different steps, and of different scales of guidance; which branches there are is alike.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import struct
from jax.typing import DTypeLike

from srum_jax.config import SampleConfig
from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import fetch, put
from srum_jax.data.schema import Batch
from srum_jax.generation import context, denoising
from srum_jax.generation.context import fine_bucket
from srum_jax.generation.denoising import MARKS, LatentGrid, RowSteps, empty_grid
from srum_jax.generation.guidance import Guidance, GuidanceCaches, SamplingParams
from srum_jax.generation.image_codec import latent_grid
from srum_jax.generation.image_request import ImageRequest
from srum_jax.generation.image_sampler import ImageSampler
from srum_jax.generation.row_group import RowGroup, capacity, row_numbers
from srum_jax.models.bagel import mot
from srum_jax.models.bagel.model_config import BagelConfig


@dataclasses.dataclass(frozen=True)
class Kind:
    """What images that are drawn together share.

    tokens: latent tokens of a row, padding among them; full: there is none · branch: as of
    `ImageRequest`, text: whether text guidance has a branch, negated: with a context of its own ·
    renorm: of guidance · slots: of the caches of the condition, of text and of image guidance ·
    guided: whether the next step is.
    """

    tokens: int
    full: bool
    branch: str
    text: bool
    negated: bool
    renorm: str
    slots: tuple[int, int, int]
    guided: bool

    @property
    def plain(self) -> "Kind":
        """That of the steps after guidance."""
        how = dict(branch="off", text=False, negated=False, renorm="none", guided=False)
        return dataclasses.replace(self, slots=(self.slots[0], 0, 0), **how)


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """An image to draw as `settings` say. official: as of `Guidance.of`."""

    request: ImageRequest
    settings: SampleConfig
    official: bool = False

    @functools.cached_property
    def guidance(self) -> Guidance:
        """Which guidance is on, and when."""
        return Guidance.of(self.settings, self.official)

    @functools.cached_property
    def sampling(self) -> SamplingParams:
        """Times of the steps, and scales."""
        return SamplingParams.of(self.settings)

    @property
    def alone(self) -> bool:
        """Whether its guidance norms all images of a call as one: it is drawn by itself."""
        return self.guidance.renorm == "batch"

    def kind(self, sampler: ImageSampler, step: int) -> Kind:
        """The group that it belongs to before step number `step`, from 0."""
        h, w = latent_grid(self.request.size, sampler.model.layout)
        tokens = fine_bucket(h * w)
        branch = self.request.branch(self.guidance.image)
        negated = self.guidance.text and self.request.negative is not None
        own = self.request.negative if negated else self.request.context[: self.request.plain]
        extents = [
            self.request.context,
            own if self.guidance.text else (),
            self.request.texts if branch in ("own", "shorter") else (),
        ]
        sizes = [context.extent(one)[0] for one in extents]
        slots = tuple(capacity(n, sampler.window) if n else 0 for n in sizes)
        guided = [flag for flag, first, last in self.guidance.runs for _ in range(first, last)]
        made = Kind(
            tokens=tokens,
            full=h * w == tokens,
            branch=branch,
            text=self.guidance.text,
            negated=negated,
            renorm=self.guidance.renorm,
            slots=(max(slots[0], 1), *slots[1:]),
            guided=guided[step],
        )
        return made if any(guided[step:]) else made.plain


@struct.dataclass
class _State:
    caches: GuidanceCaches
    x: jax.Array  # [B,G,p·p·Z] float32
    positions: jax.Array
    valid: jax.Array


@functools.partial(jax.jit, static_argnames=("cfg", "guidance", "image_by_cond", "dtype", "slots"))
def _read(
    params: Params,
    packed: Batch,
    lengths: jax.Array,
    texts: Batch | None,
    negatives: Batch | None,
    seeds: jax.Array,
    grid: LatentGrid,
    *,
    slots: tuple[int, int, int],
    **how,
) -> _State:
    """The state of rows before their first step."""
    caches = denoising.read_contexts(params, packed, lengths, texts, negatives, **how)
    caches = GuidanceCaches(
        *(
            cache and _fitted(cache, room)
            for cache, room in zip((caches.cond, caches.text, caches.image), slots, strict=True)
        )
    )
    return _State(caches, denoising.start_noise(seeds, grid), grid.positions, grid.valid)


def _fitted(cache: mot.Cache, slots: int) -> mot.Cache:
    """The cache with so many slots, no fewer than are in use."""
    more = max(0, slots - cache.k.shape[2])
    k, v = (
        jnp.pad(x[:, :, :slots], ((0, 0), (0, 0), (0, more), (0, 0), (0, 0)))
        for x in (cache.k, cache.v)
    )
    return mot.Cache(k, v, cache.length, cache.position)


@functools.partial(
    jax.jit,
    static_argnames=("cfg", "renorm", "image_by_cond", "dtype", "guided", "full"),
    donate_argnames="x",
)
def _stepped(
    params: Params,
    caches: GuidanceCaches,
    x: jax.Array,
    positions: jax.Array,
    valid: jax.Array,
    steps: RowSteps,
    *,
    guided: bool,
    full: bool,
    cfg: BagelConfig,
    renorm: str,
    image_by_cond: bool,
    dtype: DTypeLike,
) -> jax.Array:
    grid = LatentGrid(x, positions, valid, full)
    if not guided:
        caches, image_by_cond, renorm = GuidanceCaches(caches.cond), False, "none"
    how = dict(cfg=cfg, renorm=renorm, image_by_cond=image_by_cond, dtype=dtype)
    return denoising.step_rows(params, caches, grid, steps, **how)


class DrawingRows(RowGroup):
    """Images of one kind, at most `most` at once."""

    def __init__(self, sampler: ImageSampler, kind: Kind, most: int):
        super().__init__(row_numbers(most, sampler.min_rows, finely=True))
        self.sampler, self.kind = sampler, kind
        self.number: dict[Job, int] = {}  # steps that are done

    def join(self, jobs: Sequence[Job]) -> None:
        """Reads the contexts of images, which are drawn from the next step on."""
        sampler, kind = self.sampler, self.kind
        layout, requests = sampler.model.layout, [job.request for job in jobs]
        rows = self.rows_for(len(jobs))
        lengths, seeds = np.zeros((2, 2, rows), np.int32), np.zeros(rows, np.uint32)
        for i, r in enumerate(requests):
            lengths[0, :, i] = context.extent(r.context[: r.plain])
            lengths[1, :, i] = context.extent(r.texts)
            seeds[i] = r.seed
        grid = empty_grid([latent_grid(r.size, layout) for r in requests], rows, layout)
        packed, texts, negatives = (
            context.pack([one(r) for r in requests], rows, layout, fine_bucket) if wanted else None
            for one, wanted in (
                (lambda r: r.context, True),
                (lambda r: r.texts, kind.branch == "own"),
                (lambda r: r.negative, kind.negated),
            )
        )
        sizes = {"pictures": rows, "latent tokens": kind.tokens, **context.lengths(packed)}
        sizes |= {"slots": kind.slots, "image guidance": kind.branch}
        sizes |= {
            f"tokens of {name}": context.capacity(one)
            for name, one in (("texts", texts), ("negatives", negatives))
            if one
        }
        guidance = Guidance(kind.text, kind.branch != "off", (), "none")
        packed, texts, negatives, seeds, grid = put(
            (packed, texts, negatives, seeds, grid), sampler.batch_sharding
        )
        given = (packed, jnp.asarray(lengths), texts, negatives, seeds, grid)
        with sampler.programs.first("the reading before images", sizes):
            made = _read(
                sampler.running_params, *given, guidance=guidance, slots=kind.slots, **self._how()
            )
        self.place(jobs, made)
        self.number |= dict.fromkeys(jobs, 0)

    def leave(self, requests: Sequence[Job]) -> None:
        """Lets images go, finished or not."""
        super().leave(requests)
        for one in requests:
            self.number.pop(one, None)

    def step(self, shown: Sequence[Job] = ()) -> list[np.ndarray]:
        """A denoising step of every image; of those `shown` the latents that the model then takes
        them to become, as `latents`: where the velocity of the step leads."""
        before = self.latents(shown)
        steps = [self._step(job) for job in self.held]
        sampler, kind = self.sampler, self.kind
        rows = put(RowSteps(*np.array(steps, np.float32).T), sampler.batch_sharding)
        sizes = {"pictures": len(self.held), "latent tokens": kind.tokens, "slots": kind.slots}
        sizes |= {"guided": kind.guided, "image guidance": kind.branch, "renorm": kind.renorm}
        s = self.state
        how = dict(guided=kind.guided, full=kind.full, renorm=kind.renorm, **self._how())
        with sampler.programs.first("a step of images", sizes):
            x = _stepped(sampler.running_params, s.caches, s.x, s.positions, s.valid, rows, **how)
        self.state = s.replace(x=x)
        for job in self.requests:
            self.number[job] += 1
        clean = []
        for job, old, new in zip(shown, before, self.latents(shown), strict=True):
            t, after = job.sampling.times[self.number[job] - 1 :][:2]
            clean.append((new - after * (old - new) / (t - after)).astype(np.float32))
        return clean

    def steps(self, job: Job) -> int:
        """Steps that an image takes."""
        return job.settings.steps

    def changing(self) -> dict[Job, Kind]:
        """Images whose next step is of another kind, and which."""
        kinds = {job: job.kind(self.sampler, self.number[job]) for job in self.requests}
        return {job: kind for job, kind in kinds.items() if kind != self.kind}

    def latents(self, jobs: Sequence[Job]) -> list[np.ndarray]:
        """What stands of these images, float32 [h,w,p·p·Z] each."""
        if not jobs:
            return []
        rows, found = fetch(self.state.x).astype(np.float32, copy=False), []
        for job in jobs:
            h, w = latent_grid(job.request.size, self.sampler.model.layout)
            row = rows[self.held.index(job)]
            found.append(rearrange(row[: h * w], "(h w) d -> h w d", h=h))
        return found

    def moved(self, requests: Sequence[Job], to: "DrawingRows") -> None:
        """Hands images over to another group."""
        done = {job: self.number[job] for job in requests}
        super().moved(requests, to)
        to.number |= done

    def passed(self, row: _State, to: "DrawingRows") -> _State:
        """A row with the caches that another group has."""
        wanted, caches = to.kind, row.caches
        text = caches.text if wanted.text else None
        image = caches.image if wanted.branch in ("own", "shorter") else None
        return row.replace(caches=GuidanceCaches(caches.cond, text, image))

    def _step(self, job: Job | None) -> tuple[float, ...]:
        if job is None:
            return 1.0, 1.0, 1.0, 1.0, 0.0
        s, i = job.sampling, self.number[job]
        return s.times[i], s.times[i + 1], s.text_scale, s.image_scale, s.renorm_min

    def _how(self) -> dict:
        kind, sampler = self.kind, self.sampler
        cfg = sampler.attending(kind.slots[0] + kind.tokens + MARKS)
        by_cond = kind.branch == "cond"
        return dict(cfg=cfg, image_by_cond=by_cond, dtype=np.dtype(sampler.dtype))
