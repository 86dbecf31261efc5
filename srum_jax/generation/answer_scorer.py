"""Soft answers (VQA): probabilities of the first answer token, without decoding.

One row holds one image and all its questions as branches, so the image is read once, no question
sees another, and one forward pass gives every answer.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from srum_jax.core import preemption
from srum_jax.core.param_tree import Params
from srum_jax.core.sharding import fetch, put
from srum_jax.data import packing
from srum_jax.data.images import picture
from srum_jax.data.schema import Batch, Branch, Example, Lanes, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context
from srum_jax.generation.context import bucket
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.model_config import BagelConfig

Pictures = np.ndarray | tuple[np.ndarray, ...]  # uint8 [H,W,3], or several to be asked about
_NOTHING = Text(np.zeros(0, np.int32), loss=True)  # the answer whose first token is asked for


@functools.partial(jax.jit, static_argnames=("cfg", "dtype"))
def answer_probabilities(
    params: Params, batch: Batch, *, cfg: BagelConfig, dtype: DTypeLike
) -> jax.Array:
    """float32 [B,Y,V]: the softmax of the logits at a packed batch's labels."""
    x_t, t = batch.latents, jnp.zeros(batch.noisy.shape)
    und, _, _ = bagel.forward(params, cfg, batch, x_t, t, dtype=dtype, remat="none")
    return jax.nn.softmax(bagel.logits(params, und, batch.label_slots), axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class AnswerScorer:
    """The model asked for the first token of its answers.

    params: None where every call brings its own · batch: images a compiled call · batch_sharding:
    where rows lie, None: on the default device · dtype: of products.
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
        params: Params | None = None,
    ) -> list[np.ndarray]:
        """Probabilities of the first answer token, per image float32 [Q,V].

        images: uint8 [H,W,3] each, or a tuple of several to be asked about together (frames in
        order); questions: a list of texts per image. Shapes are padded to few buckets. Raises
        ValueError naming an unknown word, BadInput where the model's numbers are not finite.
        """
        if len(images) != len(questions):
            raise ValueError(f"{len(images)} images, but questions for {len(questions)}")
        params = self.params if params is None else params
        examples = [self._example(i, q) for i, q in zip(images, questions, strict=True)]
        answers = []
        for first in range(0, len(examples), self.batch):
            preemption.check()
            part = examples[first : first + self.batch]
            padded = [[e] for e in part] + [[]] * (self.batch - len(part))
            batch = packing.pack(padded, lanes(part), self.model.layout)
            answers_a_row = batch.label_slots.shape[1]
            sizes = {"pictures": self.batch, **context.lengths(batch), "answers": answers_a_row}
            batch = put(batch, self.batch_sharding)
            with self.programs.first("the answer scorer", sizes):
                given = answer_probabilities(
                    params, batch, cfg=self.model, dtype=np.dtype(self.dtype)
                )
            found = fetch(given)
            for i, row in enumerate(found[: len(part)]):  # a softmax is finite as a whole or not
                asked = row[: len(questions[first + i]), :1]
                context.check_finite(np.isfinite(asked).all(), "an answer")
            answers += [found[i, : len(questions[first + i])] for i in range(len(part))]
        return answers

    def _example(self, pictures: Pictures, questions: Sequence[str]) -> Example:
        seen = pictures if isinstance(pictures, tuple) else (pictures,)
        branches = (Branch((self.tokenizer.text(q), _NOTHING)) for q in questions)
        return Example((*(picture(one, self.model.layout) for one in seen), *branches))


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
