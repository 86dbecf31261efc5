"""Scores of regions charged to the objects of their prompts: `train.credit = "objects"`.

Owns the wiring of `rewards/credit.py` over the records that `score` leaves. What a prompt demands
is read as the judge read it: by the grammar, or from the scenes that the stage kept.
"""

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srum_jax.core.errors import BadInput
from srum_jax.rewards import credit, judge, question_templates
from srum_jax.rewards.question_templates import Decomposition
from srum_jax.stages.selection import Candidates, Ragged, regions_of
from srum_jax.stages.training_set import StoredArrays


@dataclasses.dataclass(frozen=True)
class Objects:
    """The regions of a candidate as attempts at its prompt's objects: boxes float32 [R, 4], scores
    float64 [R] in [-1, 1], labels int [R]; missing: labels of objects that none attempts."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    missing: tuple[int, ...] = ()


def by_object(
    found: Candidates, stored: StoredArrays, scenes: Mapping[str, Decomposition] | None = None
) -> Candidates:
    """The candidates with charged scores in place of the judge's, labels, and, behind the regions
    that the judge saw, one for each object that is missing and of which another candidate of the
    prompt says where it would be.

    Regions of prompts that nobody could decompose stay as they are. Raises BadInput where nobody
    judged the candidates.
    """
    if stored.scored is None:
        raise BadInput('train.credit = "objects" needs the scores of the stage score')
    regions, fields = found.scores.regions, ("regions", "answers")
    fields = tuple(name for name in fields if name in stored.scored.features)
    made = [regions[i] for i in range(len(found.scores.ids))]
    labels = [np.full(len(part), credit.NONE) for part in made]
    for group in _groups(found):
        scene = _scene(found.texts[found.rows["text"][group[0]]], scenes)
        if not scene.objects:
            continue
        judged = found.rows["judged"][group].tolist()
        records = [stored.scored.fields(j, fields) for j in judged]
        parts = [_objects(record, stored.proposer, scene) for record in records]
        for j, part in zip(judged, with_missing(parts), strict=True):
            made[j] = np.concatenate([part.boxes, part.scores[:, None]], axis=1).astype(np.float32)
            labels[j] = part.labels
    ends = np.cumsum([len(part) for part in made], dtype=np.int64)
    charged = Ragged(np.concatenate(made), ends)
    scores = dataclasses.replace(found.scores, regions=charged)
    return dataclasses.replace(found, scores=scores, labels=Ragged(np.concatenate(labels), ends))


def with_missing(parts: Sequence[Objects]) -> list[Objects]:
    """The candidates of one prompt, each with a region of the score -1 for every missing object of
    which another one says where it would be."""
    places = collections.defaultdict(list)  # of an object: (candidate, boxes of its right attempts)
    for k, part in enumerate(parts):
        for label in set(part.labels.tolist()) - {credit.NONE}:
            places[label].append((k, part.boxes[(part.labels == label) & (part.scores > 0)]))
    return [
        _with_missing(part, {label: [b for j, b in at if j != k] for label, at in places.items()})
        for k, part in enumerate(parts)
    ]


def _with_missing(part: Objects, there: Mapping[int, Sequence[np.ndarray]]) -> Objects:
    boxes, labels = part.boxes, part.labels
    for label in part.missing:
        known = np.concatenate(there.get(label) or [np.zeros((0, 4), np.float32)])
        box = credit.place_of_missing(boxes, known)
        if box is not None:
            boxes = np.concatenate([boxes, np.float32(box)[None]])
            labels = np.append(labels, label)
    scores = np.append(part.scores, [credit.WORST] * (len(labels) - len(part.labels)))
    return Objects(boxes, scores, labels, part.missing)


def _groups(found: Candidates) -> list[list[int]]:
    """Places of the candidates of each prompt."""
    groups: dict[int, list[int]] = collections.defaultdict(list)
    for i, prompt in enumerate(found.rows["prompt_id"].tolist()):
        groups[prompt].append(i)
    return list(groups.values())


def _scene(prompt: str, scenes: Mapping[str, Decomposition] | None) -> Decomposition:
    return (
        (scenes or {}).get(prompt)
        or question_templates.decompose(prompt)
        or question_templates.whole(prompt)
    )


def _objects(record: Mapping[str, Any], proposer: str, scene: Decomposition) -> Objects:
    """The regions of a score record as attempts, faults of relation and sizes charged."""
    regions = regions_of(record, proposer)
    names = [spec.name for spec in scene.objects]
    shown = [names.index(r["label"]) if r["label"] in names else credit.NONE for r in regions]
    boxes = np.array([r["bbox"] for r in regions], np.float32).reshape(-1, 4)
    said = np.array([r["score"] for r in regions], np.float64)
    counts = [spec.count for spec in scene.objects]
    labels, scores, missing = credit.attempts(np.array(shown, int), said, counts)
    for label, holds in _demanded_besides(record, scene).items():
        scores = np.where(labels == label, credit.charged(scores, holds), scores)
    return Objects(boxes, scores, labels, tuple(missing))


def _demanded_besides(record: Mapping[str, Any], scene: Decomposition) -> dict[int, float]:
    """{object: probability that its relation and its size are as the prompt states, both where both
    are stated}; NaN where no answer tells."""
    said = collections.defaultdict(list)
    for region, kind, _, p, status, *_ in json.loads(record.get("answers", "[]")):
        if region < 0:
            said[kind].append(p if status == judge.OK else np.nan)
    holds: dict[int, list[float]] = collections.defaultdict(list)
    if scene.relation is not None:
        relations = [p for kind, some in said.items() if kind.startswith("relation") for p in some]
        known = [p for p in relations if not np.isnan(p)]
        for side in (scene.relation.subject, scene.relation.other):
            holds[side].append(float(np.mean(known)) if known else np.nan)
    sized = [i for i, spec in enumerate(scene.objects) if spec.size]
    for i, p in zip(sized, said["size"], strict=False):  # asked in the order of the objects
        holds[i].append(p)
    return {i: _all_of(some) for i, some in holds.items()}


def _all_of(chances: Sequence[float]) -> float:
    """The product of those that are known; NaN where none is."""
    known = [p for p in chances if not np.isnan(p)]
    return float(np.prod(known)) if known else float("nan")
