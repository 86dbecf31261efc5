"""Soft answers (VQA): what the model says of the first token of an answer, without decoding.

One row holds one picture and all that is asked about it as branches, so it is read once, no
question sees another, and one forward pass gives every answer. Of the vocabulary's probabilities
those of the tokens that somebody wants leave the device, beside the likeliest token.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from srum_jax.core import in_flight, preemption
from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import put
from srum_jax.data import packing
from srum_jax.data.images import picture
from srum_jax.data.schema import Batch, Branch, Example, Lanes, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context
from srum_jax.generation.context import bucket
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.model_config import BagelConfig

Pictures = np.ndarray | tuple[np.ndarray, ...]  # uint8 [H,W,3], or several to be asked about
FEWEST = 8  # tokens of an answer whose probabilities leave the device; more by buckets
_NOTHING = Text(np.zeros(0, np.int32), loss=True)  # the answer whose first token is asked for


@functools.partial(jax.jit, static_argnames=("cfg", "dtype"))
def first_tokens(
    params: Params, batch: Batch, wanted: jax.Array, *, cfg: BagelConfig, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """At each label of a packed batch: (probabilities float32 [B,Y,W] of the tokens `wanted` int32
    [B,Y,W], the likeliest token int32 [B,Y], whether the numbers are finite bool [B,Y])."""
    x_t, t = batch.latents, jnp.zeros(batch.noisy.shape)
    und, _, _ = bagel.forward(params, cfg, batch, x_t, t, dtype=dtype, remat="none")
    logits = bagel.logits(params, und, batch.label_slots)
    total = jax.nn.logsumexp(logits, axis=-1)  # of a NaN, and of an infinite logit, not finite
    chosen = jnp.take_along_axis(logits, wanted, axis=-1)
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jnp.exp(chosen - total[..., None]), likeliest, jnp.isfinite(total)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A picture, or several, with all that is asked about it: which question of which request."""

    example: Example
    places: tuple[tuple[int, int], ...]

    @property
    def length(self) -> tuple[int, int]:
        """Its tokens, and the patches among them."""
        und, _, vit, *_ = packing.size(self.example)
        return int(und), int(vit)


@dataclasses.dataclass(frozen=True, eq=False)
class AnswerScorer:
    """The model asked for the first token of its answers.

    params: None where every call brings its own · batch: pictures a compiled call, those of like
    length together · batch_sharding: where rows lie, None: on the default device · dtype: of
    products.
    """

    params: Params | None = dataclasses.field(repr=False)
    model: BagelConfig
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    batch: int
    batch_sharding: jax.sharding.Sharding | None = None
    dtype: DTypeLike = jnp.float32
    programs: context.Programs = dataclasses.field(default_factory=context.Programs, repr=False)

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

        systems: a text an image that is read before it, "" for none; otherwise as `probabilities`.
        """
        systems = [""] * len(images) if systems is None else systems
        if not len(images) == len(questions) == len(systems):
            raise ValueError(f"{len(images)} images, but questions for {len(questions)}")
        params = self.params if params is None else params
        asked = sorted(self._asked(images, questions, systems), key=lambda one: one.length)
        width = bucket(max([1, *(len(ids) for row in tokens for ids in row)]), FEWEST)
        found: dict[tuple[int, int], tuple[np.ndarray, int]] = {}
        parts = (asked[first : first + self.batch] for first in range(0, len(asked), self.batch))
        calls = ((part, self._call(part, tokens, width, params)) for part in parts)
        for part, (p, likeliest, finite) in in_flight.fetched(calls):
            for row, one in enumerate(part):
                context.check_finite(finite[row, : len(one.places)].all(), "an answer")
                for place, key in enumerate(one.places):
                    found[key] = p[row, place], int(likeliest[row, place])
        return [
            [(found[i, n][0][: len(ids)], found[i, n][1]) for n, ids in enumerate(row)]
            for i, row in enumerate(tokens)
        ]

    def _call(
        self, part: Sequence[_Asked], tokens, width: int, params: Params
    ) -> tuple[jax.Array, ...]:
        """One compiled call: what `first_tokens` gives, which may be in the making."""
        preemption.check()
        examples = [one.example for one in part]
        padded = [[e] for e in examples] + [[]] * (self.batch - len(part))
        batch = packing.pack(padded, lanes(examples), self.model.layout)
        wanted = np.zeros((*batch.label_slots.shape, width), np.int32)
        for row, one in enumerate(part):
            for place, (i, n) in enumerate(one.places):
                wanted[row, place, : len(tokens[i][n])] = tokens[i][n]
        sizes = {
            "pictures": self.batch,
            **context.lengths(batch),
            "answers": wanted.shape[1],
            "tokens of an answer": width,
        }
        batch, wanted = put((batch, wanted), self.batch_sharding)
        with self.programs.first("the answer scorer", sizes):
            return first_tokens(params, batch, wanted, cfg=self.model, dtype=np.dtype(self.dtype))

    def _asked(self, images, questions, systems) -> list[_Asked]:
        """Each different picture with all its questions, in order; none that nothing is asked."""
        seen: dict[tuple, list[int]] = {}
        for i, (pictures, system) in enumerate(zip(images, systems, strict=True)):
            several = pictures if isinstance(pictures, tuple) else (pictures,)
            seen.setdefault((system, *map(_content, several)), []).append(i)
        groups = []
        for same in seen.values():
            places = tuple((i, n) for i in same for n in range(len(questions[i])))
            texts = [questions[i][n] for i, n in places]
            if texts:
                first = same[0]
                groups.append(_Asked(self._example(systems[first], images[first], texts), places))
        return groups

    def _example(self, system: str, pictures: Pictures, questions: Sequence[str]) -> Example:
        told = (self.tokenizer.text(system),) if system else ()
        seen = pictures if isinstance(pictures, tuple) else (pictures,)
        branches = (Branch((self.tokenizer.text(q), _NOTHING)) for q in questions)
        return Example((*told, *(picture(one, self.model.layout) for one in seen), *branches))


def _content(pixels: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    """What two equal pictures share, and others do not."""
    return pixels.shape, hashlib.blake2b(np.ascontiguousarray(pixels)).digest()


def lanes(examples: Sequence[Example]) -> Lanes:
    """Lanes that hold any one of the examples: the buckets above the fullest."""
    need = np.max([packing.size(e) for e in examples], axis=0)
    return Lanes(
        und=bucket(need[0], 32),
        gen=0,
        vit=bucket(need[2], 16),
        labels=bucket(need[3], 8),
        images=0,
        regions=0,
    )
