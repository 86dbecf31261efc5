"""Ragged judgements as padded arrays: every place says what it holds."""

import numpy as np
import pytest

from srum_jax.rewards.answer_table import PADDING, table
from srum_jax.rewards.judge import OK, UNPARSED, Answer, Judgement, RegionJudgement

NAN = float("nan")
BOXES = [(0.0, 0.0, 8.0, 8.0), (4.0, 4.0, 9.0, 9.0)]


def told(*values):
    """Answers of these probabilities; None is one that could not be read."""
    return tuple(
        Answer("crop_is", i, NAN if p is None else p, UNPARSED if p is None else OK)
        for i, p in enumerate(values)
    )


def region(box, score, *answers):
    status = OK if np.isfinite(score) else UNPARSED
    return RegionJudgement(box, score, status, "", (), "grid", answers=told(*answers))


def judgement(score, *regions, answers=()):
    status = OK if np.isfinite(score) else UNPARSED
    return Judgement(tuple(regions), score, status, {}, told(*answers))


RAGGED = [
    judgement(0.5, region(BOXES[0], 0.1, 0.2, 0.9), region(BOXES[1], NAN, None), answers=(0.5,)),
    judgement(NAN),
    judgement(-0.5, region(BOXES[1], 0.2, 0.3, None, 0.7)),
]


def test_regions_and_questions_are_padded_with_a_status_each():
    got = table(RAGGED, regions=3)
    assert got.boxes.shape == (3, 3, 4) and got.boxes.dtype == got.scores.dtype == np.float32
    assert got.status.tolist() == [[OK, UNPARSED, PADDING], [PADDING] * 3, [OK, PADDING, PADDING]]
    assert got.proposer[2].tolist() == ["grid", "", ""]
    assert (np.isfinite(got.scores) == (got.status == OK)).all()
    assert tuple(got.boxes[0, 1]) == BOXES[1] and not got.boxes[1].any()
    asked = got.regions
    assert asked.p.shape == asked.status.shape == asked.kind.shape == (3, 3, 3)
    assert asked.p.dtype == np.float32 and (np.isfinite(asked.p) == (asked.status == OK)).all()
    assert asked.status[0].tolist() == [
        [OK, OK, PADDING],
        [UNPARSED, PADDING, PADDING],
        [PADDING] * 3,
    ]
    np.testing.assert_array_equal(asked.p[2, 0], np.array([0.3, NAN, 0.7], np.float32))
    assert asked.kind[2, 0, 2] == "crop_is" and asked.kind[1, 0, 0] == PADDING


def test_wholes_stand_beside_their_regions():
    got = table(RAGGED)
    assert got.scores.shape == (3, 2) and got.images.p.shape == (3, 1)
    assert got.image_status.tolist() == [OK, UNPARSED, OK] and np.isnan(got.image_scores[1])
    assert got.images.status.tolist() == [[OK], [PADDING], [PADDING]]


def test_a_fixed_width_is_kept_or_refused():
    assert table(RAGGED, regions=5).regions.p.shape == (3, 5, 3)
    assert table([]).regions.p.shape == (0, 0, 0) and table([]).scores.shape == (0, 0)
    with pytest.raises(ValueError, match="2 regions does not fit 1"):
        table(RAGGED, regions=1)
