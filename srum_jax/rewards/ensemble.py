"""Several judges of the same images: what they say together, and how far two of them agree.

Owns what is done with judgements once they are made; which judge made them does not matter.

Judges' scales differ, so candidates of a prompt are compared by ranks: each judge ranks those that
it scored, and the mean of the ranks (`Judgement.rank`) is what choosing among them goes by; the
mean of the scores says how good a picture is. A candidate that fewer judges scored than another one
of its prompt has no score: it could be the better for what the missing one did not say.
"""

import dataclasses
import itertools
from collections.abc import Hashable, Sequence

import numpy as np

from srum_jax.core.param_tree import Params
from srum_jax.rewards.boxes.regions import Box, Proposals
from srum_jax.rewards.judge import OK, Judge, Judgement, RegionJudgement, SoftAnswer

TOO_FEW = "too few judges"  # fewer than asked for gave a score, for various reasons


@dataclasses.dataclass(frozen=True)
class EnsembleJudge:
    """Several judges of the same regions; `min_judges` scores or more are one score, their mean.

    names: of the judges, which their answers are kept under. The candidates of a prompt must be
    judged in one call to be ranked together.
    """

    judges: tuple[Judge, ...]
    min_judges: int = 1
    names: tuple[str, ...] = ()

    def judge(
        self, proposed: Proposals, *, whole: bool = True, params: Params | None = None
    ) -> list[Judgement]:
        """See `Judge`, and `combine`."""
        views = [one.judge(proposed, whole=whole, params=params) for one in self.judges]
        prompts = [one.prompt for one in proposed.images]
        return combine(views, min_judges=self.min_judges, prompts=prompts, names=self.names)


def combine(
    judged: Sequence[Sequence[Judgement]],
    *,
    min_judges: int,
    prompts: Sequence[Hashable] | None = None,
    names: Sequence[str] = (),
) -> list[Judgement]:
    """The mean of those judges that gave a score, for every image and region, and ranks.

    judged: for each judge its judgements of the same images, in the same order. Regions are the
    same where their boxes are identical; those that a judge does not have count as not answered.
    A score is "ok" if `min_judges` or more gave one; else the status is the one that all judges
    share, or TOO_FEW. A label is that of the first judge who scored the region and names one.
    prompts: of each image, by which they are compared, see the module; None: they are not · names:
    of the judges, in all answers; ("",) * N by default. The coverage is the mean of the judges'.
    Raises ValueError for differing numbers of images, a box that a judge has twice, `min_judges`
    out of reach.
    """
    if not 1 <= min_judges <= len(judged):
        raise ValueError(f"min_judges {min_judges} of {len(judged)} judges: 1 to {len(judged)}")
    if len({len(mine) for mine in judged}) > 1:
        raise ValueError(f"the judges judged {[len(x) for x in judged]} images: not the same")
    names = names or ("",) * len(judged)
    made = [_together(views, min_judges, names) for views in zip(*judged, strict=True)]
    return made if prompts is None else _ranked(made, judged, prompts)


def _ranked(
    made: Sequence[Judgement],
    judged: Sequence[Sequence[Judgement]],
    prompts: Sequence[Hashable],
) -> list[Judgement]:
    """The images with their ranks, and without a score those that fewer judges scored than another
    one of their prompt."""
    ok = np.array([[one.image_status == OK for one in mine] for mine in judged], bool)
    scores = np.array([[one.image_score for one in mine] for mine in judged], np.float64)
    scored = ok.sum(axis=0)
    found = list(made)
    places: dict[Hashable, list[int]] = {}
    for i, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(i)
    for group in places.values():
        kept = [i for i in group if scored[i] == scored[group].max()]
        ranks = np.full((len(judged), len(prompts)), np.nan)
        for row, mine, theirs in zip(ranks, ok, scores, strict=True):
            some = [i for i in kept if mine[i]]
            row[some] = _ranks(theirs[some])
        for i in group:
            if found[i].image_status != OK:
                continue
            if i not in kept:
                found[i] = dataclasses.replace(
                    found[i], image_score=float("nan"), image_status=TOO_FEW
                )
            else:
                found[i] = dataclasses.replace(found[i], rank=float(np.nanmean(ranks[:, i])))
    return found


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks of scores [N] in (0, 1), equal ones alike, whatever N is: the share that lies below,
    and half of what is equal."""
    below = (scores[:, None] > scores).sum(axis=1)
    equal = (scores[:, None] == scores).sum(axis=1)
    return (below + equal / 2) / max(1, len(scores))


def _named(answers: Sequence[SoftAnswer], name: str) -> tuple[SoftAnswer, ...]:
    return tuple(dataclasses.replace(one, judge=name) for one in answers)


def _together(views: Sequence[Judgement], min_judges: int, names: Sequence[str]) -> Judgement:
    regions = [_by_box(view) for view in views]
    found = []
    for box in dict.fromkeys(box for mine in regions for box in mine):
        of_judges = [mine.get(box) for mine in regions]
        given = [(r.score, r.status) if r else (float("nan"), TOO_FEW) for r in of_judges]
        score, status = _mean(given, min_judges)
        labels = [r.label for r in of_judges if r and r.status == OK and r.label]
        label = labels[0] if labels and status == OK else ""
        one = next(r for r in of_judges if r)
        pairs = zip(of_judges, names, strict=True)
        answers = itertools.chain(*(_named(r.answers, name) for r, name in pairs if r))
        how = (box, score, status, label, (), one.proposer, one.mask, tuple(answers))
        found.append(RegionJudgement(*how))
    given = [(view.image_score, view.image_status) for view in views]
    pairs = zip(views, names, strict=True)
    answers = itertools.chain(*(_named(view.answers, name) for view, name in pairs))
    coverage = float(np.mean([view.coverage for view in views]))
    return Judgement(tuple(found), *_mean(given, min_judges), {}, tuple(answers), coverage)


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
