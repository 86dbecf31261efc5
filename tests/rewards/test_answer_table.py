"""Ragged judgements as padded arrays: every place says what it holds."""

import numpy as np

from srum_jax.rewards.answer_table import PADDING, judgement_table
from srum_jax.rewards.judge import OK, UNPARSED, Judgement, RegionJudgement, SoftAnswer

NAN = float("nan")
BOXES = [(0.0, 0.0, 8.0, 8.0), (4.0, 4.0, 9.0, 9.0)]


def soft(*values):
    """Answers of these probabilities; None is one that could not be read."""
    return tuple(
        SoftAnswer("crop_is", i, NAN if p is None else p, UNPARSED if p is None else OK)
        for i, p in enumerate(values)
    )


def region(box, score, *answers):
    status = OK if np.isfinite(score) else UNPARSED
    return RegionJudgement(box, score, status, "", (), "grid", answers=soft(*answers))


def judgement(score, *regions, answers=()):
    status = OK if np.isfinite(score) else UNPARSED
    return Judgement(tuple(regions), score, status, {}, soft(*answers))


RAGGED = [
    judgement(0.5, region(BOXES[0], 0.1, 0.2, 0.9), region(BOXES[1], NAN, None), answers=(0.5,)),
    judgement(NAN),
    judgement(-0.5, region(BOXES[1], 0.2, 0.3, None, 0.7)),
]


def test_regions_and_questions_are_padded_with_a_status_each():
    got = judgement_table(RAGGED)
    assert got.scores.shape == (3, 2) and got.scores.dtype == np.float32
    assert got.status.tolist() == [[OK, UNPARSED], [PADDING] * 2, [OK, PADDING]]
    assert got.proposer[2].tolist() == ["grid", ""]
    assert (np.isfinite(got.scores) == (got.status == OK)).all()
    asked = got.region_answers
    assert asked.p.shape == asked.status.shape == asked.kind.shape == (3, 2, 3)
    assert asked.p.dtype == np.float32 and (np.isfinite(asked.p) == (asked.status == OK)).all()
    assert asked.status[0].tolist() == [[OK, OK, PADDING], [UNPARSED, PADDING, PADDING]]
    np.testing.assert_array_equal(asked.p[2, 0], np.array([0.3, NAN, 0.7], np.float32))
    assert asked.kind[2, 0, 2] == "crop_is" and asked.kind[1, 0, 0] == PADDING


def test_wholes_stand_beside_their_regions():
    got = judgement_table(RAGGED)
    assert got.image_answers.p.shape == (3, 1)
    assert got.image_status.tolist() == [OK, UNPARSED, OK] and np.isnan(got.image_scores[1])
    assert got.image_answers.status.tolist() == [[OK], [PADDING], [PADDING]]


def test_nothing_is_a_table_too():
    got = judgement_table([])
    assert got.region_answers.p.shape == (0, 0, 0) and got.scores.shape == (0, 0)
