"""How far two judges of the same things agree, beyond what chance would give.

Owns Cohen's kappa for verdicts and Spearman's rank correlation for grades, with bootstrap
intervals. A function of its arguments only; the bootstrap's randomness is its seed.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from srum_jax.evals import stats

KAPPA, SPEARMAN = "Cohen's kappa", "Spearman's rho"


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Two judges on the same requests.

    n: requests that both judged · missing: those that one of them did not, left out · exact: share
    of n in which they say the same, None where n is 0 · measure: KAPPA or SPEARMAN · value: in
    [-1, 1]; None where it is not defined, as where a judge always says the same · interval: 95 %,
    by resampling requests; None where too many resamples leave the value undefined.
    """

    n: int
    missing: int
    exact: float | None
    measure: str
    value: float | None
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.measure} is not defined over {self.n} requests"
        between = f" [{self.interval[0]:.2f}, {self.interval[1]:.2f}]" if self.interval else ""
        same = f"the same in {100 * self.exact:.1f} % of {self.n} requests"
        return f"{same}, {self.measure} {self.value:.2f}{between}"


def agreement(
    first: Sequence[float | None],
    second: Sequence[float | None],
    *,
    graded: bool | None = None,
    seed: int = 0,
    draws: int = 2000,
) -> Agreement:
    """How far two judges agree on the same requests, in order; None or NaN is no judgement.

    graded: whether judgements are grades, compared by rank, or verdicts 0 and 1; None: verdicts
    where there are no others · seed, draws: of the bootstrap, over requests. Raises ValueError for
    lengths that differ, and for verdicts that are neither 0 nor 1.

    Sources: J. Cohen, "A coefficient of agreement for nominal scales", Educational and
    Psychological Measurement 20 (1960); C. Spearman, American Journal of Psychology 15 (1904),
    ties by mean ranks.
    """
    if len(first) != len(second):
        raise ValueError(f"agreement: {len(first)} judgements beside {len(second)}")
    pairs = np.array([first, second], np.float64).T.reshape(-1, 2)  # None becomes NaN
    there = pairs[~np.isnan(pairs).any(axis=1)]
    binary = bool(np.isin(there, (0.0, 1.0)).all())
    if graded is False and not binary:
        raise ValueError("agreement: verdicts must be 0 or 1; give graded=True for grades")
    graded = not binary if graded is None else graded
    measure = SPEARMAN if graded else KAPPA
    missing = len(pairs) - len(there)
    if not len(there):
        return Agreement(0, missing, None, measure, None, None)
    exact = float((there[:, 0] == there[:, 1]).mean())
    value, resampled = (_spearman if graded else _kappa)(there, seed, draws)
    interval = stats.percentiles(resampled) if np.isfinite(value) else None
    value = value if np.isfinite(value) else None
    return Agreement(len(there), missing, exact, measure, value, interval)


def _kappa(pairs: np.ndarray, seed: int, draws: int) -> tuple[float, np.ndarray]:
    """Kappa of verdicts [N, 2], and of resampled ones [draws]."""
    table = np.eye(4)[(2 * pairs[:, 0] + pairs[:, 1]).astype(int)]  # both no, no yes, yes no, both
    sums = np.vstack([table.sum(axis=0), stats.resampled_sums(table, seed, draws)])
    no, only_second, only_first, yes = sums.T / len(pairs)
    one, other = only_first + yes, only_second + yes
    chance = one * other + (1 - one) * (1 - other)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(chance < 1 - 1e-12, (no + yes - chance) / (1 - chance), np.nan)
    return float(found[0]), found[1:]


def _spearman(pairs: np.ndarray, seed: int, draws: int) -> tuple[float, np.ndarray]:
    """Spearman's rho of grades [N, 2], and of resampled ones [draws]."""
    distinct, counts = np.unique(pairs, axis=0, return_counts=True)
    places = [np.unique(column, return_inverse=True)[1] for column in distinct.T]
    rng, block = np.random.default_rng(seed), max(1, 2**22 // len(distinct))
    found = [_rank_correlation(places, counts[None])]
    for start in range(0, draws, block):
        size = min(block, draws - start)
        weights = rng.multinomial(len(pairs), counts / len(pairs), size=size)
        found.append(_rank_correlation(places, weights))
    value, *resampled = np.concatenate(found)
    return float(value), np.array(resampled)


def _rank_correlation(places: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Correlation of mean ranks [draws], where pair i, of the ranked values `places`, comes
    weights[:, i] times, integers [draws, P]."""
    weights = weights.astype(np.float64)
    n = weights.sum(axis=1, keepdims=True)
    ranks = []
    for place in places:
        order = np.argsort(place, kind="stable")
        starts = np.flatnonzero(np.diff(place[order], prepend=-1))
        times = np.add.reduceat(weights[:, order], starts, axis=1)  # of each distinct value
        mean_rank = np.cumsum(times, axis=1) - (times - 1) / 2
        ranks.append(mean_rank[:, place] - (n + 1) / 2)
    one, other = ranks
    both = (weights * one * other).sum(axis=1)
    spread = [(weights * rank**2).sum(axis=1) for rank in ranks]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(
            (spread[0] > 0) & (spread[1] > 0), both / np.sqrt(spread[0] * spread[1]), np.nan
        )
