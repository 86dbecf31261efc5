"""Metrics that many suites share, each with what its interval needs.

Owns the ways from a value a unit to a `Metric`: a mean, a ratio of sums, a mean of group means,
plain or weighted.
"""

import dataclasses
import functools
import operator
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from srum_jax.evals.suite import Metric, SumFunction


@dataclasses.dataclass(frozen=True)
class Ratio:
    """`scale` times the quotient of two sums."""

    scale: float = 1.0

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        """Sums [..., 2] to [...]; NaN where the second is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.scale * np.where(sums[..., 1] != 0, sums[..., 0] / sums[..., 1], np.nan)


@dataclasses.dataclass(frozen=True)
class MeanOfRatios:
    """`scale` times the mean of the quotients of G pairs of sums; groups that nothing was drawn of
    are left out. weights: of the groups, above 0; () for the plain mean."""

    scale: float = 1.0
    weights: tuple[float, ...] = ()

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        """Sums [..., 2 G], first all numerators, then all denominators, to [...]."""
        groups = sums.shape[-1] // 2
        above, below = sums[..., :groups], sums[..., groups:]
        there = below != 0
        means = np.divide(above, below, out=np.zeros_like(above), where=there)
        weights = there * np.asarray(self.weights or (1.0,))
        counted = weights.sum(axis=-1)
        total = (weights * means).sum(axis=-1)
        share = np.divide(total, counted, out=np.full(total.shape, np.nan), where=counted != 0)
        return self.scale * share


@dataclasses.dataclass(frozen=True)
class Scaled:
    """`scale` times another number from the same sums."""

    value: SumFunction
    scale: float

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        """Sums [..., K] to [...]."""
        return self.scale * self.value(sums)


def scaled(metric: Metric, scale: float) -> Metric:
    """`scale` times a metric."""
    return dataclasses.replace(metric, value=Scaled(metric.value, scale))


def added(values: Iterable[float]) -> float:
    """The sum, one value after the other, as official programs had it on Pythons before 3.12, whose
    `sum` keeps the roundings: printed numbers are then the same on every Python."""
    return functools.reduce(operator.add, values, 0.0)


def mean(values: Sequence[float], scale: float = 1.0) -> Metric:
    """`scale` times the mean of a value a unit, [N]; a NaN is left out of it."""
    values = np.asarray(values, np.float64)
    there = ~np.isnan(values)
    return Metric(np.stack([np.where(there, values, 0), there], axis=-1), Ratio(scale))


def ratio(above: Sequence[float], below: Sequence[float], scale: float = 1.0) -> Metric:
    """`scale` times sum(above) / sum(below), [N] each."""
    return Metric(np.stack([above, below], axis=-1).astype(np.float64), Ratio(scale))


def mean_of_groups(
    values: Sequence[float],
    groups: Sequence[Hashable],
    scale: float = 1.0,
    weights: Mapping[Hashable, float] | None = None,
) -> Metric:
    """`scale` times the mean of the means of groups: a value and a group a unit, [N] each; a NaN is
    left out of its group, and a group that has nothing else of the whole. weights: of every group,
    above 0, which need not sum to 1; None for the plain mean."""
    values = np.asarray(values, np.float64)
    there = ~np.isnan(values)
    names = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    member = np.zeros((len(values), len(names)))
    member[np.arange(len(values)), [names[name] for name in groups]] = there
    columns = np.concatenate([member * np.where(there, values, 0)[:, None], member], axis=-1)
    of_groups = () if weights is None else tuple(float(weights[name]) for name in names)
    return Metric(columns, MeanOfRatios(scale, of_groups))
