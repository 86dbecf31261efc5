"""POPE in three dialects: each reply read, and the numbers of all."""

import numpy as np
import pytest

from srum_jax.evals.scorers import yes_no

EXACT = dict(abs=1e-12, rel=0)


def check(case: dict) -> None:
    """Holds `scorers/yes_no.py` against every array of the file."""
    for one in case["cases"]:
        reply = one["reply"]
        assert yes_no.llava(reply) == one["llava_bagel"], one
        assert yes_no.lmms_eval(reply) == one["lmms_eval_prediction"], one
        assert (yes_no.lmms_eval(reply) == one["label"]) == one["lmms_eval_score"], one
        assert yes_no.vlmevalkit(reply) == one["vlmevalkit"], one
    want = case["rows_aggregate"]
    ours = yes_no.lmms_eval_pope(*_replies_and_labels(case["rows"]))
    assert ours == pytest.approx(want["lmms_eval"], **EXACT)
    _check_llava(case["rows"], dict(want["llava_bagel"]))
    for split in want["vlmevalkit"]:
        ours = yes_no.vlmevalkit_pope(*_replies_and_labels(case["rows"], split.pop("split")))
        assert ours == pytest.approx(split, rel=0, abs=1e-9)


def _replies_and_labels(rows: list, split: str = "Overall") -> tuple[list, list]:
    rows = [row for row in rows if split in ("Overall", row["category"])]
    return [row["reply"] for row in rows], [row["label"] for row in rows]


def _check_llava(rows: list, want: dict) -> None:
    mean = want.pop("mean_f1")
    ours = {name: _confusion(*_replies_and_labels(rows, name)) for name in want}
    assert {row["category"] for row in rows} == set(want)
    assert {name: {"f1": one.f1, "message": one.message()} for name, one in ours.items()} == want
    assert np.mean([one.f1 for one in ours.values()]) == pytest.approx(mean, **EXACT)


def _confusion(replies: list, labels: list) -> yes_no.Confusion:
    return yes_no.confusion([yes_no.llava(reply) for reply in replies], labels)
