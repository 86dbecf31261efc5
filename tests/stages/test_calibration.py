"""What is counted of scores without a verifier, and how it is shown."""

import numpy as np
import pytest

from srum_jax.report import page
from srum_jax.report.judging import Judging, judging
from srum_jax.stages import calibration


def record(name, score, *regions, status="ok"):
    return {
        "id": name,
        "image_score": np.float32(score),
        "image_status": status,
        "regions": [
            {"bbox": np.zeros(4), "score": s, "status": t, "proposer": p, "label": ""}
            for s, t, p in regions
        ],
    }


SCORED = [
    record("0-0", -1.0, (0.95, "ok", "sam"), (np.nan, "irrelevant", "sam"), (-0.2, "ok", "grid")),
    record("0-1", 1.0000001, (1.0, "ok", "sam")),
    record("0-2", np.nan, status="no regions"),
]


def test_scores_are_counted_by_tenths_and_failures_by_status():
    found = calibration.calibration(SCORED)
    assert len(found["images"]["histogram"]) == 20 and sum(found["images"]["histogram"]) == 2
    assert found["images"]["histogram"][0] == found["images"]["histogram"][-1] == 1
    assert found["images"]["status"] == {"no regions": 1, "ok": 2}
    assert set(found["regions"]) == {"sam", "grid"} and "comparison" not in found
    assert found["regions"]["sam"]["status"] == {"irrelevant": 1, "ok": 2}
    assert found["regions"]["sam"]["histogram"][-1] == 2


def test_answers_are_counted_by_kind_of_question():
    """As the stage stores them: some of regions (0, 1), some of the whole (-1), one unreadable."""
    scored = [dict(record) for record in SCORED]
    scored[0]["answers"] = (
        '[[-1,"exists",0,0.5,"ok"],[0,"crop_is",0,1.0,"ok"],[0,"crop_is",1,null,"unparsed"]]'
    )
    scored[1]["answers"] = '[[0,"crop_is",0,0.5,"ok"]]'
    found = calibration.calibration(scored)["questions"]
    assert found == {
        "crop_is": {"mean": 0.75, "status": {"ok": 2, "unparsed": 1}},
        "exists": {"mean": 0.5, "status": {"ok": 1}},
    }
    crop, whole = judging({}, {"questions": found}).questions
    assert (crop.kind, crop.asked, crop.mean, crop.failed) == ("crop_is", 3, 0.75, 1)
    assert (whole.kind, whole.asked, whole.failed) == ("exists", 1, 0)
    scored[2]["answers"] = '[["a"]]'
    with pytest.raises(ValueError, match="score record 0-2: its answers are damaged"):
        calibration.calibration(scored)


def test_two_ways_of_scoring_are_compared_where_both_scored():
    scored = [record(str(i), s) for i, s in enumerate((-0.9, -0.1, 0.4, np.nan, 0.8))]
    others = [
        {"id": str(i), "status": "ok", "score": s} for i, s in enumerate((-0.5, 0.2, 0.3, 0.1))
    ] + [{"id": "4", "status": "timeout"}]
    found = calibration.calibration(scored, {"with": "judge", "candidates": others})["comparison"]
    assert found["both"] == 3 and found["candidates"] == 5
    assert found["rank"] == pytest.approx(1.0) and found["same_sign"] == pytest.approx(2 / 3)
    assert found["status"] == {"ok": 4, "timeout": 1}


def test_the_report_shows_labels_where_a_checker_gave_them():
    found = calibration.calibration(SCORED)
    plain = judging({}, found).histograms
    assert [drawn.title for drawn in plain] == ["Whole pictures", "Regions"]
    assert {bar.kind for drawn in plain for bar in drawn.bars} == {"all"}
    labels = {"right": [0] * 19 + [3], "wrong": [2] + [0] * 19}
    shown, plain = judging({"image_histogram": labels, "proposer": "sam"}, found).histograms
    assert shown.names == (("wrong", "wrong", 2), ("right", "right", 3)) and len(shown.bars) == 2
    assert [bar.says for bar in shown.bars] == [
        "\u22121.00 to \u22120.90: wrong 2",
        "+0.90 to +1.00: right 3",
    ]
    assert [name for _, name, _ in plain.names] == ["scored"] and len(plain.bars) == 1
    assert not judging({}, {}) and judging({}, {}) == Judging()


def test_the_report_names_what_has_no_score_and_how_two_ways_agree():
    others = [
        {"id": "0-0", "status": "ok", "score": -1.0},
        {"id": "0-1", "status": "ok", "score": 1},
    ]
    found = calibration.calibration(SCORED, {"with": "words", "candidates": others})
    shown = judging({}, found)
    assert shown.failures == (
        ("whole pictures", 3, {"no regions": 1}),
        ("regions, Segment Anything", 3, {"irrelevant": 1}),
    )
    assert shown.comparison["with"] == "words"
    text = page.render(page.RunReport({}, {}, (page.Round(0, judging=shown),)))
    assert "irrelevant 1" in text and "no regions 1" in text
    assert "Against the scores of words" in text and "rank correlation 1.00" in text


def test_the_report_says_how_much_was_read():
    partly = record("0-3", 0.5) | {"coverage": np.float32(0.5)}
    found = calibration.calibration([record("0-0", 0.9), partly])
    assert found["coverage"] == {"mean": 0.75, "least": 0.5}
    assert "coverage" not in calibration.calibration([record("0-0", 0.9)])
    text = page.render(page.RunReport({}, {}, (page.Round(0, judging=judging({}, found)),)))
    assert "75" in text.partition("Coverage: ")[2][:40]
    assert "50" in text.partition("least covered picture")[2][:60]
