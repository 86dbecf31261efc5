"""Records of text files with the lines they stand on, and what becomes of the faulty ones.

A file is .txt (a text a line), .jsonl (a JSON value a line), .json (a list of values) or .csv (a
header, then RFC 4180 records). Lines end as any system ends them: LF, CR LF or CR; in .txt also
where Unicode must break a line (VT, FF, NEL, U+2028, U+2029), which a JSON text may hold. A faulty
record never ends the reading: it is kept as a `Reject`, and `check_limit` says whether there are
too many. Texts are UTF-8.
"""

import array
import csv
import dataclasses
import functools
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from srum_jax.core import files
from srum_jax.core.errors import listed, quoted

SUFFIXES = (".txt", ".json", ".jsonl", ".csv")
MAX_SHOWN = 10  # faults listed in one message
MAX_TEXT = 2000  # characters of a faulty record that are kept
BLOCK, KEPT_BLOCKS = 2**20, 8  # bytes of a .jsonl file that are read at once, how many are kept
NOT_UTF8 = "not UTF-8 text; save the file as UTF-8"
_ENDS = re.compile("\r\n?|[\n\v\f\x85\u2028\u2029]")


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """A record: the line it starts on (from 1), its value, or the ValueError it gave, its text."""

    line: int
    value: Any
    text: str


@dataclasses.dataclass(frozen=True)
class Reject:
    """A record that cannot be used; `error` names the field."""

    file: str
    line: int
    error: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.error}"


def reject(file: epath.PathLike, record: FileRecord, error: Exception | str) -> Reject:
    """`record` of `file` as a Reject."""
    text = record.text.encode("utf-8", "backslashreplace").decode()
    return Reject(str(file), record.line, str(error), text[:MAX_TEXT])


def usable_text(value: Any, where: str) -> str:
    """`value` with single spaces. ValueError naming `where` where it is no text or a broken one."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no text in the {where}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):  # what UTF-8 cannot write
        raise ValueError(f"half a character in the {where}: {quoted(value)}")
    if "\0" in value:
        raise ValueError(f"a NUL character in the {where}; text files have none")
    return " ".join(value.split())


def write_rejects(path: epath.PathLike, rejects: Sequence[Reject]) -> None:
    """Writes {"file", "line", "error", "text"} a line; removes the file where there are none."""
    path = epath.Path(path)
    if not rejects:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(dataclasses.asdict(r), ensure_ascii=False) + "\n" for r in rejects)
    files.write_text(path, "".join(lines))


def check_limit(rejects: Sequence[Reject], total: int, limit: float, what: str) -> None:
    """Raises ValueError, listing the first rejects, where there are more than `limit` allows.

    limit: below 1 a share of the `total` records, from 1 on a number of them; 0 allows none.
    """
    if len(rejects) <= (limit * total if limit < 1 else limit):
        return
    if limit:
        what += f" ({len(rejects)} of {total}, more than the limit of {limit:g} allows)"
    refuse([str(r) for r in rejects], what)


def refuse(faults: Sequence[str], what: str) -> None:
    """Raises ValueError listing `faults`, if there are any."""
    if faults:
        raise ValueError(f"{what}:{listed(faults, MAX_SHOWN)}")


# ---------------------------------------------------------------------------------------- reading


def read(path: epath.PathLike) -> Iterator[FileRecord]:
    """The records of a file by its ending, blank lines left out.

    A CSV record is a dict by the header's names, empty fields left out. Raises FileNotFoundError,
    and ValueError for a file that is no list of records at all.
    """
    path = epath.Path(path)
    if path.suffix not in SUFFIXES and not path.is_dir():
        raise ValueError(f"{path}: must be a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
    if path.suffix == ".jsonl":
        return iter(JsonLines(path))
    text = _decoded(_existing(path).read_bytes())
    if path.suffix == ".json":
        found = _elements(path, _newlines(text))
    elif path.suffix == ".csv":
        found = _rows(path, text)
    else:
        found = _lines(_ENDS.split(text))
    return map(_checked, found)


class JsonLines(Sequence[FileRecord]):
    """The records of a file with a JSON value a line, whatever its ending, blank lines left out.

    Each is read when it is asked for: what is held of it are 16 bytes, its line and where that
    begins, beside the last KEPT_BLOCKS of the file.
    """

    def __init__(self, path: epath.PathLike):
        """Raises FileNotFoundError or ValueError where `path` is no file."""
        self.path = _existing(epath.Path(path))
        self._lines, self._starts = array.array("q"), array.array("q")
        line = at = 0
        with self.path.open("rb") as file:
            for piece in file:  # up to a line feed; others may end lines in it
                for raw in piece.splitlines(keepends=True):
                    line += 1
                    if _decoded(raw, at).strip():
                        self._lines.append(line)
                        self._starts.append(at)
                    at += len(raw)
        self._starts.append(at)
        self._block = functools.lru_cache(KEPT_BLOCKS)(self._read)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, place: int) -> FileRecord:
        if not 0 <= place < len(self):
            raise IndexError(f"{self.path}: record {place} of {len(self)}")
        start, end = self._starts[place : place + 2]
        first = start // BLOCK
        whole = b"".join(map(self._block, range(first, -(-end // BLOCK))))
        raw = whole[start - first * BLOCK : end - first * BLOCK].splitlines()[0]
        text = _decoded(raw, start)
        return _checked(FileRecord(self._lines[place], _json(text), text))

    def _read(self, block: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(block * BLOCK)
            return file.read(BLOCK)


def _existing(path: epath.Path) -> epath.Path:
    if path.is_dir():
        raise ValueError(f"{path}: Is a directory; name a file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    return path


def _decoded(data: bytes, at: int = 0) -> str:
    """Text that begins at byte `at` of its file. What is not UTF-8 becomes lone surrogates, which
    `_checked` finds."""
    return data.decode("utf-8" if at else "utf-8-sig", "surrogateescape")


def _newlines(text: str) -> str:
    """JSON with every line end as LF; inside its texts there are none."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _checked(record: FileRecord) -> FileRecord:
    try:
        record.text.encode()
    except UnicodeEncodeError:
        return dataclasses.replace(record, value=ValueError(NOT_UTF8))
    if "\0" in record.text:  # ASCII in UTF-16 is UTF-8 with a NUL beside every letter
        return dataclasses.replace(record, value=ValueError(NOT_UTF8))
    return record


def _lines(lines: Sequence[str]) -> Iterator[FileRecord]:
    for line, content in enumerate(lines, 1):
        if content.strip():
            yield FileRecord(line, content, content)


def _json(content: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as e:
        return ValueError(f"not JSON ({e.msg})")
    except (RecursionError, ValueError) as e:  # nested too deeply, a number of too many digits
        return ValueError(f"not usable JSON ({e})")


def _elements(path: epath.Path, text: str) -> Iterator[FileRecord]:
    """Each element of a JSON list."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}, line {e.lineno}: not JSON ({e.msg})") from e
    except (RecursionError, ValueError) as e:
        raise ValueError(f"{path}: not usable JSON ({e})") from e
    if not isinstance(values, list):
        raise ValueError(f"{path}: must hold a list, not a {type(values).__name__}")
    between, decoder = re.compile(r"[\s,]*"), json.JSONDecoder()
    at = text.index("[") + 1
    line = text.count("\n", 0, at) + 1
    for value in values:
        start = between.match(text, at).end()
        line += text.count("\n", at, start)
        _, end = decoder.raw_decode(text, start)
        yield FileRecord(line, value, text[start:end])
        line, at = line + text.count("\n", start, end), end


def _rows(path: epath.Path, text: str) -> Iterator[FileRecord]:
    """Each record of a CSV file under its header; a quoted field may go over several lines."""
    lines = io.StringIO(text, newline="").readlines()
    reader = csv.reader(iter(lines), strict=True)
    header = None
    while True:
        start = reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as e:
            row = ValueError(f"not CSV ({e})")
        raw = "".join(lines[start : reader.line_num])
        if header is None:
            header = _header(path, row)
        elif isinstance(row, ValueError):
            yield FileRecord(start + 1, row, raw)
        elif not row:  # an empty line
            continue
        elif len(row) != len(header):
            error = ValueError(f"{len(row)} fields, the header has {len(header)}")
            yield FileRecord(start + 1, error, raw)
        else:
            values = {k: v for k, v in zip(header, row, strict=True) if v}
            yield FileRecord(start + 1, values, raw)


def _header(path: epath.Path, row: list[str] | ValueError) -> list[str]:
    if isinstance(row, ValueError):
        raise ValueError(f"{path}, line 1: {row}")
    names = [name.strip() for name in row]
    if len(set(names)) < len(names) or not all(names):
        raise ValueError(
            f"{path}, line 1: the header must name every field once, got {quoted(names)}"
        )
    return names
