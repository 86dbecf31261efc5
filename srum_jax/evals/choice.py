"""The choice among models by one rule, and an estimate of its gain that choosing does not flatter.

The rule: of those that gain on the target and lose no more than a floor allows on anything else,
the one that gains most. A gain is the difference to the base on the same units, a share of the
metric's highest value.

The gain of the chosen one on the data it was chosen by is too good: it is the largest of several.
So the units are cut into folds; for each fold the rule chooses by the others, and the fold measures
what it chose (cross-fitting). Each unit is measured once by a choice that did not see it: the mean
is the gain of choosing by as much data as the others hold, without that bias.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from srum_jax.evals import stats
from srum_jax.evals.suite import Metric

POINT = 0.01  # floors are given in points
ROUNDING = 1e-9  # 97 of 100 against 100 loses 3 points, no more
RULE = (
    "the largest gain on {target} on validation data among those that break no floor ({floors}); "
    "the base stays where there is none, or where the cross-fitted gain is surely below 0"
)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model to choose: what its target is worth, and what its floors are, {name: Metric} on the
    same units as the base's; empty where they are not measured."""

    target: Metric
    floors: Mapping[str, Metric] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A cross-fitted difference to the base with its 95 % interval; None: not defined. n: units."""

    diff: float
    ci95: tuple[float, float] | None
    n: int


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the rule says.

    chosen: place among the candidates, None for the base · gain, floors: cross-fitted; None and
    empty where nothing was there to choose · why: a sentence.
    """

    chosen: int | None
    gain: Estimate | None
    floors: Mapping[str, Estimate]
    why: str


@dataclasses.dataclass(frozen=True)
class Rule:
    """How models are chosen among.

    target: name of the metric that is to gain · floors: {name: least difference to the base that is
    allowed}, a share · folds: at least 2 · seed: of the cut.
    """

    target: str
    floors: Mapping[str, float]
    folds: int = 2
    seed: int = 0

    @property
    def words(self) -> str:
        """The rule as a sentence."""
        floors = ", ".join(f"{name} {_points(least)}" for name, least in self.floors.items())
        return RULE.format(target=self.target, floors=floors or "none is set")

    def cut(self, metric: Metric) -> np.ndarray:
        """Which fold each unit of a metric is in, int [N]: by chance, of equal sizes."""
        n = len(metric.columns)
        return np.random.default_rng(self.seed).permutation(n) % self.folds

    def worth_measuring(self, base: Candidate, target: Metric) -> bool:
        """Whether floors matter: by all of the data or all but one fold the model gains.

        What no choice can fall on needs no floors. To ask for a gain on all of the data alone would
        let each fold have a say in what is chosen for it.
        """
        fold = self.cut(base.target)
        parts = [np.ones(len(fold), bool), *(fold != one for one in range(self.folds))]
        return any(gain(target, base.target, part) > 0 for part in parts)

    def allowed(self, base: Candidate, one: Candidate, without: int | None = None) -> bool:
        """Whether a model gains and breaks no floor, by all data, or all but the fold `without`."""
        gains = self._gain(base.target, one.target, without) > 0
        return gains and all(self._keeps(name, base, one, without) for name in self.floors)

    def best(
        self, base: Candidate, several: Sequence[Candidate], without: int | None = None
    ) -> int | None:
        """Place of the allowed model that gains most, the first of such; None: no one is allowed.

        By all data, or all but the fold `without`.
        """
        gains = {
            i: self._gain(base.target, one.target, without)
            for i, one in enumerate(several)
            if self.allowed(base, one, without)
        }
        return max(gains, key=gains.__getitem__, default=None)

    def choose(self, base: Candidate, several: Sequence[Candidate]) -> Choice:
        """The model that the rule takes of `several`, those before others preferred, with what its
        choices gain."""
        chosen = self.best(base, several)
        taken = [self.best(base, several, without=fold) for fold in range(self.folds)]
        gained = self._crossfitted(base.target, [_of(several, i, base).target for i in taken])
        floors = {
            name: self._crossfitted(
                base.floors[name], [_of(several, i, base).floors[name] for i in taken]
            )
            for name in self.floors
            if name in base.floors
        }
        if chosen is None:
            return Choice(None, gained, floors, self._why_none(base, several))
        if gained.ci95 and gained.ci95[1] < 0:
            why = f"chosen by one part of the data, the models lose on another: {told(gained)}"
            return Choice(None, gained, floors, f"{why}; the base stays")
        allowed = sum(self.allowed(base, one) for one in several)
        why = f"gains most on {self.target} of {allowed} that gain and break no floor"
        return Choice(chosen, gained, floors, f"{why}; cross-fitted {told(gained)}")

    def _keeps(
        self, name: str, base: Candidate, one: Candidate, without: int | None = None
    ) -> bool:
        if name not in one.floors:
            return False
        lost = self._gain(base.floors[name], one.floors[name], without)
        return lost >= self.floors[name] - ROUNDING

    def _gain(self, base: Metric, one: Metric, without: int | None) -> float:
        rows = np.ones(len(base.columns), bool) if without is None else self.cut(base) != without
        return gain(one, base, rows)

    def _crossfitted(self, base: Metric, taken: Sequence[Metric]) -> Estimate:
        """taken: of each fold the metric of what was chosen without it."""
        fold = self.cut(base)
        rows = np.stack([one.columns for one in taken])[fold, np.arange(len(fold))]
        return estimate(dataclasses.replace(base, columns=rows), base)

    def _why_none(self, base: Candidate, several: Sequence[Candidate]) -> str:
        if not several:
            return "training left nothing to try: the base stays"
        if np.isnan(base.target.number):
            return f"nothing of what the base did could be scored on {self.target}: it stays"
        gaining = [one for one in several if self._gain(base.target, one.target, None) > 0]
        if not gaining:
            return f"none of {len(several)} gains on {self.target}: the base stays"
        broken = {
            name: sum(not self._keeps(name, base, one) for one in gaining) for name in self.floors
        }
        said = ", ".join(f"{name} {count} times" for name, count in broken.items() if count)
        return (
            f"each of the {len(gaining)} that gain on {self.target} breaks a floor ({said}): the "
            "base stays"
        )


def gain(one: Metric, base: Metric, rows: np.ndarray) -> float:
    """Difference of a metric to the base's by the units `rows`, bool [N]; NaN if not defined."""
    return float(
        one.value(one.columns[rows].sum(axis=0)) - base.value(base.columns[rows].sum(axis=0))
    )


def estimate(one: Metric, base: Metric, seed: int = 0) -> Estimate:
    """Difference of two metrics on the same units, paired, with its bootstrap interval."""
    width = base.columns.shape[1]
    sums = stats.resampled_sums(np.concatenate([one.columns, base.columns], axis=1), seed=seed)
    drawn = one.value(sums[:, :width]) - base.value(sums[:, width:])
    return Estimate(one.number - base.number, stats.percentiles(drawn), len(base.columns))


def told(one: Estimate) -> str:
    """An estimate in points, in words."""
    if np.isnan(one.diff):
        return "not known, as a part of the data has no scores"
    if one.ci95 is None:
        return f"{_points(one.diff)} points"
    return f"{_points(one.diff)} points ({_points(one.ci95[0])} to {_points(one.ci95[1])})"


def _points(share: float) -> str:
    return f"{share / POINT:+.1f}"


def _of(several: Sequence[Candidate], place: int | None, base: Candidate) -> Candidate:
    return base if place is None else several[place]
