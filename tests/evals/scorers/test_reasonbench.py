"""T2I-ReasonBench: marks out of replies, accuracy and quality."""

import hypothesis_cases
import pytest
from hypothesis import strategies

from srum_jax.evals.scorers import reasonbench

READ = {  # reply about two questions: (official, strict)
    '{"reason": ["a", "b"], "score": [1, 0.5]}': ([1, 0.5], [1, 0.5]),
    '```json\n{"reason": "a", "score": [1, 0]}\n```': ([1, 0], [1, 0]),
    '{"score": ["1", "0.5"]}': ([1, 0.5], None),
    '{"score": [1]}': ([1], None),
    '{"score": [1, 0.7]}': ([1, 0.7], None),
    '{"score": [true, 1]}': ([1, 1], None),
    '{"score": [1, NaN]}': (None, None),
    '{"score": 1}': (None, None),
    '{"score": []}': (None, None),
    '{"marks": [1, 1]}': (None, None),
    '{"reason": "a {b} c", "score": [1, 1]}': (None, [1, 1]),
    '{"score": [1, 1]} {"score": [0, 0]}': ([1, 1], None),
    "score: [1, 1]": (None, None),
    "": (None, None),
    "{" * 100_000 + "}": (None, None),
}


@pytest.mark.parametrize("reply", READ, ids=lambda r: r[:40])
def test_replies(reply):
    found = (reasonbench.released_marks(reply), reasonbench.strict_marks(reply, 2))
    assert found == READ[reply]


@hypothesis_cases.counts(quick=500)
def test_any_reply_is_read_or_refused(cases):
    piece = strategies.sampled_from(
        ['"score":', "[", "]", "{", "}", "1", "0.5", ",", '"', "x", " "]
    )

    def check(pieces):
        reply = "".join(pieces)
        marks = reasonbench.released_marks(reply)
        assert marks is None or marks
        assert set(reasonbench.strict_marks(reply, 1) or ()) <= {0, 0.5, 1}

    hypothesis_cases.run(check, cases, pieces=strategies.lists(piece, max_size=30))


def test_details_are_three_tenths_of_accuracy():
    marks = {"entity": [1, 1], "other_details": [0, 0.5, 1]}
    assert reasonbench.accuracy(marks, "entity") == pytest.approx(0.7 + 0.15)
    assert reasonbench.accuracy({"reason": [1, 0, 0.5]}, "idiom") == pytest.approx(0.5)
    assert reasonbench.released_score([0.5, 1, 1]) == 83.33
