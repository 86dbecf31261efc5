"""ImgEdit end to end on files of its format: edited, written, judged."""

import json

import pytest
from drawn_replies import config
from edit_suites import outputs, picture, records, replies, save
from etils import epath

from srum_jax.core.errors import BadInput
from srum_jax.data import images
from srum_jax.evals.scorers import imgedit as rules
from srum_jax.evals.suite import JudgeReply
from srum_jax.evals.suites import imgedit

TYPES = ("add", "add", "style", "compose")


def item(i):
    return {"id": f"animal/{i}.png", "prompt": f"do {i}", "edit_type": TYPES[i]}


def written(folder, items=None):
    items = {str(i + 1): item(i) for i in range(len(TYPES))} if items is None else items
    (folder / "basic_edit.json").write_text(json.dumps(items))
    for i in range(len(TYPES)):
        save(folder / "singleturn" / "animal" / f"{i}.png", picture(10 * i))
    return folder


def suite(folder, **values):
    return imgedit.make(config(**values), str(folder), "")


def marks(a, b, c):
    return f"Brief reasoning: so so\nCompliance: {a}\nNaturalness: {b}\nDetail: {c}"


def good(request):
    return marks(5, 4, 3)


def test_the_official_file_is_read(tmp_path):
    made = suite(written(tmp_path))
    asked = made.requests("base").edits
    assert [(r.id, r.category, r.instruction) for r in asked][2:] == [
        ("3", "style", "do 2"),
        ("4", "compose", "do 3"),
    ]
    assert (asked[2].image == 20).all()
    assert (made.data.n, made.data.total, made.data.variant) == (4, 4, "our own words")
    assert {e.category for e in suite(tmp_path, limit=3).edits} == set(TYPES)


def test_a_judge_sees_before_and_after(tmp_path):
    made = suite(written(tmp_path))
    asked = made.judge_requests(*replies(made))
    assert [int(one[0, 0, 0]) for one in asked[3].images] == [30, 31]
    assert {one.shape for one in asked[3].images} == {(8, 12, 3)}
    assert "do 3" in asked[3].text and "several things at once" in asked[3].text
    assert "Prompt Compliance: " in asked[0].text
    assert len({text for text in made.texts.values()}) == len(rules.TYPES)


def test_the_official_questions_are_asked_where_they_are_there(tmp_path):
    written(tmp_path)
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({name: f"{name}: <edit_prompt>?" for name in rules.TYPES}))
    made = suite(tmp_path)
    asked = made.judge_requests(*replies(made))
    assert [r.text for r in asked][:3] == ["add: do 0?", "add: do 1?", "style: do 2?"]
    assert made.about.dialect.startswith("official") and "prompts.json" in made.about.dialect
    path.write_text(json.dumps({"add": "<edit_prompt>", "style": "<edit_prompt>"}))
    with pytest.raises(BadInput, match="prompts.json: .compose. is missing"):
        suite(tmp_path)
    path.write_text(json.dumps(dict.fromkeys(rules.TYPES, "what?")))
    with pytest.raises(BadInput, match="holds no <edit_prompt>"):
        suite(tmp_path)


def test_both_means(tmp_path):
    made = suite(written(tmp_path))

    def answer(request):
        return marks(5, 5, 5) if request.category == "add" else marks(2, 1, 3)

    scored = made.score(records(made, answer))
    assert (scored.n, scored.failed) == (4, 0)
    assert scored.as_released == {
        "overall": 3.5,
        "mean_of_types": 3.0,
        "add": 5.0,
        "style": 2.0,
        "compose": 2.0,
        "lmms_eval": 3.5,
    }
    assert [m.number for m in scored.strict.values()] == [3.5, 3.0]
    assert scored.by_category["add"] == {"n": 2, "overall": 5.0}
    assert scored.items[3]["reason"] == "2, 1, 3 of 5. so so"


@pytest.mark.parametrize(
    "reply,overall,lmms",
    [
        ("sorry", 4.0, 3.0),  # dropped officially, 0 in lmms-eval
        ("a: 1", 3.25, 3.0),
        ("a:5\nb:5\nc:5", 4.0, 4.25),
        (JudgeReply("", "refused"), 4.0, 3.0),
        ("a: \u00b2", None, 3.0),
    ],
)
def test_replies_of_every_kind(tmp_path, reply, overall, lmms):
    made = suite(written(tmp_path))
    scored = made.score(records(made, lambda r: reply if r.id == "1" else good(r)))
    read = isinstance(reply, str) and reply.startswith("a:5")  # a reader takes these marks
    assert scored.failed == (not read)
    assert scored.strict["overall"].number == pytest.approx((3 * 4 + (5 if read else 1)) / 4)
    assert scored.as_released.get("overall") == overall
    assert scored.as_released["lmms_eval"] == pytest.approx(lmms)
    if not read:
        assert scored.items[0]["value"] == 1 and scored.items[0]["reason"].startswith("no ")


def test_two_models_are_compared_edit_by_edit(tmp_path):
    made = suite(written(tmp_path))
    found = made.findings(
        {"base": outputs(made, lambda r: "sorry"), "trained": outputs(made, good)}
    )
    assert found.section["paired"]["diff"] == pytest.approx(3)
    assert found.section["models"]["base"]["failed"] == 4
    assert found.section["models"]["base"]["ci95"]["overall"] == [1, 1]
    assert found.section["models"]["base"]["as_released"] == {"lmms_eval": 0}
    assert found.examples["examples-imgedit"][0]["base_image"].shape == (16, 12, 3)


def test_the_official_folder(tmp_path):
    made = suite(written(tmp_path))
    out = epath.Path(tmp_path / "out")
    out.mkdir()

    def answer(request):
        return JudgeReply("", "timeout") if request.id == "2" else good(request)

    made.official(out, *replies(made, answer))
    assert (images.load(out / "4.png") == 31).all()
    words = json.loads((out / "result.json").read_text())
    assert words == {key: marks(5, 4, 3) for key in ("1", "3", "4")}
    assert rules.averages(words) == {"1": 4.0, "3": 4.0, "4": 4.0}


@pytest.mark.parametrize(
    "items,message",
    [
        ([], "must hold a JSON object"),
        ({}, "holds nothing to ask"),
        ({"1": 5}, "item .1.*must be an object"),
        ({"1": item(0) | {"edit_type": "motion"}}, "item .1.*edit_type. is .motion"),
        ({"1": item(0) | {"prompt": 1}}, "prompt. is 1"),
        ({"1": item(0) | {"id": "no.png"}}, "no.png.* is not there"),
        ({"../1": item(0)}, "no name of a file"),
    ],
)
def test_bad_files_are_named(tmp_path, items, message):
    written(tmp_path, items)
    with pytest.raises(ValueError, match=message):
        suite(tmp_path)


def test_a_folder_without_edits_is_refused(tmp_path):
    with pytest.raises(BadInput, match="holds no basic_edit.json"):
        suite(tmp_path)
