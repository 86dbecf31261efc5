"""Video-MME's lists in all their forms, and films."""

import csv
import json

import choice_suites as made
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from srum_jax.core.errors import BadInput
from srum_jax.evals.suites import videomme

FILMS = {
    "xA1": ("001", "short", "Knowledge", "Law"),
    "xB2": ("002", "long", "Multilingual", "Multilingual"),
}
OPTIONS = ["A. Red.", "B. Blue.", "C. Green.", "D. Black."]


def rows():
    """Two questions a film."""
    return [
        {
            "video_id": number,
            "duration": duration,
            "domain": domain,
            "sub_category": sub,
            "url": "",
            "videoID": film,
            "question_id": f"{number}-{k}",
            "task_type": ("OCR Problems", "Object Reasoning")[k - 1],
            "question": f"Which {number}?",
            "options": OPTIONS,
            "answer": "B",
        }
        for film, (number, duration, domain, sub) in FILMS.items()
        for k in (1, 2)
    ]


def films(folder, names=FILMS):
    (folder / "data").mkdir(exist_ok=True)
    for i, name in enumerate(names):
        first, *others = [Image.fromarray(made.picture(20 * j + i)) for j in range(10)]
        first.save(
            folder / "data" / f"{name}.gif", save_all=True, append_images=others, duration=100
        )


def as_parquet(folder, some):
    (folder / "videomme").mkdir()
    pa.parquet.write_table(
        pa.Table.from_pylist(some), folder / "videomme" / "test-00000-of-00001.parquet"
    )


def as_lines(folder, some):
    (folder / "test.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))


def as_films(folder, some):
    """The form that the authors' scorer reads: films with questions, here named by videoID too."""
    found = {}
    for one in some:
        head = {k: one[k] for k in ("video_id", "duration", "domain", "sub_category", "videoID")}
        asked = {k: v for k, v in one.items() if k not in head}
        found.setdefault(one["videoID"], head | {"questions": []})["questions"].append(asked)
    (folder / "list.json").write_text(json.dumps(list(found.values())))


def as_tsv(folder, some):
    with (folder / "Video-MME.tsv").open("w", newline="") as file:
        kept = ("duration", "domain", "sub_category", "task_type", "question", "answer")
        names = ["index", "video", "candidates", *kept]
        writer = csv.DictWriter(file, names, delimiter="\t")
        writer.writeheader()
        for one in some:
            named = {"index": one["question_id"], "video": one["videoID"]}
            writer.writerow(named | {"candidates": str(one["options"])} | {k: one[k] for k in kept})


def suite(folder, write=as_lines, some=None, **how):
    write(folder, rows() if some is None else some)
    films(folder)
    return videomme.make(made.config(**how), str(folder), "")


@pytest.mark.parametrize("write", [as_parquet, as_lines, as_films, as_tsv])
def test_every_form_of_the_list_asks_the_same(tmp_path, write):
    asked = suite(tmp_path, write).requests("model").texts
    assert [r.id for r in asked] == ["001-1", "001-2", "002-1", "002-2"]
    assert asked[0].instruction.endswith(
        "option.\nWhich 001?\nA. Red.\nB. Blue.\nC. Green.\nD. Black.\n\nAnswer with the option's "
        "letter from the given choices directly."
    )
    assert asked[0].max_tokens == 16 and len(asked[0].images) == 8
    assert asked[0].truth["options"]["B"] == "Blue." and asked[0].truth["video"] == "xA1"


def test_the_number_of_frames_can_be_chosen(tmp_path):
    asked = suite(tmp_path, frames=4)
    assert len(asked.requests("model").texts[0].images) == 4
    assert asked.settings == {"frames": 4, "subtitles": False}


def test_scores_by_group_with_films_as_units(tmp_path):
    asked = suite(tmp_path)
    words = {"001-1": "B", "001-2": "Blue", "002-1": "Dancing, maybe", "002-2": "C"}
    scored = made.scored(asked, words)
    assert scored.strict["accuracy"].number == 50
    assert scored.as_released == {"accuracy": 50}  # lmms-eval takes "Blue" for a B, and
    assert scored.units == ("xA1", "xB2") and scored.failed == 1
    assert scored.by_category["short"]["accuracy"] == 100
    assert scored.by_category["Multilingual"] == {"n": 2, "accuracy": 0, "as_released": 0}
    assert scored.by_category["OCR Problems"]["n"] == 2
    section = made.check_folder(asked, words, tmp_path)
    assert section["settings"] == {"frames": 8, "subtitles": False}
    assert section["paired"]["n"] == 2


def test_no_replies_are_worth_nothing():
    scored = videomme.score([])
    assert scored.n == 0 and scored.units == ()


def test_the_official_file_is_the_one_the_authors_read(tmp_path):
    asked = suite(tmp_path)
    folder = made.official(asked, "The answer is B.", tmp_path / "official")
    first, second = json.loads((folder / "videomme.json").read_text())
    assert (first["video_id"], first["duration"], second["domain"]) == (
        "001",
        "short",
        "Multilingual",
    )
    assert first["questions"][0] == {
        "question_id": "001-1",
        "task_type": "OCR Problems",
        "question": "Which 001?",
        "options": OPTIONS,
        "answer": "B",
        "response": "The answer is B.",
    }
    (tmp_path / "again").mkdir()
    (folder / "videomme.json").rename(tmp_path / "again" / "list.json")
    films(tmp_path / "again", ["001", "002"])  # the authors' own list names films by their numbers
    again = videomme.make(made.config(), str(tmp_path / "again"), "")
    assert [r.instruction for r in again.requests("m").texts] == [
        r.instruction for r in asked.requests("m").texts
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"duration": "brief"}, "'duration' is 'brief'; it is one of"),
        ({"answer": "E"}, "'answer' is 'E'"),
        ({"options": ["Red", "Blue"]}, 'does not begin with "A."'),
        ({"options": OPTIONS[:1]}, "1 options"),
        ({"options": [*OPTIONS, "E. Pink."]}, "5 options"),
        ({"videoID": "zz"}, "the clip 'zz' is not there"),
        ({"question_id": "001-1"}, "question_id '001-1' stands at"),
        ({"question": ["x"]}, "it must be a text"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, message):
    some = rows()
    some[1] |= change
    with pytest.raises(BadInput) as e:
        suite(tmp_path, as_lines, some)
    assert message in str(e.value) and "test.jsonl, line 2" in str(e.value)


def test_several_lists_and_none_are_named(tmp_path):
    with pytest.raises(BadInput, match="holds no list of questions"):
        videomme.make(made.config(), str(tmp_path), "")
    as_lines(tmp_path, rows())
    (tmp_path / "other.jsonl").write_text("{}\n")
    with pytest.raises(BadInput, match="holds 2 lists"):
        videomme.make(made.config(), str(tmp_path), "")
