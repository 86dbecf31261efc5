"""Files that are whole or absent, in local folders and buckets, and what tells files apart."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from typing import Any

from etils import epath

_SAMPLE, _SAMPLES = 2**20, 64  # bytes read at a time, and how often at most, for a fingerprint


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path names a place in a bucket."""
    return "://" in os.fspath(path)


def write_bytes(path: epath.PathLike, chunks: Iterable[bytes | memoryview]) -> None:
    """Writes a file that readers see old or new, never in part, also after a loss of power.

    The folder must exist. Raises OSError naming the file where there is no room, or no permission;
    the old file is then as it was.
    """
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.partial"
    try:
        with temporary.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            if not is_remote(path):
                file.flush()
                os.fsync(file.fileno())
        move(temporary, path)
    except BaseException as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(e, OSError) and e.errno and not e.filename:
            raise OSError(e.errno, e.strerror, os.fspath(path)) from e
        raise


def move(source: epath.PathLike, target: epath.PathLike) -> None:
    """Gives a file the name `target`, in the place of what has it; the content must be synced."""
    target = epath.Path(target)
    epath.Path(source).replace(target)
    if not is_remote(target):
        sync(target.parent)


def sync(path: epath.PathLike) -> None:
    """Returns when a local file's content, or the names in a local folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_text(path: epath.PathLike, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, [text.encode()])


def _plain(x: Any) -> Any:
    """NumPy and JAX scalars and arrays as Python numbers and lists."""
    if hasattr(x, "tolist"):
        return x.tolist()
    raise TypeError(f"{type(x).__name__} {x!r} cannot be written as JSON")


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes `value` as `write_bytes` does, into a folder that is made if it is not there.

    Raises ValueError for NaN and infinities: what was not measured is left out of a file.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=1, allow_nan=False, default=_plain) + "\n")


def read_json(path: epath.PathLike) -> Any:
    """The content of a JSON file. Raises FileNotFoundError or ValueError naming the file."""
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: not valid JSON ({e})") from e


def fingerprint(sampled: Iterable[epath.Path], whole: Iterable[epath.Path] = ()) -> str:
    """16 hex digits of files: their names and sizes, and their content.

    Files are taken in the order given, those of `whole` first. Of a file in `sampled` over 64 MiB
    evenly spread samples are read, its beginning among them: enough to tell two models apart within
    a second, not to find a flipped bit.
    """
    digest = hashlib.sha256()
    steps = [(path, _SAMPLE) for path in whole]
    steps += [(path, None) for path in sampled]
    for path, step in steps:
        size = path.stat().length
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for start in range(0, size, step or max(_SAMPLE, size // _SAMPLES)):
                file.seek(start)
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]
