"""T2I-CompBench: what must hold of files, questions, products, 3-in-1 and positions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srum_jax.evals.scorers import t2i_compbench

SIDES = {
    "on the left of": "on the right of",
    "on the top of": "on the bottom of",
    "near": "near",
}
numbers = st.integers(0, 1000)


@st.composite
def boxes(draw):
    x, y = draw(numbers), draw(numbers)
    width, height = draw(st.integers(1, 500)), draw(st.integers(1, 500))
    return {"x_min": x, "y_min": y, "x_max": x + width, "y_max": y + height}


@given(st.permutations(range(30)))
def test_samples_come_in_the_order_of_their_index(places):
    names = [t2i_compbench.sample_name("a red_blue car", i) for i in places]
    ordered = t2i_compbench.ordered(names)
    assert [t2i_compbench.index_of(name) for name in ordered] == list(range(30))
    assert {t2i_compbench.prompt_of(name) for name in names} == {"a red"}


def test_a_sample_of_another_name_is_refused():
    with pytest.raises(ValueError, match="grid.png: a sample is named"):
        t2i_compbench.ordered(["a_000000.png", "grid.png"])


def test_places_are_not_asked_and_eight_questions_are_the_most():
    asked = t2i_compbench.questions(["a car", "the left", "The left", "top", "the bottom"])
    assert asked == ["a car?", "The left?", "the bottom?", "", "", "", "", ""]
    assert t2i_compbench.questions(["x"] * 20) == ["x?"] * 8


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.integers(0, 8))
def test_the_product_is_over_what_is_asked(yes, n):
    asked = t2i_compbench.questions([f"thing {i}" for i in range(n)])
    wanted = 1.0
    for p in yes[:n]:
        wanted *= p
    assert t2i_compbench.product(asked, yes) == pytest.approx(wanted, rel=1e-5, abs=1e-30)


def test_three_in_one_takes_what_the_prompt_is_of():
    prompts = ["A car near a dog.", "a man runs", "a red car"]
    scores = {"attribute": [0.9] * 30, "spatial": [0.5] * 30, "action": [0.1] * 30}
    total = t2i_compbench.three_in_one(prompts, ["a car near a dog"], ["A MAN RUNS."], scores)
    assert total[0] == pytest.approx(0.7)
    assert total[10] == pytest.approx(0.5)
    assert total[20] == pytest.approx(0.5)
    assert len(total) == 30
    with pytest.raises(ValueError, match="29 scores of 'action', need 30"):
        t2i_compbench.three_in_one(prompts, [], [], {**scores, "action": [0.1] * 29})


@given(boxes(), boxes(), st.sampled_from(list(SIDES)))
def test_positions_turn_round_with_the_boxes(a, b, locality):
    here = t2i_compbench.position(locality, a, b)
    assert here == pytest.approx(t2i_compbench.position(SIDES[locality], b, a))
    assert 0 <= here <= 1
    assert t2i_compbench.position("on top of", a, b) == 0
    assert t2i_compbench.position(None, a, b) == 0


def test_near_holds_on_either_axis():
    a = {"x_min": 0, "y_min": 0, "x_max": 10, "y_max": 10}
    far = {"x_min": 0, "y_min": 900, "x_max": 10, "y_max": 910}
    farther = {"x_min": 300, "y_min": 900, "x_max": 310, "y_max": 910}
    assert t2i_compbench.position("near", a, far) == 1
    assert t2i_compbench.position("near", a, farther) == pytest.approx(150 / 900)
