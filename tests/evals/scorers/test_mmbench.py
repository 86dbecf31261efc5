"""Rotations of MMBench's questions."""

import hypothesis_cases
from hypothesis import strategies as st

from srum_jax.evals.scorers import mmbench

rows = st.dictionaries(
    st.tuples(st.integers(0, 5), st.integers(0, 3)).map(lambda x: x[0] + x[1] * mmbench.ROTATION),
    st.booleans(),
)


def test_one_wrong_rotation_makes_a_question_wrong():
    right = {7: True, 1000007: True, 2000007: False, 8: True, 1000008: True}
    assert mmbench.circular(right) == {7: False, 8: True}
    assert mmbench.vanilla(right) == {7: True, 8: True}


def test_a_question_without_its_first_row_is_left_out():
    assert mmbench.circular({1000009: True}) == {} == mmbench.vanilla({1000009: True})


@hypothesis_cases.counts(quick=200, slow=hypothesis_cases.MANY)
def test_circular_is_never_better_than_vanilla(cases):
    def check(right):
        circular, vanilla = mmbench.circular(right), mmbench.vanilla(right)
        assert list(circular) == list(vanilla) == sorted(i for i in right if i < mmbench.ROTATION)
        assert all(vanilla[i] for i, one in circular.items() if one)

    hypothesis_cases.run(check, cases, right=rows)


def test_shares_of_groups():
    groups = {1: "x", 2: "x", 3: "y"}
    assert mmbench.by_group({1: True, 2: False, 3: True}, groups) == {"x": 0.5, "y": 1.0}
