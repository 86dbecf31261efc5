"""The choice among models: its rule, and that cross-fitting does not flatter."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srum_jax.evals import choice
from srum_jax.evals.choice import Candidate, Rule
from srum_jax.evals.scorers import metrics

RULE = Rule("t2i", {"edits": -0.03, "qa": -0.01}, folds=2, seed=3)


def candidate(target, edits, qa):
    floors = {"edits": metrics.mean(edits), "qa": metrics.mean(qa)}
    return Candidate(metrics.mean(target), floors)


def random(rng, count, units=(40, 30, 50), chance=0.5):
    """`count` models that are right by chance."""
    return [candidate(*(rng.random(n) < chance for n in units)) for _ in range(count)]


def difference(one, base, name=None):
    """What a person would compute."""
    pair = (one.target, base.target) if name is None else (one.floors[name], base.floors[name])
    a, b = (metric.columns[:, 0].mean() for metric in pair)
    return a - b


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 6), st.integers(2, 5))
def test_floors_are_never_broken_and_the_largest_gain_is_taken(seed, count, folds):
    rng = np.random.default_rng(seed)
    rule = dataclasses.replace(RULE, folds=folds)
    base, *several = random(rng, 1 + count, chance=rng.random())
    found = rule.choose(base, several)
    fit = [
        i
        for i, one in enumerate(several)
        if difference(one, base) > 0
        and all(difference(one, base, n) >= least - 1e-12 for n, least in rule.floors.items())
    ]
    gains = [difference(several[i], base) for i in fit]
    if found.chosen is None:
        assert not fit or found.gain.ci95[1] < 0
        assert "the base stays" in found.why
    else:
        assert found.chosen in fit
        assert difference(several[found.chosen], base) == pytest.approx(max(gains))
    assert rule.choose(base, several) == found
    for i, one in enumerate(several):  # whatever may be chosen anywhere has its floors measured
        if any(rule.allowed(base, one, without) for without in (None, *range(folds))):
            assert rule.worth_measuring(base, one.target), i


def test_where_floors_are_not_measured_a_model_is_not_allowed():
    base = candidate([0] * 10, [1] * 10, [1] * 10)
    better = candidate([1] * 10, [1] * 10, [1] * 10)
    assert RULE.choose(base, [better]).chosen == 0
    assert RULE.choose(base, [Candidate(better.target)]).chosen is None
    assert not RULE.worth_measuring(base, base.target)
    lost = candidate([1] * 100, [0] * 3 + [1] * 97, [0] + [1] * 99)
    base = candidate([0] * 100, [1] * 100, [1] * 100)
    assert RULE.choose(base, [lost]).chosen == 0  # exactly as much as may be
    assert dataclasses.replace(RULE, floors={}).choose(base, [Candidate(lost.target)]).chosen == 0


def test_what_is_said_of_nothing_to_choose():
    base = candidate([0, 1] * 20, [1] * 40, [1] * 40)
    broken = candidate([1] * 40, [0] * 8 + [1] * 32, [0] + [1] * 39)
    assert "none of 1 gains on t2i" in RULE.choose(base, [base]).why
    why = RULE.choose(base, [broken, base]).why
    assert "each of the 1 that gain on t2i breaks a floor (edits 1 times, qa 1 times)" in why
    assert "left nothing to try: the base stays" in RULE.choose(base, []).why


def test_among_equals_the_first():
    base = candidate([0, 1] * 20, [1] * 40, [1] * 40)
    same = candidate([1] * 40, [1] * 40, [1] * 40)
    assert RULE.choose(base, [same, same]).chosen == 0


def test_a_gain_that_holds_nowhere_else_leaves_the_base():
    """Each model gains much in one fold and loses a little less in the other."""
    n = 200
    zeros = np.zeros(n)
    fold = RULE.cut(metrics.mean(zeros))
    right = (np.arange(n) % 10 < 5).astype(float)
    base = candidate(right, np.ones(9), np.ones(9))
    up, down = np.ones(n), zeros
    several = [
        candidate(np.where(fold == i, up, np.where(right, down, right)), np.ones(9), np.ones(9))
        for i in range(2)
    ]
    several = [
        dataclasses.replace(one, target=metrics.mean(np.where(np.arange(n) < 4, 1, _values(one))))
        for one in several
    ]
    assert all(difference(one, base) > 0 for one in several)
    found = RULE.choose(base, several)
    assert found.chosen is None and found.gain.ci95[1] < 0 and "lose on another" in found.why


def _values(one):
    return one.target.columns[:, 0]


def test_cross_fitting_is_unbiased_where_the_gain_on_the_same_data_is_not():
    """Eight models as good as the base: the best seems to gain, the cross-fitted gain is none."""
    rng = np.random.default_rng(0)
    rule = Rule("t2i", {})
    naive, fair = [], []
    for _ in range(400):
        base, *several = random(rng, 9, units=(50, 1, 1))
        best = rule.best(base, several)
        naive.append(0.0 if best is None else difference(several[best], base))
        taken = [rule.best(base, several, without=fold) for fold in range(2)]
        fold, parts = rule.cut(base.target), []
        for number, i in enumerate(taken):
            one = base if i is None else several[i]
            parts.append((_values(one) - _values(base))[fold == number])
        fair.append(np.concatenate(parts).mean())
        if len(fair) == 1:
            assert rule.choose(base, several).gain.diff == pytest.approx(fair[0])
    error = np.std(fair) / np.sqrt(len(fair))
    assert np.mean(naive) > 0.08 and abs(np.mean(fair)) < 4 * error < 0.03


def test_an_interval_of_a_metric_that_is_no_mean():
    """A ratio: the interval holds the difference and is that of the ratio, not of its parts."""
    rng = np.random.default_rng(1)
    below = rng.integers(1, 9, 300)
    base, one = metrics.ratio(0.4 * below, below), metrics.ratio(0.5 * below, below)
    found = choice.estimate(one, base)
    assert found.diff == pytest.approx(0.1) and found.n == 300
    assert found.ci95 == pytest.approx((0.1, 0.1))


def test_folds_are_of_equal_sizes_and_by_chance():
    metric = metrics.mean(np.zeros(101))
    fold = dataclasses.replace(RULE, folds=4).cut(metric)
    assert sorted(np.bincount(fold)) == [25, 25, 25, 26]
    assert (fold != np.arange(101) % 4).any()
    assert (fold == dataclasses.replace(RULE, folds=4).cut(metric)).all()


def test_the_rule_in_words():
    assert "the largest gain on t2i" in RULE.words and "edits -3.0, qa -1.0" in RULE.words
