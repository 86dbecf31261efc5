"""docs/evaluation.md: its commands are ones, its tables say what suites say, its figures hold."""

import json
import pathlib
import re
import shlex

import numpy as np
import pytest

from srum_jax import use_evaluate, use_options
from srum_jax.config import Config
from srum_jax.core import registry
from srum_jax.evals.scorers import imgedit, letters, mmbench, mme, mmmu, vqa, yes_no

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "evaluation.md").read_text()
GOLDENS = pathlib.Path(__file__).parent / "goldens" / "evals"
JUDGE = {"": "none", "optional": "none with `--import`, or a proxy"}
SUITES = {
    name: module
    for name in registry.SUITES
    if hasattr(module := registry.load(registry.SUITES, name), "ABOUT")
}


def table(heading):
    """Rows of cells of the first table under a heading."""
    lines = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[2:]]


def golden(name):
    return json.loads((GOLDENS / f"{name}.json").read_text())


def commands():
    text = "\n".join(re.findall(r"```\n(.*?)```", PAGE, re.S)).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith("srum ")]


@pytest.mark.parametrize("line", commands())
def test_commands_are_commands(line):
    _, command, *arguments = shlex.split(line, comments=True)
    if command == "evaluate":
        options = use_options.parse([command, *arguments], "srum")
        assert options.suite is None or options.suite in SUITES
        return
    assert command == "run"
    for key in re.findall(r"--config\.([\w.]+)=", line):
        found = Config()
        for name in key.split("."):
            found = getattr(found, name)


def test_the_table_has_every_suite_with_its_own_words():
    rows = {row[0].strip("`"): row for row in table("The suites")}
    assert list(rows) == list(SUITES)
    for name, (_, _, judge, dialect, _, licence) in rows.items():
        about = SUITES[name].ABOUT
        assert judge == JUDGE.get(about.judge, about.judge)
        assert (dialect, licence) == (about.dialect, about.licence)
    listed = [row["suite"] for row in use_evaluate.listing()]
    assert listed == list(rows)


def test_files_in_the_table_are_those_that_suites_ask_for():
    for name, told, *_ in table("The suites"):
        needs = SUITES[name.strip("`")].ABOUT.needs
        for file in re.findall(r"`(\w[\w.]+\.(?:json|jsonl|txt|csv))`", told):
            assert file in needs, (name, file)


def test_every_strict_policy_is_told():
    rows = {name.strip("`"): policy for name, policy in table("as_released and strict")}
    assert list(rows) == list(SUITES)
    for name, module in SUITES.items():
        assert getattr(module, "POLICY", "") in rows[name]
        assert getattr(module, "PROXY_POLICY", "") in rows[name]


def test_figures_of_the_dialects_are_those_of_the_reference_replies():
    rows = table("The same replies by other rules")
    said = {name.split(",")[0]: " ".join(rest) for name, *rest in rows}
    for name, figure in figures():
        assert figure in said[name], (name, figure)


def figures():
    cases = golden("vqav2")["cases"]
    for rule in (vqa.official, vqa.lmms_eval, vqa.vlmevalkit):
        yield "VQAv2", f"{100 * np.mean([rule(c['prediction'], c['answers']) for c in cases]):.2f}"
    rows = golden("pope")["rows"]
    replies, labels, parts = ([r[key] for r in rows] for key in ("reply", "label", "category"))
    llava = yes_no.pope(replies, labels, parts)[1]["accuracy"]
    lmms_eval = yes_no.lmms_eval_pope(replies, labels)["accuracy"]
    strict = np.mean([yes_no.clear(a) == b for a, b in zip(replies, labels, strict=True)])
    yield from (("POPE", f"{100 * x:.1f}") for x in (llava, lmms_eval, strict))
    answers = [
        mme.Answer(r["category"], r["question_id"], r["answer"].lower(), r["reply"])
        for r in golden("mme")["rows"]
    ]
    for rule in (mme.lmms_eval_scores, mme.bagel_scores, mme.vlmevalkit_scores, mme.strict_scores):
        sums = [mme.total(rule(answers), part) for part in (mme.PERCEPTION, mme.COGNITION)]
        yield "MME", f"{sums[0]:.2f} + {sums[1]:.2f}"
    right = {
        row["index"]: letters.vlmevalkit(row["prediction"], options(row)) == row["answer"]
        for row in golden("mmbench")["rows"]
    }
    for rule in (mmbench.circular, mmbench.vanilla):
        yield "MMBench", f"{np.mean(list(rule(right).values())):.3f}".removeprefix("0")
    yield from figures_of_marks()


def options(row):
    return {letter: row[letter] for letter in "ABCDE" if row.get(letter) is not None}


def figures_of_marks():
    several = golden("mmmu")["open"]
    right = [mmmu.open_right(mmmu.open_answers(c["reply"]), c["gold"]) for c in several]
    yield "MMMU", f"{sum(right)} right" if len(right) == 110 else "another set"
    captions = golden("captions")["scores"]
    for tokens in ("ptb", "raw"):
        yield "captions", f"{captions[f'close/{tokens}']['CIDEr']:.3f}"
    yield "GEdit", f"{golden('gedit')['lmms_eval_fullset_overall_sample_mean']['en']:.3f}"
    edits = golden("imgedit")
    scores = {
        id: one.value
        for id, reply in edits["results"].items()
        if (one := imgedit.average(reply)).value is not None
    }
    yield "ImgEdit", f"{imgedit.overall(scores):.2f}"
    yield "ImgEdit", f"{imgedit.mean_of_types(imgedit.type_means(scores, edits['meta'])):.2f}"


def test_figures_beside_other_programs_are_those_of_the_results_file():
    rows = json.loads((ROOT / "docs" / "results" / "peers.json").read_text())
    told = PAGE.split("### Beside other programs")[1].split("\n## ")[0]
    cells = [
        [c.strip() for c in line.split("|")[1:-1]] for line in told.splitlines() if "|" in line
    ]
    shown = {(row[0].strip("`"), row[3], row[4], row[5]) for row in cells[2:]}
    kept = {
        (row["suite"], name, f"{pair['ours']:.6g}", f"{pair['theirs']:.6g}")
        for row in rows
        for name, pair in row["numbers"].items()
    }
    assert shown <= kept and len(shown) >= 18
    versions = {row["version"].split(" ")[0].strip(",") for row in rows}
    assert all(any(v in row[2] for row in cells[2:]) for v in versions)
    assert all(row["date"] in told for row in rows)
