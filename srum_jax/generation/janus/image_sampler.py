"""Images out of Janus: which prompts share a compiled call, and the pictures of their tokens."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from srum_jax.config import SampleConfig
from srum_jax.core import in_flight, preemption
from srum_jax.core.errors import BadInput
from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import put
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context
from srum_jax.generation.image_request import GeneratedImage, ImageRequest
from srum_jax.generation.image_sampler import Denoiser
from srum_jax.generation.janus import drawing, template
from srum_jax.generation.janus.template import Row, Template
from srum_jax.models.janus.model_config import JanusConfig
from srum_jax.models.layers import apart


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSampler:
    """The model drawing prompts, token by token.

    Arguments as of BAGEL's `ImageSampler`; of `settings` those count that say something of tokens:
    size, guidance, batch, temperature, top_k. attention, official: nothing differs by them.
    """

    params: Params | None = dataclasses.field(repr=False)
    vae_params: Params = dataclasses.field(repr=False)
    model: JanusConfig
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
    def _template(self) -> Template:
        return Template(self.tokenizer, self.model.vit.positions**2)

    def sample(
        self,
        requests: Sequence[ImageRequest],
        *,
        settings: SampleConfig | None = None,
        params: Params | None = None,
        denoiser: Denoiser | None = None,
    ) -> list[GeneratedImage]:
        """An image of each request, in order, its codes as latents float32 [h,w,1].

        What shares a request's batch changes nothing. Raises BadInput for a context that is more
        than a text, for another size than the model's, where `denoiser` asks for steps, and where
        the model's numbers are not finite; ValueError for a prompt that exceeds the window.
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
        """As `sample` of each of several lists, in order, none of them empty; the first call of a
        list is on the device before the last one of the list before is fetched."""
        if denoiser is not None:
            raise BadInput(
                "Janus-Pro draws token after token: there are no steps of denoising to begin at, "
                "to watch or to keep; leave out start, latents, callback, trajectory, progress"
            )
        params = self.params if params is None else params
        calls = self._sent(several, params, settings or self.settings)
        found: dict[int, GeneratedImage] = {}
        for (wanted, places), (codes, images, finite) in in_flight.fetched(calls):
            context.check_finite(finite[: len(places)].all(), "an image")
            for row, place in enumerate(places):
                latent = codes[row].astype(np.float32)[..., None]
                found[place] = GeneratedImage(images[row], latent)
            if len(found) == wanted:
                yield [found[i] for i in range(wanted)]
                found = {}

    def _sent(self, several, params: Params, settings: SampleConfig) -> Iterator:
        for requests in several:
            rows = [self._row(request) for request in requests]
            for members in template.by_length(rows):
                count = context.rows_for(len(members), settings.batch, self.min_rows)
                for first in range(0, len(members), settings.batch):
                    preemption.check()
                    places = members[first : first + settings.batch]
                    part = [requests[i] for i in places], [rows[i] for i in places]
                    yield (len(rows), places), self._call(params, *part, count, settings)

    @functools.cached_property
    def running_params(self) -> Params:
        """The parameters with their layers apart, as steps read them one by one."""
        return _apart(self.params)

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises BadInput for other pixels (H, W) than the model's."""
        side = self.model.image_side
        if size != (side, side):
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

    def sample_prompts(
        self, prompts: Sequence[str], seeds: Sequence[int], *, params: Params | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(images uint8 [N,H,W,3], codes float32 [N,h,w,1]) of plain prompts, one seed each."""
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
        side = self.model.image_side
        texts = [(self.tokenizer.text(prompt),) for prompt in prompts]
        return [
            ImageRequest(context=text, size=(side, side), seed=seed, texts=text)
            for text, seed in zip(texts, seeds, strict=True)
        ]


_apart = jax.jit(apart)
