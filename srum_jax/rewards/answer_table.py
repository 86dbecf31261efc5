"""Judgements of many images side by side: ragged regions and questions as padded arrays.

Owns the padding and nothing else. Every score and every answer has a status in the same place of
an array beside it: "ok", why there is none, or PADDING where there is nothing at all.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from srum_jax.rewards.judge import Judgement, SoftAnswer

PADDING = "padding"


@dataclasses.dataclass(frozen=True)
class AnswerTable:
    """Answers: p float32 [..., Q] in [0, 1], NaN unless status is "ok"; status and kind, the
    question's, str [..., Q]."""

    p: np.ndarray
    status: np.ndarray
    kind: np.ndarray


@dataclasses.dataclass(frozen=True)
class JudgementTable:
    """N images, R regions each, Q questions about each region, I about the whole.

    scores float32 [N,R], NaN unless "ok" · status, proposer str [N,R] · region_answers
    AnswerTable [N,R,Q] · image_scores float32 [N] · image_status str [N] · image_answers
    AnswerTable [N,I].
    """

    scores: np.ndarray
    status: np.ndarray
    proposer: np.ndarray
    region_answers: AnswerTable
    image_scores: np.ndarray
    image_status: np.ndarray
    image_answers: AnswerTable


def _answer_table(ragged: Sequence[Sequence[SoftAnswer]], shape: tuple[int, ...]) -> AnswerTable:
    """Rows of answers, as many as `shape` has places, padded to the longest and so arranged."""
    width = max(map(len, ragged), default=0)

    def filled(values, fill, dtype) -> np.ndarray:
        rows = [[*row, *[fill] * (width - len(row))] for row in values]
        return np.array(rows, dtype).reshape(*shape, width)

    return AnswerTable(
        filled([[one.p for one in row] for row in ragged], float("nan"), np.float32),
        filled([[one.status for one in row] for row in ragged], PADDING, np.str_),
        filled([[one.kind for one in row] for row in ragged], PADDING, np.str_),
    )


def judgement_table(judgements: Sequence[Judgement]) -> JudgementTable:
    """Judgements, each padded to as many regions as the fullest has."""
    count, width = len(judgements), max((len(j.regions) for j in judgements), default=0)
    places = [[*j.regions, *[None] * (width - len(j.regions))] for j in judgements]

    def each(name: str, fill, dtype) -> np.ndarray:
        values = [[fill if r is None else getattr(r, name) for r in row] for row in places]
        return np.array(values, dtype).reshape(count, width)

    return JudgementTable(
        scores=each("score", float("nan"), np.float32),
        status=each("status", PADDING, np.str_),
        proposer=each("proposer", "", np.str_),
        region_answers=_answer_table(
            [() if r is None else r.answers for row in places for r in row], (count, width)
        ),
        image_scores=np.array([j.image_score for j in judgements], np.float32),
        image_status=np.array([j.image_status for j in judgements], np.str_),
        image_answers=_answer_table([j.answers for j in judgements], (count,)),
    )
