"""What a shapes model can do beside drawing prompts: answer, describe and edit, judged exactly.

Owns how the world's questions, captions and edits are put to a model, and which were right.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srum_jax.config import Config
from srum_jax.core import sharding
from srum_jax.core.param_tree import Params
from srum_jax.data.images import picture
from srum_jax.data.schema import Latent, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context, image_sampler, text_generator
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.worlds.shapes import examples as shapes
from srum_jax.worlds.shapes import verifier

CAPTION_TOKENS = 24  # the longest caption of the world has 15 words
WINDOW = 512  # tokens of a context

# A picture uint8 [H,W,3] or a tuple of several, and a question about them.
Asked = tuple[np.ndarray | tuple[np.ndarray, ...], shapes.Question]


@dataclasses.dataclass(frozen=True)
class ShapesSkills:
    """A model that asks itself, writes, paints prompts, draws requests and encodes pictures."""

    cfg: BagelConfig
    tokenizer: Tokenizer
    batch: int  # pictures a compiled call
    ask: text_generator.Ask
    write: text_generator.Write
    paint: image_sampler.Paint
    draw: image_sampler.Draw
    encode: Callable[[np.ndarray], Latent]

    def words(self, sentence: str) -> Text:
        return Text(np.array(self.tokenizer.encode(sentence), np.int32))


def of(
    params: Params,
    vae_params: Params,
    model: BagelConfig,
    tokenizer: Tokenizer,
    cfg: Config,
    mesh: jax.sharding.Mesh,
) -> ShapesSkills:
    """The model in use, as the config's `sample` and `evaluate` sections say."""
    at, dtype = sharding.batch_sharding(mesh), jnp.dtype(cfg.compute.dtype)
    shared = dict(place=lambda x: jax.device_put(x, at), dtype=dtype)
    batch, programs = cfg.evaluate.batch, context.Programs()
    # All calls are full ones: empty rows cost less than a program for fewer.
    write = dict(batch=batch, least=batch, window=WINDOW, programs=programs)
    draw = dict(least=cfg.sample.batch, window=WINDOW, programs=programs)
    return ShapesSkills(
        cfg=model,
        tokenizer=tokenizer,
        batch=batch,
        ask=text_generator.asker(params, model, tokenizer, rows=batch, **shared),
        write=text_generator.writer(params, model, tokenizer, **write, **shared),
        paint=image_sampler.painter(params, vae_params, model, tokenizer, cfg.sample, **shared),
        draw=image_sampler.drawer(params, vae_params, model, cfg.sample, **draw, **shared),
        encode=image_sampler.encoder(vae_params, model, programs=programs),
    )


def answered(able: ShapesSkills, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """Questions with the likeliest first word of the model's answer, and whether it is right.

    {"kind", "question", "answer", "given", "right"} each.
    """
    given: dict[int, int] = {}
    # One picture, two, and clips go apart, or a clip would lengthen every row; clips of all lengths
    # go together, or each would have its own program.
    numbers = [min(len(seen), 3) if isinstance(seen, tuple) else 1 for seen, _ in asked]
    for number in sorted(set(numbers)):
        places = [i for i, n in enumerate(numbers) if n == number]
        answers = able.ask([asked[i][0] for i in places], [[asked[i][1].text] for i in places])
        given |= {i: int(a[0].argmax()) for i, a in zip(places, answers, strict=True)}
    return [
        {
            "kind": question.kind,
            "question": question.text,
            "answer": question.answer,
            "given": able.tokenizer.decode([given[i]]),
            "right": able.tokenizer.id(question.answer) == given[i],
        }
        for i, (_, question) in enumerate(asked)
    ]


def described(able: ShapesSkills, scenes: Sequence[shapes.Scene]) -> list[dict[str, Any]]:
    """The captions that the model writes of scenes: {"kind" (of the scene), "given", "right"}."""
    request = able.words(shapes.DESCRIBE)
    contexts = [(picture(shapes.draw(scene), able.cfg), request) for scene in scenes]
    written = able.write(contexts, max_tokens=CAPTION_TOKENS)
    return [
        {
            "kind": shapes.content_of([t.pair for t in scene.things]).category,
            "given": w.text,
            "right": verifier.verify_caption(w.text, scene),
        }
        for w, scene in zip(written, scenes, strict=True)
    ]


def edited(able: ShapesSkills, edits: Sequence[shapes.Edit]) -> list[dict[str, Any]]:
    """The model's edits, and whether they show what was asked for and nothing else.

    {"kind", "instruction", "right", "image": uint8 [H,W,3]} each.
    """
    requests = []
    for number, edit in enumerate(edits):
        before = shapes.draw(edit.source)
        seen = (able.encode(before), picture(before, able.cfg))
        items = image_sampler.guidance_contexts((*seen, able.words(edit.instruction)))
        seed = image_sampler.candidate_seed(0, number, 0)
        requests.append(image_sampler.Request(**items, size=before.shape[:2], seed=seed))
    drawn = able.draw(requests)
    return [
        {
            "kind": edit.kind,
            "instruction": edit.instruction,
            "right": verifier.verify_edit(d.image, edit),
            "image": d.image,
        }
        for d, edit in zip(drawn, edits, strict=True)
    ]
