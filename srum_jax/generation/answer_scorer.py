"""Soft answers (VQA): what the model says of the first token of an answer, without decoding.

One row holds one picture and all that is asked about it as branches, so it is read once, no
question sees another, and one forward pass gives every answer. Of the vocabulary's probabilities
those of the tokens that somebody wants leave the device, beside the likeliest token.
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
from srum_jax.data import packing
from srum_jax.data.images import picture
from srum_jax.data.schema import Batch, Branch, Example, Lanes, Text
from srum_jax.generation import context
from srum_jax.generation.base import BaseAnswerScorer, answered
from srum_jax.generation.context import bucket
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.model_config import BagelConfig

_NOTHING = Text(np.zeros(0, np.int32), loss=True)  # the answer whose first token is asked for


@functools.partial(jax.jit, static_argnames=("cfg", "dtype"))
def first_tokens(
    params: Params, batch: Batch, wanted: jax.Array, *, cfg: BagelConfig, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What `answered` gives at each label of a packed batch, of the tokens `wanted` [B,Y,W]."""
    x_t, t = batch.latents, jnp.zeros(batch.noisy.shape)
    und, _, _ = bagel.forward(params, cfg, batch, x_t, t, dtype=dtype, remat="none")
    return answered(bagel.logits(params, und, batch.label_slots), wanted)


@dataclasses.dataclass(frozen=True, eq=False)
class AnswerScorer(BaseAnswerScorer):
    """BAGEL asked for the first token of its answers."""

    model: BagelConfig

    def read(
        self, system: str, pictures: Sequence[np.ndarray], questions: Sequence[str]
    ) -> Example:
        """The pictures behind the system text, and the branches."""
        told = (self.tokenizer.text(system),) if system else ()
        shown = (picture(one, self.model.layout) for one in pictures)
        branches = (Branch((self.tokenizer.text(q), _NOTHING)) for q in questions)
        return Example((*told, *shown, *branches))

    def _groups(self, read: Sequence[Example]) -> list[list[int]]:
        return [sorted(range(len(read)), key=lambda i: _length(read[i]))]

    def _call(self, read, wanted, params) -> tuple[jax.Array, jax.Array, jax.Array]:
        padded = [[e] for e in read] + [[]] * (self.batch - len(read))
        batch = packing.pack(padded, lanes(read), self.model.layout)
        sizes = {"pictures": self.batch, **context.lengths(batch)}
        sizes |= {"answers": wanted.shape[1], "tokens of an answer": wanted.shape[2]}
        batch, wanted = put((batch, wanted), self.batch_sharding)
        with self.programs.first("the answer scorer", sizes):
            return first_tokens(params, batch, wanted, cfg=self.model, dtype=np.dtype(self.dtype))


def _length(example: Example) -> tuple[int, int]:
    """Its tokens, and the patches among them."""
    und, _, vit, *_ = packing.size(example)
    return int(und), int(vit)


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
