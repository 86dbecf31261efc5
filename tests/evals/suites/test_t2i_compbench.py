"""T2I-CompBench end to end on prompt files of the official form."""

import json

import pytest
from drawn_replies import config, drawn, judged, says
from etils import epath

from srum_jax import use
from srum_jax.core.errors import BadInput
from srum_jax.evals.scorers import noun_phrases
from srum_jax.evals.scorers import t2i_compbench as rules
from srum_jax.evals.suite import Replies
from srum_jax.evals.suites import t2i_compbench

FILES = {
    "color": "a green bench and a blue bowl\na red car\n",
    "spatial": "a dog on the left of a cat\na cup near a vase.",
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(noun_phrases, "SPACY_MODELS", ())
    for name, text in FILES.items():
        (tmp_path / f"{name}_val.txt").write_text(text)
    return epath.Path(tmp_path)


def made(data, **values):
    return t2i_compbench.make(config(**values), str(data), "")


def test_the_data_say_what_they_are(data):
    suite = made(data)
    assert (suite.data.n, suite.data.total) == (4, 4)
    assert suite.about.dialect.endswith("noun phrases by simple chunker")
    assert len(suite.requests("base").images) == 40
    assert len({p.id for p in suite.prompts}) == 4
    alone = made(data / "spatial_val.txt")
    assert (alone.data.n, alone.judged) == (2, False)
    assert suite.judged


def test_a_clone_of_the_official_repository_will_do(data):
    inside = data / "clone/examples/dataset"
    inside.mkdir(parents=True)
    (inside / "shape_val.txt").write_text("a round table\n")
    suite = made(data / "clone")
    assert [(line.text, line.prompt.category) for line in suite.lines] == [
        ("a round table", "shape")
    ]


def test_samples_have_the_official_names_in_order(data):
    suite = made(data)
    out = data / "official"
    out.mkdir()
    requests = suite.requests("base")
    suite.official(out, requests, Replies(images=drawn(requests)))
    names = rules.ordered(p.name for p in (out / "color/samples").iterdir())
    assert names[:2] == [f"a green bench and a blue bowl_00000{i}.png" for i in range(2)]
    assert [rules.index_of(name) for name in names] == list(range(20))
    assert rules.prompt_of(names[10]) == "a red car"
    assert (out / "spatial_val.txt").read_text().splitlines()[1] == "a cup near a vase."


def test_blip_vqas_questions_are_a_proxy(data):
    suite = made(data)

    def answer(request):
        return says("Yes", Yes=0.4, No=0.1) if "bowl" in request.text else says("Yes.")

    requests, replies = judged(suite, answer)
    asked = suite.judge_requests(requests, replies)
    assert len(asked) == 10 * 2 + 10 * 1
    assert asked[0].text == "a green bench? Answer yes or no."
    scored = suite.score(suite.records(requests, replies))
    assert scored.as_released == {}
    assert list(scored.strict) == ["blip_vqa_proxy", "blip_vqa_proxy_color"]
    assert scored.strict["blip_vqa_proxy"].number == pytest.approx((0.8 + 1) / 2)
    assert (scored.n, scored.failed) == (20, 0)
    assert scored.by_category == {"color": {"n": 20, "blip_vqa_proxy": pytest.approx(0.9)}}
    assert scored.items[0]["reason"] == "a green bench? 1.00; a blue bowl? 0.80"


def test_complex_prompts_are_asked_about_their_attributes_apart_from_the_mean(data):
    (data / "complex_val.txt").write_text("the fluffy dog sat on the soft mat\n")

    def answer(request):
        return says("Yes", Yes=0.4, No=0.1) if "fluffy" in request.text else says("Yes.")

    suite = made(data)
    requests, replies = judged(suite, answer)
    asked = [one for one in suite.judge_requests(requests, replies) if one.category == "complex"]
    assert [one.text.split("?")[0] for one in asked[:2]] == ["the fluffy dog", "the soft mat"]
    scored = suite.score(suite.records(requests, replies))
    assert list(scored.strict) == [
        *("blip_vqa_proxy", "blip_vqa_proxy_color", "complex_attributes_proxy"),
    ]
    numbers = {name: metric.number for name, metric in scored.strict.items()}
    assert numbers["blip_vqa_proxy"] == 1
    assert numbers["complex_attributes_proxy"] == pytest.approx(0.8)
    row = {"n": 10, "complex_attributes_proxy": pytest.approx(0.8)}
    assert scored.by_category["complex"] == row
    alone = made(data / "complex_val.txt")
    assert alone.judged
    scored = alone.score(alone.records(*judged(alone, answer)))
    assert list(scored.strict) == ["complex_attributes_proxy"]


def test_a_question_without_an_answer_scores_nothing(data):
    suite = made(data)

    def answer(request):
        return says("", "timeout") if request.id == "0-3:1" else says("Yes")

    scored = suite.score(suite.records(*judged(suite, answer)))
    assert scored.failed == 1
    assert scored.strict["blip_vqa_proxy"].number == pytest.approx(19 / 20)


def write_results(folder, values):
    folder.mkdir(parents=True)
    rows = [{"question_id": i, "answer": value} for i, value in values]
    (folder / "vqa_result.json").write_text(json.dumps(rows))


def test_the_official_results_are_read_back(data):
    suite, out = made(data), data / "official"
    write_results(out / "color/annotation_blip", [(i, f"{i / 20:.4f}") for i in range(19)])
    write_results(out / "spatial/labels/annotation_obj_detection_2d", [(i, 0.5) for i in range(20)])
    records = suite.imported(out, suite.requests("base"))
    scored = suite.score(records)
    color = sum(i / 20 for i in range(19))
    assert scored.as_released == pytest.approx({"color": color / 19, "spatial": 0.5})
    assert list(scored.strict) == ["mean_of_categories", "color", "spatial"]
    assert scored.strict["color"].number == pytest.approx(color / 20)
    assert scored.strict["mean_of_categories"].number == pytest.approx((color / 20 + 0.5) / 2)
    assert (scored.n, scored.failed, len(scored.units)) == (40, 1, 4)


def test_the_command_imports_a_folder_of_results(data, capsys):
    write_results(data / "results/color/annotation_blip", [(i, "0.25") for i in range(20)])
    where = ("--suite", "t2i_compbench", "--data", data, "-o", data / "out")
    code = use.main(["use", "evaluate", *map(str, (*where, "--import", data / "results"))])
    assert code == 0, capsys.readouterr().err
    scores = json.loads((data / "out/scores.json").read_text())
    assert scores["judge"]["name"] == "the official program"
    assert scores["models"]["model"]["as_released"] == {"color": 0.25}
    assert scores["models"]["model"]["strict"] == {"mean_of_categories": 0.25, "color": 0.25}


def test_one_category_may_be_imported_from_its_file(data):
    suite = made(data / "color_val.txt")
    write_results(data / "own", [(i, "1.0") for i in range(20)])
    path = data / "own/vqa_result.json"
    for place in (path, path.parent):
        assert suite.score(suite.imported(place, None)).as_released == {"color": 1}


@pytest.mark.parametrize(
    "values,message",
    [
        ([(20, "0.5")], "item 1: question_id 20 is none of the images"),
        ([(0, "0.5"), (0, "0.6")], "item 2: question_id 0 stands at .*item 1 too"),
        ([(0, "high")], "item 1: 'answer' is 'high'; it must be a number"),
        ([(0, "nan")], "item 1: 'answer' is 'nan'"),
        ([(0, True)], "item 1: 'answer' is True"),
    ],
)
def test_results_that_do_not_match_are_refused(data, values, message):
    write_results(data / "out/color/annotation_blip", values)
    with pytest.raises(BadInput, match=message):
        made(data).imported(data / "out", None)


def test_no_results_are_named(data):
    with pytest.raises(BadInput, match="holds no color/annotation_blip/vqa_result.json or spatial"):
        made(data).imported(data, None)


@pytest.mark.parametrize(
    "text,message",
    [
        ("a\n\nb\n", "color_val.txt, line 2: holds no prompt"),
        ("a\nand/or\n", "line 2: 'and/or' cannot be a file's name"),
        ("x" * 300, "line 1: .* at most 255 bytes"),
        ("", "line 1: holds no prompt"),
    ],
)
def test_a_bad_line_is_named(data, text, message):
    (data / "color_val.txt").write_text(text)
    with pytest.raises(BadInput, match=message):
        made(data)


def test_a_folder_without_prompts_is_named(tmp_path):
    with pytest.raises(BadInput, match="holds no color_val.txt or shape_val.txt"):
        made(tmp_path)
