"""Judgements of many images side by side: ragged regions and questions as padded arrays.

Owns the padding and nothing else. Every score and every answer has a status in the same place of
an array beside it: "ok", why there is none, or PADDING where there is nothing at all.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from srum_jax.rewards.judge import Answer, Judgement

PADDING = "padding"


@dataclasses.dataclass(frozen=True)
class Asked:
    """Answers: p float32 [..., Q] in [0, 1], NaN unless status is "ok"; status and kind, the
    question's, str [..., Q]."""

    p: np.ndarray
    status: np.ndarray
    kind: np.ndarray


@dataclasses.dataclass(frozen=True)
class Table:
    """N images, R regions each, Q questions about each region, I about the whole.

    boxes float32 [N,R,4] pixels · scores float32 [N,R], NaN unless "ok" · status, proposer str
    [N,R] · regions: Asked [N,R,Q] · image_scores float32 [N] · image_status str [N] · images: Asked
    [N,I].
    """

    boxes: np.ndarray
    scores: np.ndarray
    status: np.ndarray
    proposer: np.ndarray
    regions: Asked
    image_scores: np.ndarray
    image_status: np.ndarray
    images: Asked


def _asked(ragged: Sequence[Sequence[Answer]], shape: tuple[int, ...]) -> Asked:
    """Rows of answers, as many as `shape` has places, padded to the longest and so arranged."""
    width = max(map(len, ragged), default=0)

    def filled(values, fill, dtype) -> np.ndarray:
        rows = [[*row, *[fill] * (width - len(row))] for row in values]
        return np.array(rows, dtype).reshape(*shape, width)

    return Asked(
        filled([[one.p for one in row] for row in ragged], float("nan"), np.float32),
        filled([[one.status for one in row] for row in ragged], PADDING, np.str_),
        filled([[one.kind for one in row] for row in ragged], PADDING, np.str_),
    )


def table(judgements: Sequence[Judgement], regions: int | None = None) -> Table:
    """Judgements padded to `regions` each, by default as many as the fullest has.

    Raises ValueError for one that has more.
    """
    count, fullest = len(judgements), max((len(j.regions) for j in judgements), default=0)
    width = fullest if regions is None else regions
    if fullest > width:
        raise ValueError(f"an image with {fullest} regions does not fit {width}")
    places = [[*j.regions, *[None] * (width - len(j.regions))] for j in judgements]

    def each(name: str, fill, dtype, *rest: int) -> np.ndarray:
        values = [[fill if r is None else getattr(r, name) for r in row] for row in places]
        return np.array(values, dtype).reshape(count, width, *rest)

    return Table(
        boxes=each("bbox", (0.0,) * 4, np.float32, 4),
        scores=each("score", float("nan"), np.float32),
        status=each("status", PADDING, np.str_),
        proposer=each("proposer", "", np.str_),
        regions=_asked(
            [() if r is None else r.answers for row in places for r in row], (count, width)
        ),
        image_scores=np.array([j.image_score for j in judgements], np.float32),
        image_status=np.array([j.image_status for j in judgements], np.str_),
        images=_asked([j.answers for j in judgements], (count,)),
    )
