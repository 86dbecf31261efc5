"""TextVQA as EvalAI's processor has it."""

import numpy as np
import pytest

from srum_jax.evals.scorers import vqa

EXACT = dict(abs=1e-9, rel=0)


def check(case: dict) -> None:
    """Holds `scorers/vqa.py` against every array of the file."""
    scores = []
    for one in case["cases"]:
        scores.append(vqa.eval_ai(one["prediction"], one["answers"]))
        assert scores[-1] == pytest.approx(one["lmms_eval"], **EXACT), one
        assert scores[-1] == pytest.approx(one["bagel"], **EXACT), one
        assert vqa.eval_ai_normal(one["prediction"]) == one["normalised"], one
    assert np.mean(scores) == pytest.approx(case["mean_lmms"], **EXACT)
    assert np.mean(scores) == pytest.approx(case["mean_bagel"], **EXACT)
