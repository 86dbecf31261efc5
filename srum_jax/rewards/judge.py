"""What a judge is: images with prompts in, scores with a status each out.

Owns `Judge`, its settings and its judgements, which all judges share: the one that reads soft
answers (`logits.py`), the one that writes (`written.py`), several together (`ensemble.py`). None
sees the truth. A failure is a status beside a NaN, never a number.
"""

import dataclasses
import typing
from typing import Literal, Protocol

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
NOT_ASKED = "not asked"  # of an image: only its regions were judged
STATUSES = (OK, UNDECOMPOSED, IRRELEVANT, UNKNOWN_WORDS, NO_REGIONS, NOT_FINITE, UNPARSED)

# How a region is pointed out: its crop; the image with its outline; coordinates in words.
View = Literal["crop", "outline", "coordinates"]
VIEWS = typing.get_args(View)


@dataclasses.dataclass(frozen=True)
class SoftAnswer:
    """How the model answers one question: p in [0, 1] of what speaks for the prompt, NaN unless
    status is "ok". kind and about are the question's; of an open one, p is that of the likeliest
    word among those the prompt's objects have."""

    kind: str
    about: int
    p: float
    status: str


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

    parts: probabilities in [0, 1] under "global", "questions" and, where boxes separate objects,
    "assembled"; empty without a score. answers: to the questions about the whole, as of a region.
    """

    regions: tuple[RegionJudgement, ...]
    image_score: float
    image_status: str
    parts: dict[str, float]
    answers: tuple[SoftAnswer, ...] = ()


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """How images are judged, whoever judges; each read-out reads what concerns it.

    view: how a region is pointed out · margin: pixels around a box in its crop · crop: pixels of a
    crop's longer side as soft answers are read, 0: as large as its image · verify: least
    probability, in [0, 1], that a region shows some kind of thing which the prompt names, below
    which it is "irrelevant" (the paper's verification of boxes, which the release lacks; soft
    answers alone) · attempts: written answers asked for at most, the first one greedily, the others
    sampled at `temperature` with seeds that are a function of `seed`, the image's id, what is asked
    and the number of the attempt. Raises ValueError for values that mean nothing.
    """

    view: View = "crop"
    margin: int = 1
    crop: int = 0
    verify: float = 0.0
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
