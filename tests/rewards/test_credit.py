"""Identities of credit per object: charges, attempts, places of what is missing, baselines."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srum_jax.rewards import credit, maps

SCORES = st.lists(st.floats(-1, 1), min_size=1, max_size=6).map(np.array)


@given(SCORES, st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_a_charge_is_the_probability_of_both(scores, holds):
    found = credit.charged(scores, holds)
    np.testing.assert_allclose((found + 1) / 2, (scores + 1) / 2 * holds, atol=1e-12)
    assert ((found >= -1) & (found <= scores + 1e-12)).all()
    np.testing.assert_allclose(credit.charged(scores, 1.0), scores, atol=1e-12)
    np.testing.assert_allclose(credit.charged(scores, np.nan), scores, atol=1e-12)  # nobody knows
    np.testing.assert_array_equal(credit.charged(scores, 0.0), -np.ones_like(scores))


def test_attempts_at_what_is_there_keep_their_scores():
    labels, scores, missing = credit.attempts([1, 0], [0.5, -0.25], [1, 1])
    assert labels.tolist() == [1, 0] and scores.tolist() == [0.5, -0.25] and not missing


def test_the_best_of_several_is_the_object_and_the_others_are_too_many():
    labels, scores, missing = credit.attempts([0, 0, 0], [0.2, 0.9, 0.5], [2])
    assert labels.tolist() == [0, 0, 0] and scores.tolist() == [-1, 0.9, 0.5] and not missing


def test_a_region_too_many_is_a_wrong_attempt_at_what_is_missing():
    labels, scores, missing = credit.attempts([0, 0, credit.NONE], [0.9, -0.6, 0.1], [1, 1, 2])
    # By their scores: the one that shows nothing demanded first.
    assert labels.tolist() == [0, 2, 1] and scores.tolist() == [0.9, -1, -1]
    assert missing == [2]


@given(
    st.lists(st.integers(-1, 2), max_size=7), st.lists(st.integers(0, 3), min_size=3, max_size=3)
)
@settings(max_examples=80, deadline=None)
def test_every_demanded_object_is_attempted_or_missing(shown, counts):
    given_scores = np.linspace(-0.9, 0.9, len(shown))
    labels, scores, missing = credit.attempts(shown, given_scores, counts)
    for label, count in enumerate(counts):
        own = (labels == label).sum()
        assert own + missing.count(label) >= count
        if missing.count(label):
            assert own + missing.count(label) == count
    kept = scores > credit.WORST
    np.testing.assert_array_equal(labels[kept], np.array(shown, int)[kept])
    np.testing.assert_array_equal(scores[kept], given_scores[kept])
    assert len(labels) == len(shown)


def test_a_missing_object_is_where_the_others_have_it_and_nothing_else_is():
    here = np.array([[0, 0, 10, 10]])
    there = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [5, 0, 15, 10]])
    assert credit.place_of_missing(here, there).tolist() == [20, 0, 30, 10]
    assert credit.place_of_missing(here, np.zeros((0, 4))) is None
    usual = np.array([[40, 0, 50, 10], [20, 0, 30, 10], [22, 0, 32, 10]])  # all of them free
    assert credit.place_of_missing(here, usual).tolist() == [20, 0, 30, 10]
    assert credit.place_of_missing(np.zeros((0, 4)), there[:1]).tolist() == [0, 0, 10, 10]


@given(st.lists(SCORES, min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_with_one_label_the_baseline_is_the_prompts(parts):
    labels = [np.zeros(len(part), int) for part in parts]
    _, (pooled,) = maps.group_advantages(np.zeros((1, len(parts))), [parts])
    for found, wanted in zip(credit.object_advantages(parts, labels), pooled, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_every_object_is_compared_with_its_own_kind():
    """Object 0 is easy and object 1 hard: among all regions the hard one's success would be nothing
    and the easy one's failure too."""
    scores = [np.array([0.8, -0.8]), np.array([0.8, -0.5]), np.array([0.7, -0.8])]
    found = credit.object_advantages(scores, [np.array([0, 1])] * 3)
    (_, (pooled,)) = maps.group_advantages(np.zeros((1, 3)), [scores])
    for label in (0, 1):  # centred, as no deviation reaches the floor
        assert sum(part[label] for part in found) == pytest.approx(0, abs=1e-6)
    assert found[2][0] < 0 < pooled[2][0]  # the easy object, done worse than elsewhere
    assert pooled[1][1] < 0 < found[1][1]  # the hard one, done better
    always = credit.object_advantages([np.array([-1.0]), np.array([-1.0])], [np.array([0])] * 2)
    assert [part.tolist() for part in always] == [[0], [0]]  # nothing to tell


def test_a_region_without_an_object_is_compared_with_all():
    scores = [np.array([0.9, -1.0]), np.array([0.9])]
    found = credit.object_advantages(scores, [np.array([0, credit.NONE]), np.array([0])])
    assert found[0][1] == -1 and found[0][0] == found[1][0] == 0
    assert [len(part) for part in credit.object_advantages([np.zeros(0)], [np.zeros(0, int)])] == [
        0
    ]
