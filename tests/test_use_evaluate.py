"""`use evaluate`: the folder of results, going on, scores from replies alone, bad input."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import tiny_janus
from PIL import Image

from srum_jax import api, use, use_evaluate, use_options
from srum_jax.core import console, lock
from srum_jax.data.prompts import Prompt
from srum_jax.evals import benchmark, suite_folder
from srum_jax.evals.model_under_test import ModelUnderTest
from srum_jax.evals.scorers import yes_no
from srum_jax.evals.suite import DrawRequest, Requests
from srum_jax.evals.suites import docvqa, pope
from srum_jax.generation import bagel
from srum_jax.generation.generation_config import GenerationConfig

LABELS = ("yes", "no", "yes", "no", "yes")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models of other numbers that say little but yes or no."""
    root = tmp_path_factory.mktemp("models")
    return [
        tiny.write_model(root / name / "model", seed, answers=True)
        for seed, name in enumerate("ab")
    ]


@pytest.fixture
def data(tmp_path):
    """Questions of two files about two pictures, as POPE's authors write them."""
    folder = tmp_path / "pope"
    (folder / "val2014").mkdir(parents=True)
    for name in "ab":
        pixels = np.full((32, 32, 3), ord(name), np.uint8)
        Image.fromarray(pixels).save(folder / "val2014" / f"{name}.jpg")
    for category in ("random", "popular"):
        rows = [
            dict(
                question_id=i + 1,
                image=f"{'ab'[i % 2]}.jpg",
                text="is there a red circle ?",
                label=x,
            )
            for i, x in enumerate(LABELS)
        ]
        write_rows(folder / f"coco_pope_{category}.json", rows)
    return folder


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(folders, monkeypatch, capsys, tmp_path):
    """run(*arguments) -> (exit code, stdout, stderr); the official suffix has words that the tiny
    model lacks, so it is left out."""
    opened, load = {}, api.load

    def load_once(model, **how):
        key = model, how.get("mesh")
        if key not in opened:
            opened[key] = load(model, **how)
        return opened[key]

    def run(*arguments):
        try:
            code = use.main(["use", "evaluate", *map(str, arguments)])
        except SystemExit as e:  # argparse
            code = e.code
        out, err = capsys.readouterr()
        return code, out, err

    monkeypatch.setattr(api, "load", load_once)
    monkeypatch.setattr(console, "cache_compiled_programs", lambda: None)
    monkeypatch.setattr(pope, "SUFFIX", "")
    monkeypatch.chdir(tmp_path)
    return run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def asked(folders, data, *more):
    return ("--suite", "pope", "--data", data, "--model", folders[0], "-o", "out", *more)


@pytest.mark.slow
def test_a_model_that_draws_token_by_token_is_asked_the_same(run, data, tmp_path):
    folder = tiny_janus.save_answering(tmp_path / "janus")
    code, _, err = run(*asked([folder], data))
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "scores.json").read_text())["models"]["model"]
    replies = lines(tmp_path / "out" / "replies.jsonl")
    said = [yes_no.clear(r["reply"]) for r in replies]
    right = sum(one == r["truth"] for one, r in zip(said, replies, strict=True))
    assert found["n"] == 10 and found["strict"]["accuracy"] == right / 10
    model = api.load(folder)
    for name, reply in zip("ab", replies, strict=False):
        picture = data / "val2014" / f"{name}.jpg"
        assert (
            model.answer("is there a red circle ?", picture, max_tokens=16).text
            == reply["reply"]
            != ""
        )


def test_a_benchmark_of_two_models(run, folders, data, tmp_path):
    code, out, err = run(*asked(folders, data, "--against", folders[1], "--json"))
    assert code == 0, err
    assert "20 questions answered by 2 models" in err  # told before
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert {k: v for k, v in json.loads(out).items() if k in scores} == scores
    assert scores["schema"] == 1 and scores["suite"] == "pope" and scores["dialect"] == "LLaVA"
    assert scores["data"]["n"] == 10 and len(scores["data"]["sha256"]) == 64
    replies = lines(tmp_path / "out" / "replies.jsonl")
    assert [r["model"] for r in replies] == ["model"] * 10 + ["against"] * 10
    for name in ("model", "against"):
        own = [r for r in replies if r["model"] == name]
        right = sum(yes_no.clear(r["reply"]) == r["truth"] for r in own)
        found = scores["models"][name]
        assert found["n"] == 10 and found["strict"]["accuracy"] == right / 10
        low, high = found["ci95"]["accuracy"]
        assert low <= right / 10 <= high and high - low > 0.2
        assert set(found["by_category"]) == {"random", "popular"}
    paired = scores["paired"]
    first, second = (scores["models"][n]["strict"]["accuracy"] for n in ("model", "against"))
    assert paired["metric"] == "accuracy" and paired["diff"] == pytest.approx(first - second)
    assert paired["of"] == ["model", "against"]
    official = tmp_path / "out" / "official"
    rows = lines(official / "pope" / "coco_pope_random_answers.jsonl")
    assert [r["question_id"] for r in rows] == [1, 2, 3, 4, 5]
    assert (official / "pope-against" / "coco_pope_popular_answers.jsonl").exists()
    told = lines(tmp_path / "out" / "generations.jsonl")
    assert len(told) == 20 and told[0]["asked"] == "is there a red circle ?"


def test_scores_come_from_replies_alone(run, folders, data, tmp_path):
    assert run(*asked(folders, data))[0] == 0
    path = tmp_path / "out" / "scores.json"
    before = path.read_text()
    path.unlink()
    shutil.rmtree(data)
    shutil.rmtree(tmp_path / "out" / "kept")
    code, out, err = run("--rescore", "out")
    assert code == 0, err
    assert path.read_text() == before and "POPE" in out
    replies = lines(tmp_path / "out" / "replies.jsonl")
    write_rows(tmp_path / "out" / "replies.jsonl", [r | {"reply": r["truth"]} for r in replies])
    assert run("--rescore", "out")[0] == 0
    assert json.loads(path.read_text())["models"]["model"]["strict"]["accuracy"] == 1


def test_a_killed_evaluation_goes_on(run, folders, data, tmp_path, monkeypatch):
    whole = run(*asked(folders, data, "--batch", 1))
    assert whole[0] == 0
    expected = (tmp_path / "out" / "scores.json").read_text()
    shutil.rmtree(tmp_path / "out")
    texts, calls = ModelUnderTest.texts, []

    def killed(self, requests):
        calls.append(len(requests))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return texts(self, requests)

    monkeypatch.setattr(ModelUnderTest, "texts", killed)
    assert run(*asked(folders, data, "--batch", 1))[0] == 130
    calls.append("again")
    assert run(*asked(folders, data, "--batch", 1))[0] == 0
    assert calls == [4, 4, 2, "again", 2]
    assert (tmp_path / "out" / "scores.json").read_text() == expected
    calls.clear()
    assert run(*asked(folders, data, "--batch", 1))[0] == 0 and not calls


def test_data_and_results_may_lie_in_a_bucket(run, folders, data, bucket, tmp_path):
    for path in data.rglob("*"):
        if path.is_file():
            (bucket / "data" / path.relative_to(data)).write_bytes(path.read_bytes())
    how = ("--suite", "pope", "--model", folders[0])
    found = []
    for source, out in ((data, tmp_path / "out"), (bucket / "data", bucket / "out")):
        code, _, err = run(*how, "--data", source, "-o", out)
        assert code == 0, err
        scores = json.loads((out / "scores.json").read_text())
        del scores["data"]["file"]
        found.append((scores, (out / "replies.jsonl").read_text()))
        assert (out / "official" / "pope" / "coco_pope_random_answers.jsonl").exists()
    assert found[0] == found[1]
    before = (bucket / "out" / "scores.json").read_text()
    (bucket / "out" / "scores.json").unlink()
    code, _, err = run("--rescore", bucket / "out")
    assert code == 0 and (bucket / "out" / "scores.json").read_text() == before, err
    code, _, err = run(*how, "--data", bucket / "data", "-o", bucket / "out", "--limit", 4)
    assert code == 2 and "holds an evaluation" in err


def test_a_second_command_in_the_same_folder_is_refused(run, folders, data, tmp_path):
    with lock.held(tmp_path / "out"):
        code, _, err = run(*asked(folders, data))
    assert code == 2 and "is in use by process" in err
    assert not (tmp_path / "out" / "kept").exists()


def test_another_evaluation_is_not_mixed_in(run, folders, data):
    assert run(*asked(folders, data))[0] == 0
    code, _, err = run(*asked(folders, data, "--limit", 4))
    assert code == 2 and "out holds an evaluation" in err and "another folder" in err


def test_limit_takes_evenly_from_the_categories(run, folders, data, tmp_path):
    assert run(*asked(folders, data, "--limit", 4, "--seed", 3))[0] == 0
    replies = lines(tmp_path / "out" / "replies.jsonl")
    assert sorted(r["category"] for r in replies) == ["popular"] * 2 + ["random"] * 2
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["data"]["total"] == 10


BAD = {
    "no json": (lambda rows: "{\n", "line 1: not JSON"),
    "a list": (lambda rows: "[1]\n", "line 1: no object"),
    "no label": (lambda rows: dumped(rows, 2, label=None), "line 3: 'label' is None"),
    "odd label": (lambda rows: dumped(rows, 1, label="maybe"), "line 2: 'label' is 'maybe'"),
    "twice": (lambda rows: dumped(rows, 3, question_id=1), "line 4: question_id 1 stands at"),
    "number": (lambda rows: dumped(rows, 0, question_id="1"), "must be a whole number"),
    "picture": (lambda rows: dumped(rows, 0, image="c.jpg"), "line 1: the picture 'c.jpg' is not"),
    "path": (lambda rows: dumped(rows, 0, image="../a.jpg"), "leads out of the folder"),
    "empty": (lambda rows: "", "holds nothing to ask"),
}


def dumped(rows, place, **change):
    rows[place] |= change
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named_with_line_and_field(run, folders, data, kind):
    spoil, message = BAD[kind]
    path = data / "coco_pope_random.json"
    path.write_text(spoil(lines(path)))
    code, _, err = run(*asked(folders, data))
    assert code == 2 and message in err and "coco_pope_random.json" in err, err
    assert "Traceback" not in err


def test_what_is_missing_on_the_command_line_is_said(run, folders, data):
    assert "--data is missing" in run("--suite", "pope", "-o", "out")[2]
    assert "--suite is missing" in run("--data", data, "-o", "out")[2]
    code, _, err = run("--suite", "pop", "--data", data, "-o", "out")
    assert code == 2 and 'did you mean "pope"' in err
    code, _, err = run(*asked(folders, data, "--judge", "external"))
    assert code == 2 and "needs none" in err
    code, _, err = run("--rescore", data)
    assert code == 2 and "no folder of `evaluate`" in err


def test_a_split_without_answers_has_no_score(run, folders, data, tmp_path, monkeypatch):
    monkeypatch.setattr(docvqa, "SUFFIX", "")
    folder = tmp_path / "docvqa"
    (folder / "documents").mkdir(parents=True)
    shutil.copy(data / "val2014" / "a.jpg", folder / "documents" / "a.jpg")
    one = {"question": "is there a red circle ?", "image": "a.jpg"}
    rows = [{"questionId": i, **one} for i in (3, 4)]
    (folder / docvqa.TEST).write_text(json.dumps({"data": rows}))
    how = ("--suite", "docvqa", "--data", folder, "--model", folders[0], "-o", "out")
    code, out, err = run(*how)
    assert code == 0, err
    assert "this split has no answers: no score, but a file for" in err
    assert "docvqa: no scores yet" in out and "submitted to the Robust Reading" in out
    assert "model: 2 replies, 0 of them empty" in out and "--limit" not in out
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert "models" not in scores and scores["replied"] == {"model": {"n": 2, "failed": 0}}
    written = json.loads((tmp_path / "out" / "official" / "docvqa" / docvqa.SUBMISSION).read_text())
    assert [row["questionId"] for row in written] == [3, 4]
    before = (tmp_path / "out" / "scores.json").read_text()
    assert run("--rescore", "out")[0] == 0
    assert (tmp_path / "out" / "scores.json").read_text() == before
    _, out, _ = run(*how[:-1], "part", "--limit", 1)
    assert "it holds 1 of 2 questions, and servers want all: leave out --limit" in out


def test_frames_are_of_clips(run, folders, data):
    code, _, err = run(*asked(folders, data, "--frames", 4))
    assert code == 2 and "--frames: pope asks about no clips" in err


def test_the_list_says_what_each_needs(run):
    code, out, _ = run("--suite", "list")
    assert code == 0 and "pope: POPE" in out and "coco_pope_random.json" in out
    assert "licence" in out and "shapes:" not in out


def test_damaged_replies_are_named(run, folders, data, tmp_path):
    assert run(*asked(folders, data))[0] == 0
    path = tmp_path / "out" / "replies.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0], '{"model": "model"}', *rows[2:]]) + "\n")
    code, _, err = run("--rescore", "out")
    assert code == 2 and "replies.jsonl, line 2" in err


def test_replies_that_were_cut_are_no_result(run, folders, data, tmp_path):
    assert run(*asked(folders, data))[0] == 0
    path = tmp_path / "out" / "replies.jsonl"
    rows, scores = path.read_text().splitlines(), (tmp_path / "out" / "scores.json").read_text()
    path.write_text("\n".join(rows[:7]) + "\n")
    code, _, err = run("--rescore", "out")
    assert code == 2 and "holds 7 replies of 'model', and 10 were written" in err
    path.write_text("\n".join([rows[0], rows[0], *rows[2:]]) + "\n")
    code, _, err = run("--rescore", "out")
    assert code == 2 and "replies.jsonl, line 2: the reply to" in err and "twice" in err
    path.write_text("\n".join(rows)[:-9])
    code, _, err = run("--rescore", "out")
    assert code == 2 and "replies.jsonl, line 10: not a reply" in err
    path.unlink()
    code, _, err = run("--rescore", "out")
    assert code == 2 and "that evaluation has not ended" in err
    assert run(*asked(folders, data))[0] == 0  # it is all kept
    assert (tmp_path / "out" / "scores.json").read_text() == scores


@pytest.mark.parametrize(
    "value",
    [
        {"models": []},
        {"told": {"about": {}, "data": {}, "settings": {}}},
        {"judges": {"x": 3}},
        {"suite": 7},
        {"told": 1},
        {"more": 1},
    ],
    ids=str,
)
def test_damaged_settings_are_named(run, folders, data, tmp_path, value):
    write_rows(tmp_path / "a.jsonl", [])
    folder = tmp_path / "kept"
    folder.mkdir()
    told = benchmark.Told(dataclasses.asdict(pope.ABOUT), {"n": 0}, {})
    settings = dataclasses.asdict(suite_folder.Asked("pope", told, {}, {"model": {}}))
    (folder / "settings.json").write_text(json.dumps(settings | value))
    write_rows(folder / "replies.jsonl", [])
    code, _, err = run("--rescore", folder)
    assert code == 2 and "settings.json: not the settings of an evaluation" in err, err


def test_options_that_would_change_nothing_are_refused(run, folders, data):
    code, _, err = run("--rescore", "out", "--judge", "self", "--limit", 4)
    assert code == 2 and "--rescore reads what is there: leave out --limit, --judge" in err
    code, _, err = run(*asked(folders, data, "--import", "x.jsonl", "--seeds", 3))
    assert code == 2 and "--import reads what is there: leave out --seeds" in err
    code, _, err = run(*asked(folders, data, "--parity", "official"))
    assert code == 2 and "--parity" in err
    for name, value in (("--limit", 0), ("--seeds", 0), ("--frames", 0), ("--seed", -1)):
        code, _, err = run(*asked(folders, data, name, value))
        assert code == 2 and f"{name}: '{value}' is no whole number from" in err


def test_results_are_not_imported_over_another_evaluation(run, folders, data, prompts, tmp_path):
    assert run(*asked(folders, data))[0] == 0
    before = (tmp_path / "out" / "replies.jsonl").read_text()
    write_rows(tmp_path / "results.jsonl", official_rows(prompts))
    how = ("--suite", "geneval", "--data", prompts, "--import", tmp_path / "results.jsonl")
    code, _, err = run(*how, "-o", "out")
    assert code == 2 and "holds an evaluation of other data" in err
    assert (tmp_path / "out" / "replies.jsonl").read_text() == before
    assert run(*how, "-o", "other")[0] == 0
    settings = json.loads((tmp_path / "other" / "settings.json").read_text())
    judged = {"judges": {"a judge": {}}}
    (tmp_path / "other" / "settings.json").write_text(json.dumps(settings | judged))
    code, _, err = run(*how, "-o", "other")
    assert code == 2 and "holds what a judge said" in err


def test_precision_belongs_to_the_model(run, folders, data, tmp_path):
    assert run(*asked(folders, data))[0] == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["which"]["model"]["precision"] == "float32"
    code, _, err = run(*asked(folders, data, "--precision", "bfloat16"))
    assert code == 2 and "holds an evaluation with models" in err


def test_models_that_draw_otherwise_are_told(caplog):
    told = GenerationConfig()
    other = dataclasses.replace(told, generate=dataclasses.replace(told.generate, guidance=7.0))
    options = use_options.parse(
        ["evaluate", "--suite", "geneval", "--data", "d", "-o", "o"], "srum"
    )
    models = {
        name: (path, SimpleNamespace(digest=path, generation_config=how, family=bagel))
        for name, path, how in (("model", "a", other), ("against", "b", told))
    }
    requests = Requests(images=[DrawRequest(Prompt(1, "a circle", "c", ""))])
    found = use_evaluate.models_told(options, models, requests)
    assert "drawing" not in found["model"]
    assert found["against"]["drawing"]["images"]["guidance"] == told.generate.guidance
    options.guidance = 3.0  # said on the command line it holds for both
    found = use_evaluate.models_told(options, models, requests)
    assert "drawing" not in found["against"]


@pytest.fixture
def prompts(tmp_path):
    """GenEval's file of three prompts."""
    rows = [
        {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": c}], "prompt": p}
        for c, p in (("red", "a red circle"), ("blue", "a blue circle"), ("red", "a red square"))
    ]
    write_rows(tmp_path / "evaluation_metadata.jsonl", rows)
    return tmp_path / "evaluation_metadata.jsonl"


def test_pictures_from_several_seeds(run, folders, prompts, tmp_path):
    how = ("--suite", "geneval", "--data", prompts, "--model", folders[0], "-o", "out")
    how += ("--size", "32x32", "--steps", 2)
    code, _, err = run(*how, "--seed", 5, "--seeds", 2)
    assert code == 0, err
    assert "24 pictures drawn by 2 models" not in err and "24 pictures drawn" in err
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["drawing"]["seeds"] == [5, 6] and scores["judge"]["revision"]
    found, metric = scores["models"]["model"], scores["metric"]
    assert set(found["seeds"]) == {"5", "6"}
    mean = np.mean([one[metric] for one in found["seeds"].values()])
    assert found["strict"][metric] == pytest.approx(mean)
    told = lines(tmp_path / "out" / "generations.jsonl")
    assert len(told) == 24 and len({row["seed"] for row in told}) == 24
    replies = lines(tmp_path / "out" / "replies.jsonl")
    assert {r["seed"] for r in replies} == {5, 6}
    assert all((tmp_path / "out" / r["file"]).is_file() for r in replies)
    assert (tmp_path / "out" / "official" / "geneval-seed-6" / "00002" / "samples").is_dir()
    before = (tmp_path / "out" / "scores.json").read_text()
    assert run("--rescore", "out")[0] == 0
    assert (tmp_path / "out" / "scores.json").read_text() == before


def test_rows_that_do_not_divide_over_the_copies_of_a_model(run, folders, data, prompts, tmp_path):
    """As many are asked and drawn as on one device."""
    drawn = ("--suite", "geneval", "--data", prompts, "--model", folders[0], "-o", "drawn")
    drawn += ("--size", "32x32", "--steps", 2)
    for command, count in ((asked(folders, data), 10), (drawn, None)):
        code, _, err = run(*command, "--batch", 3, "--mesh", "4x2")
        assert code == 0, err
        replies = lines(tmp_path / command[command.index("-o") + 1] / "replies.jsonl")
        assert len({row["id"] for row in replies}) == len(replies) == (count or len(replies)) > 3


def test_answers_have_no_seeds(run, folders, data):
    code, _, err = run(*asked(folders, data, "--seeds", 2))
    assert code == 2 and "draws nothing" in err


def official_rows(prompts):
    """What GenEval's detector says of four pictures a prompt: those of the second are wrong."""
    return [
        {
            "filename": f"out/{i:05d}/samples/{k:04d}.png",
            "tag": "colors",
            "prompt": row["prompt"],
            "correct": i != 1,
            "reason": "",
            "metadata": json.dumps(row),
            "details": "{}",
        }
        for i, row in enumerate(lines(prompts))
        for k in range(4)
    ]


def test_without_a_judge_pictures_wait_for_the_official_program(run, folders, prompts, tmp_path):
    how = ("--suite", "geneval", "--data", prompts, "--model", folders[0], "-o", "out")
    code, out, err = run(*how, "--size", "32x32", "--steps", 2, "--judge", "none")
    assert code == 0, err
    assert "no scores yet" in out and "official/geneval" in out
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert "models" not in scores and scores["data"]["n"] == 3
    write_rows(tmp_path / "results.jsonl", official_rows(prompts))
    code, out, err = run(*how, "--import", tmp_path / "results.jsonl")
    assert code == 0, err
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["judge"]["name"] == "the official program"
    which = scores["which"]["model"]
    assert which["name"] == str(folders[0]) and which["results"].endswith("results.jsonl")
    assert scores["drawing"]["images"]["steps"] == 2  # of the pictures that were judged
    assert scores["models"]["model"]["strict"][scores["metric"]] == pytest.approx(2 / 3)
