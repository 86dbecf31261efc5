"""Letters in odd replies, rule by rule, and what holds of every reply."""

import string

import hypothesis_cases
import pytest
from hypothesis import strategies as st

from srum_jax.evals.scorers import letters

MOLECULES = letters.lettered(["DNA", "RNA", "ATP", "None of the above"])
BRIDGES = letters.lettered(["a granite arch", "a steel truss", "a rope bridge", "a stone dam"])

pieces = st.sampled_from(
    [*"ABCDEZab", "(A)", "B.", "C:", "D)", ":E", "**", "the answer is", "my choice is", "答案是"]
    + ["DNA", "a rope bridge", "\n", " ", ".", "?", "Cannot determine the answer"]
)
replies = st.lists(st.one_of(pieces, st.text(max_size=3)), max_size=8).map(" ".join)


def test_the_three_rules_differ_where_they_are_known_to():
    for reply, vlmevalkit, lmms, robust, handed_in in [
        ("", "", "", "", "C"),
        ("B!", "B", "", "B", "B"),
        ("C,A", "", "", "C", "C"),
        ("A bridge such as RNA would be the right choice here", "B", "B", "A", "A"),
        ("In Section B. the text says (A)", "", "B", "A", "In Section B. the text says (A)"),
        ("So the answer is B\nExplanation: A is wrong", "B", "", "A", None),
        ("Sorry, I can't help with images of people yet.", "Z", "", "", None),
        ("DNA", "A", "A", "A", "D"),
    ]:
        assert letters.vlmevalkit(reply, MOLECULES) == vlmevalkit, reply
        assert letters.lmms_eval(reply, MOLECULES) == lmms, reply
        assert letters.robust(reply, "ABCD") == robust, reply
        assert letters.bagel(reply, MOLECULES) == (reply if handed_in is None else handed_in)


def test_a_long_reply_names_no_option_for_vlmevalkit():
    long = "a rope bridge " * 9
    assert letters.vlmevalkit(long, BRIDGES) == ""
    assert letters.lmms_eval(long, BRIDGES) == "C"


def test_a_longer_phrase_is_looked_for_by_itself():
    # After "answer is" B comes before A; after the later "the answer is" A before B.
    assert letters.robust("answer is B, no: the answer is x A or Bx", "AB") == "B"


def test_lmms_eval_reads_the_first_four_options_alone():
    five = letters.lettered(["one", "two", "three", "four", "five"])
    assert letters.lmms_eval("it is five", five) == ""
    assert letters.vlmevalkit("it is five", five) == "E"


@hypothesis_cases.counts(quick=200, slow=hypothesis_cases.MANY)
def test_a_rule_gives_a_letter_or_nothing(cases):
    def check(reply):
        assert letters.vlmevalkit(reply, MOLECULES) in {"", letters.REFUSED, *MOLECULES}
        assert letters.lmms_eval(reply, MOLECULES) in {"", *"ABCDE"}
        assert letters.robust(reply, "ABCD") in {"", *MOLECULES}
        assert letters.clear(reply, MOLECULES) in {"", *MOLECULES}

    hypothesis_cases.run(check, cases, reply=replies)


@hypothesis_cases.counts(quick=200, slow=hypothesis_cases.MANY)
def test_a_letter_alone_is_itself_whatever_surrounds_it(cases):
    def check(reply, letter):
        for text in (letter, f" {letter}\n", f"{letter}."):
            assert letters.vlmevalkit(text, MOLECULES) == letter
            assert letters.lmms_eval(text, MOLECULES) == letter
            assert letters.robust(text, "ABCD") == letter
            assert letters.clear(text, MOLECULES) == letter
        # A start ranks above every other form.
        assert letters.robust(f"{letter}: {reply}", "ABCD") == letter

    hypothesis_cases.run(check, cases, reply=replies, letter=st.sampled_from("ABCD"))


@hypothesis_cases.counts(quick=200, slow=hypothesis_cases.MANY)
def test_replies_without_any_capital_letter_leave_the_robust_rule_without_one(cases):
    def check(reply):
        assert letters.robust(reply.translate(dict.fromkeys(map(ord, "ABCD"))), "ABCD") == ""

    hypothesis_cases.run(check, cases, reply=replies)


def test_options_beyond_the_alphabet_are_refused():
    assert list(letters.lettered(["x"] * 26)) == list(string.ascii_uppercase)
    with pytest.raises(ValueError, match="27 options"):
        letters.lettered(["x"] * 27)


@pytest.mark.parametrize(
    "reply, letter",
    [
        *(
            ("B", "B"),
            ("b", ""),
            ("B?", "B"),
            ("'C'", "C"),
            ("答案是D", "D"),
            ("<answer>A</answer>", "A"),
        ),
        ("The answer is a rope bridge", "C"),
        ("A rope bridge", "C"),
        ("A bridge like this is made of steel", ""),
        ("So the answer is B\nExplanation: A is wrong", "B"),
        ("Answer: B. On second thoughts, the answer is C.", ""),
        ("(B) or (D)", ""),
        ("A is right", "A"),
        ("E", ""),
        ("the answer is E", ""),
        ("A stone dam or a rope bridge", ""),
        ("Cannot determine the answer", ""),
        ("", ""),
    ],
)
def test_a_clear_reply_names_one_option(reply, letter):
    assert letters.clear(reply, BRIDGES) == letter


def test_an_option_within_another_is_named_by_its_whole_text():
    reds = letters.lettered(["red", "dark red"])
    assert letters.clear("Dark red.", reds) == "B" and letters.clear("red", reds) == "A"
    assert letters.clear("It is dark red", reds) == ""


def test_reasons_say_what_is_right():
    assert letters.reason("A", "A") == ""
    assert letters.reason("C", "A") == "said C; A is right"
    assert letters.reason("", "A") == "names no option; A is right"
