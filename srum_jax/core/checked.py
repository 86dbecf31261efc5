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
            fields[key] = value(kind, values[key], path + key, problems)
    return cls(**fields) if len(problems) == before else None


def plain(value: Any) -> Any:
    """Numbers and arrays of NumPy and JAX as Python's numbers and lists; all else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def value(kind: Any, given: Any, path: str, problems: list[str]) -> Any:
    """What is given as `kind`: int, float, bool, str, Literal, a tuple of them, or one of these
    Annotated with constraints; a line in `problems` where it is none, which `path` begins."""
    given = plain(given)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        before = len(problems)
        given = value(args[0], given, path, problems)
        if len(problems) == before:
            found = (constraint.problem(given) for constraint in args[1:])
            problems += [f"{path} {text}" for text in found if text]
    elif origin is Literal:
        if given not in args:
            problems.append(f"{path} = {quoted(given)} is not known: {suggest(given, args)}")
    elif origin is tuple:
        several = args[-1] is Ellipsis
        if not isinstance(given, (tuple, list)) or not (several or len(given) == len(args)):
            count = "any number of" if several else len(args)
            problems.append(f"{path} must be a tuple of {count} values, got {quoted(given)}")
            return None
        kinds, found = args[:1] * len(given) if several else args, []
        made = tuple(
            value(k, v, f"{path}[{i}]", found)
            for i, (k, v) in enumerate(zip(kinds, given, strict=True))
        )
        problems += found[:_SHOWN]
        if len(found) > _SHOWN:
            problems.append(f"{path}: {len(found) - _SHOWN} more of its values are wrong")
        return made
    elif type(given) is not kind and not (kind is float and type(given) is int):
        problems.append(f"{path} must be {kind.__name__}, got {quoted(given)}")
    elif kind is float:
        if abs(given) <= sys.float_info.max:  # neither not a number nor an integer beyond floats
            return float(given)
        problems.append(f"{path} must be a finite number, got {quoted(given)}")
    return given


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
