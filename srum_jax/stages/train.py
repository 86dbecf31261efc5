"""Stage `train`: the model learns from its own scored candidates.

Wires a run of the one loop: what is trained (`selection.py`, `training_set.py`), how
(`programs.py`), and what watches it. Leaves the averaged trained leaves under `params/`, the
metrics, examples of what was trained on, and the checkpoints it goes on from. Never sees a
verifier: scores are the model's own, and the training monitor says whether they still mean
something.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from srum_jax import disk, programs
from srum_jax.config import Config, TrainConfig, hash_json
from srum_jax.core import console, param_tree, preemption, sharding
from srum_jax.core.errors import BadInput
from srum_jax.data import packing, pipeline, shards
from srum_jax.objectives import srum
from srum_jax.stages import (
    adjusted,
    collapse,
    judges,
    loading,
    monitor,
    object_credit,
    preflight,
    replay,
    training_examples,
)
from srum_jax.stages.manifest import (
    Manifest,
    Outcome,
    Workdir,
    candidates_of,
    run_stage,
    training_data,
)
from srum_jax.stages.preflight import Checks, Cost
from srum_jax.stages.selection import Candidate, advantages, candidates, choose, spared
from srum_jax.stages.training_set import StoredArrays, TrainingSet
from srum_jax.training import callbacks, loop, metrics
from srum_jax.training.callbacks import MetricLimit, StepCost
from srum_jax.training.checkpoint import Checkpoints, save_params
from srum_jax.training.state import FrozenParams, TrainState, create, placed

METRICS = "metrics.jsonl"  # in the stage's folder


def check(cfg: Config, work: Workdir, found: Checks) -> None:
    """Data that is there or will be, writers, room for the checkpoints.

    Whether lanes have room for every prompt says `generate`, which knows them.
    """
    c = cfg.train
    found.needs(work, candidates_of(cfg, work).name)
    if "score" in cfg.stages:
        found.needs(work, "score")
    if c.credit == "objects" and not training_examples.reads_regions(c):
        found.problems.append(
            f'train.credit = "objects" says whose regions\' scores are, and train.objective = '
            f'"{c.objective}" with train.rewards = "{c.rewards}" reads none: set it to "regions"'
        )
    replay.check(cfg, work, found)
    preflight.check_training(cfg, work, found)
    weights = preflight.weights(cfg, work, found)
    if weights is None:
        return
    with found.noting():
        program = programs.training(cfg, loading.described(weights)[0])
        size, count = disk.training_bytes(c, program), param_tree.count(program.trained)
        what = f"{c.keep} checkpoints of {count:,} trained parameters, one more while it is saved"
        found.costs.append(Cost("train", what, size))


def run(cfg: Config, mesh: jax.sharding.Mesh, work: Workdir) -> Manifest:
    """Trains on this round's candidates; goes on from the newest checkpoint."""
    data = training_data(cfg, work)
    inputs = {**data.inputs, "model": loading.fingerprint(*loading.source(cfg, work).folders)}
    watched = monitor.prompts(data.candidates, cfg.train.monitor.prompts)
    inputs["monitor"] = hash_json(watched)
    if cfg.train.carry and work.round:
        inputs["carried"] = Manifest.read(_before(work).stage("train")).hash

    def body(folder: epath.Path) -> Outcome:
        c = cfg.train
        stored = StoredArrays(
            shards.read(data.candidates),
            shards.read(data.scores) if data.scores else None,
            data.proposer,
        )
        everything, unscored = candidates(
            stored.drawn.summaries(), stored.scored, data.proposer, first=c.candidates
        )
        everything, apart = spared(everything, monitor.held_back(data.candidates))
        if c.credit == "objects":
            scenes = data.scores and judges.kept_scenes(data.scores / judges.SCENES)
            everything = object_credit.by_object(everything, stored, scenes)
        chosen, counts = choose(everything, c)
        counts = {"unscored": unscored, **({"held back": apart} if apart else {}), **counts}
        if c.objective in srum.BY_ADVANTAGE:
            chosen = advantages(everything, chosen)
        logging.info(
            "train: %d of %d candidates chosen by %s; left out: %s",
            *(len(chosen), len(everything), c.select, console.counted(counts)),
        )
        return train(cfg, mesh, work, folder, chosen, stored, counts, watched)

    sections = ("model", "weights", "seed", "train", "compute.dtype")
    return run_stage("train", cfg, work, sections=sections, inputs=inputs, body=body)


@dataclasses.dataclass(frozen=True)
class Monitoring(callbacks.Evaluator):
    """The training monitor as the loop asks it: of the averaged weights."""

    watch: monitor.TrainingMonitor

    def evaluate(self, n: int, state: TrainState) -> Mapping[str, float]:
        return self.watch.measure(n, state.ema)

    def measured(self, n: int) -> bool:
        return any(row["step"] == n for row in self.watch.rows)

    def enough(self, n: int) -> bool:
        return self.watch.stopped(n) is not None


def train(
    cfg: Config,
    mesh: jax.sharding.Mesh,
    work: Workdir,
    folder: epath.Path,
    chosen: Sequence[Candidate],
    stored: StoredArrays,
    counts: dict[str, int],
    watched: Sequence[Mapping[str, Any]],
) -> Outcome:
    """The stage's work: see the module."""
    c, dtype = cfg.train, jnp.dtype(cfg.compute.dtype)
    want = ("model", "vae") if watched else ("model",)
    # Trained leaves are float32 masters; beside adapters nothing of the model is trained.
    held = dtype if c.trainable == "lora" else jnp.float32
    opened = loading.base(cfg, work, mesh, want=want, dtype=held)
    lanes = programs.lanes(c)
    sizes = programs.attending(cfg, opened.cfg, mesh, tokens=lanes.und + lanes.gen)
    program = programs.training(cfg, sizes)
    trained, frozen = trained_and_frozen(cfg, opened.params, program, sizes)
    opened = dataclasses.replace(opened, params=None)  # float32, which frozen leaves need no longer
    start = reference(cfg, trained, program)
    fixed = FrozenParams(frozen, start, first(cfg, mesh, work, program, start or trained))
    asked = judging(cfg, trained, program, start) if watched else None
    checkpoints = Checkpoints(folder / "checkpoints", keep=c.keep)
    begin = functools.partial(create, trained, program.tx, program.trained, mesh)
    like = placed(program.tx, program.trained, mesh)
    if c.carry and work.round:
        begin = functools.partial(carried, c, work, like, begin)
    state = checkpoints.newest(like, begin, steps=c.steps)
    del trained, begin  # the state has its own copies
    reads = opened.family.Prompts(opened.tokenizer)
    own = replay.edits_of(cfg, work, opened, lanes)
    examples = TrainingSet(chosen, stored, reads, lanes, opened.cfg.layout, c, cfg.seed, own)
    log_rows(examples)

    watch = None
    if watched:
        seed = cfg.seed + work.round
        drawn = adjusted.in_use(cfg, work)
        how = dict(seed=seed, start=asked)
        watch = monitor.TrainingMonitor(drawn, mesh, folder, opened, frozen, watched, **how)
        watch.start(state.ema)

    path, key = folder / METRICS, jax.random.key(cfg.seed)
    if work.round:  # candidates are numbered from 0 in every round: other noise
        key = jax.random.fold_in(key, work.round)
    step = loop.Step.of(state, fixed, loss_fn=program.loss_fn, tx=program.tx, key=key, cfg=c)
    at = sharding.batch_sharding(mesh)
    make = functools.partial(examples.batch, at=at)
    state, summary = loop.run(
        state,
        step,
        pipeline.batches(make, at, start=int(state.step), stop=c.steps),
        callbacks.standard(
            c,
            folder,
            state,
            title="train",
            meta={"stage": "train", "round": work.round},
            checkpoints=checkpoints,
            stop=preemption.stop,
            log=cfg.log,
            limits=drift_limits(c.max_drift) if program.compared else (),
            cost=step_cost(cfg, opened, program, examples.kinds),
            evaluator=Monitoring(watch) if watch else None,
            evaluate_every=c.monitor.every,
            schedule=(work.round * c.steps if c.carry else 0, programs.planned_steps(cfg)),
            sinks=(collapse.Watch(path, int(state.step), c.monitor.min_diversity),),
        ),
        steps=c.steps,
    )
    if jax.process_index() == 0:
        training_examples.write(folder, examples)
    counts = {**counts, "candidates": len(chosen), "regions left out": examples.left_out}
    return finish(cfg, folder, state.ema, summary, watch, counts)


def trained_and_frozen(
    cfg: Config, params: param_tree.Params, program: programs.Training, sizes: Any
) -> tuple[param_tree.Params, param_tree.Params]:
    """(trained leaves, float32; frozen ones, compute.dtype) at the start of a run.

    params: of the model. Adapters are trained beside all of them, which are frozen then.
    """
    if cfg.train.trainable == "lora":
        trained, frozen = param_tree.init(program.trained, jax.random.key(cfg.seed)), params
    else:
        trained, frozen = param_tree.split(params, programs.Trainable.of(cfg.train, sizes))
    return trained, jax.tree.map(lambda x: x.astype(cfg.compute.dtype), frozen)


def reference(
    cfg: Config, trained: param_tree.Params, program: programs.Training
) -> param_tree.Params | None:
    """The copy of the trained leaves, compute.dtype, by which the loss reads the starting model.

    None where it does not read it. Of adapters an empty tree: without them the frozen leaves are
    the starting model.
    """
    c = cfg.train
    if program.reference is not None:
        return _copied(cfg, trained if program.reference else {})
    if c.max_drift and program.first is None:
        logging.info(
            'train: "%s" without an anchor keeps no copy of the starting model: train.max_drift is '
            "not checked",
            c.objective,
        )
    return None


def judging(
    cfg: Config,
    trained: param_tree.Params,
    program: programs.Training,
    start: param_tree.Params | None,
) -> param_tree.Params | None:
    """The leaves in the place of the trained ones by which the monitor judges, compute.dtype.

    start: the `reference` of the run, which are these; where there is none they are copied. None
    where the model in training judges.
    """
    if program.judge is None:
        return None
    return _copied(cfg, trained if program.judge else {}) if start is None else start


def first(
    cfg: Config,
    mesh: jax.sharding.Mesh,
    work: Workdir,
    program: programs.Training,
    start: param_tree.Params,
) -> param_tree.Params | None:
    """The leaves in the place of the trained ones of the model that the first round started from,
    compute.dtype; None where the loss does not read it. start: those of this round."""
    if program.first is None:
        return None
    if work.round:
        where = dataclasses.replace(work, round=0)
        opened = loading.base(cfg, where, mesh, want=("model",))
        start, _ = param_tree.split(opened.params, programs.Trainable.of(cfg.train, opened.cfg))
    return _copied(cfg, start)


def _copied(cfg: Config, leaves: param_tree.Params) -> param_tree.Params:
    dtype = jnp.dtype(cfg.compute.dtype)
    return jax.tree.map(lambda x: jnp.array(x, dtype, copy=True), leaves)


def _before(work: Workdir) -> Workdir:
    return dataclasses.replace(work, round=work.round - 1)


def carried(
    c: TrainConfig, work: Workdir, like: TrainState, fresh: Callable[[], TrainState]
) -> TrainState:
    """The state that the round before ended with, laid out as `like`, its steps counted anew.

    Its averaged leaves are those that drew this round's candidates. `fresh()`, with a warning,
    where the monitor ended that round: what it ended with is what the monitor left behind. Raises
    BadInput where its last checkpoint is missing.
    """
    before = _before(work).stage("train")
    if "stopped_at" in Manifest.read(before).counts:
        logging.warning(
            "train: the round before was ended by the monitor, so nothing is carried on from it: "
            "this one begins from the weights that were kept, its moments and schedule anew"
        )
        return fresh()
    with contextlib.closing(Checkpoints(before / "checkpoints", keep=c.keep)) as saved:
        if saved.latest() != c.steps:
            raise BadInput(
                f"{saved.folder}: the checkpoint of step {c.steps} is missing, from which the next "
                f"round goes on (train.carry): remove {before} and give the same command, which "
                "trains that round again"
            )
        state = saved.restore(c.steps, like)
    # Where they lie: zeros of their own would lie on one device.
    counts = {name: 0 * getattr(state, name) for name in ("step", "skipped", "skipped_in_row")}
    return state.replace(**counts)


def log_rows(examples: TrainingSet) -> None:
    """Logs how full the rows are, and the regions that they have no room for."""
    if examples.left_out:
        logging.warning(
            "train: %d regions are left out, the weakest of images with more than "
            "train.lanes.regions = %d: raise it to keep them",
            examples.left_out,
            examples.lanes.regions,
        )
    order = examples.order
    full = ", ".join(f"{name} to {100 * share:.0f} %" for name, share in order.fill.items())
    logging.info(
        "train: lanes are filled, %s; %.0f %% of a step's tokens are padding",
        *(full, 100 * order.padding),
    )
    if order.advice:
        logging.warning("train: %s", order.advice)


def finish(
    cfg: Config,
    folder: epath.Path,
    ema: param_tree.Params,
    summary: loop.Summary,
    watch: monitor.TrainingMonitor | None,
    counts: dict[str, int],
) -> Outcome:
    """Writes the weights that the run leaves; its part of results.json.

    They are the averaged ones of its end, or, where the monitor ended it, of its last good check;
    of its best check where `train.use` says so.
    """
    ended, at = watch and watch.stopped(summary.steps), summary.steps
    if ended:
        at, ema = watch.weights(ended.kept, ema)
        ended = dataclasses.replace(ended, kept=at)
        counts = {**counts, "stopped_at": ended.step}
        logging.warning(
            "train: stopped early at step %d of %d, with the weights of step %d: %s",
            *(ended.step, cfg.train.steps, ended.kept, ended.why),
        )
    best = watch and watch.best()
    if best and cfg.train.use == "best":
        at, ema = watch.weights(best["step"], ema)
        logging.info("train: leaves the weights of step %d, the best by its own score", at)
    save_params(folder / "params", ema)
    found = {}
    if jax.process_index() == 0:
        found = results(cfg, folder, summary, ended, best)
        if at != summary.steps:
            found["train"]["weights_of"] = at
    return Outcome(
        outputs={
            "params": "params",
            "metrics": METRICS,
            "examples": training_examples.NAME,
        },
        counts={**counts, "steps": summary.steps},
        items=summary.steps,
        compile_seconds=summary.compile_seconds,
        results=found,
    )


def step_cost(
    cfg: Config,
    loaded: loading.LoadedModel,
    program: programs.Training,
    kinds: Sequence[tuple[int, np.ndarray, int]],
) -> StepCost:
    """Tokens and operations of a step of the model on average: of each kind of rows how many a step
    has, examples [E, 6] of `packing.size` without padding and in how many rows these are packed;
    tokens see the tokens of their own example."""
    cost, found = loaded.family.cost, StepCost(tokens=0.0, flops=0.0)
    for count, sizes, rows in kinds:
        need = dict(zip(packing.LANES, sizes.T, strict=True))
        tokens = need["und"] + need["gen"]
        row = cost.RowTokens(
            und=need["und"].sum() / rows,
            gen=need["gen"].sum() / rows,
            keys=np.square(tokens).sum() / tokens.sum(),
            vit=need["vit"].sum() / rows,
            times=need["images"].sum() / rows,
        )
        _, needed = cost.step(
            loaded.cfg,
            row,
            trained=program.trained,
            remat=cfg.compute.remat,
            compared=program.compared,
        )
        found = StepCost(
            tokens=found.tokens + count * (row.und + row.gen),
            flops=found.flops + float(count * needed),
        )
    return found


def drift_limits(largest: float) -> tuple[MetricLimit, ...]:
    """What the loop stops at: a drift beyond `largest`; 0.0: none."""
    advice = (
        "The model runs away from where it started: lower train.optim.learning_rate, raise "
        "train.anchor, or choose another train.objective; `drift` in the metrics shows since when."
    )
    limit = MetricLimit("relative_drift", largest, "train.max_drift", advice)
    return (limit,) if largest else ()


def results(
    cfg: Config,
    folder: epath.Path,
    summary: loop.Summary,
    ended: monitor.EarlyStop | None,
    best: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The round's "train" part of results.json: first and last tenth of the logged losses.

    best: the row of the monitor's best check.
    """
    rows = metrics.read(folder / METRICS)
    losses = [row["loss"] for row in rows if isinstance(row.get("loss"), float)]
    part = math.ceil(len(losses) / 10)
    ends = {"loss_first": losses[:part], "loss_last": losses[-part:]}
    checks, why = monitor.curve(monitor.read(folder)), {}
    if ended:
        why = {"stopped_at": ended.step, "stopped_why": ended.why, "weights_of": ended.kept}
    if signs := collapse.signs(rows, cfg.train.monitor.min_diversity):
        why["collapse"] = list(signs.values())
    if best:
        why["best"] = {"step": best["step"], "score": best["own_score"]}
    return {
        "train": {
            "objective": cfg.train.objective,
            "select": cfg.train.select,
            "steps": summary.steps,
            **{name: float(np.mean(values)) for name, values in ends.items() if values},
            "skipped_steps": summary.skipped_steps,
            **({"monitor": checks} if checks else {}),
            **why,
        }
    }
