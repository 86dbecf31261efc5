"""A benchmark's section: on its own scale, with its rules, failures, judges and their agreement."""

import json
import pathlib

import jsonschema
import numpy as np
import pytest
from html_page import read

from srum_jax.config import SampleConfig
from srum_jax.data.prompts import Prompt
from srum_jax.evals import benchmark, suite_folder, suite_judges
from srum_jax.evals.benchmark import Told
from srum_jax.evals.scorers import metrics
from srum_jax.evals.suite import DrawRequest, Record, Requests, Scored, TextRequest
from srum_jax.generation import bagel, janus
from srum_jax.report import benchmarks, page, suite_sections, verdict
from srum_jax.report.scales import Scale
from srum_jax.stages import report

SCHEMA = json.loads((pathlib.Path(__file__).parents[1] / "results.schema.json").read_text())
N = 40


def score(records):
    """The marks that the replies are; an empty one failed and counts 0."""
    marks = np.array([float(r.reply or 0) for r in records])
    groups = [r.category for r in records]
    by = {
        name: {"n": groups.count(name), "overall": float(marks[np.array(groups) == name].mean())}
        for name in dict.fromkeys(groups)
    }
    return Scored(
        n=len(records),
        failed=sum(not r.reply for r in records),
        as_released={"overall": float(marks.mean()) + 1, "yes_ratio": 0.25},
        strict={"overall": metrics.mean(marks), "f1": metrics.mean(marks / 10)},
        units=tuple(r.id for r in records),
        by_category=by,
        items=tuple(
            {"id": r.id, "category": r.category, "value": mark, "reason": f"mark {mark:g}"}
            for r, mark in zip(records, marks, strict=True)
        ),
        policy="a reply without a mark counts 0",
    )


def records(start, judges):
    return [
        Record(str(i), ("far_away", "near")[i % 2], "q", f"{(start + i % 3) % 11}", judge=judge)
        for judge in judges
        for i in range(N)
    ]


def measured(trained=5, judges=("",), best=10.0, **about):
    told = Told(
        about={"title": "Frog-Bench, toads", "dialect": "FROG", "unit": "ponds", "best": best}
        | about,
        data={"file": "/data/frogs", "sha256": "ab" * 32, "n": N, "total": 400, "variant": "long"},
        settings={"image_guidance": 1.5},
    )
    by_model = {"base": records(2, judges), "trained": records(trained, judges)}
    by_model["base"][0] = Record("0", "far_away", "q", "", "empty", judge=judges[0])
    return {"schema": 1, "suite": "frogs"} | benchmark.section(score, told, by_model)


def shown(section):
    results = {"rounds": [{"round": 0, "suites": {"frogs": section}}]}
    jsonschema.validate(section, {**SCHEMA["$defs"]["section"], "$defs": SCHEMA["$defs"]})
    return read(page.render(report.read(results, [])))


def test_a_number_is_written_on_its_own_scale_beside_its_rules():
    section = measured()
    found = shown(section)
    one = section["models"]["base"]
    for text in (
        f"Training raised Frog-Bench, toads, overall, from {one['strict']['overall']:.2f} to 5.97",
        ": +3.05 of 10 (95 % interval +",
        "Official rules FROG",
        "Our rules a reply without a mark counts 0",
        "Failed replies base 1 of 40, trained 0 of 40",
        "Asked 40 of 400",
        "Data /data/frogs",
        "SHA-256 of the data abababababababab…",
        "Image guidance 1.5",
        "far away 20",
        "base, our rules base, as released",
        "share of yes – 0.25",
        "F1 0.2925",
    ):
        assert text in found.text, text
    assert "image_guidance" not in found.text and "yes_ratio" not in found.text


@pytest.mark.parametrize("think", [0, 32])
def test_how_models_drew_and_answered_is_said(think):
    asked = [TextRequest("0", "near", (), "q", max_tokens=16)]
    drawn = [DrawRequest(Prompt(0, "a frog", "near"), 0)]
    requests = Requests(texts=asked, images=drawn)
    sample = SampleConfig(size=(64, 96), steps=20, guidance=2.5)
    told = {
        "decoding": suite_folder.decoding(requests, think),
        "drawing": suite_folder.drawing(requests, sample, sample, bagel.SAMPLER, [0, 3], think),
    }
    text = shown(measured() | told).text
    thought = "; it thinks first, 32 tokens at most" if think else ""
    assert f"Models' words the likeliest tokens, 16 at most{thought}" in text
    assert f"Drawn images of 96×64, 20 steps, guidance scale 2.5; seed 0, 3{thought}" in text
    assert ("thinks first" in text) == bool(think)


@pytest.mark.parametrize(
    "top_k, among", [(0, "each token of all"), (50, "each token of the 50 likeliest")]
)
def test_of_a_model_that_draws_token_by_token_no_steps_are_told(top_k, among):
    requests = Requests(images=[DrawRequest(Prompt(0, "a frog", "near"), 0)])
    sample = SampleConfig(size=(64, 96), steps=20, guidance=2.5, top_k=top_k)
    told = suite_folder.drawing(requests, sample, sample, janus.SAMPLER, [0])
    used = {"size": [64, 96], "guidance": 2.5, "temperature": 1.0, "top_k": top_k}
    assert told == {"seeds": [0], "images": used}
    text = shown(measured() | {"drawing": told}).text
    assert f"Drawn images of 96×64, {among} at temperature 1, guidance scale 2.5; seed 0" in text


def test_what_fell_is_said_in_the_same_words():
    found = suite_sections.of_round({"suites": {"frogs": measured(0)}})
    assert verdict.headline(found).startswith(
        "Training lowered Frog-Bench, toads, overall, from 2.9"
    )


def test_several_judges_stand_beside_each_other_and_the_model_itself_is_no_judge():
    one, other = suite_judges.SELF, "an-outside-judge"
    found = shown(measured(judges=(one, other)))
    for text in (
        benchmarks.NOT_PUBLISHED,
        "Judge by judge",
        "the model itself this one counts not to be set beside published numbers",
        "an-outside-judge",
        "Agreement of the model itself and an-outside-judge: the same for 98.8\u00a0%",
    ):
        assert text in found.text, text
    assert benchmarks.SELF == suite_judges.SELF and "self-judge" not in found.text
    found = shown(measured(judges=(other, one)))
    assert benchmarks.NOT_PUBLISHED not in found.text
    found = shown(measured(judges=(other,)))
    assert "Judge an-outside-judge" in found.text


def test_where_no_reply_could_be_used_there_is_no_result():
    section = measured()
    section["models"]["trained"]["failed"] = N
    found = shown(section)
    assert "Frog-Bench, toads: no reply of some model could be used" in found.text
    assert "these numbers are no result" in found.text
    assert "raised" not in found.text and "Better" not in found.text


def test_a_number_that_is_not_defined_leaves_its_place_empty():
    section = measured()
    for model in section["models"].values():
        model["strict"].pop("overall")
    section.pop("paired")
    assert "no number could be made" in shown(section).text


@pytest.mark.parametrize(
    "worst, best, value, change, unit",
    [
        (0, 1, "40.0\u00a0%", "+40.0", "points"),
        (0, 10, "0.40", "+0.40", "of 10"),
        (0, 100, "0.4", "+0.4", "of 100"),
        (0, 2000, "0", "0", "of 2\u202f000"),
        (-1, 1, "0.400", "+0.400", "on a scale from \u22121 to 1"),
    ],
)
def test_scales(worst, best, value, change, unit):
    scale = Scale(worst, best)
    assert (scale.value(0.4), scale.change(0.4), scale.unit) == (value, change, unit)
    assert scale.at(worst) == 0 and scale.at(best) == 1


def test_metrics_have_names_that_people_use():
    words = {"f1": "F1", "G_O_en": "G_O, overall, en", "accuracy_lmms": "right answers, lmms"}
    words |= {"soft_tifa_gm": "soft TIFA, geometric mean", "correct_images": "correct images"}
    assert {name: benchmarks.metric_words(name) for name in words} == words


@pytest.mark.parametrize("field", ["n", "failed", "strict", "ci95", "by_category"])
def test_a_damaged_benchmark_is_named(field):
    section = measured()
    section["models"]["base"].pop(field)
    with pytest.raises(ValueError, match="suites.frogs: not a section of results"):
        suite_sections.of_round({"suites": {"frogs": section}})
