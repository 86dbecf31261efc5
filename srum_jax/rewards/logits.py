"""The judge that reads soft answers: the model scores its own images by visual questions (VQA).

Owns how the probabilities of answers become numbers. Everything that the judge knows comes from
pixels (`boxes/regions.py`), the prompt's words (`question_templates.py`) and the model's answers.

A region is scored by its best match among the prompt's objects: half P(colour)·P(shape) from two
open questions about its crop, half P(yes) of "is this a C S ?". The parts of an image's score
(`judge.py`) are
 · global: P(yes) of "does the image show CAPTION ?";
 · questions: product over objects of mean(exists, count), of the total count, of the relation, of
   the sizes that the prompt states;
 · assembled: the best assignment of crops to demanded objects, times 0.1 per missing and per extra
   one, times the sizes, times the relation, which here is half the model's own answers and half
   the geometry of the assigned boxes. Left out where a proposer's boxes do not separate objects.
A prompt that nobody could decompose is scored by the global part alone, its regions not at all.
An answer of other words than its question asks for is none, and what is made of several is made of
those that are there.
"""

import contextlib
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
    Part,
    RegionJudgement,
    SoftAnswer,
    View,
    of_parts,
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
    vocabulary: Vocabulary
    crop: tuple[Question, ...] = ()
    image: tuple[Question, ...] = ()
    ids: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def words(self, question: Question) -> list[str]:
        """Those whose probability an answer is read for: of an open question about a crop what it
        asks for of each of the prompt's objects."""
        if question.answer:
            every = dict.fromkeys((question.answer, *question.choices))
            return [word for word in every if word in self.ids]
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
        return [
            question_templates.worded(question, text, self.vocabulary)
            for text, question in zip(texts, questions, strict=True)
        ]


class _Unusable(Exception):
    """Answers that cannot be read; the argument is the status."""


def _plan(scene: Decomposition, vocabulary: Vocabulary) -> _Plan:
    crop = question_templates.crop_questions(scene) if scene.objects else ()
    image = question_templates.image_questions(scene)
    words = {q.answer for q in (*crop, *image) if q.answer}
    if scene.open:
        words |= {word for spec in scene.objects for word in (spec.color, spec.shape)}
    others = {word for q in (*crop, *image) for word in q.choices} - words
    try:
        for question in (*crop, *image):
            vocabulary.encode(question.text)
        ids = {word: vocabulary.answers(word) for word in words}
    except ValueError:
        return _Plan(UNKNOWN_WORDS, scene, vocabulary)
    for word in others:  # that the model cannot say, it does not
        with contextlib.suppress(ValueError, KeyError):
            ids[word] = vocabulary.answers(word)
    return _Plan(OK, scene, vocabulary, crop, image, ids)


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
    mass = sum(given.values())
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


def _check_finite(answers: Sequence[SoftAnswer]) -> None:
    """Raises _Unusable where a model gave what is no probability: nothing it says counts then."""
    if any(one.status == NOT_FINITE for one in answers):
        raise _Unusable(NOT_FINITE)


def _region_probabilities(
    plan: _Plan, answers: Sequence[SoftAnswer], rows: Sequence[Given]
) -> tuple[tuple[float, ...], float]:
    """(P(the crop shows object i) for each object, P(it shows some object's kind of thing)), from
    the answers to the crop questions and what was given; NaN where no answer tells."""
    given, objects = [one.p for one in answers], plan.scene.objects
    if not plan.scene.open:
        kinds = given[len(objects) :]
        return tuple(given[: len(objects)]), np.nan if np.isnan(kinds).any() else max(kinds)
    (color, shape), closed = answers[:2], given[2:]
    read = [
        min(1.0, rows[0][spec.color]) * min(1.0, rows[1][spec.shape])
        if color.status == shape.status == OK
        else np.nan
        for spec in objects
    ]
    mixed = [
        _either(DECOMPOSED_SHARE * a + (1 - DECOMPOSED_SHARE) * b, a, b)
        for a, b in zip(read, closed, strict=True)
    ]
    shapes = [min(1.0, rows[1][spec.shape]) for spec in objects]
    return tuple(mixed), max(shapes) if shape.status == OK else np.nan


def _either(*values: float) -> float:
    """The first that is a number; NaN where none is."""
    return next((value for value in values if not np.isnan(value)), np.nan)


def _best(p: Sequence[float], failed: str) -> int:
    """Which object a region shows. An object that no answer tells of may only raise the best
    match, so it is in doubt, and _Unusable(failed) raised, where the others match badly."""
    known = np.nan_to_num(p, nan=-1.0)
    if known.max() < (0.5 if np.isnan(p).any() else 0.0):
        raise _Unusable(failed)
    return int(np.argmax(known))


def _region(
    plan: _Plan,
    found: regions.ProposedRegion,
    rows: Sequence[Given] | None,
    name: str,
    verify: float,
) -> RegionJudgement:
    answers: tuple[SoftAnswer, ...] = ()
    p: tuple[float, ...] = ()
    try:
        if rows is None:
            raise _Unusable(plan.status if plan.status != OK else UNDECOMPOSED)
        answers = _answers(plan.crop, rows)
        _check_finite(answers)
        p, relevance = _region_probabilities(plan, answers, rows)
        failed = next((one.status for one in answers if one.status != OK), OK)
        if relevance < verify:  # of NaN nobody knows
            raise _Unusable(IRRELEVANT)
        best = _best(p, failed)
    except _Unusable as why:
        none = float("nan")
        return RegionJudgement(found.box, none, str(why), "", p, name, found.mask, answers)
    score = 2 * p[best] - 1
    label = plan.scene.objects[best].name
    return RegionJudgement(found.box, score, OK, label, p, name, found.mask, answers)


# ------------------------------------------------------------------------------ the image's score


def _mean(values: Sequence[float]) -> float:
    """Of those that are numbers; NaN where none is."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


def _product(factors: Sequence[float]) -> float:
    """Of factors in [0, 1]; a NaN counts as the geometric mean of the others, so that fewer
    answers are neither better nor worse. NaN where none is a number, 1 of no factors."""
    known = [factor for factor in factors if not np.isnan(factor)]
    if not known:
        return np.nan if len(factors) else 1.0
    return float(np.prod(known)) ** (len(factors) / len(known))


@dataclasses.dataclass(frozen=True)
class _Answered:
    """What the answers about a whole image come to: its parts "global" and "questions", and P(the
    relation) and P(the sizes), NaN where nobody knows, 1 where the prompt states none."""

    parts: dict[str, Part]
    relation: float
    sizes: float


def _answered(plan: _Plan, answers: Sequence[SoftAnswer]) -> _Answered:
    asked = list(zip(plan.image, [one.p for one in answers], strict=True))
    relations = [v for q, v in asked if q.kind.startswith("relation")]
    totals = [v for q, v in asked if q.kind == "count_all"]
    sizes = [v for q, v in asked if q.kind == "size"]
    whole = [v for q, v in asked if q.kind == "caption_right"]
    each = [_mean([v for q, v in asked if q.about == i]) for i in range(len(plan.scene.objects))]
    parts = {"global": Part(_mean(whole), _share(whole))}
    if plan.scene.objects:
        of_relation = [_mean(relations)] if relations else []
        factors = [*each, *totals, *of_relation, *sizes]
        others = [v for q, v in asked if q.kind != "caption_right"]
        parts["questions"] = Part(_product(factors), _share(others))
    return _Answered(parts, _mean(relations) if relations else 1.0, _product(sizes))


def _share(values: Sequence[float] | np.ndarray) -> float:
    """Share of numbers among them."""
    return float(np.mean(~np.isnan(values)))


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

    p [R, O]: P(region shows object), NaN where nobody knows: even odds where regions are assigned,
    and then as in `_product`; relation: the model's own P(relation holds), of NaN the geometry
    alone counts. A region that shows nothing demanded counts as one missing and one extra.
    """
    slots = np.repeat(np.arange(len(scene.objects)), [spec.count for spec in scene.objects])
    fit = np.maximum(
        np.asarray(p, np.float64).reshape(-1, len(scene.objects))[:, slots], WRONG_COUNT**2
    )
    rows, cols = linear_sum_assignment(-np.log(np.nan_to_num(fit, nan=0.5)))
    value = _product(fit[rows, cols]) * WRONG_COUNT ** abs(len(fit) - len(slots))
    if scene.relation is not None:
        place = {int(slots[col]): boxes[row] for row, col in zip(rows, cols, strict=True)}
        pair = [place.get(i) for i in (scene.relation.subject, scene.relation.other)]
        fits = float(None not in pair and holds(scene.relation.kind, *pair))
        value *= _either(GEOMETRY_SHARE * fits + (1 - GEOMETRY_SHARE) * relation, fits)
    return float(value)


def _image(
    plan: _Plan,
    found: tuple[RegionJudgement, ...],
    rows: Sequence[Given] | None,
    separates: bool,
    min_coverage: float,
) -> Judgement:
    answers: tuple[SoftAnswer, ...] = ()
    try:
        if plan.status != OK:
            raise _Unusable(plan.status)
        if not found:
            raise _Unusable(NO_REGIONS)
        for region in found:
            _check_finite(region.answers)
        answers = _answers(plan.image, rows)
        _check_finite(answers)
    except _Unusable as why:
        return Judgement(found, float("nan"), str(why), {}, answers, 0.0)
    said = _answered(plan, answers)
    parts = dict(said.parts)
    shown = [region for region in found if region.status not in NOT_SCORED]
    if separates and shown:
        p = np.array([region.p for region in shown])
        whole = assemble(plan.scene, [region.bbox for region in shown], p, said.relation)
        parts["assembled"] = Part(_either(said.sizes, 1.0) * whole, _share(p))
    return dataclasses.replace(of_parts(parts, answers, min_coverage), regions=found)


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
            _image(plan, tuple(parts), rows, proposed.separates, self.settings.min_coverage)
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
