"""The model scores its own images: soft answers about crops and the whole, put together by rule.

Owns how answers become numbers. Everything the judge knows comes from pixels (`regions.py`), the
prompt's words (`protocol.py`) and the model's answers; it never sees the truth. A failure is a
status beside a NaN, never a number.

A region is scored by its best match among the prompt's objects: half P(colour)·P(shape) from two
open questions about its crop, half P(yes) of "is this a C S ?". An image is scored by the mean of
 · global: P(yes) of "does the image show CAPTION ?";
 · questions: product over objects of mean(exists, count), of the total count, of the relation, of
   the sizes that the prompt states;
 · assembled: the best assignment of crops to demanded objects, times 0.1 per missing and per extra
   one, times the sizes, times the relation, which here is half the model's own answers and half
   the geometry of the assigned boxes. Left out where a proposer's boxes do not separate objects.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy.optimize import linear_sum_assignment

from srum_jax.inference.text import Ask
from srum_jax.rewards import protocol, regions
from srum_jax.rewards.protocol import Decomposition, Question
from srum_jax.rewards.regions import Box, Proposer

OK = "ok"
UNDECOMPOSED = "undecomposed"  # the grammar does not reach the prompt
UNKNOWN_WORDS = "unknown words"  # the tokenizer lacks a word of a question or an answer
NO_REGIONS = "no regions"  # the proposer found nothing to look at
NOT_FINITE = "not finite"  # the model gave NaN, or numbers that are no probabilities
UNPARSED = "unparsed"  # a closed question was answered with other words
STATUSES = (OK, UNDECOMPOSED, UNKNOWN_WORDS, NO_REGIONS, NOT_FINITE, UNPARSED)

WRONG_COUNT = 0.1  # factor for each missing and each extra object
DECOMPOSED_SHARE = 0.5  # of P(colour)P(shape) in a region's probability; the rest is "is this …?"
GEOMETRY_SHARE = 0.5  # of the boxes' geometry in the assembled relation
MIN_MASS = 0.5  # least probability on the sensible answers of a closed question


class Vocabulary(Protocol):
    """What the judge needs of a tokenizer; both raise ValueError for a word it does not have."""

    def encode(self, text: str) -> list[int]: ...

    def id(self, word: str) -> int: ...


@dataclasses.dataclass(frozen=True)
class RegionJudgement:
    """One region: score in [-1, 1] (NaN unless status is "ok"), the best matching object.

    p: for each of the prompt's objects, the probability that the region shows it.
    """

    bbox: Box
    score: float
    status: str
    label: str
    p: tuple[float, ...]
    proposer: str


@dataclasses.dataclass(frozen=True)
class Judgement:
    """One image: its regions, image_score in [-1, 1] (NaN unless image_status is "ok").

    parts: probabilities in [0, 1] under "global", "questions" and, where boxes separate objects,
    "assembled"; empty without a score.
    """

    regions: tuple[RegionJudgement, ...]
    image_score: float
    image_status: str
    parts: dict[str, float]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is asked for one prompt, or why nothing is."""

    status: str
    scene: Decomposition | None = None
    crop: tuple[Question, ...] = ()
    image: tuple[Question, ...] = ()
    ids: dict[str, int] = dataclasses.field(default_factory=dict)


class _Unusable(Exception):
    """Answers that cannot be read; the argument is the status."""


def _plan(prompt: str, vocabulary: Vocabulary) -> _Plan:
    scene = protocol.decompose(prompt)
    if scene is None:
        return _Plan(UNDECOMPOSED)
    crop, image = protocol.crop_questions(scene), protocol.image_questions(scene)
    words = {word for q in (*crop, *image) for word in (q.answer, *q.choices) if word}
    words |= {word for spec in scene.objects for word in (spec.color, spec.shape)}
    try:
        for question in (*crop, *image):
            vocabulary.encode(question.text)
        ids = {word: vocabulary.id(word) for word in words}
    except ValueError:
        return _Plan(UNKNOWN_WORDS, scene)
    return _Plan(OK, scene, crop, image, ids)


def _plans(prompts: Sequence[str], vocabulary: Vocabulary) -> list[_Plan]:
    known = {prompt: _plan(prompt, vocabulary) for prompt in set(prompts)}
    return [known[prompt] for prompt in prompts]


# ---------------------------------------------------------------------------- reading the answers


def _check_answers(answers: np.ndarray, count: int) -> np.ndarray:
    answers = np.asarray(answers)
    if answers.ndim != 2 or len(answers) != count:
        raise ValueError(f"answers of shape {answers.shape} to {count} questions: expected [Q, V]")
    if not np.isfinite(answers).all() or answers.min() < 0 or answers.max() > 1 + 1e-3:
        raise _Unusable(NOT_FINITE)
    return answers


def _probability(row: np.ndarray, question: Question, ids: dict[str, int]) -> float:
    """P(answer), for a closed question among its choices. Raises _Unusable(UNPARSED)."""
    p = float(row[ids[question.answer]])
    if not question.choices:
        return min(p, 1.0)
    mass = float(sum(row[ids[word]] for word in question.choices))
    if mass < MIN_MASS:
        raise _Unusable(UNPARSED)
    return p / mass


def _region_probabilities(plan: _Plan, answers: np.ndarray) -> tuple[float, ...]:
    """P(the crop shows object i) for each object, from the answers [Q,V] to the crop questions."""
    answers = _check_answers(answers, len(plan.crop))
    color, shape, *named = answers
    yes = [_probability(row, q, plan.ids) for row, q in zip(named, plan.crop[2:], strict=True)]
    parts = [
        min(1.0, float(color[plan.ids[spec.color]]) * float(shape[plan.ids[spec.shape]]))
        for spec in plan.scene.objects
    ]
    return tuple(
        DECOMPOSED_SHARE * part + (1 - DECOMPOSED_SHARE) * p
        for part, p in zip(parts, yes, strict=True)
    )


def _region(plan: _Plan, box: Box, answers: np.ndarray | None, name: str) -> RegionJudgement:
    try:
        if answers is None:
            raise _Unusable(plan.status)
        p = _region_probabilities(plan, answers)
    except _Unusable as why:
        return RegionJudgement(box, float("nan"), str(why), "", (), name)
    best = int(np.argmax(p))
    return RegionJudgement(box, 2 * p[best] - 1, OK, plan.scene.objects[best].name, p, name)


# ------------------------------------------------------------------------------ the image's score


def _answered(plan: _Plan, answers: np.ndarray) -> dict[str, float]:
    """{"global", "questions", "relation", "sizes" (1 without any)} from answers about the image."""
    answers = _check_answers(answers, len(plan.image))
    p = [_probability(row, q, plan.ids) for row, q in zip(answers, plan.image, strict=True)]
    asked = list(zip(plan.image, p, strict=True))

    def mean(values: list[float]) -> float:
        return float(np.mean(values)) if values else 1.0

    relation = mean([v for q, v in asked if q.kind.startswith("relation")])
    total = mean([v for q, v in asked if q.kind == "count_all"])
    sizes = float(np.prod([v for q, v in asked if q.kind == "size"]))
    each = [mean([v for q, v in asked if q.about == i]) for i in range(len(plan.scene.objects))]
    return {
        "global": mean([v for q, v in asked if q.kind == "caption_right"]),
        "questions": float(np.prod(each)) * total * relation * sizes,
        "relation": relation,
        "sizes": sizes,
    }


def holds(kind: str, first: Box, second: Box) -> bool:
    """Whether `first` lies strictly left of / right of / above / below `second`.

    Each box's centre must be past the other's nearer edge, so boxes that largely overlap along
    the axis are neither.
    """
    if kind in ("right", "below"):
        kind, first, second = protocol.OPPOSITE[kind], second, first
    low, high = (0, 2) if kind == "left" else (1, 3)
    return (first[low] + first[high]) / 2 < second[low] and (
        second[low] + second[high]
    ) / 2 > first[high]


def assemble(
    scene: Decomposition, boxes: Sequence[Box], p: np.ndarray, relation: float = 1.0
) -> float:
    """Probability, in [0, 1], that these regions are exactly what the prompt demands.

    p [R, O]: P(region shows object); relation: the model's own P(relation holds). A region that
    shows nothing demanded counts as one missing and one extra.
    """
    slots = np.repeat(np.arange(len(scene.objects)), [spec.count for spec in scene.objects])
    fit = np.maximum(
        np.asarray(p, np.float64).reshape(-1, len(scene.objects))[:, slots], WRONG_COUNT**2
    )
    rows, cols = linear_sum_assignment(-np.log(fit))
    value = fit[rows, cols].prod() * WRONG_COUNT ** abs(len(fit) - len(slots))
    if scene.relation is not None:
        place = {int(slots[col]): boxes[row] for row, col in zip(rows, cols, strict=True)}
        pair = [place.get(i) for i in (scene.relation.subject, scene.relation.other)]
        fits = None not in pair and holds(scene.relation.kind, *pair)
        value *= GEOMETRY_SHARE * fits + (1 - GEOMETRY_SHARE) * relation
    return float(value)


def _image(
    plan: _Plan,
    found: tuple[RegionJudgement, ...],
    answers: np.ndarray | None,
    separates: bool,
) -> Judgement:
    try:
        if plan.status != OK:
            raise _Unusable(plan.status)
        if not found:
            raise _Unusable(NO_REGIONS)
        for region in found:
            if region.status != OK:
                raise _Unusable(region.status)
        parts = _answered(plan, answers)
    except _Unusable as why:
        return Judgement(found, float("nan"), str(why), {})
    relation, sizes = parts.pop("relation"), parts.pop("sizes")
    if separates:
        p = np.array([region.p for region in found])
        boxes = [region.bbox for region in found]
        parts["assembled"] = sizes * assemble(plan.scene, boxes, p, relation)
    return Judgement(found, 2 * float(np.mean(list(parts.values()))) - 1, OK, parts)


# ------------------------------------------------------------------------------------ all at once


def _ask_where(
    ask: Ask, wanted: Sequence[bool], images: Sequence[np.ndarray], questions: Sequence[Sequence]
) -> list[np.ndarray | None]:
    """One call of `ask` for the wanted images; None for the others."""
    chosen = [i for i, want in enumerate(wanted) if want]
    answers: list[np.ndarray | None] = [None] * len(images)
    if chosen:
        texts = [[question.text for question in questions[i]] for i in chosen]
        given = ask([images[i] for i in chosen], texts)
        if len(given) != len(chosen):
            raise ValueError(f"ask answered {len(given)} of {len(chosen)} images")
        for i, answer in zip(chosen, given, strict=True):
            answers[i] = answer
    return answers


def judge_regions(
    ask: Ask,
    vocabulary: Vocabulary,
    images: Sequence[np.ndarray],
    prompts: Sequence[str],
    proposer: Proposer,
    *,
    margin: int = 1,
) -> list[tuple[RegionJudgement, ...]]:
    """The scored regions of each image, by one `ask` for all crops.

    images uint8 [H,W,3] · prompts: one an image · margin: pixels around a box in its crop.
    Raises ValueError for differing lengths, things that are no images, answers of a wrong shape.
    """
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images and {len(prompts)} prompts: give one prompt each")
    plans = _plans(prompts, vocabulary)
    boxes = [regions.propose(proposer, image) for image in images]
    owners = [(n, box) for n, found in enumerate(boxes) for box in found]
    crops = [regions.crop(images[n], box, margin) for n, box in owners]
    answers = _ask_where(
        ask, [plans[n].status == OK for n, _ in owners], crops, [plans[n].crop for n, _ in owners]
    )
    found: list[list[RegionJudgement]] = [[] for _ in images]
    for (n, box), answer in zip(owners, answers, strict=True):
        found[n].append(_region(plans[n], box, answer, proposer.name))
    return [tuple(regions_) for regions_ in found]


def judge_images(
    ask: Ask,
    vocabulary: Vocabulary,
    images: Sequence[np.ndarray],
    prompts: Sequence[str],
    proposer: Proposer,
    *,
    margin: int = 1,
) -> list[Judgement]:
    """Regions and image score of each image, by one `ask` for all crops and one for all images.

    Arguments and errors as in `judge_regions`.
    """
    found = judge_regions(ask, vocabulary, images, prompts, proposer, margin=margin)
    plans = _plans(prompts, vocabulary)
    wanted = [
        plan.status == OK and bool(parts) and all(region.status == OK for region in parts)
        for plan, parts in zip(plans, found, strict=True)
    ]
    answers = _ask_where(ask, wanted, images, [plan.image for plan in plans])
    return [
        _image(plan, parts, answer, proposer.separates)
        for plan, parts, answer in zip(plans, found, answers, strict=True)
    ]
