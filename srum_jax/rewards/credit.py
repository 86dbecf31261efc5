"""Whom the faults of a picture are charged to: one score an object that the prompt demands.

Owns the rules by which what a judge said of regions and of the whole becomes scores of objects, and
these advantages: every region is an attempt at one object; a relation or a size that does not hold
is charged to the objects it is stated of; an object that is not there to the place where the model
puts it in its other candidates; and each object is compared with its own kind among the candidates
of its prompt. Pure functions of NumPy arrays; who calls them is `stages/object_credit.py`.

Scores lie in [-1, 1], labels are places in the prompt's list of demanded objects, L of them. Boxes
are (x0, y0, x1, y1) in pixels, upper ends excluded. Axes: R regions, N boxes.
"""

from collections.abc import Sequence

import numpy as np

from srum_jax.rewards.maps import centred

NONE = -1  # the label of a region that is no attempt at any demanded object
WORST = -1.0


def charged(scores: np.ndarray, holds: float | np.ndarray) -> np.ndarray:
    """Scores of objects of which something more is demanded, which holds with probability `holds`.

    2·p·h − 1 with p = (s + 1)/2: right only if both are. s where h is 1 or NaN (nobody knows), −1
    where it is 0. A relation is charged so to both of its objects.
    """
    holds = np.where(np.isnan(holds), 1.0, holds)
    return (np.asarray(scores, np.float64) + 1) * holds - 1


def attempts(
    labels: np.ndarray, scores: np.ndarray, counts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """(labels [R], scores [R], labels of the objects that are missing).

    labels: int [R], of which object a region shows most, NONE for none · counts: how often each of
    the L objects is demanded. Of each object the best so many regions are its own, with their
    scores. Every other region is a wrong attempt at an object that has none, in order, and where
    all have theirs one too many: its label stays. Either has the score WORST.
    """
    labels, scores = np.array(labels, int), np.array(scores, np.float64)
    left, others = list(counts), []
    for place in np.argsort(-scores, kind="stable"):
        if labels[place] != NONE and left[labels[place]]:
            left[labels[place]] -= 1
        else:
            others.append(place)
    missing = [label for label, count in enumerate(left) for _ in range(count)]
    for place in others:
        scores[place] = WORST
        if missing:
            labels[place] = missing.pop(0)
    return labels, scores, missing


def place_of_missing(here: np.ndarray, there: np.ndarray) -> np.ndarray | None:
    """The box [4] where an object that a picture lacks would be; None where nobody knows.

    here: boxes [N, 4] of what the picture has · there: of the object in the prompt's other
    candidates, which is the model's own layout. Of these the one of which `here` leaves most free;
    of several the one that overlaps most with the others, which is the most usual place.
    """
    there = np.asarray(there, np.float64).reshape(-1, 4)
    if not len(there):
        return None
    taken = _shared(there, np.asarray(here, np.float64).reshape(-1, 4)).max(axis=1, initial=0.0)
    usual = _shared(there, there).sum(axis=1)
    return there[np.lexsort((np.arange(len(there)), -usual, taken.round(6)))[0]]


def _shared(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The share of each box [N, 4] that each of others [M, 4] covers, [N, M]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return np.clip(high - low, 0, None).prod(axis=2) / np.maximum(area, 1e-9)[:, None]


def object_advantages(
    scores: Sequence[np.ndarray], labels: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Scores of the regions of one prompt's candidates to advantages, float32 in [-1, 1].

    scores and labels: [R] of each candidate. A region's baseline and deviation are those of the
    regions with its label, of all the prompt's candidates; of a region without an object those of
    all regions. Centred as `maps.group_advantages`: with one label for all it is the same.
    """
    ends = np.cumsum([len(part) for part in scores])[:-1]
    values = np.concatenate([np.asarray(part, np.float64) for part in scores] or [np.zeros(0)])
    names = np.concatenate([np.asarray(part, int) for part in labels] or [np.zeros(0, int)])
    found = centred(values)
    for label in set(names.tolist()) - {NONE}:
        found[names == label] = centred(values[names == label])
    return np.split(found.astype(np.float32), ends)
