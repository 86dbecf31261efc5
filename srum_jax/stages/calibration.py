"""How far a run's scores can be trusted, without a verifier: `calibration.json` of stage `score`.

Owns what is counted (scores by tenths, failures, answers by kind of question) and how two ways of
scoring the same candidates are compared. What an exact program says of the scores is `evaluate`'s;
the report shows both.
"""

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srum_jax.rewards import ensemble, judge
from srum_jax.rewards.answer_table import PADDING, judgement_table

BINS = 20  # of [-1, 1]
AT_ONCE = 256  # records that are held as a table


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
    {"mean", the mean probability of what speaks for the prompt, "status"}}, "coverage": {"mean",
    "least"} of the scored images where some answers could not be read, "comparison": …}.

    comparison: as the stage writes it; of the candidates that it names, the agreement of both ways
    to score ({"with", "candidates", "both", "rank", "same_sign", "status"}); what cannot be
    measured is absent.
    """
    images, regions, read = _Scores(), collections.defaultdict(_Scores), []
    of_regions, of_images = (collections.defaultdict(_Answers) for _ in range(2))
    for start in range(0, len(scored), AT_ONCE):
        part = [judgement(record) for record in scored[start : start + AT_ONCE]]
        read += [one.coverage for one in part if one.image_status == judge.OK]
        table = judgement_table(part)
        images.add(table.image_scores, table.image_status)
        for name in set(table.proposer[table.status != PADDING]):
            at = table.proposer == name
            regions[str(name)].add(table.scores[at], table.status[at])
        for found, answers in (
            (of_regions, table.region_answers),
            (of_images, table.image_answers),
        ):
            for kind in set(answers.kind[answers.kind != PADDING]):
                at = answers.kind == kind
                found[str(kind)].add(answers.p[at], answers.status[at])
    said = [
        {kind: found[kind].summary() for kind in sorted(found)} for found in (of_regions, of_images)
    ]
    made: dict[str, Any] = {
        "images": images.summary(),
        "regions": {name: regions[name].summary() for name in sorted(regions)},
        "questions": said[0] | said[1],
    }
    if read and min(read) < 1:
        made["coverage"] = {"mean": float(np.mean(read)), "least": min(read)}
    if comparison is not None:
        made["comparison"] = _compared(scored, comparison)
    return made


@dataclasses.dataclass
class _Scores:
    """Scores counted as they come: a histogram, and how often each status occurs."""

    histogram: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(BINS, int))
    status: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, scores: np.ndarray, status: np.ndarray) -> None:
        self.histogram += histogram(scores[status == judge.OK])
        self.status.update(_counted(status))

    def summary(self) -> dict[str, Any]:
        return {"histogram": self.histogram.tolist(), "status": dict(sorted(self.status.items()))}


@dataclasses.dataclass
class _Answers:
    """Answers to a kind of question: the sum of p where it could be read, and statuses."""

    total: float = 0.0
    status: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, p: np.ndarray, status: np.ndarray) -> None:
        self.total += float(p[status == judge.OK].sum(dtype=np.float64))
        self.status.update(_counted(status))

    def summary(self) -> dict[str, Any]:
        """No mean where none could be read."""
        read = self.status[judge.OK]
        mean = {"mean": self.total / read} if read else {}
        return {**mean, "status": dict(sorted((+self.status).items()))}


def judgement(record: Mapping[str, Any]) -> judge.Judgement:
    """A score record as the judge gave it; what is not stored (p, parts, masks) is empty.

    Raises ValueError naming the record for answers that are not as `shards.score_features` says.
    """
    answers: dict[int, list[judge.SoftAnswer]] = collections.defaultdict(list)
    try:
        for region, kind, about, p, status, *who in json.loads(record.get("answers", "[]")):
            p = float("nan") if p is None else float(p)
            given = judge.SoftAnswer(str(kind), int(about), p, str(status), *map(str, who))
            answers[int(region)].append(given)
    except (ValueError, TypeError) as e:  # too few columns or too many among them
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
    return judge.Judgement(
        regions,
        float(record["image_score"]),
        record["image_status"],
        {},
        tuple(answers[-1]),
        float(record.get("coverage", 1.0)),
        float(record.get("image_rank", "nan")),
    )


def _counted(status: np.ndarray) -> dict[str, int]:
    """How often each status occurs, padding apart."""
    names, counts = np.unique(status[status != PADDING], return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}


def _compared(scored: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any]) -> dict[str, Any]:
    others = comparison["candidates"]
    named = {one["id"] for one in others}
    own = {r["id"]: float(r["image_score"]) for r in scored if r["id"] in named}
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
