"""Any suite's results become sections of the report, and what a section says."""

import json

import numpy as np
import pytest
from html_page import read
from PIL import Image

from srum_jax.evals import sections as result_sections
from srum_jax.report import numbers, page, suite_sections
from srum_jax.stages import report

FIRST, SECOND = np.arange(80) % 4 == 0, np.arange(80) % 2 == 0
KINDS = ["far_away", "near"] * 40


def part(title, **more):
    skill = result_sections.by_model(KINDS, FIRST, SECOND)
    models = {name: skill[name] for name in ("base", "trained")}
    return {"title": title, "models": models, "paired": skill["paired"], **more}


@pytest.fixture
def measured():
    """A round of a suite that the report has never heard of, with one inside it."""
    inner = {
        "title": "Telling frogs from toads",
        "models": {"base": result_sections.accuracy_section(FIRST)},
    }
    outer = part("Counting frogs", unit="ponds", about="A frog under water counts.")
    return {"round": 0, "suites": {"frogs": {**outer, "sections": {"toads": inner}}}}


def test_a_suite_nobody_knows_is_drawn_whole(measured, tmp_path):
    folder = tmp_path / "round0" / "evaluate"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / "pond.png")
    record = {"question": "how many frogs ?", "kind": "near", "image": "pond.png"}
    record |= {"base_answer": "two", "base_correct": False, "base_reason": "there are three"}
    record |= {"trained_answer": "three", "trained_correct": True}
    (folder / "examples-frogs.json").write_text(json.dumps([record]))
    items = [{**record, "expected": "three"}, {**record, "base_correct": True}]
    (folder / "evaluation.json").write_text(json.dumps({"items": {"frogs": items}}))
    run = report.read({"rounds": [measured]}, [folder.parent])
    shown = read(page.render(run))
    assert shown.sections == ["frogs", "frogs-toads"]
    for text in (
        "Training raised right ponds from 25.0\u00a0% to 50.0\u00a0%: +25.0 points",
        "Counting frogs 25.0\u00a0% → 50.0\u00a0%, 80 ponds +25.0 points",
        "A frog under water counts.",
        "all 80",
        "25.0\u00a0%16.8–35.5",  # base, its interval
        "far away 40",
        "near 40",
        "Trained against base on the same ponds: +25.0 points, 95 % interval "
        + numbers.points_range(measured["suites"]["frogs"]["paired"]["ci95"]),
        "right only when trained 20",
        "Every one of 2 ponds, by kind; 1 not right every time",
        "near 2; wrong: base 1, trained 0 how many frogs ? three ✗ two there are three ✓ three",
        "base ✗ wrong two there are three",
        "Telling frogs from toads",
    ):
        assert text in shown.text, text


def test_what_the_contract_has_too_is_drawn_once_as_the_suite_names_it():
    skill = result_sections.by_model(KINDS, FIRST, SECOND)
    found = suite_sections.of_round({"qa": skill, "suites": {"frogs": part("Asking frogs")}})
    assert [(s.key, s.title, s.unit) for s in found] == [("qa", "Asking frogs", "questions")]
    other = {**part("Asking frogs"), "models": {"base": result_sections.accuracy_section(FIRST)}}
    found = suite_sections.of_round({"qa": skill, "suites": {"frogs": other}})
    assert [s.title for s in found] == ["Answering questions", "Asking frogs"]


def test_no_interval_is_made_where_none_was_written(measured):
    models = {"base": {"n": 10, "correct": 3, "by_category": {"near": {"n": 4, "correct": 1}}}}
    measured["suites"]["frogs"] = {"title": "Frogs", "models": models}
    (found,) = suite_sections.of_round(measured)
    assert found.models["base"].ci95 is None and found.difference is None
    shown = read(page.render(report.read({"rounds": [measured]}, [])))
    assert "Frogs, base: 30.0\u00a0% right." in shown.text and "interval" not in shown.text


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda s: s.pop("title"), "suites.frogs: not a section .*'title'"),
        (lambda s: s["models"]["base"].pop("n"), "suites.frogs: not a section .*'n'"),
        (lambda s: s["paired"].pop("ci95"), "suites.frogs: not a section .*'ci95'"),
        (lambda s: s["sections"].update(toads=3), "suites.frogs.sections.toads: not a section"),
    ],
)
def test_a_damaged_section_is_named(measured, damage, message):
    damage(measured["suites"]["frogs"])
    with pytest.raises(ValueError, match=message):
        suite_sections.of_round(measured)
