"""TextVQA, GQA, DocVQA and ChartQA on small files of the official form."""

import numpy as np
import pytest
from drawn_replies import config
from official_data import official, picture, read, scored, write

from srum_jax.core import registry
from srum_jax.core.errors import BadInput
from srum_jax.evals import short_answers
from srum_jax.evals.suites import chartqa, docvqa, gqa, textvqa

SUFFIX = "\nAnswer the question using a single word or phrase."


def textvqa_rows():
    said = [["stop"] * 4 + ["go"] * 6, ["7-up"] * 10]
    return [
        {"question_id": 34602 + i, "image_id": f"a{i}", "question": "what IS it?", "answers": ten}
        | {"set_name": "val"}
        for i, ten in enumerate(said)
    ]


def gqa_rows():
    kinds = "query", "verify"
    return {
        f"20{i}": {"imageId": f"n{i}", "question": "Is it?", "answer": answer}
        | {"types": {"structural": kind, "semantic": "attr", "detailed": "x"}}
        for i, (kind, answer) in enumerate(zip(kinds, ("dog", "yes"), strict=True))
    }


def docvqa_rows():
    answers, types = [["1,200", "1200"], ["acme corp"]], [["form", "layout"], ["layout"]]
    return [
        {"questionId": 5 + i, "question": "Who?", "image": f"documents/d{i}.png"}
        | {"answers": answers[i], "question_types": types[i]}
        for i in range(2)
    ]


def chartqa_rows():
    return [
        {"imgname": f"c{i}.png", "query": "How many?", "label": label}
        for i, label in enumerate(("100", "blue"))
    ]


def write_textvqa(folder, rows):
    write(folder / textvqa.FILE, {"data": rows})
    for i in range(2):
        picture(folder / "train_images" / f"a{i}.jpg", i)


def write_gqa(folder, rows):
    write(folder / gqa.FILE, rows)
    for i in range(2):
        picture(folder / "images" / f"n{i}.jpg", i)


def write_docvqa(folder, rows):
    write(folder / docvqa.FILES[0], {"data": rows})
    for i in range(2):
        picture(folder / "spdocvqa_images" / f"d{i}.png", i)


def write_chartqa(folder, rows, part="human"):
    write(folder / "test" / f"test_{part}.json", rows)
    for i in range(2):
        picture(folder / "test" / "png" / f"c{i}.png", i)


WRITERS = {
    textvqa: (write_textvqa, textvqa_rows),
    gqa: (write_gqa, gqa_rows),
    docvqa: (write_docvqa, docvqa_rows),
    chartqa: (write_chartqa, chartqa_rows),
}


def made(folder, module, rows=None, **values):
    writer, all_rows = WRITERS[module]
    writer(folder, all_rows() if rows is None else rows)
    return module.make(config(**values), str(folder), "")


def test_textvqa(tmp_path):
    suite = made(tmp_path, textvqa)
    assert suite.requests("base").texts[0].instruction == "What is it?" + SUFFIX
    found = scored(suite, "STOP!", "7-Up's")
    assert found.as_released == {"accuracy": 0.5}
    assert found.strict["accuracy"].number == 0.5
    assert found.items[1]["reason"] == "people say 7-up (10 people)"
    written = official(suite, tmp_path / "out", "STOP!", "x")
    rows = [{"question_id": 34602, "answer": "STOP!"}, {"question_id": 34603, "answer": "x"}]
    assert read(written / textvqa.RESULTS) == rows


def test_gqa(tmp_path):
    suite = made(tmp_path, gqa)
    assert suite.requests("base").texts[0].instruction == "Is it?" + SUFFIX
    found = scored(suite, " Dog.", "Yes")
    assert found.as_released == {"exact_match": 1.0}  # lmms-eval strips replies first
    assert found.strict["exact_match"].number == 1
    assert set(found.by_category) == {"query", "verify"}
    assert read(official(suite, tmp_path / "out", "Dog.", "Yes") / gqa.RESULTS) == [
        {"questionId": "200", "prediction": "dog"},
        {"questionId": "201", "prediction": "yes"},
    ]


def test_docvqa(tmp_path):
    suite = made(tmp_path, docvqa)
    first = suite.requests("base").texts[0]
    assert (first.instruction, first.max_tokens) == ("Who?" + SUFFIX, 32)
    found = scored(suite, "1.200", "  acne  corp")
    assert found.as_released["anls"] == pytest.approx(100 * (0.8 + 1 - 1 / 12) / 2)
    assert found.strict["anls"].number == pytest.approx(100 * (0.8 + 1 - 1 / 9) / 2)
    assert {name: one["n"] for name, one in found.by_category.items()} == {"form": 1, "layout": 2}
    assert found.items[0]["reason"] == "1,200 or 1200 is right"
    rows = read(official(suite, tmp_path / "out", "a", "b") / docvqa.RESULTS)
    assert rows == [{"questionId": 5, "answer": "a"}, {"questionId": 6, "answer": "b"}]


def test_docvqa_without_types_of_questions(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "question_types"} for row in docvqa_rows()]
    suite = made(tmp_path, docvqa, rows)
    assert set(scored(suite, "1200", "x").by_category) == {"all"}


def test_chartqa(tmp_path):
    write_chartqa(tmp_path, chartqa_rows(), "augmented")
    suite = made(tmp_path, chartqa)
    first = suite.requests("base").texts[0]
    assert first.instruction == "How many?\nAnswer the question with a single word."
    found = scored(suite, "104", " Blue", "106", "blue.")
    assert found.as_released == {
        "relaxed_overall": 0.5,  # both strip a reply before they score it
        "relaxed_human_split": 1.0,
        "relaxed_augmented_split": 0.0,
        "Overall[vlmevalkit]": 50.0,
    }
    assert found.strict["relaxed_accuracy"].number == 0.5
    written = official(suite, tmp_path / "out", "a", "b", "c", "d")
    rows = read(written / "chartqa_test_augmented_results.json")
    assert rows[0] == {
        **{"imgname": "c0.png", "question": "How many?", "annotation": "100", "answer": "c"}
    }


@pytest.mark.parametrize("module", WRITERS)
def test_empty_replies_are_failed_and_worth_nothing(tmp_path, module):
    found = scored(made(tmp_path, module), "", "\t")
    metric, *_ = found.strict.values()
    assert (found.n, found.failed, metric.number) == (2, 2, 0)


@pytest.mark.parametrize("module", WRITERS)
def test_any_reply_is_scored(tmp_path, module):
    suite = made(tmp_path, module)
    for text in ("犬", "x" * 5000, "nan", "%", "\x00", '"}]'):
        found = scored(suite, text, text)
        metric, *_ = found.strict.values()
        assert 0 <= metric.number <= module.ABOUT.best


@pytest.mark.parametrize("module", WRITERS)
def test_no_records_have_no_numbers(module):
    found = module.score([])
    assert (found.n, found.failed, found.as_released, found.units) == (0, 0, {}, ())


@pytest.mark.parametrize("module", WRITERS)
def test_a_sample_is_of_the_whole(tmp_path, module):
    suite = made(tmp_path, module, limit=1)
    assert (suite.data.n, suite.data.total) == (1, 2)
    assert len(suite.requests("base").texts) == 1


@pytest.mark.parametrize("module", WRITERS)
@pytest.mark.parametrize("text", ["{", "[]", "{}", "3", '{"data": []}', "[3]"])
def test_a_file_that_is_none_is_named(tmp_path, module, text):
    made(tmp_path, module)
    for path in (p for p in tmp_path.rglob("*.json")):
        path.write_text(text)
        name = path.name
    with pytest.raises(ValueError, match=name):
        module.make(config(), str(tmp_path), "")


@pytest.mark.parametrize("module", WRITERS)
def test_a_missing_file_is_named(tmp_path, module):
    with pytest.raises(BadInput, match="holds no .*json"):
        module.make(config(), str(tmp_path), "")


FIELDS = {
    textvqa: {"question_id": "3", "question": None, "image_id": 5, "answers": ["a", 1]},
    gqa: {"question": 3, "imageId": None, "answer": ["yes"], "types": []},
    docvqa: {"questionId": 1.5, "question": 1, "image": None, "answers": [], "question_types": [1]},
    chartqa: {"imgname": 3, "query": None, "label": 14},
}


@pytest.mark.parametrize(
    "module, field", [(module, field) for module, fields in FIELDS.items() for field in fields]
)
def test_a_bad_field_is_named_with_its_item(tmp_path, module, field):
    rows = WRITERS[module][1]()
    key = list(rows)[1] if isinstance(rows, dict) else 1
    rows[key][field] = FIELDS[module][field]
    where = "item '201'" if isinstance(rows, dict) else "item 2"
    with pytest.raises(BadInput, match=f"{where}.*'{field}' is"):
        made(tmp_path, module, rows)


@pytest.mark.parametrize(
    "module, field, name",
    [(textvqa, "image_id", "z"), (gqa, "imageId", "z"), (docvqa, "image", "z.png")]
    + [(chartqa, "imgname", "z.png"), (chartqa, "imgname", "../c0.png")],
)
def test_a_missing_picture_is_named(tmp_path, module, field, name):
    rows = WRITERS[module][1]()
    key = list(rows)[1] if isinstance(rows, dict) else 1
    rows[key][field] = name
    with pytest.raises(BadInput, match=f"the picture '{name}"):
        made(tmp_path, module, rows)


def test_an_id_twice_is_named(tmp_path):
    rows = textvqa_rows()
    rows[1]["question_id"] = rows[0]["question_id"]
    with pytest.raises(BadInput, match="item 2: question_id 34602 stands at .*item 1 too"):
        made(tmp_path, textvqa, rows)


def test_the_most_frequent_answers_are_told():
    said = short_answers.people_said(["a", "b", "a", "c", "d", "e"])
    assert said == "people say a (2 people), b, c, d"


RIGHT = {
    "vqav2": lambda truth: truth["answers"][0],
    "okvqa": lambda truth: truth["answers"][0],
    "textvqa": lambda truth: truth[0],
    "docvqa": lambda truth: truth["answers"][0],
    "mme": lambda truth: truth["label"],
}


@pytest.mark.parametrize(
    "name", ["vqav2", "okvqa", "textvqa", "gqa", "docvqa", "chartqa", "pope", "mme"]
)
def test_the_shapes_world_is_data_and_what_is_right_there_is_worth_all(tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    module = registry.load(registry.SUITES, name)
    suite = module.make(config(limit=16), "shapes", "")
    asked = suite.requests("base").texts
    assert len(asked) == suite.data.n and np.asarray(asked[0].images[0]).shape == (32, 32, 3)
    right = RIGHT.get(name, lambda truth: truth)
    found = scored(suite, *(right(request.truth) for request in asked))
    metric, *_ = found.strict.values()
    assert metric.number == pytest.approx(module.ABOUT.best)
    assert (found.n, found.failed) == (len(asked), 0)
    assert any((official(suite, tmp_path / "out", *("x",) * len(asked))).iterdir())


def test_splits_without_answers_are_written_for_their_servers(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "answers"} for row in textvqa_rows()]
    write(tmp_path / "t" / textvqa.TEST, {"data": rows})
    for i in range(2):
        picture(tmp_path / "t" / "test_images" / f"a{i}.jpg", i)
    suite = textvqa.make(config(), str(tmp_path / "t"), "")
    assert suite.server.startswith("EvalAI") and suite.measured_by == {}
    written = read(official(suite, tmp_path / "t-out", "STOP!", "x") / textvqa.SUBMISSION)
    assert written[0] == {"question_id": 34602, "answer": "STOP!"}
    keep = ("questionId", "question", "image")
    rows = [{k: row[k] for k in keep} for row in docvqa_rows()]
    write(tmp_path / "d" / docvqa.TEST, {"data": rows})
    for i in range(2):
        picture(tmp_path / "d" / "documents" / f"d{i}.png", i)
    suite = docvqa.make(config(), str(tmp_path / "d"), "")
    assert "Robust Reading" in suite.server
    written = read(official(suite, tmp_path / "d-out", "acme", "x") / docvqa.SUBMISSION)
    assert written[0] == {"questionId": 5, "answer": "acme"}


@pytest.mark.parametrize("module, rows", [(textvqa, textvqa_rows), (docvqa, docvqa_rows)])
def test_a_split_that_lacks_some_answers_is_refused(tmp_path, module, rows):
    some = rows()
    del some[1]["answers"]
    with pytest.raises(BadInput, match="item 2: 'answers' is missing"):
        made(tmp_path, module, some)
