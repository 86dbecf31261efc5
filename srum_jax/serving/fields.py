"""The fields of a request, from untrusted JSON or a form: every wrong one is named."""

import dataclasses
import json
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from srum_jax.core import checked
from srum_jax.core.errors import quoted
from srum_jax.serving.refusals import Refusal

T = TypeVar("T")
_UNIONS = (types.UnionType, typing.Union)


def parsed(body: bytes) -> dict[str, Any]:
    """The object that a JSON body holds. Raises Refusal 400 for anything else."""
    try:
        found = json.loads(body, parse_constant=_no_number)
    except RecursionError:
        raise Refusal(400, "the body's JSON is nested too deeply") from None
    except ValueError as e:  # no JSON, no UTF-8, numbers of thousands of digits
        raise Refusal(400, f"the body is no JSON: {quoted(str(e), 200)[1:-1]}") from None
    if not isinstance(found, dict):
        raise Refusal(400, f"the body must be a JSON object, got {quoted(found)}")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def read(
    kind: type[T],
    given: Mapping[str, Any],
    *,
    ignored: Collection[str] = (),
    fixed: Mapping[str, tuple] = types.MappingProxyType({}),
) -> T:
    """An instance of a dataclass from what is given, null as left out.

    Fields without default must be there; those annotated Any are not looked at. ignored: names that
    change nothing here · fixed: names of what is not offered, with the values that ask for nothing
    else. Raises Refusal 400 naming the field.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    for key, value in given.items():
        if value is None or key in ignored:
            continue
        if key in fixed:
            if not any(value == one and type(value) is type(one) for one in fixed[key]):
                told = f"{key} = {quoted(value)} is not offered here: leave it out"
                raise Refusal(400, told, param=key, code="unsupported_value")
        elif key not in hints:
            told = checked.unknown_key("", key, hints)
            shown = quoted(key)[1:-1]
            raise Refusal(400, told, param=shown, code="unknown_parameter")
        else:
            values[key] = _value(hints[key], value, key)
    for field in dataclasses.fields(kind):
        optional = field.default is not field.default_factory
        if field.name not in values and not optional:
            told = f"{field.name} is missing"
            raise Refusal(400, told, param=field.name, code="missing_required_parameter")
    return kind(**values)


def _value(kind: Any, value: Any, name: str) -> Any:
    if kind is Any:
        return value
    if typing.get_origin(kind) in _UNIONS:  # `int | None`: null was left out before
        (kind,) = (one for one in typing.get_args(kind) if one is not type(None))
    problems: list[str] = []
    made = checked.value(kind, value, name, problems)
    if isinstance(made, str) and not problems:
        text(made, name)
    if problems:
        raise Refusal(400, problems[0], param=name, code="invalid_value")
    return made


def text(value: Any, name: str, *, empty: bool = True) -> str:
    """A text of whole characters. Raises Refusal 400 naming it."""
    if not isinstance(value, str):
        raise Refusal(400, f"{name} must be a text, got {quoted(value)}", param=name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refusal(400, f"{name} holds half of a surrogate pair", param=name) from None
    if not empty and not value.strip():
        raise Refusal(400, f"{name} is empty", param=name)
    return value


def of_form(kind: type, given: Mapping[str, str]) -> dict[str, Any]:
    """The texts of a form as the types that the dataclass wants, where they are such."""
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for key, value in given.items():
        wanted = hints.get(key, str)
        united = typing.get_origin(wanted) in _UNIONS
        kinds = typing.get_args(wanted) if united else (wanted,)
        found[key] = value
        if str not in kinds:
            try:
                found[key] = json.loads(value.lower(), parse_constant=_no_number)
            except (ValueError, RecursionError):
                pass  # it is told with its type
    return found
