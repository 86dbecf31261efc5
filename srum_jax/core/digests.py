"""Digests of the files of a folder, beside them: what a disk lost or changed is found by name.

On a disk a file's digest is the CRC-32 of its content, read back after it was written; in a bucket
the checksum that the storage itself keeps of an object, so nothing is read.
"""

import os
import pathlib
import zlib
from collections.abc import Sequence
from concurrent import futures

import fsspec
from etils import epath

from srum_jax.core import files

FILE = "digests.json"
_BLOCK = 2**22  # bytes read at a time
_THREADS = 4
_CHECKSUMS = ("crc32c", "md5Hash", "ETag", "etag", "content_md5")  # as storages call theirs

Found = tuple[int, int | str]  # bytes, digest


def write(folder: epath.PathLike) -> None:
    """Digests of all files in a finished folder and those below it, into FILE there."""
    folder = epath.Path(folder)
    files.write_json(folder / FILE, _digests(folder, sorted(_sizes(folder))))


def exist(folder: epath.PathLike) -> bool:
    """Whether a folder has digests."""
    return (epath.Path(folder) / FILE).exists()


def lost(folder: epath.PathLike) -> list[str]:
    """Names of the files that are missing, or not as long as they were: nothing is read.

    [] where there are no digests.
    """
    folder = epath.Path(folder)
    if not exist(folder):
        return []
    saved = _saved(folder)
    if saved is None:
        return [FILE]
    sizes = _sizes(folder)
    return [name for name, (size, _) in saved.items() if sizes.get(name) != size]


def damaged(folder: epath.PathLike, *, part: int = 0, parts: int = 1) -> list[str]:
    """Names of the files whose content is not what it was, of one of equal `parts` of them.

    [] where there are no digests. Raises OSError where a file cannot be read.
    """
    folder = epath.Path(folder)
    if not exist(folder):
        return []
    if found := lost(folder):
        return found
    saved = _saved(folder)
    names = sorted(saved)[part::parts]
    return [n for n, found in _digests(folder, names).items() if list(found) != saved[n]]


def _saved(folder: epath.Path) -> dict[str, list] | None:
    """What FILE says; None where it is damaged itself."""
    try:
        saved = files.read_object(folder / FILE)
    except ValueError:
        return None
    whole = all(isinstance(found, list) and len(found) == 2 for found in saved.values())
    return saved if whole else None


def _sizes(folder: epath.Path) -> dict[str, int]:
    """Bytes of every file, by its path in the folder."""
    if files.is_remote(folder):
        return {name: info["size"] for name, info in _objects(folder).items()}
    root = pathlib.Path(folder)
    names = {str(p.relative_to(root)): p.stat().st_size for p in root.rglob("*") if p.is_file()}
    return {name: size for name, size in names.items() if name != FILE}


def _digests(folder: epath.Path, names: Sequence[str]) -> dict[str, Found]:
    if files.is_remote(folder):
        there = _objects(folder)
        return {n: (there[n]["size"], _checksum(there[n])) for n in names}
    with futures.ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(names, threads.map(lambda n: _crc(folder / n), names), strict=True))


def _objects(folder: epath.Path) -> dict[str, dict]:
    storage, root = fsspec.core.url_to_fs(os.fspath(folder))
    found = storage.find(root, detail=True)
    names = {path.removeprefix(root).lstrip("/"): info for path, info in found.items()}
    return {name: info for name, info in names.items() if name != FILE}


def _checksum(info: dict) -> str:
    return next((str(info[name]) for name in _CHECKSUMS if info.get(name)), "")


def _crc(path: epath.Path) -> Found:
    size, digest = 0, 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            size, digest = size + len(block), zlib.crc32(block, digest)
    return size, digest
