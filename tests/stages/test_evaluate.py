"""The stage: both models measured on the same prompts and noise, in the form of the contract."""

import dataclasses
import json
import pathlib
import random
from collections.abc import Callable
from types import SimpleNamespace

import jax
import jsonschema
import numpy as np
import pytest
import tiny
from etils import epath
from stages import test_score

from srum_jax.core import param_tree
from srum_jax.data import shards
from srum_jax.data.images import decode, picture
from srum_jax.evals.model_under_test import ModelUnderTest
from srum_jax.evals.suite import EditRequest, Replies, Requests, TextRequest
from srum_jax.generation import image_request, image_sampler, text_generator
from srum_jax.rewards import question_templates
from srum_jax.rewards.boxes.regions import GridProposer
from srum_jax.rewards.logits import LogitJudge
from srum_jax.stages import (
    evaluate,
    generate,
    judges,
    loading,
    replies,
    report,
    score,
    verified,
)
from srum_jax.stages.manifest import Outcome, Workdir, run_stage
from srum_jax.training import checkpoint
from srum_jax.worlds.shapes import (
    changes,
    exam,
    examples,
    language,
    question_forms,
    rendering,
    verifier,
)
from srum_jax.worlds.shapes import questions as shapes_questions
from srum_jax.worlds.shapes import suite as exam_suite

SCHEMA = json.loads((pathlib.Path(__file__).parents[1] / "results.schema.json").read_text())


SEVERAL, CAPTIONS, EDITS = 7, 9, 8


def load_config(weights, **values):
    few = {
        "evaluate__multi_image_questions": SEVERAL,
        "evaluate__captions": CAPTIONS,
        "evaluate__edits": EDITS,
    }
    return tiny.load_config(weights, **(few | values))


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
        made, _ = param_tree.split(tiny.weights(seed)[0], tiny.trainable(cfg.train.trainable))
        checkpoint.save_params(folder / "params", made)
        return Outcome({"params": "params"}, {}, 1)

    run_stage("train", cfg, work, sections=(), inputs={}, body=body)


def scene(prompt, seed):
    return rendering.draw(examples.scene_for(random.Random(seed), language.parse(prompt)))


def is_base(params):
    return (params["vae2llm"]["b"] == tiny.weights()[0]["vae2llm"]["b"]).all()


@dataclasses.dataclass
class Sampler:
    """Draws what is asked, the base only where the seed is even; otherwise an empty ground.

    sample: what it draws of other requests.
    """

    base: bool
    sample: Callable | None = None

    def stream_prompts(self, several, *, params=None):
        empty = rendering.draw(rendering.Scene((), rendering.ground(random.Random(0))))
        for prompts, seeds in several:
            pairs = zip(prompts, seeds, strict=True)
            images = [empty if self.base and seed % 2 else scene(p, seed) for p, seed in pairs]
            yield np.stack(images), np.zeros((len(prompts), *tiny.GRID), np.float32)


def seen(items):
    """What tells contexts with a picture and words apart."""
    return b"".join(
        np.asarray(getattr(i, "patches", getattr(i, "ids", b""))).tobytes() for i in items
    )


def able_of(loaded, *rest):
    """The base describes and edits only every second scene as it should, the trained all."""
    asked, layout = TRUE_OF(loaded, *rest), loaded.cfg.layout
    base, known = is_base(loaded.params), {}
    words = loaded.tokenizer.text
    for i, s in enumerate(shapes_questions.caption_set("test", CAPTIONS)):
        right = language.wordings(language.scene_contents(s)[0])[0]
        known[seen((picture(rendering.draw(s), layout), words(question_forms.DESCRIBE)))] = (
            "a red" if base and i % 2 else right
        )
    for i, e in enumerate(changes.edit_set("test", EDITS)):
        made = rendering.draw(e.source if base and i % 2 else e.target)
        known[seen((picture(rendering.draw(e.source), layout), words(e.instruction)))] = made

    def write(contexts, *, max_tokens):
        return [text_generator.GeneratedText(known[seen(c)], (), True) for c in contexts]

    def draw(requests, settings=None):
        return [image_request.GeneratedImage(known[seen(r.context[1:])], None) for r in requests]

    generator = SimpleNamespace(generate=write)
    return dataclasses.replace(asked, sampler=Sampler(base, draw), generator=generator)


TRUE_OF = replies.model_under_test


@pytest.fixture(scope="module")
def done(weights, tmp_path_factory):
    """A run with generate, score and train, in which the base does about half of all right."""
    work = Workdir(tmp_path_factory.mktemp("work"), config_file="configs/tiny.py")
    cfg = load_config(weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loading.LoadedModel, "image_sampler", lambda self, *_: Sampler(is_base(self.params))
        )
        patch.setattr(replies, "model_under_test", able_of)
        run(cfg, work, generate)
        run(cfg, work, score)
        train(cfg, work)
        return cfg, work, run(cfg, work)


def test_results_are_as_the_contract_says(done):
    cfg, work, manifest = done
    results = json.loads(work.results.read_text())
    jsonschema.validate(results, SCHEMA)
    part = results["rounds"][0]
    assert set(part) == {"round", "t2i", "qa", "captions", "edits", "scores", "suites"}
    assert part["t2i"]["base"]["n"] == part["t2i"]["trained"]["n"] == 7
    assert sum(c["n"] for c in part["t2i"]["base"]["by_category"].values()) == 7
    kinds = {*question_forms.KINDS, *changes.PAIR_KINDS, *changes.CLIP_KINDS}
    for name, n in (("qa", 22 + SEVERAL), ("captions", CAPTIONS), ("edits", EDITS)):
        for arm in (part[name]["base"], part[name]["trained"]):
            assert arm["n"] == n == sum(c["n"] for c in arm["by_category"].values())
    assert part["qa"]["base"]["by_category"].keys() == kinds
    assert part["edits"]["base"]["by_category"].keys() == set(changes.EDITS)
    best = part["t2i"]["best_of_k"]
    assert best["k"] == 2 and best["self"]["n"] == best["oracle"]["n"] == 3
    assert set(part["scores"]["by_proposer"]) == {"components", "grid"}
    assert sum(part["scores"]["image_status"].values()) == 10  # of the stage `score`
    answers = 2 * (22 + SEVERAL + CAPTIONS)
    images = 3 * 2 + 4 + 7
    counts = {"prompts": 7, "images": images, "answers": answers, "edits": 2 * EDITS}
    assert manifest.counts == counts
    assert manifest.timing["items"] == images + answers + 2 * EDITS
    assert run(cfg, work) == manifest


def test_verdicts_follow_the_pictures(done):
    cfg, work, _ = done
    found = json.loads((work.stage("evaluate") / "evaluation.json").read_text())
    records = [r for r in shards.read(work.stage("evaluate") / "shapes/base/images") if r["k"] == 0]
    assert [p["prompt_id"] for p in found["prompts"]] == list(range(7))
    for row, record in zip(found["prompts"], records, strict=True):
        assert row["base_correct"] == (record["seed"] % 2 == 0) == (not row["base_reason"])
        assert row["trained_correct"] and row["prompt"] == record["prompt"]
        assert record["seed"] == image_sampler.candidate_seed(
            cfg.evaluate.seed, row["prompt_id"], 0
        )
    t2i = found["t2i"]
    assert t2i["trained"]["accuracy"] == 1
    assert t2i["base"]["correct"] == sum(r["seed"] % 2 == 0 for r in records) < 7
    assert t2i["paired"]["trained_only"] == 7 - t2i["base"]["correct"]
    every = list(shards.read(work.stage("evaluate") / "shapes/base/images"))[:6]
    oracle = sum(any(r["seed"] % 2 == 0 for r in every[i : i + 2]) for i in (0, 2, 4))
    assert t2i["best_of_k"]["oracle"]["correct"] == oracle


def test_captions_and_edits_are_judged_and_the_first_can_be_shown(done):
    _, work, manifest = done
    folder = work.stage("evaluate")
    part = json.loads((folder / "evaluation.json").read_text())
    for name, n in (("captions", CAPTIONS), ("edits", EDITS)):
        assert part[name]["base"]["correct"] == n - n // 2
        assert part[name]["trained"]["correct"] == n
        assert part[name]["paired"]["trained_only"] == n // 2
    kinds = part["edits"]["base"]["by_category"]
    assert [kinds[k]["correct"] for k in changes.EDITS] == [2, 0, 2, 0]  # kinds come in turn

    def picture(name):
        return decode((folder / name).read_bytes(), name=name)

    captions = json.loads((folder / manifest.outputs["examples-captions"]).read_text())
    for i, (shown, s) in enumerate(
        zip(captions, shapes_questions.caption_set("test", 6), strict=True)
    ):
        assert np.array_equal(picture(shown["image"]), rendering.draw(s))
        assert shown["base_correct"] == (i % 2 == 0) and shown["trained_correct"]
        for arm in ("base", "trained"):
            right = verifier.verify_caption(shown[f"{arm}_caption"], s)
            assert right == shown[f"{arm}_correct"]
    edits = json.loads((folder / manifest.outputs["examples-edits"]).read_text())
    for shown, edit in zip(edits, changes.edit_set("test", 6), strict=True):
        assert shown["instruction"] == edit.instruction
        assert np.array_equal(picture(shown["image"]), rendering.draw(edit.source))
        for arm in ("base", "trained"):
            right = verifier.verify_edit(picture(shown[f"{arm}_image"]), edit)
            assert right == shown[f"{arm}_correct"]
    (drawn,) = report.read({}, [folder.parent]).rounds
    assert [item.asked for item in drawn.shown["edits"]] == [e["instruction"] for e in edits]
    assert all(item.given and all(r.picture for r in item.replies) for item in drawn.shown["edits"])
    for item, caption in zip(drawn.shown["captions"], captions, strict=True):
        assert item.given and item.replies[1].text == caption["trained_caption"]


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
    (drawn,) = report.read({}, [path.parent.parent]).rounds
    assert len(drawn.shown["t2i"]) == len(pairs)
    assert all(reply.right or reply.reason for item in drawn.shown["t2i"] for reply in item.replies)
    assert {item.failed for item in drawn.items["t2i"]} == {True, False}


def test_what_was_made_is_not_made_again(done, monkeypatch):
    cfg, work, manifest = done
    folder = work.stage("evaluate")
    before = json.loads((folder / "evaluation.json").read_text())
    (folder / "manifest.json").unlink()
    (folder / "evaluation.json").unlink()
    (folder / "shapes" / "trained" / "answers").rmtree()
    draws, made = [], []
    monkeypatch.setattr(generate, "seeded", lambda *args: draws.append(args))
    for name in ("answers", "texts", "edits"):
        does = getattr(ModelUnderTest, name)
        monkeypatch.setattr(
            ModelUnderTest,
            name,
            lambda asked, some, n=name, d=does: made.append((n, len(some))) or d(asked, some),
        )
    again = run(cfg, work)
    assert not draws and made == [("answers", 22 + SEVERAL)]  # of the trained model
    assert again.counts == manifest.counts and again.outputs == manifest.outputs
    assert json.loads((folder / "evaluation.json").read_text()) == before


@dataclasses.dataclass(frozen=True)
class Interrupted:
    """A model under test that is stopped at its second call."""

    calls: list
    batch: int = 1
    think_tokens: int = 0
    sampler = None

    def texts(self, requests):
        self.calls.append(len(requests))
        if self.calls == [4, 4]:
            raise KeyboardInterrupt
        return [request.id for request in requests]

    def edits(self, requests):
        self.texts(requests)
        return [np.full((4, 4, 3), int(request.id), np.uint8) for request in requests]

    answers = texts


@pytest.mark.parametrize("kind", ["texts", "edits"])
def test_replies_are_asked_for_in_parts(tmp_path, kind):
    """Parts of 4·batch; those that are whole stay."""
    made = {
        "texts": lambda i: TextRequest(str(i), "a", (), "what ?", 3),
        "edits": lambda i: EditRequest(str(i), "a", np.zeros((4, 4, 3), np.uint8), "what ?", i),
    }[kind]
    requests, calls = Requests(**{kind: [made(i) for i in range(10)]}), []

    def replied():
        place = epath.Path(tmp_path)
        how = dict(loaded=None, asked=Interrupted(calls), cfg=None, mesh=None, title="x")
        return getattr(replies.replies(requests, place, **how), kind)

    with pytest.raises(KeyboardInterrupt):
        replied()
    for _ in range(2):
        found = replied()
        said = [int(one if kind == "texts" else one[0, 0, 0]) for one in found]
        assert said == list(range(10))
    assert calls == [4, 4, 4, 2]


@pytest.mark.parametrize("left", [b"", b"cut"])
def test_damaged_replies_are_asked_for_again(tmp_path, left):
    requests = Requests(texts=[TextRequest(str(i), "a", (), "what ?", 3) for i in range(2)])

    def replied():
        how = dict(loaded=None, asked=Interrupted([]), cfg=None, mesh=None, title="x")
        return list(replies.replies(requests, epath.Path(tmp_path), **how).texts)

    assert replied() == ["0", "1"]
    (shard,) = (tmp_path / "texts").glob("*.array_record-*")
    shard.write_bytes(left)
    assert replied() == ["0", "1"]


def test_a_model_of_another_kind_is_asked_nothing(weights, caplog):
    cfg = load_config(weights)
    asked = exam_suite.make(cfg).requests("trained")
    assert [len(x) for x in (asked.images, asked.answers, asked.texts, asked.edits)] == [
        7,
        22 + SEVERAL,
        CAPTIONS,
        EDITS,
    ]
    with caplog.at_level("INFO", logger="absl"):
        other = exam_suite.make(dataclasses.replace(cfg, model="bagel_7b_mot"))
    asked = other.requests("base")
    assert not (asked.answers or asked.texts or asked.edits)
    assert "no questions are asked" in caplog.text
    nothing = evaluate.ModelOutputs(Requests(), Replies(), other.verdicts(Requests(), Replies()))
    found = other.findings({"base": nothing})
    assert found.section == {} and found.fields == {} and found.examples == {}


@pytest.mark.slow
def test_a_run_that_does_not_train(weights, tmp_path):
    """Through the model itself; the judge is measured on the candidates it chose among."""
    work = Workdir(tmp_path, config_file="configs/tiny.py")
    cfg = load_config(
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
    for name in ("captions", "edits"):
        assert part[name]["base"]["n"] and "trained" not in part[name]
        shown = json.loads((work.stage("evaluate") / f"examples-{name}.json").read_text())
        assert len(shown) == 6 and not any("trained_correct" in one for one in shown)
    answers = json.loads((work.stage("evaluate") / "evaluation.json").read_text())["items"]["qa"]
    questions = shapes_questions.qa_set("test", 11) + changes.several_set("test", SEVERAL)
    assert [a["question"] for a in answers] == [q.text for _, q in questions]
    assert [a["expected"] for a in answers] == [q.answer for _, q in questions]
    assert all(a["base_correct"] == (a["base_answer"] == a["expected"]) for a in answers)
    kept = shards.read(work.stage("evaluate") / "shapes/base/answers")
    assert [one["text"] for one in kept] == [a["base_answer"] for a in answers]


@pytest.mark.slow
def test_prompts_without_a_verifier_are_left_out_and_named(weights, tmp_path, caplog):
    (tmp_path / "mine.txt").write_text("describe the image\na red circle\n")
    cfg = load_config(
        weights,
        stages=("evaluate",),
        evaluate__questions=11,
        evaluate__prompts=str(tmp_path / "mine.txt"),
    )
    with caplog.at_level("INFO", logger="absl"):
        manifest = run(cfg, Workdir(tmp_path / "some", config_file="c"))
    assert "1 of 2 prompts are left out" in caplog.text
    tasks = {"answers": 11 + SEVERAL + CAPTIONS, "edits": EDITS}
    assert manifest.counts == {"prompts": 1, "images": 2} | tasks
    (tmp_path / "mine.txt").write_text("describe the image\n")
    work = Workdir(tmp_path / "none", config_file="c")
    assert run(cfg, work).counts == {"prompts": 0, "images": 0} | tasks
    results = json.loads(work.results.read_text())
    jsonschema.validate(results, SCHEMA)
    assert set(results["rounds"][0]) == {"round", "qa", "captions", "edits", "suites"}


def test_the_train_stage_must_be_finished(weights, tmp_path):
    cfg = load_config(weights, stages=("train", "evaluate"))
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
    exact = exam.ShapesVerifier()
    section = verified.scores_section(shown, scored, ("components", "grid"), exact)
    assert section["image_auc"] == 1 and section["image_n"] == 2
    assert section["region_auc"] == 0.5 and section["region_n"] == 3
    assert section["status"] == {"ok": 3, "unparsed": 1}
    assert "region_auc" not in section["by_proposer"]["grid"]
    assert section["image_auc_within_prompt"] == 1
    # Records of a proposer that the config no longer names are passed over.
    alone = verified.scores_section(shown, scored, ("components",), exact)
    assert alone["by_proposer"].keys() == {"components"} and alone["region_auc"] == 0.5
    assert verified.scores_section(shown[2:], scored[2:], ("components",), exact) == {}


def test_own_scores_are_of_prompts_that_are_decomposed_like_those_of_the_stage_score(
    tmp_path, monkeypatch
):
    def panel(loaded, cfg, mesh, *, scenes):
        judge = LogitJudge(test_score.Scorer(), test_score.Words(), scenes=scenes)
        return judges.JudgePanel(judge, (GridProposer(),))

    def decomposed(prompts, *_):
        return {prompt: question_templates.whole(prompt) for prompt in prompts}

    monkeypatch.setattr(judges, "panel", panel)
    monkeypatch.setattr(judges, "decomposed", decomposed)
    cfg, records = load_config("", score__proposers=("grid",)), test_score.candidates()[1:3]
    scored = replies.own_scores(None, records, tmp_path / "scores", cfg, None)
    answers = [answer for record in scored for answer in json.loads(record["answers"])]
    assert [kind for _, kind, *_ in answers] == ["caption_right"] * 2


def test_pairs_take_outcomes_and_categories_in_turn():
    base = [True] * 6 + [False] * 2
    trained = [True] * 6 + [False, True]
    categories = ["a"] * 4 + ["b"] * 4
    assert exam_suite.choose_pairs(base, trained, categories, 4) == [0, 4, 6, 7]
    assert exam_suite.choose_pairs(base, trained, categories, 6) == [0, 1, 4, 5, 6, 7]
    assert exam_suite.choose_pairs(base, trained, categories) == list(range(8))
