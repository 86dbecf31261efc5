"""The exam of the shapes world: what is asked of a model, and which replies are right.

Owns how the world's questions, captions and edits become requests of a suite, and the exact
verdicts on drawings, answers, captions and edits. What is asked for is a function of the split and
the number of items.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srum_jax.evals.suite import AnswerRequest, EditRequest, TextRequest, Verdict
from srum_jax.generation.image_sampler import candidate_seed
from srum_jax.worlds.shapes import reasons, verifier
from srum_jax.worlds.shapes.changes import Edit, edit_set, several_set
from srum_jax.worlds.shapes.language import content_of
from srum_jax.worlds.shapes.question_forms import DESCRIBE, ShapesQuestion
from srum_jax.worlds.shapes.questions import caption_set, qa_set
from srum_jax.worlds.shapes.rendering import Scene, draw
from srum_jax.worlds.shapes.setting import SMALL, Setting, of_side

CAPTION_TOKENS = {4: 24, 9: 44}  # by a setting's objects; the longest captions have 15, 36 words

# A picture uint8 [H,W,3] or a tuple of several, and a question about them.
Item = tuple[np.ndarray | tuple[np.ndarray, ...], ShapesQuestion]


# -------------------------------------------------------------------------------- what is asked


def questions(
    split: str, count: int, several: int, setting: Setting = SMALL
) -> tuple[AnswerRequest, ...]:
    """`count` questions about one picture each, then `several` about two or a clip, which the small
    setting alone has."""
    of_several = several_set(split, several) if setting == SMALL else ()
    return answer_requests(qa_set(split, count, setting=setting) + of_several)


def answer_requests(items: Sequence[Item]) -> tuple[AnswerRequest, ...]:
    """Questions as requests; the truth is the one word that is right."""
    return tuple(
        AnswerRequest(
            id=str(i),
            category=question.kind,
            images=pictures if isinstance(pictures, tuple) else (pictures,),
            question=question.text,
            truth=question.answer,
        )
        for i, (pictures, question) in enumerate(items)
    )


def captions(split: str, count: int, setting: Setting = SMALL) -> tuple[TextRequest, ...]:
    """Scenes to describe; the truth is the scene."""
    return tuple(
        TextRequest(
            id=str(i),
            category=content_of([thing.pair for thing in scene.things]).category,
            images=(draw(scene),),
            instruction=DESCRIBE,
            max_tokens=CAPTION_TOKENS[setting.most],
            truth=scene,
        )
        for i, scene in enumerate(caption_set(split, count, setting=setting))
    )


def edits(split: str, count: int, setting: Setting = SMALL) -> tuple[EditRequest, ...]:
    """Pictures to change; the truth is the edit."""
    return tuple(
        EditRequest(
            id=str(i),
            category=edit.kind,
            image=draw(edit.source),
            instruction=edit.instruction,
            seed=candidate_seed(0, i, 0),
            truth=edit,
        )
        for i, edit in enumerate(edit_set(split, count, setting=setting))
    )


# ------------------------------------------------------------------------------- what is right


@dataclasses.dataclass(frozen=True)
class ShapesVerifier:
    """The verifier as the judge's scores are held against it."""

    def right(self, image: np.ndarray, prompt: str) -> bool | None:
        """None for an image of another size, and a prompt outside the grammar."""
        if not readable(image.shape[:2], prompt):
            return None
        return verifier.verify(image, prompt).right

    def region_right(self, image: np.ndarray, box: Sequence[float], prompt: str) -> bool:
        """Whether the box (x0, y0, x1, y1 in px) holds one object, well made, of the prompt."""
        return verifier.verify_region(image, box, prompt)


def readable(size: tuple[int, int], prompt: str) -> bool:
    """Whether the verifier can judge an image of `size` (height, width in pixels) by the prompt."""
    setting = of_side(size[0])
    try:
        known = setting is not None and tuple(size) == (setting.side, setting.side)
        return known and bool(verifier.demanded(prompt, setting))
    except ValueError:
        return False


def right_drawings(images: Sequence[np.ndarray], prompts: Sequence[str]) -> np.ndarray:
    """bool [N]: which images, uint8 of their setting's size, show what their prompts say."""
    pairs = zip(images, prompts, strict=True)
    return np.array([verifier.verify(image, prompt).right for image, prompt in pairs], bool)


def judge_drawings(records: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Of candidate records whose prompts the verifier can read."""
    found = [verifier.verify(record["image"], record["prompt"]) for record in records]
    return [
        Verdict(record["id"], record["category"], one.right, one.reason)
        for record, one in zip(records, found, strict=True)
    ]


def judge_answers(requests: Sequence[AnswerRequest], replies: Sequence[str]) -> list[Verdict]:
    """Right is the one word."""
    return [
        _verdict(request, "" if reply == request.truth else reasons.of_answer(reply, request.truth))
        for request, reply in zip(requests, replies, strict=True)
    ]


def judge_captions(requests: Sequence[TextRequest], replies: Sequence[str]) -> list[Verdict]:
    """Right is all that the scene shows and nothing else."""
    scenes: list[Scene] = [request.truth for request in requests]
    return [
        _verdict(request, verifier.caption_fault(reply, scene))
        for request, scene, reply in zip(requests, scenes, replies, strict=True)
    ]


def judge_edits(requests: Sequence[EditRequest], replies: Sequence[np.ndarray]) -> list[Verdict]:
    """Right is what the edit demands with all else as it was."""
    wanted: list[Edit] = [request.truth for request in requests]
    return [
        _verdict(request, verifier.edit_fault(image, edit))
        for request, edit, image in zip(requests, wanted, replies, strict=True)
    ]


def _verdict(request: AnswerRequest | TextRequest | EditRequest, fault: str) -> Verdict:
    """Right where there is no fault."""
    return Verdict(request.id, request.category, not fault, fault)
