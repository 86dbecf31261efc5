"""Adapters on the road: trained beside a base that stays, monitored, resumed, merged afterwards."""

import ast

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny
from stages import test_monitor, test_train

from srum_jax.core import files, param_tree
from srum_jax.core.errors import BadInput
from srum_jax.evals.suite import Replies
from srum_jax.generation import bagel as bagel_family
from srum_jax.generation import janus
from srum_jax.models import lora
from srum_jax.models.bagel import hf
from srum_jax.stages import evaluate, export, loading, monitor, replies
from srum_jax.stages.manifest import Manifest, Workdir
from srum_jax.training import checkpoint, loop, metrics
from srum_jax.training.callbacks import MetricsLog
from srum_jax.worlds.shapes.suite import ShapesSuite

ADAPTED = {f"blocks/gen/{name}/w" for name in ("q", "k", "v", "o", "gate", "up", "down")}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("weights") / "model")


def config(weights, **values):
    lora = {
        "train__objective": "srum_advantage",  # which reads the starting model
        "train__trainable": "lora",
        "train__lora__rank": 2,
        "train__lora__alpha": 4.0,
        "train__optim__learning_rate": 0.02,
        "export__dtype": "float32",
        "stages": ("generate", "score", "train", "evaluate", "export"),
    }
    return test_monitor.config(weights, **(lora | test_monitor.LENIENT | values))


def write(folder, cfg):
    return test_monitor.write(Workdir(folder, config_file="c"), cfg)


def run(stage, cfg, work):
    mesh = tiny.mesh(cfg)
    with jax.set_mesh(mesh):
        return stage.run(cfg, mesh, work)


@pytest.fixture(scope="module")
def done(weights, tmp_path_factory):
    """A run with monitor checks that nobody disturbs: (config, workdir, summary of the loop)."""
    cfg = config(weights)
    work, summaries, true = write(tmp_path_factory.mktemp("done"), cfg), [], loop.run

    def spying(*args, **how):
        state, summary = true(*args, **how)
        summaries.append(summary)
        return state, summary

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "run", spying)
        run(test_train.train, cfg, work)
    return cfg, work, summaries[0]


def adapters(work):
    """What the stage leaves, by path."""
    folder = work.stage("train") / "params"
    return param_tree.flatten(checkpoint.load_params(folder, checkpoint.saved_shapes(folder)))


@pytest.mark.slow
def test_adapters_alone_are_made_and_kept(done):
    cfg, work, summary = done
    made = adapters(work)
    assert set(made) == {f"{p[:-1]}lora/{which}" for p in ADAPTED for which in "ab"}
    assert all(x.dtype == np.float32 and np.any(x) for x in made.values())
    before, after = test_train.trained(cfg, work)
    assert {p for p in before if not np.array_equal(before[p], after[p])} == ADAPTED
    assert set(before) == set(after)
    assert summary.programs == 1 and summary.steps == 3
    saved = work.stage("train") / "checkpoints/3/state/_METADATA"
    leaves = [ast.literal_eval(path) for path in files.read_json(saved)["tree_metadata"]]
    large = [path for path in leaves if "lora" in path]
    assert len(large) == 4 * len(made)  # parameters, their average and two moments
    others = {path[-1] for path in leaves if "lora" not in path}
    others = {name for name in others if not name.isdecimal()}  # parts of the optimiser without any
    assert others <= {"step", "skipped", "skipped_in_row", "count"}


@pytest.mark.slow
def test_it_starts_at_the_base_and_moves(done):
    cfg, work, _ = done
    rows = [r for r in metrics.read(work.stage("train") / "metrics.jsonl") if "loss" in r]
    assert rows[0]["drift"] < 1e-8 < rows[-1]["drift"]
    looks = monitor.read(work.stage("train"))
    assert [r["step"] for r in looks] == [0, 1, 2, 3]
    assert {r["agreement"] for r in looks} == {1.0}  # nobody was asked: no answer can change
    first, last = (monitor.sampled_images(work.stage("train"), n) for n in (0, 3))
    assert not np.array_equal(first[0]["latent"], last[0]["latent"])


@pytest.mark.slow
def test_the_first_look_is_at_the_base(done):
    """The last one is at the merged weights."""
    cfg, work, _ = done
    mesh = tiny.mesh(cfg)
    base = loading.base(cfg, work, mesh)
    new = loading.trained(base, cfg, work, mesh)
    for step, loaded in ((0, base), (3, new)):
        seen = list(monitor.sampled_images(work.stage("train"), step))
        with jax.set_mesh(mesh):
            sampler = loaded.image_sampler(cfg, mesh)
            prompts, seeds = [r["prompt"] for r in seen], [r["seed"] for r in seen]
            _, latents = sampler.sample_prompts(prompts, seeds)
        for record, latent in zip(seen, latents, strict=True):
            np.testing.assert_allclose(record["latent"], latent, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_resumed_bit_for_bit(done, tmp_path, monkeypatch):
    cfg, first, _ = done
    work = write(tmp_path, cfg)
    test_train.stopped(monkeypatch, 2, lambda: run(test_train.train, cfg, work))
    run(test_train.train, cfg, work)
    want = adapters(first)
    for path, leaf in adapters(work).items():
        np.testing.assert_array_equal(leaf, want[path], err_msg=path)


class Caught(Exception):
    """In place of the work itself."""


@pytest.mark.slow
def test_export_and_evaluation_see_the_merged_weights(done, monkeypatch):
    cfg, work, _ = done
    run(export, cfg, work)
    folder = work.stage("export") / Manifest.read(work.stage("export")).outputs["model"]
    assert "averaged adapters of rank 2, merged" in (folder / "README.md").read_text()
    written = param_tree.flatten(hf.load(folder, tiny.MODEL)[0])
    base = tiny.weights()[0]
    merged = param_tree.flatten(lora.merge(base, param_tree.unflatten(adapters(work)), 4.0 / 2))
    assert set(written) == set(merged)
    for path, leaf in merged.items():
        np.testing.assert_allclose(written[path], leaf, rtol=1e-6, atol=1e-7, err_msg=path)
    following = loading.base(cfg, Workdir(work.root, round=1), tiny.mesh(cfg))
    np.testing.assert_array_equal(following.params["embed"], base["embed"])

    asked = {}

    def replied(requests, folder, loaded, *rest, title, judge):
        asked[folder.name] = param_tree.flatten(loaded.params)
        if folder.name == "trained":
            raise Caught
        return Replies()

    monkeypatch.setattr(replies, "replies", replied)
    monkeypatch.setattr(ShapesSuite, "verdicts", lambda *_: None)
    with pytest.raises(Caught):
        run(evaluate, cfg, work)
    for path, leaf in merged.items():
        np.testing.assert_array_equal(asked["base"][path], param_tree.flatten(base)[path])
        np.testing.assert_allclose(asked["trained"][path], leaf, rtol=1e-6, atol=1e-7)


def test_what_the_loop_is_handed(weights, tmp_path, monkeypatch):
    """The base once, in the dtype of the products; of the start no copy beside it."""
    values = {"compute__dtype": "bfloat16", "train__monitor__prompts": 0}
    cfg = config(weights, train__lora__experts="all", **values)
    seen = test_train.handed(cfg, write(tmp_path, cfg), monkeypatch, 0)
    state, fixed = seen["state"], seen["frozen"]
    assert set(state.params["blocks"]) == {"und", "gen"}
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    assert {x.dtype for x in jax.tree.leaves(fixed.frozen)} == {np.dtype(ml_dtypes.bfloat16)}
    assert param_tree.flatten(fixed.frozen).keys() == param_tree.flatten(tiny.weights()[0]).keys()
    assert fixed.reference == {}
    (log,) = (c for c in seen["callbacks"] if isinstance(c, MetricsLog))
    assert log.cost.tokens > 0 and log.cost.flops > 0


@pytest.mark.slow
def test_adapters_of_another_rank_are_refused(done):
    cfg, work, _ = done
    other = config(cfg.weights, train__lora__rank=3)
    opened = loading.base(other, work, tiny.mesh(other))
    with pytest.raises(BadInput, match="not the parameters of this model"):
        loading.trained(opened, other, work, tiny.mesh(other))


@pytest.mark.parametrize(
    "trainable, experts, stay",
    [("gen", "all", True), ("all", "gen", False), ("lora", "gen", True), ("lora", "all", False)],
)
def test_whether_answers_may_change(weights, trainable, experts, stay):
    cfg = config(weights, train__trainable=trainable, train__lora__experts=experts)
    assert loading.answers_stay(cfg.train, bagel_family) == stay
    assert not loading.answers_stay(cfg.train, janus)  # one language model does both


def test_the_model_in_training(weights):
    cfg, base = config(weights).train, tiny.weights()[0]
    whole = loading.in_training(
        {"x": {"lora": {"a": jnp.ones(2), "b": jnp.ones(2)}}}, base, cfg, jnp.bfloat16
    )
    assert whole["x"]["lora"]["a"][0] == 2.0 and whole["x"]["lora"]["b"][0] == 1.0
    assert whole["embed"] is base["embed"]
