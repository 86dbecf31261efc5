"""Exact match of GQA, ANLS of DocVQA, relaxed accuracy of ChartQA."""

import pytest

from srum_jax.evals.scorers import answer_match

EXACT = dict(abs=1e-12, rel=0)


def check(case: dict) -> None:
    """Holds `scorers/answer_match.py` against every array of the file."""
    for one in case["exact_match"]:
        assert answer_match.exact_match(one["prediction"], one["answer"]) == one["lmms_eval"], one
    for one in case["anls"]:
        ours = answer_match.anls(one["prediction"], one["answers"])
        assert ours == pytest.approx(one["vlmevalkit"], **EXACT), one
    for one in case["relaxed"]:
        ours = answer_match.relaxed(one["prediction"].strip(), one["target"])
        assert ours == one["vlmevalkit"], one
