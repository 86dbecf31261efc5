"""ImgEdit: the official reading of replies, BAGEL's, UGE's and lmms-eval's means."""

import pytest

from srum_jax.evals.scorers import imgedit

CLOSE = dict(abs=1e-12, rel=0)


def check(case: dict) -> None:
    """Every array of imgedit.json."""
    for one in case["reply_cases"]:
        found = imgedit.average(one["reply"])
        said = found.status.replace("raises ", "EXC:") if "raises" in found.status else found.value
        assert said == one["official_average"], one["reply"]
        assert list(imgedit.lmms_marks(one["reply"])) == one["lmms_eval_scores"], one["reply"]
    scores = imgedit.averages(case["results"])
    assert scores == case["official_average_score"]
    means = imgedit.type_means(scores, case["meta"])
    assert means == case["official_type_scores"]
    overall = imgedit.overall(scores)
    assert means | {"overall": overall} == case["bagel_type_scores_with_overall"]
    assert imgedit.mean_of_types(means) == pytest.approx(case["mean_of_nine_types"], **CLOSE)
    assert overall == case["uge_final_average"]
    error = imgedit.average({"error": "a server's words"})
    assert error.status == f"raises {case['api_error_record_raises']}"
