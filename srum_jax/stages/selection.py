"""Which candidates are trained on: scores joined to images, the choice among them, advantages.

Pure functions of the records that `generate` (or `ingest`) and `score` leave.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from srum_jax.config import TrainConfig
from srum_jax.rewards import judge, maps


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A generated image with its scores, in brief: what choosing and the order of rows need.

    Latents and masks stay where they lie: `place` is the candidate's number among the records of
    images, `judged` among those of scores. grid: shape (h, w, p·p·Z) of its latent; size (H, W);
    boxes [R, 4]; scores [R] and image_score in [-1, 1]; masked: some region has a mask. advantages
    [R] and image_advantage in [-1, 1]: what `advantages` makes of the scores, for objectives that
    read these in their place.
    """

    id: str
    prompt_id: int
    prompt: str
    place: int
    grid: tuple[int, int, int]
    size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    image_score: float
    judged: int | None = None
    masked: bool = False
    advantages: np.ndarray | None = None
    image_advantage: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Scores:
    """What is kept of a score record: its number, the image's status, and fields of a Candidate."""

    status: str
    image_score: float
    boxes: np.ndarray
    scores: np.ndarray
    judged: int | None = None
    masked: bool = False


_UNJUDGED = _Scores(judge.OK, 0.0, np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


def regions_of(record: Mapping[str, Any], proposer: str) -> list[Mapping[str, Any]]:
    """The regions of a score record that are trained on: the proposer's that have a score."""
    return [r for r in record["regions"] if r["proposer"] == proposer and r["status"] == judge.OK]


def _scores(record: Mapping[str, Any], place: int, proposer: str) -> _Scores:
    regions = regions_of(record, proposer)
    return _Scores(
        status=record["image_status"],
        image_score=float(record["image_score"]),
        boxes=np.array([r["bbox"] for r in regions], np.float32).reshape(-1, 4),
        scores=np.array([r["score"] for r in regions], np.float32),
        judged=place,
        masked=any(r.get("mask", b"") for r in regions),
    )


def candidates(
    drawn: Iterable[Mapping[str, Any]],
    scored: Iterable[Mapping[str, Any]] | None,
    proposer: str,
    *,
    first: int = 0,
) -> tuple[list[Candidate], int]:
    """(candidates with a score, how many have none), joined by id; regions of `proposer`.

    drawn: summaries of the images' records, in order · scored: the score records. Of each prompt
    only the `first` drawn count; 0: all. Without `scored` nobody judged them: no regions, and an
    image score of 0. Raises ValueError where the two stages do not hold the same candidates.
    """
    by_id = {r["id"]: _scores(r, place, proposer) for place, r in enumerate(scored or ())}
    found, left_out = [], 0
    for place, record in enumerate(drawn):
        if first and record["k"] >= first:
            continue
        if scored is not None and record["id"] not in by_id:
            raise ValueError(
                f"candidate {record['id']} has no score record: run the score stage again"
            )
        score = by_id.get(record["id"], _UNJUDGED)
        if score.status != judge.OK:
            left_out += 1
            continue
        found.append(
            Candidate(
                id=record["id"],
                prompt_id=int(record["prompt_id"]),
                prompt=record["prompt"],
                place=place,
                grid=tuple(record["latent"]),
                size=tuple(record["image"][:2]),
                boxes=score.boxes,
                scores=score.scores,
                image_score=score.image_score,
                judged=score.judged,
                masked=score.masked,
            )
        )
    if not found:
        raise ValueError(
            f"none of the {left_out} candidates has a score: look at the statuses that the score "
            "stage counted"
        )
    return found, left_out


def by_prompt(found: Sequence[Candidate]) -> dict[int, list[Candidate]]:
    """The candidates of each prompt, in order."""
    groups: dict[int, list[Candidate]] = collections.defaultdict(list)
    for candidate in found:
        groups[candidate.prompt_id].append(candidate)
    return groups


def choose(found: Sequence[Candidate], c: TrainConfig) -> tuple[list[Candidate], dict[str, int]]:
    """(the candidates trained on, counts of what was left out), as the train section says.

    Prompts first, by what choosing among their candidates gains (train.min_gain); then
    `select`; then the least score. Raises ValueError if nothing is left.
    """
    gains = {p: gain(group) for p, group in by_prompt(found).items()}
    gaining = [x for x in found if gains[x.prompt_id] >= c.min_gain]
    selected = select(gaining, c.select)
    chosen = [x for x in selected if x.image_score >= c.min_score]
    if not chosen:
        raise ValueError(
            f"train.min_gain = {c.min_gain} and train.min_score = {c.min_score} leave none "
            f"of {len(found)} candidates: the largest gain of a prompt is "
            f"{max(gains.values()):.3f}, the best score {max(x.image_score for x in found):.3f}; "
            "lower them"
        )
    return chosen, {
        "prompts of too little gain": sum(value < c.min_gain for value in gains.values()),
        "best scored too low": len(selected) - len(chosen),
    }


def gain(group: Sequence[Candidate]) -> float:
    """How far the best image score of a prompt's candidates lies above their mean, in [0, 2)."""
    scores = [c.image_score for c in group]
    return max(0.0, max(scores) - math.fsum(scores) / len(scores))


def select(found: Sequence[Candidate], rule: str) -> list[Candidate]:
    """Every candidate ("all"), or each prompt's first of the best image score ("best_of_k")."""
    if rule == "all":
        return list(found)
    return [max(group, key=lambda c: c.image_score) for group in by_prompt(found).values()]


def advantages(found: Sequence[Candidate], chosen: Sequence[Candidate]) -> list[Candidate]:
    """`chosen` with the advantages of their scores, centred within each prompt's group of `found`.

    Advantages are clipped, so they come after the choice: the best may tie with the second.
    """
    groups = by_prompt(found)
    width = max(map(len, groups.values()))
    image = np.full((len(groups), width), np.nan)
    regions = []
    for p, group in enumerate(groups.values()):
        image[p, : len(group)] = [c.image_score for c in group]
        regions.append([c.scores for c in group] + [np.zeros(0)] * (width - len(group)))
    image, regions = maps.group_advantages(image, regions)
    centred = {
        c.id: {"image_advantage": float(image[p, k]), "advantages": regions[p][k]}
        for p, group in enumerate(groups.values())
        for k, c in enumerate(group)
    }
    return [dataclasses.replace(c, **centred[c.id]) for c in chosen]
