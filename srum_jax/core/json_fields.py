"""Fields of a JSON file that a user gives: a missing, mistyped or absurd one is named with its
file."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from srum_jax.core.errors import BadInput, quoted
from srum_jax.core.files import read_object

MOST = {int: 2**31 - 1, float: 1e15}  # no size, id or scale is larger


@dataclasses.dataclass(frozen=True)
class Fields:
    """An object in a file. defaults: values of fields that may be absent or null · name: of its
    place there, "" of the whole or ending in a dot."""

    path: epath.Path
    values: Mapping[str, Any]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    name: str = ""

    @classmethod
    def of(cls, path: epath.Path, defaults: Mapping[str, Any] | None = None) -> "Fields":
        """The whole of a file. Raises ValueError where it holds no object."""
        return cls(path, read_object(path), defaults or {})

    def part(self, name: str) -> "Fields":
        """The object at a field; empty where there is none. Raises BadInput for another value."""
        found = self.values.get(name)
        found = {} if found is None else found
        if not isinstance(found, dict):
            raise self.wrong(name, f"must be an object, got {quoted(found)}")
        return Fields(self.path, found, name=f"{self.name}{name}.")

    def __call__(
        self, name: str, kind: type, default: Any = None, *, least: float = 1, most: float = 0
    ) -> Any:
        """The field or its default; a number of `least` to `most`. Raises BadInput."""
        value, default = self.values.get(name), self.defaults.get(name, default)
        if value is None and default is not None:
            return default
        if name not in self.values:
            raise self.wrong(name, "is missing")
        if kind is float and type(value) is int:
            value = float(min(max(value, -1e300), 1e300))
        if type(value) is not kind:
            raise self.wrong(name, f"must be {kind.__name__}, got {quoted(value)}")
        if kind in MOST and not least <= value <= (most or MOST[kind]):
            raise self.wrong(name, f"cannot be {quoted(value)}")
        return value

    def widths(self, name: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        """A list of up to 16 whole numbers to 1024. Raises BadInput."""
        found = self(name, list, default)
        good = 1 <= len(found) <= 16 and all(type(w) is int and 1 <= w <= 1024 for w in found)
        if not good:
            raise self.wrong(name, f"must be up to 16 whole numbers from 1, got {quoted(found)}")
        return tuple(found)

    def wrong(self, name: str, what: str) -> BadInput:
        """The error to raise for a field."""
        return BadInput(f"{self.path}: field {self.name + name!r} {what}")

    def only(self, **values: Any) -> None:
        """BadInput where a field is there and is not what it must be."""
        for name, value in values.items():
            found = self.values.get(name)
            if found is not None and found != value:
                raise self.wrong(name, f"must be {value!r} for such a model, got {quoted(found)}")
