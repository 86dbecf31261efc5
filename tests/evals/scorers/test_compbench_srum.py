"""SRUM's CompBench scores: what the released parser reads, and what a careful reader does."""

import json
import math
import time

import hypothesis_cases
import pytest
from hypothesis import strategies

from srum_jax.evals.scorers import compbench_srum as scorer

READ = {  # reply: (released, strict)
    '{"score": 85, "explanation": "fine"}': (85, 85),
    '```json\n{"score": 85}\n```': (85, 85),
    '{"score": 150}': (150, None),
    '{"score": 85.5}': (85, 85.5),
    '{"score": "85"}': (85, 85),
    '{"score": "85/100"}': (85, 85),
    '{"score": 85/100}': (85, 85),
    '{"score": 85%}': (85, 85),
    '{"score": 8/10}': (8, None),
    '{"score": -5}': (-1, None),
    '{"score": null}': (-1, None),
    '{"score": true}': (-1, None),
    "{'score': 85}": (-1, 85),
    '{"Score": 85}': (-1, 85),
    "score: 85": (-1, 85),
    "85": (-1, 85),
    "about 85": (-1, None),
    "": (-1, None),
    "I cannot judge this image.": (-1, None),
    '{"explanation": "a "score": 3 is low", "score": 85}': (3, None),
    '{"score": 20} or {"score": 80}': (20, None),
    '{"score": 85, "explanation": "cut off': (85, 85),
    '{"score": 7e1}': (7, 70),
    '{"a": {"score": 9}}': (9, 9),
    '{"score": 1, "score": 2}': (2, None),
}


@pytest.mark.parametrize("reply", READ)
def test_replies(reply):
    assert (scorer.released_score(reply), scorer.strict_score(reply)) == READ[reply]


@hypothesis_cases.counts(quick=500)
def test_any_reply_is_read_or_refused(cases):
    pieces = strategies.sampled_from(
        ['"score":', " ", "{", "}", "7", "85", '"', "\n", "```json", "x", "null", "-", "score", "٣"]
    )

    def check(pieces):
        reply = "".join(pieces)
        assert isinstance(scorer.released_score(reply), int)
        strict = scorer.strict_score(reply)
        assert strict is None or 0 <= strict <= 100

    hypothesis_cases.run(check, cases, pieces=strategies.lists(pieces, max_size=30))


def test_long_replies_take_no_time():
    start = time.process_time()
    for reply in ("{" * 200_000, '{"score": ' * 20_000, '"score": 1' * 20_000):
        scorer.released_score(reply)
        scorer.strict_score(reply)
    assert time.process_time() - start < 5


@hypothesis_cases.counts(quick=200, slow=hypothesis_cases.MANY)
def test_clean_json_is_read_alike(cases):
    def check(score, words):
        reply = json.dumps({"score": score, "explanation": words})
        assert scorer.released_score(reply) == scorer.strict_score(reply) == score

    words = strategies.text(strategies.characters(exclude_characters='{}"'), max_size=40)
    hypothesis_cases.run(check, cases, score=strategies.integers(0, 100), words=words)


def test_means_leave_out_what_is_no_number_and_count_failures():
    assert scorer.released_mean([100, -1, "", "abc", "nan", "1_0"]) == 49.5
    assert scorer.released_mean([]) == 0.0
    assert math.isclose(scorer.released_mean(["1", 2.0, " 3 "]), 2)


def test_complex_categories_are_one_of_eight():
    means = {name: 80.0 for name in scorer.BASE} | {name: 40.0 for name in scorer.COMPLEX}
    assert scorer.composite(means) == (40.0, 75.0)
    assert scorer.composite({"color": 50.0}) == (0.0, 25.0)  # no complex folder counts 0
