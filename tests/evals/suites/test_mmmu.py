"""MMMU's files: Parquet as on the Hub and JSON lines, pictures, open answers."""

import json
import random

import choice_suites as made
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from srum_jax.core.errors import BadInput
from srum_jax.data import images
from srum_jax.evals import stats
from srum_jax.evals.suite import Record
from srum_jax.evals.suites import mmmu

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def row(subject, number, *, options=("9 J", "3 J", "none"), answer="B", shown=1, **more):
    found = {
        "id": f"validation_{subject}_{number}",
        "question": f" How much in <image {shown}>? ",
        "options": repr(list(options)),
        "explanation": "",
        "answer": answer,
        "question_type": "multiple-choice" if options else "open",
        "subfield": "s",
    }
    shades = {f"image_{i}": 10 * i if i <= shown else None for i in range(1, 8)}
    return found | shades | more


ROWS = [
    row("Physics", 1),
    row("Physics", 2, options=(), answer="['9.8', 'nine point eight']", shown=2),
    row("Art_Theory", 1, options=("<image 1>", "<image 2>"), answer="A", shown=2),
    row("Art_Theory", 2, options=(), answer="Monet"),
]


def write_parquet(folder, rows=ROWS):
    """A folder a subject; a picture is a struct of bytes and path."""
    by_subject = {}
    for one in rows:
        subject = one["id"].split("_", 1)[1].rsplit("_", 1)[0]
        by_subject.setdefault(subject, []).append(one)
    for subject, some in by_subject.items():
        columns = {}
        for name in some[0]:
            values = [one[name] for one in some]
            if name.startswith("image_"):
                files = [_file(v) for v in values]
                columns[name] = pa.array(files, STRUCT)
            else:
                columns[name] = pa.array(values)
        (folder / subject).mkdir()
        pa.parquet.write_table(
            pa.table(columns), folder / subject / "validation-00000-of-00001.parquet"
        )
    return folder


def _file(shade):
    if isinstance(shade, int):
        return {"bytes": images.encode_png(made.picture(shade)), "path": "x.png"}
    return shade


def write_lines(folder, rows=ROWS):
    lines = []
    for one in rows:
        line = dict(one)
        for name in [n for n in one if n.startswith("image_") and isinstance(one[n], int)]:
            line[name] = f"images/{one['id']}_{name}.png"
            made.save(folder / line[name], made.picture(one[name]))
        lines.append(json.dumps(line))
    (folder / "validation.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def suite(path, **how):
    return mmmu.make(made.config(**how), str(path), "")


@pytest.mark.parametrize("write", [write_parquet, write_lines])
def test_both_forms_ask_the_same_in_bagels_words(tmp_path, write):
    asked = {r.id: r for r in suite(write(tmp_path)).requests("model").texts}
    first, second = asked["validation_Physics_1"], asked["validation_Physics_2"]
    assert first.instruction == (
        "How much in <image 1>?\nA. 9 J\nB. 3 J\nC. none\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert second.instruction == (
        "How much in <image 2>?\nAnswer the question using a single word or phrase."
    )
    assert first.max_tokens == 10 and first.category == "Physics"
    assert second.truth["answer"] == ["9.8", "nine point eight"]
    assert len(first.images) == 1 and len(second.images) == 2
    # The first picture is shown at twice its size.
    np.testing.assert_array_equal(second.images[0], made.picture(10, (32, 24)))
    np.testing.assert_array_equal(second.images[1], made.picture(20))


def test_random_letters_are_drawn_subject_by_subject():
    """As the official program does, whatever the order of the file."""
    options = {letter: letter.lower() for letter in "ABCD"}
    replies = [("Physics", "?"), ("Art", "A"), ("Art", "?"), ("Physics", "B"), ("Art", "?")]
    records = [
        Record(f"validation_{s}_{i}", s, "", said, truth={"answer": "A", "options": options})
        for i, (s, said) in enumerate(replies)
    ]
    in_order = sorted(records, key=lambda r: r.category)
    drawn = mmmu.score(records).as_released[mmmu.DRAWN]
    assert drawn == mmmu.score(in_order).as_released[mmmu.DRAWN]
    draws = random.Random(42)
    said = [r.reply if r.reply != "?" else draws.choice("ABCD") for r in in_order]
    assert drawn == said.count("A") / 5


def test_lmms_eval_counts_open_answers_that_have_one_right_answer():
    """Several are one text for it; before 0.7.3 none counted."""
    golds = ["manet"], ["manet", "monet"], ["renoir"]
    records = [
        Record(f"validation_Art_{i}", "Art", "", "by Manet", truth={"answer": gold, "options": {}})
        for i, gold in enumerate(golds)
    ]
    released = mmmu.score(records).as_released
    assert released["accuracy"] == 2 / 3
    assert released["accuracy [lmms-eval]"] == 1 / 3
    assert released[mmmu.OLD_LMMS] == 0


def test_scores_by_the_parsers_of_each_harness(tmp_path):
    asked = suite(write_parquet(tmp_path))
    words = {
        "validation_Physics_1": "B. 3 J",  # for the official parser no letter
        "validation_Physics_2": "It is 9.80",
        "validation_Art_Theory_1": "",
        "validation_Art_Theory_2": "by Manet",
    }
    scored = made.scored(asked, words)
    numbers = {name: metric.number for name, metric in scored.strict.items()}
    assert numbers == {"accuracy": 0.5, "multiple_choice": 0.5, "open": 0.5}
    assert scored.as_released["accuracy"] == 0.25
    assert scored.as_released["accuracy [BAGEL]"] == 0.5
    assert scored.as_released[mmmu.OLD_LMMS] == 0.25  # open answers never count
    assert scored.as_released[mmmu.DRAWN] in (0.25, 0.5, 0.75)
    assert (scored.n, scored.failed) == (4, 1)
    assert scored.by_category == {
        "Art and Design": {"n": 2, "accuracy": 0.0},
        "Science": {"n": 2, "accuracy": 1.0},
        "Art_Theory": {"n": 2, "accuracy": 0.0},
        "Physics": {"n": 2, "accuracy": 1.0},
    }
    reasons = {item["id"]: item["reason"] for item in scored.items}
    assert reasons["validation_Art_Theory_1"] == "names no option; A is right"
    assert "Monet" in reasons["validation_Art_Theory_2"]
    assert reasons["validation_Physics_2"] == ""
    section = made.check_folder(asked, words, tmp_path)
    assert section["data"]["total"] == 4
    # Both open answers right do not show that all would be, though the others have no part in it.
    assert section["models"]["model"]["ci95"]["open"] == list(stats.wilson(2, 2))


def test_official_files_are_those_that_the_evaluation_reads(tmp_path):
    asked = suite(write_lines(tmp_path))
    folder = made.official(asked, "B", tmp_path / "official")
    assert sorted(p.name for p in folder.iterdir()) == ["Art_Theory", "Physics"]
    chosen, free = json.loads((folder / "Physics" / "output.json").read_text())
    assert chosen == {
        "id": "validation_Physics_1",
        "question_type": "multiple-choice",
        "answer": "B",
        "all_choices": ["A", "B", "C"],
        "index2ans": {"A": "9 J", "B": "3 J", "C": "none"},
        "response": "B",
    }
    assert free["question_type"] == "short-answer" and free["answer"][0] == "9.8"


def test_a_limit_is_even_over_subjects(tmp_path):
    asked = suite(write_lines(tmp_path), limit=2, seed=1)
    assert sorted(r.category for r in asked.requests("m").texts) == ["Art_Theory", "Physics"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"id": "7"}, 'id "7" is not'),
        ({"answer": "D"}, "\"answer\" is 'D', no letter of 3 options"),
        ({"answer": "?"}, "answers of the test split are hidden"),
        ({"options": "[1, 2]"}, "'options' is [1, 2]; it must be a list of texts"),
        ({"options": "['a', __import__('os')]"}, "no list"),
        ({"options": "[]"}, "'multiple-choice' with 0 options"),
        ({"question_type": "essay"}, "'question_type' is 'essay'"),
        ({"question": "See <image 3>"}, 'speaks of <image 3>, and "image_3" is no picture'),
        ({"question": 5}, "'question' is 5; it must be a text"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, message):
    rows = [ROWS[0] | change, *ROWS[1:]]
    with pytest.raises(BadInput) as e:
        suite(write_lines(tmp_path, rows))
    assert message in str(e.value) and "validation.jsonl, line 1" in str(e.value)


def test_bad_pictures_are_named(tmp_path):
    write_lines(tmp_path)
    (tmp_path / "images" / "validation_Physics_1_image_1.png").unlink()
    with pytest.raises(BadInput, match="line 1: the picture .*is not there"):
        suite(tmp_path)
    folder = tmp_path / "parquet"
    folder.mkdir()
    broken = {"bytes": b"no picture", "path": "x.png"}
    asked = suite(write_parquet(folder, [ROWS[0] | {"image_1": broken}]))
    with pytest.raises(ValueError, match="row 1, image_1"):
        asked.requests("m").texts[0].images[0]


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(BadInput, match="holds no <Subject>/validation-"):
        suite(tmp_path)
    (tmp_path / "Math").mkdir()
    (tmp_path / "Math" / "validation-00000-of-00001.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(ValueError, match="validation-00000-of-00001.parquet"):
        suite(tmp_path)


def test_an_id_that_is_there_twice_is_named(tmp_path):
    with pytest.raises(BadInput, match="line 5: id 'validation_Physics_1' stands at .*line 1 too"):
        suite(write_lines(tmp_path, [*ROWS, ROWS[0]]))
