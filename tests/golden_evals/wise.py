"""The official numbers of WISE_Verified and legacy WISE through our scorer."""

import re

import pytest

from srum_jax.evals.scorers import wise

EXACT = dict(rel=0, abs=1e-12)


def check(case):
    """All arrays of a parsed wise.json."""
    for one in case["verified_reply_cases"]:
        assert wise.verified_score(one["reply"]) == one["score"], one["reply"]
    for one in case["legacy_reply_cases"]:
        assert wise.legacy_marks(one["reply"]) == one["legacy"], one["reply"]
        assert wise.bagel_marks(one["reply"]) == one["bagel_mp"], one["reply"]
    _verified(case["verified_scores_by_id"], case["verified"])
    _legacy(case["legacy_scores_by_id"], case["legacy"])


def _same(found, want):
    assert set(found.categories) == set(want["category"])
    for name, (mean, n) in want["category"].items():
        assert found.categories[name][1] == n
        assert found.categories[name][0] == pytest.approx(mean, **EXACT)
    assert found.overall == pytest.approx(want["overall"], **EXACT)


def _printed(found, tail, label):
    """The end of what the official script prints, from our numbers."""
    mean, n = found.categories["CHEMISTRY"]
    names = "Cultural\tTime\tSpace\tBiology\tPhysics\tChemistry\tOverall"
    lines = [
        *("  Category: CHEMISTRY", f"    Average {label}: {mean:.2f}"),
        *(f"    Number of samples: {n}", "", "", "--- Overall WiScore Across All Categories ---"),
        *(f"Overall WiScore: {found.overall:.2f}", names, found.row, ""),
    ]
    whole = "\n".join(lines)
    assert whole.endswith(tail) or tail.endswith(whole), (whole, tail)


def _verified(scores, want):
    lines = list(enumerate(scores, start=1))
    lines = lines[:400] + lines[640:] + lines[400:640]  # the files' order in `eval_qwen.sh`
    found = wise.totals(lines, wise.VERIFIED)
    _same(found, want)
    _printed(found, want["stdout_tail"], "binary WiScore")
    tail = want["missing_three_ids_stdout_tail"]
    absent = [int(x) for x in re.search(r"Missing IDs: \[(.*)\]", tail).group(1).split(",")]
    part = wise.totals([line for line in lines if line[0] not in absent], wise.VERIFIED)
    assert part.overall is None and list(part.missing) == absent
    assert _warning(scores[part.skipped[-1] - 1]).endswith(_last_warning(tail))


def _warning(score):
    if not isinstance(score, int | float):
        return " Missing or non-numeric 'score'. Skipping this line for category calculation."
    return f" score={score} is outside the expected binary range {{0, 1}}. Skipping this line."


def _last_warning(tail):
    line = [one for one in tail.split("\n\nError:")[0].split("\n") if one][-1]
    return line.split(": ")[-1] if "Line " in line else line


def _legacy(marks, want):
    found = wise.totals(list(enumerate(marks, start=1)), wise.LEGACY)
    _same(found, want)
    _printed(found, want["stdout_tail"], "WiScore")
    files = [(400, "culture"), (700, "space-time"), (1000, "science")]
    rows = [
        (next(name for last, name in files if i <= last), wise.LEGACY.category(i), m)
        for i, m in enumerate(marks, start=1)
    ]
    assert wise.bagel_text(wise.bagel_totals(rows)) == want["bagel_cal_score_results_txt"]
