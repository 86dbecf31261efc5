"""What a value of the config may be beyond its type; written beside the key.

A key's annotation is `Annotated[type, constraint, ...]`. The method `problem` of a constraint says
what is wrong with a value in the words that follow the key's name, or returns None;
`core/checked.py` asks it.
"""

import dataclasses
import math
import re
import urllib.parse
from typing import Annotated

from srum_jax.core import places
from srum_jax.core.errors import quoted


@dataclasses.dataclass(frozen=True)
class Above:
    """A number above `limit`."""

    limit: float

    def problem(self, value: float) -> str | None:
        return None if value > self.limit else f"must be above {self.limit}, got {quoted(value)}"


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """A number from `limit` on."""

    limit: float

    def problem(self, value: float) -> str | None:
        if value >= self.limit:
            return None
        rule = f"be at least {self.limit}" if self.limit else "not be negative"
        return f"must {rule}, got {quoted(value)}"


@dataclasses.dataclass(frozen=True)
class Below:
    """A number below `limit`."""

    limit: float

    def problem(self, value: float) -> str | None:
        return None if value < self.limit else f"must be below {self.limit}, got {quoted(value)}"


@dataclasses.dataclass(frozen=True)
class Between:
    """A number from `low` to `high`."""

    low: float
    high: float

    def problem(self, value: float) -> str | None:
        if self.low <= value <= self.high:
            return None
        return f"must lie in [{self.low}, {self.high}], got {quoted(value)}"


@dataclasses.dataclass(frozen=True)
class Devices:
    """A number of devices, or -1: those that are left."""

    def problem(self, value: int) -> str | None:
        if value >= 1 or value == -1:
            return None
        return f"must be a number of devices or -1 (the rest), got {quoted(value)}"


@dataclasses.dataclass(frozen=True)
class Distinct:
    """A tuple without repeats, of at least `count` values."""

    count: int = 0

    def problem(self, value: tuple) -> str | None:
        if len(set(value)) == len(value) >= self.count:
            return None
        few = f" and at least {self.count}" if self.count else ""
        return f"must be distinct{few}, got {quoted(value)}"


@dataclasses.dataclass(frozen=True)
class LimitsOfLoss:
    """A tuple of "NAME:POINTS", POINTS at most 0: how much of NAME may be lost."""

    def problem(self, value: tuple) -> str | None:
        try:
            found = limits_of_loss(value)
        except ValueError as e:
            return str(e)
        if len(found) < len(value):
            return f"must name each once, got {quoted(value)}"
        return None


def limits_of_loss(values: tuple[str, ...]) -> dict[str, float]:
    """{"edits": -3.0} of ("edits:-3",). Raises ValueError, in words that follow a key's name."""
    found = {}
    for value in values:
        name, _, points = value.rpartition(":")
        try:
            found[name] = float(points)
        except ValueError:
            found[name] = math.nan
        if not name or not -math.inf < found[name] <= 0:
            raise ValueError(
                'must hold "NAME:POINTS", points of at most 0 as in "edits:-3", got '
                f"{quoted(value)}"
            )
    return found


@dataclasses.dataclass(frozen=True)
class Ascending:
    """A tuple in which no value is below the one before it."""

    def problem(self, value: tuple) -> str | None:
        up = list(value) == sorted(value)
        return None if up else f"must be low <= high, got {quoted(value)}"


@dataclasses.dataclass(frozen=True)
class Variable:
    """The name of an environment variable, or "". What is none may be a secret: it is not shown."""

    def problem(self, value: str) -> str | None:
        if not value or re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", value):
            return None
        return (
            "must be the name of an environment variable, in capitals, such as JUDGE_KEY; "
            "the key itself stands in that variable"
        )


@dataclasses.dataclass(frozen=True)
class WebAddress:
    """An http or https address without a user, a query or a fragment, or "". It is not shown."""

    def problem(self, value: str) -> str | None:
        plain = value.isascii() and value.isprintable() and " " not in value
        try:
            url = urllib.parse.urlsplit(value)
            whole = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:
            whole = False
        if not value or (whole and plain and not (url.username or url.query or url.fragment)):
            return None
        return (
            "must be http://host[:port]/path or https://…, without a user, a query or a fragment, "
            'such as "http://localhost:8000/v1"'
        )


@dataclasses.dataclass(frozen=True)
class Place:
    """A path on this machine or in a bucket, or ""."""

    def problem(self, value: str) -> str | None:
        problem = places.fault(value) if value else None
        return problem and f"must be a path: {problem}"


_COUNTS = Below(2**31)  # what int32 holds
PositiveInt = Annotated[int, Above(0), _COUNTS]
PositiveFloat = Annotated[float, Above(0)]
Share = Annotated[float, Above(0), Between(0, 1)]
NonNegativeInt = Annotated[int, AtLeast(0), _COUNTS]
Seed = Annotated[int, Between(0, 2**32 - 1)]  # keys of JAX are made of 32 bits
NonNegativeFloat = Annotated[float, AtLeast(0)]
Path = Annotated[str, Place()]
Url = Annotated[str, WebAddress()]
VariableName = Annotated[str, Variable()]
Fraction = Annotated[float, Between(0, 1)]
Decay = Annotated[float, AtLeast(0), Below(1)]  # of a moving average
DeviceCount = Annotated[int, Devices()]
