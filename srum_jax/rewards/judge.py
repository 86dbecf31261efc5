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
A prompt that nobody took apart is scored by the global part alone, its regions not at all.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
from scipy.optimize import linear_sum_assignment

from srum_jax.inference.text import Ask
from srum_jax.rewards import protocol, regions
from srum_jax.rewards.protocol import Decomposition, Question
from srum_jax.rewards.regions import Box, Proposer, Seen

OK = "ok"
UNDECOMPOSED = "undecomposed"  # of a region: the prompt could not be taken apart into objects
IRRELEVANT = "irrelevant"  # of a region: it shows no kind of thing that the prompt names
UNKNOWN_WORDS = "unknown words"  # the tokenizer lacks a word of a question or an answer
NO_REGIONS = "no regions"  # the proposer found nothing to look at
NOT_FINITE = "not finite"  # the model gave NaN, or numbers that are no probabilities
UNPARSED = "unparsed"  # a closed question was answered with other words
NOT_ASKED = "not asked"  # of an image: only its regions were looked at
STATUSES = (OK, UNDECOMPOSED, IRRELEVANT, UNKNOWN_WORDS, NO_REGIONS, NOT_FINITE, UNPARSED)
NOT_SCORED = (UNDECOMPOSED, IRRELEVANT)  # statuses of regions that say nothing against an image

WRONG_COUNT = 0.1  # factor for each missing and each extra object
DECOMPOSED_SHARE = 0.5  # of P(colour)P(shape) in a region's probability; the rest is "is this …?"
GEOMETRY_SHARE = 0.5  # of the boxes' geometry in the assembled relation
MIN_MASS = 0.5  # least probability on the sensible answers of a closed question


# How a region is shown: its crop; the image with its outline; the image and coordinates in words.
View = Literal["crop", "outline", "coordinates"]
NAMES = {
    "crop": "this",
    "outline": "the outlined object",
    "coordinates": "the object at ({0:.0f}, {1:.0f}, {2:.0f}, {3:.0f})",
}


class Vocabulary(Protocol):
    """What the judge needs of a tokenizer; both raise ValueError for a word it does not have.

    answers: the ids of the single tokens that spell a word. word_level: its words are all there
    is, each one token, with a blank before every sign.
    """

    word_level: bool

    def encode(self, text: str) -> list[int]: ...

    def answers(self, word: str) -> tuple[int, ...]: ...


@dataclasses.dataclass(frozen=True)
class RegionJudgement:
    """One region: score in [-1, 1] (NaN unless status is "ok"), the best matching object.

    p: for each of the prompt's objects, the probability that the region shows it. mask: bool
    [H, W] where the proposer knows it.
    """

    bbox: Box
    score: float
    status: str
    label: str
    p: tuple[float, ...]
    proposer: str
    mask: np.ndarray | None = dataclasses.field(default=None, compare=False)


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
    scene: Decomposition
    crop: tuple[Question, ...] = ()
    image: tuple[Question, ...] = ()
    ids: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    word_level: bool = True

    def texts(self, questions: Sequence[Question], about: str = "this") -> list[str]:
        """The questions as the model reads them; `about` names the region that they call "this"."""
        said = [question.text for question in questions]
        if about != "this":
            said = [text.replace("this", about, 1) for text in said]
        return said if self.word_level else [protocol.natural(text) for text in said]


class _Unusable(Exception):
    """Answers that cannot be read; the argument is the status."""


def _plan(scene: Decomposition, vocabulary: Vocabulary) -> _Plan:
    crop = protocol.crop_questions(scene) if scene.objects else ()
    image = protocol.image_questions(scene)
    words = {word for q in (*crop, *image) for word in (q.answer, *q.choices) if word}
    if scene.open:
        words |= {word for spec in scene.objects for word in (spec.color, spec.shape)}
    try:
        for question in (*crop, *image):
            vocabulary.encode(question.text)
        ids = {word: vocabulary.answers(word) for word in words}
    except ValueError:
        return _Plan(UNKNOWN_WORDS, scene)
    return _Plan(OK, scene, crop, image, ids, vocabulary.word_level)


def _plans(
    prompts: Sequence[str],
    vocabulary: Vocabulary,
    scenes: Mapping[str, Decomposition] | None,
) -> list[_Plan]:
    """One a prompt: of its scene where one is given, otherwise of what the grammar reads."""
    known = {}
    for prompt in set(prompts):
        scene = (scenes or {}).get(prompt) or protocol.decompose(prompt) or protocol.whole(prompt)
        known[prompt] = _plan(scene, vocabulary)
    return [known[prompt] for prompt in prompts]


# ---------------------------------------------------------------------------- reading the answers


def _check_answers(answers: np.ndarray, count: int) -> np.ndarray:
    answers = np.asarray(answers)
    if answers.ndim != 2 or len(answers) != count:
        raise ValueError(f"answers of shape {answers.shape} to {count} questions: expected [Q, V]")
    if not np.isfinite(answers).all() or answers.min() < 0 or answers.max() > 1 + 1e-3:
        raise _Unusable(NOT_FINITE)
    return answers


def _mass(row: np.ndarray, word: str, ids: Mapping[str, tuple[int, ...]]) -> float:
    """P(word) in an answer's probabilities [V], over the tokens that spell it."""
    return float(row[list(ids[word])].sum())


def _probability(row: np.ndarray, question: Question, ids: Mapping[str, tuple[int, ...]]) -> float:
    """P(answer), for a closed question among its choices. Raises _Unusable(UNPARSED)."""
    p = _mass(row, question.answer, ids)
    if not question.choices:
        return min(p, 1.0)
    mass = sum(_mass(row, word, ids) for word in question.choices)
    if mass < MIN_MASS:
        raise _Unusable(UNPARSED)
    return p / mass


def _region_probabilities(plan: _Plan, answers: np.ndarray) -> tuple[tuple[float, ...], float]:
    """(P(the crop shows object i) for each object, P(it shows some object's kind of thing)), from
    the answers [Q,V] to the crop questions."""
    answers = _check_answers(answers, len(plan.crop))
    if not plan.scene.open:
        said = [_probability(row, q, plan.ids) for row, q in zip(answers, plan.crop, strict=True)]
        objects = len(plan.scene.objects)
        return tuple(said[:objects]), max(said[objects:])
    color, shape, *named = answers
    yes = [_probability(row, q, plan.ids) for row, q in zip(named, plan.crop[2:], strict=True)]
    shapes = [min(1.0, _mass(shape, spec.shape, plan.ids)) for spec in plan.scene.objects]
    parts = [
        min(1.0, _mass(color, spec.color, plan.ids)) * p
        for spec, p in zip(plan.scene.objects, shapes, strict=True)
    ]
    mixed = [
        DECOMPOSED_SHARE * part + (1 - DECOMPOSED_SHARE) * p
        for part, p in zip(parts, yes, strict=True)
    ]
    return tuple(mixed), max(shapes)


def _region(
    plan: _Plan, found: regions.Region, answers: np.ndarray | None, name: str, verify: float
) -> RegionJudgement:
    try:
        if answers is None:
            raise _Unusable(plan.status if plan.status != OK else UNDECOMPOSED)
        p, relevance = _region_probabilities(plan, answers)
    except _Unusable as why:
        return RegionJudgement(found.box, float("nan"), str(why), "", (), name, found.mask)
    best = int(np.argmax(p))
    status, score = (OK, 2 * p[best] - 1) if relevance >= verify else (IRRELEVANT, float("nan"))
    label = plan.scene.objects[best].name
    return RegionJudgement(found.box, score, status, label, p, name, found.mask)


# ------------------------------------------------------------------------------ the image's score


def _answered(plan: _Plan, answers: np.ndarray) -> dict[str, float]:
    """{"global", "questions" (of objects), "relation", "sizes" (1 without any)} from answers about
    the image."""
    answers = _check_answers(answers, len(plan.image))
    p = [_probability(row, q, plan.ids) for row, q in zip(answers, plan.image, strict=True)]
    asked = list(zip(plan.image, p, strict=True))

    def mean(values: list[float]) -> float:
        return float(np.mean(values)) if values else 1.0

    relation = mean([v for q, v in asked if q.kind.startswith("relation")])
    total = mean([v for q, v in asked if q.kind == "count_all"])
    sizes = float(np.prod([v for q, v in asked if q.kind == "size"]))
    each = [mean([v for q, v in asked if q.about == i]) for i in range(len(plan.scene.objects))]
    parts = {
        "global": mean([v for q, v in asked if q.kind == "caption_right"]),
        "relation": relation,
        "sizes": sizes,
    }
    if plan.scene.objects:
        parts["questions"] = float(np.prod(each)) * total * relation * sizes
    return parts


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
            if region.status not in (OK, *NOT_SCORED):
                raise _Unusable(region.status)
        parts = _answered(plan, answers)
    except _Unusable as why:
        return Judgement(found, float("nan"), str(why), {})
    relation, sizes = parts.pop("relation"), parts.pop("sizes")
    scored = [region for region in found if region.status == OK]
    if separates and scored:
        p = np.array([region.p for region in scored])
        boxes = [region.bbox for region in scored]
        parts["assembled"] = sizes * assemble(plan.scene, boxes, p, relation)
    return Judgement(found, 2 * float(np.mean(list(parts.values()))) - 1, OK, parts)


# ------------------------------------------------------------------------------------ all at once


def _ask_where(
    ask: Ask,
    wanted: Sequence[bool],
    images: Sequence[np.ndarray],
    texts: Sequence[Sequence[str]],
) -> list[np.ndarray | None]:
    """One call of `ask` for the wanted images; None for the others."""
    chosen = [i for i, want in enumerate(wanted) if want]
    answers: list[np.ndarray | None] = [None] * len(images)
    if chosen:
        given = ask([images[i] for i in chosen], [texts[i] for i in chosen])
        if len(given) != len(chosen):
            raise ValueError(f"ask answered {len(given)} of {len(chosen)} images")
        for i, answer in zip(chosen, given, strict=True):
            answers[i] = answer
    return answers


def _shown(image: np.ndarray, box: Box, view: View, margin: int, side: int) -> np.ndarray:
    if view == "crop":
        return regions.crop(image, box, margin, side)
    return regions.outline(image, box) if view == "outline" else image


def judge_regions(
    ask: Ask,
    vocabulary: Vocabulary,
    seen: Sequence[Seen],
    proposer: Proposer,
    *,
    margin: int = 1,
    side: int = 0,
    view: View = "crop",
    verify: float = 0.0,
    scenes: Mapping[str, Decomposition] | None = None,
) -> list[tuple[RegionJudgement, ...]]:
    """The scored regions of each image, by one `ask` for all of them.

    seen: images uint8 [H,W,3] with prompts · margin: pixels around a box in its crop · side: pixels
    of a crop's longer side, 0: as large as its image · verify:
    least probability, in [0, 1], that a region shows some kind of thing which the prompt names,
    below which it is "irrelevant" (the paper's verification of boxes, which the release lacks) ·
    scenes: prompts taken apart by the model; others by the grammar. Raises ValueError for things
    that are no images, answers of a wrong shape.
    """
    plans = _plans([one.prompt for one in seen], vocabulary, scenes)
    proposed = regions.propose(proposer, seen)
    owners = [(n, region) for n, found in enumerate(proposed) for region in found]
    wanted = [plans[n].status == OK and bool(plans[n].crop) for n, _ in owners]
    shown, texts = [], []
    for (n, region), want in zip(owners, wanted, strict=True):
        shown.append(
            _shown(seen[n].image, region.box, view, margin, side) if want else seen[n].image
        )
        texts.append(plans[n].texts(plans[n].crop, NAMES[view].format(*region.box)))
    answers = _ask_where(ask, wanted, shown, texts)
    found: list[list[RegionJudgement]] = [[] for _ in seen]
    for (n, region), answer in zip(owners, answers, strict=True):
        found[n].append(_region(plans[n], region, answer, proposer.name, verify))
    return [tuple(regions_) for regions_ in found]


def judge_images(
    ask: Ask,
    vocabulary: Vocabulary,
    seen: Sequence[Seen],
    proposer: Proposer,
    *,
    margin: int = 1,
    side: int = 0,
    view: View = "crop",
    verify: float = 0.0,
    scenes: Mapping[str, Decomposition] | None = None,
) -> list[Judgement]:
    """Regions and image score of each image, by one `ask` for all regions and one for all images.

    Arguments and errors as in `judge_regions`.
    """
    how = dict(margin=margin, side=side, view=view, verify=verify, scenes=scenes)
    found = judge_regions(ask, vocabulary, seen, proposer, **how)
    plans = _plans([one.prompt for one in seen], vocabulary, scenes)
    wanted = [
        plan.status == OK
        and bool(parts)
        and all(region.status in (OK, *NOT_SCORED) for region in parts)
        for plan, parts in zip(plans, found, strict=True)
    ]
    texts = [plan.texts(plan.image) for plan in plans]
    answers = _ask_where(ask, wanted, [one.image for one in seen], texts)
    return [
        _image(plan, parts, answer, proposer.separates)
        for plan, parts, answer in zip(plans, found, answers, strict=True)
    ]
