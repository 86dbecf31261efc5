"""MMMU's letters, open answers and accuracies."""

import hypothesis_cases
import pytest
from hypothesis import strategies as st

from srum_jax.evals.scorers import letters, mmmu

MOLECULES = letters.lettered(["DNA", "RNA", "ATP", "None of the above"])
words = st.sampled_from([*"ABCD", "(A)", "B.", "is", "DNA", "rna", "so", "=", "3.14159", "1,200"])
replies = st.lists(st.one_of(words, st.text(max_size=3)), max_size=8).map(" ".join)


@pytest.mark.parametrize(
    "reply, official, lmms",
    [
        ("B. fresco", "", "B"),  # a letter must stand between spaces
        ("DNA is made of ink", "", "A"),
        ("(B) or (D)", "D", "D"),
        ("'C'", "C", "C"),
        ("I do not know", "", ""),
        ("it could be rna or rather some atp", "C", "C"),  # the last of several texts
        ("RNA", "", "A"),  # texts count in more than five words only
    ],
)
def test_official_letters_and_those_of_lmms_eval(reply, official, lmms):
    assert mmmu.choice(reply, MOLECULES) == official
    assert mmmu.choice_lmms(reply, MOLECULES) == lmms


def test_the_random_fallback_is_its_own_step_and_leaves_letters_alone():
    two = letters.lettered(["yes", "no"])
    drawn = mmmu.drawn_at_random(["", "D", ""], [two, MOLECULES, two])
    assert drawn == mmmu.drawn_at_random(["", "D", ""], [two, MOLECULES, two])
    assert drawn[1] == "D" and {drawn[0], drawn[2]} <= set("AB")
    # A letter that was found takes no draw from those after it.
    assert drawn[0::2] == mmmu.drawn_at_random(["", ""], [two, two])


@pytest.mark.parametrize(
    "reply, gold, right",
    [
        ("So the total is 1,200.", "1200", True),
        ("The value is 3.14159", "3.14", True),  # numbers count to two places
        ("The value is 3.15", "3.14", False),
        ("It is a blue whale", "blue whale", True),
        ("whale", "blue whale", False),
        ("x = 4", ["5", "4"], True),
        ("relax", "x", False),  # a text of one character needs a space beside it
        ("photosynthesis of it", "photosynthesis", False),  # "is " within the word
        ("", "4", False),
    ],
)
def test_open_answers(reply, gold, right):
    assert mmmu.open_right(mmmu.open_answers(reply), gold) is right
    assert mmmu.open_right_lmms(mmmu.open_answers(reply), gold) is False


@hypothesis_cases.counts(quick=200, slow=hypothesis_cases.MANY)
def test_every_reply_has_a_letter_or_none_and_open_answers(cases):
    def check(reply):
        assert mmmu.choice(reply, MOLECULES) in {"", *MOLECULES}
        assert mmmu.open_answers(reply)

    hypothesis_cases.run(check, cases, reply=replies)


@hypothesis_cases.counts(quick=200, slow=hypothesis_cases.MANY)
def test_a_number_said_is_right(cases):
    def check(number):
        assert mmmu.open_right(mmmu.open_answers(f"so the result is {number:.2f}"), str(number))

    hypothesis_cases.run(check, cases, number=st.floats(-1e6, 1e6).map(lambda x: round(x, 2)))


def test_accuracies_weigh_subjects_by_their_questions():
    right = {
        "validation_Art_1": True,
        "validation_Art_Theory_1": False,
        "validation_Art_Theory_2": False,
        "validation_Math_1": True,
        "validation_New_Subject_1": True,
    }
    assert mmmu.accuracies(right) == {
        "Overall": 3 / 5,
        "Overall-Art and Design": 1 / 3,
        "Overall-Science": 1.0,
        "Art": 1.0,
        "Art_Theory": 0.0,
        "Math": 1.0,
        "New_Subject": 1.0,
    }
    assert mmmu.accuracies({}) == {}
    assert sum(map(len, mmmu.DOMAINS.values())) == 30


def test_an_id_of_another_form_is_named():
    assert mmmu.subject("validation_Art_Theory_7") == "Art_Theory"
    with pytest.raises(ValueError, match='id "7"'):
        mmmu.subject("7")
