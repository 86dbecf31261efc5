"""DPG-Bench: questions that depend on others, images, prompts and categories."""

import math

import hypothesis_cases
import pytest
from hypothesis import strategies

from srum_jax.evals.scorers import dpg

DOG = (
    dpg.Question(1, (0,), "entity - whole", "Is there a dog?"),
    dpg.Question(2, (1,), "attribute - color", "Is it red?"),
    dpg.Question(3, (2,), "attribute - size", "Is the red dog big?"),
    dpg.Question(4, (0,), "global", "Is it a photograph?"),
)


def test_a_no_goes_on_to_children_and_theirs():
    assert dpg.image_score(DOG, {1: 0, 2: 1, 3: 1, 4: 1}) == 0.25
    assert dpg.image_score(DOG, {1: 1, 2: 0, 3: 1, 4: 1}) == 0.5
    assert dpg.image_score(DOG, {1: 1, 2: 1, 3: 1, 4: 1}) == 1.0


@hypothesis_cases.counts(quick=200, slow=hypothesis_cases.MANY)
def test_parents_only_ever_lower_a_score(cases):
    def check(yes):
        answers = dict(enumerate(yes, start=1))
        scores = dpg.with_parents(DOG, answers)
        assert all(scores[i] <= answers[i] for i in answers)
        assert scores[1] == answers[1] and scores[4] == answers[4]

    yes = strategies.lists(strategies.sampled_from([0.0, 1.0]), min_size=4, max_size=4)
    hypothesis_cases.run(check, cases, yes=yes)


def test_categories_are_the_raw_answers_about_the_last_image():
    images = ({1: 1, 2: 1, 3: 1, 4: 1}, {1: 0, 2: 1, 3: 0, 4: 1})
    found = dpg.released([dpg.Answered(DOG, images)])
    assert found["DPG-Bench"] == pytest.approx(100 * (1 + 0.25) / 2)
    assert found["entity"] == 0 and found["attribute"] == 50 and found["global"] == 100
    assert found["attribute - color"] == 100 and found["attribute - size"] == 0


def test_an_image_with_a_parent_that_is_not_there_is_left_out():
    broken = dpg.Answered(DOG[1:], ({2: 1, 3: 1, 4: 1},))
    good = dpg.Answered(DOG, ({1: 1, 2: 1, 3: 1, 4: 1},))
    assert dpg.released([broken, good])["DPG-Bench"] == 100
    assert math.isnan(dpg.released([broken])["DPG-Bench"])
