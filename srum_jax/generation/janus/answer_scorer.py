"""Soft answers of Janus: probabilities of the first token of an answer, without writing it.

One row holds what is shown and, behind it, all that is asked about it, as branches that do not see
each other: a picture is read once, and one pass gives every answer.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import put
from srum_jax.data.images import picture
from srum_jax.data.schema import BRANCH, CAUSAL, Tokens
from srum_jax.generation.base import BaseAnswerScorer, answered
from srum_jax.generation.context import bucket
from srum_jax.generation.janus import template
from srum_jax.generation.janus.template import Branches, Template
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
    """After each token at `ends` int32 [B,Y] of rows ids [B,S] what `answered` gives of the tokens
    `wanted` int32 [B,Y,W]."""
    x = model.embed(params, cfg, ids, patches, dtype=dtype)
    how = dict(remat="none", backend=cfg.attention)
    hidden, _ = llama.stack(params, cfg.llm, x, lane, **how)
    picked = jnp.take_along_axis(hidden, ends[:, :, None], axis=1)
    return answered(model.logits(params, picked), wanted)


@dataclasses.dataclass(frozen=True, eq=False)
class AnswerScorer(BaseAnswerScorer):
    """Janus asked for the first token of its answers, behind its own system text or another."""

    model: JanusConfig

    @functools.cached_property
    def _template(self) -> Template:
        return Template(self.tokenizer, self.model.vit.positions**2)

    def read(
        self, system: str, pictures: Sequence[np.ndarray], questions: Sequence[str]
    ) -> Branches:
        """The pictures and the questions in the template."""
        items = [picture(one, self.model.layout) for one in pictures]
        texts = (self._template.question(text, bool(items)) for text in questions)
        return Branches(self._template.shared(items, system), tuple(texts))

    def _groups(self, read: Sequence[Branches]) -> list[list[int]]:
        return template.by_length(read)

    def _call(self, read, wanted, params) -> tuple[jax.Array, jax.Array, jax.Array]:
        count, slots = self.batch, bucket(read[0].length)
        ids, ends = np.zeros((count, slots), np.int32), np.zeros(wanted.shape[:2], np.int32)
        lane = Tokens(*np.zeros((5, count, slots), np.int32))
        lane.index[:] = -1
        for row, one in enumerate(read):
            _lay(one, ids[row], [x[row] for x in jax.tree.leaves(lane)], ends[row])
        patches = template.pictures([one.shown for one in read], count)
        sizes = {"pictures": 0 if patches is None else len(patches), "tokens read": slots}
        sizes |= {"rows": count, "answers": wanted.shape[1]}
        sizes |= {"tokens of an answer": wanted.shape[2]}
        ids, lane, ends, wanted = put((ids, lane, ends, wanted), self.batch_sharding)
        how = dict(cfg=self.model, dtype=np.dtype(self.dtype))
        with self.programs.first("the answer scorer", sizes):
            return first_tokens(params, ids, lane, patches, ends, wanted, **how)


def _lay(one: Branches, ids: np.ndarray, lane: Sequence[np.ndarray], ends: np.ndarray) -> None:
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
