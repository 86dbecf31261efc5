"""Images out of Janus: which prompts share a compiled call, and the pictures of their tokens."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from srum_jax.config import SampleConfig
from srum_jax.core import in_flight
from srum_jax.core.errors import BadInput
from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import put
from srum_jax.generation import context
from srum_jax.generation.base import BaseImageSampler, cut
from srum_jax.generation.image_request import GeneratedImage, ImageRequest
from srum_jax.generation.janus import drawing, template
from srum_jax.generation.janus.template import Row, Template
from srum_jax.models.janus.model_config import JanusConfig
from srum_jax.models.layers import apart


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSampler(BaseImageSampler):
    """Janus drawing prompts, token by token: latents are codes, float32 [h,w,1].

    Of `settings` those count that say something of tokens, the family's SAMPLER. attention,
    official: nothing differs by them.
    """

    model: JanusConfig

    @property
    def size(self) -> tuple[int, int]:
        """The only one that it draws."""
        return (self.model.image_side,) * 2

    @functools.cached_property
    def _template(self) -> Template:
        return Template(self.tokenizer, self.model.vit.positions**2)

    def _drawn(self, several, settings, params, denoiser) -> Iterator:
        if denoiser is not None:
            raise BadInput(
                "Janus-Pro draws token after token: there are no steps of denoising to begin at, "
                "to watch or to keep; leave out start, latents, callback, trajectory, progress"
            )
        params = self.params if params is None else params
        calls = self._sent(several, params, settings)
        return (_images(*one) for one in in_flight.fetched(calls))

    def _sent(self, several, params: Params, settings: SampleConfig) -> Iterator:
        for requests in several:
            rows = [self._row(request) for request in requests]
            groups = template.by_length(rows)
            for places, count in cut(groups, settings.batch, self.min_rows):
                part = [requests[i] for i in places], [rows[i] for i in places]
                yield (len(rows), places), self._call(params, *part, count, settings)

    @functools.cached_property
    def running_params(self) -> Params:
        """The parameters with their layers apart, as steps read them one by one."""
        return _apart(self.params)

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises BadInput for other pixels (H, W) than the model's."""
        if size != self.size:
            side = self.model.image_side
            raise BadInput(f"Janus-Pro draws {side}x{side} pixels, not {size[0]}x{size[1]}")

    def check(self, request: ImageRequest) -> None:
        """Raises BadInput or ValueError as `sample`."""
        self._row(request)
        if request.negative:
            self._template.drawing(request.negative)

    def steps(self, settings: SampleConfig) -> int:
        """Steps of an image: its tokens."""
        return self.model.image_tokens

    def branches(self, request: ImageRequest, settings: SampleConfig) -> tuple[Row, ...]:
        """What is read for an image: its prompt and, for guidance, what that is compared with.
        Raises as `sample`."""
        row = self._row(request)
        return (row,) if settings.guidance == 1 else (row, self._other(request, row))

    def _row(self, request: ImageRequest) -> Row:
        self.check_size(request.size)
        row = self._template.drawing(request.context)
        more = self.model.image_tokens
        template.check_window(row, more, window=self.window, max_text=self.model.max_text)
        return row

    def _call(self, params, requests, rows: Sequence[Row], count: int, settings: SampleConfig):
        """One compiled call: (codes [count,h,w], images, whether finite), maybe in the making."""
        ids, real = template.padded(rows, count, self.model.pad)
        seeds = np.zeros(count, np.uint32)
        seeds[: len(requests)] = [request.seed for request in requests]
        guided, negatives = settings.guidance != 1, None
        if guided and any(request.negative for request in requests):
            negatives, (ids, real) = self._negatives(requests, rows, count)
        inputs = put((ids, real, seeds), self.batch_sharding)
        sizes = {"pictures": count, "tokens read": ids.shape[1], "guided": guided}
        sizes |= {"top_k": settings.top_k, "negatives": negatives is not None}
        scales = np.float32(settings.temperature), np.float32(settings.guidance)
        with self.programs.first("the image sampler", sizes):
            drawn = drawing.draw_codes(
                params,
                *inputs,
                *scales,
                cfg=self.model,
                guided=guided,
                negatives=put(negatives, self.batch_sharding) if negatives else None,
                top_k=settings.top_k,
                dtype=np.dtype(self.dtype),
            )
        codes = drawn.codes.reshape(count, self.model.grid, self.model.grid)
        with self.programs.first("the decoder of pictures", {"pictures": count}):
            images, finite = drawing.decode_codes(self.vae_params, codes, cfg=self.model)
        return codes, images, finite & drawn.finite

    def _negatives(self, requests, rows: Sequence[Row], count: int):
        """(what each is compared with, the prompts): both padded to one length. A request without
        a negative prompt is compared with its own without words."""
        others = [self._other(*pair) for pair in zip(requests, rows, strict=True)]
        ids, real = template.padded([*others, *rows], len(others) + count, self.model.pad)
        mine = ids[len(others) :], real[len(others) :]
        spare = count - len(others)
        plain = (np.concatenate([x[: len(others)], x[len(x) - spare :]]) for x in (ids, real))
        return tuple(plain), mine

    def _other(self, request: ImageRequest, row: Row) -> Row:
        """What a prompt is compared with: the negative prompt, or the prompt without its words."""
        if request.negative:
            return self._template.drawing(request.negative)
        return Row(self._wordless(row.ids))

    def _wordless(self, ids: np.ndarray) -> np.ndarray:
        middle = np.full(len(ids) - 2, self.model.pad, np.int32)
        return np.concatenate([ids[:1], middle, ids[-1:]])


def _images(key, results) -> tuple[int, dict[int, GeneratedImage]]:
    """(how many are wanted, the images of a call by their places)."""
    (wanted, places), (codes, images, finite) = key, results
    context.check_finite(finite[: len(places)].all(), "an image")
    latents = codes.astype(np.float32)[..., None]
    return wanted, {i: GeneratedImage(images[n], latents[n]) for n, i in enumerate(places)}


_apart = jax.jit(apart)
