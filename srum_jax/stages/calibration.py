"""How far a run's scores can be trusted, without a verifier: `calibration.json` of stage `score`.

Owns what is counted (scores by tenths, failures) and how two ways of scoring the same candidates
are compared. What an exact program says of the scores is `evaluate`'s; the report shows both.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srum_jax.rewards import ensemble, judge

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
    """{"images": {"histogram", "status"}, "regions": {proposer: the same}, "comparison": …}.

    comparison: as the stage writes it; of the candidates that it names, the agreement of both ways
    to score ({"with", "candidates", "both", "rank", "same_sign", "status"}); what cannot be
    measured is absent.
    """
    regions: dict[str, list[tuple[float, str]]] = collections.defaultdict(list)
    for record in scored:
        for region in record["regions"]:
            regions[region["proposer"]].append((float(region["score"]), region["status"]))
    images = [(float(record["image_score"]), record["image_status"]) for record in scored]
    found: dict[str, Any] = {
        "images": _seen(images),
        "regions": {name: _seen(rows) for name, rows in sorted(regions.items())},
    }
    if comparison is not None:
        found["comparison"] = _compared(scored, comparison)
    return found


def _seen(rows: Sequence[tuple[float, str]]) -> dict[str, Any]:
    status = collections.Counter(status for _, status in rows)
    return {
        "histogram": histogram([score for score, status in rows if status == judge.OK]),
        "status": dict(sorted(status.items())),
    }


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
