"""Agreement of two judges: known values, ties, what is missing, intervals that cover."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from srum_jax.evals import agreement as agreement_module
from srum_jax.evals.agreement import KAPPA, SPEARMAN, agreement

NAN = float("nan")


def verdicts(both_yes, first_only, second_only, both_no):
    rows = [(1, 1)] * both_yes + [(1, 0)] * first_only + [(0, 1)] * second_only + [(0, 0)] * both_no
    return tuple(zip(*rows, strict=True))


def test_kappa_of_a_known_table():
    """50 applications read by two: the usual example, kappa 0.4."""
    found = agreement(*verdicts(20, 5, 10, 15))
    assert (found.n, found.missing, found.measure) == (50, 0, KAPPA)
    assert found.exact == pytest.approx(0.7) and found.value == pytest.approx(0.4)
    lo, hi = found.interval
    assert lo < 0.4 < hi and 0.3 < hi - lo < 0.7
    assert str(found).startswith("the same in 70.0 % of 50 requests, Cohen's kappa 0.40 [")


def test_agreement_beyond_chance():
    assert agreement([0, 1, 1, 0], [0, 1, 1, 0]).value == 1
    assert agreement([0, 1, 1, 0], [1, 0, 0, 1]).value == pytest.approx(-1)
    rng = np.random.default_rng(0)
    one, other = rng.random(4000) < 0.9, rng.random(4000) < 0.9
    found = agreement(one.astype(float), other.astype(float))
    assert found.exact > 0.8 and abs(found.value) < 0.05  # often the same, by chance alone


def test_a_judge_that_always_says_the_same_has_no_kappa():
    found = agreement([1, 1, 1], [1, 1, 1])
    assert (found.exact, found.value, found.interval) == (1.0, None, None)
    assert "not defined over 3 requests" in str(found)


def test_missing_judgements_are_left_out_and_counted():
    found = agreement([1, None, 0, NAN, 1], [1, 1, None, 0, 0])
    assert (found.n, found.missing, found.exact) == (2, 3, 0.5)
    nothing = agreement([None], [1])
    assert (nothing.n, nothing.missing, nothing.exact, nothing.value) == (0, 1, None, None)
    assert agreement([], []).n == 0


@pytest.mark.parametrize("seed", range(4))
def test_spearman_with_ties_is_scipys(seed):
    rng = np.random.default_rng(seed)
    one = rng.integers(0, 11, 200) * 1.0
    other = np.clip(one + rng.integers(-4, 5, 200), 0, 10)
    found = agreement(one, other)
    assert found.measure == SPEARMAN
    assert found.value == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
    assert found.interval[0] < found.value < found.interval[1]
    assert found == agreement(one, other)  # the seed decides
    assert found.value == pytest.approx(agreement(np.exp(one), 3 * other).value)  # by rank alone


def test_resampled_correlations_are_those_of_resampled_grades():
    rng = np.random.default_rng(1)
    pairs = rng.integers(0, 5, (60, 2)).astype(float)
    distinct, counts = np.unique(pairs, axis=0, return_counts=True)
    places = [np.unique(column, return_inverse=True)[1] for column in distinct.T]
    weights = rng.multinomial(60, counts / 60, size=20)
    found = agreement_module._rank_correlation(places, weights)
    for drawn, value in zip(weights, found, strict=True):
        rows = np.repeat(distinct, drawn, axis=0)
        assert value == pytest.approx(spearmanr(rows[:, 0], rows[:, 1]).statistic, abs=1e-12)


def test_grades_that_never_differ_have_no_correlation():
    assert agreement([5, 5, 5], [1, 2, 3]).value is None


def test_intervals_cover():
    """Of 60 samples about 95 % of the intervals hold the true kappa."""
    rng, held = np.random.default_rng(3), 0
    for n in range(60):
        truth = rng.random(150) < 0.5
        one, other = (truth ^ (rng.random(150) < 0.1) for _ in range(2))
        lo, hi = agreement(one * 1.0, other * 1.0, seed=n, draws=500).interval
        held += lo <= 0.64 <= hi  # 0.82 the same, 0.5 by chance
    assert 51 <= held <= 60


def test_wrong_calls_are_named():
    with pytest.raises(ValueError, match="1 judgements beside 2"):
        agreement([1], [1, 0])
    with pytest.raises(ValueError, match="verdicts must be 0 or 1"):
        agreement([1, 0.5], [1, 0], graded=False)
    assert agreement([1, 0, 1], [1, 0, 0], graded=True).measure == SPEARMAN
