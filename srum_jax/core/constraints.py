"""What a value of the config may be beyond its type; written beside the key.

A key's annotation is `Annotated[type, constraint, ...]`. The method `problem` of a constraint says
what is wrong with a value in the words that follow the key's name, or returns None;
`core/checked.py` asks it.
"""

import dataclasses
from typing import Annotated


@dataclasses.dataclass(frozen=True)
class Above:
    """A number above `limit`."""

    limit: float

    def problem(self, value: float) -> str | None:
        return None if value > self.limit else f"must be above {self.limit}, got {value}"


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """A number from `limit` on."""

    limit: float

    def problem(self, value: float) -> str | None:
        if value >= self.limit:
            return None
        rule = f"be at least {self.limit}" if self.limit else "not be negative"
        return f"must {rule}, got {value}"


@dataclasses.dataclass(frozen=True)
class Below:
    """A number below `limit`."""

    limit: float

    def problem(self, value: float) -> str | None:
        return None if value < self.limit else f"must be below {self.limit}, got {value}"


@dataclasses.dataclass(frozen=True)
class Between:
    """A number from `low` to `high`."""

    low: float
    high: float

    def problem(self, value: float) -> str | None:
        if self.low <= value <= self.high:
            return None
        return f"must lie in [{self.low}, {self.high}], got {value}"


@dataclasses.dataclass(frozen=True)
class Devices:
    """A number of devices, or -1: those that are left."""

    def problem(self, value: int) -> str | None:
        if value >= 1 or value == -1:
            return None
        return f"must be a number of devices or -1 (the rest), got {value}"


@dataclasses.dataclass(frozen=True)
class Distinct:
    """A tuple without repeats, of at least `count` values."""

    count: int = 0

    def problem(self, value: tuple) -> str | None:
        if len(set(value)) == len(value) >= self.count:
            return None
        few = f" and at least {self.count}" if self.count else ""
        return f"must be distinct{few}, got {value}"


@dataclasses.dataclass(frozen=True)
class Ascending:
    """A tuple in which no value is below the one before it."""

    def problem(self, value: tuple) -> str | None:
        return None if list(value) == sorted(value) else f"must be low <= high, got {value}"


PositiveInt = Annotated[int, Above(0)]
PositiveFloat = Annotated[float, Above(0)]
NonNegativeInt = Annotated[int, AtLeast(0)]
NonNegativeFloat = Annotated[float, AtLeast(0)]
Fraction = Annotated[float, Between(0, 1)]
Decay = Annotated[float, AtLeast(0), Below(1)]  # of a moving average
DeviceCount = Annotated[int, Devices()]
