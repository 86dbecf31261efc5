import hypothesis_cases
import pytest
from hypothesis import strategies

from srum_jax.evals.scorers import vqa

DIALECTS = (vqa.official, vqa.lmms_eval, vqa.vlmevalkit, vqa.eval_ai)
TEXT = strategies.text(alphabet="aAbn1.,'! \n-é0", max_size=12)


@pytest.mark.parametrize("matches, score", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_four_of_ten_people_are_enough(matches, score):
    answers = ["cat"] * matches + [f"other{i}" for i in range(10 - matches)]
    for dialect in DIALECTS:
        assert dialect("cat", answers) == pytest.approx(score)


def test_the_official_program_normalises_nothing_where_all_people_wrote_the_same():
    assert [dialect("Yes", ["yes"] * 10) for dialect in DIALECTS] == [0, 1, 1, 1]
    assert vqa.official(" yes\n", ["yes"] * 10) == 1


def test_records_without_numbers_drop_out_together():
    answers = ["a cat"] * 3 + ["dog"] * 7
    assert vqa.official("cat", answers, range(10)) == pytest.approx(0.9)
    assert vqa.official("cat", answers, ["yes"] * 10) == pytest.approx(0.7)


def test_vlmevalkit_keeps_a_full_stop_behind_a_digit():
    assert [n.normal("$20.") for n in (vqa.OFFICIAL, vqa.LMMS_EVAL, vqa.VLMEVALKIT)] == [
        *("$20", "$20", "$20.")
    ]


def test_many_commas_between_digits_are_one_in_lmms_eval_alone():
    assert vqa.OFFICIAL.normal("1,,2/3") == "1 2 3"
    assert vqa.LMMS_EVAL.normal("1,,2/3") == "123"


def test_at_most_32_full_stops_go():
    assert vqa.OFFICIAL.normal("." * 40) == "." * 8


@pytest.mark.parametrize("text", ["", " ", "\n\t", "?!", "犬", "a" * 100_000, "\x00", "’"])
def test_odd_replies_are_wrong_and_no_error(text):
    answers = ["cat", *["dog"] * 9]
    assert [dialect(text, answers) for dialect in DIALECTS] == [0] * 4


def test_no_answers_are_refused():
    with pytest.raises(ValueError, match="no answers"):
        vqa.official("cat", [])


def test_normalising_knows_numbers_articles_and_apostrophes():
    assert vqa.OFFICIAL.normal("The two dogs, dont!") == "2 dogs don't"
    assert vqa.eval_ai_normal("The Dog's, 1,000?") == "dog 's 1000"


@hypothesis_cases.counts(quick=500, slow=hypothesis_cases.MANY)
def test_scores_are_shares_and_no_order_matters(cases):
    def check(prediction, answers):
        for dialect in DIALECTS:
            score = dialect(prediction, answers)
            assert 0 <= score <= 1
            assert score == pytest.approx(dialect(prediction, answers[::-1]))
        normal = vqa.OFFICIAL.normal(prediction)
        assert normal == normal.lower() and normal == " ".join(normal.split())

    lists = strategies.lists(TEXT, min_size=1, max_size=10)
    hypothesis_cases.run(check, cases, prediction=TEXT, answers=lists)


@hypothesis_cases.counts(quick=500, slow=hypothesis_cases.MANY)
def test_one_who_says_what_all_say_is_right(cases):
    def check(text):
        answers = [text] * 10
        assert [dialect(text, answers) for dialect in DIALECTS] == [1] * 4

    hypothesis_cases.run(check, cases, text=TEXT)


def test_official_accuracy_is_rounded_percent_by_type():
    ours = vqa.official_accuracy([1, 0.3, 0], ["what", "what", "is"], ["other", "number", "yes/no"])
    assert ours.overall == 43.33
    assert ours.by_question_type == {"what": 65.0, "is": 0.0}
    assert ours.by_answer_type == {"other": 100.0, "number": 30.0, "yes/no": 0.0}
