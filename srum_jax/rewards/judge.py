"""What a judge is: images with prompts in, scores with a status each out.

Owns `Judge`, its settings and its judgements, which all judges share: the one that reads soft
answers (`logits.py`), the one that writes (`written.py`), several together (`ensemble.py`). None
sees the truth. A failure is a status beside a NaN, never a number.

The score of an image means the same whoever judges. It has parts, each a probability in [0, 1]
that speaks for the picture: "global" (the whole shows the prompt) of every judge, beside it
"questions" and "assembled" of soft answers, "layout" of written ones. A part weighs the share of
its answers that could be read, w; the score is 2 Σ w·p / Σ w − 1, and the mean of the weights is
the image's coverage. An answer that fails costs that answer: below `JudgeSettings.min_coverage`
alone is there no score.
"""

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, Protocol

import numpy as np

from srum_jax.config import ScoreConfig
from srum_jax.core.param_tree import Params
from srum_jax.rewards.boxes.regions import Box, Proposals

OK = "ok"
UNDECOMPOSED = "undecomposed"  # of a region: the prompt could not be decomposed into objects
IRRELEVANT = "irrelevant"  # of a region: it shows no kind of thing that the prompt names
UNKNOWN_WORDS = "unknown words"  # the tokenizer lacks a word of a question or an answer
NO_REGIONS = "no regions"  # the proposer found nothing to ask about
NOT_FINITE = "not finite"  # the model gave NaN, or numbers that are no probabilities
UNPARSED = "unparsed"  # a closed question was answered with other words
LOW_COVERAGE = "low coverage"  # of an image: too few of the answers about it could be read
NOT_ASKED = "not asked"  # of an image: only its regions were judged
STATUSES = (
    *(OK, UNDECOMPOSED, IRRELEVANT, UNKNOWN_WORDS, NO_REGIONS, NOT_FINITE, UNPARSED),
    LOW_COVERAGE,
)

# How a region is pointed out: its crop; the image with its outline; coordinates in words.
View = Literal["crop", "outline", "coordinates"]
VIEWS = typing.get_args(View)


@dataclasses.dataclass(frozen=True)
class SoftAnswer:
    """How the model answers one question: p in [0, 1] of what speaks for the prompt, NaN unless
    status is "ok". kind and about are the question's; of an open one, p is that of the likeliest
    word among those the prompt's objects have. A written score s is p = (s + 1)/2. judge: who
    answered, where several do."""

    kind: str
    about: int
    p: float
    status: str
    judge: str = ""


@dataclasses.dataclass(frozen=True)
class RegionJudgement:
    """One region: score in [-1, 1] (NaN unless status is "ok"), the best matching object.

    p: for each of the prompt's objects, the probability that the region shows it. mask: bool
    [H, W] where the proposer knows it. answers: to the questions about it, where some were asked.
    """

    bbox: Box
    score: float
    status: str
    label: str
    p: tuple[float, ...]
    proposer: str
    mask: np.ndarray | None = dataclasses.field(default=None, compare=False)
    answers: tuple[SoftAnswer, ...] = ()


@dataclasses.dataclass(frozen=True)
class Judgement:
    """One image: its regions, image_score in [-1, 1] (NaN unless image_status is "ok").

    parts: probabilities in [0, 1] by name, see the module; empty without a score. answers: to the
    questions about the whole, as of a region. coverage: share of the answers behind the score that
    could be read, in [0, 1]. rank: the place among its prompt's candidates that several judges
    together give it, in (0, 1), 1 the best; NaN where one alone judges.
    """

    regions: tuple[RegionJudgement, ...]
    image_score: float
    image_status: str
    parts: dict[str, float]
    answers: tuple[SoftAnswer, ...] = ()
    coverage: float = 1.0
    rank: float = dataclasses.field(default=float("nan"), compare=False)


class Part(NamedTuple):
    """One part of an image's score: p in [0, 1], NaN where its answers do not tell, and the share
    of them that could be read, in [0, 1]."""

    p: float
    coverage: float


def of_parts(
    parts: Mapping[str, Part], answers: Iterable[SoftAnswer], min_coverage: float
) -> Judgement:
    """The judgement of a whole image, without regions, of at least one part: see the module.

    answers: all that the parts were made of. Below min_coverage the status is what befell all
    answers, or LOW_COVERAGE.
    """
    answers = tuple(answers)
    told = {name: part for name, part in parts.items() if not np.isnan(part.p)}
    weights = {name: part.coverage for name, part in told.items() if part.coverage > 0}
    total = sum(weights.values())
    coverage = total / len(parts)
    if not weights or coverage < min_coverage:
        statuses = {one.status for one in answers}
        alone = len(statuses) == 1 and OK not in statuses
        status = statuses.pop() if alone else LOW_COVERAGE
        return Judgement((), float("nan"), status, {}, answers, coverage)
    p = sum(weight * parts[name].p for name, weight in weights.items()) / total
    found = {name: parts[name].p for name in weights}
    return Judgement((), 2 * float(p) - 1, OK, found, answers, coverage)


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """How images are judged, whoever judges; each read-out reads what concerns it.

    view: how a region is pointed out · margin: pixels around a box in its crop · crop: pixels of a
    crop's longer side as soft answers are read, 0: as large as its image · verify: least
    probability, in [0, 1], that a region shows some kind of thing which the prompt names, below
    which it is "irrelevant" (the paper's verification of boxes, which the release lacks; soft
    answers alone) · min_coverage: an image with a smaller share of its answers read, in [0, 1], has
    no score · attempts: written answers asked for at most, the first one greedily, the others
    sampled at `temperature` with seeds that are a function of `seed`, the image's id, what is asked
    and the number of the attempt. Raises ValueError for values that mean nothing.
    """

    view: View = "crop"
    margin: int = 1
    crop: int = 0
    verify: float = 0.0
    min_coverage: float = 0.4
    attempts: int = 3
    temperature: float = 0.7
    seed: int = 0

    def __post_init__(self):
        if self.view not in VIEWS:
            raise ValueError(f"view {self.view!r} is none of {', '.join(VIEWS)}")
        if self.attempts < 1 or not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"{self.attempts} attempts at temperature {self.temperature}: give at least 1 and "
                "a positive number; at 0 another attempt would repeat the first"
            )

    @classmethod
    def from_config(cls, c: ScoreConfig, *, seed: int = 0) -> "JudgeSettings":
        """Those of a run's `score` section."""
        return cls(
            view=c.view,
            margin=c.margin,
            crop=c.crop,
            verify=c.verify,
            min_coverage=c.min_coverage,
            attempts=c.written.attempts,
            temperature=c.written.temperature,
            seed=seed,
        )


class Judge(Protocol):
    """Whoever gives images their scores."""

    def judge(
        self, proposed: Proposals, *, whole: bool = True, params: Params | None = None
    ) -> list[Judgement]:
        """One judgement an image, of its proposed regions and of the whole.

        whole: False leaves out the image's own score, whose status then is NOT_ASKED · params: the
        model's, in place of those it was opened with. Raises ValueError for answers that are not
        as agreed.
        """
