"""Janus's images that are drawn together, a token of each at a step; new ones join between steps.

What is drawn of each is what `ImageSampler.sample` draws of it alone. Rows may be at different
tokens, and of different scales of guidance.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike

from srum_jax.config import SampleConfig
from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import fetch, put
from srum_jax.generation.context import bucket
from srum_jax.generation.image_request import ImageRequest
from srum_jax.generation.janus import drawing, template
from srum_jax.generation.janus.image_sampler import ImageSampler
from srum_jax.generation.row_group import RowGroup, row_numbers
from srum_jax.models.janus import llama, model
from srum_jax.models.janus.model_config import JanusConfig


@dataclasses.dataclass(frozen=True)
class Kind:
    """What images that are drawn together share: slots of the caches, rows of the model that each
    takes (2: guided), and how many of the likeliest tokens are drawn from, 0: all."""

    slots: int
    branches: int
    top_k: int


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """An image to draw as `settings` say. official: nothing differs by it."""

    request: ImageRequest
    settings: SampleConfig
    official: bool = False
    alone: ClassVar[bool] = False

    def kind(self, sampler: ImageSampler, step: int) -> Kind:
        """The group that it belongs to, before every step. Raises as `ImageSampler.sample`."""
        rows = sampler.branches(self.request, self.settings)
        longest = bucket(max(len(row.ids) for row in rows), 64)
        return Kind(longest + sampler.model.image_tokens, len(rows), self.settings.top_k)


@struct.dataclass
class _State:
    """The n branches of an image side by side in its row.

    k, v: of each layer [B,n·K,T,C] · length int32 [B,n] · hidden [B,n,D], after what was read last
    · codes int32 [B,tokens], −1 where none is drawn yet · finite bool [B].
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    length: jax.Array
    hidden: jax.Array
    codes: jax.Array
    finite: jax.Array


def _beside(cache: llama.Cache, hidden: jax.Array, n: int) -> dict[str, jax.Array]:
    """What rows of the model [B·n,…] are in a state."""

    def joined(x):
        return tuple(y.reshape(-1, n * y.shape[1], *y.shape[2:]) for y in x)

    hidden = hidden.reshape(-1, n, hidden.shape[-1])
    length = cache.length.reshape(-1, n)
    return dict(k=joined(cache.k), v=joined(cache.v), length=length, hidden=hidden)


def _apart(state: _State, n: int) -> llama.Cache:
    """The cache of rows of the model [B·n,…]."""

    def parted(x):
        return tuple(y.reshape(-1, y.shape[1] // n, *y.shape[2:]) for y in x)

    length = state.length.reshape(-1)
    return llama.Cache(parted(state.k), parted(state.v), jnp.zeros_like(length), length)


@functools.partial(jax.jit, static_argnames=("cfg", "slots", "branches", "dtype"))
def _read(
    params: Params,
    ids: jax.Array,
    real: jax.Array,
    *,
    cfg: JanusConfig,
    slots: int,
    branches: int,
    dtype: DTypeLike,
) -> _State:
    """The state before the first token of rows [B·branches,P] padded on the left."""
    x = model.embed_text(params, ids, dtype)
    hidden, cache = llama.prefill(params, cfg.llm, x, real, ids.shape[1], backend=cfg.attention)
    rows = len(ids) // branches
    return _State(
        **_beside(llama.laid(cache, slots), hidden[:, -1], branches),
        codes=jnp.full((rows, cfg.image_tokens), -1, jnp.int32),
        finite=jnp.ones(rows, bool),
    )


@functools.partial(
    jax.jit, static_argnames=("cfg", "branches", "top_k", "dtype"), donate_argnames="state"
)
def _stepped(
    params: Params,
    state: _State,
    seeds: jax.Array,
    places: jax.Array,
    temperature: jax.Array,
    scale: jax.Array,
    *,
    cfg: JanusConfig,
    branches: int,
    top_k: int,
    dtype: DTypeLike,
) -> _State:
    """The state after a token of every row; seeds, places, temperature, scale [B]."""
    raw = model.image_logits(params, state.hidden)
    logits = raw[:, 0]
    if branches > 1:
        logits = model.guided((raw[:, 0], raw[:, 1]), scale[:, None])
    token = drawing.chosen(logits, seeds, places, temperature, top_k)
    x = model.embed_image_tokens(params, jnp.repeat(token, branches), dtype)
    hidden, cache = llama.next_token(params, cfg.llm, x, _apart(state, branches))
    return _State(
        **_beside(cache, hidden, branches),
        codes=state.codes.at[jnp.arange(len(token)), places].set(token, mode="drop"),
        finite=state.finite & jnp.isfinite(logits).all(axis=-1),
    )


class DrawingRows(RowGroup):
    """Images of one kind, at most `most` at once."""

    def __init__(self, sampler: ImageSampler, kind: Kind, most: int):
        super().__init__(row_numbers(most, sampler.min_rows))
        self.sampler, self.kind = sampler, kind
        self.number: dict[Job, int] = {}  # tokens that are drawn

    def join(self, jobs: Sequence[Job]) -> None:
        """Reads the prompts of images, which are drawn from the next step on."""
        sampler, kind, rows = self.sampler, self.kind, self.rows_for(len(jobs))
        read = [row for job in jobs for row in sampler.branches(job.request, job.settings)]
        ids, real = template.padded(read, rows * kind.branches, sampler.model.pad)
        sizes = {"pictures": rows, "tokens read": ids.shape[1], "slots": kind.slots}
        ids, real = put((ids, real), sampler.batch_sharding)
        with sampler.programs.first("the reading before images", sizes | self._sizes()):
            made = _read(sampler.params, ids, real, slots=kind.slots, **self._how())
        self.place(jobs, made)
        self.number |= dict.fromkeys(jobs, 0)

    def leave(self, requests: Sequence[Job]) -> None:
        """Lets images go, finished or not."""
        super().leave(requests)
        for one in requests:
            self.number.pop(one, None)

    def step(self, shown: Sequence[Job] = ()) -> list[np.ndarray]:
        """A token of every image; of those `shown` what is drawn of them, as `latents`."""
        sampler, held = self.sampler, self.held
        seeds = np.array([job.request.seed if job else 0 for job in held], np.uint32)
        places = np.array([self.number[job] if job else 0 for job in held], np.int32)
        warmth = np.array([job.settings.temperature if job else 0 for job in held], np.float32)
        scale = np.array([job.settings.guidance if job else 1 for job in held], np.float32)
        rows = put((seeds, places, warmth, scale), sampler.batch_sharding)
        sizes = {"pictures": len(held), "slots": self.kind.slots} | self._sizes()
        how = dict(top_k=self.kind.top_k, **self._how())
        with sampler.programs.first("a step of images", sizes):
            self.state = _stepped(sampler.running_params, self.state, *rows, **how)
        for job in self.requests:
            self.number[job] += 1
        return self.latents(shown)

    def steps(self, job: Job) -> int:
        """Steps that an image takes."""
        return self.sampler.steps(job.settings)

    def changing(self) -> dict[Job, Kind]:
        """Images whose next step is of another kind: none."""
        return {}

    def latents(self, jobs: Sequence[Job]) -> list[np.ndarray]:
        """The codes of these images, float32 [h,w,1] each: −1 where none is drawn yet, NaN where
        the model's numbers were not finite."""
        if not jobs:
            return []
        codes, finite, side = (
            fetch(self.state.codes),
            fetch(self.state.finite),
            self.sampler.model.grid,
        )
        found = []
        for row in map(self.held.index, jobs):
            mine = codes[row].astype(np.float32) if finite[row] else np.full(side**2, np.nan)
            found.append(mine.reshape(side, side, 1).astype(np.float32))
        return found

    def _sizes(self) -> dict:
        return {"guided": self.kind.branches > 1, "top_k": self.kind.top_k}

    def _how(self) -> dict:
        dtype = np.dtype(self.sampler.dtype)
        return dict(cfg=self.sampler.model, branches=self.kind.branches, dtype=dtype)
