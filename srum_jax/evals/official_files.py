"""Reading the official data files of benchmarks: every fault named with file, line and field.

Owns how rows, fields and pictures are taken out of files that others wrote. Nothing is guessed: a
field of another type, an id that is there twice and a picture that is missing are refused, all of
a file's faults at once.
"""

import dataclasses
import pathlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from srum_jax.core import files
from srum_jax.core.errors import BadInput, quoted
from srum_jax.data import images, records

WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", list: "list"}
WORDS |= {dict: "object"}


@dataclasses.dataclass(frozen=True)
class Row:
    """An object of a file, and where it stands, for messages."""

    value: dict[str, Any]
    where: str

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """The field `name`, which must be of `kind`; a default that is not None may stand for one
        that is missing or null. Whole numbers are numbers too. Raises BadInput."""
        value = self.value.get(name)
        if value is None and default is not None:
            return default
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            found = "is missing" if name not in self.value else f"is {quoted(value)}"
            raise BadInput(f"{self.where}: {quoted(name)} {found}; it must be a {WORDS[kind]}")
        return value

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        """The text field `name`, one of `allowed` whatever its case. Raises BadInput."""
        value = self.get(name, str)
        for one in allowed:
            if value.strip().lower() == one.lower():
                return one
        raise BadInput(f"{self.where}: {quoted(name)} is {quoted(value)}; {' or '.join(allowed)}")

    def rows(self, name: str) -> list["Row"]:
        """The field `name`, a list of objects. Raises BadInput."""
        return listed(self.get(name, list), f"{self.where}, {name}")


def file(folder: epath.PathLike, *names: str) -> epath.Path:
    """The file in `folder` that has one of the names; a path of a file is that file.

    Raises BadInput naming what was looked for.
    """
    folder = epath.Path(folder)
    if folder.is_file():
        return folder
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise BadInput(f"{folder}: holds no {' or '.join(names)}")


def text(path: epath.PathLike) -> str:
    """What a file says. Raises BadInput naming it where it is no UTF-8."""
    try:
        return epath.Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise BadInput(f"{path}: no UTF-8 text: {e}") from e


def json_lines(path: epath.PathLike) -> list[Row]:
    """The objects of a file with one a line, whatever its name ends with. Raises BadInput."""
    rows, faults = [], []
    for record in records.JsonLines(path):
        where, value = f"{path}, line {record.line}", record.value
        if isinstance(value, dict):
            rows.append(Row(value, where))
        else:
            what = value if isinstance(value, ValueError) else f"no object, but {quoted(value)}"
            faults.append(f"{where}: {what}")
    return _some(rows, faults, path)


def json_rows(path: epath.PathLike, *inside: str) -> list[Row]:
    """The objects of a JSON file's list, which is the whole file or stands under one of the keys
    `inside`. Raises BadInput."""
    value = files.read_json(path)
    for name in inside:
        if isinstance(value, dict) and name in value:
            value = value[name]
            return _some(listed(value, f"{path}, {name}"), [], path)
    if not isinstance(value, list):
        wanted = " or ".join(["a list", *(f"an object with a list {quoted(n)}" for n in inside)])
        raise BadInput(f"{path}: must hold {wanted}, got {quoted(value)}")
    return _some(listed(value, str(path)), [], path)


def json_items(path: epath.PathLike) -> list[tuple[str, Row]]:
    """(key, object) of a JSON file that is an object of objects. Raises BadInput."""
    value = files.read_object(path)
    rows = listed(list(value.values()), str(path), [f"item {quoted(key)}" for key in value])
    _some(rows, [], path)
    return list(zip(value, rows, strict=True))


def listed(value: Any, where: str, names: Sequence[str] | None = None) -> list[Row]:
    """A list of objects as rows; names: of its items, by default their numbers from 1."""
    if not isinstance(value, list):
        raise BadInput(f"{where}: must be a list, got {quoted(value)}")
    names = names or [f"item {i}" for i in range(1, len(value) + 1)]
    faults = [
        f"{where}, {name}: must be an object, got {quoted(one)}"
        for name, one in zip(names, value, strict=True)
        if not isinstance(one, dict)
    ]
    _refuse(faults, f"{where} cannot be used")
    return [Row(one, f"{where}, {name}") for name, one in zip(names, value, strict=True)]


def _some(rows: list[Row], faults: Sequence[str], path: epath.PathLike) -> list[Row]:
    _refuse(faults, f"{path} cannot be used")
    if not rows:
        raise BadInput(f"{path}: holds nothing to ask")
    return rows


def _refuse(faults: Sequence[str], what: str) -> None:
    try:
        records.refuse(faults, what)
    except ValueError as e:
        raise BadInput(str(e)) from e


def distinct(ids: Iterable[Hashable], rows: Sequence[Row], field: str) -> None:
    """Raises BadInput naming the first id that two rows have."""
    seen: dict[Hashable, Row] = {}
    for id, row in zip(ids, rows, strict=True):
        if id in seen:
            raise BadInput(f"{row.where}: {field} {id!r} stands at {seen[id].where} too")
        seen[id] = row


def same_ids(first: Iterable[Hashable], second: Iterable[Hashable], what: str) -> None:
    """Raises BadInput with examples where two files do not speak of the same ids; what: of both."""
    first, second = dict.fromkeys(first), dict.fromkeys(second)
    faults = [
        f"{len(left)} stand in the {place} alone, such as {', '.join(map(str, left[:3]))}"
        for place, left in (
            ("first", [x for x in first if x not in second]),
            ("second", [x for x in second if x not in first]),
        )
        if left
    ]
    if faults:
        raise BadInput(f"{what}: the ids do not match: {'; '.join(faults)}")


def pictures(
    folder: epath.PathLike, names: Sequence[str], rows: Sequence[Row], *places: str
) -> list[epath.Path]:
    """Where the named pictures lie: in `folder` or in the first of its sub-folders `places` that
    has them. No name may lead out of the folder.

    Raises BadInput listing those that are missing.
    """
    folder = epath.Path(folder)
    folder, inside = folder.parent if folder.is_file() else folder, _Inside()
    known: dict[str, epath.Path | None] = {}
    faults, found = [], []
    for name, row in zip(names, rows, strict=True):
        if name not in known:
            known[name] = None if leads_out(name) else _first(folder, name, places, inside)
        if known[name] is None:
            why = "leads out of the folder" if leads_out(name) else "is not there"
            faults.append(f"{row.where}: the picture {quoted(name)} {why}")
        found.append(known[name])
    _refuse(faults, f"{folder}: looked in it and in {', '.join(places) or 'it alone'}")
    return found


def leads_out(name: str) -> bool:
    """Whether a path from a file names a place outside the folder it is meant in."""
    path = pathlib.PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0]


def _first(
    folder: epath.Path, name: str, places: Sequence[str], inside: "_Inside"
) -> epath.Path | None:
    for place in ("", *places):
        path = folder / place / name if place else folder / name
        if inside.has(path):
            return path
    return None


@dataclasses.dataclass(frozen=True)
class _Inside:
    """Which files there are; of a bucket, where each would be a request, by one listing a folder.

    names: of the folders listed so far.
    """

    names: dict[epath.Path, frozenset[str]] = dataclasses.field(default_factory=dict)

    def has(self, path: epath.Path) -> bool:
        if not files.is_remote(path):
            return path.is_file()
        parent = path.parent
        if parent not in self.names:
            there = parent.iterdir() if parent.is_dir() else ()
            self.names[parent] = frozenset(one.name for one in there)
        return path.name in self.names[parent]


def load_pictures(paths: Iterable[epath.Path]) -> Iterator[np.ndarray]:
    """The pictures uint8 [H,W,3], read as they are asked for. Raises ValueError naming the file."""
    return map(images.load, paths)
