"""How far a run's scores can be trusted, without a verifier: `calibration.json` of stage `score`.

Owns what is counted (scores by tenths, failures, answers by kind of question) and how two ways of
scoring the same candidates are compared. What an exact program says of the scores is `evaluate`'s;
the report shows both.
"""

import collections
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srum_jax.rewards import ensemble, judge
from srum_jax.rewards.answer_table import PADDING, AnswerTable, judgement_table

BINS = 20  # of [-1, 1]


def histogram(scores: Sequence[float]) -> list[int]:
    """How many scores lie in each of BINS equal parts of [-1, 1]; NaN in none."""
    scores = np.asarray(scores, np.float64)
    # 32-bit scores may pass the ends by rounding.
    inside = np.clip(scores[np.isfinite(scores)], -1, 1)
    return np.histogram(inside, BINS, (-1, 1))[0].tolist()


def calibration(
    scored: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """{"images": {"histogram", "status"}, "regions": {proposer: the same}, "questions": {kind:
    {"mean", the mean probability of what speaks for the prompt, "status"}}, "comparison": …}.

    comparison: as the stage writes it; of the candidates that it names, the agreement of both ways
    to score ({"with", "candidates", "both", "rank", "same_sign", "status"}); what cannot be
    measured is absent.
    """
    table = judgement_table([judgement(record) for record in scored])
    names = sorted(set(table.proposer[table.status != PADDING]))
    found: dict[str, Any] = {
        "images": _counts(table.image_scores, table.image_status),
        "regions": {
            str(name): _counts(table.scores[at], table.status[at])
            for name in names
            for at in [table.proposer == name]
        },
        "questions": _questions(table.region_answers) | _questions(table.image_answers),
    }
    if comparison is not None:
        found["comparison"] = _compared(scored, comparison)
    return found


def judgement(record: Mapping[str, Any]) -> judge.Judgement:
    """A score record as the judge gave it; what is not stored (p, parts, masks) is empty.

    Raises ValueError naming the record for answers that are not as `shards.score_features` says.
    """
    answers: dict[int, list[judge.SoftAnswer]] = collections.defaultdict(list)
    try:
        for region, kind, about, p, status in json.loads(record.get("answers", "[]")):
            p = float("nan") if p is None else float(p)
            answers[int(region)].append(judge.SoftAnswer(str(kind), int(about), p, str(status)))
    except (ValueError, TypeError) as e:
        raise ValueError(f"score record {record['id']}: its answers are damaged: {e}") from e
    regions = tuple(
        judge.RegionJudgement(
            tuple(one["bbox"]),
            float(one["score"]),
            one["status"],
            one["label"],
            (),
            one["proposer"],
            answers=tuple(answers[place]),
        )
        for place, one in enumerate(record["regions"])
    )
    score = float(record["image_score"])
    return judge.Judgement(regions, score, record["image_status"], {}, tuple(answers[-1]))


def _counts(scores: np.ndarray, status: np.ndarray) -> dict[str, Any]:
    return {"histogram": histogram(scores[status == judge.OK]), "status": _counted(status)}


def _counted(status: np.ndarray) -> dict[str, int]:
    """How often each status occurs, padding apart."""
    names, counts = np.unique(status[status != PADDING], return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}


def _questions(answers: AnswerTable) -> dict[str, Any]:
    """{kind: {"mean", "status"}} of the answers; no mean where none could be read."""
    found = {}
    for kind in sorted(set(answers.kind[answers.kind != PADDING])):
        p, status = answers.p[answers.kind == kind], answers.status[answers.kind == kind]
        mean = {"mean": float(p[status == judge.OK].mean())} if (status == judge.OK).any() else {}
        found[str(kind)] = {**mean, "status": _counted(status)}
    return found


def _compared(scored: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any]) -> dict[str, Any]:
    own = {record["id"]: float(record["image_score"]) for record in scored}
    others = comparison["candidates"]
    agreed = ensemble.agreement(
        np.array([own[one["id"]] for one in others]),
        np.array([one.get("score", np.nan) for one in others]),
    )
    measured = {"rank": agreed.rank, "same_sign": agreed.same_sign}
    return {
        "with": comparison["with"],
        "candidates": len(others),
        "both": agreed.both,
        **{name: value for name, value in measured.items() if np.isfinite(value)},
        "status": dict(sorted(collections.Counter(one["status"] for one in others).items())),
    }
