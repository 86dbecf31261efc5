"""VQAv2 in three dialects, and how its answers are normalised."""

import numpy as np
import pytest

from srum_jax.evals.scorers import vqa

EXACT = dict(abs=1e-9, rel=0)


def check(case: dict) -> None:
    """Holds `scorers/vqa.py` against every array of the file."""
    scores = {"official": [], "lmms_eval": [], "vlmevalkit": []}
    for one in case["cases"]:
        said, answers = one["prediction"], one["answers"]
        ids = range(1, len(answers) + 1)
        official = vqa.official(said, answers, ids)
        assert 100 * official == pytest.approx(one["official_percent"], **EXACT), one
        assert vqa.lmms_eval(said, answers, ids) == pytest.approx(one["lmms_eval"], **EXACT), one
        assert vqa.vlmevalkit(said, answers) == pytest.approx(one["vlmevalkit"], **EXACT), one
        assert vqa.OFFICIAL.normal(said) == one["official_normalised"], one
        assert vqa.OFFICIAL.punctuation(vqa.cleaned(said)) == one["official_after_punct"], one
        assert vqa.LMMS_EVAL.normal(said) == one["lmms_eval_normalised"], one
        assert vqa.VLMEVALKIT.normal(said) == one["vlmevalkit_normalised"], one
        for dialect, values in scores.items():
            values.append(getattr(vqa, dialect)(said, answers))
    _check_aggregate(case, scores)
    _check_probes(case)


def _check_aggregate(case: dict, scores: dict) -> None:
    types = ([one[key] for one in case["cases"]] for key in ("question_type", "answer_type"))
    ours = vqa.official_accuracy(scores["official"], *types)
    want = case["aggregate"]["official_accuracy"]
    assert ours.overall == want["overall"]
    assert ours.by_question_type == want["perQuestionType"]
    assert ours.by_answer_type == want["perAnswerType"]
    for dialect in ("lmms_eval", "vlmevalkit"):
        want = case["aggregate"][f"{dialect}_mean"]
        assert np.mean(scores[dialect]) == pytest.approx(want, **EXACT), dialect


def _check_probes(case: dict) -> None:
    for text, normal, marks_gone in case["normalise_probe"]:
        assert vqa.OFFICIAL.normal(text) == normal, text
        assert vqa.OFFICIAL.punctuation(vqa.cleaned(text)) == marks_gone, text
    for token, written in case.get("contraction_probe", ()):
        assert vqa.OFFICIAL.normal(token) == written, token
