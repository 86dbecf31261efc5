"""Several judges of the same images: their mean, their spread, and how far two of them agree.

Owns what is done with judgements once they are made; which judge made them does not matter.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from srum_jax.rewards.boxes.regions import Box
from srum_jax.rewards.judge import OK, Judgement, RegionJudgement

TOO_FEW = "too few judges"  # fewer than asked for gave a score, for various reasons


@dataclasses.dataclass(frozen=True)
class Combined:
    """One image as several judges see it together.

    spread: standard deviation of the image scores that were averaged, weighted like their mean, in
    [0, 1]; NaN without a score · region_spread: the same for each region of `judgement`.
    """

    judgement: Judgement
    spread: float
    region_spread: tuple[float, ...]


def combine(
    judged: Sequence[Sequence[Judgement]], *, least: int, weights: Sequence[float] | None = None
) -> list[Combined]:
    """The mean of those judges that gave a score, for every image and region.

    judged: for each judge its judgements of the same images, in the same order. Regions are the
    same where their boxes are identical; those that a judge does not have count as not answered.
    A score is "ok" if `least` judges or more gave one; else the status is the one that all judges
    share, or TOO_FEW. weights: positive, one a judge; they count relative to each other among those
    who answered. A label is that of the heaviest judge who scored the region and names one.
    Raises ValueError for differing numbers of images, a box that a judge has twice, `least` or
    weights out of reach.
    """
    weights = np.ones(len(judged)) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (len(judged),) or not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(
            f"weights {weights.tolist()} of {len(judged)} judges: one above 0 for each"
        )
    if not 1 <= least <= len(judged):
        raise ValueError(f"least {least} of {len(judged)} judges: give 1 to {len(judged)}")
    if len({len(mine) for mine in judged}) > 1:
        raise ValueError(f"the judges saw {[len(mine) for mine in judged]} images: not the same")
    return [_together(views, weights, least) for views in zip(*judged, strict=True)]


def _together(views: Sequence[Judgement], weights: np.ndarray, least: int) -> Combined:
    regions = [_by_box(view) for view in views]
    found, spreads = [], []
    for box in dict.fromkeys(box for mine in regions for box in mine):
        seen = [mine.get(box) for mine in regions]
        said = [(r.score, r.status) if r else (float("nan"), TOO_FEW) for r in seen]
        score, status, spread = _mean(said, weights, least)
        names = [(w, r.label) for w, r in zip(weights, seen, strict=True) if r and r.status == OK]
        names = [(w, label) for w, label in names if label]
        label = max(names, key=lambda pair: pair[0])[1] if names and status == OK else ""
        one = next(r for r in seen if r)
        found.append(RegionJudgement(box, score, status, label, (), one.proposer, one.mask))
        spreads.append(spread)
    said = [(view.image_score, view.image_status) for view in views]
    score, status, spread = _mean(said, weights, least)
    return Combined(Judgement(tuple(found), score, status, {}), spread, tuple(spreads))


def _by_box(view: Judgement) -> dict[Box, RegionJudgement]:
    by_box = {tuple(region.bbox): region for region in view.regions}
    if len(by_box) < len(view.regions):
        raise ValueError("a judge has one box twice in an image: its regions cannot be told apart")
    return by_box


def _mean(
    said: Sequence[tuple[float, str]], weights: np.ndarray, least: int
) -> tuple[float, str, float]:
    """(score, status, spread) of (score, status) from every judge."""
    ok = np.array([status == OK for _, status in said])
    if ok.sum() < least:
        statuses = {status for _, status in said}
        status = statuses.pop() if len(statuses) == 1 else TOO_FEW
        return float("nan"), status, float("nan")
    scores, share = np.array([score for score, _ in said])[ok], weights[ok] / weights[ok].sum()
    mean = float(share @ scores)
    return mean, OK, float(np.sqrt(share @ (scores - mean) ** 2))


# ------------------------------------------------------------------------------------ side by side


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Two lists of scores of the same things.

    rank: Spearman's correlation of those that both scored, in [-1, 1]; NaN where it is undefined:
    fewer than two pairs, or a list without differences · same_sign: share of those pairs that lie
    on the same side of 0; NaN without pairs · both, only_first, only_second, neither: how many.
    """

    rank: float
    same_sign: float
    both: int
    only_first: int
    only_second: int
    neither: int


def agreement(first: np.ndarray, second: np.ndarray) -> Agreement:
    """How far two judges agree; scores [N] each, NaN where there is none.

    Raises ValueError for other shapes and infinite scores.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"scores {list(first.shape)} and {list(second.shape)}: give two lists [N]")
    if np.isinf(first).any() or np.isinf(second).any():
        raise ValueError("a score is infinite")
    from scipy import stats  # only here: importing it takes half a second

    one, two = ~np.isnan(first), ~np.isnan(second)
    both = one & two
    a, b = first[both], second[both]
    defined = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
    return Agreement(
        rank=float(stats.spearmanr(a, b).statistic) if defined else float("nan"),
        same_sign=float(np.mean(np.sign(a) == np.sign(b))) if len(a) else float("nan"),
        both=int(both.sum()),
        only_first=int((one & ~two).sum()),
        only_second=int((two & ~one).sum()),
        neither=int((~one & ~two).sum()),
    )
