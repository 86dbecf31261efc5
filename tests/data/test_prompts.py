"""Prompt lists: every form of file, ids, repeats, and faults named by line."""

import json
import pathlib
import tracemalloc

import numpy as np
import pytest

from srum_jax.data import prompts, records, tfds_texts
from srum_jax.data.prompt_reader import PromptReader
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.worlds.shapes import examples, tfds_builder
from srum_jax.worlds.shapes.setting import SMALL


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
    kinds = len(SMALL.prompts)
    assert [p.category for p in found[:kinds]] == list(SMALL.prompts)
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


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\v", "\f", "\x85", "\u2028", "\u2029"])
def test_a_prompt_a_line_whatever_ends_it(tmp_path, end):
    path = write(tmp_path, "p.txt", f"a red circle{end}{end}a dog{end}".encode())
    found = prompts.load(path)
    assert texts(found) == ["a red circle", "a dog"]
    assert found[1].where.endswith("p.txt, line 3")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_other_forms_end_their_lines_as_any_system_does(tmp_path, end):
    lines = ['{"prompt": "a\u2028red\x85circle"}', "", '{"prompt": "a dog"}', "{"]
    found = prompts.read(write(tmp_path, "p.jsonl", end.join(lines).encode()), limit=1)
    assert texts(found.prompts) == ["a red circle", "a dog"]
    assert [r.line for r in found.rejects] == [4]
    found = prompts.load(write(tmp_path, "p.json", end.join(["[", '"a",', '"b"', "]"]).encode()))
    assert [p.where[-6:] for p in found] == ["line 2", "line 3"]
    found = prompts.load(write(tmp_path, "p.csv", end.join(["prompt", "a", "b"]).encode()))
    assert texts(found) == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32-le", "latin-1"])
@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv"])
def test_texts_in_another_encoding_are_never_prompts(tmp_path, encoding, name):
    content = "prompt\né a red circle\né two blue squares\n"
    try:
        found = prompts.read(write(tmp_path, name, content.encode(encoding)), limit=9).prompts
    except ValueError as e:
        assert name in str(e)
    else:
        assert texts(found) == ["prompt"]  # of latin-1, which in its first line is UTF-8
    with pytest.raises(ValueError, match="NUL"):
        prompts.load(write(tmp_path, "q.jsonl", '{"prompt": "a \\u0000 dog"}'))


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
    words = pathlib.Path(examples.write_tokenizer(tmp_path)).parent
    reader = PromptReader(tokenizer=Tokenizer.from_folder(words), window=9)
    path = write(tmp_path, "p.txt", "a red circle\na beige circle\ntwo red dogs\n")
    found = prompts.load(path, 3)
    prompts.check(found[:1], reader)
    with pytest.raises(ValueError, match="line 2: .*'a beige circle'.*'beige'") as error:
        prompts.check(found, reader)
    assert "line 3" in str(error.value) and "line 1" not in str(error.value)


def test_what_the_model_cannot_read_is_set_aside_within_the_limit(tmp_path):
    """As other faulty lines are: words that the tokenizer lacks, and texts past the window."""
    words = pathlib.Path(examples.write_tokenizer(tmp_path)).parent
    reader = PromptReader(tokenizer=Tokenizer.from_folder(words), window=9)
    long = "a red circle and a blue square and a green cross"
    path = write(tmp_path, "p.txt", f"a red circle\na redd circle\n{long}\n")
    found = prompts.read(path, limit=2, reader=reader)
    assert texts(found.prompts) == ["a red circle"]
    unknown, too_long = (str(one) for one in found.rejects)
    assert "p.txt, line 2" in unknown and "'redd'" in unknown and "near are red" in unknown
    assert "p.txt, line 3" in too_long and "13 tokens; the context window is 9" in too_long
    with pytest.raises(ValueError, match="(?s)line 2.*line 3"):
        prompts.read(path, limit=1, reader=reader)


# ------------------------------------------------------------------------------------------- CSV


def test_a_table_by_its_header(tmp_path):
    rows = [
        "id,note,prompt,category",
        '7,x,"a red ""circle"", left\nof a dog",colour',
        "",
        ",y,two dogs,",
        "9,z,a cat,animals",
    ]
    path = write(tmp_path, "p.csv", ("\ufeff" + "\r\n".join(rows) + "\r\n").encode())
    found = prompts.load(path)
    assert [(p.id, p.text, p.category) for p in found] == [
        (7, 'a red "circle", left of a dog', "colour"),
        (1, "two dogs", prompts.NO_CATEGORY),
        (9, "a cat", "animals"),
    ]
    # Line 2 goes on over line 3, and line 4 is empty.
    assert [p.where.rsplit(" ", 1)[1] for p in found] == ["2", "5", "6"]
    official = write(tmp_path, "q.csv", "Question,Category,Question_id\na sofa,3d_spatial,5\n")
    assert prompts.load(official)[0] == prompts.Prompt(
        5, "a sofa", "3d_spatial", f"{official}, line 2"
    )


def test_faulty_lines_of_a_table(tmp_path):
    rows = [
        "id,prompt",
        '1,"fine\nand long"',
        "2,a,b",
        "x,a dog",
        '4,"a"b',
        "5,",
        '6,"never closed',
        "7,inside it",
    ]
    path = write(tmp_path, "p.csv", "\n".join(rows))
    found = prompts.read(path, limit=10)
    assert [p.text for p in found.prompts] == ["fine and long"]
    assert [(r.line, r.error.split(" (")[0]) for r in found.rejects] == [
        (4, "3 fields, the header has 2"),
        (5, "the id must be a whole number from 0, got 'x'"),
        (6, "not CSV"),
        (7, 'no text in the field "prompt"'),
        (8, "not CSV"),
    ]
    assert found.rejects[-1].text == '6,"never closed\n7,inside it'
    for header in ("prompt,prompt\na,b\n", "prompt,\na,b\n"):
        with pytest.raises(ValueError, match="line 1: the header must name every field once"):
            prompts.load(write(tmp_path, "q.csv", header))
    with pytest.raises(ValueError, match='no text in the field "prompt"'):
        prompts.load(write(tmp_path, "r.csv", "text\na\n"))


# -------------------------------------------------------------------------- faults and the limit


def test_faulty_lines_are_set_aside_up_to_a_limit(tmp_path):
    content = b'{"prompt": "a"}\n{\n{"prompt": "\xff"}\n{"prompt": "b"}\n{"prompt": "\\ud800"}\n'
    path = write(tmp_path, "p.jsonl", content)
    for limit in (0.6, 3):
        found = prompts.read(path, limit=limit)
        assert texts(found.prompts) == ["a", "b"]
        assert [p.id for p in found.prompts] == [0, 3]  # places in the file
    for limit, said in ((0.59, "0.59"), (2, "2")):
        with pytest.raises(ValueError, match=rf"\(3 of 5, more than the limit of {said} allows\)"):
            prompts.load(path, limit=limit)
    with pytest.raises(ValueError, match="these prompts cannot be used:\n.*line 2: not JSON"):
        prompts.load(path)
    aside = tmp_path / "aside" / "rejects.jsonl"
    records.write_rejects(aside, found.rejects)
    rows = [json.loads(line) for line in aside.read_text().splitlines()]
    assert [set(row) for row in rows] == [{"file", "line", "error", "text"}] * 3
    assert [(row["file"], row["line"]) for row in rows] == [(path, 2), (path, 3), (path, 5)]
    assert [row["error"].split(" (")[0] for row in rows] == [
        "not JSON",
        records.NOT_UTF8,
        'half a character in the field "prompt"',
    ]
    assert rows[0]["text"] == "{"
    records.write_rejects(aside, ())
    assert not aside.exists()


def test_no_line_of_a_file_can_stop_the_reading(tmp_path):
    rows = ["[" * 100_000, "9" * 6000, '{"prompt": "x", "id": ' + "9" * 30 + "}", "null", '"good"']
    found = prompts.read(write(tmp_path, "p.jsonl", "\n".join(rows)), limit=4)
    assert texts(found.prompts) == ["good"]
    assert [r.line for r in found.rejects] == [1, 2, 3, 4]
    assert all(len(r.text) <= records.MAX_TEXT for r in found.rejects)
    with pytest.raises(ValueError, match="p.json: not usable JSON"):
        prompts.load(write(tmp_path, "p.json", "[" * 100_000))
    with pytest.raises(ValueError, match="p.tsv: must be a .txt, .json, .jsonl or .csv file"):
        prompts.load(write(tmp_path, "p.tsv", "a"))


def test_repeats_within_a_list_and_what_leaks_into_another(tmp_path):
    train = [
        {"Question": "a sofa", "Category": "complex_spatial", "Question_id": 1},
        {"Question": "a sofa", "Category": "complex", "Question_id": 2},
        {"Question": "A  Round clock", "Category": "shape", "Question_id": 3},
        {"Question": "a dog", "Category": "color", "Question_id": 4},
        {"Question": "a dog ", "Category": "color", "Question_id": 5},
    ]
    val = [
        {"Question": "a round clock.", "Category": "shape", "Question_id": 1},
        {"Question": "a cat", "Category": "color", "Question_id": 2},
    ]
    a = prompts.read(write(tmp_path, "train.json", train))
    b = prompts.read(write(tmp_path, "val.json", val))
    assert [p.id for p in a.prompts] == [1, 3, 4]
    assert [(p.id, p.category) for p in a.duplicates] == [(2, "complex"), (5, "color")]
    assert a.duplicates[0].where.endswith("train.json, line 7")
    assert b.duplicates == ()
    assert [(x.id, y.id) for x, y in prompts.leaks(a.prompts, b.prompts)] == [(3, 1)]
    assert prompts.leaks(a.prompts, ()) == ()


# ------------------------------------------------------------------------------------------- TFDS


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A small data set where TFDS looks for them: (its name, its builder)."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    builder = tfds_builder.build(folder, train=5, validation=1, test=1)
    tfds.core.add_data_dir(folder)
    return f"tfds:shapes_world/{builder.builder_config.name}", builder


def test_the_texts_of_a_tfds_data_set(built, monkeypatch):
    name, builder = built
    made = [tfds_builder.record("train", 0, i) for i in range(5)]
    order = [r["id"].decode() for r in builder.as_data_source("train")]
    made = sorted(made, key=lambda r: order.index(r["id"]))
    found = prompts.load(f"{name}?split=train&text=caption")
    assert texts(found) == list(dict.fromkeys(r["caption"] for r in made))
    assert found[0].where.endswith("text=caption, line 1") and found[0].id == 0
    versioned = prompts.load(f"{name}:2.0.0?split=train%5B1:3%5D&text=caption")
    assert texts(versioned) == [r["caption"] for r in made[1:3]]
    # Every text of a list, in order, up to a number; the records after it are not read.
    asked = [q["question"] for r in made for q in r["questions"]]
    inside = prompts.read(f"{name}?split=train&text=questions.question&max=9")
    assert texts(inside.prompts) == list(dict.fromkeys(asked[:9]))
    assert len(inside.prompts) + len(inside.duplicates) == 9


def test_only_the_field_asked_for_is_decoded_and_as_far_as_asked(built, monkeypatch):
    import tensorflow_datasets as tfds

    def refuse(*args):
        raise AssertionError("a picture was decoded")

    name, _ = built
    monkeypatch.setattr(tfds.features.Image, "decode_example", refuse)
    monkeypatch.setattr(tfds.features.Image, "decode_example_np", refuse)
    assert len(prompts.load(f"{name}?split=train&text=caption&max=3")) == 3
    with pytest.raises(AssertionError):
        built[1].as_data_source("train")[0]


@pytest.mark.parametrize(
    "query, message",
    [
        ("?split=train", "must have the form tfds:<name>"),
        ("?split=train&text=caption&max=0", "must have the form tfds:<name>"),
        ("?split=train&text=caption&min=1", "must have the form tfds:<name>"),
        ("?split=dev&text=caption", "split 'dev' cannot be read: .*validation"),
        ("?split=train&text=title", "a record has no field 'title'; known: caption, category"),
        ("?split=train&text=questions.title", "field 'questions' has no field 'title'; known: ans"),
        ("?split=train&text=questions", "field 'questions' is no text"),
        ("?split=train&text=category", "field 'category' is no text"),
    ],
)
def test_what_a_tfds_data_set_has_not(built, query, message):
    with pytest.raises(ValueError, match=message):
        prompts.load(built[0] + query)


def test_a_tfds_data_set_that_is_not_here_is_not_fetched(monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("coco_captions/2014", "no_such_set_at_all", "Not A Name"):
        with pytest.raises(FileNotFoundError, match="make the data set once by tfds.builder"):
            prompts.load(f"tfds:{name}?split=train&text=captions.text")


def test_plain_english_is_put_into_the_words_of_a_language(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("A red circle.\na red circle\na red star\nDraw two blue boxes, please\n")
    found = prompts.read(str(path), limit=1, reader=PromptReader("shapes"))
    assert [p.text for p in found.prompts] == ["a red circle", "two blue squares"]
    assert [(r.line, "'star'" in r.error) for r in found.rejects] == [(3, True)]
    assert len(found.duplicates) == 1
    with pytest.raises(ValueError, match="line 3: 'a red star': the word 'star'"):
        prompts.read(str(path), reader=PromptReader("shapes"))
    assert [p.text for p in prompts.load(str(path))][0] == "A red circle."


def test_a_text_that_is_none_is_set_aside():
    rows = [{"t": b"one"}, {"t": b"\xff"}, {"t": [b"two", b""]}, {}]
    found = list(tfds_texts._texts([lambda row=row: row for row in rows], ["t"], None))
    assert [r.line for r in found] == [1, 2, 3, 3, 4]
    loaded = prompts._collect("tfds:x", found, 3, PromptReader())
    assert texts(loaded.prompts) == ["one", "two"]
    assert [r.error.split(" (")[0] for r in loaded.rejects] == [
        records.NOT_UTF8,
        'no text in the field "prompt"',
        "cannot be read",
    ]


def test_lines_are_the_same_wherever_blocks_of_the_file_end(tmp_path, monkeypatch):
    """Against the whole text, split; blanks of Unicode, half letters, a mark at the start too."""
    parts = [b"1", b'"\xe2\x82\xac"', b"\n", b"\r", b"\r\n", b" ", b"\xc2\xa0", b"\xff", b"\0"]
    monkeypatch.setattr(records, "BLOCK", 3)
    monkeypatch.setattr(records, "KEPT_BLOCKS", 2)
    rng = np.random.default_rng(0)
    for case in range(300):
        data = b"".join(parts[i] for i in rng.integers(0, len(parts), case % 20))
        data = (b"\xef\xbb\xbf" if case % 3 else b"") + data
        path = tmp_path / f"{case}.jsonl"
        path.write_bytes(data)
        text = data.decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n")
        want = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        found = records.JsonLines(path)
        assert [(one.line, one.text) for one in found] == want, data
        assert [found[i].text for i in range(len(found))] == [text for _, text in want]


def test_lines_are_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "BLOCK", 2**14)
    monkeypatch.setattr(records, "KEPT_BLOCKS", 2)
    path = tmp_path / "a.jsonl"
    path.write_text(('"' + "a" * 4000 + '"\n') * 1000)
    tracemalloc.start()
    found = records.JsonLines(path)
    assert sum(len(one.value) for one in found) == 4_000_000
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 500_000
