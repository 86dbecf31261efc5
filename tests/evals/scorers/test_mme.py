import hypothesis_cases
import pytest
from hypothesis import strategies

from srum_jax.evals.scorers import mme

READINGS = (mme.lmms_eval, mme.bagel)
SCORES = (mme.lmms_eval_scores, mme.bagel_scores, mme.vlmevalkit_scores, mme.strict_scores)


def answers(*replies, category="count"):
    """Two a picture, the right ones yes and no by turns."""
    return [
        mme.Answer(category, f"{i // 2}.png", ("yes", "no")[i % 2], reply)
        for i, reply in enumerate(replies)
    ]


@pytest.mark.parametrize(
    "reply, lmms_eval, bagel",
    [
        *[("y", "yes", "other"), ("N.", "no", "other"), ("True", "other", "yes")],
        *[("不是", "other", "no"), ("是的", "other", "yes"), ("否", "other", "no")],
        *[("Nobody", "no", "no"), ("I know", "other", "other"), ("", "other", "other")],
        *[(". yes", "yes", "other"), ("  \nNo", "no", "no"), ("x" * 100_000, "other", "other")],
    ],
)
def test_the_same_reply_in_two_readings(reply, lmms_eval, bagel):
    assert mme.lmms_eval(reply) == lmms_eval
    assert mme.bagel(reply) == bagel


def test_a_score_is_of_questions_and_of_pictures():
    three_of_four = answers("Yes", "No", "Yes", "Yes")
    for scores in SCORES:
        assert scores(three_of_four) == pytest.approx({"count": 75 + 50})


def test_a_tab_breaks_a_line_of_bagel():
    assert mme.bagel_scores(answers("Yes", "no\ttab", "Yes", "No")) == {"count": 100 + 50}
    assert mme.bagel_scores(answers("\t", "\t")) == {}


def test_the_unread_are_wrong():
    assert mme.strict_scores(answers("", "yes and no")) == {"count": 0}


def test_pictures_have_two_answers():
    for scores in SCORES:
        with pytest.raises(ValueError, match="count/1.png has 1 answers, not 2"):
            scores(answers("Yes", "No", "Yes"))


def test_totals_and_bagels_message():
    scores = {name: 200.0 for name in mme.CATEGORIES}
    totals = mme.total(scores, mme.PERCEPTION), mme.total(scores, mme.COGNITION)
    assert totals == (2000, 800)
    assert "total score: 2000.0 \n\n\t existence score: 200.0\n" in mme.bagel_message(scores)
    del scores["OCR"]
    with pytest.raises(ValueError, match="no score of OCR"):
        mme.bagel_message(scores)


@hypothesis_cases.counts(quick=500, slow=hypothesis_cases.MANY)
def test_scores_are_within_0_and_200(cases):
    def check(replies):
        given = answers(*replies, *replies)
        for reading in READINGS:
            assert {reading(reply) for reply in replies} <= {"yes", "no", "other"}
        for scores in SCORES:
            assert all(0 <= score <= 200 for score in scores(given).values())

    words = strategies.sampled_from(["yes", "No", "y", "\t", "是", "true."]) | strategies.text()
    hypothesis_cases.run(check, cases, replies=strategies.lists(words, max_size=4))
