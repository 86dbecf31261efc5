"""SRUM's CompBench end to end on prompts of the official form: drawn, written, judged, imported."""

import csv
import json

import numpy as np
import pytest
from drawn_replies import config, drawn, judged, outputs, says
from etils import epath

from srum_jax.core.errors import BadInput
from srum_jax.data import images
from srum_jax.evals.suite import Replies
from srum_jax.evals.suites import srum_compbench

NAMES = ["color", "3d_spatial", "complex", "complex_action", "complex_spatial"]
ROWS = [
    {"Question": f"a {name} thing number {i}", "Category": name, "Question_id": 10 * j + i}
    for j, name in enumerate(NAMES)
    for i in range(2)
]


def written(folder, rows=ROWS):
    path = folder / "val_comp.json"
    path.write_text(json.dumps(rows))
    return path


def test_thinking_is_another_variant(tmp_path):
    suite = srum_compbench.make(config(think_tokens=9), str(written(tmp_path)), "")
    assert suite.about.dialect.endswith("drawn after thinking")
    requests = suite.requests("base")
    suite.official(epath.Path(tmp_path), requests, Replies(images=drawn(requests)))
    assert (tmp_path / "color_50_think" / "samples" / "0.png").is_file()
    assert (tmp_path / "color_50_think" / "output.jsonl").is_file()
    assert not (tmp_path / "color_50_no_think").exists()
    with pytest.raises(BadInput, match="holds no color_think_results.csv or"):
        suite.imported(epath.Path(tmp_path), requests)


@pytest.fixture
def suite(tmp_path):
    return srum_compbench.make(config(), str(written(tmp_path)), "")


def scores(*values):
    """A judge that gives these scores in turn, by the place of the image."""

    def answer(request):
        i = next(i for i, row in enumerate(ROWS) if f"{row['Question_id']}-0" == request.id)
        value = values[i % len(values)]
        return says(value if isinstance(value, str) else json.dumps({"score": value}))

    return answer


def test_the_judge_reads_the_prompt_behind_the_image(suite):
    requests, replies = judged(suite, scores(50))
    asked = suite.judge_requests(requests, replies)
    assert [one.id for one in asked] == [f"{row['Question_id']}-0" for row in ROWS]
    assert 'text prompt: "a color thing number 0" Give a score' in asked[0].text
    assert asked[2].category == "3d spatial" and asked[2].max_tokens == 512
    assert np.array_equal(asked[3].images[0], replies.images[3]["image"])


def test_complex_categories_make_one_of_the_whole(suite):
    requests, replies = judged(suite, scores(*[80] * 4, *[20] * 2, *[30] * 2, *[40] * 2))
    scored = suite.score(suite.records(requests, replies))
    assert scored.as_released["complex composite"] == pytest.approx(30)
    assert scored.as_released["overall"] == pytest.approx((80 + 80 + 30) / 3)
    assert next(iter(scored.strict)) == "overall"
    assert scored.strict["overall"].number == pytest.approx((80 + 80 + 30) / 3)
    assert scored.by_category["complex action"] == {"n": 2, "score": 30}
    assert (scored.n, scored.failed) == (10, 0)


def test_failures_are_minus_one_as_released_and_0_in_strict(suite):
    requests, replies = judged(suite, scores(100, "I cannot tell.", '{"score": 150}', 100))
    scored = suite.score(suite.records(requests, replies))
    assert scored.as_released["color"] == pytest.approx((100 - 1) / 2)
    assert scored.as_released["3d spatial"] == pytest.approx((150 + 100) / 2)
    assert scored.strict["color"].number == 50 and scored.strict["3d spatial"].number == 50
    assert scored.failed == 5
    assert scored.items[1]["reason"] == "no clear score from 0 to 100"


def test_a_refused_request_fails_whatever_its_words(suite):
    requests, replies = judged(suite, lambda r: says('{"score": 90}', "timeout"))
    scored = suite.score(suite.records(requests, replies))
    assert (scored.failed, scored.strict["overall"].number) == (10, 0)
    assert scored.as_released["overall"] == -1


def test_the_official_folder_is_the_one_that_its_judge_reads(suite, tmp_path):
    requests = suite.requests("base")
    replies = Replies(images=drawn(requests))
    out = epath.Path(tmp_path) / "official"
    out.mkdir()
    suite.official(out, requests, replies)
    for place, row in enumerate(ROWS):
        no_think, think = (out / f"{row['Category']}_50_{v}" for v in ("no_think", "think"))
        picture = no_think / "samples" / f"{row['Question_id']}.png"
        assert np.array_equal(images.load(picture), replies.images[place]["image"])
        lines = [json.loads(x) for x in (think / "output.jsonl").read_text().splitlines()]
        found = {one["image_file"]: one["original_prompt"] for one in lines}
        assert found[picture.name] == row["Question"]


def results(folder, replies):
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        path = folder / f"{name}_no_think_results.csv"
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file)
            head = ["question_id", "prompt", "category", "image_path", "question_text", "score"]
            writer.writerow([*head, "full_evaluation_text"])
            for row in ROWS:
                if row["Category"] == name and row["Question_id"] in replies:
                    said = replies[row["Question_id"]]
                    writer.writerow([row["Question_id"], "p", name, "x", "a\nb", 1, said])
    return folder


def test_the_official_judges_replies_are_read_back(suite, tmp_path):
    said = {row["Question_id"]: '{"score": 60,\n "explanation": "fine"}' for row in ROWS[1:]}
    records = suite.imported(results(tmp_path / "eval", said), suite.requests("base"))
    scored = suite.score(records)
    assert (scored.n, scored.failed) == (10, 1)
    assert scored.as_released["overall"] == pytest.approx(60)  # an absent image is left out
    assert scored.strict["color"].number == 30
    assert scored.items[0]["reason"] == "missing" and scored.items[1]["reason"] == "fine"


def test_results_of_other_images_are_refused(suite, tmp_path):
    path = results(tmp_path / "eval", {0: "x"}) / "color_no_think_results.csv"
    path.write_text("question_id,full_evaluation_text\n77,x\n")
    with pytest.raises(BadInput, match="line 2: question_id '77' is none of the images"):
        suite.imported(path, suite.requests("base"))
    with pytest.raises(BadInput, match="holds no color_no_think_results.csv or"):
        suite.imported(tmp_path, suite.requests("base"))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"Category": "sound"}, "item 2: 'Category' 'sound' must be one of color"),
        ({"Question": 5}, "item 2: 'Question' is 5"),
        ({"Question_id": 0}, "item 2: Question_id 0 stands at .*item 1 too"),
        ({"Question_id": "1"}, "item 2: 'Question_id' is '1'"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, message):
    rows = [dict(row) for row in ROWS]
    rows[1] |= change
    with pytest.raises(BadInput, match=message):
        srum_compbench.make(config(), str(written(tmp_path, rows)), "")


def test_the_section_has_pairs_and_intervals(suite):
    found = suite.findings(
        {"base": outputs(suite, scores(40)), "trained": outputs(suite, scores(70))}
    )
    assert found.section["paired"]["diff"] == pytest.approx(30)
    assert found.section["metric"] == "overall" and found.section["best"] == 100
    assert found.examples["examples-srum_compbench"][0]["base_image"].shape == (8, 8, 3)
