"""The judge that reads soft answers: the model scores its own images by visual questions (VQA).

Owns how the probabilities of answers become numbers. Everything that the judge knows comes from
pixels (`boxes/regions.py`), the prompt's words (`question_templates.py`) and the model's answers.

A region is scored by its best match among the prompt's objects: half P(colour)·P(shape) from two
open questions about its crop, half P(yes) of "is this a C S ?". An image is scored by the mean of
 · global: P(yes) of "does the image show CAPTION ?";
 · questions: product over objects of mean(exists, count), of the total count, of the relation, of
   the sizes that the prompt states;
 · assembled: the best assignment of crops to demanded objects, times 0.1 per missing and per extra
   one, times the sizes, times the relation, which here is half the model's own answers and half
   the geometry of the assigned boxes. Left out where a proposer's boxes do not separate objects.
A prompt that nobody could decompose is scored by the global part alone, its regions not at all.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from scipy.optimize import linear_sum_assignment

from srum_jax.core.param_tree import Params
from srum_jax.generation.answer_scorer import AnswerScorer
from srum_jax.rewards import question_templates
from srum_jax.rewards.boxes import regions
from srum_jax.rewards.boxes.regions import Box, Proposals
from srum_jax.rewards.judge import (
    IRRELEVANT,
    NO_REGIONS,
    NOT_ASKED,
    NOT_FINITE,
    OK,
    UNDECOMPOSED,
    UNKNOWN_WORDS,
    UNPARSED,
    Judgement,
    JudgeSettings,
    RegionJudgement,
    SoftAnswer,
    View,
)
from srum_jax.rewards.question_templates import Decomposition, Question

NOT_SCORED = (UNDECOMPOSED, IRRELEVANT)  # statuses of regions that say nothing against an image
WRONG_COUNT = 0.1  # factor for each missing and each extra object
DECOMPOSED_SHARE = 0.5  # of P(colour)P(shape) in a region's probability; the rest is "is this …?"
GEOMETRY_SHARE = 0.5  # of the boxes' geometry in the assembled relation
MIN_MASS = 0.5  # least probability on the sensible answers of a closed question
REGION_NAMES: dict[View, str] = {  # in place of "this" in the questions about a region
    "crop": "this",
    "outline": "the outlined object",
    "coordinates": "the object at ({0:.0f}, {1:.0f}, {2:.0f}, {3:.0f})",
}


# P(word) as the first word of an answer, of the words that its question is read for.
Given = Mapping[str, float]


class Vocabulary(Protocol):
    """What the judge needs of a tokenizer; both raise ValueError for a word it does not have.

    answers: the ids of the single tokens that spell a word. word_level: its words are all there
    is, each one token, with a blank before every sign.
    """

    word_level: bool

    def encode(self, text: str) -> list[int]:
        """Ids of a text, no marks added."""

    def answers(self, word: str) -> tuple[int, ...]:
        """Ids of the single tokens that spell a word."""


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is asked for one prompt, or why nothing is."""

    status: str
    scene: Decomposition
    crop: tuple[Question, ...] = ()
    image: tuple[Question, ...] = ()
    ids: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    word_level: bool = True

    def words(self, question: Question) -> list[str]:
        """Those whose probability an answer is read for: of an open question about a crop what it
        asks for of each of the prompt's objects."""
        if question.answer:
            return list(dict.fromkeys((question.answer, *question.choices)))
        part = "color" if question.kind == "crop_color" else "shape"
        return list(dict.fromkeys(getattr(spec, part) for spec in self.scene.objects))

    def tokens(self, question: Question) -> list[int]:
        """The ids that spell those words, in order."""
        return [i for word in self.words(question) for i in self.ids[word]]

    def given(self, question: Question, p: np.ndarray) -> Given:
        """An answer, from the probabilities of its `tokens`; a word's are those that spell it."""
        words = self.words(question)
        ends = np.cumsum([len(self.ids[word]) for word in words])
        if len(p) != ends[-1]:
            raise ValueError(f"{len(p)} probabilities of {ends[-1]} tokens of an answer")
        parts = np.split(np.asarray(p), ends[:-1])
        return {word: float(part.sum()) for word, part in zip(words, parts, strict=True)}

    def texts(self, questions: Sequence[Question], about: str = "this") -> list[str]:
        """The questions as the model reads them; `about` names the region that they call "this"."""
        texts = [question.text for question in questions]
        if about != "this":
            texts = [text.replace("this", about, 1) for text in texts]
        return texts if self.word_level else [question_templates.natural(text) for text in texts]


class _Unusable(Exception):
    """Answers that cannot be read; the argument is the status."""


def _plan(scene: Decomposition, vocabulary: Vocabulary) -> _Plan:
    crop = question_templates.crop_questions(scene) if scene.objects else ()
    image = question_templates.image_questions(scene)
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
        scene = (
            (scenes or {}).get(prompt)
            or question_templates.decompose(prompt)
            or question_templates.whole(prompt)
        )
        known[prompt] = _plan(scene, vocabulary)
    return [known[prompt] for prompt in prompts]


# ---------------------------------------------------------------------------- reading the answers


def _probability(given: Given, question: Question) -> float:
    """P(answer), for a closed question among its choices. Raises _Unusable."""
    p = np.array(list(given.values()))
    if not np.isfinite(p).all() or p.min() < 0 or p.max() > 1 + 1e-3:
        raise _Unusable(NOT_FINITE)
    if not question.answer:
        return min(1.0, float(p.max()))
    if not question.choices:
        return min(given[question.answer], 1.0)
    mass = sum(given[word] for word in question.choices)
    if mass < MIN_MASS:
        raise _Unusable(UNPARSED)
    return given[question.answer] / mass


def _answers(questions: Sequence[Question], rows: Sequence[Given]) -> tuple[SoftAnswer, ...]:
    """What was given as answers to the questions, each with a status of its own."""
    read = []
    for given, question in zip(rows, questions, strict=True):
        try:
            p, status = _probability(given, question), OK
        except _Unusable as why:
            p, status = float("nan"), str(why)
        read.append(SoftAnswer(question.kind, question.about, p, status))
    return tuple(read)


def _usable(answers: Sequence[SoftAnswer]) -> list[float]:
    """Their probabilities. Raises _Unusable where one has none: NOT_FINITE before others."""
    failed = {one.status for one in answers} - {OK}
    if failed:
        raise _Unusable(NOT_FINITE if NOT_FINITE in failed else failed.pop())
    return [one.p for one in answers]


def _region_probabilities(
    plan: _Plan, answers: Sequence[SoftAnswer], rows: Sequence[Given]
) -> tuple[tuple[float, ...], float]:
    """(P(the crop shows object i) for each object, P(it shows some object's kind of thing)), from
    the answers to the crop questions and what was given."""
    given, objects = _usable(answers), plan.scene.objects
    if not plan.scene.open:
        return tuple(given[: len(objects)]), max(given[len(objects) :])
    colors = [min(1.0, rows[0][spec.color]) for spec in objects]
    shapes = [min(1.0, rows[1][spec.shape]) for spec in objects]
    mixed = [
        DECOMPOSED_SHARE * color * shape + (1 - DECOMPOSED_SHARE) * p
        for color, shape, p in zip(colors, shapes, given[2:], strict=True)
    ]
    return tuple(mixed), max(shapes)


def _region(
    plan: _Plan,
    found: regions.ProposedRegion,
    rows: Sequence[Given] | None,
    name: str,
    verify: float,
) -> RegionJudgement:
    answers: tuple[SoftAnswer, ...] = ()
    try:
        if rows is None:
            raise _Unusable(plan.status if plan.status != OK else UNDECOMPOSED)
        answers = _answers(plan.crop, rows)
        p, relevance = _region_probabilities(plan, answers, rows)
    except _Unusable as why:
        none = float("nan")
        return RegionJudgement(found.box, none, str(why), "", (), name, found.mask, answers)
    best = int(np.argmax(p))
    status, score = (OK, 2 * p[best] - 1) if relevance >= verify else (IRRELEVANT, float("nan"))
    label = plan.scene.objects[best].name
    return RegionJudgement(found.box, score, status, label, p, name, found.mask, answers)


# ------------------------------------------------------------------------------ the image's score


def _answered(plan: _Plan, answers: Sequence[SoftAnswer]) -> dict[str, float]:
    """{"global", "questions" (of objects), "relation", "sizes" (1 without any)} from answers about
    the image."""
    asked = list(zip(plan.image, _usable(answers), strict=True))

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
        kind, first, second = question_templates.OPPOSITE[kind], second, first
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
    rows: Sequence[Given] | None,
    separates: bool,
) -> Judgement:
    answers: tuple[SoftAnswer, ...] = ()
    try:
        if plan.status != OK:
            raise _Unusable(plan.status)
        if not found:
            raise _Unusable(NO_REGIONS)
        for region in found:
            if region.status not in (OK, *NOT_SCORED):
                raise _Unusable(region.status)
        answers = _answers(plan.image, rows)
        parts = _answered(plan, answers)
    except _Unusable as why:
        return Judgement(found, float("nan"), str(why), {}, answers)
    relation, sizes = parts.pop("relation"), parts.pop("sizes")
    scored = [region for region in found if region.status == OK]
    if separates and scored:
        p = np.array([region.p for region in scored])
        boxes = [region.bbox for region in scored]
        parts["assembled"] = sizes * assemble(plan.scene, boxes, p, relation)
    return Judgement(found, 2 * float(np.mean(list(parts.values()))) - 1, OK, parts, answers)


# ------------------------------------------------------------------------------------ all at once


@dataclasses.dataclass(frozen=True)
class _Request:
    """Questions about a picture; `about` names the region that they call "this"."""

    plan: _Plan
    picture: np.ndarray
    questions: Sequence[Question]
    about: str = "this"


@dataclasses.dataclass(frozen=True)
class LogitJudge:
    """Soft answers to the questions that the prompt's words make: VQA by the first answer token.

    scorer: the model · vocabulary: its tokenizer · scenes: {prompt: what it demands} of prompts
    that were decomposed before; others are read by the grammar.
    """

    scorer: AnswerScorer
    vocabulary: Vocabulary
    settings: JudgeSettings = JudgeSettings()
    scenes: Mapping[str, Decomposition] | None = None

    def judge(
        self, proposed: Proposals, *, whole: bool = True, params: Params | None = None
    ) -> list[Judgement]:
        """See `Judge`. One call of the scorer for all regions and one for all images; where regions
        are named on the image itself one for both, which reads each picture once."""
        images = proposed.images
        plans = _plans([one.prompt for one in images], self.vocabulary, self.scenes)
        owners = [(n, region) for n, found in enumerate(proposed.regions) for region in found]
        about = [self._about(plans[n], images[n].image, region.box) for n, region in owners]
        wholes = [
            _Request(plan, one.image, plan.image) if whole and plan.status == OK and boxes else None
            for plan, one, boxes in zip(plans, images, proposed.regions, strict=True)
        ]
        if self.settings.view == "coordinates":
            given = self._given(about + wholes, params)
        else:  # an image is much longer than a crop
            given = self._given(about, params) + self._given(wholes, params)
        found: list[list[RegionJudgement]] = [[] for _ in images]
        for (n, region), rows in zip(owners, given, strict=False):
            verify = self.settings.verify
            found[n].append(_region(plans[n], region, rows, proposed.proposer, verify))
        if not whole:
            return [Judgement(tuple(parts), float("nan"), NOT_ASKED, {}) for parts in found]
        return [
            _image(plan, tuple(parts), rows, proposed.separates)
            for plan, parts, rows in zip(plans, found, given[len(owners) :], strict=True)
        ]

    def _about(self, plan: _Plan, image: np.ndarray, box: Box) -> _Request | None:
        """What is asked about a region; None: nothing."""
        if plan.status != OK or not plan.crop:
            return None
        settings, picture = self.settings, image
        if settings.view == "crop":
            picture = regions.crop(image, box, settings.margin, settings.crop)
        elif settings.view == "outline":
            picture = regions.outline(image, box)
        return _Request(plan, picture, plan.crop, REGION_NAMES[settings.view].format(*box))

    def _given(
        self, requests: Sequence[_Request | None], params: Params | None
    ) -> list[list[Given] | None]:
        """What the model says to each request's questions; None where there is no request."""
        asked = [one for one in requests if one]
        if not asked:
            return [None] * len(requests)
        found = self.scorer.probabilities(
            [one.picture for one in asked],
            [one.plan.texts(one.questions, one.about) for one in asked],
            [[one.plan.tokens(question) for question in one.questions] for one in asked],
            params=params,
        )
        if len(found) != len(asked):
            raise ValueError(f"the scorer answered {len(found)} of {len(asked)} images")
        rows = (
            [one.plan.given(question, p) for question, p in zip(one.questions, row, strict=True)]
            for one, row in zip(asked, found, strict=True)
        )
        return [next(rows) if one else None for one in requests]
