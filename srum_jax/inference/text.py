"""Text out of the model: soft answers to many questions about images, in packed rows.

One row holds one image and all its questions as branches: the image is read once, no question sees
another, and one forward pass gives every answer's first token.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from srum_jax.core.params import Params
from srum_jax.data import packing
from srum_jax.data.images import bucket, picture
from srum_jax.data.schema import Branch, Example, Lanes, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.models import bagel
from srum_jax.models.config import BagelConfig

Ask = Callable[[Sequence[np.ndarray], Sequence[Sequence[str]]], list[np.ndarray]]


def asker(
    params: Params,
    cfg: BagelConfig,
    tokenizer: Tokenizer,
    *,
    rows: int,
    place: Callable = jnp.asarray,
    dtype=jnp.float32,
) -> Ask:
    """`ask(images, questions)`: probabilities of the first answer token.

    images: uint8 [H,W,3] each; questions: a list of texts per image. Returns per image float32
    [Q, V]. `rows` images go through one compiled call; shapes are padded to few sizes. `place`
    puts a host array on the devices. Raises ValueError naming an unknown word.
    """
    nothing = np.zeros(0, np.int32)

    @jax.jit
    def probabilities(params, batch):
        x_t, t = batch.latents, jnp.zeros(batch.noisy.shape)
        und, _, _ = bagel.forward(params, cfg, batch, x_t, t, dtype=dtype, remat=False)
        return jax.nn.softmax(bagel.logits(params, und, batch.label_slots), axis=-1)

    def example(image, texts):
        branches = [
            Branch((Text(np.array(tokenizer.encode(q), np.int32)), Text(nothing, loss=True)))
            for q in texts
        ]
        return Example((picture(image, cfg), *branches))

    def ask(images, questions):
        if len(images) != len(questions):
            raise ValueError(f"{len(images)} images, but questions for {len(questions)}")
        examples = [example(i, q) for i, q in zip(images, questions, strict=True)]
        answers = []
        for first in range(0, len(examples), rows):
            part = examples[first : first + rows]
            need = np.max([packing.size(e) for e in part], axis=0)
            lanes = Lanes(
                und=bucket(need[0], 32),
                gen=0,
                vit=bucket(need[2], 16),
                labels=bucket(need[3], 8),
                images=0,
                regions=0,
            )
            padded = [[e] for e in part] + [[]] * (rows - len(part))
            batch = jax.tree.map(place, packing.pack(padded, lanes, cfg))
            found = np.asarray(probabilities(params, batch))
            answers += [found[i, : len(questions[first + i])] for i in range(len(part))]
        return answers

    return ask
