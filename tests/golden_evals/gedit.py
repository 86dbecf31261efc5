"""GEdit-Bench: the official reading of replies and the official means."""

import math

import pytest

from srum_jax.evals.scorers import gedit

STATUS = {gedit.RANDOM: "RANDOM_GUESS", gedit.ENDLESS: "NEVER_RETURNS"}
CLOSE = dict(abs=1e-9, rel=0, nan_ok=True)


def check(case: dict) -> None:
    """Every array of gedit.json."""
    for one in case["reply_cases"]:
        parsed = gedit.parse(one["reply"])
        assert parsed == one["parsed"], one["reply"]
        assert (parsed is False) == (one["parsed"] is False)
        assert gedit.lowest(parsed) == one["min_score"], one["reply"]
        assert gedit.guesses(one["reply"]) == one["second_try_guesses_random"], one["reply"]
    for one in case["viescore_cases"]:
        found = gedit.viescore(one["SC_reply"], one["PQ_reply"])
        if isinstance(one["result"], list):
            assert (found.semantics, found.quality) == tuple(one["result"][:2]), one
            assert found.overall == pytest.approx(one["result"][2], abs=1e-9)
        else:
            raised = found.status.replace("raises ", "EXC:")
            assert STATUS.get(found.status, raised) == one["result"], one
    for language, official in case["official"].items():
        _check_language(case["rows"], language, official)
    for language, want in case["lmms_eval_fullset_overall_sample_mean"].items():
        found = gedit.sample_mean([m for m, _, _ in _marks(case["rows"], language)])
        assert found == pytest.approx(want, **CLOSE)


def _marks(rows, language):
    return [
        (gedit.Marks(sc, pq, math.sqrt(sc * pq)), row["group"], row["intersection_exist"])
        for row in rows
        for sc, pq in [(row["sementics_score"], row["quality_score"])]
        if row["instruction_language"] == language
    ]


def _check_language(rows, language, official):
    every = _marks(rows, language)
    shared = [one for one in every if one[2]]
    checked = set()
    for suffix, some in (("", every), ("_intersection", shared)):
        found = gedit.group_means([m for m, _, _ in some], [g for _, g, _ in some])
        for name, means in found.items():
            want = official[name + suffix]
            assert set(means) == set(want)
            for group, value in means.items():
                expected = math.nan if want[group] is None else want[group]
                assert value == pytest.approx(expected, **CLOSE), (language, name, group)
            checked.add(name + suffix)
    assert checked == set(official)
