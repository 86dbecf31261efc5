"""Files that are whole or absent, in local folders and buckets, and what tells files apart."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import fsspec
from etils import epath

_SAMPLE, _SAMPLES = 2**20, 64  # bytes read at a time, and how often at most, for a fingerprint


# Another process writes what this one looks for: every listing is asked for anew.
for _protocol in ("gs", "gcs", "s3", "az"):
    fsspec.config.conf.setdefault(_protocol, {}).setdefault("use_listings_cache", False)


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path names a place in a bucket."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """A path that does not depend on the current folder; what names a bucket is one already."""
    path = epath.Path(path)
    return path if is_remote(path) else path.resolve()


def write_bytes(path: epath.PathLike, chunks: Iterable[bytes | memoryview]) -> None:
    """Writes a file that readers see old or new, never in part, also after a loss of power.

    The folder must exist. Raises OSError naming the file where there is no room, or no permission;
    the old file is then as it was.
    """
    path = epath.Path(path)
    if is_remote(path):
        _upload(path, chunks)
        return
    temporary = path.parent / f".{path.name}.{os.getpid()}.partial"
    try:
        with _named(path), temporary.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        move(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _named(path: epath.Path) -> Iterator[None]:
    """An OSError from inside, which for a write has no file's name, gets this one."""
    try:
        yield
    except OSError as e:
        if e.errno is None or e.filename:
            raise
        raise OSError(e.errno, e.strerror, os.fspath(path)) from e


def _upload(path: epath.Path, chunks: Iterable[bytes | memoryview]) -> None:
    """An object appears whole when its upload is committed; buckets rename by copying."""
    storage, name = fsspec.core.url_to_fs(os.fspath(path))
    file = storage.open(name, "wb", autocommit=False)
    try:
        for chunk in chunks:
            file.write(chunk)
        file.close()
    except BaseException:
        with contextlib.suppress(Exception):  # what is not committed leaves nothing anyway
            file.discard()
        raise
    file.commit()


def move(source: epath.PathLike, target: epath.PathLike) -> None:
    """Gives a local file whose content is synced the name `target`, in the place of what has it."""
    epath.Path(source).replace(target)
    sync(epath.Path(target).parent)


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


class GrowingText:
    """A text that grows at its end: a file on a disk. A bucket has no files that grow: there the
    whole is uploaded, every UPLOAD_EVERY seconds and by `sync`.
    """

    UPLOAD_EVERY = 30.0

    def __init__(self, path: epath.PathLike, text: str):
        """Begins with `text`, in the place of what is there. The folder must exist."""
        self.path, self.file = epath.Path(path), None
        write_text(self.path, text)
        if is_remote(self.path):
            self.parts, self.uploaded, self.new = [text], time.monotonic(), False
        else:
            self.file = self.path.open("a")

    def append(self, text: str) -> None:
        """Adds `text`; who reads the file on a disk sees it at once."""
        if self.file:
            with _named(self.path):
                self.file.write(text)
                self.file.flush()
            return
        self.parts.append(text)
        self.new = True
        if time.monotonic() - self.uploaded > self.UPLOAD_EVERY:
            self.sync()

    def sync(self) -> None:
        """Returns when what was added outlives this process and a loss of power."""
        if self.file:
            os.fsync(self.file.fileno())
        elif self.new:
            write_bytes(self.path, map(str.encode, self.parts))
            self.uploaded, self.new = time.monotonic(), False

    def close(self) -> None:
        """Syncs, and adds no more."""
        self.sync()
        if self.file:
            self.file.close()


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
