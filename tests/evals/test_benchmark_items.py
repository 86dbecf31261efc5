"""Items of a benchmark that are kept to look at: all outcomes among those with pictures."""

import numpy as np

from srum_jax.data.prompts import Prompt
from srum_jax.evals import benchmark_items
from srum_jax.evals.suite import (
    DrawRequest,
    ModelOutputs,
    Record,
    Replies,
    Requests,
    Scored,
    TextRequest,
)

RIGHT = {"base": [True] * 60 + [False] * 40, "trained": [True] * 50 + [False] * 40 + [True] * 10}


def score(records):
    """Right is "yes"."""
    items = tuple(
        {"id": r.id, "category": r.category, "right": r.reply == "yes", "reason": "why"}
        for r in records
    )
    return Scored(len(records), 0, {}, {}, tuple(r.id for r in records), items=items)


def outputs(requests, ids):
    found = {}
    for name, right in RIGHT.items():
        records = [
            Record(id, "x", "what a judge was asked", "yes" if ok else "no", truth="yes")
            for id, ok in zip(ids, right, strict=True)
        ]
        image = np.zeros((4, 4, 3), np.uint8)
        replies = Replies(images=[{"image": image}] * len(requests.images))
        found[name] = ModelOutputs(requests, replies, records)
    return found


def outcome(row):
    return row["base_correct"], row["trained_correct"]


def test_every_outcome_is_among_the_items_with_pictures():
    asked = [TextRequest(str(i), "x", (np.zeros((4, 4, 3), np.uint8),), "q", 4) for i in range(100)]
    found = outputs(Requests(texts=asked), [one.id for one in asked])
    rows = benchmark_items.rows(score, found)
    assert len(rows) == 100 and rows[0]["expected"] == "yes"
    assert {outcome(row) for row in rows[:20]} == {(True, False), (False, True)}  # they differ
    kept = benchmark_items.shown("frogs", rows, found)["examples-frogs"]
    assert len(kept) == benchmark_items.SHOWN and all(
        row["image"].shape == (4, 4, 3) for row in kept
    )
    for one in ((True, False), (False, True), (True, True), (False, False)):
        assert sum(outcome(row) == one for row in kept) == benchmark_items.SHOWN // 4


def test_what_a_picture_was_drawn_for_is_shown_and_not_what_the_judge_was_asked():
    drawn = [DrawRequest(Prompt(i, f"prompt {i}", "x"), 0) for i in range(100)]
    found = outputs(Requests(images=drawn), [f"{i}-0" for i in range(100)])
    rows = benchmark_items.rows(score, found)
    assert {row["question"] for row in rows} == {f"prompt {i}" for i in range(100)}
    kept = benchmark_items.shown("frogs", rows, found)["examples-frogs"]
    assert all(row["base_image"].shape == (4, 4, 3) for row in kept)
