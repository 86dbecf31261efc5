"""VQAv2 and OK-VQA on small files of the official form."""

import numpy as np
import pytest
from drawn_replies import config
from official_data import official, picture, read, records, scored, write

from srum_jax.core.errors import BadInput
from srum_jax.evals.suites import okvqa, vqav2

ASKED = "What is it?\nAnswer the question using a single word or phrase."


def files(answers, types=("other", "yes/no", "number"), numbered=True):
    """{"questions", "annotations"}: a question for each ten answers, about pictures 1, 2, ..."""
    ids = [{"image_id": i, "question_id": 10 * i} for i in range(1, len(answers) + 1)]
    head = {"info": {}, "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
    notes = [
        id
        | {
            "question_type": f"what {i}",
            "answer_type": types[i % len(types)],
            "answers": [
                {"answer": one, "answer_confidence": "yes"} | ({"answer_id": k} if numbered else {})
                for k, one in enumerate(ten, 1)
            ],
        }
        for i, (id, ten) in enumerate(zip(ids, answers, strict=True))
    ]
    questions = [id | {"question": "What is it?"} for id in ids]
    return {
        "questions": head | {"task_type": "Open-Ended", "questions": questions},
        "annotations": head | {"annotations": notes},
    }


ANSWERS = [["cat"] * 2 + ["dog"] * 8, ["yes"] * 10, ["2"] * 9 + ["two"]]


def made(folder, found=None, module=vqav2, **values):
    found = found or files(ANSWERS)
    for name, kind in zip(module.NAMES, ("questions", "annotations"), strict=True):
        write(folder / name, found[kind])
    for i in range(1, 4):
        picture(folder / "val2014" / f"COCO_val2014_{i:012d}.jpg", i)
    return module.make(config(**values), str(folder), "")


def test_each_question_is_asked_with_the_official_suffix(tmp_path):
    suite = made(tmp_path)
    first, *_ = suite.requests("base").texts
    assert (first.id, first.category, first.instruction) == ("10", "other", ASKED)
    assert first.max_tokens == 16 and np.asarray(first.images[0]).shape == (8, 8, 3)
    assert (suite.data.n, suite.data.total) == (3, 3)


def test_scores_in_each_dialect(tmp_path):
    found = scored(made(tmp_path), "A cat.", "Yes", "two")
    assert found.as_released == {
        "accuracy": 53.33,  # "Yes" is not "yes" where all people wrote that
        "accuracy other": 60.0,
        "accuracy yes/no": 0.0,
        "accuracy number": 100.0,
        "accuracy[lmms-eval]": pytest.approx(2.6 / 3),
        "accuracy[vlmevalkit]": pytest.approx(260 / 3),
    }
    assert found.strict["accuracy"].number == pytest.approx(260 / 3)
    assert found.by_category["yes/no"] == {"n": 1, "accuracy": 100}
    assert found.by_category["what 0"] == {"n": 1, "accuracy": pytest.approx(60)}
    assert found.units == ("10", "20", "30")
    assert found.items[0]["value"] == pytest.approx(0.6)
    assert found.items[0]["reason"] == "people say dog (8 people), cat (2 people)"
    assert found.items[1]["right"] is True


def split(folder, ids, name):
    """Questions of a test split about the pictures 1, 2, ..."""
    head = {"info": {}, "data_subtype": "test2015", "task_type": "Open-Ended"}
    rows = [{"image_id": i // 10, "question_id": i, "question": "What is it?"} for i in ids]
    write(folder / name, head | {"questions": rows})
    for i in ids:
        picture(folder / "test2015" / f"COCO_test2015_{i // 10:012d}.jpg", 1)


def test_test_dev_is_asked_and_written_for_the_server(tmp_path):
    split(tmp_path, [10, 20], vqav2.TESTS[0])
    suite = vqav2.make(config(), str(tmp_path), "")
    assert suite.server.startswith("EvalAI") and suite.measured_by == {}
    assert [r.instruction for r in suite.requests("base").texts] == [ASKED] * 2
    assert all(r.truth is None for r in records(suite, "A cat.", "Yes"))
    name = "v2_OpenEnded_mscoco_test-dev2015_model_results.json"
    rows = [{"question_id": 10, "answer": "cat"}, {"question_id": 20, "answer": "yes"}]
    assert read(official(suite, tmp_path / "a", "A cat.", "Yes") / name) == rows
    # With all of test beside it the rest has empty answers, as the server wants them; ...
    split(tmp_path, [10, 20, 30], vqav2.WHOLE_TEST)
    suite = vqav2.make(config(), str(tmp_path), "")
    rows.append({"question_id": 30, "answer": ""})
    assert read(official(suite, tmp_path / "b", "A cat.", "Yes") / name) == rows
    # ... a sample has none: they would count as wrong.
    some = vqav2.make(config(limit=1), str(tmp_path), "")
    assert len(read(official(some, tmp_path / "c", "A cat.") / name)) == 1
    whole = vqav2.make(config(), str(tmp_path / vqav2.WHOLE_TEST), "")
    assert whole.data.n == 3 and whole.server


def test_a_test_split_of_other_questions_is_refused(tmp_path):
    split(tmp_path, [10, 40], vqav2.TESTS[0])
    split(tmp_path, [10, 20], vqav2.WHOLE_TEST)
    with pytest.raises(BadInput, match="question_id 40 is none of .*test2015"):
        vqav2.make(config(), str(tmp_path), "")


def test_an_empty_reply_is_counted_as_failed(tmp_path):
    found = scored(made(tmp_path), "", " \n", "2")
    assert (found.n, found.failed) == (3, 2)
    assert found.as_released["accuracy"] == 33.33


def test_answers_without_numbers_drop_out_together_as_officially(tmp_path):
    suite = made(tmp_path, files(ANSWERS, numbered=False))
    found = scored(suite, "cat", "yes", "2")
    assert found.as_released["accuracy other"] == 53.33  # not 60: the two are one record
    assert found.strict["accuracy"].number == pytest.approx(260 / 3)


def test_no_records_have_no_numbers():
    for module in (vqav2, okvqa):
        found = module.score([])
        assert (found.n, found.as_released, found.by_category) == (0, {}, {})


def test_the_official_files_of_all_and_of_a_sample(tmp_path):
    whole = official(made(tmp_path), tmp_path / "all", "cat", "yes", "2")
    assert [path.name for path in whole.iterdir()] == [vqav2.RESULTS]
    assert read(whole / vqav2.RESULTS) == [
        {"question_id": 10, "answer": "cat"},
        {"question_id": 20, "answer": "yes"},
        {"question_id": 30, "answer": "2"},
    ]
    part = official(made(tmp_path, limit=2, seed=1), tmp_path / "part", "a", "b")
    ids = [row["question_id"] for row in read(part / vqav2.RESULTS)]
    for name, kind in zip(vqav2.NAMES, ("questions", "annotations"), strict=True):
        there = read(part / name)
        assert [row["question_id"] for row in there[kind]] == ids
        assert there["data_subtype"] == "val2014"


def test_okvqa_names_the_kinds_and_scores_by_both_programs(tmp_path):
    found = files(ANSWERS, types=("other",))
    found["annotations"]["question_types"] = {"what 0": "Vehicles"}
    suite = made(tmp_path, found, okvqa)
    assert [r.category for r in records(suite, "", "", "")] == ["Vehicles", "what 1", "what 2"]
    worth = scored(suite, "cat", "Yes", "2")
    assert worth.as_released == {
        "accuracy": 53.33,
        "accuracy[lmms-eval]": pytest.approx(2.6 / 3),
    }
    assert worth.by_category["Vehicles"] == {"n": 1, "accuracy": pytest.approx(60)}
    written = official(suite, tmp_path / "out", "cat", "Yes", "2")
    assert read(written / okvqa.RESULTS)[0] == {"question_id": 10, "answer": "cat"}


def spoilt(what):
    found = files(ANSWERS)
    questions, notes = found["questions"]["questions"], found["annotations"]["annotations"]
    if what == "no list":
        del found["questions"]["questions"]
    elif what == "nothing":
        found["questions"]["questions"], found["annotations"]["annotations"] = [], []
    elif what == "an id twice":
        questions.append(questions[0])
    elif what == "an id alone":
        del notes[1]
    elif what == "an id of text":
        notes[1]["question_id"] = "20"
    elif what == "another picture":
        notes[2]["image_id"] = 1
    elif what == "no answers":
        notes[2]["answers"] = []
    elif what == "an answer of a number":
        notes[0]["answers"][3]["answer"] = 3
    elif what == "an unknown type":
        notes[0]["answer_type"] = "maybe"
    elif what == "no picture":
        for row in (questions[0], notes[0]):
            row["image_id"] = 77
    elif what == "no question":
        del questions[1]["question"]
    return found


@pytest.mark.parametrize(
    "what, message",
    [
        ("no list", r"questions\.json, questions: must be a list"),
        ("nothing", r"questions\.json: holds nothing to ask"),
        ("an id twice", r"item 4: question_id 10 stands at .*item 1 too"),
        ("an id alone", r"the ids do not match: 1 stand in the first alone, such as 20"),
        ("an id of text", r"annotations, item 2: 'question_id' is '20'"),
        ("another picture", r"annotations, item 3: image_id is not that of .*item 3"),
        ("no answers", r"annotations, item 3: no answers"),
        ("an answer of a number", r"item 1, answers, item 4: 'answer' is 3"),
        ("an unknown type", r"item 1: 'answer_type' is 'maybe'; yes/no or number or other"),
        ("no picture", r"item 1: the picture 'COCO_val2014_000000000077\.jpg' is not there"),
        ("no question", r"questions, item 2: 'question' is missing"),
    ],
)
def test_bad_files_are_named_with_item_and_field(tmp_path, what, message):
    with pytest.raises(BadInput, match=message):
        made(tmp_path, spoilt(what))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadInput, match="holds no v2_OpenEnded_mscoco_val2014_questions.json"):
        vqav2.make(config(), str(tmp_path), "")
