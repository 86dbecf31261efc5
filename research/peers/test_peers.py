"""Other programs beside ours: what they are given, what is read of them, what is not run again."""

import dataclasses
import json
import pathlib
import re
import sys

import pytest

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE))  # scripts: they import one another by plain names

import invented  # noqa: E402
import lmms_tasks  # noqa: E402
import official  # noqa: E402
import official_judged  # noqa: E402
import peers  # noqa: E402

from srum_jax.config import Config, EvaluateConfig  # noqa: E402
from srum_jax.core import registry  # noqa: E402
from srum_jax.core.files import read_json  # noqa: E402
from srum_jax.evals import suite_folder  # noqa: E402
from srum_jax.evals.scorers import gedit  # noqa: E402

SOME = Config(evaluate=EvaluateConfig(limit=30))
# Stand-ins for programs that are no part of this repository: of the same arguments and words.
GENEVAL2 = """
import argparse, json
import torch
from transformers import AutoProcessor
judge = AutoProcessor.from_pretrained("absent", device_map="auto")
def send_message_with_image(prompt, image, answer_list=None):
    raise SystemExit("the real judge")
def main():
    p = argparse.ArgumentParser()
    for name in ("benchmark_data", "image_filepath_data", "method", "output_file"):
        p.add_argument("--" + name)
    o = p.parse_args()
    images, found = json.load(open(o.image_filepath_data)), []
    for line in map(json.loads, open(o.benchmark_data)):
        (question, answer), *_ = line["vqa_list"]
        said = send_message_with_image(question + " Answer in one word.", images[line["prompt"]],
                                       answer_list=["Yes"] if answer == "Yes" else [answer])
        found.append(said[1] if o.method == "soft_tifa_gm" else len(said[0]))
    print("Score: {}".format(sum(found)))
"""
VIESCORE = """
import random
import utils
class VIEScore:
    def evaluate(self, images, text):
        asked = [self.model.prepare_prompt(images, "a"), self.model.prepare_prompt(images[-1], "b")]
        while True:
            said = [utils.marks(self.model.get_parsed_output(one)) for one in asked]
            if all(said):
                return [float(said[0][0]), float(said[1][0]), 1.5]
            if "tell" in self.model.get_parsed_output("PQ"):
                random.randint(0, 10)
"""
STATISTICS = """
import csv, sys
place, files = sys.argv[sys.argv.index("--save_path") + 1], 0
import pathlib
rows = [r for path in sorted(pathlib.Path(place).rglob("*_gpt_score.csv"))
        for r in csv.DictReader(open(path))]
mean = sum(float(r["sementics_score"]) for r in rows) / len(rows)
print(f"Average: {mean}, 2.000, 3.000\\nAverage Intersection: 4.000, 5.000, {len(rows)}")
"""
POPE = """
import argparse, json, os
p = argparse.ArgumentParser()
for name in ("annotation-dir", "question-file", "result-file"):
    p.add_argument("--" + name)
o = p.parse_args()
category = {q["question_id"]: q["category"] for q in map(json.loads, open(o.question_file))}
answers = [json.loads(line) for line in open(o.result_file)]
for file in sorted(os.listdir(o.annotation_dir)):
    labels = [json.loads(line)["label"] for line in open(os.path.join(o.annotation_dir, file))]
    said = [a["text"] for a in answers if category[a["question_id"]] == file[10:-5]]
    right = sum(a == b for a, b in zip(said, labels, strict=True)) / len(labels)
    print(f"Accuracy: {right}\\nPrecision: 1.0\\nRecall: 0.5\\nF1 score: 0.25\\nYes ratio: 0.5")
"""
VQA = """
class VQA:
\tdef __init__(self, annotations, questions):
\t\tprint 'reads', annotations
        # spaces before a comment
\tdef loadRes(self, results, questions):
\t\treturn results
"""
VQA_EVAL = """
class VQAEval:
\tdef __init__(self, vqa, results, n=2):
\t\tself.accuracy = {'overall': n, 'perAnswerType': {'other': 7}}
\tdef evaluate(self):
\t\tprint 'done'
"""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The world's files are written once for all tests here."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


def made(suite, folder, seed=0):
    asked = registry.load(registry.SUITES, suite).make(SOME, "shapes", "")
    invented.write(asked, folder, seed)
    return pathlib.Path(folder)


def checkout(folder, name, text):
    programs = (*official.PROGRAMS, *official_judged.PROGRAMS)
    one, *_ = [p.file for p in programs if p.checkout == name]
    path = folder / name / one
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def run(tmp_path, *arguments):
    return peers.main([*map(str, arguments), "-o", str(tmp_path / "peers")])


def test_invented_replies_are_a_function_of_the_seed_and_of_all_kinds(tmp_path):
    truths = ["yes", {"label": "no"}, {"answers": ["two", "2"]}, ["cat"], {"answer": "B"}] * 40
    said = invented.replies(truths, 3)
    assert said == invented.replies(truths, 3) != invented.replies(truths, 4)
    right = [invented.answer(t).lower() in s.lower() for t, s in zip(truths, said, strict=True)]
    assert 0.4 < sum(right) / len(right) < 0.9
    assert len({s.lower().replace("yes", "no") for s in said}) > 40 and "" in said
    for suite, (forms, *_) in invented.JUDGES.items():
        marks = invented.marks(suite, 300, 1)
        assert marks == invented.marks(suite, 300, 1) != invented.marks(suite, 300, 2)
        assert len({m[:7] for m in marks}) >= min(3, len(forms))


@pytest.mark.parametrize(
    "suite", ["pope", "imgedit", "gedit", "geneval2", "wise", "srum_compbench", "geneval"]
)
def test_a_folder_of_invented_replies_is_one_of_evaluate(tmp_path, suite):
    out = made(suite, tmp_path / suite)
    name, records = peers.records_of(out)
    module = registry.load(registry.SUITES, suite)
    scores = read_json(out / "scores.json")
    own = {n: x for n, x in peers.ours(suite, records).items() if x == x}  # a group without edits
    assert name == suite and scores["models"]["model"]["as_released"] == own and own
    assert suite_folder.rescored(suite_folder.epath.Path(out), module.score) == scores


def test_programs_are_given_the_folder_and_run_once(tmp_path, capsys):
    out = made("pope", tmp_path / "pope")
    file = checkout(tmp_path / "theirs", "LLaVA", POPE)
    arguments = out, "--checkouts", tmp_path / "theirs"
    assert run(tmp_path, *arguments) == 0
    first = capsys.readouterr()
    assert "lacks lmms_eval" in first.err  # said, and no failure
    (row,) = read_json(tmp_path / "peers" / "peers.json")
    replies = [json.loads(line) for line in (out / "replies.jsonl").read_text().splitlines()]
    equal = sum(r.get("reply") == r["truth"] for r in replies) / len(replies)
    assert row["numbers"]["accuracy"]["theirs"] == pytest.approx(equal)  # files of one size
    assert row["numbers"]["recall"]["theirs"] == 0.5 and row["n"] == len(replies)
    assert "LLaVA, llava/eval/eval_pope.py (file " in first.out and "| differs |" in first.out
    file.write_text("raise SystemExit(3)")
    assert run(tmp_path, *arguments) == 0 and capsys.readouterr().out == first.out  # as kept
    made("pope", out, seed=1)
    assert run(tmp_path, *arguments) == 2  # other replies: the program is run, and fails
    assert "failed, see" in capsys.readouterr().err


def test_vqa_is_put_into_python_3(tmp_path, capsys):
    out = made("vqav2", tmp_path / "vqav2")
    checkout(tmp_path / "theirs", "VQA", VQA_EVAL)
    tools = tmp_path / "theirs" / "VQA" / "PythonHelperTools" / "vqaTools"
    tools.mkdir(parents=True)
    (tools / "vqa.py").write_text(VQA)
    assert run(tmp_path, out, "--checkouts", tmp_path / "theirs") == 0
    (row,) = read_json(tmp_path / "peers" / "peers.json")
    assert row["numbers"]["accuracy"]["theirs"] == 2
    assert row["numbers"]["accuracy other"]["theirs"] == 7


def test_a_function_runs_without_the_rest_of_its_file(tmp_path):
    out = made("wise", tmp_path / "wise")
    file = checkout(
        tmp_path / "theirs",
        "WISE",
        "import sys\nprint('Error: ids')\nprint(len(open(sys.argv[1]).readlines()))\n",
    )
    parser = "import no_such_package\n\ndef extract_scores(txt: str) -> Dict[str, float]:\n"
    parser += "    return {'score': 1.0} if re.search('1', txt) else {}\n"
    file.with_name("vllm_eval.py").write_text(parser)
    _, records = peers.records_of(out)
    arguments = out, "--checkouts", tmp_path / "theirs"
    assert run(tmp_path, *arguments) == 2  # a single number is no row of categories
    count = sum("1" in r.reply.replace("0?", "") for r in records)
    assert len(next(tmp_path.rglob("scores.jsonl")).read_text().splitlines()) == count


def test_genevals_second_program_asks_a_judge_who_says_what_the_records_say(tmp_path):
    out = made("geneval2", tmp_path / "geneval2")
    checkout(tmp_path / "theirs", "GenEval2", GENEVAL2)
    assert run(tmp_path, out, "--checkouts", tmp_path / "theirs") == 0
    (row,) = read_json(tmp_path / "peers" / "peers.json")
    _, records = peers.records_of(out)
    first = [r for r in records if r.id.endswith(":0")]
    expected = sum(r.p[r.truth["answer"]] for r in first)
    assert row["numbers"]["soft_tifa_gm"]["theirs"] == pytest.approx(expected)
    assert row["numbers"]["tifa"]["theirs"] == sum(len(r.reply) for r in first)
    data = next((tmp_path / "peers").rglob("data.jsonl")).read_text()
    other = checkout(tmp_path / "changed", "GenEval2", GENEVAL2.replace("one word", "a word"))
    assert other.is_file() and len(data.splitlines()) == len(first)
    moved = tmp_path / "moved"
    arguments = str(out), "--checkouts", str(tmp_path / "changed"), "-o", str(moved)
    assert peers.main(arguments) == 2  # other words than we asked in


def test_viescore_is_asked_about_every_edit_and_what_it_draws_is_left_out(tmp_path, monkeypatch):
    groups = ("color_alter", "subject-add", "subject-remove", "motion_change")  # the world's
    monkeypatch.setattr(gedit, "GROUPS", groups)
    out = made("gedit", tmp_path / "gedit")
    program = dataclasses.replace(official_judged.PROGRAMS[1], needs=())
    file = checkout(tmp_path / "theirs", "Step1X-Edit", STATISTICS)
    (file.parent / "viescore").mkdir()
    (file.parent / "viescore" / "__init__.py").write_text(VIESCORE)
    utils = "import re\ndef marks(said):\n    return re.findall(r'\\d+', said)[:2]\n"
    (file.parent / "viescore" / "utils.py").write_text(utils)
    _, records = peers.records_of(out)
    work = tmp_path / "work"
    work.mkdir()
    found = program.run(out, records, tmp_path / "theirs" / "Step1X-Edit", sys.executable, work)
    replies = {r.id: r.reply for r in records}

    edits = [id.removesuffix(":SC") for id in replies if id.endswith(":SC")]
    said = [
        [re.search(r"\d", replies[f"{id}:{aspect}"]) for aspect in ("SC", "PQ")] for id in edits
    ]
    scored = [two for two in said if all(two)]
    assert found["numbers"]["scored_en"] == len(scored) < len(edits)
    assert found["numbers"]["G_O_en_intersection"] == len(scored)


def test_what_is_missing_is_said(tmp_path, capsys):
    out = made("geneval", tmp_path / "geneval")
    assert run(tmp_path, out) == 0
    assert "not run: geneval, evaluation/summary_scores.py: " in capsys.readouterr().err
    assert run(tmp_path, tmp_path) == 2 and "settings.json" in capsys.readouterr().err
    assert peers.main(["--needs"]) == 0
    said = capsys.readouterr().out
    assert all(p.name in said for p in peers.PROGRAMS)


@pytest.mark.parametrize("task", lmms_tasks.TASKS, ids=lambda task: task.name)
def test_rows_of_lmms_eval_are_made_of_records_alone(tmp_path, task):
    _, records = peers.records_of(made(task.suite, tmp_path / task.suite))
    rows = [json.loads(json.dumps(task.row(r))) for r in records]
    assert len({frozenset(row) for row in rows}) == 1
    asked = [row["question"] for row in rows if "question" in row]
    assert all(text and text in r.asked for text, r in zip(asked, records, strict=False)) or (
        task.suite == "mme"
    )
    own = peers.ours(task.suite, records)
    assert set(task.metrics) & set(own)


def test_equal_means_equal_as_far_as_it_is_printed():
    pair = {"ours": 0.123456, "theirs": 0.12346}
    assert peers.differs(pair, None) and not peers.differs(pair, 5) and peers.differs(pair, 6)
    same = lmms_tasks.prompts([("a", "a"), ("b", "c")])
    assert same == {"n": 2, "same": 1, "ours": "b", "theirs": "c"}
