"""ImgEdit's marks: replies of every kind, as the official scripts and as a reader take them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srum_jax.evals.scorers import imgedit

GOOD = "Brief reasoning: fine\nPrompt Compliance: 5\nVisual: 4\nPhysical & Detail: 3"


@pytest.mark.parametrize(
    "reply,value,status",
    [
        (GOOD, 4.0, imgedit.OK),
        ("a: 5\nb: 4", 4.5, imgedit.OK),
        ("a: 99", 99.0, imgedit.OK),
        ("a: 1\nb: 2\nc: 2", 1.67, imgedit.OK),
        ("a:5", None, imgedit.DROPPED),
        ("a: 5.", None, imgedit.DROPPED),
        ("", None, imgedit.DROPPED),
        ("a: \u00b2", None, "raises ValueError"),
        ("a: " + "9" * 400, None, "raises OverflowError"),
        ({"error": "timeout"}, None, "raises AttributeError"),
        (None, None, "raises AttributeError"),
    ],
)
def test_the_official_mean_of_a_reply(reply, value, status):
    assert imgedit.average(reply) == imgedit.Average(value, status)


@pytest.mark.parametrize(
    "reply,marks",
    [
        (GOOD, (5, 4, 3)),
        ("**Compliance:** 5/5\n- Visual: **4**\n> Detail: 3.", (5, 4, 3)),
        ("Compliance: 5, Visual: 4, Detail: 3", (5, 4, 3)),
        ("Compliance\uff1a5\nVisual\uff1a4\nDetail\uff1a3", (5, 4, 3)),
        ("Brief reasoning: 4\n" + GOOD + "\nAverage: 4\nOverall score: 4", (5, 4, 3)),
        (GOOD.replace("3", "6"), None),
        (GOOD.replace("3", "0"), None),
        (GOOD.replace("3", "3.5"), None),
        (GOOD + "\nStyle: 2", None),
        ("a: 5\nb: 4", None),
        ("5\n4\n3", None),
        ("", None),
    ],
)
def test_a_strict_reader(reply, marks):
    assert imgedit.marks(reply) == marks


def test_lmms_takes_the_last_three():
    assert imgedit.lmms_marks(GOOD + "\nAverage: 1") == (4, 3, 1)
    assert imgedit.lmms_marks("5\n4\nsee 3") == (5, 4, 3)
    assert imgedit.lmms_marks("a: 1") == (0, 0, 0)


@given(st.text("ab:, \n0123456789/.*\u00b2\uff1a", max_size=60))
def test_every_reply_is_taken_somehow(reply):
    found = imgedit.average(reply)
    assert (found.value is None) == (found.status != imgedit.OK)
    assert all(math.isfinite(x) for x in imgedit.lmms_marks(reply))
    marks = imgedit.marks(reply)
    assert marks is None or all(1 <= mark <= 5 for mark in marks)


def test_means_over_types_and_over_edits():
    scores = imgedit.averages({"1": GOOD, "2": "a: 1", "3": "nothing", "4": "a: 2", "9": "a: 5"})
    assert scores == {"1": 4.0, "2": 1.0, "4": 2.0, "9": 5.0}
    means = imgedit.type_means(scores, {"1": "add", "2": "add", "3": "add", "4": "style"})
    assert means == {"add": 2.5, "style": 2.0}
    assert imgedit.overall(scores) == 3.0  # that of the unknown key counts here
    assert imgedit.mean_of_types(means) == 2.25
    assert imgedit.overall({}) is None and math.isnan(imgedit.mean_of_types({}))
