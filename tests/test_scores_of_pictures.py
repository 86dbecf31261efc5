"""The model's own score through the API and the shell, and drawing the best of several by it.

A tiny model that says little but yes or no, so that most pictures have a score.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
import test_api
import tiny
from stages import test_monitor

from srum_jax import api, scoring, use
from srum_jax.core import console
from srum_jax.core.errors import BadInput
from srum_jax.data import images as pictures
from srum_jax.data import shards
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.rewards import decompose, question_templates
from srum_jax.stages import score
from srum_jax.stages.manifest import Workdir
from srum_jax.worlds.shapes import examples

PROMPT = "a red circle and a blue square"
PROMPTS = [PROMPT, "two blue squares", "a green cross"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.write_model(tmp_path_factory.mktemp("models") / "model", answers=True)
    settings = test_api.SETTINGS | {"score": {"verify": 0.0, "crop": 0}}
    (folder / "generation_config.json").write_text(json.dumps({"srum_jax": settings}))
    return folder


@pytest.fixture(scope="module")
def bagel(folder):
    return api.load(folder)


def same(one, other):
    """Whether two scores are equal, rounding of another batch apart."""
    parts = [(a, *a.regions) for a in (one, other)]
    return len(parts[0]) == len(parts[1]) and all(
        a.status == b.status and np.isclose(a.score, b.score, atol=1e-5, equal_nan=True)
        for a, b in zip(*parts, strict=True)
    )


@pytest.mark.parametrize("readout", ["logits", "regions", "decomposed"])
def test_a_picture_has_the_score_that_the_stage_gives_it(readout, folder, tmp_path, monkeypatch):
    if readout == "decomposed":  # a model of free words, but asked in the world's words
        monkeypatch.setattr(Tokenizer, "word_level", False)
        monkeypatch.setattr(Tokenizer, "answers", lambda self, word: (self.id(word),))
        monkeypatch.setattr(question_templates, "natural", str)
        monkeypatch.setattr(decompose, "decompose_prompts", test_monitor.misread)
    cfg = test_monitor.config(folder, **test_monitor.READ_OUTS[readout])
    shown = [examples.clean_image(7, i) for i in range(5)]
    records = [
        {"id": f"{i}-0", "prompt_id": i, "prompt": prompt, "category": "none", "k": 0, "seed": 0}
        | {"image": image, "latent": np.zeros(tiny.GRID, np.float32)}
        for i, (prompt, image) in enumerate(shown)
    ]
    work, mesh = Workdir(tmp_path / "work", config_file="c"), tiny.mesh(cfg)
    test_monitor.generated(work, cfg, records)
    with jax.set_mesh(mesh):
        score.run(cfg, mesh, work)
    stored = list(shards.read(work.stage("score")))
    bagel = api.load(folder, score=dataclasses.asdict(cfg.score))
    given = bagel.score([image for _, image in shown], [prompt for prompt, _ in shown])
    assert [one.status for one in given] == [s["image_status"] for s in stored]
    for one, s in zip(given, stored, strict=True):
        np.testing.assert_allclose(one.score, s["image_score"], atol=1e-6)
        regions = test_monitor.of_first(s, cfg)
        assert [r.status for r in one.regions] == [r["status"] for r in regions]
        found, want = (
            [(*r.box, r.score) for r in one.regions],
            [(*r["bbox"], r["score"]) for r in regions],
        )
        np.testing.assert_allclose(found, want, atol=1e-6)
    scored = [one.score for one in given if one.status == "ok"]
    assert len(scored) >= 2 and len(set(np.round(scored, 5))) > 1


def test_scores_do_not_depend_on_their_company(bagel, tmp_path):
    shown = [test_api.image(i) for i in range(3)]
    every = bagel.score(shown, PROMPTS)
    assert len({one.score for one in every if one.status == "ok"}) > 1
    for image, prompt, one in zip(shown, PROMPTS, every, strict=True):
        assert same(bagel.score(image, prompt), one)
    path = tmp_path / "a.png"
    path.write_bytes(pictures.encode_png(shown[0]))
    assert same(bagel.score(path, PROMPT), every[0])
    assert bagel.score([], []) == []


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda b: b.score([test_api.image(0)] * 3, PROMPTS[:2]), "3 images, but 2 prompts"),
        (lambda b: b.score([test_api.image(0)] * 3, PROMPT), "3 images, but 1 prompts"),
        (lambda b: b.score(test_api.image(0), PROMPTS), "1 images, but 3 prompts"),
        (lambda b: b.score(test_api.image(0), 5), "score: a prompt is a text"),
        (lambda b: b.score(None, PROMPT), "an image is a path"),
        (lambda b: b.generate(PROMPT, best_of=0), "best_of must be at least 1, got 0"),
        (lambda b: b.generate(PROMPT, best_of="8"), "best_of must be a whole number"),
    ],
)
def test_what_cannot_be_scored_is_refused(bagel, call, message):
    with pytest.raises(BadInput, match=message):
        call(bagel)


def test_boxes_of_a_run_are_refused(folder, monkeypatch):
    bagel = api.load(folder, score={"proposers": ["file"], "boxes": "b.jsonl"})
    with pytest.raises(BadInput, match='score.proposers: "file" names candidates of a run'):
        bagel.score(test_api.image(0), PROMPT)
    monkeypatch.setattr(api.Model, "_draw", None)  # nothing is drawn before
    with pytest.raises(BadInput, match="names candidates of a run"):
        bagel.generate(PROMPT, best_of=2)


def test_the_best_of_several_is_the_one_that_scores_highest(bagel):
    plain = bagel.generate(PROMPTS[:2], seed=3)
    chosen = bagel.generate(PROMPTS[:2], seed=3, best_of=4)
    for first, one in zip(plain, chosen, strict=True):
        seeds = scoring.candidate_seeds(first.seed, 4)
        tried = bagel.generate([one.prompt] * 4, seeds=seeds)
        scores = bagel.score(tried, [one.prompt] * 4)
        assert len({s.score for s in scores}) == 4
        best = int(np.nanargmax([s.score for s in scores]))
        assert test_api.near(tried[0].image, first.image)
        assert test_api.near(tried[best].image, one.image)
        assert one.seed == seeds[best] and same(one.score, scores[best])
    (alone,) = bagel.generate(PROMPT, seed=3, best_of=1)
    assert test_api.near(alone.image, plain[0].image) and alone.score and not plain[0].score


def test_what_has_no_score_loses(caplog):
    nothing = scoring.ImageScore(float("nan"), "no regions", ())
    known = [scoring.ImageScore(value, "ok", ()) for value in (-0.9, 0.5, 0.5)]
    assert scoring.best([nothing, *known]) == 2 and not caplog.text
    with caplog.at_level("WARNING", logger="absl"):
        assert scoring.best([nothing, nothing]) == 0
    assert "best_of: no candidate has a score (2 no regions); the first is taken" in caplog.text


def test_the_shell_draws_the_same_and_keeps_the_score(bagel, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "load", lambda *_, **__: bagel)
    monkeypatch.setattr(console, "cache_compiled_programs", lambda: None)
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    out = tmp_path / "out"
    command = ["use", "generate", "--model", str(folder), "--prompts", str(tmp_path / "p.txt")]
    command += ["-o", str(out)]
    assert use.main([*command, "--best_of", "2"]) == 0
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    drawings = bagel.generate(PROMPTS, best_of=2)
    for record, drawing in zip(records, drawings, strict=True):
        np.testing.assert_array_equal(pictures.load(out / record["file"]), drawing.image)
        assert (record["best_of"], record["chosen_seed"]) == (2, drawing.seed)
        assert record["image_status"] == drawing.score.status
        assert record["image_score"] == (drawing.score.score if record["image_score"] else None)
    assert any(record["image_score"] for record in records)
    assert use.main([*command, "--best_of", "3"]) == 2 and use.main(command) == 2
    assert "image 0-0 was drawn with best_of = 2, not None" in capsys.readouterr().err
    assert use.main([*command, "--best_of", "2"]) == 0
    with pytest.raises(SystemExit):
        use.main([*command, "--best_of", "0"])
