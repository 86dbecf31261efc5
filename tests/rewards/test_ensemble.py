"""Several judges: what is averaged, what is no score, and how agreement is counted."""

import dataclasses
import itertools
import types

import numpy as np
import pytest
from scipy import stats

from srum_jax.rewards import ensemble, external, written
from srum_jax.rewards.ensemble import TOO_FEW, EnsembleJudge, agreement, combine
from srum_jax.rewards.judge import OK, UNPARSED, Judgement, RegionJudgement, SoftAnswer

BOXES = [(0.0, 0.0, 8.0, 8.0), (4.0, 4.0, 9.0, 9.0), (1.0, 1.0, 3.0, 3.0)]
NAN = float("nan")


def judgement(whole, *scores, status=UNPARSED, boxes=BOXES, labels=("", "", "")):
    """A judgement; None in place of a score is `status`."""

    def scored(score):
        return (NAN, status) if score is None else (score, OK)

    parts = zip(boxes, scores, labels, strict=False)
    found = tuple(RegionJudgement(b, *scored(s), label, (0.5,), "sam") for b, s, label in parts)
    return Judgement(found, *scored(whole), {})


def combined(*judges, min_judges=1):
    (one,) = combine([[judge] for judge in judges], min_judges=min_judges)
    return one


def test_the_mean():
    one = combined(judgement(0.5, 1.0, -1.0), judgement(-0.5, 0.0, -1.0), min_judges=2)
    assert (one.image_score, one.image_status) == (0.0, OK)
    assert [r.score for r in one.regions] == [0.5, -1.0]
    assert {(r.status, r.proposer, r.p) for r in one.regions} == {(OK, "sam", ())}
    assert [r.bbox for r in one.regions] == BOXES[:2]


def test_the_mean_is_of_those_who_answered():
    judges = judgement(1.0, 1.0, 1.0), judgement(-1.0, None, -1.0), judgement(None, 0.0, -1.0)
    one = combined(*judges)
    assert one.image_score == 0.0
    assert [r.score for r in one.regions] == pytest.approx([0.5, -1 / 3])


@pytest.mark.parametrize("least", [1, 2, 3])
def test_too_few_judges_are_no_score(least):
    judges = judgement(0.5, 0.5), judgement(0.1, None), judgement(None, None)
    one = combined(*judges, min_judges=least)
    assert one.image_status == (OK if least <= 2 else TOO_FEW)
    (region,) = one.regions
    assert region.status == (OK if least == 1 else TOO_FEW)
    for score, status in ((one.image_score, one.image_status), (region.score, region.status)):
        assert np.isnan(score) == (status != OK)


def test_a_status_that_all_share_is_kept():
    judges = judgement(None, None, status="timeout"), judgement(None, None, status="timeout")
    assert combined(*judges).image_status == "timeout"
    assert combined(*judges).regions[0].status == "timeout"
    mixed = combined(judges[0], judgement(None, None))
    assert mixed.image_status == mixed.regions[0].status == TOO_FEW


def test_regions_are_matched_by_their_boxes():
    judges = judgement(0.0, 0.2, 0.4), judgement(0.0, 0.8, -0.2, boxes=[BOXES[1], BOXES[2]])
    one = combined(*judges)
    assert [r.bbox for r in one.regions] == BOXES
    assert [r.score for r in one.regions] == pytest.approx([0.2, 0.6, -0.2])
    strict = combined(*judges, min_judges=2)
    assert [r.status for r in strict.regions] == [TOO_FEW, OK, TOO_FEW]
    order = combined(*judges[::-1])
    by_box = {r.bbox: r.score for r in order.regions}
    assert by_box == pytest.approx({r.bbox: r.score for r in one.regions})


def test_the_label_is_of_the_first_who_scored_and_names_one():
    judges = [
        judgement(0.0, 0.5, None, None, labels=("", "a", "")),
        judgement(0.0, 0.5, 0.5, None, labels=("b", "", "b")),
        judgement(0.0, 0.5, 0.5, None, labels=("c", "c", "c")),
    ]
    assert [r.label for r in combined(*judges).regions] == ["b", "c", ""]


def test_one_judge_alone_changes_nothing():
    judge = judgement(0.3, -0.2, None)
    one = combined(judge)
    for before, after in zip(judge.regions, one.regions, strict=True):
        assert (after.bbox, after.status) == (before.bbox, before.status)
        np.testing.assert_equal(after.score, before.score)
    assert one.image_score == 0.3


def test_the_mean_stays_within_the_scores():
    rng = np.random.default_rng(0)
    for _ in range(200):
        scores = rng.uniform(-1, 1, rng.integers(1, 6))
        one = combined(*(judgement(s) for s in scores))
        assert scores.min() - 1e-12 <= one.image_score <= scores.max() + 1e-12


def test_wrong_calls_are_named():
    judge = judgement(0.0, 0.1)
    for least, message in ((0, "min_judges 0 of 2"), (3, "min_judges 3 of 2")):
        with pytest.raises(ValueError, match=message):
            combined(judge, judge, min_judges=least)
    with pytest.raises(ValueError, match=r"\[1, 2\] images"):
        combine([[judge], [judge] * 2], min_judges=1)
    with pytest.raises(ValueError, match="twice"):
        combined(judge, judgement(0.0, 0.1, 0.2, boxes=[BOXES[0]] * 2))


def test_an_ensemble_asks_all_its_judges_alike():
    asked = []

    class Judge:
        def __init__(self, score):
            self.score = score

        def judge(self, proposed, *, whole=True, params=None):
            asked.append((proposed, whole, params))
            return [judgement(self.score)]

    proposed = types.SimpleNamespace(images=[types.SimpleNamespace(prompt="p")])
    both = EnsembleJudge((Judge(0.5), Judge(-0.1)))
    (one,) = both.judge(proposed, whole=False, params="new")
    assert one.image_score == pytest.approx(0.2) and asked == [(proposed, False, "new")] * 2


# -- choosing among a prompt's candidates ---------------------------------------------------------


def ranked(*judges, prompts=None, **how):
    """Image scores and ranks of what judges say of the candidates of one prompt."""
    judged = [[judgement(score) for score in scores] for scores in judges]
    prompts = prompts or ["p"] * len(judges[0])
    found = combine(judged, min_judges=1, prompts=prompts, **how)
    return found, [one.rank for one in found]


def test_judges_of_different_scales_count_alike():
    """One judge says 0.90 to 0.93, the other -1 to 1: the mean is the second one's opinion."""
    sharp, wide = [0.93, 0.92, 0.91, 0.90], [0.0, -1.0, 0.1, -0.5]
    found, ranks = ranked(sharp, wide)
    assert np.argmax(ranks) == 0 and np.argmax([one.image_score for one in found]) == 2
    assert ranks == pytest.approx([0.75, 0.375, 0.625, 0.25])
    _, stretched = ranked([100 * (s - 0.915) / 2 for s in sharp], wide)
    assert stretched == pytest.approx(ranks)  # any rising scale


@pytest.mark.parametrize("seed", range(20))
def test_a_candidate_that_a_judge_failed_to_score_never_wins(seed):
    rng = np.random.default_rng(seed)
    scores = [[float(s) if rng.random() > 0.3 else None for s in rng.uniform(-1, 1, 8)]
              for _ in range(3)]  # fmt: skip
    found, ranks = ranked(*scores)
    answered = [sum(mine[i] is not None for mine in scores) for i in range(8)]
    for i, one in enumerate(found):
        assert (one.image_status == OK) == (answered[i] == max(answered) > 0)
        assert np.isnan(one.rank) == np.isnan(one.image_score) == (one.image_status != OK)
    best = int(np.nanargmax(ranks))
    assert answered[best] == max(answered)


def test_the_candidate_of_one_judge_alone():
    """What was wrong: 0.9 by the one who answered beat the mean of 0.9 and 0.1."""
    found, _ = ranked([0.9, 0.9, 0.2], [0.1, None, 0.0])
    assert [one.image_status for one in found] == [OK, TOO_FEW, OK]
    other, _ = ranked([0.9, 0.9], [0.1, None], prompts=["p", "q"])
    assert [one.image_status for one in other] == [OK, OK]  # they are not compared


def test_answers_of_all_judges_are_kept():
    said = SoftAnswer("whole", -1, 0.9, OK)
    judged = [dataclasses.replace(judgement(0.8, 0.1), answers=(said,)) for _ in range(2)]
    regions = [dataclasses.replace(one.regions[0], answers=(said,)) for one in judged]
    judged = [dataclasses.replace(o, regions=(r,)) for o, r in zip(judged, regions, strict=True)]
    (one,) = combine([[j] for j in judged], min_judges=1, names=("self", "external"))
    assert [(a.kind, a.judge) for a in one.answers] == [("whole", "self"), ("whole", "external")]
    assert [a.judge for a in one.regions[0].answers] == ["self", "external"]


# -- agreement --------------------------------------------------------------------------


def test_agreement_counts():
    got = agreement([0.1, NAN, 0.5, NAN, -0.2, 0.9], [0.3, 0.1, NAN, NAN, -0.9, -0.1])
    assert got.both == 3
    assert got.rank == pytest.approx(0.5) and got.same_sign == pytest.approx(2 / 3)


def test_agreement_is_of_ranks():
    rng = np.random.default_rng(0)
    a = rng.choice(np.linspace(-1, 1, 9), 50)
    b = np.where(rng.random(50) < 0.2, NAN, 0.5 * a + rng.normal(0, 0.3, 50))
    both = np.isfinite(b)
    assert agreement(a, b).rank == pytest.approx(stats.spearmanr(a[both], b[both]).statistic)
    assert agreement(a, a**3).rank == pytest.approx(1)
    assert agreement(a, -a).rank == pytest.approx(-1)
    back = agreement(b, a)
    assert back.rank == pytest.approx(agreement(a, b).rank) and back.both == both.sum()


@pytest.mark.parametrize(
    "first,second", [([], []), ([0.1], [0.2]), ([0.1, 0.1], [0.2, 0.3]), ([NAN, 0.1], [0.1, NAN])]
)
def test_agreement_that_is_undefined(first, second):
    assert np.isnan(agreement(first, second).rank)
    assert np.isnan(agreement(second, first).rank)


def test_agreement_of_what_is_no_list_of_scores():
    for first, second in itertools.permutations(([0.1], [0.1, 0.2]), 2):
        with pytest.raises(ValueError, match="two lists"):
            agreement(first, second)
    with pytest.raises(ValueError, match="infinite"):
        agreement([np.inf], [0.1])
    with pytest.raises(ValueError, match="two lists"):
        agreement([[0.1]], [[0.1]])


def test_the_status_is_its_own():
    assert ensemble.TOO_FEW not in (*written.STATUSES, *external.STATUSES)
