"""GenEval's rules on detections, its scan of a folder and its summary, as the official code has
them."""

import json
import re

import pytest

from srum_jax.evals.scorers import geneval


def _sides_sorted(reason):
    """The official program names two sides of a target in any order."""
    order = lambda m: f"found {' and '.join(sorted(m[1].split(' and ')))} target"  # noqa: E731
    return re.sub(r"found ([a-z ]+) target$", order, reason, flags=re.MULTILINE)


def _results(case):
    return [
        geneval.Result(name, tag, prompt, bool(right), json.dumps(metadata))
        for (name, tag, prompt, right), metadata in zip(
            case["summary_rows"], case["summary_metadata"], strict=True
        )
    ]


def check(case):
    for one in case["image_cases"]:
        colors = {
            name: {int(i): color for i, color in seen.items()}
            for name, seen in one["colour_of_detection"].items()
        }
        right, reason = geneval.verdict(one["metadata"], one["detections"], colors)
        assert (right, reason) == (one["correct"], _sides_sorted(one["reason"])), one
    for one in case["relative_position"]:
        assert sorted(geneval.relative_position(one["a"], one["b"])) == sorted(one["relations"])
        assert geneval.iou(one["a"], one["b"]) == pytest.approx(one["iou"], abs=1e-12)
    assert sorted(geneval.scanned(case["folder_tree"])) == sorted(case["folder_scanned"])
    results = _results(case)
    assert geneval.summary(results) == case["summary_stdout"]
    assert geneval.short_table(results) == case["srum_results_txt"]
    assert geneval.tag_means(results) == pytest.approx(case["tag_means"], abs=1e-12)
    assert list(geneval.tag_means(results)) == list(case["tag_means"])
    assert geneval.overall(results) == pytest.approx(case["overall"], abs=1e-12)
