"""The time left of a run: what is known, what is not, and nothing guessed."""

import io

import pytest

from srum_jax.core import console, time_left
from srum_jax.core.time_left import TimeLeft, words

HOUR = 3600.0


@pytest.fixture
def clock(monkeypatch):
    """Seconds, of which tests say how they go on; bars and stages read them."""
    now = [0.0]
    monkeypatch.setattr(time_left.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


@pytest.mark.parametrize(
    "takes, later, of_stage, said",
    [
        (None, (), None, "not known yet"),
        (None, (("train", None),), None, "not known yet"),
        (
            None,
            (("train", None), ("export", 60.0)),
            None,
            "about 1 min, and score, train not known yet",
        ),
        (None, (("train", HOUR),), 600.0, "about 1 h 10 min"),
        (
            HOUR,
            (("train", HOUR), ("score", None)),
            None,
            "about 2 h 00 min, and score not known yet",
        ),
        (HOUR, (("train", HOUR),), 600.0, "about 1 h 10 min"),  # what is measured counts
        (0.0, (("train", 0.0),), None, "less than a minute"),
    ],
)
def test_what_is_known_is_summed_and_what_is_not_is_named(clock, takes, later, of_stage, said):
    assert TimeLeft("score", takes, later).said(of_stage) == said


def test_a_stage_that_takes_as_long_as_before_is_done_after_that_and_never_negative(clock):
    left = TimeLeft("evaluate", HOUR, (("export", 600.0),))
    assert left.said() == "about 1 h 10 min"
    clock[0] += HOUR / 2
    assert left.said() == "about 40 min"
    clock[0] += HOUR
    assert left.said() == "about 10 min"


@pytest.mark.parametrize(
    "seconds, said",
    [
        (20, "less than a minute"),
        (100, "about 2 min"),
        (11_400, "about 3 h 10 min"),
        (50 * HOUR, "about 2 days 2 h"),
    ],
)
def test_seconds_in_words(seconds, said):
    assert words(seconds) == said


def bar(stage, clock, *, desc="score", done=10, of=100, initial=0):
    """What a bar shows after 10 s an item."""
    out = io.StringIO()
    with time_left.running(stage):
        shown = console.progress(total=of, initial=initial, desc=desc, file=out, mininterval=0)
        clock[0] += 10.0 * done
        shown.update(done)
        shown.refresh()
        shown.close()
    return out.getvalue().split("\r")[-1]


def test_the_bar_of_a_stage_says_the_time_left_of_the_run(clock):
    later = (("train", HOUR), ("evaluate", None))
    assert "in all: about 1 h 15 min, and 1 stage not known yet" in bar(
        TimeLeft("score", None, later), clock
    )
    # A resumed stage: what others did says nothing of its speed.
    assert "in all: about 1 h 05 min, and 1 stage not" in bar(
        TimeLeft("score", None, later), clock, initial=60
    )
    assert "in all" not in bar(TimeLeft("score", None, (("train", None),)), clock)
    assert "in all" not in bar(TimeLeft("score", HOUR), clock)


def test_another_bar_of_the_stage_says_nothing_of_its_end(clock):
    later = (("train", HOUR),)
    assert "in all: about 1 h 00 min, and 1 stage not known yet" in bar(
        TimeLeft("score", None, later), clock, desc="load"
    )
    assert "in all: about 1 h 28 min" in bar(TimeLeft("score", HOUR / 2, later), clock, desc="load")


def test_without_a_run_a_bar_is_a_bar(clock):
    shown = console.progress(total=3, desc="score", file=io.StringIO())
    assert "in all" not in str(shown)
    shown.close()
