"""Stage `train`: the model learns from its own scored candidates.

Reads the shards of `generate` and `score`, picks candidates, turns scores into what the objective
needs, and runs the one loop. Leaves the averaged trained leaves under `params/`, the metrics, and
the checkpoints it goes on from. Never sees a verifier: scores are the model's own, and monitor
checks on the way say whether they still mean something.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from srum_jax import programs
from srum_jax.config import Config, TrainConfig, hash_json
from srum_jax.core import param_tree, preemption, sharding
from srum_jax.data import masks, packing, pipeline, shards, sources
from srum_jax.data.schema import Example, Regions
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.models.bagel import cost
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.objectives import srum
from srum_jax.rewards import judge, maps
from srum_jax.stages import loading, monitor
from srum_jax.stages.manifest import (
    Manifest,
    Outcome,
    Workdir,
    run_stage,
    training_data,
    update_round,
)
from srum_jax.training import loop, metrics
from srum_jax.training.checkpoint import Checkpoints, save_params
from srum_jax.training.state import FrozenParams, create

# What records of `ingest` may hold beyond those of `generate`.
EXTRA = ("target", "latent_std", "target_std")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A drawn image with its scores, as training reads it.

    latent float32 [h, w, p·p·Z]; size (H, W); boxes [R, 4]; scores [R] and image_score in
    [-1, 1]; masks as stored, one a region (b"": the box counts), or () where there are none.
    target: the latent of the good picture, if it is another; the stds, of latents that are drawn
    anew at each use: the posterior's deviation around them.
    """

    id: str
    prompt_id: int
    prompt: str
    latent: np.ndarray
    size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    image_score: float
    masks: tuple[bytes, ...] = ()
    target: np.ndarray | None = None
    latent_std: np.ndarray | None = None
    target_std: np.ndarray | None = None


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Trains on this round's candidates; goes on from the newest checkpoint."""
    data = training_data(cfg, work)
    inputs = {**data.inputs, "model": loading.fingerprint(*loading.source(cfg, work).folders)}
    watched = monitor.prompts(data.candidates, cfg.train.monitor.prompts)
    inputs["monitor"] = hash_json(watched)

    def body(folder: epath.Path) -> Outcome:
        c = cfg.train
        scored = shards.read(data.scores) if data.scores else None
        everything, unscored = candidates(
            shards.read(data.candidates), scored, data.proposer, first=c.candidates
        )
        chosen, counts = choose(everything, c)
        counts = {"unscored": unscored, **counts}
        if c.objective in srum.BY_ADVANTAGE:
            chosen = advantages(everything, chosen)
        logging.info(
            "train: %d of %d candidates (%s); %s", len(chosen), len(everything), c.select, counts
        )
        return train(cfg, mesh, work, folder, chosen, counts, watched)

    sections = ("model", "weights", "seed", "train", "compute.dtype")
    return run_stage("train", cfg, work, sections=sections, inputs=inputs, body=body)


def candidates(
    drawn: Sequence, scored: Sequence | None, proposer: str, *, first: int = 0
) -> tuple[list[Candidate], int]:
    """(candidates with a score, how many have none), joined by id; regions of `proposer`.

    Of each prompt only the `first` drawn count; 0: all. Without `scored` nobody judged them: no
    regions, and an image score of 0. Raises ValueError where the two stages do not hold the same
    candidates.
    """
    unjudged = {"image_status": judge.OK, "image_score": 0.0, "regions": ()}
    by_id = {record["id"]: record for record in scored or ()}
    found, left_out = [], 0
    for record in drawn:
        if first and record["k"] >= first:
            continue
        if scored is not None and record["id"] not in by_id:
            raise ValueError(
                f"candidate {record['id']} has no score record: run the score stage again"
            )
        score = by_id.get(record["id"], unjudged)
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
                masks=tuple(r.get("mask", b"") for r in regions),
                **{key: record[key] for key in EXTRA if key in record},
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


def advantages(found: Sequence[Candidate], chosen: Sequence[Candidate]) -> list[Candidate]:
    """`chosen` with advantages in place of scores, centred within each prompt's group of `found`.

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
        c.id: dataclasses.replace(c, image_score=float(image[p, k]), scores=regions[p][k])
        for p, group in enumerate(groups.values())
        for k, c in enumerate(group)
    }
    return [centred[c.id] for c in chosen]


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


def example(
    c: Candidate, number: int, *, tokenizer: Tokenizer, regions: int, dropped: bool
) -> Example:
    """Candidate number `number`, which names its noise, with its `regions` strongest regions.

    If `dropped`, without its prompt. Raises ValueError for a mask that is damaged or not of the
    image's size.
    """
    strongest = np.argsort(-np.abs(c.scores), kind="stable")[:regions]
    rewards = Regions(c.boxes[strongest], c.scores[strongest], c.image_score)
    if any(c.masks):
        shown = (_mask(c, i) for i in strongest)
        rewards = dataclasses.replace(rewards, masks=tuple(shown))
    return sources.text_to_image(
        tokenizer,
        None if dropped else c.prompt,
        c.latent,
        size=c.size,
        noise_id=number,
        regions=rewards,
        target=c.target,
    )


def redrawn(c: Candidate, seed: int, place: int) -> Candidate:
    """`c` with latents drawn from their posteriors for use `place` of the endless sequence.

    Unchanged where the shards hold no deviations.
    """
    if c.latent_std is None:
        return c
    rng = np.random.default_rng((seed, place, 2))

    def draw(mean, std):
        return mean + std * rng.standard_normal(mean.shape, np.float32)

    target = None if c.target is None else draw(c.target, c.target_std)
    return dataclasses.replace(c, latent=draw(c.latent, c.latent_std), target=target)


def _mask(c: Candidate, region: int) -> np.ndarray | None:
    name = f"candidate {c.id}, region {region}: mask"
    return masks.decode(c.masks[region], c.size, name=name) if c.masks[region] else None


def train(
    cfg: Config,
    mesh,
    work: Workdir,
    folder: epath.Path,
    chosen: Sequence[Candidate],
    counts: dict[str, int],
    watched: Sequence[Mapping[str, Any]],
) -> Outcome:
    """The stage's work: see the module."""
    c = cfg.train
    want = ("model", "vae") if watched else ("model",)
    dtype, adapting = jnp.dtype(cfg.compute.dtype), c.trainable == "lora"
    # Trained leaves are float32 masters; beside adapters nothing of the model is trained.
    opened = loading.base(cfg, work, mesh, want=want, dtype=dtype if adapting else jnp.float32)
    program = programs.training(cfg, programs.attending(cfg, opened.cfg, mesh))
    if adapting:
        trained, frozen = param_tree.init(program.trained, jax.random.key(cfg.seed)), opened.params
    else:
        trained, frozen = param_tree.split(opened.params, loading.trainable(c.trainable))
    frozen = jax.tree.map(lambda x: x.astype(dtype), frozen)
    opened = dataclasses.replace(opened, params=None)  # float32, which frozen leaves need no longer
    reference = None
    limits: tuple[loop.MetricLimit, ...] = ()
    if program.reference is not None:
        start = trained if program.reference else {}
        reference = jax.tree.map(lambda x: jnp.array(x, dtype, copy=True), start)
        limits = drift_limits(c.max_drift)
    elif c.max_drift:
        logging.info(
            'train: "%s" without an anchor keeps no copy of the starting model: train.max_drift is '
            "not checked",
            c.objective,
        )
    state = create(trained, program.tx, program.trained, mesh)

    lanes = programs.lanes(c)
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

    # One answer for the whole run: arrays that come and go would compile anew.
    coverage = c.map_sampling if any(any(x.masks) for x in chosen) else None
    targets = any(x.target is not None for x in chosen)

    at = sharding.batch_sharding(mesh)

    def make(step: int):
        rows = []
        for number in pipeline.local_rows(step, c.rows, at):
            epoch, members = order(number)
            places = [epoch * len(chosen) + i for i in members]
            drop = [sources.dropped(cfg.seed, place, c.text_dropout) for place in places]
            row = zip(members, places, drop, strict=True)
            rows.append(
                [build(redrawn(chosen[i], cfg.seed, use), i, dropped=off) for i, use, off in row]
            )
        return packing.pack(
            rows, lanes, opened.cfg, rewards=True, coverage=coverage, targets=targets
        )

    watch = monitor.TrainingMonitor(cfg, mesh, folder, opened, frozen, watched) if watched else None
    hooks = {}
    if watch:
        watch.start(state.ema)
        hooks = {
            "evaluate": lambda step, state: watch.look(step, state.ema),
            "evaluate_every": c.monitor.every,
            "enough": lambda step: watch.stopped(step) is not None,
        }

    state, summary = loop.run(
        state,
        FrozenParams(frozen, reference),
        loss_fn=program.loss_fn,
        tx=program.tx,
        batches=lambda start: pipeline.batches(make, at, start=start, stop=c.steps),
        key=jax.random.key(cfg.seed),
        cfg=c,
        checkpoints=Checkpoints(folder / "checkpoints", keep=c.keep),
        meta={"stage": "train", "round": work.round},
        metrics_path=folder / "metrics.jsonl",
        title="train",
        stop=preemption.stop,
        work=work_of_a_step(cfg, opened.cfg, program, sizes, rows=len(order.plans[0])),
        reports=cfg.log,
        limits=limits,
        **hooks,
    )
    steps, left, ended = summary["steps"], state.ema, watch and watch.stopped(summary["steps"])
    if ended:
        left = watch.weights(ended.kept, left)
        counts = {**counts, "stopped_at": ended.step}
        logging.warning(
            "train: stopped early at step %d of %d, with the weights of step %d: %s",
            *(ended.step, c.steps, ended.kept, ended.why),
        )
    save_params(folder / "params", left)
    if jax.process_index() == 0:
        record(work, cfg, folder, summary, ended)
    return Outcome(
        outputs={"params": "params", "metrics": "metrics.jsonl"},
        counts={
            **counts,
            "candidates": len(chosen),
            "regions left out": spare,
            "steps": steps,
        },
        items=steps,
        compile_seconds=summary["compile_seconds"],
    )


def work_of_a_step(
    cfg: Config, sizes: BagelConfig, program: programs.Training, needs: np.ndarray, *, rows: int
) -> loop.StepCost:
    """Tokens and operations of a step on average: of `rows` packed rows with examples [E, 6] of
    `packing.size`, without padding; tokens see the tokens of their own example."""
    need = dict(zip(packing.LANES, needs.T, strict=True))
    tokens = need["und"] + need["gen"]
    row = cost.StepCost(
        und=need["und"].sum() / rows,
        gen=need["gen"].sum() / rows,
        keys=np.square(tokens).sum() / tokens.sum(),
        vit=need["vit"].sum() / rows,
        times=need["images"].sum() / rows,
    )
    _, needed = cost.step(
        sizes,
        row,
        trained=program.trained,
        remat=cfg.compute.remat,
        reference=program.reference is not None,
    )
    count = cfg.train.rows
    return loop.StepCost(tokens=count * (row.und + row.gen), flops=float(count * needed))


def drift_limits(largest: float) -> tuple[loop.MetricLimit, ...]:
    """What the loop stops at: a drift beyond `largest`; 0.0: none."""
    advice = (
        "The model runs away from where it started: lower train.optim.learning_rate, raise "
        "train.anchor, or choose another train.objective; `drift` in the metrics shows since when."
    )
    limit = loop.MetricLimit("relative_drift", largest, "train.max_drift", advice)
    return (limit,) if largest else ()


def record(
    work: Workdir, cfg: Config, folder: epath.Path, summary: dict, ended: monitor.EarlyStop | None
) -> None:
    """The round's "train" part of results.json: first and last tenth of the logged losses."""
    rows = metrics.read(folder / "metrics.jsonl")
    losses = [row["loss"] for row in rows if isinstance(row.get("loss"), float)]
    part = math.ceil(len(losses) / 10)
    ends = {"loss_first": losses[:part], "loss_last": losses[-part:]}
    looks, why = monitor.curve(monitor.read(folder)), {}
    if ended:
        why = {"stopped_at": ended.step, "stopped_why": ended.why, "weights_of": ended.kept}
    update_round(
        work,
        train={
            "objective": cfg.train.objective,
            "select": cfg.train.select,
            "steps": summary["steps"],
            **{name: float(np.mean(values)) for name, values in ends.items() if values},
            "skipped_steps": summary["skipped_steps"],
            **({"monitor": looks} if looks else {}),
            **why,
        },
    )
