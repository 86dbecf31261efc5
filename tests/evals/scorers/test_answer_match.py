import hypothesis_cases
import pytest
from hypothesis import strategies

from srum_jax.evals.scorers import answer_match

TEXT = strategies.text(alphabet="ab cAB1%.ß", max_size=10)


@pytest.mark.parametrize(
    "prediction, right", [("Dog.", True), ("a dog", False), (" dog", False), ("d-o-g", True)]
)
def test_exact_match_drops_punctuation_and_case_alone(prediction, right):
    assert answer_match.exact_match(prediction, "dog") is right


@pytest.mark.parametrize(
    "a, b, apart", [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
)
def test_levenshtein(a, b, apart):
    assert answer_match.levenshtein(a, b) == answer_match.levenshtein(b, a) == apart


def test_anls_is_of_the_nearest_answer_and_nothing_below_a_half():
    assert answer_match.anls("bea1h", ["x", "beach"]) == pytest.approx(0.8)
    assert answer_match.anls("bexxx", ["beach"]) == 0
    assert answer_match.anls("abc", ["abcdef"]) == 0.5
    assert answer_match.anls(" kitchen", ["kitchen"]) == 1


def test_anls_divides_by_the_raw_length_in_capitals():
    assert answer_match.anls("ß  x", ["ß yx"]) == pytest.approx(1 - 1 / 5)


def test_anls_of_nothing():
    assert answer_match.anls("", [""]) == 1
    assert answer_match.anls("", ["cat"]) == 0
    with pytest.raises(ValueError, match="no answers"):
        answer_match.anls("cat", [])


@pytest.mark.parametrize(
    "prediction, target, right",
    [
        *[("105", "100", True), ("105.1", "100", False), ("5%", "0.05", True), ("5", "5%", False)],
        *[("0.0", "0", False), ("0", "0", True), ("$5", "5", False), ("1,200", "1200", False)],
        *[("Blue", "blue", True), ("blue.", "blue", False), ("nan", "5", False), ("", "", True)],
        *[("inf", "inf", False), ("1e400", "3", False), ("%", "%", True), ("५", "5", True)],
    ],
)
def test_relaxed(prediction, target, right):
    assert answer_match.relaxed(prediction, target) is right


@hypothesis_cases.counts(quick=500, slow=hypothesis_cases.MANY)
def test_similarities_are_shares_and_a_further_answer_never_harms(cases):
    def check(prediction, first, second):
        one = answer_match.anls(prediction, [first])
        assert one == 0 or 0.5 <= one <= 1
        assert answer_match.anls(prediction, [first, second]) >= one
        assert answer_match.anls(first, [first]) == 1
        assert answer_match.exact_match(first, first.lower() + ".")
        answer_match.relaxed(prediction, first)

    hypothesis_cases.run(check, cases, prediction=TEXT, first=TEXT, second=TEXT)
