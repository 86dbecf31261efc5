"""The statistics of the evaluation: intervals for proportions and differences, and AUC.

Owns no data and no file; everything is NumPy on the host, vectorised, and a function of its
arguments only (the bootstrap's randomness is its seed).
"""

from __future__ import annotations

import dataclasses

import numpy as np


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson score interval, 95 %, of a proportion.

    Args:
      correct: successes, 0 <= correct <= n.
      n: independent trials, at least 1.

    Returns:
      (lo, hi), both in [0, 1].

    Raises:
      ValueError: no trials, or successes outside [0, n].

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", JASA 22 (1927).
    """
    from scipy.stats import binomtest  # only here: importing it takes a second

    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"wilson: need 0 <= correct <= n and n >= 1, got {correct} of {n}")
    found = binomtest(int(correct), int(n)).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def paired_bootstrap(
    base: np.ndarray, trained: np.ndarray, seed: int = 0, draws: int = 10_000
) -> tuple[float, tuple[float, float]]:
    """Mean difference trained - base and its 95 % percentile interval, resampling prompts.

    A prompt is the unit that is drawn: all samples of a prompt come or stay out together, so
    samples of one prompt are not counted as independent.

    Args:
      base, trained: bool or float in [0, 1], [P] or [P, S]; row p of both is the same prompt.
        The two may have different S (a prompt's value is the mean over its samples).
      seed: of the resampling.
      draws: bootstrap resamples, at least 1.

    Returns:
      diff in [-1, 1], (lo, hi).

    Raises:
      ValueError: no prompts, different prompt counts, values outside [0, 1] or NaN.
    """
    values = _per_prompt(trained, "trained"), _per_prompt(base, "base")
    if values[0].shape != values[1].shape:
        raise ValueError(
            f"paired_bootstrap: base has {values[1].size} prompts, trained {values[0].size}"
        )
    if draws < 1:
        raise ValueError(f"paired_bootstrap: draws must be at least 1, got {draws}")
    diff = values[0] - values[1]
    # Prompts with equal differences are interchangeable, so drawing P prompts is one multinomial
    # over the few distinct differences: the same distribution at a fraction of the memory.
    distinct, counts = np.unique(diff, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(diff.size, counts / diff.size, size=draws)
    lo, hi = np.quantile(drawn @ distinct / diff.size, [0.025, 0.975])
    return float(diff.mean()), (float(lo), float(hi))


def resampled_sums(
    columns: np.ndarray, seed: int = 0, draws: int = 2000, at_once: int = 2**24
) -> np.ndarray:
    """Sums of rows drawn with replacement, as many as there are: float64 [draws, K].

    Any function of sums over units (a ratio, a mean of group means, an F1) gets its bootstrap
    distribution from them. Columns of several models side by side are drawn together: paired.

    Args:
      columns: float [N, K], what each unit adds, N at least 1.
      seed: of the drawing.
      draws: resamples, at least 1.
      at_once: numbers of one block of counts, which bounds the memory.

    Raises:
      ValueError: nothing to draw from, or not [N, K].
    """
    columns = np.asarray(columns, np.float64)
    if columns.ndim != 2 or not len(columns) or draws < 1:
        raise ValueError(f"resampled_sums: need [N, K] and draws, got {columns.shape} and {draws}")
    # Equal rows are interchangeable: drawing units is one multinomial over the distinct rows.
    distinct, counts = np.unique(columns, axis=0, return_counts=True)
    rng, block = np.random.default_rng(seed), max(1, at_once // len(distinct))
    parts = []
    for first in range(0, draws, block):
        size = min(block, draws - first)
        drawn = rng.multinomial(len(columns), counts / len(columns), size=size)
        parts.append(drawn @ distinct)
    return np.concatenate(parts)


def percentiles(values: np.ndarray) -> tuple[float, float] | None:
    """The 95 % percentile interval of resampled values, [draws]; None where one in twenty of them
    or more is not defined (NaN)."""
    there = values[~np.isnan(values)]
    if len(there) < 0.95 * len(values) or not len(there):
        return None
    lo, hi = np.quantile(there, [0.025, 0.975])
    return float(lo), float(hi)


def _per_prompt(x: np.ndarray, name: str) -> np.ndarray:
    """[P] or [P, S] of values in [0, 1] -> float64 [P]."""
    x = np.asarray(x, np.float64)
    if x.ndim not in (1, 2) or x.size == 0:
        raise ValueError(f"paired_bootstrap: {name} must be [P] or [P, S], got shape {x.shape}")
    if not ((x >= 0) & (x <= 1)).all():
        raise ValueError(f"paired_bootstrap: {name} has values outside [0, 1] or NaN")
    return x if x.ndim == 1 else x.mean(axis=1)


@dataclasses.dataclass(frozen=True)
class Auc:
    """Probability that a right one scores above a wrong one (a tie counts half).

    value: in [0, 1]; None if there is no (right, wrong) pair to compare.
    n: scores that took part.
    """

    value: float | None
    n: int


def auc(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> Auc:
    """Area under the ROC curve by counting pairs (Mann-Whitney U), ties half.

    With `groups`, only pairs of the same group are compared and pooled over groups: the chance
    that among two candidates of one prompt, one right and one wrong, the right one scores higher.

    Args:
      scores: float [N]; NaN means no score: left out.
      labels: bool [N]; True is right.
      groups: [N] of ids (integers or strings), or None for one group.

    Raises:
      ValueError: lengths differ.
    """
    from scipy.stats import rankdata

    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, bool)
    group = None if groups is None or not len(groups) else np.asarray(groups)
    shapes = {x.shape for x in (scores, labels, group) if x is not None}
    if scores.ndim != 1 or len(shapes) > 1:
        raise ValueError(f"auc: need scores, labels and groups of one length, got {shapes}")
    keep = ~np.isnan(scores)
    n = int(keep.sum())
    if n == 0:
        return Auc(None, 0)
    s, right = scores[keep], labels[keep]
    if group is None:
        own, sizes, rights = rankdata(s), np.array([n]), np.array([float(right.sum())])
    else:
        g = np.unique(group[keep], return_inverse=True)[1]
        sizes, rights = np.bincount(g), np.bincount(g, weights=right)
        # Groups one after the other: a rank less those of groups before is the rank in the group.
        ranks = rankdata(g * n + rankdata(s, "dense") - 1)
        own = ranks - (np.cumsum(sizes) - sizes)[g]
    won = float(own[right].sum() - (rights * (rights + 1) / 2).sum())
    pairs = float(rights @ (sizes - rights))
    return Auc(won / pairs if pairs else None, n)
