"""Replies about clips, and the groups of Video-MME."""

import hypothesis_cases
import pytest
from hypothesis import strategies as st

from srum_jax.evals.scorers import video_choice as choice


@pytest.mark.parametrize(
    "reply, answer",
    [
        ("B. he sits", "B"),
        ("b) he sits", "B"),
        ("(C)", "C"),
        ("a red ball", "A"),  # the article
        ("He waves", "he waves"),
        ("1,200-D", "1200d"),  # a number with a comma: marks are deleted, not replaced
        ("x-D", "D"),
        ("", ""),
    ],
)
def test_the_answer_in_a_reply_of_mvbench(reply, answer):
    assert choice.mvbench_answer(reply) == answer
    assert choice.mvbench_right(reply, "B") is (answer == "B")


def test_letters_beyond_e_are_compared_as_texts():
    assert choice.mvbench_right("F", "F") and not choice.mvbench_right("F", "A")


def test_empty_replies_leave_the_released_count_and_blanks_do_not():
    assert choice.mvbench_percent(["A", "", "B"], [True, False, False]) == 50
    assert choice.mvbench_percent(["A", " ", "B"], [True, False, False]) == 100 / 3
    assert choice.mvbench_percent([""], [False]) == 0


@hypothesis_cases.counts(quick=200, slow=hypothesis_cases.MANY)
def test_any_reply_is_judged(cases):
    def check(reply):
        assert choice.mvbench_right(reply, "A") in (True, False)
        assert choice.videomme_letter(reply) in {"", *"ABCD"}

    hypothesis_cases.run(check, cases, reply=st.text(max_size=20))


def test_prompts_are_those_of_the_harness():
    assert choice.mvbench_prompt("Who?", ["he", "she"]) == (
        "Question:Who?\nOption:\n(A) he\n(B) she\nOnly give the best option.\n"
    )
    text = choice.videomme_prompt("Who?", ["A. he", "B. she"])
    assert text.startswith("Select the best answer to the following multiple-choice question")
    assert text.endswith(
        "option.\nWho?\nA. he\nB. she\n\nAnswer with the option's letter from the given choices "
        "directly."
    )


def test_multilingual_is_a_domain_and_a_sub_category_in_one():
    asked = [
        choice.VideoQuestion("short", "Multilingual", "Multilingual", "OCR Problems", True),
        choice.VideoQuestion("long", "Multilingual", "Law", "OCR Problems", False),
        choice.VideoQuestion("long", "Knowledge", "Multilingual", "Object Reasoning", False),
        choice.VideoQuestion("long", "Knowledge", "Law", "Object Reasoning", True),
    ]
    assert choice.videomme_accuracies(asked) == {
        "Overall": 50.0,
        "short": 100.0,
        "long": pytest.approx(100 / 3),
        "Knowledge": 50.0,
        "Multilingual": pytest.approx(100 / 3),
        "Law": 50.0,
        "OCR Problems": 50.0,
        "Object Reasoning": 50.0,
    }
    assert choice.videomme_accuracies([]) == {"Overall": 0.0}
    groups = choice.DURATIONS, choice.DOMAINS, choice.SUB_CATEGORIES, choice.TASKS
    assert [len(one) for one in groups] == [3, 6, 30, 12]
