"""Several judges of the same images: their mean, and how far two of them agree.

Owns what is done with judgements once they are made; which judge made them does not matter.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from srum_jax.core.param_tree import Params
from srum_jax.rewards.boxes.regions import Box, Proposals
from srum_jax.rewards.judge import OK, Judge, Judgement, RegionJudgement

TOO_FEW = "too few judges"  # fewer than asked for gave a score, for various reasons


@dataclasses.dataclass(frozen=True)
class EnsembleJudge:
    """Several judges of the same regions; `min_judges` scores or more are one score, their mean."""

    judges: tuple[Judge, ...]
    min_judges: int = 1

    def judge(
        self, proposed: Proposals, *, whole: bool = True, params: Params | None = None
    ) -> list[Judgement]:
        """See `Judge`, and `combine`."""
        views = [one.judge(proposed, whole=whole, params=params) for one in self.judges]
        return combine(views, min_judges=self.min_judges)


def combine(judged: Sequence[Sequence[Judgement]], *, min_judges: int) -> list[Judgement]:
    """The mean of those judges that gave a score, for every image and region.

    judged: for each judge its judgements of the same images, in the same order. Regions are the
    same where their boxes are identical; those that a judge does not have count as not answered.
    A score is "ok" if `min_judges` or more gave one; else the status is the one that all judges
    share, or TOO_FEW. A label is that of the first judge who scored the region and names one.
    Raises ValueError for differing numbers of images, a box that a judge has twice, `min_judges`
    out of reach.
    """
    if not 1 <= min_judges <= len(judged):
        raise ValueError(f"min_judges {min_judges} of {len(judged)} judges: 1 to {len(judged)}")
    if len({len(mine) for mine in judged}) > 1:
        raise ValueError(f"the judges judged {[len(x) for x in judged]} images: not the same")
    return [_together(views, min_judges) for views in zip(*judged, strict=True)]


def _together(views: Sequence[Judgement], min_judges: int) -> Judgement:
    regions = [_by_box(view) for view in views]
    found = []
    for box in dict.fromkeys(box for mine in regions for box in mine):
        of_judges = [mine.get(box) for mine in regions]
        given = [(r.score, r.status) if r else (float("nan"), TOO_FEW) for r in of_judges]
        score, status = _mean(given, min_judges)
        labels = [r.label for r in of_judges if r and r.status == OK and r.label]
        label = labels[0] if labels and status == OK else ""
        one = next(r for r in of_judges if r)
        found.append(RegionJudgement(box, score, status, label, (), one.proposer, one.mask))
    given = [(view.image_score, view.image_status) for view in views]
    return Judgement(tuple(found), *_mean(given, min_judges), {})


def _by_box(view: Judgement) -> dict[Box, RegionJudgement]:
    by_box = {tuple(region.bbox): region for region in view.regions}
    if len(by_box) < len(view.regions):
        raise ValueError("a judge has one box twice in an image: its regions cannot be told apart")
    return by_box


def _mean(given: Sequence[tuple[float, str]], min_judges: int) -> tuple[float, str]:
    """(score, status) of (score, status) from every judge."""
    scores = [score for score, status in given if status == OK]
    if len(scores) >= min_judges:
        return float(np.mean(scores)), OK
    statuses = {status for _, status in given}
    return float("nan"), statuses.pop() if len(statuses) == 1 else TOO_FEW


# ------------------------------------------------------------------------------------ side by side


@dataclasses.dataclass(frozen=True)
class JudgeAgreement:
    """Two lists of scores of the same things.

    rank: Spearman's correlation of those that both scored, in [-1, 1]; NaN where it is undefined:
    fewer than two pairs, or a list without differences · same_sign: share of those pairs that lie
    on the same side of 0; NaN without pairs · both: how many pairs.
    """

    rank: float
    same_sign: float
    both: int


def agreement(first: np.ndarray, second: np.ndarray) -> JudgeAgreement:
    """How far two judges agree; scores float [N] each, NaN where there is none.

    Raises ValueError for other shapes and infinite scores.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"scores {list(first.shape)} and {list(second.shape)}: give two lists [N]")
    if np.isinf(first).any() or np.isinf(second).any():
        raise ValueError("a score is infinite")
    from scipy import stats  # only here: importing it takes half a second

    both = ~np.isnan(first) & ~np.isnan(second)
    a, b = first[both], second[both]
    defined = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
    return JudgeAgreement(
        rank=float(stats.spearmanr(a, b).statistic) if defined else float("nan"),
        same_sign=float(np.mean(np.sign(a) == np.sign(b))) if len(a) else float("nan"),
        both=int(both.sum()),
    )
