"""Which candidates are trained on: scores joined to images, the choice among them, advantages.

Pure functions of the records that `generate` (or `ingest`) and `score` leave.
"""

import array
import collections
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from srum_jax.config import TrainConfig
from srum_jax.core.errors import BadInput
from srum_jax.rewards import credit, judge, maps

NO_REGIONS = np.zeros((0, 5), np.float32)  # boxes and scores


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A generated image with its scores, in brief: what choosing and the order of rows need.

    Latents and masks stay where they lie: `place` is the candidate's number among the records of
    images, `judged` among those of scores. grid: shape (h, w, p·p·Z) of its latent; size (H, W);
    boxes [R, 4]; scores [R] and image_score in [-1, 1]; masked: some region has a mask. rank: among
    its prompt's candidates, where several judges scored them, else NaN. advantages [R] and
    image_advantage in [-1, 1]: what `advantages` makes of the scores, for objectives that read
    these in their place.
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
    rank: float = float("nan")
    advantages: np.ndarray | None = None
    image_advantage: float | None = None


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Arrays of one shape but for their first axis, one behind the other.

    values: [N, ...] · ends: int64 [E], where in `values` each of them ends.
    """

    values: np.ndarray
    ends: np.ndarray

    def __getitem__(self, i: int) -> np.ndarray:
        return self.values[self.ends[i - 1] if i else 0 : self.ends[i]]


def regions_of(record: Mapping[str, Any], proposer: str) -> list[Mapping[str, Any]]:
    """The regions of a score record that are trained on: the proposer's that have a score."""
    return [r for r in record["regions"] if r["proposer"] == proposer and r["status"] == judge.OK]


@dataclasses.dataclass(frozen=True)
class ScoreColumns:
    """Score records by columns, in their order.

    ids: bytes [E] · ok, masked: bool [E] · image_scores, ranks: float64 [E] · regions: float32 [R,
    5] of each, its boxes and scores.
    """

    ids: np.ndarray
    ok: np.ndarray
    masked: np.ndarray
    image_scores: np.ndarray
    ranks: np.ndarray
    regions: Ragged

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]], proposer: str) -> "ScoreColumns":
        """Of score records, with the regions of `proposer` that have a score."""
        ids, flags = [], (array.array("b"), array.array("b"))
        image_scores, ranks = array.array("d"), array.array("d")
        values, ends = array.array("f"), array.array("q")
        for record in records:
            ids.append(record["id"].encode())
            image_scores.append(record["image_score"])
            ranks.append(record.get("image_rank", np.nan))
            regions = regions_of(record, proposer)
            for region in regions:
                values.extend((*region["bbox"], region["score"]))
            ends.append(len(values) // 5)
            flags[0].append(record["image_status"] == judge.OK)
            flags[1].append(any(region.get("mask", b"") for region in regions))
        ok, masked = (np.array(flag, bool) for flag in flags)
        boxes = np.asarray(values, np.float32).reshape(-1, 5)
        regions = Ragged(boxes, np.asarray(ends, np.int64))
        numbers = np.asarray(image_scores), np.asarray(ranks)
        return cls(np.array(ids, bytes), ok, masked, *numbers, regions)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Numbers of the records with these ids, int64; -1 where there is none."""
        if not len(self.ids):
            return np.full(len(ids), -1)
        order = np.argsort(self.ids)
        last = len(order) - 1
        found = order[np.minimum(np.searchsorted(self.ids, ids, sorter=order), last)]
        return np.where(self.ids[found] == ids, found, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates(Sequence[Candidate]):
    """Candidates by columns, each made when it is asked for: a run may have millions.

    rows: [E] of COLUMNS and an `id`, bytes; `text` is a place in `texts`, `shape` one in `shapes`
    (grid and size), `judged` a number of a score record, -1 for none · labels: of which object of
    the prompt each region of a score record is an attempt, where that is known
    (`object_credit.py`) · image_advantages [E] and advantages: see `Candidate`.
    """

    COLUMNS = (
        *(("prompt_id", "i8"), ("place", "i8"), ("judged", "i8"), ("image_score", "f8")),
        *(("text", "i4"), ("shape", "i4"), ("rank", "f8")),
    )

    rows: np.ndarray
    texts: Sequence[str]
    shapes: Sequence[tuple[tuple[int, int, int], tuple[int, int]]]
    scores: ScoreColumns | None
    labels: Ragged | None = None
    image_advantages: np.ndarray | None = None
    advantages: Ragged | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Candidate:
        prompt_id, place, judged, image_score, text, shape, rank, name = self.rows[i].tolist()
        grid, size = self.shapes[shape]
        regions, masked = NO_REGIONS, False
        if judged >= 0:
            regions, masked = self.scores.regions[judged], bool(self.scores.masked[judged])
        centred = self.advantages is not None
        return Candidate(
            id=name.decode(),
            prompt_id=prompt_id,
            prompt=self.texts[text],
            place=place,
            grid=grid,
            size=size,
            boxes=regions[:, :4],
            scores=regions[:, 4],
            image_score=image_score,
            judged=judged if judged >= 0 else None,
            masked=masked,
            rank=rank,
            advantages=self.advantages[i] if centred else None,
            image_advantage=float(self.image_advantages[i]) if centred else None,
        )

    def take(self, places: np.ndarray) -> "Candidates":
        """Those at `places`, or where that is True; without advantages."""
        return Candidates(self.rows[places], self.texts, self.shapes, self.scores, self.labels)


def candidates(
    drawn: Iterable[Mapping[str, Any]],
    scored: Iterable[Mapping[str, Any]] | None,
    proposer: str,
    *,
    first: int = 0,
) -> tuple[Candidates, int]:
    """(candidates with a score, how many have none), joined by id; regions of `proposer`.

    drawn: summaries of the images' records, in order · scored: the score records. Of each prompt
    only the `first` drawn count; 0: all. Without `scored` nobody judged them: no regions, and an
    image score of 0. Raises ValueError where the two stages do not hold the same candidates.
    """
    scores = None if scored is None else ScoreColumns.of(scored, proposer)
    texts: dict[str, int] = {}
    shapes: dict[tuple, int] = {}
    names, columns = [], [array.array("q") for _ in range(4)]
    for place, record in enumerate(drawn):
        if first and record["k"] >= first:
            continue
        names.append(record["id"].encode())
        shape = (tuple(record["latent"]), tuple(record["image"][:2]))
        values = (
            *(record["prompt_id"], place, texts.setdefault(record["prompt"], len(texts))),
            shapes.setdefault(shape, len(shapes)),
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    ids = np.array(names, bytes)
    rows = np.zeros(len(ids), [*Candidates.COLUMNS, ("id", ids.dtype)])
    rows["id"], rows["judged"], rows["rank"] = ids, -1, np.nan
    for name, column in zip(("prompt_id", "place", "text", "shape"), columns, strict=True):
        rows[name] = column
    everything = Candidates(rows, tuple(texts), tuple(shapes), scores)
    found = everything if scores is None else _judged(everything)
    left_out = len(everything) - len(found)
    if not len(found):
        raise ValueError(
            f"none of the {left_out} candidates has a score: look at the statuses that the score "
            "stage counted"
        )
    return found, left_out


def _judged(found: Candidates) -> Candidates:
    """Those that have a score, each with its score record."""
    rows, scores = found.rows.copy(), found.scores
    judged = scores.find(rows["id"])
    for missing in np.flatnonzero(judged < 0)[:1]:
        name = rows["id"][missing].decode()
        raise ValueError(f"candidate {name} has no score record: run the score stage again")
    rows["judged"], rows["image_score"] = judged, scores.image_scores[judged]
    rows["rank"] = scores.ranks[judged]
    return dataclasses.replace(found, rows=rows[scores.ok[judged]])


def spared(found: Candidates, held: Collection[int]) -> tuple[Candidates, int]:
    """(candidates of other prompts than `held`, how many are of these). Given data has no others
    to hold back; where it has less than ten times as many, all are trained on."""
    prompts = found.rows["prompt_id"]
    inside = np.isin(prompts, np.fromiter(held, np.int64, len(held)))
    if 10 * len(held) > len(np.unique(prompts)):
        inside[:] = False
    return (found.take(~inside), int(inside.sum())) if inside.any() else (found, 0)


def choose(found: Candidates, c: TrainConfig) -> tuple[Candidates, dict[str, int]]:
    """(the candidates trained on, counts of what was left out), as the train section says.

    Prompts first, by what choosing among their candidates gains (train.min_gain and
    train.min_gain_quantile); then `select`, or `pairs` where the objective compares; then the least
    score, in the same two ways, of a pair that of its better one. Raises ValueError if nothing is
    left.
    """
    gained = gains(found)
    _, first = np.unique(found.rows["prompt_id"], return_index=True)  # a gain is a prompt's
    least_gain = max(c.min_gain, _quantile(gained[first], c.min_gain_quantile))
    chooses = pairs if c.objective == "dpo" else select
    selected = chooses(found.take(gained >= least_gain), c.select)
    scores = selected.rows["image_score"]
    if c.objective == "dpo":
        scores = np.repeat(scores[::2], 2)
    chosen = selected.take(scores >= max(c.min_score, _quantile(scores, c.min_score_quantile)))
    if not len(chosen):
        raise ValueError(
            f"train.min_gain = {c.min_gain} and train.min_score = {c.min_score} leave none "
            f"of {len(found)} candidates: the largest gain of a prompt is {gained.max():.3f}, the "
            f"best score {found.rows['image_score'].max():.3f}; lower them"
        )
    little = found.rows["prompt_id"][gained < least_gain]
    return chosen, {
        "prompts of too little gain": len(np.unique(little)),
        "best scored too low": len(selected) - len(chosen),
    }


def _quantile(values: np.ndarray, share: float) -> float:
    """The least of `values` of which that share lies below; no bound of 0 or without values."""
    if not share or not len(values):
        return -np.inf
    return float(np.quantile(values, share, method="higher"))


@dataclasses.dataclass(frozen=True)
class PromptScores:
    """Image scores by candidate: prompt_ids int64 [E] · scores float64 [E], NaN unless the status,
    one of [E], is "ok"."""

    prompt_ids: np.ndarray
    scores: np.ndarray
    statuses: tuple[str, ...]


FEWEST = 32  # scores that say whether a threshold lets everything pass
FEWEST_PROMPTS = 8  # that say whether it lets nothing pass


def tells(given: PromptScores) -> bool:
    """Whether there are enough scores to check thresholds by."""
    count = len(np.unique(given.prompt_ids))
    return len(given.statuses) >= FEWEST and count >= FEWEST_PROMPTS


def check_thresholds(given: PromptScores, c: TrainConfig) -> None:
    """Raises BadInput where none of the candidates scored so far, of FEWEST_PROMPTS or more, would
    be trained on, or where a threshold above -1 holds for every single one, chosen or not, of
    FEWEST or more: a judge that calls everything right chooses nothing."""
    if len(np.unique(given.prompt_ids)) < FEWEST_PROMPTS:
        return
    ok = np.array([status == judge.OK for status in given.statuses], bool)
    statuses = ", ".join(f"{n} {s}" for s, n in collections.Counter(given.statuses).most_common())
    begun = f"the first {len(ok)} candidates are scored, and"
    kept = "What is scored is kept: change that and give the same command."
    if not ok.any():
        raise BadInput(f"{begun} none has a score ({statuses}). {kept}")
    scores = given.scores[ok]
    said = ", ".join(f"{x:.2f}" for x in np.quantile(scores, (0, 0.5, 0.9, 1)))
    said = f"their scores (least, median, 90 %, largest) are {said}"
    relative = "train.min_score_quantile keeps a share of the prompts whatever the judge's scale is"
    gained = _gains(given.prompt_ids[ok], scores)
    if gained.max() < c.min_gain or scores.max() < c.min_score:
        raise BadInput(
            f"{begun} train.min_gain = {c.min_gain} and train.min_score = {c.min_score} would let "
            f"none pass: {said}, the largest gain of a prompt is {gained.max():.2f}. Lower them; "
            f"{relative}. {kept}"
        )
    bound = c.min_score > -1 and c.select == "best_of_k"
    if bound and len(scores) >= FEWEST and scores.min() >= c.min_score:
        raise BadInput(
            f"{begun} train.min_score = {c.min_score} would let every one of them pass: {said}. "
            f"Raise it, or set it to -1.0 to train on every prompt's best; {relative}. {kept}"
        )


def gains(found: Candidates) -> np.ndarray:
    """How far the best image score of each candidate's prompt lies above the mean of that prompt's,
    float64 [E] in [0, 2)."""
    return _gains(found.rows["prompt_id"], found.rows["image_score"])


def _gains(prompt_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    _, group, counts = np.unique(prompt_ids, return_inverse=True, return_counts=True)
    best = np.full(len(counts), -np.inf)
    np.maximum.at(best, group, scores)
    means = np.bincount(group, scores, len(counts)) / counts
    return np.maximum(best - means, 0)[group]


def select(found: Candidates, rule: str) -> Candidates:
    """Every candidate ("all"), or each prompt's first of the best image score ("best_of_k"), where
    several judges scored of the best rank, in the order in which the prompts come."""
    if rule == "all":
        return found
    prompts, scores = found.rows["prompt_id"], found.rows["image_score"]
    _, comes, group = np.unique(prompts, return_index=True, return_inverse=True)
    ranks = np.nan_to_num(found.rows["rank"])  # a run has ranks of all that have a score, or none
    order = np.lexsort((np.arange(len(group)), -scores, -ranks, group))
    _, best = np.unique(group[order], return_index=True)
    return found.take(order[best][np.argsort(comes)])


def pairs(found: Candidates, rule: str) -> Candidates:
    """Pairs of a prompt's candidates, one behind the other, the better one first.

    The best with the worst ("best_of_k"), or also the second best with the second worst and so on,
    each in one pair at most ("all"), as long as the one lies above the mean of the prompt's images
    and the other below it: so ties are never a pair, nor two wrong pictures of a prompt with a
    right one. By `image_values`. Raises ValueError where there is no pair.
    """
    values = image_values(found)
    order = np.lexsort((np.arange(len(values)), -values, found.rows["prompt_id"]))
    _, starts = np.unique(found.rows["prompt_id"][order], return_index=True)
    places = []
    for group in np.split(order, starts[1:]):
        mean = values[group].mean()
        most = 1 if rule == "best_of_k" else len(group) // 2
        for better, worse in zip(group[:most], group[::-1][:most], strict=True):
            if values[better] > mean > values[worse]:
                places += [better, worse]
    if not places:
        raise ValueError(
            f"of {len(found)} candidates none is better than another of its prompt: "
            'train.objective = "dpo" learns from pairs, so it needs prompts with two candidates or '
            "more whose image scores differ"
        )
    return found.take(np.array(places))


def image_values(found: Candidates) -> np.ndarray:
    """By what a prompt's images compare, float64 [E] in [-1, 1]: their scores, or where several
    judges scored their ranks on the scale of scores."""
    ranks = found.rows["rank"]
    return np.where(np.isnan(ranks), found.rows["image_score"], 2 * ranks - 1)


def advantages(found: Candidates, chosen: Candidates) -> Candidates:
    """`chosen` with the advantages of their scores, centred within each prompt's group of `found`,
    those of regions by object where their labels are known.

    Of images that several judges scored by their ranks, on the scale of scores.

    Advantages are clipped, so they come after the choice: the best may tie with the second.
    """
    groups: dict[int, list[int]] = collections.defaultdict(list)
    for i, prompt in enumerate(found.rows["prompt_id"].tolist()):
        groups[prompt].append(i)
    width = max(map(len, groups.values()))
    image = np.full((len(groups), width), np.nan)
    regions, values = [], image_values(found)
    for p, group in enumerate(groups.values()):
        image[p, : len(group)] = values[group]
        regions.append([found[i].scores for i in group] + [np.zeros(0)] * (width - len(group)))
    image, regions = maps.group_advantages(image, regions)
    if found.labels is not None:
        regions = [
            credit.object_advantages(
                [found[i].scores for i in group],
                [found.labels[found.rows["judged"][i]] for i in group],
            )
            for group in groups.values()
        ]
    at = {i: (p, k) for p, group in enumerate(groups.values()) for k, i in enumerate(group)}
    # Places among the images' records ascend in `found`.
    places = np.searchsorted(found.rows["place"], chosen.rows["place"]).tolist()
    parts = [regions[p][k] for p, k in map(at.__getitem__, places)]
    ragged = Ragged(np.concatenate(parts), np.cumsum([len(part) for part in parts]))
    of_images = np.array([image[at[i]] for i in places])
    return dataclasses.replace(chosen, image_advantages=of_images, advantages=ragged)
