"""Tables of benchmarks: TSV, CSV and Parquet files as rows, and pictures in their cells.

Owns what `official_files` has no reader for. A row of a TSV or CSV file has texts alone, empty
fields left out; one of a Parquet file has what its columns hold. pyarrow is needed for Parquet
alone.
"""

import ast
import base64
import binascii
import csv
import dataclasses
import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from srum_jax.core.errors import BadInput, quoted
from srum_jax.data import images, records
from srum_jax.evals.official_files import Row

_HELD = 4  # Parquet files whose column of pictures is kept


def tsv(path: epath.PathLike, *required: str) -> list[Row]:
    """The rows of a TSV file under its header, which must have the columns `required`.

    Raises BadInput naming the line of what cannot be read.
    """
    return _separated(path, required, "\t", "TSV")


def comma_separated(path: epath.PathLike, *required: str, total: str = "") -> list[Row]:
    """As `tsv`, of a CSV file; total: how a line begins that sums others up and is no row."""
    return _separated(path, required, ",", "CSV", total)


def _separated(
    path: epath.PathLike, required: Sequence[str], delimiter: str, kind: str, total: str = ""
) -> list[Row]:
    path, rows, faults = epath.Path(path), [], []
    csv.field_size_limit(images.MAX_FILE_BYTES)
    with path.open("rb") as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        reader = csv.reader(text, delimiter=delimiter)
        try:
            header = [name.strip() for name in next(reader, [])]
            if missing := [name for name in required if name not in header]:
                raise BadInput(
                    f"{path}, line 1: no column {', '.join(missing)}; it has {', '.join(header)}"
                )
            while True:
                line = reader.line_num + 1
                if (values := next(reader, None)) is None:
                    break
                if total and values and values[0] == total:
                    continue
                where = f"{path}, line {line}"
                if len(values) != len(header):
                    faults.append(f"{where}: {len(values)} fields, the header has {len(header)}")
                named = {k: v for k, v in zip(header, values, strict=False) if v}
                rows.append(Row(named, where))
        except (csv.Error, UnicodeDecodeError) as e:
            raise BadInput(f"{path}, line {reader.line_num + 1}: not {kind} in UTF-8 ({e})") from e
    _refuse(faults, f"{path} cannot be used")
    if not rows:
        raise BadInput(f"{path}: holds nothing to ask")
    return rows


def parquet(path: epath.PathLike, *columns: str) -> list[Row]:
    """The rows of a Parquet file; the bytes of pictures are in them.

    columns: those that are read, where the file has them; none: all. Raises BadInput without
    pyarrow, and for a file that is none.
    """
    path = epath.Path(path)
    with path.open("rb") as file, _readable(path):
        opened = _pyarrow(path).ParquetFile(file)
        names = [name for name in opened.schema_arrow.names if name in columns or not columns]
        found = opened.read(columns=names).to_pylist()
    if not found:
        raise BadInput(f"{path}: holds nothing to ask")
    return [Row(value, f"{path}, row {i}") for i, value in enumerate(found, 1)]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A picture in a Parquet file: row from 0, and column."""

    path: epath.Path
    row: int
    column: str

    def load(self) -> np.ndarray:
        """Its pixels, uint8 [H,W,3]. Raises ValueError naming row and column."""
        name = f"{self.path}, row {self.row + 1}, {self.column}"
        value = picture_bytes(_column(self.path, self.column)[self.row].as_py())
        return images.decode(value or b"", name=name)


def picture_bytes(value: Any) -> bytes | None:
    """The bytes of a picture in a cell: themselves, or under "bytes"; None where there is none."""
    value = value.get("bytes") if isinstance(value, dict) else value
    return value if isinstance(value, bytes) and value else None


@functools.lru_cache(_HELD)
def _column(path: epath.Path, column: str) -> Any:
    with path.open("rb") as file, _readable(path):
        return _pyarrow(path).read_table(file, columns=[column]).column(column)


def _readable(path: epath.Path) -> Any:
    return images.readable(str(path), "Parquet file")


def _pyarrow(path: epath.Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as e:
        raise BadInput(
            f'{path}: Parquet files need pyarrow: pip install "srum_jax[parquet]"'
        ) from e
    return pyarrow.parquet


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A picture as base64 in a text file, and where it stands."""

    text: str
    where: str

    def load(self) -> np.ndarray:
        """Its pixels, uint8 [H,W,3]. Raises ValueError naming where it stands."""
        try:
            data = base64.b64decode(self.text, validate=True)
        except (binascii.Error, ValueError) as e:
            raise BadInput(f'{self.where}: "image" is no base64 ({e})') from e
        return images.decode(data, name=f"{self.where}, image")


def texts(row: Row, name: str) -> list[str]:
    """The field `name`: a list of texts, or such a list as Python writes it, in a text.

    Raises BadInput.
    """
    value = row.value.get(name)
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as e:
            raise BadInput(f"{row.where}: {quoted(name)} is {quoted(value)}, no list") from e
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        raise BadInput(
            f"{row.where}: {quoted(name)} is {quoted(value)}; it must be a list of texts"
        )
    return list(value)


def _refuse(faults: list[str], what: str) -> None:
    try:
        records.refuse(faults, what)
    except ValueError as e:
        raise BadInput(str(e)) from e
