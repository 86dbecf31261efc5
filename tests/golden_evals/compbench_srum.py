"""The official numbers of SRUM's CompBench protocol through our scorer."""

import pytest

from srum_jax.evals.scorers import compbench_srum as scorer


def check(case):
    """All arrays of a parsed compbench_srum.json."""
    for one in case["reply_cases"]:
        assert scorer.released_score(one["reply"]) == one["score"], one["reply"]
    for one in case["csv_means"]:
        mean = scorer.released_mean(one["scores"])
        assert mean == pytest.approx(one["as_released_mean"], rel=0, abs=1e-9)
        assert f"{mean:.4f}" == one["printed"]
    for one in case["summary"]:
        lines = scorer.summary([tuple(row) for row in one["rows"]])
        assert sorted(lines) == sorted(one["released_output"])  # awk's order of variants is its own
