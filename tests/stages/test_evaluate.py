"""The stage: both models measured on the same prompts and noise, in the form of the contract."""

import json
import pathlib
import random

import jax
import jsonschema
import numpy as np
import pytest
import tiny

from srum_jax.core import params
from srum_jax.data import shapes, units
from srum_jax.data.images import decode
from srum_jax.evals import shapes as verifier
from srum_jax.stages import evaluate, generate, model, report_pictures, score
from srum_jax.stages.manifest import Outcome, Workdir, run_stage
from srum_jax.training import checkpoint

SCHEMA = json.loads((pathlib.Path(__file__).parents[1] / "results.schema.json").read_text())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("weights") / "model")


def run(cfg, work, stage=evaluate):
    mesh = tiny.mesh(cfg)
    with jax.set_mesh(mesh):
        return stage.run(cfg, mesh, work)


def train(cfg, work, seed=1):
    """A train stage that leaves other random numbers."""

    def body(folder):
        made, _ = params.split(tiny.weights(seed)[0], model.trainable(cfg.train.trainable))
        checkpoint.save_params(folder / "params", made)
        return Outcome({"params": "params"}, {}, 1)

    run_stage("train", cfg, work, sections=(), inputs={}, body=body)


def scene(prompt, seed):
    return shapes.draw(shapes.scene_for(random.Random(seed), shapes.parse(prompt)))


def able_painter(opened, cfg, mesh):
    """Draws what is asked, the base only where the seed is even; otherwise an empty ground."""
    base = (opened.params["vae2llm"]["b"] == tiny.weights()[0]["vae2llm"]["b"]).all()

    def paint(prompts, seeds):
        empty = shapes.draw(shapes.Scene((), shapes.ground(random.Random(0))))
        images = [
            empty if base and seed % 2 else scene(p, seed)
            for p, seed in zip(prompts, seeds, strict=True)
        ]
        return np.stack(images), np.zeros((len(prompts), *tiny.GRID), np.float32)

    return paint


@pytest.fixture(scope="module")
def done(weights, tmp_path_factory):
    """A run with generate, score and train, in which the base draws every second picture right."""
    work = Workdir(tmp_path_factory.mktemp("work"), config_file="configs/tiny.py")
    cfg = tiny.load_config(weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "painter", able_painter)
        run(cfg, work, generate)
        run(cfg, work, score)
        train(cfg, work)
        return cfg, work, run(cfg, work)


def test_results_are_as_the_contract_says(done):
    cfg, work, manifest = done
    results = json.loads(work.results.read_text())
    jsonschema.validate(results, SCHEMA)
    part = results["rounds"][0]
    assert set(part) == {"round", "t2i", "qa", "scores"}
    assert part["t2i"]["base"]["n"] == part["t2i"]["trained"]["n"] == 7
    assert sum(c["n"] for c in part["t2i"]["base"]["by_category"].values()) == 7
    assert part["qa"]["base"]["n"] == part["qa"]["trained"]["n"] == 22
    assert len(part["qa"]["base"]["by_category"]) == len(shapes.KINDS)
    best = part["t2i"]["best_of_k"]
    assert best["k"] == 2 and best["self"]["n"] == best["oracle"]["n"] == 3
    assert set(part["scores"]["by_proposer"]) == {"components", "grid"}
    assert sum(part["scores"]["image_status"].values()) == 10  # of the stage `score`
    assert manifest.counts == {"prompts": 7, "images": 3 * 2 + 4 + 7, "answers": 44}
    assert manifest.timing["items"] == 17 + 44
    assert run(cfg, work) == manifest


def test_verdicts_follow_the_pictures(done):
    cfg, work, _ = done
    found = json.loads((work.stage("evaluate") / "evaluation.json").read_text())
    records = [r for r in units.read(work.stage("evaluate") / "base") if r["k"] == 0]
    assert [p["prompt_id"] for p in found["prompts"]] == list(range(7))
    for row, record in zip(found["prompts"], records, strict=True):
        assert row["base_correct"] == (record["seed"] % 2 == 0) == (not row["base_reason"])
        assert row["trained_correct"] and row["prompt"] == record["prompt"]
        assert record["seed"] == generate.candidate_seed(cfg.evaluate.seed, row["prompt_id"], 0)
    t2i = found["t2i"]
    assert t2i["trained"]["accuracy"] == 1
    assert t2i["base"]["correct"] == sum(r["seed"] % 2 == 0 for r in records) < 7
    assert t2i["paired"]["trained_only"] == 7 - t2i["base"]["correct"]
    every = list(units.read(work.stage("evaluate") / "base"))[:6]
    oracle = sum(any(r["seed"] % 2 == 0 for r in every[i : i + 2]) for i in (0, 2, 4))
    assert t2i["best_of_k"]["oracle"]["correct"] == oracle


def test_the_report_can_show_the_pairs(done):
    _, work, _ = done
    path = work.stage("evaluate") / "pairs.json"
    pairs = json.loads(path.read_text())
    assert len(pairs) == 7
    for pair in pairs:
        for name in ("base", "trained"):
            image = decode((path.parent / pair[f"{name}_image"]).read_bytes(), name="pair")
            right = verifier.verify(image, pair["prompt"]).right
            assert right == pair[f"{name}_correct"]
    assert "Right only when trained" in str(report_pictures.pairs(path))


def test_what_was_made_is_not_made_again(done, monkeypatch):
    cfg, work, manifest = done
    folder = work.stage("evaluate")
    before = json.loads((folder / "evaluation.json").read_text())
    for name in ("manifest.json", "evaluation.json", "answers-trained.json"):
        (folder / name).unlink()
    draws, asked = [], []
    monkeypatch.setattr(generate, "draw_unit", lambda *args: draws.append(args))
    asker = model.asker
    monkeypatch.setattr(
        model, "asker", lambda opened, *a, **k: asked.append(opened) or asker(opened, *a, **k)
    )
    again = run(cfg, work)
    assert not draws and again.counts == manifest.counts
    assert len(asked) == 2  # for `score.score`, which finds its units, and the trained answers
    assert json.loads((folder / "evaluation.json").read_text()) == before


def test_a_run_that_does_not_train(weights, tmp_path):
    """Through the model itself; the judge is measured on the candidates it chose among."""
    work = Workdir(tmp_path, config_file="configs/tiny.py")
    cfg = tiny.load_config(
        weights,
        stages=("evaluate",),
        evaluate__count=4,
        evaluate__questions=11,
        score__proposers=("grid", "components"),
    )
    manifest = run(cfg, work)
    results = json.loads(work.results.read_text())
    jsonschema.validate(results, SCHEMA)
    part = results["rounds"][0]
    assert "trained" not in part["t2i"] and "trained" not in part["qa"]
    assert part["scores"]["proposer"] == "grid"
    assert sum(part["scores"]["image_status"].values()) == 6
    assert "pairs" not in manifest.outputs and manifest.counts["images"] == 3 * 2 + 1
    answers = json.loads((work.stage("evaluate") / "answers-base.json").read_text())
    questions = shapes.qa_set("test", 11)
    assert [a["question"] for a in answers] == [q.text for _, q in questions]
    assert all(a["right"] == (a["given"] == a["answer"]) for a in answers)


def test_prompts_without_a_verifier_are_left_out_and_named(weights, tmp_path, caplog):
    (tmp_path / "mine.txt").write_text("describe the image\na red circle\n")
    cfg = tiny.load_config(
        weights,
        stages=("evaluate",),
        evaluate__questions=11,
        evaluate__prompts=str(tmp_path / "mine.txt"),
    )
    with caplog.at_level("INFO", logger="absl"):
        manifest = run(cfg, Workdir(tmp_path / "some", config_file="c"))
    assert "1 of 2 prompts are left out" in caplog.text
    assert manifest.counts == {"prompts": 1, "images": 2, "answers": 11}
    (tmp_path / "mine.txt").write_text("describe the image\n")
    work = Workdir(tmp_path / "none", config_file="c")
    assert run(cfg, work).counts == {"prompts": 0, "images": 0, "answers": 11}
    results = json.loads(work.results.read_text())
    jsonschema.validate(results, SCHEMA)
    assert set(results["rounds"][0]) == {"round", "qa"}


def test_the_train_stage_must_be_finished(weights, tmp_path):
    cfg = tiny.load_config(weights, stages=("train", "evaluate"))
    with pytest.raises(FileNotFoundError, match="train/manifest.json: missing"):
        run(cfg, Workdir(tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_judge_is_held_against_the_verifier():
    """Two candidates of a prompt, one right; scores that are right, wrong, and none."""
    prompt = "a red circle and a blue square"
    good = scene(prompt, 3)
    bad = good.copy()
    boxes = [(box, pair) for *pair, box in verifier.verify(good, prompt).found]
    (x0, y0, x1, y1), _ = boxes[0]
    bad[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1] = good[0, 0]

    def region(box, value, name="components"):
        status = "ok" if np.isfinite(value) else "unparsed"
        return {
            "bbox": np.array(box, np.float32),
            "score": value,
            "status": status,
            "label": "",
            "proposer": name,
        }

    shown = [{"image": image, "prompt": prompt, "prompt_id": 0} for image in (good, bad)]
    shown.append({"image": good, "prompt": "a dog", "prompt_id": 1})
    scored = [
        {
            "image_score": 0.9,
            "image_status": "ok",
            "regions": [
                region(boxes[0][0], 0.8),
                region(boxes[1][0], 0.7),
                region((0, 0, 32, 32), -0.5, "grid"),
            ],
        },
        {
            "image_score": -0.2,
            "image_status": "ok",
            "regions": [region(boxes[0][0], 0.75), region(boxes[1][0], np.nan)],
        },
        {"image_score": np.nan, "image_status": "undecomposed", "regions": []},
    ]
    section = evaluate.scores_section(shown, scored, ("components", "grid"))
    assert section["image_auc"] == 1 and section["image_n"] == 2
    assert section["region_auc"] == 0.5 and section["region_n"] == 3
    assert section["status"] == {"ok": 3, "unparsed": 1}
    assert "region_auc" not in section["by_proposer"]["grid"]
    assert section["image_auc_within_prompt"] == 1
    # Records of a proposer that the config no longer names are passed over.
    alone = evaluate.scores_section(shown, scored, ("components",))
    assert alone["by_proposer"].keys() == {"components"} and alone["region_auc"] == 0.5
    assert evaluate.scores_section(shown[2:], scored[2:], ("components",)) == {}


def test_pairs_take_outcomes_and_categories_in_turn():
    base = [True] * 6 + [False] * 2
    trained = [True] * 6 + [False, True]
    categories = ["a"] * 4 + ["b"] * 4
    assert evaluate.choose_pairs(base, trained, categories, 4) == [0, 4, 6, 7]
    assert evaluate.choose_pairs(base, trained, categories, 6) == [0, 1, 4, 5, 6, 7]
    assert evaluate.choose_pairs(base, trained, categories) == list(range(8))
