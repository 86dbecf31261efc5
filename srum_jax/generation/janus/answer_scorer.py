"""Soft answers of Janus: probabilities of the first token of an answer, without writing it.

One row holds what is shown and, behind it, all that is asked about it, as branches that do not see
each other: a picture is read once, and one pass gives every answer.
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
from srum_jax.data.images import picture
from srum_jax.data.schema import BRANCH, CAUSAL, Tokens
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context
from srum_jax.generation.answer_scorer import FEWEST, Pictures
from srum_jax.generation.context import bucket
from srum_jax.generation.janus import template
from srum_jax.generation.janus.template import Ids, Row, Template
from srum_jax.models.janus import llama, model
from srum_jax.models.janus.model_config import JanusConfig


@functools.partial(jax.jit, static_argnames=("cfg", "dtype"))
def first_tokens(
    params: Params,
    ids: jax.Array,
    lane: Tokens,
    patches: jax.Array | None,
    ends: jax.Array,
    wanted: jax.Array,
    *,
    cfg: JanusConfig,
    dtype: DTypeLike,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """After each token at `ends` int32 [B,Y] of rows ids [B,S]: (probabilities float32 [B,Y,W] of
    the tokens `wanted` int32 [B,Y,W], the likeliest token int32 [B,Y], whether finite bool [B,Y]).
    """
    x = model.embed(params, cfg, ids, patches, dtype=dtype)
    how = dict(remat="none", backend=cfg.attention)
    hidden, _ = llama.stack(params, cfg.llm, x, lane, **how)
    picked = jnp.take_along_axis(hidden, ends[:, :, None], axis=1)
    logits = model.logits(params, picked)
    total = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, wanted, axis=-1)
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jnp.exp(chosen - total[..., None]), likeliest, jnp.isfinite(total)


@dataclasses.dataclass(frozen=True, eq=False)
class _Asked:
    """What is shown, what is asked about it, and which question of which request each is."""

    shown: Row
    questions: tuple[Ids, ...]
    places: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        return len(self.shown.ids) + sum(map(len, self.questions))


@dataclasses.dataclass(frozen=True, eq=False)
class AnswerScorer:
    """The model asked for the first token of its answers; arguments as of BAGEL's."""

    params: Params | None = dataclasses.field(repr=False)
    model: JanusConfig
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    batch: int
    batch_sharding: jax.sharding.Sharding | None = None
    dtype: DTypeLike = jnp.float32
    programs: context.Programs = dataclasses.field(default_factory=context.Programs, repr=False)

    @functools.cached_property
    def _template(self) -> Template:
        return Template(self.tokenizer, self.model.vit.positions**2)

    def probabilities(
        self,
        images: Sequence[Pictures],
        questions: Sequence[Sequence[str]],
        tokens: Sequence[Sequence[Sequence[int]]],
        params: Params | None = None,
    ) -> list[list[np.ndarray]]:
        """Probabilities of chosen tokens as the first one of an answer, as BAGEL's scorer's."""
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

        systems: a text an image in place of the model's own system text, "" for that one.
        """
        systems = [""] * len(images) if systems is None else systems
        if not len(images) == len(questions) == len(systems):
            raise ValueError(f"{len(images)} images, but questions for {len(questions)}")
        params = self.params if params is None else params
        asked = self._asked(images, questions, systems)
        width = bucket(max([1, *(len(ids) for row in tokens for ids in row)]), FEWEST)
        found: dict[tuple[int, int], tuple[np.ndarray, int]] = {}
        calls = ((part, self._call(part, tokens, width, params)) for part in self._parts(asked))
        for part, (p, likeliest, finite) in in_flight.fetched(calls):
            for row, one in enumerate(part):
                context.check_finite(finite[row, : len(one.places)].all(), "an answer")
                for place, key in enumerate(one.places):
                    found[key] = p[row, place], int(likeliest[row, place])
        return [
            [(found[i, n][0][: len(ids)], found[i, n][1]) for n, ids in enumerate(row)]
            for i, row in enumerate(tokens)
        ]

    def _parts(self, asked: Sequence[_Asked]) -> list[list[_Asked]]:
        """What shares a call: what is padded to the same length."""
        groups: dict[int, list[_Asked]] = {}
        for one in asked:
            groups.setdefault(bucket(one.length), []).append(one)
        return [
            groups[length][first : first + self.batch]
            for length in sorted(groups)
            for first in range(0, len(groups[length]), self.batch)
        ]

    def _call(self, part: Sequence[_Asked], tokens, width: int, params: Params):
        """One compiled call: what `first_tokens` gives, which may be in the making."""
        preemption.check()
        count = self.batch
        slots, most = bucket(part[0].length), bucket(max(len(one.places) for one in part), 8)
        ids, ends = np.zeros((count, slots), np.int32), np.zeros((count, most), np.int32)
        lane = Tokens(*np.zeros((5, count, slots), np.int32))
        lane.index[:] = -1
        wanted = np.zeros((count, most, width), np.int32)
        for row, one in enumerate(part):
            _lay(one, ids[row], [x[row] for x in jax.tree.leaves(lane)], ends[row])
            for place, (i, n) in enumerate(one.places):
                wanted[row, place, : len(tokens[i][n])] = tokens[i][n]
        patches = template.pictures([one.shown for one in part], count)
        sizes = {"pictures": 0 if patches is None else len(patches), "tokens read": slots}
        sizes |= {"rows": count, "answers": most, "tokens of an answer": width}
        ids, lane, ends, wanted = put((ids, lane, ends, wanted), self.batch_sharding)
        how = dict(cfg=self.model, dtype=np.dtype(self.dtype))
        with self.programs.first("the answer scorer", sizes):
            return first_tokens(params, ids, lane, patches, ends, wanted, **how)

    def _asked(self, images, questions, systems) -> list[_Asked]:
        """Each different picture with all its questions, in order; none that nothing is asked."""
        seen: dict[tuple, list[int]] = {}
        for i, (shown, system) in enumerate(zip(images, systems, strict=True)):
            several = shown if isinstance(shown, tuple) else (shown,)
            seen.setdefault((system, *map(_content, several)), []).append(i)
        asked = []
        for same in seen.values():
            places = tuple((i, n) for i in same for n in range(len(questions[i])))
            if not places:
                continue
            first = images[same[0]]
            several = first if isinstance(first, tuple) else (first,)
            items = [picture(one, self.model.layout) for one in several]
            row = self._template.shared(items, systems[same[0]])
            texts = (self._template.question(questions[i][n], bool(items)) for i, n in places)
            asked.append(_Asked(row, tuple(texts), places))
        return asked


def _lay(one: _Asked, ids: np.ndarray, lane: Sequence[np.ndarray], ends: np.ndarray) -> None:
    """Writes a row: what is shown, then each question as a branch whose positions go on there."""
    segment, split, mode, position, index = lane
    at = len(one.shown.ids)
    ids[:at], mode[:at], position[:at] = one.shown.ids, CAUSAL, np.arange(at)
    for number, question in enumerate(one.questions, start=1):
        where = slice(at, at + len(question))
        ids[where], split[where], mode[where] = question, number, BRANCH
        position[where] = len(one.shown.ids) + np.arange(len(question))
        at += len(question)
        ends[number - 1] = at - 1
    segment[:at], index[:at] = 1, np.arange(at)


def _content(pixels: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    """What two equal pictures share, and others do not."""
    return pixels.shape, hashlib.blake2b(np.ascontiguousarray(pixels)).digest()
