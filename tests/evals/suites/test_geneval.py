"""GenEval end to end on lines of the official form: drawn, written, judged and imported."""

import json

import numpy as np
import pytest
from drawn_replies import config, drawn, judged, outputs, says
from etils import epath

from srum_jax import use
from srum_jax.core.errors import BadInput
from srum_jax.data import images
from srum_jax.evals import benchmark
from srum_jax.evals.scorers import geneval as rules
from srum_jax.evals.suite import NO_LOGPROBS, ModelOutputs, Replies
from srum_jax.evals.suites import geneval

LINES = [
    {
        "tag": "single_object",
        "include": [{"class": "dog", "count": 1}],
        "prompt": "a photo of a dog",
    },
    {
        "tag": "counting",
        "include": [{"class": "wine glass", "count": 2}],
        "exclude": [{"class": "wine glass", "count": 3}],
        "prompt": "a photo of two wine glasses",
    },
    {
        "tag": "position",
        "include": [
            {"class": "elephant", "count": 1},
            {"class": "dog", "count": 1, "position": ["left of", 0]},
        ],
        "prompt": "a photo of a dog left of an elephant",
    },
    {
        "tag": "color_attr",
        "include": [
            {"class": "orange", "count": 1, "color": "blue"},
            {"class": "car", "count": 1, "color": "red"},
        ],
        "prompt": "a photo of a blue orange and a red car",
    },
]


def written(folder, lines=LINES, name="evaluation_metadata.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def suite(tmp_path):
    return geneval.make(config(), str(written(tmp_path)), "")


def yes(request):
    return says("Yes", Yes=0.9, No=0.1)


def test_the_data_say_what_they_are(suite, tmp_path):
    assert (suite.data.n, suite.data.total, suite.data.variant) == (4, 4, "original prompts")
    folder = geneval.make(config(limit=2), str(tmp_path), "")
    assert folder.data.sha256 == suite.data.sha256
    assert (folder.data.n, len(folder.requests("base").images)) == (2, 8)
    assert len({line.metadata["tag"] for line in folder.lines}) == 2


def test_rewritten_prompts_are_named_by_their_words():
    long = "a photo of a dog that sits on a wide green meadow in the warm light of a late summer"
    assert geneval.variant(["a photo of a dog", "a photo of two cats"]) == "original"
    assert geneval.variant([long, long]) == "rewritten"
    assert geneval.variant(["a red circle"]) == "other"


@pytest.mark.parametrize(
    "line,asked",
    list(
        zip(
            LINES,
            [
                ["Is there a dog in the image?"],
                ["Does the image show exactly two wine glasses?"],
                [
                    "Is there an elephant in the image?",
                    "Is there a dog in the image?",
                    "Is the dog left of the elephant in the image?",
                ],
                ["Is there a blue orange in the image?", "Is there a red car in the image?"],
            ],
            strict=True,
        )
    ),
)
def test_a_question_a_condition(line, asked):
    assert geneval.questions(line) == asked


def test_what_is_left_of_exclude_is_asked_too():
    line = {
        "include": [{"class": "cat", "count": 2}],
        "exclude": [{"class": "bus", "count": 1}],
    }
    assert geneval.questions(line) == [
        "Does the image show at least two cats?",
        "Does the image show no buses?",
    ]


def test_the_official_folder_is_the_one_that_is_scanned(suite, tmp_path):
    requests = suite.requests("base")
    replies = Replies(images=drawn(requests))
    out = epath.Path(tmp_path) / "official"
    out.mkdir()
    suite.official(out, requests, replies)
    names = sorted(str(p.relative_to(out)) for p in out.glob("*/*/*"))
    assert names == [f"{i:05d}/samples/{k:04d}.png" for i in range(4) for k in range(4)]
    assert rules.scanned(names) == names
    assert json.loads((out / "00001/metadata.jsonl").read_text()) == LINES[1]
    assert np.array_equal(images.load(out / "00002/samples/0001.png"), replies.images[9]["image"])


def test_a_judge_makes_a_proxy_under_another_name(suite):
    def answer(request):
        return says("No", No=0.8, Yes=0.1) if "elephant in" in request.text else yes(request)

    requests, replies = judged(suite, answer)
    scored = suite.score(suite.records(requests, replies))
    assert scored.as_released == {}
    assert list(scored.strict)[0] == "proxy_overall"
    assert scored.strict["proxy_overall"].number == pytest.approx(0.75)
    assert (scored.n, scored.failed, len(scored.units)) == (16, 0, 4)
    assert scored.by_category["position"] == {"n": 4, "proxy_correct_images": 0}
    wrong = [item for item in scored.items if not item["right"]]
    assert {item["id"] for item in wrong} == {f"2-{k}" for k in range(4)}
    assert wrong[0]["reason"] == (
        "Is there an elephant in the image? no; Is the dog left of the elephant in the image? no"
    )


def test_a_refusal_and_silence_make_an_image_wrong(suite):
    def answer(request):
        if request.id == "0-0:0":
            return says("", "refused")
        return says("Well, maybe.") if request.id == "1-0:0" else says("Yes.")

    requests, replies = judged(suite, answer)
    scored = suite.score(suite.records(requests, replies))
    assert scored.failed == 2
    assert scored.strict["proxy_correct_images"].number == pytest.approx(14 / 16)
    assert scored.strict["proxy_correct_prompts"].number == 1


def results(lines=LINES, wrong=(), absent=()):
    for i, line in enumerate(lines):
        for k in range(4):
            if (i, k) not in absent:
                yield {
                    "filename": f"outputs/{i:05d}/samples/{k:04d}.png",
                    "tag": line["tag"],
                    "prompt": line["prompt"],
                    "correct": (i, k) not in wrong,
                    "reason": "expected dog>=1, found 0" if (i, k) in wrong else "",
                    "metadata": json.dumps(line),
                    "details": "{}",
                }


def test_the_detectors_results_are_read_back(suite, tmp_path):
    path = epath.Path(tmp_path) / "results.jsonl"
    rows = list(results(wrong={(0, 0), (0, 1), (2, 3)}, absent={(1, 0)}))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = suite.imported(path, suite.requests("base"))
    scored = suite.score(records)
    assert scored.as_released["overall"] == pytest.approx((0.5 + 1 + 0.75 + 1) / 4)
    assert scored.as_released["correct_images"] == pytest.approx(12 / 15)
    assert scored.strict["overall"].number == pytest.approx((0.5 + 0.75 + 0.75 + 1) / 4)
    assert (scored.n, scored.failed) == (16, 1)
    items = {item["id"]: item for item in scored.items}
    assert items["0-0"]["reason"] == "expected dog>=1, found 0"
    assert items["1-0"]["reason"] == "missing"
    one = ModelOutputs(suite.requests("base"), Replies(), records)
    told = benchmark.section(
        suite.score, benchmark.Told.of(suite), {"base": one.verdicts, "trained": one.verdicts}
    )
    assert told["metric"] == "overall" and told["paired"]["diff"] == 0
    low, high = told["models"]["base"]["ci95"]["overall"]
    assert low <= 0.75 <= high


def test_the_command_compares_the_results_of_two_models(suite, tmp_path, capsys):
    for name, wrong in (("a", {(0, 0), (0, 1)}), ("b", {(i, k) for i in (0, 1) for k in range(4)})):
        rows = (json.dumps(row) + "\n" for row in results(wrong=wrong))
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    where = ("--suite", "geneval", "--data", tmp_path, "-o", tmp_path / "out")
    given = ("--import", tmp_path / "a.jsonl", "--import_against", tmp_path / "b.jsonl")
    code = use.main(["use", "evaluate", *map(str, (*where, *given))])
    assert code == 0, capsys.readouterr().err
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["data"]["variant"] == "original prompts"
    found = {name: one["as_released"]["overall"] for name, one in scores["models"].items()}
    assert found == {"model": 0.875, "against": 0.5}
    assert scores["paired"]["diff"] == pytest.approx(0.375)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"filename": "outputs/00009/samples/0000.png"}, "line 1: .* none of the images"),
        ({"filename": "grid.png"}, "line 1: .* none of the images"),
        ({"tag": "colors"}, "line 1: its prompt is not the one"),
        ({"metadata": "{"}, "line 1: 'metadata' holds no JSON"),
        ({"correct": "yes"}, "line 1: 'correct' is 'yes'"),
        ({"filename": "x/00000/samples/0001.png"}, "line 2: the image .* stands at .*line 1 too"),
    ],
)
def test_results_that_do_not_match_are_refused(suite, tmp_path, change, message):
    rows = list(results())
    rows[0] |= change
    path = epath.Path(tmp_path) / "results.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInput, match=message):
        suite.imported(path, suite.requests("base"))


@pytest.mark.parametrize(
    "line,message",
    [
        ({"tag": "colors", "prompt": "x"}, "line 2: 'include' is missing"),
        ({"include": [], "prompt": "x", "tag": "t"}, "line 2: 'include' holds no clause"),
        ({**LINES[0], "include": [{"class": "dog"}]}, "line 2, include.*'count' is missing"),
        ({**LINES[0], "include": [{"class": "dog", "count": 0}]}, "at least 1"),
        (
            {**LINES[0], "include": [{"class": "a", "count": 1, "position": ["near", 0]}]},
            "'position' is .*near.*one of left of",
        ),
        (
            {**LINES[0], "include": [{"class": "a", "count": 1, "position": ["above", 0]}]},
            "a clause before this one",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(BadInput, match=message):
        geneval.make(config(), str(written(tmp_path, [LINES[0], line])), "")


def test_findings_show_pictures_of_what_is_wrong(suite):
    def base(request):
        return says("No") if request.id.startswith("2-") else says("Yes")

    found = suite.findings({"base": outputs(suite, base), "trained": outputs(suite, yes)})
    assert found.section["paired"]["diff"] == pytest.approx(0.25)
    first = found.examples["examples-geneval"][0]
    assert first["id"] == "2-0" and first["trained_correct"] and not first["base_correct"]
    assert first["base_image"].shape == (8, 8, 3)


def test_words_alone_are_enough_for_the_proxy(suite):
    requests, replies = judged(suite, lambda request: says("Yes.", NO_LOGPROBS))
    scored = suite.score(suite.records(requests, replies))
    assert (scored.failed, scored.strict["proxy_overall"].number) == (0, 1)
