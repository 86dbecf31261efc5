"""Stage `score`: the model judges the candidates that `generate` left, work unit by work unit.

Leaves units "scores" beside TFDS metadata, and `examples.json` with pictures for the report. The
regions of the config's first proposer make the image's score; those of the others are scored and
stored beside them, under their own name, to be measured.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from srum_jax.config import Config, ScoreConfig
from srum_jax.core.files import write_json
from srum_jax.data import images as pictures
from srum_jax.data import units
from srum_jax.inference.text import Ask
from srum_jax.rewards import judge, maps, protocol, regions
from srum_jax.stages import model
from srum_jax.stages.manifest import Manifest, Outcome, Workdir, run_stage

NAME = "scores"
EXAMPLES = 8  # candidates shown in the report: half of them the best, half the worst of a prompt


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Scores every candidate of this round; finished units are kept.

    Raises FileNotFoundError or ValueError where the candidates are missing or damaged.
    """
    candidates = work.stage("generate")
    inputs = {
        "candidates": Manifest.read(candidates).hash,
        "protocol": protocol.protocol_hash(),
    }

    def body(folder: epath.Path) -> Outcome:
        opened = model.base(cfg, work, mesh, want=("model",))
        ask = model.asker(opened, cfg, mesh, rows=cfg.score.batch)
        with model.compile_clock() as compiling:
            outcome = score(units.read(candidates), folder, cfg.score, ask, opened.tokenizer)
        return dataclasses.replace(outcome, compile_seconds=sum(compiling))

    # The candidates' hash covers the weights: the model judges what the same model drew.
    sections = ("model", "weights", "score", "compute.dtype")
    return run_stage("score", cfg, work, sections=sections, inputs=inputs, body=body)


def score(
    records: Sequence[dict[str, Any]],
    folder: epath.PathLike,
    cfg: ScoreConfig,
    ask: Ask,
    vocabulary: judge.Vocabulary,
) -> Outcome:
    """Scores the candidates `records` into `folder`, going on where it stopped.

    records: as `generate` writes them, images uint8 [H,W,3]. Counts: candidates, regions, and
    "images <status>", "regions <status>" of the first proposer.
    """
    folder = epath.Path(folder)
    sizes = units.unit_sizes(len(records), cfg.unit)
    proposers = [regions.proposer(name, cfg.grid) for name in cfg.proposers]
    starts = list(itertools.accumulate(sizes, initial=0))
    todo = [
        u for u, size in enumerate(sizes) if not units.unit_done(folder, NAME, u, len(sizes), size)
    ]
    left = sum(sizes[u] for u in todo)
    first = jax.process_index() == 0
    bar = tqdm(
        total=len(records),
        initial=len(records) - left,
        desc="score",
        unit="img",
        dynamic_ncols=True,
        disable=not first,
    )
    with bar:
        for u in todo:
            part = [records[i] for i in range(starts[u], starts[u] + sizes[u])]
            scored = score_unit(part, ask, vocabulary, proposers, cfg.margin)
            if first:
                units.write_unit(folder, NAME, units.score_features(), scored, u, len(sizes))
            bar.update(sizes[u])
    outputs = {"scores": ".", "examples": "examples.json"}
    if not first:  # only the first process writes, and its manifest is the stage's
        return Outcome(outputs, {}, len(records))
    units.finish(folder, NAME, units.score_features(), sizes)
    scored = units.read(folder)
    counts = count_statuses(scored, cfg.proposers[0])
    write_examples(folder, records, scored, cfg.proposers[0])
    return Outcome(outputs, counts, len(records))


def score_unit(
    records: Sequence[dict[str, Any]],
    ask: Ask,
    vocabulary: judge.Vocabulary,
    proposers: Sequence[regions.Proposer],
    margin: int,
) -> list[dict[str, Any]]:
    """One score record per candidate, by one call of `ask` per proposer and one for the images."""
    images = [record["image"] for record in records]
    prompts = [record["prompt"] for record in records]
    main, *others = proposers
    judged = judge.judge_images(ask, vocabulary, images, prompts, main, margin=margin)
    more = [
        judge.judge_regions(ask, vocabulary, images, prompts, other, margin=margin)
        for other in others
    ]
    return [
        {
            "id": record["id"],
            "prompt_id": record["prompt_id"],
            "k": record["k"],
            "regions": [
                {
                    "bbox": np.array(region.bbox, np.float32),
                    "score": np.float32(region.score),
                    "status": region.status,
                    "label": region.label,
                    "proposer": region.proposer,
                }
                for region in (*judgement.regions, *itertools.chain(*extra))
            ],
            "image_score": np.float32(judgement.image_score),
            "image_status": judgement.image_status,
        }
        for record, judgement, *extra in zip(records, judged, *more, strict=True)
    ]


def count_statuses(scored: Sequence[dict[str, Any]], proposer: str) -> dict[str, int]:
    """{"candidates", "regions", "images <status>", "regions <status>"}, regions of `proposer`."""
    counts: collections.Counter[str] = collections.Counter(candidates=0, regions=0)
    for record in scored:
        counts["candidates"] += 1
        counts[f"images {record['image_status']}"] += 1
        for region in _of(record, proposer):
            counts["regions"] += 1
            counts[f"regions {region['status']}"] += 1
    return dict(counts)


def _of(record: dict[str, Any], proposer: str) -> list[dict[str, Any]]:
    return [region for region in record["regions"] if region["proposer"] == proposer]


# ----------------------------------------------------------------------------------- the examples


def choose_examples(
    scored: Sequence[dict[str, Any]], category_of: Callable[[int], str], count: int = EXAMPLES
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
    scored: Sequence[dict[str, Any]],
    proposer: str,
) -> None:
    """`examples.json` and its pictures: chosen candidates, boxes, and token weights.

    The weights are those of the released law, from the regions of `proposer` and the image's score.
    """
    examples = []
    for place in choose_examples(scored, lambda place: records[place]["category"]):
        record, result = records[place], scored[place]
        image = f"examples/{record['id']}.png"
        (folder / "examples").mkdir(parents=True, exist_ok=True)
        (folder / image).write_bytes(pictures.encode_png(record["image"]))
        grid = record["latent"].shape[:2]
        examples.append(
            {
                "id": record["id"],
                "prompt": record["prompt"],
                "image": image,
                "latent_grid": list(grid),
                "boxes": [_shown(region) for region in result["regions"]],
                "image_score": float(result["image_score"]),
                "image_status": result["image_status"],
                "token_weights": _weights(
                    _of(result, proposer), result["image_score"], record["image"].shape[:2], grid
                ),
            }
        )
    write_json(folder / "examples.json", examples)


def _shown(region: dict[str, Any]) -> dict[str, Any]:
    """A region for JSON; a score that is none is left out."""
    shown = {key: region[key] for key in ("status", "label", "proposer")}
    shown["bbox"] = [float(x) for x in region["bbox"]]
    if np.isfinite(region["score"]):
        shown["score"] = round(float(region["score"]), 4)
    return shown


def _weights(
    found: Sequence[dict[str, Any]],
    image_score: float,
    size: tuple[int, int],
    grid: tuple[int, int],
) -> list[list[float]]:
    """Rows of token weights by the released law; regions without a score are not drawn."""
    dense = maps.release_map(
        np.array([region["bbox"] for region in found], np.float32).reshape(-1, 4),
        np.array([region["score"] for region in found]),
        np.array([region["status"] == judge.OK for region in found], bool),
        float(image_score),
        size,
    )
    return np.asarray(maps.sample_map(dense, *grid)).round(4).tolist()
