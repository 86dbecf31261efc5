"""Suites put to a model that thinks before it draws, edits and answers."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import thinking_model
import tiny
import tiny_janus
from PIL import Image

from srum_jax import api, use, use_evaluate, use_options
from srum_jax.core import console
from srum_jax.core.errors import BadInput
from srum_jax.data.prompts import Prompt
from srum_jax.evals.suite import (
    AnswerRequest,
    DrawRequest,
    EditRequest,
    Requests,
    TextRequest,
)
from srum_jax.generation.text_generator import GeneratedText, TextGenerator
from srum_jax.models.bagel import hf
from srum_jax.stages import evaluate, replies
from srum_jax.stages.manifest import Workdir
from srum_jax.stages.preflight import Checks

PICTURE = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
PROMPTS = ["a red circle", "two blue squares"]
THOUGHT = 5  # tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that can think, of numbers so large that what it reads matters."""
    folder = tmp_path_factory.mktemp("thinker")
    path, cfg = thinking_model.words(folder / "words")
    rng = np.random.default_rng(9)
    trees = jax.tree.map(
        lambda x: np.float32(rng.normal(0, 0.7, x.shape)), thinking_model.shapes(cfg)
    )
    hf.save(folder / "model", cfg, *trees, "float32", tokenizer_files=[path])
    how = {"generate": {"size": [32, 32], "steps": 2, "guidance": 2.5, "batch": 4}}
    told = {"srum_jax": {**how, "think_tokens": THOUGHT, "batch": 4, "window": 256}}
    (folder / "model" / "generation_config.json").write_text(json.dumps(told))
    return folder / "model"


@pytest.fixture(scope="module")
def thinker(folder):
    return api.load(folder, precision="float32")


def config(weights="", **values):
    small = {"sample__size": (32, 32), "sample__steps": 2, "sample__guidance": 2.5}
    small |= {"compute__dtype": "float32"}
    small |= {"sample__batch": 4, "evaluate__batch": 4, "evaluate__think_tokens": THOUGHT}
    return tiny.load_config(weights, **(small | values))


def asked(thinker, requests, folder):
    """Replies of the model as suites get them."""
    loaded, settings = use_evaluate.opened(thinker), thinker.generation_config.generate
    cfg = dataclasses.replace(config(), sample=settings)
    with jax.set_mesh(thinker.mesh):
        under_test = replies.model_under_test(loaded, cfg, thinker.mesh)
        where = replies.epath.Path(folder)
        return replies.replies(
            requests, where, loaded, under_test, cfg, thinker.mesh, title="thinking"
        )


def test_it_draws_and_edits_behind_its_plan_as_for_a_person(thinker, tmp_path):
    drawn = [DrawRequest(Prompt(i, p, "c", ""), k) for i, p in enumerate(PROMPTS) for k in (0, 1)]
    edits = [EditRequest(f"e{i}", "c", PICTURE, word, 7 + i) for i, word in enumerate(PROMPTS)]
    found = asked(thinker, Requests(images=drawn, edits=edits), tmp_path)
    seeds = [int(one["seed"]) for one in found.images]
    both = [p for p in PROMPTS for _ in (0, 1)]
    people = thinker.generate(both, seeds=seeds, think=True)
    assert [one.thought for one in people] == found.thoughts["images"]
    assert found.thoughts["images"][0] != found.thoughts["images"][2]
    for one, other in zip(people, found.images, strict=True):
        np.testing.assert_allclose(one.image, other["image"], atol=2)
    plain = thinker.generate(both[0], seeds=seeds[:1])[0].image
    assert np.abs(plain - found.images[0]["image"].astype(int)).max() > 9
    people = thinker.edit([PICTURE] * 2, PROMPTS, seeds=[7, 8], think=True)
    assert [one.thought for one in people] == found.thoughts["edits"]
    for one, other in zip(people, found.edits, strict=True):
        np.testing.assert_allclose(one.image, other, atol=2)


def test_what_it_thought_is_no_part_of_its_answer(thinker, tmp_path, monkeypatch):
    told = {}

    def write(self, contexts, *, max_tokens, **_):
        told.update(max_tokens=max_tokens, beginnings=[len(c[0].ids) for c in contexts])
        words = ["<think> it is\nround </think>\nyes", "<think> it never ends", "</think>"]
        return [GeneratedText(text, (), True) for text in words]

    monkeypatch.setattr(TextGenerator, "generate", write)
    words = "is there a red circle ?"
    texts = [TextRequest(str(i), "c", [PICTURE], words, 16) for i in range(3)]
    found = asked(thinker, Requests(texts=texts), tmp_path)
    assert list(found.texts) == ["yes", "", ""]
    assert list(found.thoughts["texts"]) == ["it is\nround", None, ""]
    assert told["max_tokens"] == 16 + THOUGHT and min(told["beginnings"]) > 40  # the system text


def test_a_first_token_leaves_no_room_to_think(thinker, tmp_path):
    answers = [AnswerRequest("a", "c", [PICTURE], "is there a red circle ?")]
    with pytest.raises(BadInput, match="before which nothing can be thought"):
        asked(thinker, Requests(answers=answers), tmp_path)


@pytest.fixture
def pope(tmp_path):
    """A question of POPE's."""
    (tmp_path / "val2014").mkdir()
    Image.fromarray(PICTURE).save(tmp_path / "val2014" / "a.jpg")
    row = dict(question_id=1, image="a.jpg", text="is there a red circle ?", label="yes")
    (tmp_path / "coco_pope_random.json").write_text(json.dumps(row) + "\n")
    return f"pope:{tmp_path}"


def checked(cfg, tmp_path):
    found = Checks(cfg.stages)
    evaluate.check(cfg, Workdir(tmp_path / "work", config_file="c"), found)
    return found


def test_a_run_asks_with_thinking(folder, pope, tmp_path, monkeypatch):
    monkeypatch.setattr("srum_jax.evals.suites.pope.SUFFIX", "")
    said = GeneratedText("<think> it is </think> Yes.", (), True)
    monkeypatch.setattr(TextGenerator, "generate", lambda self, asked, **_: [said] * len(asked))
    how = {"weights": folder, "stages": ("evaluate",), "evaluate__suites": (pope,)}
    cfg = config(**how)
    work = Workdir(tmp_path / "work", config_file="c")
    assert f"behind a thought of up to {THOUGHT} tokens" in "".join(checked(cfg, tmp_path).notes)
    mesh = tiny.mesh(cfg)
    with jax.set_mesh(mesh):
        evaluate.run(cfg, mesh, work)
    found = json.loads(work.results.read_text())["rounds"][0]["suites"]["pope"]
    assert found["decoding"]["think_tokens"] == THOUGHT
    (path,) = work.stage("evaluate").glob("pope/base/replies.jsonl")
    reply = json.loads(path.read_text())
    assert reply["reply"] == "Yes." and reply["thought"] == "it is"
    assert found["models"]["base"]["strict"]["accuracy"] == 1


@pytest.mark.parametrize("kind", ["janus", "words"])
def test_who_cannot_think_says_so_before_it_is_asked(kind, pope, tmp_path):
    if kind == "janus":
        weights = tiny_janus.save(tmp_path / "janus")
    else:
        weights = tiny.write_model(tmp_path / "model")
    how = {"weights": weights, "stages": ("evaluate",), "evaluate__suites": (pope,)}
    why = {"janus": "Janus-Pro draws from words alone", "words": "it lacks words"}[kind]
    assert why in "".join(checked(config(**how), tmp_path).problems)
    options = use_evaluate_options(weights, pope.partition(":")[2], tmp_path)
    with pytest.raises(BadInput, match=f"--think, --model .*{why}"):
        use_evaluate.evaluated(options)
    assert not (tmp_path / "out").exists()


def use_evaluate_options(model, data, tmp_path):
    words = ["evaluate", "--suite", "pope", "--data", data, "--model", str(model), "--think"]
    return use_options.parse([*words, "-o", str(tmp_path / "out")], "srum")


def test_a_folder_of_results_says_what_was_thought(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "cache_compiled_programs", lambda: None)
    row = {"include": [{"class": "circle", "count": 1, "color": "red"}], "prompt": PROMPTS[0]}
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text(json.dumps({"tag": "colors", **row}) + "\n")
    words = ["use", "evaluate", "--suite", "geneval", "--data", str(path), "--judge", "none"]
    words += ["--model", str(folder), "-o", str(tmp_path / "out")]
    assert use.main([*words, "--think"]) == 0
    assert f"4 pictures drawn by 1 model, each behind a thought of up to {THOUGHT}" in (
        capsys.readouterr().err
    )
    told = json.loads((tmp_path / "out" / "settings.json").read_text())
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert told["drawing"]["think_tokens"] == scores["drawing"]["think_tokens"] == THOUGHT
    rows = [
        json.loads(x) for x in (tmp_path / "out" / "generations.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 4 and len({one["thought"] for one in rows}) == 1 and rows[0]["thought"]
    assert use.main(words) == 2
    assert "holds an evaluation with drawing" in capsys.readouterr().err


def test_results_that_do_not_say_it_are_not_taken_for_thinking(tmp_path, capsys):
    words = ["use", "evaluate", "--suite", "geneval", "--data", "shapes", "--think"]
    assert use.main([*words, "-o", str(tmp_path / "out"), "--import", str(tmp_path)]) == 2
    assert "--think: nothing in geneval's results says" in capsys.readouterr().err
