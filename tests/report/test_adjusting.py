"""What adjust tried and chose is said in words, and the first screen is about what was kept."""

import copy

import numpy as np
import pytest
from html_page import read

from srum_jax.evals import sections as result_sections
from srum_jax.report import adjusting, page
from srum_jax.stages import report

ROW = {"step": 120, "guidance": 2.5}
ADJUST = {
    "rule": "the largest gain on t2i on validation data among those that break no floor",
    "target": "t2i",
    "floors": {"qa": -0.01, "edits": -0.03},
    "tried": [
        ROW | {"share": 0.25, "target": -0.02, "floors": {}, "allowed": False},
        ROW
        | {"share": 0.5, "target": 0.083, "floors": {"qa": 0.0, "edits": -0.01}}
        | {"allowed": True},
        ROW
        | {"share": 1.0, "target": 0.09, "floors": {"qa": 0.0, "edits": -0.087}}
        | {"allowed": False},
    ],
    "chosen": ROW | {"share": 0.5, "target": 0.083, "floors": {"qa": 0.0, "edits": -0.01}},
    "why": "gains most on t2i of 1 that gain and break no floor; cross-fitted -1.2 points",
    "measured_as": "adjusted",
    "crossfitted": {"edits": {"n": 150, "diff": -0.013, "ci95": [-0.04, 0.013]}},
    "next": {"guidance": 2.5, "prompts": {"far_away": 0.25, "near": 0.75}},
}
BASE, TRAINED, KEPT = np.arange(80) % 4 == 0, np.arange(80) % 2 == 0, np.arange(80) % 4 < 2


def measured(**changed):
    return {
        "round": 0,
        "t2i": result_sections.by_model(["x"] * 80, BASE, TRAINED),
        "adjusted": {"t2i": result_sections.by_model(["x"] * 80, BASE, KEPT | TRAINED)},
        "adjust": copy.deepcopy(ADJUST) | changed,
    }


def shown(part):
    return read(page.render(report.read({"rounds": [part]}, [])))


def test_what_was_tried_allowed_and_chosen_is_said_and_no_name_of_the_code():
    found = shown(measured())
    for text in (
        "Kept: 50\u00a0% of the change of 120 steps of training, added to the base and drawn with "
        "guidance 2.5.",
        "Gains most on drawing of 1 that gain and break no floor; cross-fitted \u22121.2 points.",
        "The largest gain in drawing on validation data among those that break no floor: answering "
        "questions may lose 1.0 points, editing pictures may lose 3.0 points.",
        "25\u00a0% of the change of 120 steps 2.5 \u22122.0 not measured not measured no",
        "50\u00a0% of the change of 120 steps · chosen 2.5 +8.3 0.0 \u22121.0 yes",
        "all of the change of 120 steps 2.5 +9.0 0.0 \u22128.7 too low no",
        "editing pictures \u22121.3 points, 95 % interval \u22124.0 to +1.3",
        "near 75.0\u00a0%, far away 25.0\u00a0%.",
    ):
        assert text in found.text, text
    assert "t2i" not in found.text and "qa" not in found.text


def test_the_first_screen_is_about_the_model_that_is_kept():
    found = shown(measured())
    assert "from 25.0\u00a0% to 75.0\u00a0%: +50.0 points" in found.text
    assert "figures below are of the model that was kept" in found.text
    assert "Of the model at the end of training; what was kept is another." in found.text
    part = measured(measured_as="trained")
    del part["adjusted"]
    found = shown(part)
    assert "from 25.0\u00a0% to 50.0\u00a0%: +25.0 points" in found.text
    assert "figures below" not in found.text


def test_where_nothing_is_allowed_the_base_stays_and_it_says_so():
    chosen = ROW | {"step": 0, "share": 0.0, "target": 0.0, "floors": {}}
    part = measured(chosen=chosen, measured_as="base", why="each breaks a floor (edits 2 times)")
    del part["adjusted"]
    found = shown(part)
    assert f"Kept: {adjusting.KEPT_BASE}. Each breaks a floor (editing pictures 2" in found.text
    assert "of the trained model, which was not kept" in found.text
    assert "· chosen" not in found.text


@pytest.mark.parametrize("field", ["chosen", "tried", "why"])
def test_a_damaged_part_is_named(field):
    part = measured()
    part["adjust"].pop(field)
    with pytest.raises(ValueError, match=f"adjust: .*{field}"):
        shown(part)
