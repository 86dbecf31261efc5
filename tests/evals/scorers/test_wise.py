"""WISE scores: what the official parsers read, what a careful reader does, and their means."""

import time

import hypothesis_cases
import pytest
from hypothesis import strategies

from srum_jax.evals.scorers import wise

BINARY = {  # reply: (official, strict)
    "Score: 1": (1, 1),
    "score: 0": (0, 0),
    "**Score**: 1": (1, 1),
    "**Score:** 1": (None, 1),
    "Score: 1.0": (1, 1),
    "Score: 1/1": (1, 1),
    "1": (1, 1),
    "a moon\n0\n": (0, None),
    "1\n1": (None, None),
    "Score: 1\nScore: 0": (1, None),
    "Score: 2\nScore: 0": (0, None),
    "Underscore: 0": (0, None),
    "Score: 10": (None, None),
    "Score: 0.5": (0, None),
    "Score = 1": (None, 1),
    '{"score": 1}': (None, 1),
    "Score：1": (None, 1),
    "": (None, None),
    "I cannot help with that.": (None, None),
    "<think>Score: 0</think>Score: 1": (0, 1),
}
MARKS = {
    "Consistency: 2\nRealism: 1\nAesthetic Quality: 0": ((2, 1, 0), (2, 1, 0)),
    "2\n1\n0": ((2, 1, 0), (2, 1, 0)),
    "Consistency: 2/2\nRealism: 1/2\nAesthetic Quality: 0/2": ((2, 1, 0), (2, 1, 0)),
    "Consistency: 2\nRealism: 1": (None, None),
    "Consistency: 1.5\nRealism: 1\nAesthetic Quality: 0": ((1, 1, 0), None),
    "Consistency: 7\nRealism: 1\nAesthetic Quality: 0": ((7, 1, 0), None),
    "Consistency (0-2): 2\nRealism: 1\nAesthetic Quality: 0": (None, (2, 1, 0)),
    "**Consistency:** 2\n**Realism:** 1\n**Aesthetic Quality:** 0": (None, (2, 1, 0)),
    "Consistency: 2\nConsistency: 0\nRealism: 1\nAesthetic Quality: 0": ((0, 1, 0), None),
    "": (None, None),
}


@pytest.mark.parametrize("reply", BINARY)
def test_binary_replies(reply):
    assert (wise.verified_score(reply), wise.strict_verified_score(reply)) == BINARY[reply]


@pytest.mark.parametrize("reply", MARKS)
def test_replies_of_three_marks(reply):
    found = wise.legacy_marks(reply)
    official = tuple(found[m] for m in wise.MARKS) if len(found) == 3 else None
    assert (official, wise.strict_marks(reply)) == MARKS[reply]


def test_thinking_is_taken_out_first():
    assert wise.without_thinking("<think>Score: 0</think>\nScore: 1") == "Score: 1"
    assert wise.without_thinking("so\n</think> 1 ") == "so\n1"


@hypothesis_cases.counts(quick=500)
def test_any_reply_is_read_or_refused(cases):
    names = ["Score", "Consistency", "Realism", "Aesthetic Quality", ":", "：", "**", "0", "1", "2"]
    piece = strategies.sampled_from([*names, "9", " ", "\n", "<think>", "</think>", "/2", "x"])

    def check(pieces):
        reply = "".join(pieces)
        assert wise.verified_score(reply) in (None, 0, 1)
        assert wise.strict_verified_score(reply) in (None, 0, 1)
        assert all(0 <= x <= 9 for x in wise.legacy_marks(reply).values())
        assert wise.strict_marks(reply) is None or set(wise.strict_marks(reply)) <= {0, 1, 2}

    hypothesis_cases.run(check, cases, pieces=strategies.lists(piece, max_size=30))


def test_long_replies_take_no_time():
    readers = (wise.verified_score, wise.legacy_marks, wise.strict_verified_score)
    start = time.process_time()
    for reply in ("\n" * 100_000, "Score" + " " * 100_000, "<think>" * 2_000):
        for read in (*readers, wise.strict_marks):
            read(reply)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("version", [wise.VERIFIED, wise.LEGACY])
def test_categories_cover_all_ids_and_weights_sum_to_one(version):
    names = [version.category(i) for i in range(1, 1001)]
    assert list(dict.fromkeys(names)) == list(wise.CATEGORIES)
    assert version.category(0) is version.category(1001) is None
    assert sum(version.weights) == pytest.approx(1)


def test_overall_is_the_micro_mean_when_complete():
    lines = [(i, i % 3 == 0) for i in range(1, 1001)]
    found = wise.totals([(i, int(x)) for i, x in lines], wise.VERIFIED)
    assert found.overall == pytest.approx(333 / 1000)


def test_an_absent_id_refuses_overall_and_an_odd_score_is_skipped():
    lines = [(i, 1) for i in range(1, 1000)]
    assert wise.totals(lines, wise.VERIFIED).overall is None
    found = wise.totals([*lines, (1000, "1")], wise.VERIFIED)
    assert (found.overall, found.skipped, found.missing) == (pytest.approx(1), (1000,), ())


def test_a_missing_mark_ends_bagels_copy():
    rows = [("culture", "CULTURE", (2, 2, 2))] * 400
    rows += [("space-time", name, (1, 1, 1)) for name in ("TIME", "SPACE") for _ in range(150)]
    science = ("BIOLOGY", "PHYSICS", "CHEMISTRY")
    rows += [("science", name, (0, 0, 0)) for name in science for _ in range(100)]
    found = wise.bagel_totals(rows)
    assert found["Overall"] == pytest.approx((1 + 0.5 + 0.5) / 6)  # not weighted
    assert wise.bagel_totals([*rows[:-1], ("science", "CHEMISTRY", (0, 9.9, 0))]) is None
    assert wise.bagel_totals(rows[1:]) is None
