"""The loop for Janus-Pro: it draws codes, judges, learns, exports, and goes on when killed."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny
import tiny_janus
from PIL import Image

from srum_jax import api, programs
from srum_jax.core import param_tree
from srum_jax.core.errors import BadInput
from srum_jax.data import shards
from srum_jax.generation import janus
from srum_jax.models.janus import hf, model_config
from srum_jax.stages import (
    draw_and_judge,
    evaluate,
    export,
    generate,
    loading,
    monitor,
    preflight,
    report,
    score,
    thinking,
    train,
)
from srum_jax.stages.manifest import Manifest, Workdir
from srum_jax.training import checkpoint, metrics

PROMPTS = ["a red circle", "a blue square", "a dog", "two cats on a mat"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_janus.save_answering(tmp_path_factory.mktemp("janus"))


def config(weights, folder, **values):
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    small = {
        "stages": ("generate", "score", "train", "evaluate", "export", "report"),
        "sample__size": (8, 8),
        "sample__guidance": 3.0,
        "generate__prompts": str(prompts),
        "generate__count": len(PROMPTS),
        "generate__candidates": 2,
        "score__proposers": ("grid",),
        "score__verify": 0.0,
        "train__steps": 3,
        "train__rows": 4,
        "train__text_dropout": 0.3,
        "train__lanes__und": 96,
        "train__lanes__gen": 16,
        "train__lanes__images": 1,
        "train__optim__learning_rate": 1e-3,
        "train__optim__warmup": 0,
        "evaluate__suites": ("own_score",),
        "evaluate__prompts": str(prompts),
        "evaluate__count": 2,
        "export__dtype": "float32",
    }
    return tiny.load_config(weights, **(small | values))


def run(stage, cfg, work):
    mesh = tiny.mesh(cfg)
    with jax.set_mesh(mesh):
        return stage.run(cfg, mesh, work)


@pytest.fixture(scope="module")
def drawn(weights, tmp_path_factory):
    """A work folder with candidates and scores, and its config."""
    folder = tmp_path_factory.mktemp("run")
    cfg = config(weights, folder)
    work = Workdir(folder / "work", config_file="c")
    for stage in (generate, score):
        run(stage, cfg, work)
    return folder, work


@pytest.mark.slow
def test_candidates_keep_their_codes_and_get_scores(weights, drawn):
    folder, work = drawn
    candidates, scores = (shards.read(work.stage(name)) for name in ("generate", "score"))
    assert len(candidates) == len(scores) == 8
    first = candidates[0]
    assert first["latent"].shape == (4, 4, 1) and first["image"].shape == (8, 8, 3)
    assert (first["latent"] == first["latent"].astype(int)).all()
    # Drawn for a person, with the candidate's own seed, it is the same.
    seed = generate.candidate_seed(0, first["prompt_id"], 0)
    loaded = api.load(weights, precision="float32")
    (again,) = loaded.generate(first["prompt"], seeds=[seed], guidance=3.0)
    np.testing.assert_array_equal(again.latents, first["latent"])
    assert "ok" in {scores[i]["image_status"] for i in range(8)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"train__trainable": "lora", "train__lora__rank": 2, "train__objective": "srum_advantage"},
        {"train__trainable": "gen", "train__objective": "srum_release"},
    ],
    ids=["lora", "full"],
)
def test_it_learns_and_leaves_a_folder(values, weights, drawn, tmp_path):
    folder, done = drawn
    suites = ("own_score", f"pope:{questions(tmp_path / 'pope')}")
    cfg = config(weights, folder, evaluate__suites=suites, **values)
    work = copied(done, tmp_path)
    for stage in (train, evaluate, export, report):
        run(stage, cfg, work)
    rows = metrics.read(work.stage("train") / "metrics.jsonl")
    compared = ["drift", "relative_drift", "clip_fraction"] if "lora" in values.values() else []
    for name in ("loss", "ce", "ce_wordless", "entropy", *compared):
        assert all(np.isfinite(row[name]) for row in rows), name
    assert "own_score" in (work.stage("evaluate") / "evaluation.json").read_text()
    found = json.loads(work.results.read_text())["rounds"][0]["suites"]
    asked = found["pope"]["models"]
    assert [asked[name]["n"] for name in ("base", "trained")] == [4, 4]
    assert found["pope"]["paired"]["of"] == ["trained", "base"]
    used = {"size": [8, 8], "guidance": 3.0, "temperature": 1.0, "top_k": 0}
    assert found["own_score"]["drawing"]["images"] == used
    page = (work.root / "report.html").read_text()
    assert "own score" in page and "Entropy of drawn tokens" in page
    assert "flow matching" not in page
    made = work.stage("export") / Manifest.read(work.stage("export")).outputs["model"]
    cfg_made = model_config.from_folder(made)
    after, coder = hf.load(made, cfg_made)
    before, coder_before = hf.load(weights, model_config.from_folder(weights))
    changed = {
        path
        for path, leaf in param_tree.flatten(after).items()
        if not np.array_equal(leaf, param_tree.flatten(before)[path])
    }
    assert changed and all(p.startswith(("blocks/", "norm/", "gen_")) for p in changed)
    jax.tree.map(np.testing.assert_array_equal, coder, coder_before)
    assert api.load(made).generate("a dog")[0].image.shape == (8, 8, 3)
    if "lora" in values.values():
        adapter = work.stage("export") / "adapter"
        told = json.loads((adapter / "adapter_config.json").read_text())
        assert told["r"] == 2 and "language_model" in told["target_modules"]
        merged = api.load(weights, adapter=adapter, precision="float32")
        np.testing.assert_allclose(
            merged.params["blocks"]["q"]["w"], after["blocks"]["q"]["w"], atol=1e-5
        )


def questions(folder):
    """A folder of POPE: four questions about one picture."""
    folder.mkdir()
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(folder / "a.png")
    rows = [
        {"question_id": i, "image": "a.png", "text": f"Is there a {thing} ?", "label": label}
        for i, (thing, label) in enumerate(zip(["dog", "cat"] * 2, ["no", "yes"] * 2, strict=True))
    ]
    (folder / "coco_pope_random.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def copied(done, tmp_path) -> Workdir:
    """A work folder as `drawn` left it."""
    shutil.copytree(done.root, tmp_path / "work")
    return Workdir(tmp_path / "work", config_file="c")


@pytest.mark.slow
@pytest.mark.parametrize("rate, collapses", [(0.02, True), (1e-4, False)])
def test_a_run_that_collapses_is_named(rate, collapses, weights, drawn, tmp_path, caplog):
    """By the plain cross-entropy, which keeps no reference, and without the monitor."""
    folder, done = drawn
    values = {"train__objective": "sft", "train__trainable": "gen", "train__steps": 60}
    cfg = config(weights, folder, train__optim__learning_rate=rate, **values)
    work = copied(done, tmp_path)
    with caplog.at_level("WARNING", logger="absl"):
        run(train, cfg, work)
    part = json.loads(work.results.read_text())["rounds"][0]["train"]
    assert ("collapse" in part) == collapses
    assert ("the entropy of drawn tokens fell from" in caplog.text) == collapses
    run(report, cfg, work)
    page = (work.root / "report.html").read_text()
    assert ("A sign of collapse:</b> the entropy of drawn tokens" in page) == collapses


def test_whose_leaves_judge(weights, tmp_path):
    """Of one language model that draws and answers those of the start, which are there twice only
    where the loss reads none."""
    mark = {"blocks": {"w": np.ones(2, np.float32)}}

    def found(start, folder=weights, **values):
        cfg = config(folder, tmp_path, **({"train__monitor__prompts": 4} | values))
        sizes = loading.described(loading.located(folder))[0]
        return train.judging(cfg, mark, programs.training(cfg, sizes), start)

    kept = found(None, train__trainable="gen", train__objective="sft")
    np.testing.assert_array_equal(kept["blocks"]["w"], mark["blocks"]["w"])
    assert kept["blocks"]["w"] is not mark["blocks"]["w"]
    start = {"blocks": {"w": np.zeros(2)}}
    advantage = {"train__trainable": "all", "train__objective": "srum_advantage"}
    assert found(start, **advantage) is start
    assert found(None, train__trainable="lora", train__objective="sft") == {}
    assert found(None, train__monitor__prompts=0) is None
    apart = tiny.write_model(tmp_path / "apart")  # answers read leaves of their own
    assert found(start, apart, train__trainable="all") is None


@pytest.mark.slow
def test_the_starting_model_judges_while_everything_is_trained(
    weights, drawn, tmp_path, monkeypatch
):
    folder, done = drawn
    monitored = {"prompts": 2, "every": 3, "questions": 4, "min_agreement": 0.0, "min_score": 2.0}
    values = {f"train__monitor__{name}": value for name, value in monitored.items()}
    values |= {"train__trainable": "all", "train__objective": "sft", "train__ema": 0.0}
    cfg = config(weights, folder, train__optim__learning_rate=0.03, **values)
    work = copied(done, tmp_path)
    held = [{"id": 90 + i, "prompt": text, "category": "x"} for i, text in enumerate(PROMPTS[:2])]
    (work.stage("generate") / "held_back.json").write_text(json.dumps(held))
    seen, true = {"draw": [], "judge": []}, {}
    for name in seen:
        true[name] = getattr(draw_and_judge, name)

        def watched(*args, params, name=name):
            seen[name].append(param_tree.flatten(params))
            return true[name](*args, params=params)

        monkeypatch.setattr(draw_and_judge, name, watched)
    run(train, cfg, work)
    base = param_tree.flatten(hf.load(weights, model_config.from_folder(weights))[0])
    assert len(seen["judge"]) == len(seen["draw"]) == 2
    for judging in seen["judge"]:
        assert judging.keys() == base.keys()
        for path, leaf in base.items():
            np.testing.assert_array_equal(judging[path], leaf, err_msg=path)
    assert not np.array_equal(seen["draw"][1]["blocks/q/w"], base["blocks/q/w"])
    first, last = monitor.read(work.stage("train"))
    assert first["agreement"] == 1 > last["agreement"]  # the one in training is asked whether


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_weights(weights, drawn, tmp_path, monkeypatch):
    folder, done = drawn
    cfg = config(weights, folder, train__steps=4, train__checkpoint_every=2, train__objective="sft")
    whole = copied(done, tmp_path / "a")
    run(train, cfg, whole)
    torn, calls, true = copied(done, tmp_path / "b"), [], train.TrainingSet.batch

    def killed(self, step, at):
        calls.append(step)
        if step == 3:
            raise KeyboardInterrupt
        return true(self, step, at)

    with monkeypatch.context() as patch:
        patch.setattr(train.TrainingSet, "batch", killed)
        with pytest.raises(KeyboardInterrupt):
            run(train, cfg, torn)
    run(train, cfg, torn)
    a, b = (
        checkpoint.load_params(
            w.stage("train") / "params", checkpoint.saved_shapes(w.stage("train") / "params")
        )
        for w in (whole, torn)
    )
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_it_plans_in_words_nowhere(weights, tmp_path):
    """The run says so before it starts, and what would draw does."""
    cfg = config(weights, tmp_path, generate__think=True)
    found = preflight.Checks(cfg.stages)
    generate.check(cfg, Workdir(tmp_path / "work", config_file="c"), found)
    assert found.problems[0].startswith("generate.think: Janus-Pro draws from words alone")
    sizes, tokenizer = loading.described(loading.located(weights))
    loaded = loading.LoadedModel(sizes, None, None, tokenizer, family=janus)
    with pytest.raises(BadInput, match="generate.think: Janus-Pro draws from words alone"):
        thinking.sampler(loaded, cfg, tiny.mesh(cfg))


def test_what_does_not_fit_it_is_told_before_anything_runs(weights, tmp_path):
    parts = loading.located(weights)
    assert parts.sizes == parts.words == parts.folder
    cfg = config(weights, tmp_path, train__objective="nft")
    with pytest.raises(BadInput, match="token by token"):
        train.programs.training(cfg, loading.described(parts)[0])
