"""GenEval2 end to end on lines of the official form."""

import json

import pytest
from drawn_replies import config, drawn, judged, says
from etils import epath

from srum_jax.core.errors import BadInput
from srum_jax.evals.suite import JudgeReply, Replies
from srum_jax.evals.suites import geneval2

LINES = [
    {
        "prompt": "two red dogs",
        "atom_count": 3,
        "vqa_list": [
            ["Are there any dogs in the image?", "Yes"],
            ["Are the dogs red?", "Yes"],
            ["How many dogs are in the image?", "two"],
        ],
        "skills": ["object", "attribute", "count"],
    },
    {
        "prompt": "a cat",
        "atom_count": 1,
        "vqa_list": [["Are there any cats in the image?", "Yes"]],
        "skills": ["object"],
    },
]


def made(folder, lines=LINES, **values):
    path = folder / "geneval2_data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return geneval2.make(config(**values), str(path), "")


def answer(request):
    if "How many" in request.text:
        return JudgeReply("2", p={"2": 0.5, " 2": 0.25, "two": 0.05})
    return says("Yes", Yes=0.8, yes=0.1)


def test_each_question_is_asked_for_the_accepted_first_tokens(tmp_path):
    suite = made(tmp_path)
    requests = suite.requests("base")
    asked = suite.judge_requests(requests, Replies(images=drawn(requests)))
    ids = ["0-0:0", "0-0:1", "0-0:2", "0-0:3", "1-0:0", "1-0:1"]
    assert [one.id for one in asked] == ids
    assert asked[2].text == "How many dogs are in the image? Answer in one word."
    assert asked[2].first_token == ("two", "Two", " two", " Two", "2", " 2")
    assert asked[0].images[0].shape == (8, 8, 3)
    whole = 'Does this image show "two red dogs"? Answer the question with Yes or No.'
    assert asked[3].text == whole and asked[3].first_token == ("Yes", "yes", " yes", " Yes")


def test_scores(tmp_path):
    suite = made(tmp_path)
    scored = suite.score(suite.records(*judged(suite, answer)))
    soft = [0.9, 0.9, 0.8]
    gm = (soft[0] * soft[1] * soft[2]) ** (1 / 3)
    assert scored.as_released["soft_tifa_am"] == pytest.approx(100 * (sum(soft) / 3 + 0.9) / 2)
    assert scored.as_released["soft_tifa_gm"] == pytest.approx(100 * (gm + 0.9) / 2)
    assert scored.as_released["tifa"] == pytest.approx(100)
    strict = [0.9, 0.9, 0.55]  # without the space before a digit
    gm = (strict[0] * strict[1] * strict[2]) ** (1 / 3)
    assert list(scored.strict)[0] == "soft_tifa_gm"
    assert scored.strict["soft_tifa_gm"].number == pytest.approx(100 * (gm + 0.9) / 2)
    assert scored.by_category["object"] == {"n": 2, "soft_tifa_am": pytest.approx(90)}
    assert scored.by_category["1 atoms"]["n"] == 1
    assert scored.items[0]["reason"] == "How many dogs are in the image? two: 0.55"
    assert scored.units == ("0", "1")


def test_vqascore_is_asked_beside_them(tmp_path):
    suite = made(tmp_path)

    def whole(request):
        if not request.text.startswith("Does this image show"):
            return answer(request)
        return says("Yes", Yes=0.4) if "cat" in request.text else says("No", Yes=0.15, yes=0.05)

    scored = suite.score(suite.records(*judged(suite, whole)))
    assert scored.as_released["vqascore"] == pytest.approx(100 * (0.4 + 0.2) / 2)
    assert scored.strict["vqascore"].number == pytest.approx(30)
    assert scored.as_released["tifa"] == pytest.approx(100)  # it is no question of theirs
    assert "vqascore" not in scored.by_category and scored.n == 6

    def silent(request):
        found = answer(request)
        return says("Yes") if request.text.startswith("Does this") else found

    records = suite.records(*judged(suite, silent))
    scored = suite.score(records)
    assert "vqascore" not in scored.as_released and "tifa" in scored.as_released
    assert scored.strict["vqascore"].number == 0 and scored.failed == 2
    older = suite.score([r for r in records if r.truth["skill"] != "vqascore"])
    assert "vqascore" not in older.strict and older.failed == 0  # folders of before it was asked


def test_a_question_without_probabilities_is_no_score_of_the_official_kind(tmp_path):
    suite = made(tmp_path)

    def silent(request):
        return says("Yes") if request.id == "1-0:0" else answer(request)

    scored = suite.score(suite.records(*judged(suite, silent)))
    assert scored.failed == 1 and list(scored.as_released) == ["vqascore"]
    assert scored.strict["soft_tifa_am"].number == pytest.approx(100 * (2.35 / 3 + 0) / 2)
    assert scored.strict["tifa"].number == pytest.approx(50)


def test_a_token_of_two_spellings_counts_once_by_the_strict_rule(tmp_path):
    suite = made(tmp_path, LINES[1:])
    twice = {"Yes": 0.0, "yes": 0.7, " yes": 0.7}
    scored = suite.score(suite.records(*judged(suite, lambda request: JudgeReply("yes", p=twice))))
    assert scored.as_released == {}  # 140 of 100
    assert scored.strict["soft_tifa_am"].number == pytest.approx(70)


def test_the_official_input_names_an_image_a_prompt(tmp_path):
    suite = made(tmp_path, limit=1)
    out = epath.Path(tmp_path) / "official"
    out.mkdir()
    requests = suite.requests("base")
    suite.official(out, requests, Replies(images=drawn(requests)))
    paths = json.loads((out / "image_paths.json").read_text())
    assert list(paths) == [suite.items[0].text]
    assert all(epath.Path(path).is_file() for path in paths.values())


@pytest.mark.parametrize(
    "change,message",
    [
        ({"skills": ["object"]}, "line 2: 'vqa_list' has 2 questions and 'skills' 1"),
        ({"vqa_list": [["q"], ["q", "Yes"]]}, "line 2: .* pairs of a question and its answer"),
        ({"prompt": "two red dogs"}, "line 2: the prompt 'two red dogs' stands at .*line 1 too"),
        ({"atom_count": "3"}, "line 2: 'atom_count' is '3'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, change, message):
    line = {**LINES[1], "vqa_list": [["a", "Yes"], ["b", "one"]], "skills": ["object", "count"]}
    with pytest.raises(BadInput, match=message):
        made(tmp_path, [LINES[0], line | change])
