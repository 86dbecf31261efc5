"""The stage: what it hands the loop, and what it changes."""

import dataclasses
import gc
import itertools
import json
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from srum_jax.core import param_tree, preemption, sharding
from srum_jax.core.errors import Diverged, Preempted
from srum_jax.data import masks, pipeline, shards
from srum_jax.data.images import encode_png
from srum_jax.planning import lowering
from srum_jax.rewards import judge
from srum_jax.stages import judges, loading, score, selection, train, training_set
from srum_jax.stages.manifest import Outcome, Workdir, run_stage
from srum_jax.training import loop, metrics
from srum_jax.training.checkpoint import Checkpoints

PROMPTS = (
    "a red circle",
    "two blue squares",
    "a red circle and a green cross",
    "a blue square left of a red cross",
    "a cyan triangle",
)
K = 3
UNSCORED = "2-1"


def region(score, proposer="components", status=judge.OK, corner=0):
    box = np.array([corner, corner, corner + 8, corner + 8], np.float32)
    return {
        "bbox": box,
        "score": np.float32(score),
        "status": status,
        "label": "red circle",
        "proposer": proposer,
    }


def records():
    """(candidates, scores) of `PROMPTS`; the score of k rises with k, but for the last prompt."""
    rng = np.random.default_rng(0)
    drawn, scored = [], []
    for p, k in itertools.product(range(len(PROMPTS)), range(K)):
        ids = {"id": f"{p}-{k}", "prompt_id": p, "k": k}
        image = encode_png(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
        latent = rng.normal(size=tiny.GRID).astype(np.float32)
        drawn.append(
            {
                **ids,
                "prompt": PROMPTS[p],
                "category": "single",
                "seed": 1,
                "image": image,
                "latent": latent,
            }
        )
        score = -0.5 + 0.4 * (k if p < 4 else K - 1 - k)
        failed = ids["id"] == UNSCORED
        regions = [region(0.1 * i - 0.3 * k, corner=i) for i in range(p + 1)]
        regions += [region(np.nan, status=judge.NOT_FINITE), region(-1, proposer="grid")]
        scored.append(
            {
                **ids,
                "regions": regions,
                "image_score": np.float32(np.nan if failed else score),
                "image_status": judge.NOT_FINITE if failed else judge.OK,
            }
        )
    return drawn, scored


def summaries(drawn, size=(32, 32)):
    """Of candidate records, as shards give them."""
    return [{**r, "image": [*size, 3], "latent": list(np.shape(r["latent"]))} for r in drawn]


def write(work, cfg, mask=None):
    """What the stages before leave; `mask`: of the first region of every image of prompt 1."""
    drawn, scored = records()
    for record in scored if mask is not None else ():
        for i, each in enumerate(record["regions"]):
            each["mask"] = mask if i == 0 and record["prompt_id"] == 1 else b""
    features = {
        "generate": shards.candidate_features(tiny.GRID),
        "score": shards.score_features(masks=mask is not None),
    }
    for stage, name, rows in (("generate", "candidates", drawn), ("score", "scores", scored)):

        def body(folder, stage=stage, name=name, rows=rows):
            shards.write_shard(folder, name, features[stage], rows, 0, 1)
            shards.finish(folder, name, features[stage], [len(rows)])
            return Outcome({}, {}, 1)

        run_stage(stage, cfg, work, sections=(), inputs={}, body=body)
    return work


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("weights") / "model")


def config(weights, **values):
    small = {
        "train__steps": 3,
        "train__rows": 2,
        "train__log_every": 1,
        "train__optim__warmup": 1,
        "train__lanes__und": 44,
        "train__checkpoint_every": 2,
        "generate__candidates": K,
        "compute__remat": "none",
        "stages": ("generate", "score", "train"),
    }
    return tiny.load_config(weights, **(small | values))


def run(cfg, work):
    mesh = tiny.mesh(cfg)
    with jax.set_mesh(mesh):
        return train.run(cfg, mesh, work)


def plain(folder):
    """The rows of a metrics file without what the clock says."""
    return [
        {k: v for k, v in row.items() if k not in metrics.CLOCKS}
        for row in metrics.read(folder / "metrics.jsonl")
    ]


def trained(cfg, work):
    """{path: leaf} of the model before and after."""
    mesh = tiny.mesh(cfg)
    opened = loading.base(cfg, work, mesh, want=("model",), dtype=jnp.float32)
    new = loading.trained(opened, cfg, work, mesh)
    return param_tree.flatten(opened.params), param_tree.flatten(new.params)


# ------------------------------------------------------------------------ what it hands the loop


class Caught(Exception):
    """In place of training."""


def handed(cfg, work, monkeypatch, steps):
    """The first batches that the loop would see, and its other arguments."""
    seen = {}

    def catch(state, step, batches, hooks, **more):
        seen.update(more, state=state, frozen=step.frozen, callbacks=hooks)
        seen["batches"] = [jax.device_get(next(batches)) for _ in range(steps)]
        for hook in hooks:
            hook.close()
        raise Caught

    monkeypatch.setattr(loop, "run", catch)
    with pytest.raises(Caught):
        run(cfg, work)
    monkeypatch.undo()
    return seen


def lengths(batch):
    """(noise id, tokens of the prompt with its marks) of every sample of a batch."""
    out = []
    for row in range(len(batch.noise_ids)):
        segment = batch.und.segment[row]
        for n in range(int(batch.noisy[row].sum())):
            tokens = int((segment == n + 1).sum()) - 2  # of the image's two marks
            out.append((int(batch.noise_ids[row, n]), tokens))
    return out


def test_every_candidate_once_an_epoch_its_prompt_dropped_at_times(weights, tmp_path, monkeypatch):
    """The lanes hold every row, also those of prompts that were dropped in the first epoch."""
    cfg = config(weights, train__objective="sft", train__text_dropout=0.5, train__steps=60)
    work = write(Workdir(tmp_path), cfg)
    seen = [x for b in handed(cfg, work, monkeypatch, 60)["batches"] for x in lengths(b)]
    count = len(PROMPTS) * K - 1
    first = [i for i, _ in seen[:count]]
    assert sorted(first) == list(range(count)) and first != sorted(first)
    assert sorted(i for i, _ in seen[count : 2 * count]) == list(range(count))
    assert np.mean([tokens == 0 for _, tokens in seen]) == pytest.approx(0.5, abs=0.06)
    ids = [f"{p}-{k}" for p in range(len(PROMPTS)) for k in range(K)]
    ids.remove(UNSCORED)
    words = {i: len(PROMPTS[int(id[0])].split()) + 2 for i, id in enumerate(ids)}
    assert all(tokens in (0, words[i]) for i, tokens in seen)
    assert len({(i, tokens) for i, tokens in seen}) == 2 * count


@pytest.mark.parametrize("objective", ["srum_release", "srum_advantage"])
def test_rewards_reach_the_batch(weights, tmp_path, monkeypatch, objective):
    cfg = config(
        weights,
        train__objective=objective,
        train__select="best_of_k",
        train__text_dropout=0.0,
        train__rows=1,
        train__anchor=0.0,
    )
    work = write(Workdir(tmp_path), cfg)
    seen = handed(cfg, work, monkeypatch, 2)
    drawn = shards.read(work.stage("generate"))
    found, _ = selection.candidates(
        drawn.summaries(), shards.read(work.stage("score")), "components"
    )
    chosen = selection.select(found, "best_of_k")
    assert [c.id for c in chosen] == ["0-2", "1-2", "2-2", "3-2", "4-0"]
    if objective == "srum_advantage":
        chosen = selection.advantages(found, chosen)
        assert all(c.image_advantage > 0.5 for c in chosen)
        assert seen["frozen"].reference is not None
    else:
        assert seen["frozen"].reference is None
    for batch in seen["batches"]:
        for n in range(int(batch.noisy[0].sum())):
            c = chosen[batch.noise_ids[0, n]]
            r = batch.rewards
            regions, image, of_image = (
                (r.advantages, r.image_advantage, c.image_advantage)
                if objective == "srum_advantage"
                else (r.scores, r.image_score, c.image_score)
            )
            assert (r.scores is None) == (r.image_score is None) == (regions is r.advantages)
            assert image[0, n] == np.float32(of_image)
            valid = r.valid[0, n]
            assert valid.sum() == min(len(c.scores), cfg.train.lanes.regions)
            values = c.scores if c.advantages is None else c.advantages
            kept = np.sort(np.abs(values))[::-1][: valid.sum()]
            np.testing.assert_allclose(np.abs(regions[0, n, valid]), kept)
            tokens = batch.latents[0][batch.latent_images[0] == n]
            real = batch.gen.segment[0][batch.latent_images[0] == n] > 0
            np.testing.assert_array_equal(tokens[real], drawn[c.place]["latent"].reshape(16, -1))
    assert seen["state"].params.keys() == {"blocks", "norm", "time", "vae2llm", "llm2vae"}


@pytest.mark.parametrize(
    "trainable",
    ["gen", *(pytest.param(t, marks=pytest.mark.slow) for t in ("all", "lora"))],
)
def test_a_resumed_run_holds_what_a_fresh_one_does_and_the_plan_counts(
    weights, tmp_path, monkeypatch, trainable
):
    """Bytes on the device where the loop begins, without a picture or a latent read until there."""
    cfg = config(weights, train__trainable=trainable, train__lora__rank=4)
    work = write(Workdir(tmp_path), cfg)
    held = []
    monkeypatch.setattr(Image.Image, "load", None)  # what decodes
    monkeypatch.setattr(training_set.StoredArrays, "latents", None)

    def live():
        gc.collect()
        # By buffer: an array and its shard, once somebody asked for it, are two names of one.
        return sum({x.unsafe_buffer_pointer(): x.nbytes for x in jax.live_arrays()}.values())

    def catch(state, step, batches, hooks, **more):
        held.append(live() - before)
        for hook in hooks:
            hook.close()
        saved = Checkpoints(work.stage("train") / "checkpoints", keep=1)
        saved.save(0, state, {})
        saved.close()
        raise Caught

    monkeypatch.setattr(loop, "run", catch)
    for _ in range(2):
        before = live()
        with pytest.raises(Caught):
            run(cfg, work)
    fresh, resumed = held
    planned = lowering.train_step(cfg, lowering.sizes_of(cfg), tiny.mesh(cfg))
    parts = planned.parts | planned.resident
    counted = sum(sharding.bytes_per_device(parts[key]) for key in parts if key != "batch")
    assert resumed == fresh
    assert counted <= fresh <= counted + 64  # beside them keys, and the numbers of steps


@pytest.mark.parametrize("sampling, points", [("centre", 4), ("area", 1)])
def test_masks_reach_every_batch(weights, tmp_path, monkeypatch, sampling, points):
    """Also those without a mask: one shape the whole run."""
    cfg = config(
        weights,
        train__objective="srum_release",
        train__map_sampling=sampling,
        train__select="best_of_k",
        train__rows=1,
        train__anchor=0.0,
    )
    work = write(Workdir(tmp_path), cfg, masks.encode(np.zeros((32, 32), bool)))
    batches = handed(cfg, work, monkeypatch, 3)["batches"]
    shapes = {b.rewards.coverage.inside.shape for b in batches}
    assert shapes == {(1, cfg.train.lanes.gen, points, cfg.train.lanes.regions)}


# ------------------------------------------------------------------------------ what it changes


@pytest.fixture(scope="module")
def done(weights, tmp_path_factory):
    """A run of the default objective that nobody disturbs."""
    cfg = config(weights)
    work = write(Workdir(tmp_path_factory.mktemp("done")), cfg)
    return cfg, work, run(cfg, work)


def check(cfg, work, manifest):
    assert manifest.counts == {
        "unscored": 1,
        "prompts of too little gain": 0,
        "best scored too low": 0,
        "candidates": 14,
        "regions left out": 3,  # the fifth of each image of the last prompt
        "steps": 3,
    }
    rows = metrics.read(work.stage("train") / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    part = json.loads(work.results.read_text())["rounds"][0]["train"]
    assert part == {
        "objective": cfg.train.objective,
        "select": "all",
        "steps": 3,
        "skipped_steps": 0,
        "loss_first": rows[0]["loss"],
        "loss_last": rows[-1]["loss"],
    }
    before, after = trained(cfg, work)
    assert all(np.isfinite(leaf).all() for leaf in after.values())
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    return moved, rows


def may_move(path):
    return path.startswith(tiny.trainable("gen").beginnings)


@pytest.mark.slow
def test_only_the_generation_side_is_trained(done):
    cfg, work, manifest = done
    moved, rows = check(cfg, work, manifest)
    assert {p.split("/")[0] for p in moved} == {"blocks", "norm", "time", "vae2llm", "llm2vae"}
    assert all(may_move(path) for path in moved)  # und expert, ViT, words: bit for bit
    assert {"blocks/gen/q/w", "blocks/gen/down/w", "llm2vae/w"} <= moved
    assert {"drift", "token_advantage", "token_advantage_size", "mse"} <= set(rows[0])
    assert all(row["tokens_per_second"] > 0 and row["peak_memory_gib"] > 0 for row in rows)
    assert rows[0]["drift"] < 1e-8 < rows[-1]["drift"]  # it starts at the reference
    assert rows[0]["token_advantage_size"] > 0.3
    assert manifest.outputs == {
        "params": "params",
        "metrics": "metrics.jsonl",
        "examples": "examples.json",
    }
    assert run(cfg, work) == manifest


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective, optimizer, anchor, logged",
    [
        ("srum_release", "adamw", 0.0, {"token_weight", "reward", "constraint"}),
        ("sft", "muon", 1.0, {"anchor", "drift"}),
        ("srum_paper", "adamw", 0.0, {"token_weight", "repelled", "drift"}),
        ("nft", "adamw", 0.0, {"token_advantage", "repelled", "drift", "nft"}),
    ],
)
def test_other_objectives(weights, tmp_path, objective, optimizer, anchor, logged):
    cfg = config(
        weights,
        train__objective=objective,
        train__anchor=anchor,
        train__optim__optimizer=optimizer,
    )
    work = write(Workdir(tmp_path), cfg)
    moved, rows = check(cfg, work, run(cfg, work))
    assert moved and all(may_move(path) for path in moved)
    assert logged | {"mse"} <= set(rows[0]) and rows[0]["mse"] > 0
    assert ("drift" in rows[0]) == (objective != "srum_release")


@pytest.mark.slow
def test_a_run_that_runs_away_is_stopped(weights, tmp_path):
    cfg = config(weights, train__max_drift=1e-6)
    work = write(Workdir(tmp_path), cfg)
    with pytest.raises(
        Diverged, match="relative_drift = .* at step 2 is above train.max_drift = 1e-06. .*anchor"
    ):
        run(cfg, work)
    assert not (work.stage("train") / "manifest.json").exists()


@pytest.mark.slow
def test_everything_may_be_trained(weights, tmp_path):
    cfg = config(weights, train__objective="sft", train__trainable="all")
    work = write(Workdir(tmp_path), cfg)
    moved, _ = check(cfg, work, run(cfg, work))
    assert {"blocks/und/v/w", "embed", "blocks/gen/v/w"} <= moved
    assert not any(path.startswith("vit/") for path in moved)  # no pictures are read


def stopped(monkeypatch, step, go):
    """A training `go()` of three steps that is told to stop in its step `step`."""
    stop, make = threading.Event(), pipeline.batches

    def stopping(*args, **more):
        for n, batch in enumerate(make(*args, **more), 1):
            if n == step:
                stop.set()
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(preemption, "stop", stop)
        patch.setattr(pipeline, "batches", stopping)
        with pytest.raises(Preempted, match=f"train: stopped at step {step} of 3, state saved"):
            go()


@pytest.mark.slow
def test_stopped_and_resumed_bit_for_bit(done, tmp_path, monkeypatch):
    cfg, first, _ = done
    work = write(Workdir(tmp_path), cfg)
    stopped(monkeypatch, 2, lambda: run(cfg, work))
    assert not (work.stage("train") / "manifest.json").exists()
    run(cfg, work)
    for a, b in zip(trained(cfg, work), trained(cfg, first), strict=True):
        for path in a:
            np.testing.assert_array_equal(a[path], b[path], err_msg=path)
    assert plain(work.stage("train")) == plain(first.stage("train"))
    results = [json.loads(w.results.read_text())["rounds"] for w in (work, first)]
    assert results[0] == results[1]


def test_stages_before_must_be_finished(weights, tmp_path):
    with pytest.raises(FileNotFoundError, match="generate/manifest.json: missing"):
        run(config(weights), Workdir(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_other_candidates_are_another_run(done, weights):
    cfg, work, _ = done
    other = dataclasses.replace(cfg, seed=1)
    with pytest.raises(ValueError, match="config seed: was 0, is 1"):
        run(other, work)


def test_prompts_are_scored_before_a_picture_is_decoded(tmp_path, monkeypatch):
    class Asked(Exception):
        """In place of judging."""

    def asked(prompts, *_):
        raise Asked(*prompts)

    cfg = config("")
    work = write(Workdir(tmp_path), cfg)
    shutil.rmtree(work.stage("score"))
    monkeypatch.setattr(Image.Image, "load", None)  # what decodes
    monkeypatch.setattr(loading, "base", lambda *args, **how: None)
    monkeypatch.setattr(judges, "decomposed", asked)
    with pytest.raises(Asked) as found:
        score.run(cfg, tiny.mesh(cfg), work)
    assert found.value.args == tuple(np.repeat(PROMPTS, K))
