"""Prompt lists: every form of file, ids, repeats, and faults named by line."""

import json
import pathlib

import pytest

from srum_jax.data import prompts, shapes
from srum_jax.data.tokenizer import Tokenizer


def write(tmp_path, name, content):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return str(path)


def texts(found):
    return [p.text for p in found]


def test_the_shapes_world_from_the_front_and_by_category():
    found = prompts.load("shapes:test", 12)
    assert [p.id for p in found] == list(range(12)) and len({p.text for p in found}) == 12
    kinds = len(shapes.CATEGORIES)
    assert [p.category for p in found[:kinds]] == list(shapes.CATEGORIES)
    assert found[:4] == prompts.load("shapes:test", 4)
    with pytest.raises(ValueError, match="1000000 prompts asked of split 'train'"):
        prompts.load("shapes:train", 10**6)


def test_from_a_place_on_and_around_the_end(tmp_path):
    path = write(tmp_path, "p.txt", "a\nb\nc\nd\ne\n")
    rounds = [prompts.load(path, 2, first=2 * r) for r in range(4)]
    assert [texts(found) for found in rounds] == [["a", "b"], ["c", "d"], ["e", "a"], ["b", "c"]]
    assert [p.id for p in rounds[2]] == [4, 0]  # an id goes with its prompt
    assert sorted(texts(prompts.load(path, 9, first=9))) == ["a", "b", "c", "d", "e"]  # each once
    whole = prompts.load("shapes:test", 12)
    assert prompts.load("shapes:test", 5, first=7) == whole[7:]
    everything = prompts.load("shapes:test")
    around = prompts.load("shapes:test", 3, first=len(everything) - 1)
    assert around == (everything[-1], *whole[:2])
    with pytest.raises(ValueError, match="1000000 prompts asked of split 'train'"):
        prompts.load("shapes:train", 10**6, first=3)


def test_a_prompt_a_line(tmp_path):
    path = write(tmp_path, "p.txt", "\ufeffa red circle\r\n\n  two   red circles \nA dog\n")
    found = prompts.load(path, 10)
    assert texts(found) == ["a red circle", "two red circles", "A dog"]
    assert [p.id for p in found] == [0, 1, 2]
    assert {p.category for p in found} == {prompts.NO_CATEGORY}
    assert found[1].where.endswith("p.txt, line 3")
    assert texts(prompts.load(path, 2)) == texts(found)[:2]


def test_records_with_and_without_an_id(tmp_path):
    rows = [{"prompt": "a", "category": "x", "id": 7, "more": [1]}, {"prompt": "b"}, "c"]
    whole = prompts.load(write(tmp_path, "p.json", rows), 9)
    assert [(p.id, p.text, p.category) for p in whole] == [
        (7, "a", "x"),
        (1, "b", prompts.NO_CATEGORY),
        (2, "c", prompts.NO_CATEGORY),
    ]
    lines = prompts.load(write(tmp_path, "p.jsonl", "\n".join(map(json.dumps, rows))), 9)
    assert prompts.digest(lines) == prompts.digest(whole)
    assert prompts.digest(lines) != prompts.digest(lines[:2])


def test_compbench_fields_and_repeats(tmp_path, caplog):
    rows = [
        {"Question": "a sofa", "Category": "3d_spatial", "Question_id": 5},
        {"Question": "a  sofa ", "Category": "color", "Question_id": 6},
        {"Question": "a cat", "Category": "color", "Question_id": 9},
    ]
    with caplog.at_level("INFO", logger="absl"):
        found = prompts.load(write(tmp_path, "p.json", rows), 2)
    assert [(p.id, p.category) for p in found] == [(5, "3d_spatial"), (9, "color")]
    assert "1 repeated prompts left out, 2 kept" in caplog.text


def test_faulty_lines_are_listed_with_their_numbers(tmp_path):
    rows = [
        '{"prompt": "fine", "id": 1}',
        "{",
        "[1]",
        '{"Prompt": "x"}',
        '{"prompt": " "}',
        '{"prompt": "y", "id": "3"}',
        '{"prompt": "z", "category": 4}',
        '{"prompt": "w", "id": 1}',
        '{"prompt": "v", "id": true}',
    ]
    path = write(tmp_path, "p.jsonl", "\n".join(rows))
    with pytest.raises(ValueError) as error:
        prompts.load(path, 1)
    lines = str(error.value).split("\n")[1:]
    assert [line.split(":")[0].split(" ")[-1] for line in lines] == list("23456789")
    for word, line in zip(
        (
            "not JSON",
            "neither",
            "no text",
            "no text",
            "'3'",
            "category",
            "id 1 is also that of line 1",
            "True",
        ),
        lines,
        strict=True,
    ):
        assert word in line
    many = write(tmp_path, "many.jsonl", "\n".join(["{"] * 15))
    with pytest.raises(ValueError, match="line 10: not JSON.*\n.*and 5 more"):
        prompts.load(many, 1)


def test_the_line_of_a_record_in_a_list(tmp_path):
    text = '\n[\n{"prompt": "a, [b]"},\n\n\n  {"prompt":\n 3}, "c",\n5]'
    path = write(tmp_path, "p.json", text)
    with pytest.raises(ValueError, match="line 6: no text") as error:
        prompts.load(path, 1)
    assert "line 8: neither" in str(error.value)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("p.txt", "\n \n", "no prompts in it"),
        ("p.json", [], "no prompts in it"),
        ("p.json", {"prompt": "a"}, "must hold a list"),
        ("p.json", "[1,\n2,,3]", "p.json, line 2: not JSON"),
        ("p.txt", b"a\nb\n\xff\xfe", "p.txt, line 3: not UTF-8"),
    ],
)
def test_files_that_are_no_lists(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        prompts.load(write(tmp_path, name, content), 3)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        prompts.load(str(tmp_path / "nowhere.txt"), 3)


def test_words_the_model_lacks_are_named_with_their_line(tmp_path):
    tokenizer = Tokenizer.from_folder(pathlib.Path(shapes.write_tokenizer(tmp_path)).parent)
    path = write(tmp_path, "p.txt", "a red circle\na beige circle\ntwo red dogs\n")
    found = prompts.load(path, 3)
    prompts.check(found[:1], tokenizer)
    with pytest.raises(ValueError, match="line 2: .*'a beige circle'.*'beige'") as error:
        prompts.check(found, tokenizer)
    assert "line 3" in str(error.value) and "line 1" not in str(error.value)
