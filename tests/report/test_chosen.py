"""What was trained on is shown with the weights that the run used, of its own objective."""

import json

import pytest
from html_page import read
from PIL import Image

from srum_jax.objectives import srum
from srum_jax.report import page, training
from srum_jax.stages import report

BOX = {"bbox": [2, 3, 14, 15], "score": 0.83, "status": "ok", "label": "red circle"}
BOX |= {"proposer": "components", "advantage": 1.0, "used": True}
OTHER = BOX | {"bbox": [16, 0, 32, 16], "score": 0.1, "label": "blue square", "used": False}


def candidate(name, weights):
    return {
        "id": name,
        "prompt": f"prompt of {name}",
        "image": f"examples/{name}.png",
        "image_score": 0.6,
        "image_status": "ok",
        "image_advantage": -0.25,
        "boxes": [BOX, OTHER],
        "token_weights": weights,
    }


@pytest.fixture
def build(tmp_path):
    """The page of a round that trained on two candidates by an objective."""
    folder = tmp_path / "round0"
    (folder / "train" / "examples").mkdir(parents=True)
    (folder / "score").mkdir()
    for name in ("1-0", "2-3"):
        Image.new("RGB", (32, 32)).save(folder / "train" / "examples" / f"{name}.png")
    Image.new("RGB", (32, 32)).save(folder / "score" / "1-0.png")
    scored = candidate("1-0", [[0.5, 1], [1, 2.75]]) | {"image": "1-0.png"}
    (folder / "score" / "examples.json").write_text(json.dumps([scored]))

    def page_of(objective, regions, weights, rewards="both", **more):
        found = {"objective": objective, "rewards": rewards, "regions": regions}
        found["candidates"] = [candidate("1-0", weights), candidate("2-3", weights)]
        for name in more.get("without", ()):
            found.pop(name)
        (folder / "train" / "examples.json").write_text(json.dumps(found))
        rounds = [{"round": 0, "train": {"objective": objective}}]
        return read(page.render(report.read({"rounds": rounds}, [folder])))

    return page_of


def test_weights_of_the_objective_are_drawn_and_no_others(build):
    found = build("srum_advantage", True, [[-1.0, 1.0], [1.5, 3.0]])
    for text in (
        "Trained by a loss that counts more or less by how a region scores against those",
        "a weight below 0 pushes it away",
        "weight \u22121 3",
        "prompt of 1-0 Whole picture: +0.60, \u22120.25 against its group",
        "\u22121.00 1.00 1.50 3.00",
        "weights of this run",
        "red circle: +0.83, +1.00 against its group",
        "blue square: +0.10, not trained on: its row had no room for more regions",
        "regions: objects found by their outline",
    ):
        assert text in found.text, text
    assert "released SRUM" not in found.text and "2.75" not in found.text
    assert "srum_advantage" not in found.text


def test_an_objective_that_ignores_regions_says_so(build):
    found = build("sft", False, [[1.0, 1.0], [1.0, 1.0]])
    assert "This objective ignores regions: every token of a chosen picture has the" in found.text
    assert "weight 1.00 everywhere" in found.text and "weights of this run" not in found.text
    found = build("srum_release", False, [[0.8, 0.8], [0.8, 0.8]], rewards="image")
    assert "Regions were not read (the config says so)" in found.text
    assert "weight 0.80 everywhere" in found.text


def test_every_objective_has_words():
    assert set(training.OBJECTIVES) == {*srum.OBJECTIVES, *srum.STEPWISE}


def test_a_damaged_file_is_named(build):
    with pytest.raises(ValueError, match="examples.json: it has no field 'rewards'"):
        build("sft", False, [[1.0]], without=["rewards"])
