"""Stage `train`: the model learns from its own scored candidates.

Reads the units of `generate` and `score`, picks candidates, turns scores into what the objective
needs, and runs the one loop. Leaves the averaged trained leaves under `params/`, the metrics, and
the checkpoints it goes on from. Never sees a verifier: scores are the model's own.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from srum_jax.config import Config
from srum_jax.core import params as P
from srum_jax.core import preemption, sharding
from srum_jax.data import packing, pipeline, sources, units
from srum_jax.data.schema import Example, Lanes, Regions
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.models import bagel
from srum_jax.objectives import srum
from srum_jax.rewards import judge, maps
from srum_jax.stages import model
from srum_jax.stages.manifest import Manifest, Outcome, Workdir, run_stage, update_round
from srum_jax.training import loop, metrics, optim
from srum_jax.training.checkpoint import Checkpoints, save_params
from srum_jax.training.state import Fixed, create


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A drawn image with its scores, as training reads it.

    latent float32 [h, w, p·p·Z]; size (H, W); boxes [R, 4]; scores [R] and image_score in
    [-1, 1].
    """

    id: str
    prompt_id: int
    prompt: str
    latent: np.ndarray
    size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    image_score: float


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Trains on this round's candidates; goes on from the newest checkpoint."""
    drawn, scored = work.stage("generate"), work.stage("score")
    inputs = {
        "candidates": Manifest.read(drawn).hash,
        "scores": Manifest.read(scored).hash,
        "model": model.fingerprint(*model.source(cfg, work).folders),
    }

    def body(folder: epath.Path) -> Outcome:
        everything, left_out = candidates(
            units.read(drawn), units.read(scored), cfg.score.proposers[0]
        )
        chosen = select(everything, cfg.train.select)
        if cfg.train.objective == "srum_advantage":
            chosen = advantages(everything, chosen)
        logging.info(
            "train: %d of %d candidates (%s), %d without a score",
            len(chosen),
            len(everything),
            cfg.train.select,
            left_out,
        )
        return train(cfg, mesh, work, folder, chosen, {"unscored": left_out})

    sections = ("model", "weights", "seed", "train", "compute.dtype")
    return run_stage("train", cfg, work, sections=sections, inputs=inputs, body=body)


def candidates(drawn: Sequence, scored: Sequence, proposer: str) -> tuple[list[Candidate], int]:
    """(candidates with a score, how many have none), joined by id; regions of `proposer`.

    Raises ValueError where the two stages do not hold the same candidates.
    """
    by_id = {record["id"]: record for record in scored}
    found, left_out = [], 0
    for record in drawn:
        if record["id"] not in by_id:
            raise ValueError(
                f"candidate {record['id']} has no score record: run the score stage again"
            )
        score = by_id[record["id"]]
        if score["image_status"] != judge.OK:
            left_out += 1
            continue
        regions = [
            r for r in score["regions"] if r["proposer"] == proposer and r["status"] == judge.OK
        ]
        found.append(
            Candidate(
                id=record["id"],
                prompt_id=int(record["prompt_id"]),
                prompt=record["prompt"],
                latent=record["latent"],
                size=tuple(record["image"].shape[:2]),
                boxes=np.array([r["bbox"] for r in regions], np.float32).reshape(-1, 4),
                scores=np.array([r["score"] for r in regions], np.float32),
                image_score=float(score["image_score"]),
            )
        )
    if not found:
        raise ValueError(
            f"none of the {left_out} candidates has a score: look at the statuses that the score "
            "stage counted"
        )
    return found, left_out


def advantages(found: Sequence[Candidate], chosen: Sequence[Candidate]) -> list[Candidate]:
    """`chosen` with advantages in place of scores, centred within each prompt's group of `found`.

    Advantages are clipped, so they come after the choice: the best may tie with the second.
    """
    groups: dict[int, list[Candidate]] = collections.defaultdict(list)
    for candidate in found:
        groups[candidate.prompt_id].append(candidate)
    width = max(map(len, groups.values()))
    image = np.full((len(groups), width), np.nan)
    regions = []
    for p, group in enumerate(groups.values()):
        image[p, : len(group)] = [c.image_score for c in group]
        regions.append([c.scores for c in group] + [np.zeros(0)] * (width - len(group)))
    image, regions = maps.group_advantages(image, regions)
    centred = {
        c.id: dataclasses.replace(c, image_score=float(image[p, k]), scores=regions[p][k])
        for p, group in enumerate(groups.values())
        for k, c in enumerate(group)
    }
    return [centred[c.id] for c in chosen]


def select(found: Sequence[Candidate], law: str) -> list[Candidate]:
    """The candidates trained on: "all", or "best_of_k" (each prompt's best image score)."""
    if law == "all":
        return list(found)
    best: dict[int, Candidate] = {}
    for c in found:
        if c.prompt_id not in best or c.image_score > best[c.prompt_id].image_score:
            best[c.prompt_id] = c
    return list(best.values())


def example(
    c: Candidate, number: int, *, tokenizer: Tokenizer, regions: int, dropped: bool
) -> Example:
    """Candidate number `number`, which names its noise, with its `regions` strongest regions.

    If `dropped`, without its prompt.
    """
    strongest = np.argsort(-np.abs(c.scores), kind="stable")[:regions]
    rewards = Regions(c.boxes[strongest], c.scores[strongest], c.image_score)
    return sources.text_to_image(
        tokenizer,
        None if dropped else c.prompt,
        c.latent,
        size=c.size,
        noise_id=number,
        regions=rewards,
    )


def train(
    cfg: Config,
    mesh,
    work: Workdir,
    folder: epath.Path,
    chosen: Sequence[Candidate],
    counts: dict[str, int],
) -> Outcome:
    """The stage's work: see the module."""
    c = cfg.train
    opened = model.base(cfg, work, mesh, want=("model",), dtype=jnp.float32)
    accepts = model.trainable(c.trainable)
    specs = optim.trained_specs(bagel.specs(opened.cfg), accepts)
    trained, frozen = P.split(opened.params, accepts)
    dtype = jnp.dtype(cfg.compute.dtype)
    frozen = jax.tree.map(lambda x: x.astype(dtype), frozen)
    reference = None
    if c.objective in srum.NEED_REFERENCE:
        reference = jax.tree.map(lambda x: jnp.array(x, dtype, copy=True), trained)
    tx = optim.make(c.optim, specs, steps=c.steps)
    state = create(trained, tx, specs, mesh)

    lanes = Lanes(**{k: getattr(c.lanes, k) for k in packing.LANES})
    build = functools.partial(example, tokenizer=opened.tokenizer, regions=lanes.regions)
    # Rows must hold every sample with its prompt; a dropped one only makes it shorter.
    spare = sum(max(0, len(x.scores) - lanes.regions) for x in chosen)
    if spare:
        logging.warning(
            "train: %d regions are left out, the weakest of images with more than "
            "train.lanes.regions = %d: raise it to keep them",
            spare,
            lanes.regions,
        )
    sizes = np.stack([packing.size(build(x, i, dropped=False)) for i, x in enumerate(chosen)])
    order = pipeline.EpochRows(sizes, lanes, seed=cfg.seed)
    logging.info("train: lanes %s full", {k: f"{v:.0%}" for k, v in order.fill.items()})

    def make(step: int):
        rows = []
        for number in pipeline.local_rows(step, c.rows):
            epoch, members = order(number)
            places = [epoch * len(chosen) + i for i in members]
            drop = [sources.dropped(cfg.seed, place, c.text_dropout) for place in places]
            row = zip(members, drop, strict=True)
            rows.append([build(chosen[i], i, dropped=without) for i, without in row])
        return packing.pack(rows, lanes, opened.cfg, rewards=True)

    at = sharding.batch_sharding(mesh)
    state, summary = loop.run(
        state,
        Fixed(frozen, reference),
        loss_fn=srum.make(c, opened.cfg, dtype=dtype, remat=cfg.compute.remat),
        tx=tx,
        batches=lambda start: pipeline.batches(make, at, start=start, stop=c.steps),
        key=jax.random.key(cfg.seed),
        cfg=c,
        checkpoints=Checkpoints(folder / "checkpoints", keep=c.keep),
        meta={"stage": "train", "round": work.round},
        metrics_path=folder / "metrics.jsonl",
        title="train",
        stop=preemption.stop,
    )
    save_params(folder / "params", state.ema)
    if jax.process_index() == 0:
        record(work, cfg, folder, summary)
    return Outcome(
        outputs={"params": "params", "metrics": "metrics.jsonl"},
        counts={
            **counts,
            "candidates": len(chosen),
            "regions left out": spare,
            "steps": c.steps,
        },
        items=c.steps,
        compile_seconds=summary["compile_seconds"],
    )


def record(work: Workdir, cfg: Config, folder: epath.Path, summary: dict) -> None:
    """The round's "train" part of results.json: first and last tenth of the logged losses."""
    rows = metrics.read(folder / "metrics.jsonl")
    losses = [row["loss"] for row in rows if isinstance(row.get("loss"), float)]
    part = math.ceil(len(losses) / 10)
    ends = {"loss_first": losses[:part], "loss_last": losses[-part:]}
    update_round(
        work,
        train={
            "objective": cfg.train.objective,
            "select": cfg.train.select,
            "steps": cfg.train.steps,
            **{name: float(np.mean(values)) for name, values in ends.items() if values},
            "skipped_steps": summary["skipped_steps"],
        },
    )
