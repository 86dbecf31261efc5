"""GenEval2: what must hold of answers and means whatever the probabilities are."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srum_jax.evals.scorers import geneval2

shares = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(shares)
def test_the_geometric_mean_is_at_most_the_arithmetic(scores):
    am, gm = geneval2.arithmetic(scores), geneval2.geometric(scores)
    assert 0 <= gm <= am + 1e-12 <= 1 + 2e-12
    assert gm == 0 if min(scores) == 0 else gm >= 0


def test_means_of_nothing_are_no_number():
    assert math.isnan(geneval2.arithmetic([])) and math.isnan(geneval2.geometric([]))


def test_a_count_is_accepted_as_word_and_digit():
    assert geneval2.accepted("four") == ("four", "Four", " four", " Four", "4", " 4")
    assert geneval2.accepted("dozens")[-2:] == ("other", " other")
    assert geneval2.accepted("Yes") == geneval2.YES
    assert [geneval2.first_token(x) for x in (" 4", "10", " 10", "4", " four")] == [
        " ",
        "1",
        " ",
        "4",
        " four",
    ]


@given(st.sampled_from(["Yes", *geneval2.WORDS]), st.data())
def test_the_soft_score_sums_what_is_accepted_and_nothing_else(answer, data):
    p = {
        reply: data.draw(st.floats(0, 0.2)) for reply in (*geneval2.accepted(answer), "No", "zero")
    }
    wanted = sum(p[reply] for reply in geneval2.accepted(answer))
    assert geneval2.soft_score(answer, p) == pytest.approx(wanted)
    assert geneval2.soft_score(answer, {}) == 0


def test_tifa_takes_any_case_of_the_likeliest():
    assert geneval2.tifa("Yes", "YES") == 1
    assert geneval2.tifa("three", " Three") == 1
    assert geneval2.tifa("three", "3") == 1
    assert geneval2.tifa("three", "4") == 0
    assert geneval2.tifa("three", " ") == 0


def test_totals_are_over_prompts_and_skills_over_questions():
    prompts = [
        geneval2.Prompt(3, (1.0, 0.25), (1, 0), ("object", "count")),
        geneval2.Prompt(4, (0.5,), (1,), ("object",)),
    ]
    assert geneval2.soft_tifa_am(prompts) == pytest.approx(100 * (0.625 + 0.5) / 2)
    assert geneval2.soft_tifa_gm(prompts) == pytest.approx(100 * (0.5 + 0.5) / 2)
    assert geneval2.total_tifa(prompts) == pytest.approx(75)
    assert geneval2.per_skill(prompts) == pytest.approx({"object": 75, "count": 25})
    assert geneval2.per_atomicity(prompts)[4] == pytest.approx(
        {"correct": 0.5, "total": 1, "accuracy": 50}
    )
