"""GEdit's marks: replies of every kind, as the official code and as a reader takes them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srum_jax.evals.scorers import gedit

GOOD = '{"score": [8, 6], "reasoning": "fine"}'


@pytest.mark.parametrize(
    "reply,parsed",
    [
        (GOOD, {"score": [8, 6], "reasoning": "fine"}),
        ("||V^=^V||" + GOOD + "||V^=^V||", {"score": [8, 6], "reasoning": "fine"}),
        ("||V^=^V||||V^=^V||", False),
        ("||V^=^V||[8, 6]||V^=^V||", [8, 6]),
        ("sure:\n```json\n" + GOOD + "\n```", {"score": [8, 6], "reasoning": "fine"}),
        ('{"score": 7, "x": 1}', {"score": [7], "x": 1}),
        ('{"scores": 5}', {"scores": [5]}),
        ("{score: 8.5, why: good}", {"score": [8.5], "why": "good"}),
        ("{score: true}", {"score": True}),
        ("} {", False),
        ("{}", {}),
        ("[5, 5]", {"score": [5, 5], "reasoning": "System: output is simply a list of scores"}),
        ("[05, 5]", False),
        (" 10 ", {"score": [10], "reasoning": "System: output is simply a number"}),
        ("11", False),
        ("", False),
        ("I cannot help with that.", False),
        ("[" * 5000 + "{" * 5000 + "}", False),
    ],
)
def test_the_first_try_of_the_official_code(reply, parsed):
    assert gedit.parse(reply) == parsed


@pytest.mark.parametrize(
    "semantics,quality,status",
    [
        (GOOD, GOOD, gedit.OK),
        ("sorry", GOOD, gedit.RANDOM),
        ("{broken}", "[5, 5]", gedit.RANDOM),
        ("{broken", GOOD, gedit.RANDOM),
        ("{broken,}", GOOD, gedit.ENDLESS),
        ('{"score": []}', GOOD, "raises ValueError"),
        ('{"score": ["7", "8"]}', GOOD, "raises TypeError"),
        ('{"score": [null]}', GOOD, "raises TypeError"),
        ('{"score": [-1, 3]}', GOOD, "raises ValueError"),
        ('{"score": 1' + "0" * 400 + "}", GOOD, "raises OverflowError"),
        ("||V^=^V||[8, 6]||V^=^V||", GOOD, "raises TypeError"),
    ],
)
def test_where_the_official_code_gives_no_score_a_status_says_so(semantics, quality, status):
    marks = gedit.viescore(semantics, quality)
    assert marks.status == status
    assert math.isnan(marks.overall) == (status != gedit.OK)


@pytest.mark.parametrize(
    "reply,marks",
    [
        (GOOD, (8, 6)),
        ("<think>{x}</think>" + GOOD, (8, 6)),
        ('{"scores": ["7/10", "8"], }', (7, 8)),
        ("score = [0, 9.5]", (0, 9.5)),
        ("[5,5]", (5, 5)),
        (GOOD + GOOD, (8, 6)),
        (GOOD + '{"score": [1, 1]}', None),
        ('{"score": [11, 5]}', None),
        ('{"score": [-1, 5]}', None),
        ('{"score": 8}', None),
        ('{"score": [7, 8, 9]}', None),
        ('{"underscore": 1, "my_score": [1, 2]}', None),
        ("8, 6", None),
        ("", None),
    ],
)
def test_a_strict_reader(reply, marks):
    assert gedit.marks(reply) == marks


def test_strict_marks_name_what_is_missing():
    assert gedit.strict_marks(GOOD, '{"score": [9, 4]}') == gedit.Marks(6, 4, math.sqrt(24))
    assert "SC and PQ" in gedit.strict_marks("", "5").status
    assert gedit.strict_marks(GOOD, "").status.endswith("PQ")


@given(st.text('{}[]"score:, 0123456789.|V^=-\n', max_size=60), st.text(max_size=30))
def test_every_reply_is_taken_somehow(reply, other):
    marks = gedit.viescore(reply, other)
    assert marks.status != gedit.OK or not math.isnan(marks.semantics)
    found = gedit.marks(reply)
    assert found is None or all(0 <= mark <= 10 for mark in found)


@given(st.floats(0, 10), st.floats(0, 10))
def test_a_plain_reply_is_read_alike(a, b):
    reply = f'{{"score": [{a:.3f}, {b:.3f}], "reasoning": "x"}}'
    assert min(gedit.marks(reply)) == gedit.lowest(gedit.parse(reply))


def test_a_group_without_edits_leaves_the_official_mean_undefined():
    marks = [gedit.Marks(4, 9, 6.0), gedit.Marks(1, 1, 1.0)]
    means = gedit.group_means(marks, ["ps_human", "text_change"])["overall"]
    assert (means["ps_human"], means["text_change"]) == (6, 1)
    assert math.isnan(means["tone_transfer"]) and math.isnan(means["avg_overall"])
    assert gedit.sample_mean(marks) == 3.5
    assert math.isnan(gedit.sample_mean([]))
    full = gedit.group_means(marks * 11, list(gedit.GROUPS) * 2)["overall"]
    assert full["avg_overall"] == pytest.approx(sum(full[g] for g in gedit.GROUPS) / 11)
