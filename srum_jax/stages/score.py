"""Stage `score`: the model judges the candidates that `generate` left, shard by shard.

Leaves shards "scores" beside TFDS metadata, and `examples.json` with pictures for the report. The
regions of the config's first proposer make the image's score; those of the others are scored and
stored beside them, under their own name, to be measured.
"""

import collections
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from srum_jax.config import Config, ScoreConfig, TrainConfig
from srum_jax.core import files
from srum_jax.core.files import write_json
from srum_jax.data import images as pictures
from srum_jax.data import masks, shards
from srum_jax.rewards import judge, maps
from srum_jax.rewards.boxes.regions import PromptedImage, Proposals, ProposedRegion, Proposer
from srum_jax.stages import (
    calibration,
    draw_and_judge,
    judges,
    loading,
    selection,
    shard_worker,
)
from srum_jax.stages.judges import JudgePanel
from srum_jax.stages.manifest import Manifest, Outcome, Workdir, candidates_of, run_stage
from srum_jax.stages.preflight import Checks

NAME = "scores"
COMPARISON = "comparison.json"
ScoredCandidate = tuple[dict[str, Any], judge.Judgement]  # id, prompt_id, k · what was judged
EXAMPLES = 8  # candidates of the report: half of them the best, half the worst of a prompt


def check(cfg: Config, work: Workdir, found: Checks) -> None:
    """Candidates that are there or will be, and a judge that can be opened."""
    found.needs(work, candidates_of(cfg, work).name)
    judges.check(cfg, found)


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Scores every candidate of this round; finished shards are kept.

    Raises FileNotFoundError or ValueError where the candidates are missing or damaged.
    """
    candidates = candidates_of(cfg, work)
    inputs = {"candidates": Manifest.read(candidates).hash, **judges.fingerprints(cfg)}

    def body(folder: epath.Path) -> Outcome:
        records, here = shards.read(candidates), loading.own_mesh(cfg, work, mesh)
        with jax.set_mesh(here), loading.measured() as spent:
            opened = loading.base(cfg, work, here, want=("model",))
            prompts = [record["prompt"] for record in records.summaries()]
            scenes = judges.decomposed(prompts, opened, cfg, here, folder / judges.SCENES)
            panel = judges.panel(opened, cfg, here, scenes=scenes, seed=cfg.seed + work.round)
            train = cfg.train if "train" in cfg.stages else None
            outcome = score(records, folder, cfg.score, panel, train)
            compared = compare(records, folder, cfg.score, panel)
        if jax.process_index() == 0:
            found = calibration.calibration(shards.read(folder), compared)
            write_json(folder / "calibration.json", found)
        counts = {**outcome.counts, **counted_scenes(scenes), **panel.counts}
        return dataclasses.replace(outcome, counts=counts, **dataclasses.asdict(spent))

    # The candidates' hash covers the weights: the model judges what the same model drew.
    sections = ("model", "weights", "score", "compute.dtype")
    return run_stage("score", cfg, work, sections=sections, inputs=inputs, body=body)


def counted_scenes(scenes: judges.Scenes | None) -> dict[str, int]:
    """{"prompts by <who decomposed them>": how many}; empty where nobody had to."""
    sources = collections.Counter(scene.source for scene in (scenes or {}).values())
    return {f"prompts by {source}": count for source, count in sorted(sources.items())}


def score(
    records: Sequence[dict[str, Any]],
    folder: epath.PathLike,
    cfg: ScoreConfig,
    panel: JudgePanel,
    train: TrainConfig | None = None,
) -> Outcome:
    """Scores the candidates `records` into `folder`, going on where it stopped.

    train: whose thresholds the first scores are checked by, before the rest is paid for.

    records: as `generate` writes them, images uint8 [H,W,3]. Every host scores its own shards, and
    the first one finishes. Counts: candidates, regions, and "images <status>", "regions <status>"
    of the first proposer.
    """
    folder = epath.Path(folder)
    masked = "sam" in cfg.proposers
    features = shards.score_features(masks=masked, answers=True)
    sizes = shards.shard_sizes(len(records), cfg.shard_size)

    def make(ranges: shard_worker.Ranges) -> Iterator[list[ScoredCandidate]]:
        seen: list[ScoredCandidate] = []
        for part in shard_worker.read_ahead(records, ranges):
            scored = score_shard(part, panel)
            yield scored  # and kept, whatever follows
            if train and not selection.tells(columns(seen)):
                seen += scored
                selection.check_thresholds(columns(seen), train)

    encode = functools.partial(score_record, masked=masked)
    shard_worker.make_all(folder, NAME, features, sizes, make, title="score", encode=encode)
    outputs = {"scores": ".", "examples": "examples.json", "calibration": "calibration.json"}
    if jax.process_index():  # the first process's manifest is the stage's
        return Outcome(outputs, {}, len(records))
    scored = shards.read(folder)
    counts = count_statuses(scored, cfg.proposers[0])
    write_examples(folder, records, scored, cfg.proposers[0])
    return Outcome(outputs, counts, len(records))


def columns(scored: Sequence[ScoredCandidate]) -> selection.PromptScores:
    """What thresholds are checked by."""
    judged = [judgement for _, judgement in scored]
    return selection.PromptScores(
        np.array([ids["prompt_id"] for ids, _ in scored], np.int64),
        np.array([one.image_score for one in judged], np.float64),
        tuple(one.image_status for one in judged),
    )


def score_shard(records: Sequence[dict[str, Any]], panel: JudgePanel) -> list[ScoredCandidate]:
    """The candidates of a shard with the panel's judgements. Raises BadInput where an external
    judge cannot be asked."""
    with panel.answering(len(records)):
        judged = draw_and_judge.judge(records, panel)
    ids = [{key: record[key] for key in ("id", "prompt_id", "k")} for record in records]
    return list(zip(ids, judged, strict=True))


def score_record(scored: ScoredCandidate, *, masked: bool = False) -> dict[str, Any]:
    """The score record of a candidate, with the regions of all proposers, with `masked` also their
    masks."""
    ids, judgement = scored

    def stored(region: judge.RegionJudgement) -> dict[str, Any]:
        mask = {"mask": b"" if region.mask is None else masks.encode(region.mask)} if masked else {}
        return {
            "bbox": np.array(region.bbox, np.float32),
            "score": np.float32(region.score),
            "status": region.status,
            "label": region.label,
            "proposer": region.proposer,
            **mask,
        }

    return {
        **ids,
        "regions": [stored(region) for region in judgement.regions],
        "image_score": np.float32(judgement.image_score),
        "image_status": judgement.image_status,
        "answers": stored_answers(judgement),
        "coverage": np.float32(judgement.coverage),
        "image_rank": np.float32(judgement.rank),
    }


def stored_answers(judgement: judge.Judgement) -> str:
    """Every answer behind a judgement, as `shards.score_features` describes it."""
    parts = [(-1, judgement.answers), *((r, x.answers) for r, x in enumerate(judgement.regions))]
    rows = [
        [
            *(r, one.kind, one.about, round(one.p, 6) if one.status == judge.OK else None),
            *(one.status, *([one.judge] if one.judge else [])),
        ]
        for r, answers in parts
        for one in answers
    ]
    return json.dumps(rows, separators=(",", ":"))


def compare(
    records: Sequence[dict[str, Any]], folder: epath.Path, cfg: ScoreConfig, panel: JudgePanel
) -> dict[str, Any] | None:
    """The image scores of the first `cfg.compare` candidates by the panel's other judge.

    {"with", "candidates": [{"id", "status", "score"}]}, kept in comparison.json and made once, by
    the first process; None in others, and where nothing is compared.
    """
    if panel.other is None or jax.process_index():
        return None
    path = folder / COMPARISON
    if found := files.kept(path):
        return found
    name, other = panel.other
    first = [records[i] for i in range(min(cfg.compare, len(records)))]
    some = draw_and_judge.prompted_images(first)
    with panel.answering(len(some)):
        judged = other.judge(proposals(some, folder, panel.proposers[0]))
    found = [
        {
            "id": one.id,
            "status": judgement.image_status,
            **({"score": judgement.image_score} if judgement.image_status == judge.OK else {}),
        }
        for one, judgement in zip(some, judged, strict=True)
    ]
    compared = {"with": name, "candidates": found}
    write_json(path, compared)
    return compared


def proposals(images: Sequence[PromptedImage], folder: epath.Path, proposer: Proposer) -> Proposals:
    """The first images' regions as `proposer` found them for the scores in `folder`, which every
    further judge is shown too; proposed now where there are no scores."""
    try:
        scored = shards.read(folder)
    except FileNotFoundError:
        return Proposals.of(proposer, images)
    found = [
        tuple(ProposedRegion(tuple(map(float, r["bbox"]))) for r in _of(scored[i], proposer.name))
        for i in range(len(images))
    ]
    return Proposals(images, found, proposer.name, proposer.separates)


def count_statuses(scored: Sequence[dict[str, Any]], proposer: str) -> dict[str, int]:
    """{"candidates", "regions", "images <status>", "regions <status>"}, regions of `proposer`, and
    "images of some answers", which have a score though some answers could not be read."""
    counts: collections.Counter[str] = collections.Counter(candidates=0, regions=0)
    for record in scored:
        counts["candidates"] += 1
        counts[f"images {record['image_status']}"] += 1
        if record["image_status"] == judge.OK and record.get("coverage", 1.0) < 1:
            counts["images of some answers"] += 1
        for region in _of(record, proposer):
            counts["regions"] += 1
            counts[f"regions {region['status']}"] += 1
    return dict(counts)


def _of(record: dict[str, Any], proposer: str) -> list[dict[str, Any]]:
    return [region for region in record["regions"] if region["proposer"] == proposer]


# ----------------------------------------------------------------------------------- the examples


def choose_examples(
    scored: Iterable[dict[str, Any]], category_of: Callable[[int], str], count: int = EXAMPLES
) -> list[int]:
    """Places of the best and the worst scored candidate of a few prompts.

    Prompts whose candidates differ most come first, one of each category before a second of any;
    `category_of(place)` is asked of few. Candidates without a score are left out.
    """
    groups: dict[int, list[tuple[float, int]]] = {}
    for place, record in enumerate(scored):
        if np.isfinite(record["image_score"]):
            pair = (float(record["image_score"]), place)
            groups.setdefault(int(record["prompt_id"]), []).append(pair)
    ends = sorted(((max(g), min(g)) for g in groups.values()), key=lambda e: e[1][0] - e[0][0])
    turns: collections.Counter[str] = collections.Counter()
    ordered = []
    for rank, (best, worst) in enumerate(ends[: 4 * count]):
        category = category_of(best[1])
        ordered.append((turns[category], rank, best[1], worst[1]))
        turns[category] += 1
    chosen = [dict.fromkeys((best, worst)) for *_, best, worst in sorted(ordered)]
    return list(itertools.chain(*chosen))[:count]


def write_examples(
    folder: epath.Path,
    records: Sequence[dict[str, Any]],
    scored: shards.ShardRecords,
    proposer: str,
) -> None:
    """`examples.json` and its pictures: chosen candidates, boxes, and token weights.

    The weights are by the released rule, from the regions of `proposer` and the image's score.
    """
    examples = []
    for place in choose_examples(scored.summaries(), lambda place: records[place]["category"]):
        record, result = records[place], scored[place]
        image = f"examples/{record['id']}.png"
        (folder / "examples").mkdir(parents=True, exist_ok=True)
        files.write_bytes(folder / image, [pictures.encode_png(record["image"])])
        grid = record["latent"].shape[:2]
        examples.append(
            {
                "id": record["id"],
                "prompt": record["prompt"],
                "image": image,
                "latent_grid": list(grid),
                "boxes": [_for_json(region) for region in result["regions"]],
                "image_score": float(result["image_score"]),
                "image_status": result["image_status"],
                "token_weights": _weights(
                    _of(result, proposer), result["image_score"], record["image"].shape[:2], grid
                ),
            }
        )
    write_json(folder / "examples.json", examples)


def _for_json(region: dict[str, Any]) -> dict[str, Any]:
    """A region for JSON; a score that is none is left out."""
    kept = {key: region[key] for key in ("status", "label", "proposer")}
    kept["bbox"] = [float(x) for x in region["bbox"]]
    if np.isfinite(region["score"]):
        kept["score"] = round(float(region["score"]), 4)
    return kept


def _weights(
    found: Sequence[dict[str, Any]],
    image_score: float,
    size: tuple[int, int],
    grid: tuple[int, int],
) -> list[list[float]]:
    """Rows of token weights by the released rule; regions without a score are left out."""
    dense = maps.release_map(
        np.array([region["bbox"] for region in found], np.float32).reshape(-1, 4),
        np.array([region["score"] for region in found]),
        np.array([region["status"] == judge.OK for region in found], bool),
        float(image_score),
        size,
    )
    return np.asarray(maps.sample_map(dense, *grid)).round(4).tolist()
