"""What a shapes model can do beside drawing prompts: answer, describe and edit, judged exactly.

Owns how the world's questions, captions and edits are put to a model, and which were right.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from srum_jax.config import Config
from srum_jax.data.images import picture
from srum_jax.data.schema import Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import image_sampler, text_generator
from srum_jax.generation.answer_scorer import AnswerScorer
from srum_jax.generation.image_codec import ImageEncoder
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.stages.loading import LoadedModel
from srum_jax.worlds.shapes import examples as shapes
from srum_jax.worlds.shapes import verifier

CAPTION_TOKENS = 24  # the longest caption of the world has 15 words
WINDOW = 512  # tokens of a context

# A picture uint8 [H,W,3] or a tuple of several, and a question about them.
Asked = tuple[np.ndarray | tuple[np.ndarray, ...], shapes.Question]


@dataclasses.dataclass(frozen=True)
class ShapesSkills:
    """A model that answers, writes, draws and encodes pictures."""

    cfg: BagelConfig
    tokenizer: Tokenizer
    batch: int  # pictures a compiled call
    scorer: AnswerScorer
    generator: text_generator.TextGenerator
    sampler: image_sampler.ImageSampler
    encoder: ImageEncoder

    def words(self, sentence: str) -> Text:
        return self.tokenizer.text(sentence)


def of(loaded: LoadedModel, cfg: Config, mesh: jax.sharding.Mesh) -> ShapesSkills:
    """The model in use, as the config's `sample` and `evaluate` sections say."""
    batch = cfg.evaluate.batch
    # All calls are full ones: empty rows cost less than a program for fewer.
    generator = loaded.text_generator(cfg, mesh, batch=batch, window=WINDOW, min_rows=batch)
    return ShapesSkills(
        cfg=loaded.cfg,
        tokenizer=loaded.tokenizer,
        batch=batch,
        scorer=loaded.answer_scorer(cfg, mesh, batch=batch),
        generator=generator,
        sampler=loaded.image_sampler(cfg, mesh),
        encoder=loaded.encoder(),
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
        answers = able.scorer.probabilities(
            [asked[i][0] for i in places], [[asked[i][1].text] for i in places]
        )
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
    contexts = [(picture(shapes.draw(scene), able.cfg.layout), request) for scene in scenes]
    written = able.generator.generate(contexts, max_tokens=CAPTION_TOKENS)
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
        seen = (able.encoder.encode(before), picture(before, able.cfg.layout))
        items = image_sampler.guidance_contexts((*seen, able.words(edit.instruction)))
        seed = image_sampler.candidate_seed(0, number, 0)
        requests.append(image_sampler.ImageRequest(**items, size=before.shape[:2], seed=seed))
    drawn = able.sampler.sample(requests)
    return [
        {
            "kind": edit.kind,
            "instruction": edit.instruction,
            "right": verifier.verify_edit(d.image, edit),
            "image": d.image,
        }
        for d, edit in zip(drawn, edits, strict=True)
    ]
