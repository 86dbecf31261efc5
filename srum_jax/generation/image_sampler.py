"""Images out of the model: which requests share a compiled call, and its calls one ahead."""

import contextlib
import dataclasses
import functools
import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from srum_jax.config import SampleConfig
from srum_jax.core import in_flight
from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import put
from srum_jax.generation import context
from srum_jax.generation.base import BaseImageSampler, cut
from srum_jax.generation.context import fine_bucket
from srum_jax.generation.denoising import MARKS, empty_grid, generate_latents
from srum_jax.generation.guidance import Guidance, SamplingParams
from srum_jax.generation.image_codec import DecodeRequest, ImageDecoder, latent_grid
from srum_jax.generation.image_request import (
    Denoiser,
    GeneratedImage,
    ImageRequest,
    LatentSampler,
)
from srum_jax.models import attention
from srum_jax.models.bagel import mot
from srum_jax.models.bagel.model_config import BagelConfig


def candidate_seed(run_seed: int, prompt_id: int | str, k: int) -> int:
    """The seed of candidate k of a prompt: a function of its arguments alone, 32 bits."""
    return zlib.crc32(f"{run_seed}/{prompt_id}/{k}".encode())


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSampler(BaseImageSampler):
    """BAGEL drawing images behind contexts."""

    model: BagelConfig

    @functools.cached_property
    def running_params(self) -> Params | None:
        """The parameters as drawing reads them, their layers apart where they are few."""
        return None if self.params is None else mot.unstacked(self.params, self.model.llm)

    def _drawn(self, several, settings, params, denoiser) -> Iterator:
        params = self.running_params if params is None else mot.unstacked(params, self.model.llm)
        calls = self._sent(several, params, settings, denoiser)
        drawn, decoding = itertools.tee(in_flight.fetched(calls))
        coder = self.vae_params, self.model, self.programs
        decoder = ImageDecoder(*coder, batch_sharding=self.batch_sharding)
        images = decoder.stream(call.to_decode(x) for call, x in decoding)
        both = zip(drawn, images, strict=True)
        return ((call.wanted, call.images(x, shown)) for (call, x), shown in both)

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
                for places, rows in cut([members], settings.batch, self.min_rows):
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

    def images(self, x: np.ndarray, shown: Sequence[np.ndarray]) -> dict[int, GeneratedImage]:
        """The images by their places, of the call's [rows,G,p·p·Z] and the decoder's pixels."""
        made = map(GeneratedImage, shown, self.latents(x))
        return dict(zip(self.places, made, strict=True))

    def latents(self, x: np.ndarray) -> list[np.ndarray]:
        """float32 [h,w,p·p·Z] of each request, out of the call's [rows,G,p·p·Z]."""
        x = x.astype(np.float32, copy=False)
        return [
            rearrange(x[i, : h * w], "(h w) d -> h w d", h=h) for i, (h, w) in enumerate(self.grids)
        ]
