"""Metrics and what their intervals are drawn from."""

import hypothesis_cases
import numpy as np
import pytest
from hypothesis import strategies

from srum_jax.evals.scorers import metrics

NAN = float("nan")


def test_groups_count_alike_or_by_their_weights():
    values, groups = [1, 0, 0, 1, NAN], ["a", "a", "a", "b", "b"]
    assert metrics.mean(values).number == pytest.approx(2 / 4)
    assert metrics.mean_of_groups(values, groups).number == pytest.approx((1 / 3 + 1) / 2)
    weighted = metrics.mean_of_groups(values, groups, 100, {"a": 3.0, "b": 1.0})
    assert weighted.number == pytest.approx(100 * (3 / 3 + 1) / 4)


def test_a_group_of_nothing_is_left_out_with_its_weight():
    metric = metrics.mean_of_groups([1, 0, NAN], ["a", "b", "c"], weights={"a": 1, "b": 3, "c": 9})
    assert metric.number == pytest.approx(0.25)
    assert np.isnan(metrics.mean_of_groups([NAN], ["a"], weights={"a": 1}).number)


@hypothesis_cases.counts(quick=100, slow=hypothesis_cases.MANY)
def test_sizes_of_groups_as_weights_give_the_plain_mean(cases):
    def check(pairs):
        values, groups = zip(*pairs, strict=True)
        weights = {name: float(groups.count(name)) for name in groups}
        found = metrics.mean_of_groups(values, groups, weights=weights)
        assert found.number == pytest.approx(np.mean(values))
        columns = np.stack([found.columns, found.columns])  # many sums at once
        assert found.value(columns.sum(axis=1)) == pytest.approx(np.mean(values))

    pair = strategies.tuples(strategies.integers(0, 100), strategies.sampled_from("abc"))
    hypothesis_cases.run(check, cases, pairs=strategies.lists(pair, min_size=1, max_size=20))
