"""T2I-ReasonBench end to end on files of the official form."""

import csv
import json

import numpy as np
import pytest
from drawn_replies import config, drawn, judged, outputs, says
from etils import epath

from srum_jax.core.errors import BadInput
from srum_jax.data import images
from srum_jax.evals.scorers.reasonbench import PARTS
from srum_jax.evals.suite import Replies
from srum_jax.evals.suites import t2i_reasonbench as suites


def criteria(count):
    return {f"{letter}{i}": f"{letter} {i}?" for i in range(1, count + 1) for letter in "qc"}


def rows(dimension, count=2):
    prompts = [{"id": i, "prompt": f"{dimension} {i}", "tag": "x"} for i in range(1, count + 1)]
    parts = {f"{part}_evaluation": criteria(2) for part in PARTS[dimension]}
    parts["quality_evaluation"] = criteria(3)
    return prompts, [{"id": i, "prompt": "another", **parts} for i in range(1, count + 1)]


def written(folder, dimensions=tuple(suites.FILES), change=lambda prompts, asked: None):
    for dimension in dimensions:
        prompts, asked = rows(dimension)
        change(prompts, asked)
        for place, name, some in zip(
            (suites.PROMPTS, suites.QUESTIONS),
            suites.FILES[dimension],
            (prompts, asked),
            strict=True,
        ):
            (folder / place).mkdir(exist_ok=True)
            (folder / place / f"{name}.json").write_text(json.dumps(some))
    return folder


@pytest.fixture
def suite(tmp_path):
    return suites.make(config(), str(written(tmp_path)), "")


def marks(*values):
    return says("A picture.\n" + json.dumps({"reason": "so", "score": list(values)}))


def good(request):
    return marks(*[1] * request.truth["questions"])


def test_each_part_is_a_question(suite):
    requests, replies = judged(suite, good)
    asked = suite.judge_requests(requests, replies)
    assert len(requests.images) == 8 and len(asked) == 4 * 2 + 4 * 3
    assert [one.id for one in asked[:2]] == ["1-0:reason", "1-0:quality"]
    assert "'q2': 'q 2?'" in asked[0].text and asked[0].truth["questions"] == 2
    last = asked[len(asked) - 1]
    assert last.id == "3000002-0:quality" and last.category == "scientific"
    assert np.array_equal(last.images[0], replies.images[7]["image"])
    assert "one question" in suite.about.dialect and "own wording" in suite.about.dialect


def test_the_words_of_the_users_clone_are_used(tmp_path):
    script = tmp_path / suites.SCRIPT.path
    script.parent.mkdir(parents=True)
    script.write_text('q2 = f"""Mark {qs_reason_question_criteria} as {{"score": []}}"""')
    suite = suites.make(config(), str(written(tmp_path, ["idiom"])), "")
    requests, replies = judged(suite, good)
    text = suite.judge_requests(requests, replies)[0].text
    assert text.startswith("Describe this image.\nMark {'q1': 'q 1?'")
    assert text.endswith('as {"score": []}') and "official wording" in suite.about.dialect


def test_accuracy_weights_the_parts_and_dimensions_alike(suite):
    def answer(request):
        count = request.truth["questions"]
        worth = {"reason": 1, "entity": 1, "scientific": 0, "other_details": 0.5, "quality": 1}
        return marks(*[worth[request.truth["part"]]] * count)

    requests, replies = judged(suite, answer)
    scored = suite.score(suite.records(requests, replies))
    want = (100 + 100 + 85 + 15) / 4
    assert scored.as_released["accuracy"] == pytest.approx(want)
    assert scored.strict["accuracy"].number == pytest.approx(want)
    assert scored.as_released["quality"] == scored.strict["quality"].number == 100
    assert scored.as_released["entity accuracy"] == 85
    assert scored.by_category["scientific"] == {
        "n": 2,
        "accuracy": pytest.approx(15),
        "quality": 100,
    }
    assert (scored.n, scored.failed, len(scored.units)) == (20, 0, 8)


def test_a_failed_part_ends_a_dimension_and_counts_0(suite):
    def answer(request):
        if request.id == "1-0:reason":
            return says("I would give full marks.")
        if request.id == "2000001-0:other_details":
            return says("", "refused")
        return marks(1, 1, 1, 1) if request.id == "2-0:quality" else good(request)

    requests, replies = judged(suite, answer)
    scored = suite.score(suite.records(requests, replies))
    assert scored.failed == 3
    assert scored.by_category["idiom"] == {"n": 2, "accuracy": 50, "quality": 50}
    assert scored.by_category["entity"]["accuracy"] == pytest.approx(85)
    assert set(scored.as_released) == {
        f"{name} {what}"
        for name in ("textual_image", "scientific")
        for what in ("accuracy", "quality")
    }
    assert scored.items[0]["reason"].startswith("reason no clear marks; quality [1.0")


def test_the_official_folder_is_numbered_by_dimension(suite, tmp_path):
    requests = suite.requests("base")
    replies = Replies(images=drawn(requests))
    suite.official(epath.Path(tmp_path), requests, replies)
    for place, name in ((0, "idiom_interpretation/0001"), (7, "scientific_reasoning/0002")):
        picture = images.load(tmp_path / f"{name}.png")
        assert np.array_equal(picture, replies.images[place]["image"])


def _other_id(prompts, asked):
    asked[1]["id"] = 7


def _twice(prompts, asked):
    prompts[1]["id"] = 1


def _no_question(prompts, asked):
    asked[0]["quality_evaluation"] = {"c1": "good"}


def _no_part(prompts, asked):
    del asked[1]["reason_evaluation"]


@pytest.mark.parametrize(
    "change,message",
    [
        (_other_id, "the ids do not match: 1 stand in the first alone, such as 2"),
        (_twice, "item 2: id 1 stands at .*item 1 too"),
        (_no_question, "item 1: 'quality_evaluation' must hold questions"),
        (_no_part, "item 2: 'reason_evaluation' is missing"),
    ],
)
def test_bad_files_are_named(tmp_path, change, message):
    with pytest.raises(BadInput, match=message):
        suites.make(config(), str(written(tmp_path, ["idiom"], change)), "")


def test_questions_and_criteria_of_other_forms_are_asked_as_they_are(tmp_path):
    odd = {"sci_q1": "A?", "sci_c1": {"1": "yes", "0": "no"}, "sci_q2": "B?", "scoring": {"1": "a"}}

    def change(prompts, asked):
        asked[0]["quality_evaluation"] = odd

    suite = suites.make(config(), str(written(tmp_path, ["idiom"], change)), "")
    requests, replies = judged(suite, good)
    one = suite.judge_requests(requests, replies)[1]
    assert str(odd) in one.text and one.truth["questions"] == 2


def test_a_folder_without_prompts_says_what_it_wants(tmp_path):
    with pytest.raises(BadInput, match="holds no .*idiom_interpretation.json or"):
        suites.make(config(), str(tmp_path), "")


def test_models_are_compared_by_accuracy(suite):
    half = {"base": outputs(suite, lambda r: marks(*[0.5] * r.truth["questions"]))}
    found = suite.findings(half | {"trained": outputs(suite, good)})
    assert found.section["metric"] == "accuracy"
    assert found.section["paired"]["diff"] == pytest.approx(50)
    assert found.examples["examples-t2i_reasonbench"][0]["base_image"].shape == (8, 8, 3)


HEADS = {  # of the official results, as eval_*.py write them
    "idiom": "id,prompt,answer_1,answer_2,score_acc,answer_3,score_qual,score_a_avg,score_q_avg",
    "entity": "id,prompt,answer_1,answer_2,score_entity,answer_3,score_detail,answer_4,score_qual,"
    "score_e_avg,score_d_avg,score_q_avg",
}


def official_results(folder, dimension, rows, change=lambda lines: None):
    """`<dimension>/mymodel.csv`; rows: {number: a list of marks for each part}."""
    lines = [HEADS[dimension].split(",")]
    for number, parts in rows.items():
        answers = [x for m in parts for x in (f'Because\n{{"score": {m}}}', str(m))]
        means = [sum(m) / len(m) for m in parts]
        lines.append([f"{number:04d}.png", f"{dimension} {number}", "A cat.", *answers, *means])
    change(lines)
    (folder / dimension).mkdir(parents=True, exist_ok=True)
    path = folder / dimension / "mymodel.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(lines)
        total = ["reasoning accuracy score: ", 62.5, "image quality score", 50.0]
        csv.writer(file).writerows([total, total])  # started again: it adds its sums once more
    return path


IDIOM = {1: ([1, 0.5], [0.5, 0, 0.5]), 2: ([0.5, 0.5], [1, 1, 0])}


def test_the_official_results_are_read(suite, tmp_path):
    official_results(tmp_path / "csv", "idiom", IDIOM)
    entity = {1: ([1, 0], [1, 1], [1, 1, 1])}
    official_results(tmp_path / "csv", "entity", entity)
    found = suite.imported(epath.Path(tmp_path / "csv"), suite.requests("model"))
    assert [r.id for r in found[:2]] == ["1-0:reason", "1-0:quality"]
    assert found[0].reply == 'Because\n{"score": [1, 0.5]}' and found[0].truth["part"] == "reason"
    scored = suite.score(found)
    assert scored.as_released["idiom accuracy"] == 62.5  # as the official script prints it
    assert scored.as_released["idiom quality"] == 50.0
    assert scored.as_released["entity accuracy"] == 65  # of the one image that was judged
    assert scored.by_category["entity"]["accuracy"] == pytest.approx(32.5)  # the other counts 0
    assert scored.failed == 3 and "scientific" not in scored.by_category
    assert suite.dialect_imported == "official"


def test_one_file_is_of_the_dimension_its_folder_is_named_after(suite, tmp_path):
    path = official_results(tmp_path, "idiom", IDIOM)
    one = suite.imported(epath.Path(path), suite.requests("model"))
    assert {r.category for r in one} == {"idiom"} and len(one) == 4
    moved = path.rename(tmp_path / "mymodel.csv")
    with pytest.raises(BadInput, match="mymodel.csv: which dimension"):
        suite.imported(epath.Path(moved), suite.requests("model"))


def _set(row, column, value):
    return lambda lines: lines[row].__setitem__(column, value)


@pytest.mark.parametrize(
    "change,message",
    [
        (_set(1, 0, "0009.png"), "line 2: id '0009.png' is none of the images asked for"),
        (_set(2, 0, "0001.png"), "line 5: id '0001.png' stands here twice"),
        (_set(1, 1, "idiom 2"), "line 2: the prompt is not that of idiom 1"),
        (_set(1, 7, "0.9"), "line 2: score_a_avg is '0.9', the marks in answer_2 give another"),
        (_set(1, 7, "high"), "line 2: score_a_avg is 'high'"),
        (_set(0, 3, "reply"), "no column answer_2"),
        (lambda lines: lines[1].pop(), "line 2: 8 fields, the header has 9"),
    ],
)
def test_wrong_results_are_named(suite, tmp_path, change, message):
    official_results(tmp_path, "idiom", IDIOM, change)
    with pytest.raises(BadInput, match=message):
        suite.imported(epath.Path(tmp_path), suite.requests("model"))


def test_results_of_two_models_in_a_folder_are_told_apart(suite, tmp_path):
    path = official_results(tmp_path, "idiom", IDIOM)
    (path.parent / "other.csv").write_text(path.read_text())
    with pytest.raises(BadInput, match="idiom: holds 2 CSV files"):
        suite.imported(epath.Path(tmp_path), suite.requests("model"))
    with pytest.raises(BadInput, match="holds no idiom/<model>.csv or"):
        suite.imported(epath.Path(tmp_path / "idiom"), suite.requests("model"))
