"""MMBench's TSV files: rotations, pictures in base64, the rows that VLMEvalKit reads."""

import base64
import csv

import choice_suites as made
import numpy as np
import pytest
from spreadsheets import sheet

from srum_jax.core.errors import BadInput
from srum_jax.data import images
from srum_jax.evals.suites import mmbench

ROTATED = 10**6
HEADER = (
    *("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source"),
    *("l2-category", "comment", "split"),
)


def encoded(shade):
    return base64.b64encode(images.encode_png(made.picture(shade))).decode()


def rows(count=3, turns=True):
    """Questions of three options each, in all rotations."""
    found = []
    for number in range(1, count + 1):
        words = ["red", "green", "blue"]
        for turn in range(3 if turns else 1):
            turned = words[turn:] + words[:turn]
            found.append(
                dict.fromkeys(HEADER, "")
                | dict(zip("ABC", turned, strict=True))
                | {
                    "index": number + turn * ROTATED,
                    "question": f"Which color {number}?",
                    "hint": "Look at\nthe middle." if number == 1 else "nan",
                    "answer": "ABC"[turned.index("green")],
                    "category": f"cat{number % 2}",
                    "l2-category": "perception",
                    "image": encoded(number) if not turn else str(number),
                    "split": "dev",
                }
            )
    return found


def write(folder, lines, name="mmbench_dev_en_20231003.tsv"):
    path = folder / name
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, HEADER, delimiter="\t")
        writer.writeheader()
        writer.writerows(lines)
    return path


def suite(path, **how):
    return mmbench.make(made.config(**how), str(path), "")


def test_questions_are_those_of_bagels_evaluation(tmp_path):
    asked = suite(write(tmp_path, rows())).requests("model").texts
    assert len(asked) == 9
    assert asked[0].instruction == (
        "Look at\nthe middle.\nWhich color 1?\nA. red\nB. green\nC. blue\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert asked[4].instruction.startswith("Which color 2?\nA. green\n")
    assert asked[0].max_tokens == 100
    # A rotation whose "image" is an index has that row's picture.
    np.testing.assert_array_equal(asked[4].images[0], made.picture(2))


def test_a_chinese_file_is_asked_in_chinese(tmp_path):
    path = write(tmp_path, rows(1), "mmbench_dev_cn_20231003.tsv")
    assert suite(path).requests("model").texts[0].instruction.endswith("\n请直接回答选项字母。")


def test_one_wrong_rotation_makes_a_question_wrong(tmp_path):
    asked = suite(tmp_path if write(tmp_path, rows()) else "")
    words = made.answers(asked) | {"1000002": "I am not sure", "3": "red"}
    scored = made.scored(asked, words)
    numbers = {name: metric.number for name, metric in scored.strict.items()}
    assert numbers == pytest.approx({"circular": 1 / 3, "vanilla": 2 / 3})
    assert next(iter(scored.strict)) == "circular"
    assert scored.as_released == pytest.approx(
        {
            **{"circular": 1 / 3, "vanilla": 2 / 3},
            **{"circular [lmms-eval static]": 1 / 3, "vanilla [lmms-eval static]": 2 / 3},
        }
    )
    assert (scored.n, scored.failed, scored.units) == (9, 1, ("1", "2", "3"))
    assert scored.by_category["cat0"] == {"n": 1, "circular": 0, "vanilla": 1}
    assert scored.by_category["cat1"] == {"n": 2, "circular": 0.5, "vanilla": 0.5}
    assert scored.by_category["perception"]["n"] == 3
    reasons = {item["id"]: item["reason"] for item in scored.items if not item["right"]}
    assert reasons == {"1000002": "names no option; A is right", "3": "said A; B is right"}
    section = made.check_folder(asked, words, tmp_path)
    assert section["data"]["n"] == 3 and section["models"]["against"]["failed"] == 1
    assert section["models"]["model"]["strict"]["circular"] == 1


def test_without_rotations_there_is_no_circular_number(tmp_path):
    scored = made.scored(suite(write(tmp_path, rows(turns=False))), "B")
    assert {name: metric.number for name, metric in scored.strict.items()} == {"vanilla": 1}
    assert scored.by_category["cat1"] == {"n": 2, "vanilla": 1}


def test_a_limit_takes_questions_with_all_their_rotations(tmp_path):
    path = write(tmp_path, rows(8))
    asked = suite(path, limit=4, seed=3)
    numbers = [int(r.id) % ROTATED for r in asked.requests("model").texts]
    assert len(numbers) == 12 and len(set(numbers)) == 4
    assert sorted(n % 2 for n in set(numbers)) == [0, 0, 1, 1]  # evenly over categories
    assert (asked.data.n, asked.data.total) == (4, 8)
    again = suite(path, limit=4, seed=3)
    assert [r.id for r in again.requests("x").texts] == [r.id for r in asked.requests("y").texts]


def test_the_official_file_has_the_rows_and_what_was_said(tmp_path):
    asked = suite(write(tmp_path, rows()))
    folder = made.official(asked, 'said "B"\tthen', tmp_path / "official")
    with (folder / "mmbench.tsv").open(newline="") as file:
        written = list(csv.DictReader(file, delimiter="\t"))
    assert [int(row["index"]) for row in written] == [r["index"] for r in rows()]
    assert {row["prediction"] for row in written} == {'said "B"\tthen'}
    assert "image" not in written[0] and written[0]["hint"] == "Look at\nthe middle."


@pytest.mark.parametrize("how", ["no column", "nan", "empty"])
def test_a_split_without_answers_is_asked_and_written_for_the_server(tmp_path, how):
    lines = rows()
    for line in lines:
        line["answer"] = {"nan": "nan"}.get(how, "")
        line["split"] = "test"
    path = write(tmp_path, lines, "MMBench_TEST_EN.tsv")
    if how == "no column":
        kept = [name for name in HEADER if name != "answer"]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, kept, delimiter="\t", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(lines)
    asked = suite(path)
    assert asked.server and asked.measured_by == {}
    assert len(asked.requests("model").texts) == 9
    one = made.outputs(asked, 'B, "of\tcourse" <it is>')
    assert asked.findings({"base": one}).section == {} and asked.metrics(one) == {}
    folder = made.official(asked, 'B, "of\tcourse" <it is>', tmp_path / "official")
    assert [p.name for p in folder.iterdir()] == ["MMBench_TEST_EN.xlsx"]
    found = sheet(folder / "MMBench_TEST_EN.xlsx")
    assert found[0][:7] == ["index", "question", "A", "B", "C", "prediction", "hint"]
    assert "answer" not in found[0] and "image" not in found[0]
    said = [dict(zip(found[0], row, strict=True)) for row in found[1:]]
    assert [row["index"] for row in said] == [line["index"] for line in rows()]
    assert {row["prediction"] for row in said} == {'B, "of\tcourse" <it is>'}
    assert said[0]["hint"] == "Look at\nthe middle." and said[0]["split"] == "test"


def test_some_answers_are_no_split_without_answers(tmp_path):
    lines = rows()
    lines[4]["answer"] = ""
    with pytest.raises(BadInput, match="line 9: 'answer' is missing"):
        suite(write(tmp_path, lines))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"index": "x"}, "line 2: \"index\" is 'x'"),
        ({"answer": "D"}, "line 2: 'answer' is 'D'; A or B or C"),
        ({"answer": ""}, "line 2: 'answer' is missing"),
        ({"B": ""}, "line 2: has the options A, C"),
        ({"question": ""}, "line 2: 'question' is missing"),
        ({"image": "7"}, "line 2: \"image\" is '7': no picture, nor a row that has one"),
        ({"index": 2}, "index 2 stands at"),
        ({"index": 1 + 5 * ROTATED}, "is no row"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, message):
    lines = rows()
    lines[0] |= change
    with pytest.raises(BadInput) as e:
        suite(write(tmp_path, lines))
    assert message in str(e.value) and "mmbench_dev_en_20231003.tsv" in str(e.value)


def test_a_picture_that_is_none_is_named_when_it_is_looked_at(tmp_path):
    lines = rows()
    lines[0]["image"] = "!" * 80
    asked = suite(write(tmp_path, lines)).requests("model").texts
    with pytest.raises(BadInput, match='line 2: "image" is no base64'):
        asked[0].images[0]
    lines[0]["image"] = "AAAA" * 80
    asked = suite(write(tmp_path, lines)).requests("model").texts
    with pytest.raises(ValueError, match="line 2, image"):
        asked[0].images[0]


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(BadInput, match="holds no TSV file"):
        suite(tmp_path)
    (tmp_path / "a.tsv").write_text("index\tquestion\n1\twhat?\n")
    with pytest.raises(BadInput, match="line 1: no column A, B, image"):
        suite(tmp_path)
    path = write(tmp_path, rows(1), "b.tsv")
    with pytest.raises(BadInput, match="holds 2 TSV files"):
        suite(tmp_path)
    path.write_text(path.read_text() + "7\tfew\n")
    with pytest.raises(BadInput, match="line 8: 2 fields, the header has 14"):
        suite(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="not TSV in UTF-8"):
        suite(path)
