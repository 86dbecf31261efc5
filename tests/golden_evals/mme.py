"""MME in three dialects: each reply read, and the scores of the categories."""

import pytest

from srum_jax.evals.scorers import mme, yes_no

EXACT = dict(abs=1e-9, rel=0)


def check(case: dict) -> None:
    """Holds `scorers/mme.py` against every array of the file."""
    for one in case["parse_cases"]:
        reply = one["reply"]
        assert mme.lmms_eval(reply) == one["lmms_eval"], one
        assert mme.bagel_written(reply) == one["bagel_post"], one
        assert mme.bagel(reply) == one["bagel"], one
        assert yes_no.vlmevalkit(reply) == one["vlmevalkit"], one
    answers = [
        mme.Answer(row["category"], row["question_id"], row["answer"].lower(), row["reply"])
        for row in case["rows"]
    ]
    _check_aggregate(answers, case["aggregate"])


def _check_aggregate(answers: list, want: dict) -> None:
    scores = mme.lmms_eval_scores(answers)
    totals = mme.total(scores, mme.PERCEPTION), mme.total(scores, mme.COGNITION)
    assert totals == pytest.approx(
        (want["lmms_eval"]["mme_perception_score"], want["lmms_eval"]["mme_cognition_score"]),
        **EXACT,
    )
    assert mme.bagel_message(mme.bagel_scores(answers)) == want["bagel_message"]
    scores = mme.vlmevalkit_scores(answers)
    sums = {
        "perception": mme.total(scores, mme.PERCEPTION),
        "reasoning": mme.total(scores, mme.COGNITION),
    }
    assert {**sums, **scores} == pytest.approx(want["vlmevalkit"], **EXACT)
