import math

import hypothesis_cases
import pytest
from hypothesis import strategies

from srum_jax.evals.scorers import yes_no


@pytest.mark.parametrize(
    "reply, llava, vlmevalkit, clear",
    [
        *[("Yes.", "yes", "Yes", "yes"), ("No", "no", "No", "no"), ("NO", "yes", "No", "no")],
        *[("", "yes", "Unknown", None), ("**No**", "yes", "Unknown", "no")],
        *[("nobody", "yes", "Unknown", None), ("yes and no", "no", "Unknown", None)],
        *[("It is. No.", "yes", "No", "no"), ("I do not think so", "no", "Unknown", None)],
        *[("No,thanks", "yes", "No", "no"), ("No.Yes", "no", "Unknown", None)],
        *[("не", "yes", "Unknown", None), ("no" * 50_000, "yes", "Unknown", None)],
    ],
)
def test_the_same_reply_in_every_reading(reply, llava, vlmevalkit, clear):
    assert yes_no.llava(reply) == llava
    assert yes_no.vlmevalkit(reply) == vlmevalkit
    assert yes_no.clear(reply) == clear


def test_numbers_of_a_confusion():
    counts = yes_no.confusion(["yes", "yes", "no", "no"], ["yes", "no", "no", "yes"])
    assert counts == yes_no.Confusion(1, 1, 1, 1)
    assert set(counts.numbers().values()) == {0.5}
    assert "TP\tFP\tTN\tFN\t\n1\t1\t1\t1\nAccuracy: 0.5\n" in counts.message()


def test_what_the_official_program_divides_by_zero_is_not_a_number():
    numbers = yes_no.confusion(["no", "no"], ["no", "no"]).numbers()
    assert numbers.pop("accuracy") == 1 and numbers.pop("yes_ratio") == 0
    assert all(map(math.isnan, numbers.values()))


def test_lmms_eval_takes_the_bare_word_alone():
    replies, labels = ["Yes.", " yes", "NO", "hm"], ["yes", "yes", "no", "yes"]
    assert yes_no.lmms_eval_pope(replies, labels) == {
        **{"accuracy": 0.5, "precision": 1.0, "recall": 1.0, "f1_score": 1.0},
        "yes_ratio": 0.75,  # of the labels
    }


def test_vlmevalkit_counts_the_unread_as_wrong_and_not_yes():
    numbers = yes_no.vlmevalkit_pope(["Yes.", "hm", "hm"], ["yes", "yes", "no"])
    assert numbers == pytest.approx(
        {"Overall": 200 / 3, "acc": 100 / 3, "precision": 100, "recall": 50}
    )


def test_nothing_read_is_zero_in_the_harnesses():
    assert yes_no.lmms_eval_pope(["hm"], ["no"])["f1_score"] == 0
    assert yes_no.vlmevalkit_pope(["hm"], ["no"])["Overall"] == 0


def test_pope_averages_the_files():
    by_file, means = yes_no.pope(["yes", "no", "yes"], ["yes", "yes", "no"], ["a", "b", "b"])
    assert by_file["a"]["accuracy"] == 1 and by_file["b"]["accuracy"] == 0
    assert means["accuracy"] == 0.5
    assert yes_no.pope([], [], []) == ({}, {})


def test_the_mean_f1_is_that_of_the_files():
    said, truth, files = [True, True, False, True], [True, False, True, True], ["a", "a", "b", "b"]
    metric = yes_no.mean_f1(said, truth, files)
    assert metric.number == pytest.approx((2 / 3 + 2 / 3) / 2)


@hypothesis_cases.counts(quick=1000, slow=hypothesis_cases.MANY)
def test_every_reply_is_read(cases):
    def check(reply):
        assert yes_no.llava(reply) in ("yes", "no")
        assert yes_no.vlmevalkit(reply) in ("Yes", "No", "Unknown")
        clear = yes_no.clear(reply)
        assert clear in ("yes", "no", None)
        if yes_no.lmms_eval(reply) in ("yes", "no"):
            assert clear == yes_no.lmms_eval(reply)

    words = strategies.sampled_from(["yes", "No", " ", ".", ",", "not", "NO", "\n", "e"])
    text = strategies.lists(words, max_size=6).map("".join) | strategies.text(max_size=8)
    hypothesis_cases.run(check, cases, reply=text)
