"""Frozen dataclasses from plain values: keys, types and constraints are read from annotations.

What is wrong is told all at once, a line a key.
"""

import dataclasses
import difflib
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from srum_jax.core.errors import clipped, quoted

_SHOWN = 3  # wrong values of a tuple


def build(cls: type, values: Any, path: str, problems: list[str]) -> Any:
    """An instance of `cls`, or None with a line in `problems` for each wrong key below `path`."""
    if not isinstance(values, Mapping):
        problems.append(f"{path.rstrip('.')} must be a section with keys, got {quoted(values)}")
        return None
    hints = typing.get_type_hints(cls, include_extras=True)
    before = len(problems)
    problems += [unknown_key(path, key, hints) for key in values if key not in hints]
    fields = {}
    for key, kind in hints.items():
        if key not in values:
            problems.append(f"{path}{key} is missing")
        elif dataclasses.is_dataclass(kind):
            fields[key] = build(kind, values[key], f"{path}{key}.", problems)
        else:
            fields[key] = _value(kind, values[key], path + key, problems)
    return cls(**fields) if len(problems) == before else None


def plain(value: Any) -> Any:
    """Numbers and arrays of NumPy and JAX as Python's numbers and lists; all else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _value(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """`value` as `kind`: int, float, bool, str, Literal, a tuple of them, or one of these Annotated
    with constraints."""
    value = plain(value)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        before = len(problems)
        value = _value(args[0], value, path, problems)
        if len(problems) == before:
            found = (constraint.problem(value) for constraint in args[1:])
            problems += [f"{path} {text}" for text in found if text]
    elif origin is Literal:
        if value not in args:
            problems.append(f"{path} = {quoted(value)} is not known: {suggest(value, args)}")
    elif origin is tuple:
        several = args[-1] is Ellipsis
        if not isinstance(value, (tuple, list)) or not (several or len(value) == len(args)):
            count = "any number of" if several else len(args)
            problems.append(f"{path} must be a tuple of {count} values, got {quoted(value)}")
            return None
        kinds, found = args[:1] * len(value) if several else args, []
        made = tuple(
            _value(k, v, f"{path}[{i}]", found)
            for i, (k, v) in enumerate(zip(kinds, value, strict=True))
        )
        problems += found[:_SHOWN]
        if len(found) > _SHOWN:
            problems.append(f"{path}: {len(found) - _SHOWN} more of its values are wrong")
        return made
    elif type(value) is not kind and not (kind is float and type(value) is int):
        problems.append(f"{path} must be {kind.__name__}, got {quoted(value)}")
    elif kind is float:
        if abs(value) <= sys.float_info.max:  # neither not a number nor an integer beyond floats
            return float(value)
        problems.append(f"{path} must be a finite number, got {quoted(value)}")
    return value


def key_names(cls: type, path: str = "") -> Iterator[str]:
    """The dotted names of all keys of a dataclass and of those inside it."""
    for key, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from key_names(kind, f"{path}{key}.")
        else:
            yield path + key


def unknown_key(path: str, key: Any, known: Iterable[str], elsewhere: Iterable[str] = ()) -> str:
    """What is said of a key that the section at `path` lacks; `elsewhere` may have been meant."""
    hint = f"did you mean {' or '.join(elsewhere)}?" if elsewhere else suggest(key, known)
    return f'unknown key "{path}{clipped(str(key))}": {hint}'


def suggest(name: Any, known: Iterable[str]) -> str:
    """A sentence that names the closest of `known`, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(clipped(str(name)), known, n=1, cutoff=0.5)
    return f'did you mean "{close[0]}"?' if close else f"known: {', '.join(known)}"
