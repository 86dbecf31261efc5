"""Intervals and AUC against brute force and published numbers."""

import numpy as np
import pytest

from srum_jax.evals import stats


def test_wilson_against_published_values():
    # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I.
    for correct, n, lo, hi in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert stats.wilson(correct, n) == pytest.approx((lo, hi), abs=6e-5)


def test_wilson_edges_and_symmetry():
    assert stats.wilson(0, 7)[0] == 0.0 and stats.wilson(7, 7)[1] == 1.0
    lo, hi = stats.wilson(3, 10)
    assert stats.wilson(7, 10) == pytest.approx((1 - hi, 1 - lo))
    for bad in [(0, 0), (3, 2), (-1, 2)]:
        with pytest.raises(ValueError, match="wilson"):
            stats.wilson(*bad)


def _loop_bootstrap(base, trained, seed, draws):
    """The textbook form: draw prompt indices, average all their samples."""
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(draws):
        i = rng.integers(0, len(base), len(base))
        means.append(trained[i].mean() - base[i].mean())
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("samples", [None, 3])
def test_paired_bootstrap_matches_drawing_prompts(samples):
    rng = np.random.default_rng(5)
    shape = (120,) if samples is None else (120, samples)
    base, trained = rng.random(shape) < 0.5, rng.random(shape) < 0.62
    diff, (lo, hi) = stats.paired_bootstrap(base, trained, seed=1, draws=20_000)
    assert diff == pytest.approx(trained.mean() - base.mean())
    assert (lo, hi) == pytest.approx(_loop_bootstrap(base, trained, 2, 20_000), abs=0.004)


def test_paired_bootstrap_clusters_samples_of_a_prompt():
    # Eight copies of one verdict carry no more information than one.
    rng = np.random.default_rng(0)
    base, trained = rng.random(60) < 0.4, rng.random(60) < 0.6
    one = stats.paired_bootstrap(base, trained, seed=3)
    many = stats.paired_bootstrap(
        np.repeat(base[:, None], 8, 1), np.repeat(trained[:, None], 8, 1), seed=3
    )
    assert many == one


def test_paired_bootstrap_is_deterministic_and_takes_different_sample_counts():
    base = np.array([[True, False], [False, False]])
    trained = np.array([True, True])
    first = stats.paired_bootstrap(base, trained, seed=7, draws=500)
    assert first == stats.paired_bootstrap(base, trained, seed=7, draws=500)
    assert first[0] == 0.75
    assert stats.paired_bootstrap(trained, trained) == (0.0, (0.0, 0.0))


@pytest.mark.parametrize(
    "base, trained, message",
    [
        (np.zeros(3, bool), np.zeros(4, bool), "3 prompts, trained 4"),
        (np.zeros(0, bool), np.zeros(0, bool), r"must be \[P\]"),
        (np.array([0.5, np.nan]), np.zeros(2), "outside"),
    ],
)
def test_paired_bootstrap_refuses(base, trained, message):
    with pytest.raises(ValueError, match=message):
        stats.paired_bootstrap(base, trained)


def _loop_auc(scores, labels, groups):
    won = pairs = 0
    for s, right, g in zip(scores, labels, groups, strict=True):
        for t, other, k in zip(scores, labels, groups, strict=True):
            if right and not other and g == k and not np.isnan(s) and not np.isnan(t):
                pairs += 1
                won += 1.0 if s > t else 0.5 if s == t else 0.0
    return won / pairs if pairs else None


@pytest.mark.parametrize("seed", range(6))
def test_auc_matches_counting_pairs(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, 80) / 3  # many ties
    scores[rng.random(80) < 0.1] = np.nan
    labels, groups = rng.random(80) < 0.4, rng.integers(0, 12, 80)
    whole = stats.auc(scores, labels)
    assert whole.value == pytest.approx(_loop_auc(scores, labels, np.zeros(80)))
    assert whole.n == np.isfinite(scores).sum() < 80
    within = stats.auc(scores, labels, [f"p{g}" for g in groups])
    assert within.value == pytest.approx(_loop_auc(scores, labels, groups))


def test_auc_edges():
    assert stats.auc([0.1, 0.9], [False, True]).value == 1.0
    assert stats.auc([0.9, 0.1], [False, True]).value == 0.0
    assert stats.auc([0.5, 0.5], [False, True]).value == 0.5
    assert stats.auc([0.5, 0.6], [True, True]) == stats.Auc(None, 2)
    assert stats.auc([np.nan, 0.6], [False, True]) == stats.Auc(None, 1)
    assert stats.auc([], [], []) == stats.Auc(None, 0)
    # Right and wrong exist, but never in the same group.
    assert stats.auc([0.1, 0.9], [False, True], [0, 1]).value is None
    with pytest.raises(ValueError, match="one length"):
        stats.auc([0.1, 0.9], [True])
