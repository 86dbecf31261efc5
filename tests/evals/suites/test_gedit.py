"""GEdit-Bench end to end on files of its format: edited, written, judged."""

import json
import math

import numpy as np
import pytest
from drawn_replies import config
from edit_suites import outputs, picture, records, replies, save
from etils import epath
from pyarrow import Table
from pyarrow import parquet as pq

from srum_jax.core.errors import BadInput
from srum_jax.data import images
from srum_jax.evals.suite import JudgeReply, Record
from srum_jax.evals.suites import gedit

EDITS = [  # group, language, intersection
    ("ps_human", "en", True),
    ("ps_human", "cn", True),
    ("text_change", "en", False),
    ("subject-add", "en", True),
]


def row(i):
    group, language, intersection = EDITS[i]
    return {
        "task_type": group,
        "key": f"k{i}",
        "instruction": f"do {i}",
        "instruction_language": language,
        "input_image": f"{i}.png",
        "input_image_raw": f"raw{i}.png",
        "Intersection_exist": intersection,
    }


def lines(folder, rows=None):
    rows = [row(i) for i in range(len(EDITS))] if rows is None else rows
    (folder / "metadata.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    for i in range(len(EDITS)):
        save(folder / "images" / f"{i}.png", picture(10 * i))
        save(folder / "images" / f"raw{i}.png", picture(100 + 10 * i))
    return folder


def parquet(folder):
    rows = []
    for i in range(len(EDITS)):
        cells = {"input_image": picture(10 * i), "input_image_raw": picture(100 + 10 * i)}
        cells = {k: {"bytes": images.encode_png(v), "path": None} for k, v in cells.items()}
        rows.append(row(i) | cells)
    (folder / "data").mkdir()
    for k, part in enumerate((rows[:2], rows[2:])):
        path = folder / "data" / f"train-0000{k}.parquet"
        pq.write_table(Table.from_pylist(part), path)
    return folder


def suite(folder, **values):
    return gedit.make(config(**values), str(folder), "")


def marks(a, b, why="because"):
    return json.dumps({"score": [a, b], "reasoning": why})


def good(request):
    return marks(9, 4) if request.truth["aspect"] == "SC" else marks(9, 10)


def test_lines_and_parquet_files_are_read_alike(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    one, other = suite(lines(tmp_path / "a")), suite(parquet(tmp_path / "b"))
    for a, b in zip(one.requests("base").edits, other.requests("base").edits, strict=True):
        assert (a.id, a.category, a.instruction, a.seed) == (
            b.id,
            b.category,
            b.instruction,
            b.seed,
        )
        assert (a.image == b.image).all() and a.image[0, 0, 0] >= 100
    assert [e.id for e in one.edits][:2] == ["en-ps_human-k0", "cn-ps_human-k1"]
    assert [e.flag for e in other.edits] == [True, True, False, True]
    assert (other.edits[3].before.load() == 30).all()
    assert (one.data.n, one.data.total, one.data.variant) == (4, 4, "our own words")
    assert "our own words" in one.about.dialect
    assert len(suite(tmp_path / "a", limit=2).edits) == 2


def test_one_name_may_stand_for_both_pictures(tmp_path):
    rows = [{k: v for k, v in row(0).items() if k != "input_image_raw"}]
    (edit,) = suite(lines(tmp_path, rows)).edits
    assert (edit.source.load() == edit.before.load()).all()


def test_noise_depends_on_the_edit_and_the_seed(tmp_path):
    lines(tmp_path)
    seeds = [[r.seed for r in suite(tmp_path, seed=s).requests("base").edits] for s in (1, 1, 2)]
    assert seeds[0] == seeds[1] and not set(seeds[0]) & set(seeds[2])
    assert len(set(seeds[0])) == len(EDITS)


def test_a_judge_sees_both_pictures_and_then_the_edited_one(tmp_path):
    made = suite(lines(tmp_path))
    requests, said = replies(made)
    asked = made.judge_requests(requests, said)
    assert [r.id for r in asked][:3] == [
        "en-ps_human-k0:SC",
        "en-ps_human-k0:PQ",
        "cn-ps_human-k1:SC",
    ]
    sc, pq = asked[6], asked[7]
    assert "do 3" in sc.text and "do 3" not in pq.text
    assert [int(one[0, 0, 0]) for one in sc.images] == [30, 131]
    (after,) = pq.images
    assert after.shape == (8, 12, 3) and np.asarray(said.edits[3]).shape == (16, 12, 3)
    assert sc.truth == {
        "edit": "en-subject-add-k3",
        "aspect": "SC",
        "language": "en",
        "intersection": True,
    }


def test_the_users_words_are_asked_and_named(tmp_path):
    lines(tmp_path)
    path = tmp_path / "judge_prompts.json"
    path.write_text(json.dumps({"SC": "did it <instruction>?", "PQ": "nice?"}))
    made = suite(tmp_path)
    asked = made.judge_requests(*replies(made))
    assert [r.text for r in asked][:2] == ["did it do 0?", "nice?"]
    assert made.data.variant.startswith("the words of judge_prompts.json ")
    path.write_text(json.dumps({"SC": "did it?", "PQ": "nice?"}))
    with pytest.raises(BadInput, match="holds no <instruction>"):
        suite(tmp_path)
    path.write_text(json.dumps({"SC": "<instruction>"}))
    with pytest.raises(BadInput, match="judge_prompts.json: .PQ. is missing"):
        suite(tmp_path)


def test_means_over_groups_for_each_language(tmp_path):
    made = suite(lines(tmp_path))
    scored = made.score(records(made, good))
    assert (scored.n, scored.failed) == (4, 0)
    assert list(scored.strict) == [
        f"{name}_{language}"
        for name in ("overall", "semantics", "quality")
        for language in ("en", "cn")
    ]
    assert [m.number for m in scored.strict.values()] == [6, 6, 4, 4, 9, 9]
    assert scored.as_released["sample_mean_en"] == 6 and scored.as_released["scored_en"] == 3
    assert math.isnan(scored.as_released["G_O_en"])  # eight groups have nothing
    assert scored.by_category["ps_human"] == {"n": 2, "overall_en": 6, "overall_cn": 6}
    assert scored.items[0]["reason"] == "SC 4, PQ 9 of 10. because"


def test_the_official_means_of_all_groups(tmp_path):
    rows = [
        Record(
            id=f"{group}:{aspect}",
            category=group,
            asked="",
            reply=marks(i, 10) if aspect == "SC" else marks(i, i),
            truth={"edit": group, "aspect": aspect, "language": "cn", "intersection": i < 3},
        )
        for i, group in enumerate(gedit.gedit.GROUPS)
        for aspect in gedit.ASPECTS
    ]
    scored = gedit.score(rows)
    assert scored.as_released["G_O_cn"] == pytest.approx(5)
    assert scored.strict["overall_cn"].number == pytest.approx(5)
    assert "G_O_en" not in scored.as_released and list(scored.strict)[0] == "overall_cn"


@pytest.mark.parametrize(
    "reply,reason",
    [
        ("sorry", "no two marks"),
        ("{broken,}", "no two marks"),
        (marks(11, 4), "no two marks"),
        ('{"score": 8}', "no two marks"),
        (JudgeReply("", "refused"), "no reply about SC: refused"),
        (JudgeReply(marks(9, 9), "timeout"), "no reply about SC: timeout"),
    ],
)
def test_what_gives_no_marks_counts_nothing(tmp_path, reply, reason):
    made = suite(lines(tmp_path))

    def answer(request):
        return reply if request.id == "en-ps_human-k0:SC" else good(request)

    scored = made.score(records(made, answer))
    assert scored.failed == 1 and reason in scored.items[0]["reason"]
    assert scored.strict["overall_en"].number == pytest.approx(4)  # 0, 6 and 6
    assert scored.strict["overall_cn"].number == 6
    released = scored.as_released["sample_mean_en"]
    if isinstance(reply, str) and "score" in reply:  # 11 counts officially, and so does one mark
        assert scored.as_released["scored_en"] == 3 and released >= 6
    else:
        assert scored.as_released["scored_en"] == 2 and released == 6


def test_a_question_that_was_not_asked_is_a_failure(tmp_path):
    made = suite(lines(tmp_path))
    some = [r for r in records(made, good) if r.id != "en-ps_human-k0:PQ"]
    scored = made.score(some)
    assert scored.failed == 1 and "PQ: not asked" in scored.items[0]["reason"]


def test_records_of_something_else_are_refused():
    with pytest.raises(BadInput, match="x is not about an edit of GEdit"):
        gedit.score([Record("x", "ps_human", "", "", truth={"aspect": "SC"})])


def test_two_models_are_compared_edit_by_edit(tmp_path):
    made = suite(lines(tmp_path))
    found = made.findings(
        {"base": outputs(made, lambda r: marks(2, 2)), "trained": outputs(made, good)}
    )
    assert found.section["metric"] == "overall_en"
    assert found.section["paired"]["diff"] == pytest.approx(4)
    assert "G_O_en" not in found.section["models"]["base"]["as_released"]
    shown = found.examples["examples-gedit"][0]
    assert shown["instruction"] == "do 0"
    assert shown["image"].shape == (8, 12, 3) and shown["trained_image"].shape == (16, 12, 3)


def test_the_official_folder(tmp_path):
    made = suite(lines(tmp_path))
    out = epath.Path(tmp_path / "out")
    out.mkdir()
    made.official(out, *replies(made))
    after = images.load(out / "fullset" / "subject-add" / "en" / "k3.png")
    before = images.load(out / "fullset" / "subject-add" / "en" / "k3_SRCIMG.png")
    assert (after == 131).all() and (before == 30).all()
    assert len(list(out.glob("fullset/*/*/*.png"))) == 2 * len(EDITS)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"task_type": "subject_add"}, "line 1: .task_type. is .subject_add"),
        ({"instruction_language": "zh"}, "en or cn"),
        ({"key": "../x"}, "no name of a file"),
        ({"key": 5}, ".key. is 5"),
        ({"instruction": None}, ".instruction. is None"),
        ({"Intersection_exist": "yes"}, "must be a true or false"),
        ({"input_image": "gone.png"}, "gone.png.* is not there"),
        ({"input_image": "/etc/passwd"}, "leads out of the folder"),
    ],
)
def test_bad_files_are_named(tmp_path, changes, message):
    lines(tmp_path, [row(0) | changes])
    with pytest.raises(BadInput, match=message):
        suite(tmp_path)


def test_more_bad_files(tmp_path):
    with pytest.raises(BadInput, match="holds no metadata.jsonl"):
        suite(tmp_path)
    lines(tmp_path, [row(0), row(0)])
    with pytest.raises(BadInput, match="line 2: the edit .* stands at .*line 1 too"):
        suite(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"none")
    with pytest.raises((BadInput, ValueError), match=r"x\.parquet"):
        suite(tmp_path)


def test_instructions_that_a_model_cannot_read_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"metadata.jsonl, line 1: .*do"):
        gedit.make(config(), str(lines(tmp_path)), "shapes")
