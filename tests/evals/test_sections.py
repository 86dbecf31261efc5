"""The sections of results.json: counts, choices, and nothing where nothing was measured."""

import json

import numpy as np
import pytest

from srum_jax.evals import sections, stats

RNG = np.random.default_rng(0)


def test_accuracy_section_counts_by_category():
    section = sections.accuracy_section(
        np.array([True, False, True, True]), ["spatial", "attr", "spatial", "attr"]
    )
    assert section["n"] == 4 and section["correct"] == 3 and section["accuracy"] == 0.75
    assert section["ci95"] == list(stats.wilson(3, 4))
    assert list(section["by_category"]) == ["spatial", "attr"]
    assert section["by_category"]["attr"] == {
        "n": 2,
        "correct": 1,
        "accuracy": 0.5,
        "ci95": list(stats.wilson(1, 2)),
    }
    assert "by_category" not in sections.accuracy_section(np.array([True]))


def test_accuracy_section_of_several_samples():
    section = sections.accuracy_section(np.array([[True, False], [True, True]]), ["a", "b"])
    assert (section["n"], section["correct"]) == (4, 3)
    assert section["by_category"]["b"]["correct"] == 2


def test_paired_section():
    base = np.array([[True, False], [True, False], [False, False]])
    trained = np.array([[True, True], [False, True], [False, True]])
    section = sections.paired_section(base, trained)
    assert section["n"] == 6 and section["prompts"] == 3
    assert (section["base_only"], section["trained_only"]) == (1, 3)
    assert section["diff"] == pytest.approx(2 / 6)
    assert section["ci95"] == list(stats.paired_bootstrap(base, trained)[1])


def test_best_of_k_chooses_by_score_with_nan_last():
    nan = np.nan
    correct = np.array(
        [[False, True, False], [True, False, False], [False, True, True], [False, False, False]]
    )
    scores = np.array([[0.1, 0.9, nan], [nan, -0.9, nan], [nan, nan, nan], [0.3, 0.3, 0.2]])
    section = sections.best_of_k_section(correct, scores, categories=["a", "b", "a", "b"])
    # Chosen: 1 (right), 1 (wrong, the only scored one), 0 (no score at all), 0 (a tie).
    assert section["k"] == 3 and section["self"]["correct"] == 1
    assert section["random"]["correct"] == 1  # candidate 0 of each prompt
    assert section["random"]["expected_accuracy"] == pytest.approx(4 / 12)
    assert section["oracle"]["correct"] == 3
    assert section["gain"]["diff"] == pytest.approx(1 / 4 - 4 / 12)
    assert section["oracle"]["by_category"]["b"]["correct"] == 1
    for arm in ("self", "random", "oracle"):
        assert section[arm]["accuracy"] == section[arm]["correct"] / section[arm]["n"]


def test_by_model_without_trained_has_no_trained():
    base = np.array([True, False])
    assert set(sections.by_model(["color", "count"], base)) == {"base"}
    both = sections.by_model(["color", "count"], base, ~base)
    assert set(both) == {"base", "trained", "paired"} and both["paired"]["diff"] == 0.0


def _judged(n, right_scores=0.5):
    labels = RNG.random(n) < 0.5
    return sections.ScoredItems(np.where(labels, right_scores, -0.5), labels, ["ok"] * n)


def test_scores_section():
    grid = sections.ScoredItems(
        np.array([0.2, np.nan, 0.1]), np.array([False, True, True]), ["ok", "unparsed", "ok"]
    )
    images = sections.ScoredItems(
        np.array([0.9, 0.1, 0.2, 0.8]), np.array([True, False, True, False]), ["ok"] * 4
    )
    section = sections.scores_section(
        {"components": _judged(40), "grid": grid}, "components", images, [0, 0, 1, 1]
    )
    assert section["region_auc"] == 1.0 and section["region_n"] == 40
    assert section["by_proposer"]["grid"] == {
        "region_auc": 0.0,
        "region_n": 2,
        "status": {"ok": 2, "unparsed": 1},
    }
    assert section["status"] == {"ok": 40}
    assert section["image_auc"] == 0.75 and section["image_auc_within_prompt"] == 0.5
    with pytest.raises(ValueError, match="sam.*grid"):
        sections.scores_section({"grid": grid}, "sam")


def test_scores_section_leaves_out_what_was_not_measured():
    one_class = sections.ScoredItems(np.array([0.1, 0.2]), np.array([True, True]), ["ok", "ok"])
    section = sections.scores_section({"grid": one_class}, "grid")
    assert "region_auc" not in section and section["region_n"] == 2
    assert not any(key.startswith("image") for key in section)
    silent = sections.ScoredItems(np.array([np.nan]), np.array([True]), ["unparsed"])
    section = sections.scores_section({"grid": silent}, "grid")
    assert "region_n" not in section and section["status"] == {"unparsed": 1}


def test_sections_are_plain_json_without_nulls():
    correct = RNG.random((20, 4)) < 0.5
    everything = [
        sections.accuracy_section(correct, ["a"] * 20),
        sections.paired_section(correct, ~correct),
        sections.best_of_k_section(correct, RNG.random((20, 4))),
        sections.by_model(["a"] * 20, correct[:, 0]),
        sections.scores_section({"grid": _judged(9)}, "grid"),
    ]
    text = json.dumps(everything, allow_nan=False)
    assert "null" not in text


@pytest.mark.parametrize(
    "call",
    [
        lambda: sections.accuracy_section(np.zeros(0, bool)),
        lambda: sections.accuracy_section(np.array([0.0, 1.0])),
        lambda: sections.accuracy_section(np.array([True]), ["a", "b"]),
        lambda: sections.paired_section(np.zeros((2, 2), bool), np.zeros(2, bool)),
        lambda: sections.best_of_k_section(np.zeros((2, 2), bool), np.zeros((2, 3))),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError):
        call()
