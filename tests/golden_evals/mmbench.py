"""Numbers of VLMEvalKit, lmms-eval and BAGEL for replies to MMBench."""

import math

from srum_jax.evals.scorers import letters, mmbench


def _options(row):
    texts = {letter: row.get(letter) for letter in "ABCDEFGH"}
    return {letter: text for letter, text in texts.items() if text is not None}


def _check_replies(cases):
    for case in cases:
        reply, options = case["reply"], letters.lettered(case["options"])
        assert letters.vlmevalkit(reply, options) == (case["vlmevalkit"] or ""), case
        assert letters.lmms_eval(reply, options) == (case["lmms_eval"] or ""), case
        assert mmbench.lmms_static(reply, options) == case["lmms_static"], case
        assert letters.bagel(reply, options) == case["bagel_post_process"], case


def _close(given, wanted):
    assert set(given) == set(wanted)
    for key, value in wanted.items():
        assert math.isclose(given[key], value, rel_tol=0, abs_tol=1e-12), key


def check(case: dict) -> None:
    """Asserts every array of `mmbench.json`."""
    _check_replies(case["parse_cases"])
    rows, wanted = case["rows"], case["circular"]
    rules = {"lmms": mmbench.lmms_static, "vlmevalkit": letters.vlmevalkit}
    right = {
        name: {r["index"]: rule(r["prediction"], _options(r)) == r["answer"] for r in rows}
        for name, rule in rules.items()
    }
    lmms, vlmevalkit = (mmbench.circular(one) for one in right.values())
    for column, key in [("category", "category"), ("L2-category", "l2")]:
        groups = {row["index"]: row[column] for row in rows}
        _close(mmbench.by_group(lmms, groups), wanted[f"lmms_static_{key}"])
    hits = {str(number): int(one) for number, one in vlmevalkit.items()}
    assert hits == wanted["vlmevalkit_exact_hits"]
    overall = {
        "lmms_static_overall": lmms,
        "vlmevalkit_exact_overall": vlmevalkit,
        "vanilla_no_rotation_vlmevalkit": mmbench.vanilla(right["vlmevalkit"]),
    }
    _close(
        {k: sum(v.values()) / len(v) for k, v in overall.items()}, {k: wanted[k] for k in overall}
    )
    assert set(overall) | {
        "lmms_static_category",
        "lmms_static_l2",
        "vlmevalkit_exact_hits",
    } == set(wanted)
