"""What runs a model of any family: requests go into compiled calls, results come back in order.

A family's own classes say how a request is read, which of them share a call, and what it computes.
"""

import abc
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from srum_jax.config import SampleConfig
from srum_jax.core import in_flight, preemption
from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import put
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context
from srum_jax.generation.context import Context, Programs, bucket
from srum_jax.generation.image_request import Denoiser, GeneratedImage, ImageRequest

T = TypeVar("T")


def cut(
    groups: Iterable[Sequence[int]], batch: int, min_rows: int = 1
) -> Iterator[tuple[Sequence[int], int]]:
    """(places of a call's requests, its rows) of groups whose members may share one, in order.

    batch: requests of a call at most · min_rows: rows are a multiple of it. Raises Preempted where
    a stop is asked for.
    """
    for members in groups:
        # The last call of a group takes the rows of the others: the program is there.
        rows = context.rows_for(len(members), batch, min_rows)
        for first in range(0, len(members), batch):
            preemption.check()
            yield members[first : first + batch], rows


def whole(parts: Iterable[tuple[int, Mapping[int, T]]]) -> Iterator[list[T]]:
    """Lists in order, each of them out of several parts: (its length, results by their places)."""
    found: dict[int, T] = {}
    for wanted, part in parts:
        found |= part
        if len(found) == wanted:
            yield [found[i] for i in range(wanted)]
            found = {}


@dataclasses.dataclass(frozen=True, eq=False)
class Runner(abc.ABC):
    """What runs a model.

    batch_sharding: where rows of a call lie, None: on the default device · dtype: of products ·
    programs: those that were announced.
    """

    _: dataclasses.KW_ONLY
    batch_sharding: jax.sharding.Sharding | None = None
    dtype: DTypeLike = jnp.float32
    programs: Programs = dataclasses.field(default_factory=Programs, repr=False)


@dataclasses.dataclass(frozen=True)
class GeneratedText:
    """What the model wrote: text, its token ids without marks, whether it ended by itself."""

    text: str
    ids: tuple[int, ...]
    finished: bool


BROKEN = -2  # in place of a token where the logits are not finite: the row ends there


@dataclasses.dataclass(frozen=True, eq=False)
class BaseTextGenerator(Runner):
    """A model writing behind contexts.

    params: None where every call brings its own · batch: contexts a compiled call at most, those of
    like length together · window: tokens of a context with what may be written · min_rows: rows of
    a call are a multiple of it.
    """

    params: Params | None = dataclasses.field(repr=False)
    model: Any
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    batch: int
    window: int
    min_rows: int = 1

    def generate(
        self,
        contexts: Sequence[Context],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        stop: str = "each",
        params: Params | None = None,
    ) -> list[GeneratedText]:
        """The text that continues each context, in order; company in a batch changes nothing.

        max_tokens: written at most · temperature 0: the likeliest tokens · seeds: uint32, one a
        context (default 0) · stop: "each" row by itself, or "first": all of a call when its first
        row does, where the family's original does so · params: in place of the generator's own.
        Raises ValueError for a context that exceeds the window with what may be written, BadInput
        where the model's numbers are not finite.
        """
        seeds = [0] * len(contexts) if seeds is None else seeds
        if len(seeds) != len(contexts):
            raise ValueError(f"{len(contexts)} contexts, but {len(seeds)} seeds")
        read = [self.read(one, max_tokens) for one in contexts]
        how = max_tokens, stop, self.params if params is None else params
        calls = self._sent(read, seeds, temperature, *how)
        written: dict[int, GeneratedText] = {}
        for part, (ids, counts) in in_flight.fetched(calls):
            for row, i in enumerate(part):
                context.check_finite(BROKEN not in ids[row, : counts[row] + 1], "a text")
                mine = tuple(ids[row, : counts[row]].tolist())
                ended = counts[row] < max_tokens and ids[row, counts[row]] == self.model.eos
                written[i] = GeneratedText(self.decode(mine), mine, bool(ended))
        return [written[i] for i in range(len(contexts))]

    def _sent(self, read, seeds, temperature, max_tokens, stop, params) -> Iterator:
        """(places of a call's contexts, what `_call` gives)."""
        for part, rows in cut(self._groups(read, stop), self.batch, self.min_rows):
            seed, limit = np.zeros(rows, np.uint32), np.zeros(rows, np.int32)
            seed[: len(part)], limit[: len(part)] = [seeds[i] for i in part], max_tokens
            per_row = seed, np.full(rows, temperature, np.float32), limit
            yield part, self._call([read[i] for i in part], per_row, max_tokens, stop, params)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of what was written."""
        return self.tokenizer.decode(ids)

    @abc.abstractmethod
    def read(self, one: Context, max_tokens: int) -> Any:
        """What a call reads of a context. Raises ValueError where it exceeds the window."""

    @abc.abstractmethod
    def _groups(self, read: Sequence[Any], stop: str) -> Iterable[Sequence[int]]:
        """Places of the contexts that may share a call, together."""

    @abc.abstractmethod
    def _call(
        self,
        read: Sequence[Any],
        per_row: tuple[np.ndarray, np.ndarray, np.ndarray],
        max_tokens: int,
        stop: str,
        params: Params,
    ) -> tuple[jax.Array, jax.Array]:
        """One compiled call, which may be in the making: as `text_generator.decode`, rows of no
        context behind the others; per_row: seeds, temperatures and limits."""


Pictures = np.ndarray | tuple[np.ndarray, ...]  # uint8 [H,W,3], or several to be asked about
FEWEST = 8  # tokens of an answer whose probabilities leave the device; more by buckets


def answered(logits: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of logits [B,Y,V]: (probabilities float32 [B,Y,W] of the tokens `wanted` int32 [B,Y,W], the
    likeliest token int32 [B,Y], whether the numbers are finite bool [B,Y])."""
    total = jax.nn.logsumexp(logits, axis=-1)  # of a NaN, and of an infinite logit, not finite
    chosen = jnp.take_along_axis(logits, wanted, axis=-1)
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jnp.exp(chosen - total[..., None]), likeliest, jnp.isfinite(total)


@dataclasses.dataclass(frozen=True, eq=False)
class _Asked:
    """What is read of a picture, or several, with all that is asked about it, and which question
    of which request each is."""

    read: Any
    places: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class BaseAnswerScorer(Runner):
    """A model asked for the first token of its answers.

    params: None where every call brings its own · batch: pictures a compiled call, those of like
    length together.
    """

    params: Params | None = dataclasses.field(repr=False)
    model: Any
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    batch: int

    def probabilities(
        self,
        images: Sequence[Pictures],
        questions: Sequence[Sequence[str]],
        tokens: Sequence[Sequence[Sequence[int]]],
        params: Params | None = None,
    ) -> list[list[np.ndarray]]:
        """Probabilities of chosen tokens as the first one of an answer: of each question of each
        image float32 [len(its tokens)].

        images: uint8 [H,W,3] each, or a tuple of several to be asked about together (frames in
        order); an image that comes more than once is read once · questions: a list of texts per
        image · tokens: ids of each question. Shapes are padded to few buckets. Raises ValueError
        naming an unknown word, BadInput where the model's numbers are not finite.
        """
        given = self.first_answers(images, questions, tokens, params)
        return [[p for p, _ in row] for row in given]

    def likeliest(
        self,
        images: Sequence[Pictures],
        questions: Sequence[Sequence[str]],
        params: Params | None = None,
    ) -> list[list[int]]:
        """The likeliest first token of each question's answer; otherwise as `probabilities`."""
        none = [[()] * len(texts) for texts in questions]
        return [[i for _, i in row] for row in self.first_answers(images, questions, none, params)]

    def first_answers(
        self,
        images: Sequence[Pictures],
        questions: Sequence[Sequence[str]],
        tokens: Sequence[Sequence[Sequence[int]]],
        params: Params | None = None,
        systems: Sequence[str] | None = None,
    ) -> list[list[tuple[np.ndarray, int]]]:
        """Of each question of each image (probabilities of its tokens, the likeliest token of all).

        systems: a text an image that is read before it, or in place of the family's own; "" for
        none, or for that one. Otherwise as `probabilities`.
        """
        systems = [""] * len(images) if systems is None else systems
        if not len(images) == len(questions) == len(systems):
            raise ValueError(f"{len(images)} images, but questions for {len(questions)}")
        params = self.params if params is None else params
        calls = self._sent(self._asked(images, questions, systems), tokens, params)
        found: dict[tuple[int, int], tuple[np.ndarray, int]] = {}
        for part, (p, likeliest, finite) in in_flight.fetched(calls):
            for row, one in enumerate(part):
                context.check_finite(finite[row, : len(one.places)].all(), "an answer")
                for place, key in enumerate(one.places):
                    found[key] = p[row, place], int(likeliest[row, place])
        return [
            [(found[i, n][0][: len(ids)], found[i, n][1]) for n, ids in enumerate(row)]
            for i, row in enumerate(tokens)
        ]

    def _sent(self, asked: Sequence[_Asked], tokens, params: Params) -> Iterator:
        """(what is asked in a call, what `_call` gives)."""
        width = bucket(max([1, *(len(ids) for row in tokens for ids in row)]), FEWEST)
        for part, _ in cut(self._groups([one.read for one in asked]), self.batch):
            ours = [asked[i] for i in part]
            most = bucket(max(len(one.places) for one in ours), 8)
            wanted = np.zeros((self.batch, most, width), np.int32)
            for row, one in enumerate(ours):
                for place, (i, n) in enumerate(one.places):
                    wanted[row, place, : len(tokens[i][n])] = tokens[i][n]
            yield ours, self._call([one.read for one in ours], wanted, params)

    def _asked(self, images, questions, systems) -> list[_Asked]:
        """Each different picture with all its questions, in order; none that nothing is asked."""
        seen: dict[tuple, list[int]] = {}
        shown = [one if isinstance(one, tuple) else (one,) for one in images]
        for i, (pictures, system) in enumerate(zip(shown, systems, strict=True)):
            seen.setdefault((system, *map(_content, pictures)), []).append(i)
        asked = []
        for first, *more in seen.values():
            places = tuple((i, n) for i in (first, *more) for n in range(len(questions[i])))
            if texts := [questions[i][n] for i, n in places]:
                read = self.read(systems[first], shown[first], texts)
                asked.append(_Asked(read, places))
        return asked

    @abc.abstractmethod
    def read(self, system: str, pictures: Sequence[np.ndarray], questions: Sequence[str]) -> Any:
        """What a row reads: what is shown, and behind it each question as a branch of its own."""

    @abc.abstractmethod
    def _groups(self, read: Sequence[Any]) -> Iterable[Sequence[int]]:
        """Places of the rows that may share a call, together."""

    @abc.abstractmethod
    def _call(
        self, read: Sequence[Any], wanted: np.ndarray, params: Params
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One compiled call, which may be in the making: `answered` at the end of each question in
        each of `batch` rows."""


def _content(pixels: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    """What two equal pictures share, and others do not."""
    return pixels.shape, hashlib.blake2b(np.ascontiguousarray(pixels)).digest()


@dataclasses.dataclass(frozen=True, eq=False)
class BaseImageSampler(Runner):
    """A model drawing images behind contexts.

    params: None where every call brings its own · settings: the `sample` section of a config; at
    most `settings.batch` requests go through one compiled call, those of like length together ·
    window: tokens of a context · min_rows: rows of a call are a multiple of it · official: as
    `Guidance.of` · attention: how it is computed, as compute.attention says.
    """

    params: Params | None = dataclasses.field(repr=False)
    vae_params: Params = dataclasses.field(repr=False)
    model: Any
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    settings: SampleConfig
    window: int
    min_rows: int = 1
    official: bool = False
    attention: str = "auto"

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels of images of plain prompts."""
        return self.settings.size

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
        `generate_latents`, where the family denoises. Raises ValueError for a size that the model
        does not draw or a context that exceeds the window or is none that it reads, BadInput where
        the model's numbers are not finite.
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
        return whole(self._drawn(several, settings or self.settings, params, denoiser))

    @abc.abstractmethod
    def _drawn(
        self,
        several: Iterable[Sequence[ImageRequest]],
        settings: SampleConfig,
        params: Params | None,
        denoiser: Denoiser | None,
    ) -> Iterator[tuple[int, dict[int, GeneratedImage]]]:
        """Of call after call (requests in the list that it is for, images by their places)."""

    def sample_prompts(
        self, prompts: Sequence[str], seeds: Sequence[int], *, params: Params | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(images uint8 [N,H,W,3], latents float32 [N,h,w,C]) of plain prompts.

        Of the sampler's `size`, one seed each. Raises ValueError as `sample`, and for an unknown
        word.
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
        requests = (self.plain(prompts, seeds) for prompts, seeds in several)
        for found in self.stream(requests, params=params):
            yield np.stack([one.image for one in found]), np.stack([one.latent for one in found])

    def plain(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[ImageRequest]:
        """What is asked for plain prompts, one seed each. Raises ValueError for an unknown word."""
        texts = [(self.tokenizer.text(prompt),) for prompt in prompts]
        return [
            ImageRequest(context=text, size=self.size, seed=seed, texts=text)
            for text, seed in zip(texts, seeds, strict=True)
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class BaseImageEncoder(abc.ABC):
    """The encoder of a model's autoencoder.

    batch: images a call of `means` and `moments` · batch_sharding: where their rows lie.
    """

    vae_params: Params = dataclasses.field(repr=False)
    model: Any
    batch: int = 1
    batch_sharding: jax.sharding.Sharding | None = None
    programs: Programs = dataclasses.field(default_factory=Programs, repr=False)

    def means(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 [H,W,3] each, of one size -> the posteriors' means, float32 [N,h,w,C]."""
        return self._encoded(images, False)[0]

    def moments(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """As `means`, with the posteriors' standard deviations beside them."""
        mean, std = self._encoded(images, True)
        return mean, std

    def _encoded(self, images: Sequence[np.ndarray], moments: bool) -> list[np.ndarray]:
        calls = in_flight.fetched(self._sent(images, moments))
        parts = [[x[:count] for x in found] for count, found in calls]
        return [np.concatenate(x) for x in zip(*parts, strict=True)]

    def _sent(self, images, moments: bool) -> Iterator[tuple[int, list[jax.Array]]]:
        """The calls for images of one size: (how many images are in it, what it makes)."""
        for places, _ in cut([range(len(images))], self.batch):
            full = np.zeros((self.batch, *images[0].shape), np.float32)
            full[: len(places)] = [self.floats(images[i]) for i in places]
            rows = put(full, self.batch_sharding)
            sizes = {"pictures": self.batch, "size": full.shape[1:3]}
            with self.programs.first("the encoder of pictures", sizes):
                found = self._call(rows, moments)
            yield len(places), found

    @staticmethod
    @abc.abstractmethod
    def floats(image: np.ndarray) -> np.ndarray:
        """uint8 [H,W,3] -> float32 [H,W,3] in [-1, 1]."""

    @abc.abstractmethod
    def _call(self, rows: jax.Array, moments: bool) -> list[jax.Array]:
        """The means of float32 [batch,H,W,3] and, if `moments`, the standard deviations."""
