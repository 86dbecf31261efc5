"""Which prompts a later round draws."""

import collections

import pytest

from srum_jax.data.prompts import Prompt
from srum_jax.rewards import judge
from srum_jax.stages import focus

PROMPTS = tuple(Prompt(i, f"p{i}", "abc"[i % 3]) for i in range(60))


def round_of(scores):
    """Candidates and score records of {category: [the scores of a prompt's candidates]}."""
    drawn, scored = [], []
    for category, prompts in scores.items():
        for values in prompts:
            number = len(drawn)
            for value in values:
                drawn.append({"category": category, "prompt_id": number})
                status = judge.OK if value is not None else judge.NOT_FINITE
                scored.append({"image_status": status, "image_score": value or 0.0})
    return drawn, scored


def test_weak_and_sure_categories_weigh_most():
    found = focus.categories(
        *round_of(
            {
                "strong": [[1.0, 0.9], [1.0, 1.0]],
                "weak and sure": [[-1.0, 0.5], [0.5, -1.0]],
                "weak and unsure": [[-0.5, -0.5], [-0.5, -0.5]],
                "unscored": [[None, None]],
            }
        )
    )
    assert "unscored" not in found
    weights = {name: row["weight"] for name, row in found.items()}
    assert max(weights, key=weights.get) == "weak and sure" and weights["weak and unsure"] == 0
    row = found["weak and sure"]
    assert (row["prompts"], row["own_score"], row["spread"]) == (2, -0.25, 0.75)
    assert row["weight"] == pytest.approx(0.625 * 0.75)


def test_shares():
    given = PROMPTS[:30]
    even = dict.fromkeys("abc", pytest.approx(1 / 3))
    assert focus.shares(given, {"a": 1.0}, 0.0) == even
    assert focus.shares(given, {"a": 0.0, "b": 0.0, "c": 0.0}, 0.5) == even
    assert focus.shares(given, {}, 0.5) == even
    found = focus.shares(given, {"a": 3.0, "b": 1.0, "c": 0.0}, 0.5)
    assert found == pytest.approx({"a": 1 / 6 + 3 / 8, "b": 1 / 6 + 1 / 8, "c": 1 / 6})
    found = focus.shares(given, {"a": 3.0, "b": 1.0}, 1.0)  # what is not known is as the mean
    assert found == pytest.approx({"a": 3 / 6, "b": 1 / 6, "c": 2 / 6})


@pytest.mark.parametrize("count", [1, 7, 30, 60])
def test_every_category_gets_its_share_of_what_there_is(count):
    wanted = {"a": 0.5, "b": 0.3, "c": 0.2}
    found = focus.select(PROMPTS, wanted, count, drawn=())
    assert len(found) == len(set(found)) == count
    assert list(found) == sorted(found, key=PROMPTS.index)
    counts = collections.Counter(prompt.category for prompt in found)
    if count <= 30:
        assert all(abs(counts[name] - count * share) < 1 for name, share in wanted.items())
    assert focus.select(PROMPTS, wanted, count, drawn=()) == found


def test_those_that_were_drawn_come_last():
    drawn = {prompt.id for prompt in PROMPTS[:45]}
    found = focus.select(PROMPTS, {"a": 1.0, "b": 0.0, "c": 0.0}, 8, drawn)
    fresh = [prompt.id for prompt in found if prompt.id not in drawn]
    assert {prompt.category for prompt in found} == {"a"} and fresh == [45, 48, 51, 54, 57]
    assert [prompt.id for prompt in found if prompt.id in drawn] == [0, 3, 6]
    assert len(focus.select(PROMPTS, {"a": 1.0}, 99, drawn)) == 20
