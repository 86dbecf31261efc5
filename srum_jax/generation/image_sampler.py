"""Images out of the model: which requests share a compiled call, and its calls one ahead."""

import contextlib
import dataclasses
import functools
import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike

from srum_jax.config import SampleConfig
from srum_jax.core import in_flight, preemption
from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import put
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context
from srum_jax.generation.context import fine_bucket
from srum_jax.generation.denoising import MARKS, empty_grid, generate_latents
from srum_jax.generation.guidance import Guidance, SamplingParams
from srum_jax.generation.image_codec import DecodeRequest, ImageDecoder, latent_grid
from srum_jax.generation.image_request import GeneratedImage, ImageRequest
from srum_jax.models import attention
from srum_jax.models.bagel import mot
from srum_jax.models.bagel.model_config import BagelConfig


def candidate_seed(run_seed: int, prompt_id: int | str, k: int) -> int:
    """The seed of candidate k of a prompt: a function of its arguments alone, 32 bits."""
    return zlib.crc32(f"{run_seed}/{prompt_id}/{k}".encode())


class LatentSampler(Protocol):
    """`generate_latents`, or what is called in its place with its arguments."""

    def __call__(self, params: Params, *inputs: Any, **static: Any) -> jax.Array:
        """Latents [B,G,p·p·Z] float32."""


class Denoiser(Protocol):
    """What draws step by step on the host, to be watched, stopped or begun midway."""

    def of(self, places: Sequence[int]) -> LatentSampler:
        """What draws the requests of these places in the list."""


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
    def running_params(self) -> Params | None:
        """The parameters as drawing reads them, their layers apart where they are few."""
        return None if self.params is None else mot.unstacked(self.params, self.model.llm)

    def sample(
        self,
        requests: Sequence[ImageRequest],
        *,
        settings: SampleConfig | None = None,
        params: Params | None = None,
        denoiser: Denoiser | None = None,
    ) -> list[GeneratedImage]:
        """An image of each request, in order; what shares a request's batch changes nothing.

        settings, params: in place of the sampler's own · denoiser: draws in place of
        `generate_latents`. Raises ValueError for a size that the model has no positions for or a
        context that exceeds the window, BadInput where the model's numbers are not finite.
        """
        how = dict(settings=settings, params=params, denoiser=denoiser)
        return next(self.stream([requests], **how), [])

    def stream(
        self,
        several: Iterable[Sequence[ImageRequest]],
        *,
        settings: SampleConfig | None = None,
        params: Params | None = None,
        denoiser: Denoiser | None = None,
    ) -> Iterator[list[GeneratedImage]]:
        """As `sample` of each of several lists, in order, none of them empty.

        The first calls of a list are on the device before the last ones of the list before are
        fetched. Raises Preempted where a stop is asked for, once the lists whose calls were all
        sent are given.
        """
        params = self.running_params if params is None else mot.unstacked(params, self.model.llm)
        calls = self._sent(several, params, settings or self.settings, denoiser)
        drawn, decoding = itertools.tee(in_flight.fetched(calls))
        coder = self.vae_params, self.model, self.programs
        decoder = ImageDecoder(*coder, batch_sharding=self.batch_sharding)
        images = decoder.stream(call.to_decode(x) for call, x in decoding)
        found: dict[int, GeneratedImage] = {}
        for (call, x), shown in zip(drawn, images, strict=True):
            pairs = zip(shown, call.latents(x), strict=True)
            found.update(zip(call.places, itertools.starmap(GeneratedImage, pairs), strict=True))
            if len(found) == call.wanted:
                yield [found[i] for i in range(call.wanted)]
                found = {}

    def _sent(
        self,
        several: Iterable[Sequence[ImageRequest]],
        params: Params,
        settings: SampleConfig,
        denoiser: Denoiser | None,
    ) -> Iterator[tuple["_Call", jax.Array]]:
        """The calls for several lists, each with the latents that it draws."""
        for requests in several:
            for branches, members in self._groups(requests, settings):
                # The last part of a group takes the rows of the others: the program is there.
                rows = context.rows_for(len(members), settings.batch, self.min_rows)
                for first in range(0, len(members), settings.batch):
                    preemption.check()
                    places = members[first : first + settings.batch]
                    part = [requests[i] for i in places]
                    draw = generate_latents if denoiser is None else denoiser.of(places)
                    grids = [latent_grid(r.size, self.model.layout) for r in part]
                    sized = any(r.has_images for r in part)  # as their pictures are
                    call = _Call(len(requests), tuple(places), tuple(grids), rows, sized)
                    yield call, self._call(params, part, call, branches, settings, draw)

    def _groups(
        self, requests: Sequence[ImageRequest], settings: SampleConfig
    ) -> list[tuple[tuple[str, bool], list[int]]]:
        """Places of the requests that may share a call, those of like length together, by their
        guidance branches. Raises ValueError as `sample`."""
        guidance = Guidance.of(settings, self.official)
        groups: dict[tuple[str, bool], list[int]] = {}
        for i, request in enumerate(requests):
            self.check(request)
            negated = guidance.text and request.negative is not None
            groups.setdefault((request.branch(guidance.image), negated), []).append(i)
        for members in groups.values():
            members.sort(key=lambda i: (requests[i].size, context.extent(requests[i].context)))
        return list(groups.items())

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises ValueError for pixels (H, W) that the model has no positions for."""
        latent_grid(size, self.model.layout)

    def check(self, request: ImageRequest) -> None:
        """Raises ValueError as `sample`."""
        self.check_size(request.size)
        how = dict(window=self.window, max_text=self.model.max_text)
        for one in (request.context, request.negative or ()):
            context.check_window(one, 0, **how)

    def steps(self, settings: SampleConfig) -> int:
        """Steps of an image."""
        return settings.steps

    def sample_prompts(
        self, prompts: Sequence[str], seeds: Sequence[int], *, params: Params | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(images uint8 [N,H,W,3], latents float32 [N,h,w,p·p·Z]) of plain prompts.

        Of `settings.size`, one seed each. Raises ValueError as `sample`, and for an unknown word.
        """
        (found,) = self.stream_prompts([(prompts, seeds)], params=params)
        return found

    def stream_prompts(
        self,
        several: Iterable[tuple[Sequence[str], Sequence[int]]],
        *,
        params: Params | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `sample_prompts` of several lists of prompts and seeds, in the way of `stream`."""
        requests = (self._plain(prompts, seeds) for prompts, seeds in several)
        for found in self.stream(requests, params=params):
            yield np.stack([one.image for one in found]), np.stack([one.latent for one in found])

    def _plain(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[ImageRequest]:
        texts = [(self.tokenizer.text(prompt),) for prompt in prompts]
        return [
            ImageRequest(context=text, size=self.settings.size, seed=seed, texts=text)
            for text, seed in zip(texts, seeds, strict=True)
        ]

    def _call(
        self,
        params: Params,
        requests: Sequence[ImageRequest],
        call: "_Call",
        branches: tuple[str, bool],
        settings: SampleConfig,
        draw: LatentSampler,
    ) -> jax.Array:
        """One compiled call: latents [rows,G,p·p·Z] of the requests, which may be in the making."""
        branch, negated = branches
        guidance, layout, rows = Guidance.of(settings, self.official), self.model.layout, call.rows
        grid = empty_grid(call.grids, rows, layout)
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
        cfg = self.attending(context.capacity(packed) + grid.valid.shape[1] + MARKS)
        packed, texts, negatives, seeds, grid = put(
            (packed, texts, negatives, seeds, grid), self.batch_sharding
        )
        whole = draw is generate_latents  # what goes step by step announces its own programs
        announced = self.programs.first("the image sampler", compiled_for) if whole else None
        with announced or contextlib.nullcontext():
            return draw(
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

    def attending(self, tokens: int) -> BagelConfig:
        """The model with the attention that rows of so many tokens take where they lie."""
        at, llm, dtype = self.batch_sharding, self.model.llm, np.dtype(self.dtype).name
        platform = next(iter(at.device_set)).platform if at else jax.default_backend()
        how = dict(tokens=tokens, head_dim=llm.head_dim, dtype=dtype)
        name = attention.choose(self.attention, platform=platform, **how)
        unasked = self.attention == "auto" and name not in ("dense", "chunked")
        if unasked and not attention.passes(name, llm.heads, llm.kv_heads, llm.head_dim, dtype):
            name = "chunked"
        return dataclasses.replace(self.model, attention=name)


@dataclasses.dataclass(frozen=True)
class _Call:
    """Which of the `wanted` requests of a list a call draws, their latent tokens (h, w), how many
    rows it has, and whether pictures that users gave say what sizes there are."""

    wanted: int
    places: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    rows: int
    of_pictures: bool

    def to_decode(self, x: np.ndarray) -> DecodeRequest:
        """What the decoder gets of the call's [rows,G,p·p·Z]."""
        return DecodeRequest(self.latents(x), self.rows, bucketed=self.of_pictures)

    def latents(self, x: np.ndarray) -> list[np.ndarray]:
        """float32 [h,w,p·p·Z] of each request, out of the call's [rows,G,p·p·Z]."""
        x = x.astype(np.float32, copy=False)
        return [
            rearrange(x[i, : h * w], "(h w) d -> h w d", h=h) for i, (h, w) in enumerate(self.grids)
        ]
