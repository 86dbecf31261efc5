"""GenEval's rules: what must hold of boxes, clauses and the summary whatever the numbers are."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srum_jax.evals.scorers import geneval

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
numbers = st.floats(0, 1000, allow_nan=False)


@st.composite
def boxes(draw):
    x, y = draw(numbers), draw(numbers)
    return [x, y, x + draw(numbers) + 1, y + draw(numbers) + 1]


def dog(count, score=0.95, **more):
    return {"dog": [[40.0 * i, 0, 40.0 * i + 20, 20, score] for i in range(count)], **more}


def clause(name="dog", count=1, **more):
    return {"class": name, "count": count, **more}


@given(boxes(), boxes())
def test_relations_turn_round_with_the_boxes(a, b):
    there, back = geneval.relative_position(a, b), geneval.relative_position(b, a)
    assert back == {OPPOSITE[one] for one in there}
    assert len(there) <= 2


@given(boxes(), boxes())
def test_iou_is_symmetric_and_a_share(a, b):
    assert geneval.iou(a, b) == geneval.iou(b, a)
    assert 0 <= geneval.iou(a, b) <= 1 + 1e-12
    assert geneval.iou(a, a) == 1


@given(st.lists(st.floats(0, 1), max_size=40))
def test_kept_are_the_most_confident_ones_above_the_threshold(scores):
    found = [[0, 0, 1, 1, score] for score in scores]
    kept = [scores[i] for i in geneval.kept(found, "colors")]
    assert kept == sorted((s for s in scores if s > 0.3), reverse=True)[:16]
    assert len(geneval.kept(found, "counting")) == min(16, sum(s > 0.9 for s in scores))


def test_counting_wants_more_confidence_and_excludes_more():
    asked = {"tag": "counting", "include": [clause(count=2)], "exclude": [clause(count=3)]}
    assert geneval.verdict(asked, dog(2), {}) == (True, "")
    assert geneval.verdict(asked, dog(3), {}) == (False, "expected dog<3, found 3")
    assert geneval.verdict(asked, dog(2, score=0.8), {}) == (False, "expected dog>=2, found 0")
    assert geneval.verdict({**asked, "tag": "two_object"}, dog(2, score=0.8), {})[0]


def test_colors_are_asked_of_the_most_confident_only():
    asked = {"tag": "colors", "include": [clause(color="red")]}
    found = {"dog": [[0, 0, 9, 9, 0.5], [20, 0, 29, 9, 0.9]]}
    assert geneval.verdict(asked, found, {"dog": {1: "red", 0: "blue"}})[0]
    right, reason = geneval.verdict(asked, found, {"dog": {1: "blue", 0: "red"}})
    assert not right and reason == "expected red dog>=1, found 0 red; and 1 blue"


def test_a_position_needs_a_target_that_matched():
    asked = {
        "tag": "position",
        "include": [clause("cat"), clause(position=["left of", 0])],
    }
    right = {"cat": [[500, 0, 520, 20, 0.9]]}
    assert geneval.verdict(asked, dog(1, **right), {})[0]
    assert geneval.verdict(asked, dog(1), {})[1].splitlines() == [
        "expected cat>=1, found 0",
        "no target for dog to be left of",
    ]
    other_side = {"cat": [[0, 500, 20, 520, 0.9]]}
    assert geneval.verdict(asked, dog(1, **other_side), {})[1] == (
        "expected dog left of target, found above target"
    )


def test_files_of_a_folder_are_taken_as_officially():
    files = ["0/samples/0.png", "0/samples/1.pngx", "0/samples/a1.png", "0/samples/1.PNG"]
    files += ["a/samples/0.png", "0/0.png", "0/samples/x/0.png", "00/samples/00012.png"]
    assert geneval.scanned(files) == [files[0], files[1], files[-1]]


def result(tag, correct, prompt="p"):
    return geneval.Result("0", tag, prompt, correct, json.dumps([tag, prompt]))


@given(st.lists(st.tuples(st.sampled_from(geneval.TAGS), st.booleans()), min_size=1))
def test_overall_is_the_mean_of_the_tags_not_of_the_images(rows):
    results = [result(*row) for row in rows]
    means = geneval.tag_means(results)
    assert list(means) == list(dict.fromkeys(tag for tag, _ in rows))
    assert geneval.overall(results) == pytest.approx(sum(means.values()) / len(means))
    twice = results + [one for one in results if one.tag == rows[0][0]]
    assert geneval.overall(twice) == pytest.approx(geneval.overall(results))


def test_prompts_with_the_same_metadata_are_one():
    results = [result("colors", False), result("colors", True), result("colors", False, "q")]
    assert geneval.correct_prompts(results) == 0.5
    assert "Total prompts: 2\n% correct images: 33.33%" in geneval.summary(results)
