"""Held-back prompts by the own score: what is compared, who judges, which pictures are kept."""

import json

import jax
import jsonschema
import numpy as np
import pytest
import tiny
from stages import test_evaluate

from srum_jax.config import Config
from srum_jax.data.prompts import Prompt
from srum_jax.evals.suite import JudgeReply, ModelOutputs, Replies
from srum_jax.evals.suites import own_score
from srum_jax.stages import evaluate, replies
from srum_jax.stages.manifest import Workdir

PROMPTS = tuple(Prompt(i, f"prompt {i}", "ab"[i % 2]) for i in range(6))


def outputs(suite, values, judged=None):
    """A model's, with these own scores; None for none."""
    requests = suite.requests("base")
    scores = [
        {"image_score": np.nan if v is None else v, "image_status": "ok" if v is not None else "no"}
        for v in values
    ]
    pictures = [{"image": np.full((4, 4, 3), i, np.uint8)} for i in range(len(values))]
    said = Replies(images=pictures, scores=scores, judged=judged or {})
    return ModelOutputs(requests, said, suite.verdicts(requests, said))


def test_models_are_compared_on_the_same_prompts():
    suite = own_score.OwnScore(PROMPTS, ())
    base = outputs(suite, [0.0, 0.2, 0.4, None, 0.0, 0.0])
    trained = outputs(suite, [0.5, 0.2, 0.0, 0.9, 0.0, 0.0])
    found = suite.findings({"base": base, "trained": trained})
    models = found.section["models"]
    assert models["base"]["failed"] == 1 and models["base"]["n"] == 6
    assert models["base"]["strict"]["score"] == pytest.approx(0.6 / 5)
    assert models["trained"]["strict"]["score"] == pytest.approx(1.6 / 6)
    assert models["base"]["by_category"]["b"] == {"n": 3, "score": pytest.approx(0.1)}
    paired = found.section["paired"]
    assert paired["diff"] == pytest.approx(1.6 / 6 - 0.6 / 5)
    assert paired["ci95"][0] < paired["diff"] < paired["ci95"][1]
    kept = found.examples["examples-own_score"]
    assert [row["prompt"] for row in kept[:2]] == ["prompt 0", "prompt 2"]  # most up, most down
    assert kept[0]["base_value"] == 0 and kept[0]["trained_value"] == 0.5
    assert "base_value" not in next(row for row in kept if row["prompt"] == "prompt 3")


def test_another_judge_marks_beside_the_own_score():
    suite = own_score.OwnScore(PROMPTS, ("external",))
    said = [JudgeReply(f'{{"score": {n}, "explanation": "x"}}') for n in (50, 60, 70, 80, 90)]
    base = outputs(suite, [0.1] * 6, {"m": [*said, JudgeReply(status="timeout")]})
    trained = outputs(suite, [0.1] * 6, {"m": [*said, JudgeReply("no number")]})
    asked = suite.judge_requests(base.requests, base.replies)
    assert "prompt 2" in asked[2].text and asked[2].images[0][0, 0, 0] == 2
    (inner,) = suite.findings({"base": base, "trained": trained}).section["sections"].values()
    assert inner["best"] == 100 and "m" in inner["title"]
    assert (
        inner["models"]["base"]["strict"]["mark"] == 70 and inner["models"]["base"]["failed"] == 1
    )


def test_prompts_come_from_the_config_or_a_file(tmp_path):
    (tmp_path / "p.txt").write_text("a fox\na hare\n")
    assert [p.text for p in own_score.make(Config(), str(tmp_path / "p.txt"), "").prompts] == [
        "a fox",
        "a hare",
    ]
    with pytest.raises(FileNotFoundError, match="none.txt"):
        own_score.make(Config(), str(tmp_path / "none.txt"), "")


def test_one_judge_scores_both_models(tmp_path, monkeypatch):
    weights = tiny.write_model(tmp_path / "weights" / "model")
    cfg = tiny.load_config(
        weights, stages=("train", "evaluate"), evaluate__suites=("own_score",), evaluate__count=5
    )
    work = Workdir(tmp_path / "work", config_file="c")
    test_evaluate.train(cfg, work)
    judges, own_scores = [], replies.own_scores

    def scored(loaded, *rest):
        judges.append(loaded)
        return own_scores(loaded, *rest)

    monkeypatch.setattr(replies, "own_scores", scored)
    mesh = tiny.mesh(cfg)
    with jax.set_mesh(mesh):
        evaluate.run(cfg, mesh, work)
    assert len(judges) == 2 and judges[0] is judges[1]
    results = json.loads(work.results.read_text())
    jsonschema.validate(results, test_evaluate.SCHEMA)
    found = results["rounds"][0]["suites"]["own_score"]
    assert set(found["models"]) == {"base", "trained"}
    pairs = json.loads((work.stage("evaluate") / "examples-own_score.json").read_text())
    assert len(pairs) == 5 and pairs[0]["trained_image"].endswith(".png")
