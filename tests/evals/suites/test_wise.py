"""WISE_Verified and legacy WISE end to end on prompts of the official form."""

import json

import numpy as np
import pytest
from drawn_replies import config, drawn, judged, outputs, says
from etils import epath

from srum_jax.core.errors import BadInput
from srum_jax.data import images
from srum_jax.evals.judge_texts import OFFICIAL
from srum_jax.evals.suite import Replies
from srum_jax.evals.suites import wise, wise_legacy

LAST = {
    wise: ("data_verified", wise.FILES, (400, 640, 1000)),
    wise_legacy: ("data", wise_legacy.ORIGINAL, (400, 700, 1000)),
}
TIME = ["Longitudinal time", "Highlighting"]


def row(id):
    return {
        "Prompt": f"the food number {id}",
        "Explanation": f"It is cake {id}.",
        "Category": "any",
        "Subcategory": TIME[id % 2],
        "prompt_id": id,
    }


def written(folder, module, ids=range(1, 1001)):
    """The three files of a clone of the official repository."""
    place, names, lasts = LAST[module]
    (folder / place).mkdir(parents=True, exist_ok=True)
    first = 1
    for name, last in zip(names, lasts, strict=True):
        rows = [row(id) for id in ids if first <= id <= last]
        if rows:
            (folder / place / name).write_text(json.dumps(rows))
        first = last + 1
    return folder


@pytest.fixture(params=[wise, wise_legacy], ids=["verified", "legacy"])
def module(request):
    return request.param


@pytest.fixture
def suite(tmp_path, module):
    return module.make(config(), str(written(tmp_path, module)), "")


def binary(request):
    return says(f"Score: {int(int(request.id[:-2]) % 4 == 0)}")


def marks(request):
    return says("Consistency: 2\nRealism: 1\nAesthetic Quality: 0")


ANSWER = {wise: binary, wise_legacy: marks}


def test_the_files_of_a_clone_are_found(suite, module):
    assert (suite.data.n, suite.data.total, suite.data.variant) == (1000, 1000, "original prompts")
    categories = [item.prompt.category for item in suite.items]
    assert categories[0] == "CULTURE" and categories[-1] == "CHEMISTRY"
    assert categories.count("TIME") == (120 if module is wise else 167)


def test_the_judge_is_told_what_is_meant(suite):
    requests, replies = judged(suite, lambda r: says(""))
    one = suite.judge_requests(requests, replies)[6]
    assert "the food number 7" in one.text and "It is cake 7." in one.text
    assert one.id == "7-0" and one.system and "own wording" in suite.about.dialect
    assert np.array_equal(one.images[0], replies.images[6]["image"])


def test_the_words_of_the_users_clone_are_used(tmp_path):
    folder = written(tmp_path, wise)
    source = """f"Judge {prompt_data['Prompt']} by {prompt_data['Explanation']}" """
    (folder / "vllm_eval.py").write_text(source)
    suite = wise.make(config(), str(folder), "")
    assert OFFICIAL in suite.about.dialect
    requests, replies = judged(suite, binary)
    assert suite.judge_requests(requests, replies)[0].text == (
        "Judge the food number 1 by It is cake 1."
    )


def test_overall_weights_the_categories(suite, module):
    requests, replies = judged(suite, ANSWER[module])
    scored = suite.score(suite.records(requests, replies))
    want = 0.25 if module is wise else (0.7 * 2 + 0.2 * 1) / 2
    assert scored.as_released["overall"] == pytest.approx(want)
    assert scored.strict["wiscore"].number == pytest.approx(want)
    assert next(iter(scored.strict)) == "wiscore"
    assert (scored.n, scored.failed, len(scored.units)) == (1000, 0, 1000)


def test_a_failure_refuses_the_official_overall_and_counts_0(suite, module):
    def answer(request):
        if request.id == "1-0":
            return says("I cannot help with that.")
        return says("", "timeout") if request.id == "2-0" else says("1\n1\n1", "ok")

    def one(request):
        return answer(request) if request.id in ("1-0", "2-0") else says("Score: 1")

    requests, replies = judged(suite, one if module is wise else answer)
    scored = suite.score(suite.records(requests, replies))
    assert "overall" not in scored.as_released and scored.failed == 2
    worth = 1 if module is wise else 0.5
    assert scored.as_released["CULTURE"] == pytest.approx(worth)  # parsed lines alone
    share = scored.by_category["CULTURE"]["accuracy" if module is wise else "wiscore"]
    assert share == pytest.approx(worth * 398 / 400)
    reasons = [item["reason"] for item in scored.items[:2]]
    assert reasons == ["no clear score in the reply", "timeout"]


def test_bagels_overall_stands_beside_the_official_one(tmp_path):
    suite = wise_legacy.make(config(), str(written(tmp_path, wise_legacy)), "")

    def answer(request):  # only culture is right
        good = int(request.id[:-2]) <= 400
        return says("Consistency: 2\nRealism: 2\nAesthetic Quality: 2" if good else "0\n0\n0")

    requests, replies = judged(suite, answer)
    records = suite.records(requests, replies)
    assert suite.score(records).as_released["overall"] == pytest.approx(0.4)
    assert "bagel_overall" not in suite.score(records).as_released  # bare lines are 9.9 there
    other = "Consistency: 0\nRealism: 0\nAesthetic Quality: 0"
    requests, replies = judged(
        suite, lambda r: says(other) if answer(r).text[0] == "0" else answer(r)
    )
    scored = suite.score(suite.records(requests, replies))
    assert scored.as_released["bagel_overall"] == pytest.approx(1 / 6)


def test_a_sample_has_all_categories_and_no_official_overall(tmp_path, module):
    suite = module.make(config(limit=12), str(written(tmp_path, module)), "")
    requests, replies = judged(suite, ANSWER[module])
    scored = suite.score(suite.records(requests, replies))
    assert "overall" not in scored.as_released
    assert {name: one["n"] for name, one in scored.by_category.items()} == dict.fromkeys(
        ("CULTURE", "TIME", "SPACE", "BIOLOGY", "PHYSICS", "CHEMISTRY"), 2
    )
    assert 0 <= scored.strict["wiscore"].number <= 1


def test_rewritten_prompts_are_another_variant(tmp_path):
    folder = written(tmp_path, wise_legacy) / "data"
    path = folder / "natural_science.json"
    path.rename(folder / "natural_science_rewrite.json")
    alone = wise_legacy.make(config(), str(folder / "natural_science_rewrite.json"), "")
    assert (alone.data.n, alone.data.variant) == (300, "rewritten prompts")
    assert wise_legacy.make(config(), str(folder), "").data.variant == "original prompts"


def test_the_official_folder_has_an_image_an_id(tmp_path, module):
    suite = module.make(config(limit=6), str(written(tmp_path, module)), "")
    requests = suite.requests("base")
    replies = Replies(images=drawn(requests))
    suite.official(epath.Path(tmp_path), requests, replies)
    for place, one in enumerate(requests.images):
        picture = images.load(tmp_path / "images" / f"{one.prompt.id}.png")
        assert np.array_equal(picture, replies.images[place]["image"])


def test_the_official_judges_replies_are_read_back(tmp_path):
    suite = wise.make(config(), str(written(tmp_path, wise, range(1, 5))), "")
    rows = [{"prompt_id": i, "evaluation": f"Score: {i % 2}"} for i in (1, 2, 3)]
    path = tmp_path / "cultural_common_sense_full_results.json"
    path.write_text(json.dumps(rows))
    scored = suite.score(suite.imported(tmp_path, suite.requests("base")))
    assert scored.as_released == {"CULTURE": pytest.approx(2 / 3)}
    assert scored.strict["accuracy"].number == 0.5 and scored.failed == 1
    assert [item["reason"] for item in scored.items] == [
        "",
        "judged 0; it should show: It is cake 2.",
        "",
        "missing",
    ]
    path.write_text(json.dumps([*rows, {"prompt_id": 9, "evaluation": "x"}]))
    with pytest.raises(BadInput, match="item 4: prompt_id 9 is none of those asked for"):
        suite.imported(tmp_path, suite.requests("base"))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"prompt_id": 1001}, "item 2: 'prompt_id' is 1001; it must be from 1 to 1000"),
        ({"prompt_id": 1}, "item 2: prompt_id 1 stands at .*item 1 too"),
        ({"Explanation": None}, "item 2: 'Explanation' is None"),
        ({"Prompt": " "}, "item 2: the prompt is empty"),
    ],
)
def test_a_bad_row_is_named(tmp_path, module, change, message):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row(1), row(2) | change]))
    with pytest.raises(BadInput, match=message):
        module.make(config(), str(path), "")


def test_a_folder_without_files_says_what_it_wants(tmp_path, module):
    with pytest.raises(BadInput, match=f"holds no {LAST[module][1][0]} or"):
        module.make(config(), str(tmp_path), "")


def test_models_are_compared_by_wiscore(tmp_path, module):
    suite = module.make(config(limit=60), str(written(tmp_path, module)), "")
    better = "Score: 1" if module is wise else "2\n2\n2"
    one = {
        "base": outputs(suite, ANSWER[module]),
        "trained": outputs(suite, lambda r: says(better)),
    }
    found = suite.findings(one)
    assert found.section["metric"] == "wiscore" and found.section["paired"]["diff"] > 0.1
