"""MME on small folders of the official forms."""

import pytest
from drawn_replies import config
from official_data import official, picture, scored

from srum_jax.core.errors import BadInput
from srum_jax.evals.scorers import mme as scorer
from srum_jax.evals.suites import mme

SUFFIX = "\nAnswer the question using a single word or phrase."
LINES = "Is it red? Please answer yes or no.\t{}\nIs it blue? Please answer yes or no.\t{}\n"
TEXT = LINES.format("Yes", "No")


def write(folder, category="count", number=2, nested=False):
    """A category as the release has it: pictures and texts side by side, or in two folders."""
    base = folder / category
    texts = base / "questions_answers_YN" if nested else base
    for i in range(number):
        picture((base / "images" if nested else base) / f"{i}.{'png' if nested else 'jpg'}", i)
        texts.mkdir(exist_ok=True)
        (texts / f"{i}.txt").write_text(TEXT)


def write_list(folder, category="count", lines=()):
    for i in range(2):
        picture(folder / category / f"{i}.jpg", i)
    whole = [f"{i}.jpg\t{line}" for i in range(2) for line in TEXT.splitlines()]
    (folder / f"{category}.txt").write_text("\n".join(lines or whole) + "\n")


def made(folder, **values):
    return mme.make(config(**values), str(folder), "")


def test_each_picture_has_two_questions_with_the_last_sentence_replaced(tmp_path):
    write(tmp_path)
    write(tmp_path, "artwork", nested=True)
    suite = made(tmp_path)
    texts = suite.requests("base").texts
    assert [r.id for r in texts[:2]] == ["count/0.jpg#1", "count/0.jpg#2"]
    assert texts[0].instruction == "Is it red?" + SUFFIX
    assert texts[0].truth == {"image": "count/0.jpg", "label": "yes"}
    assert texts[4].id == "artwork/0.png#1" and texts[4].images[0].shape == (8, 8, 3)
    assert (suite.data.n, suite.data.total) == (8, 8)


def test_scores_of_some_categories_have_no_sums(tmp_path):
    write(tmp_path)
    found = scored(made(tmp_path), "Yes", "no.", "Yes", "hm")
    assert found.as_released == {} and list(found.strict) == ["score"]
    assert found.strict["score"].number == 75 + 50
    assert found.by_category == {"count": {"n": 4, "score": 125}}
    assert (found.n, found.failed, found.units) == (4, 1, ("count/0.jpg", "count/1.jpg"))
    assert [x["right"] for x in found.items] == [True, True, True, False]
    assert found.items[3]["reason"] == "neither yes nor no; no is right"


def test_sums_of_all_categories_in_each_dialect(tmp_path):
    for category in scorer.CATEGORIES:
        write(tmp_path, category, number=1)
    found = scored(made(tmp_path), *["True", "No"] * 14)
    assert found.as_released == {
        **{"perception": 500, "cognition": 200},  # half of the questions, of no picture both
        **{"perception[bagel]": 2000, "cognition[bagel]": 800},
        **{"perception[vlmevalkit]": 500, "cognition[vlmevalkit]": 200},
    }
    assert {name: one.number for name, one in found.strict.items()} == {
        **{"score": 50, "perception": 500, "cognition": 200}
    }
    assert len({len(one.columns) for one in found.strict.values()}) == 1


def test_a_sample_takes_whole_pictures(tmp_path):
    for category in ("count", "color"):
        write(tmp_path, category)
    suite = made(tmp_path, limit=3)
    assert (suite.data.n, suite.data.total) == (4, 8)
    pictures = [r.truth["image"] for r in suite.requests("base").texts]
    assert pictures[::2] == pictures[1::2] and len({p.split("/")[0] for p in pictures}) == 2


def test_lists_of_the_evaluation_tool_are_read_too(tmp_path):
    write_list(tmp_path)
    suite = made(tmp_path)
    assert [q.id for q in suite.questions][:3] == [
        "count/0.jpg#1",
        "count/0.jpg#2",
        "count/1.jpg#1",
    ]


def test_the_official_lists(tmp_path):
    write(tmp_path)
    folder = official(made(tmp_path), tmp_path / "out", "Yes", "no\n\r!", "是", "a\tb")
    question = "Is it {}? Please answer yes or no."
    red, blue = question.format("red"), question.format("blue")
    assert (folder / "count.txt").read_text() == (
        f"0.jpg\t{red}\tYes\tyes\n0.jpg\t{blue}\tNo\tno !\n"
        f"1.jpg\t{red}\tYes\tyes\n1.jpg\t{blue}\tNo\ta\tb\n"
    )


def test_no_records_have_no_numbers():
    found = mme.score([])
    assert (found.n, found.as_released, found.by_category, found.units) == (0, {}, {}, ())


@pytest.mark.parametrize(
    "text, message",
    [
        (TEXT.splitlines()[0], r"0\.txt: 1 questions; every picture has two"),
        ("", r"0\.txt: 0 questions"),
        (TEXT.replace("\tNo", " No"), r"0\.txt, line 2: .* is not question TAB answer"),
        ("\n" + LINES.format("Yes", "Maybe"), r"0\.txt, line 3: 'answer' is 'Maybe'; Yes or No"),
        (b"\xff\xfe", r"0\.txt: not UTF-8 from byte 0"),
    ],
)
def test_bad_texts_are_named_with_their_line(tmp_path, text, message):
    write(tmp_path)
    path = tmp_path / "count" / "0.txt"
    path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
    with pytest.raises(BadInput, match=message):
        made(tmp_path)


def test_a_missing_picture_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "count" / "1.jpg").unlink()
    with pytest.raises(BadInput, match=r"1\.txt: no picture 1 with \.jpg"):
        made(tmp_path)


@pytest.mark.parametrize(
    "lines, message",
    [
        (("0.jpg\ta?\tYes", "1.jpg\tb?\tNo"), "line 2: not the picture of the line before"),
        (("7.jpg\ta?\tYes", "7.jpg\tb?\tNo"), "line 1: the picture '7.jpg' is not there"),
        (("0.jpg\ta?\tYes", "0.jpg\tb?\tNo") * 2, "its two questions stand in the data twice"),
    ],
)
def test_bad_lists_are_named_with_their_line(tmp_path, lines, message):
    write_list(tmp_path, lines=lines)
    with pytest.raises(BadInput, match=message):
        made(tmp_path)


def test_a_folder_without_categories_is_named(tmp_path):
    with pytest.raises(BadInput, match="holds none of MME's categories"):
        made(tmp_path)
