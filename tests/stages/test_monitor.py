"""Monitor checks: what they measure, when they end a training, and what a stopped run leaves."""

import dataclasses
import hashlib
import json
import shutil
import types
import zlib

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest
import tiny
from stages import test_evaluate, test_train

from srum_jax.config import MonitorConfig
from srum_jax.core import digests
from srum_jax.core.errors import BadInput
from srum_jax.data import shards
from srum_jax.data.prompt_reader import ANYBODY, PromptReader
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation.text_generator import GeneratedText, TextGenerator
from srum_jax.rewards import decompose, judge, logits, parsing, question_templates
from srum_jax.stages import draw_and_judge, generate, judges, monitor, score, train, verified
from srum_jax.stages.manifest import Outcome, Workdir, run_stage
from srum_jax.stages.rollout import Rollout
from srum_jax.training import metrics
from srum_jax.worlds.shapes import exam

BOUNDS = MonitorConfig(
    prompts=3,
    candidates=2,
    every=1,
    questions=5,
    min_score=0.2,
    min_diversity=0.3,
    min_agreement=0.9,
    patience=2,
)
FIRST = {"step": 0, "own_score": 0.5, "diversity": 1.0, "agreement": 1.0}


def row(step, **values):
    return {**FIRST, "step": step, **values}


@pytest.mark.parametrize("word_level", [True, False])
def test_questions_are_worded_as_the_judge_words_them(word_level):
    """Both read the same templates: with blanks before signs, or as people write."""
    vocabulary = types.SimpleNamespace(word_level=word_level, encode=str.split, answers=len)
    (plan,) = logits._plans(["a red circle"], vocabulary, None)
    asked = monitor.questions(["a red circle", "A dream."], vocabulary, 9)
    assert asked == [(0, text) for text in plan.texts(plan.image)]


# -------------------------------------------------------------------------------------- the bounds


@pytest.mark.parametrize(
    "values, fault",
    [
        ({"own_score": 0.3}, None),
        ({"own_score": 0.29}, "own score is 0.290, at least 0.300 is wanted"),
        ({"diversity": 0.3}, None),
        ({"diversity": 0.29}, "diversity is 0.290, at least 0.300 is wanted"),
        ({"agreement": 0.9}, None),
        ({"agreement": 0.89}, "agreement is 0.890, at least 0.900 is wanted"),
        ({"own_score": 0.9, "counts_right": 0.0}, None),
    ],
)
def test_each_bound(values, fault):
    assert monitor.broken(row(2, **values), FIRST, BOUNDS) == ([fault] if fault else [])


def test_what_can_no_longer_be_measured_is_out_of_bounds():
    assert monitor.broken({"step": 2}, FIRST, BOUNDS) == [
        "own score is unknown, at least 0.300 is wanted",
        "diversity is unknown, at least 0.300 is wanted",
        "agreement is unknown, at least 0.900 is wanted",
    ]
    assert monitor.broken(row(2, agreement=0.1), {"step": 0}, BOUNDS) == []


def test_patience_and_recovery():
    good, bad, worse = {}, {"own_score": 0.1}, {"diversity": 0.1}

    def after(*looks):
        rows = [FIRST, *(row(2 * i, **look) for i, look in enumerate(looks, 1))]
        return monitor.stopped(rows, BOUNDS)

    assert monitor.stopped([], BOUNDS) is None and after() is None
    assert after(bad) is None and after(bad, good) is None and after(bad, good, worse) is None
    found = after(good, bad, worse)  # not the same bound, but out of bounds all the time
    assert (found.step, found.kept) == (6, 2)
    assert found.why == (
        "diversity is 0.100, at least 0.300 is wanted (out of bounds in 2 monitor checks in a row)"
    )
    assert after(bad, bad).kept == 0
    once = dataclasses.replace(BOUNDS, patience=1)
    assert monitor.stopped([FIRST, row(2, **bad)], once).kept == 0


# ------------------------------------------------------------------------------ what is measured


def judgement(score, count, status=judge.OK):
    region = judge.RegionJudgement((0, 0, 4, 4), 0.0, judge.OK, "", (), "components")
    return judge.Judgement((region,) * count, score, status, {})


def test_prompts_follow_those_that_are_drawn(tmp_path, caplog):
    class Words:
        def encode(self, text):
            if text == "6":
                raise ValueError
            return [1]

    (tmp_path / "list.txt").write_text("".join(f"{i}\n" for i in range(100)))

    def held(count, rounds=1, reader=ANYBODY):
        source = {"generate__prompts": str(tmp_path / "list.txt"), "generate__rejects": 0.01}
        cfg = tiny.load_config("", **source)
        part = dataclasses.replace(cfg.generate, count=count, order="file")
        cfg = dataclasses.replace(cfg, generate=part, rounds=rounds)
        found = generate.readable(Rollout.of(cfg, reader).held_back, reader)
        assert all(str(r["id"]) == r["prompt"] and r["category"] for r in found)
        return [r["id"] for r in found]

    assert held(10) == list(range(10, 74)) and held(10, rounds=2) == list(range(20, 84))
    assert not [r for r in caplog.records if "held back" in r.message]
    cannot = PromptReader(tokenizer=Words())  # what the model cannot read is left out
    assert held(4, reader=cannot) == [4, 5, *range(7, 69)]
    with caplog.at_level("INFO", logger="absl"):
        assert held(60) == list(range(60, 100))
        assert not [r for r in caplog.records if "held back" in r.message]
        assert held(60, rounds=2) == list(range(90, 100))
    assert "of the 100 prompts" in caplog.text and "10 are held back, and 90 drawn" in caplog.text


def test_prompts_of_the_stage_before(tmp_path, caplog):
    with pytest.raises(FileNotFoundError, match="held_back.json: missing; run the generate stage"):
        monitor.prompts(tmp_path, 3)
    assert monitor.prompts(tmp_path, 0) == []
    records = [{"id": i, "prompt": "a", "category": "b"} for i in range(5)]
    (tmp_path / "held_back.json").write_text(json.dumps(records))
    assert monitor.prompts(tmp_path, 3) == records[2:] and not caplog.records
    assert monitor.prompts(tmp_path, 6) == records and "5 prompts, 6 were asked for" in caplog.text
    (tmp_path / "held_back.json").write_text('[{"id": 1}]')
    with pytest.raises(ValueError, match="held_back.json: must be a list of records with"):
        monitor.prompts(tmp_path, 3)


# ------------------------------------------------------------------------------------ in a training


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("weights") / "model")


MONITORED = (
    "two blue squares",
    "a red circle and a green cross",
    "a red circle left of a blue square",
)


def config(weights, **values):
    """Three steps, a look after each."""
    small = {f"train__monitor__{key}": value for key, value in dataclasses.asdict(BOUNDS).items()}
    return test_train.config(weights, **(small | {"train__objective": "sft"} | values))


def write(work, cfg):
    """What the stages before leave."""
    records = [{"id": 90 + i, "prompt": p, "category": "none"} for i, p in enumerate(MONITORED)]
    test_train.write(work, cfg)
    (work.stage("generate") / "held_back.json").write_text(json.dumps(records))
    return work


LENIENT = {
    "train__monitor__min_diversity": 0.0,
    "train__monitor__min_score": 2.0,
    "train__monitor__min_agreement": 0.0,
}


@pytest.fixture(scope="module")
def done(weights, tmp_path_factory):
    """A run of everything trained, with bounds that nothing breaks."""
    cfg = config(weights, train__trainable="all", **LENIENT)
    work = write(Workdir(tmp_path_factory.mktemp("done"), config_file="c"), cfg)
    return cfg, work, test_train.run(cfg, work)


@pytest.mark.slow
def test_rows_pictures_and_answers(done):
    cfg, work, manifest = done
    folder = work.stage("train")
    rows = monitor.read(folder)
    assert [r["step"] for r in rows] == [0, 1, 2, 3]
    assert rows[0]["diversity"] == rows[0]["agreement"] == 1.0
    for r in rows:
        assert sum(r["status"].values()) == 6 and r["counted"] == 6
        assert r["diversity"] == pytest.approx(r["distance"] / rows[0]["distance"])
        assert 0 <= r["agreement"] <= 1 and 0 <= r["counts_right"] <= 1
    looked = [list(monitor.sampled_images(folder, r["step"])) for r in rows]
    assert [r["prompt"] for r in looked[0]] == [text for text in MONITORED for _ in range(2)]
    assert [r["seed"] for r in looked[0]] == [r["seed"] for r in looked[2]]
    assert not np.array_equal(looked[0][0]["latent"], looked[2][0]["latent"])
    answers = json.loads((folder / "monitor" / "answers.json").read_text())
    assert len(answers) == 5 and len({a["image"] for a in answers}) > 1
    logged = {
        r["step"]: r for r in metrics.read(folder / "metrics.jsonl") if "monitor_diversity" in r
    }
    assert logged.keys() == {1, 2, 3}
    assert logged[3]["monitor_agreement"] == rows[3]["agreement"]
    part = json.loads(work.results.read_text())["rounds"][0]["train"]
    assert part["monitor"] == monitor.curve(rows) and "stopped_at" not in part
    assert manifest.counts["steps"] == 3
    kept = [path.parent.name for path in folder.glob("monitor/*/params")]
    assert sorted(kept) == ["2", "3"] and cfg.train.keep == 2


@pytest.mark.slow
def test_agreement_is_with_the_first_answers(done, tmp_path):
    """Of five answers on file three are made others: two fifths stay."""
    cfg, work, _ = done
    other = Workdir(tmp_path, config_file="c")
    shutil.copytree(work.root, tmp_path, dirs_exist_ok=True)
    path = other.stage("train") / "monitor" / "answers.json"
    answers = json.loads(path.read_text())
    path.write_text(
        json.dumps([{**a, "answer": "?"} if i < 3 else a for i, a in enumerate(answers)])
    )
    mesh, held = tiny.mesh(cfg), monitor.prompts(other.stage("generate"), 3)
    opened = train.loading.base(cfg, other, mesh)
    with jax.set_mesh(mesh):
        asked = monitor.TrainingMonitor(cfg, mesh, other.stage("train"), opened, {}, held)
        asked.measure(2, opened.params)  # the weights of the start
    assert asked.rows[-1]["agreement"] == pytest.approx(0.4)
    assert asked.rows[-1]["diversity"] == 1.0  # bit for bit the first pictures
    assert [r["step"] for r in monitor.read(other.stage("train"))] == [0, 1, 2]
    path.write_text("")  # as a disk may leave it
    with jax.set_mesh(mesh):
        assert "agreement" not in asked.measure(2, opened.params)
    assert not any("agreement" in row for row in (asked.rows[0], asked.rows[-1]))
    assert asked.stopped(2) is None


def test_where_another_process_lacks_the_first_answers_none_asks_again(
    weights, tmp_path, monkeypatch
):
    """This one could. Pictures, judgements and answers are given: no model is asked."""
    cfg = config(weights, train__trainable="all")
    work, mesh = write(Workdir(tmp_path), cfg), tiny.mesh(cfg)
    opened, held = train.loading.base(cfg, work, mesh), monitor.prompts(work.stage("generate"), 3)
    asked, calls = monitor.TrainingMonitor(cfg, mesh, work.stage("train"), opened, {}, held), []
    images, latents = np.zeros((6, 32, 32, 3), np.uint8), np.zeros((6, *tiny.GRID), np.float32)

    def likeliest(images, questions, *, params):
        calls.append(questions)
        return [[*range(len(texts))] for texts in questions]

    asked.sampler = types.SimpleNamespace(
        stream_prompts=lambda several, params: ((images, latents) for _ in several)
    )
    asked.scorer = types.SimpleNamespace(likeliest=likeliest)
    asked.panel = types.SimpleNamespace(proposers=[types.SimpleNamespace(separates=True)])
    asked.judge = lambda records, params: [judgement(0.5, 1)] * len(records)
    for step in (0, 1):
        assert asked.measure(step, opened.params)["monitor_agreement"] == 1
    monkeypatch.setattr(monitor, "any_process", lambda own, at: True, raising=False)
    assert "monitor_agreement" not in asked.measure(2, opened.params)
    assert len(calls) == 2 and not any("agreement" in row for row in (asked.rows[0], asked.rows[2]))


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_first_look(done, tmp_path, monkeypatch):
    cfg, whole, _ = done
    work = write(Workdir(tmp_path), cfg)
    test_train.stopped(monkeypatch, 2, lambda: test_train.run(cfg, work))
    looks, measure = [], monitor.TrainingMonitor.measure
    monkeypatch.setattr(
        monitor.TrainingMonitor,
        "measure",
        lambda self, n, ema: looks.append(n) or measure(self, n, ema),
    )
    test_train.run(cfg, work)
    assert looks == [3]
    assert monitor.read(work.stage("train")) == monitor.read(whole.stage("train"))


@pytest.mark.slow
def test_it_stops_and_leaves_the_last_good_weights(weights, tmp_path, monkeypatch, caplog):
    """Diversity is made to look lost from step 1 on."""
    cfg = config(weights, train__monitor__min_score=2.0)
    work = write(Workdir(tmp_path, config_file="c"), cfg)
    true, calls = monitor.distance, []

    def collapsing(latents):
        calls.append(1)
        return true(latents) * (1 if len(calls) == 1 else 0.1)

    monkeypatch.setattr(monitor, "distance", collapsing)
    manifest = test_train.run(cfg, work)
    assert "stopped early at step 2 of 3, with the weights of step 0: diversity is" in caplog.text
    assert manifest.counts["stopped_at"] == manifest.counts["steps"] == 2
    part = json.loads(work.results.read_text())["rounds"][0]["train"]
    assert (part["stopped_at"], part["weights_of"], part["steps"]) == (2, 0, 2)
    assert "2 monitor checks in a row" in part["stopped_why"]
    assert [r["agreement"] for r in part["monitor"]] == [1.0, 1.0, 1.0]
    assert not (work.stage("train") / "monitor" / "answers.json").exists()  # nobody was asked
    before, after = test_train.trained(cfg, work)
    for path, leaf in before.items():
        np.testing.assert_array_equal(leaf, after[path], err_msg=path)
    # Killed before its manifest was written: it ends where it had ended, without a further step.
    (work.stage("train") / "manifest.json").unlink()
    monkeypatch.setattr(monitor.TrainingMonitor, "measure", None)
    again = test_train.run(cfg, work)
    assert again.counts == manifest.counts
    (work.stage("train") / "manifest.json").unlink()
    (work.stage("train") / "monitor/0/params" / digests.FILE).write_text("[]")
    with pytest.raises(BadInput, match="no weights of a good check are whole"):
        test_train.run(cfg, work)


# ------------------------------------------------------------------------------- with which judge


def answered(self, contexts, *, max_tokens, temperature, seeds, params):
    """In the generator's place: a text that depends on all that it is asked with, and an empty one
    greedily, so that another attempt is made."""

    def text(context, seed):
        items = [np.asarray(x).tobytes() for x in jax.tree.leaves(list(map(vars, context)))]
        asked = repr((items, max_tokens, temperature, seed))
        return hashlib.blake2b(asked.encode(), digest_size=2).hexdigest() if temperature else ""

    return [GeneratedText(text(*one), (), True) for one in zip(contexts, seeds, strict=True)]


def numbered(text, ids, *, finished=True):
    """In the parser's place: a text of `answered` is its own score."""
    score = (int(text, 16) / 2**15 - 1, judge.OK) if text else (float("nan"), parsing.MISSING)
    return parsing.ParsedScores(dict.fromkeys(ids, score))


def any_words(self, text):
    """In the tokenizer's place: every word is one of its own."""
    return [5 + zlib.crc32(word.encode()) % 40 for word in text.split()]


def misread(prompts, source, *, params=None):
    """In the model's place as it decomposes prompts: each demands one red circle."""
    return {prompt: decompose.by_grammar("a red circle") for prompt in prompts}


READ_OUTS = {
    "logits": {"score__proposers": ("grid",), "score__crop": 8, "score__margin": 3},
    "written": {
        "score__readout": "written",
        "score__view": "outline",
        "score__written__think": False,
        "score__written__max_tokens": 4,
        "score__written__attempts": 3,
        "score__written__temperature": 0.5,
    },
    "regions": {
        "score__proposers": ("grid", "components"),
        "score__grid": 3,
        "score__regions": 4,
        "score__verify": 0.55,
    },
    "decomposed": {},
}


@pytest.mark.parametrize(
    "readout",
    [pytest.param(r, marks=pytest.mark.slow if r == "written" else ()) for r in READ_OUTS],
)
def test_it_judges_as_the_stage_score_does(readout, tmp_path, monkeypatch):
    """One model, one image: one score and one status, whatever `score` says."""
    if readout == "written":
        monkeypatch.setattr(TextGenerator, "generate", answered)
        monkeypatch.setattr(parsing, "parse", numbered)
        monkeypatch.setattr(Tokenizer, "encode", any_words)
    if readout == "decomposed":  # as with a model of free words, but asked in the world's words
        monkeypatch.setattr(Tokenizer, "word_level", False)
        monkeypatch.setattr(Tokenizer, "answers", lambda self, word: (self.id(word),))
        monkeypatch.setattr(question_templates, "natural", str)
        monkeypatch.setattr(decompose, "decompose_prompts", misread)
    folder = tiny.write_model(tmp_path / "model", answers=True)
    cfg = config(folder, train__trainable="all", seed=3, **READ_OUTS[readout])
    work = write(Workdir(tmp_path / "work", config_file="c"), cfg)
    mesh, held = tiny.mesh(cfg), monitor.prompts(work.stage("generate"), 3)
    with jax.set_mesh(mesh):
        opened = train.loading.base(cfg, work, mesh, dtype=jnp.float32)
        stage = work.stage("train")
        watch = monitor.TrainingMonitor(
            cfg, mesh, stage, opened, {}, held, seed=cfg.seed + work.round
        )
        watch.measure(0, opened.params)
        records = list(monitor.sampled_images(stage, 0))
        judged = watch.judge(records, opened.params)
        # A judge without these settings gives other scores: the test would see it.
        plain = config(folder, score__margin=cfg.score.margin)
        panel = judges.panel(opened, judges.scores_alone(plain), mesh)
        others = draw_and_judge.judge(records, panel)
        other = Workdir(tmp_path / "other", config_file="c")
        generated(other, cfg, records)
        score.run(cfg, mesh, other)
    scored = list(shards.read(other.stage("score")))
    assert [s["image_status"] for s in scored] == [j.image_status for j in judged]
    own = [(s["image_score"], [(*r["bbox"], r["score"]) for r in of_first(s, cfg)]) for s in scored]
    want = [(j.image_score, [(*r.bbox, r.score) for r in j.regions]) for j in judged]
    for (a, regions_a), (b, regions_b) in zip(own, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        np.testing.assert_allclose(regions_a, regions_b, atol=1e-5)
    assert repr([j.regions for j in judged]) != repr([j.regions for j in others])
    ok = [s["image_score"] for s in scored if s["image_status"] == judge.OK]
    assert len(ok) >= 2 and len(set(np.round(ok, 5))) > 1
    assert watch.rows[0]["own_score"] == pytest.approx(np.mean(ok), abs=1e-5)


def of_first(scored, cfg):
    return [r for r in scored["regions"] if r["proposer"] == cfg.score.proposers[0]]


def generated(work, cfg, records):
    """What the stage `generate` would have left of these images."""

    def body(folder):
        rows = [{**r, "image": test_train.encode_png(r["image"])} for r in records]
        features = shards.candidate_features(tiny.GRID)
        shards.write_shard(folder, "candidates", features, rows, 0, 1)
        shards.finish(folder, "candidates", features, [len(rows)])
        return Outcome({}, {}, len(rows))

    run_stage("generate", cfg, work, sections=(), inputs={}, body=body)


# ------------------------------------------------------------------------- beside the verifier


@pytest.mark.slow
def test_the_verifier_stands_beside_the_own_score(done, tmp_path):
    _, work, _ = done
    shutil.copytree(work.root, tmp_path, dirs_exist_ok=True)
    other = Workdir(tmp_path, config_file="c")
    folder = other.stage("train") / "monitor" / "2" / "pictures"
    records = list(shards.read(folder))
    for i, record in enumerate(records):
        image = test_evaluate.scene(record["prompt"], i) if i < 3 else record["image"]
        record["image"] = test_train.encode_png(image)
    folder.rmtree()
    features = shards.candidate_features(tiny.GRID)
    shards.write_shard(folder, monitor.NAME, features, records, 0, 1)
    shards.finish(folder, monitor.NAME, features, [len(records)])
    found = verified.monitor_rows(other, exam.ShapesVerifier())
    results = json.loads(other.results.read_text())
    results["rounds"][0]["train"]["monitor"] = found
    jsonschema.validate(results, test_evaluate.SCHEMA)
    assert [r["verified"] for r in found] == [0.0, 0.0, 0.5, 0.0]
    assert [{k: v for k, v in r.items() if k != "verified"} for r in found] == monitor.curve(
        monitor.read(other.stage("train"))
    )
