"""Files that are whole or absent, in local folders and buckets, and what tells files apart."""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import fsspec
from absl import logging
from etils import epath

from srum_jax.core.errors import quoted

Kept = TypeVar("Kept")
_SAMPLE, _SAMPLES = 2**20, 64  # bytes read at a time, and how often at most, for a fingerprint


# Another process writes what this one looks for: every listing is asked for anew.
for _protocol in ("gs", "gcs", "s3", "az"):
    fsspec.config.conf.setdefault(_protocol, {}).setdefault("use_listings_cache", False)
for _protocol in ("gs", "gcs"):
    fsspec.register_implementation(
        _protocol, "srum_jax.core.buckets.GoogleStorage", clobber=True, errtxt="pip install gcsfs"
    )


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


def remove_partial(folder: epath.PathLike) -> None:
    """Removes from a folder and all below it what writers that were killed left of their files.

    Nobody may be writing there. Buckets hold no such files.
    """
    if not is_remote(folder):
        for path in pathlib.Path(folder).rglob(".*.partial"):
            path.unlink(missing_ok=True)


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


def move_folder(source: epath.PathLike, target: epath.PathLike) -> None:
    """Gives a folder the name `target`, which nothing has. Objects of a bucket are copied there,
    within the bucket, and then removed: who is killed between leaves them in both places."""
    if not is_remote(source):
        epath.Path(source).rename(target)
        return
    storage, root = fsspec.core.url_to_fs(os.fspath(source))
    _, there = fsspec.core.url_to_fs(os.fspath(target))
    found = storage.find(root)
    storage.copy(found, [there + path.removeprefix(root) for path in found])
    storage.rm(found)


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
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    return parse_json(path.read_bytes(), str(path))


def read_object(path: epath.PathLike) -> dict[str, Any]:
    """As `read_json`, of a file that must hold an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a JSON object, got {quoted(value)}")
    return value


def kept(path: epath.PathLike, kind: type[Kept] = dict) -> Kept | None:
    """What a run keeps for itself in a JSON file, a value of `kind`. None where the file is not
    there and, with a warning, where a disk or a loss of power left something else in it: who asks
    makes it again."""
    try:
        value = read_json(path)
        if isinstance(value, kind):
            return value
        wrong = f"{path}: must hold a JSON {kind.__name__}, got {quoted(value)}"
    except FileNotFoundError:
        return None
    except ValueError as e:
        wrong = str(e)
    logging.warning("%s; made again", wrong)
    return None


def parse_json(data: bytes, name: str) -> Any:
    """The value of UTF-8 bytes, with or without a byte order mark. ValueError naming `name` for
    what is no JSON, for a key that an object has twice, and for what nests too deeply to read."""
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_distinct)
    except UnicodeDecodeError as e:
        wrong = mistaken(data) or f"not UTF-8 text ({e.reason} at byte {e.start})"
    except json.JSONDecodeError as e:
        wrong = mistaken(data) or f"not valid JSON ({e})"
    except RecursionError:
        wrong = "not usable JSON: it nests too deeply"
    except ValueError as e:  # a number of too many digits, a key that is there twice
        wrong = f"not usable JSON ({e})"
    raise ValueError(f"{name}: {wrong}")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(out := dict(pairs)) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{quoted(name)} stands there twice")
    return out


def mistaken(data: bytes) -> str:
    """What a file is that begins with `data` and was put in place of another, or ""."""
    start = data[:512].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file it stands for; fetch that with `git lfs pull`"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not the file itself; download it again"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16 text; save it as UTF-8"
    return "an empty file; copy it again" if not data else ""


def length(path: epath.PathLike) -> int:
    """Bytes of a file. Not by epath's `stat`, which fails where nobody owns the file: a user of
    another machine or container."""
    with epath.Path(path).open("rb") as file:
        return file.seek(0, os.SEEK_END)


def fingerprint(sampled: Iterable[epath.Path], whole: Iterable[epath.Path] = ()) -> str:
    """16 hex digits of files: their names and sizes, and their content.

    Files are taken in the order given, those of `whole` first. Of a file in `sampled` over 64 MiB
    evenly spread samples are read, its beginning among them: enough to tell two models apart within
    a second, not to find a flipped bit.
    """
    digest = hashlib.sha256()
    steps = ((path, _SAMPLE) for path in whole), ((path, None) for path in sampled)
    for path, step in itertools.chain(*steps):
        size = length(path)
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for start in range(0, size, step or max(_SAMPLE, size // _SAMPLES)):
                file.seek(start)
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]


def remembered_fingerprint(
    sampled: Iterable[epath.Path], whole: Sequence[epath.Path], kept: epath.Path
) -> str:
    """`fingerprint` of files, whose content is read again only once one of them changed.

    sampled: gone through twice · kept: a JSON file that remembers it beside the files' names, sizes
    and times. It may be deleted.
    """
    stamp = hashlib.sha256()
    for path in itertools.chain(whole, sampled):
        stamp.update(f"{path} {_changed(path)}\n".encode())
    try:
        before = read_json(kept)
        if before["stamp"] == stamp.hexdigest():
            return before["fingerprint"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # nothing that can be used: it is made again
    found = fingerprint(sampled, whole)
    write_json(kept, {"stamp": stamp.hexdigest(), "fingerprint": found})
    return found


def _changed(path: epath.Path) -> str:
    """A file's bytes and when it was changed. As in `length` not by epath's `stat` on a disk."""
    if is_remote(path):
        stat = path.stat()
        return f"{stat.length} {stat.mtime}"
    stat = os.stat(path)
    return f"{stat.st_size} {stat.st_mtime_ns}"


def model_fingerprint(*folders: epath.PathLike) -> str:
    """`fingerprint` of the weights and JSON files of model folders."""
    paths = (path for folder in folders for path in sorted(epath.Path(folder).iterdir(), key=str))
    return fingerprint(path for path in paths if path.suffix in (".safetensors", ".bin", ".json"))
