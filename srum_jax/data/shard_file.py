"""One shard's file: written, opened, counted and read record by record, on a disk and in a bucket.

ArrayRecord reads local files alone. Of a shard in a bucket the few bytes that a record takes are
fetched and laid, at their place, into a local file that is otherwise empty: its reader checks them
as in any other file. Where they lie is noted when the shard is written.
"""

import contextlib
import dataclasses
import errno
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import fsspec
from absl import logging
from etils import epath

from srum_jax.core import files, storage
from srum_jax.core.errors import OF_PLACES, BadInput, Stopped

Span = tuple[int, int]  # first byte, and the one after the last

# Bytes of Riegeli's record format, which ArrayRecord's files are in: blocks, each with a header;
# the file's signature; the header of a chunk, whose second number is the size of its data.
# https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md
_BLOCK, _BLOCK_HEADER, _SIGNATURE, _CHUNK_HEADER = 2**16, 24, 64, 40
_TAIL = 4 * _BLOCK  # the index at a file's end and what pads it: enough for thousands of records


def write(path: epath.PathLike, records: Iterable[bytes]) -> None:
    """Writes a local shard of one record a chunk. Raises OSError where the system refuses to."""
    from array_record.python.array_record_module import ArrayRecordWriter

    try:
        writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
        try:
            for record in records:
                writer.write(record)
        finally:
            writer.close()
    except RuntimeError as e:  # the system's error in words alone
        for number in OF_PLACES:
            if os.strerror(number) in str(e):
                raise OSError(number, os.strerror(number), os.fspath(path)) from e
        raise


def spans(path: epath.PathLike, count: int) -> list[Span]:
    """Where the `count` records of a local shard lie in it; it has one record a chunk."""
    found, at = [], _SIGNATURE
    with open(path, "rb") as file:
        for _ in range(count):
            file.seek(at)
            raw, before = file.read(_CHUNK_HEADER + _BLOCK_HEADER), -at % _BLOCK
            header = raw[:before] + raw[before + _BLOCK_HEADER :]
            end = _after(at, _CHUNK_HEADER + int.from_bytes(header[8:16], "little"))
            found.append((at, end))
            at = end
    return found


def _after(at: int, count: int) -> int:
    """The place after `count` bytes that begin at `at`, block headers between them not counted."""
    end = at - _BLOCK_HEADER * -(-at // _BLOCK) + count
    return end + _BLOCK_HEADER * -(-end // (_BLOCK - _BLOCK_HEADER))


@dataclasses.dataclass(frozen=True)
class BucketShard:
    """A shard in a bucket, with the methods of ArrayRecord's reader that are used here.

    size: bytes in all · tail: its last ones, compressed · spans: of its records; () where they are
    not known: each read then fetches the whole.
    """

    path: str
    size: int
    tail: bytes
    spans: Sequence[Span]

    @classmethod
    def open(cls, path: epath.PathLike, spans: Sequence[Span]) -> "BucketShard":
        """Fetches its end alone. Raises OSError, of which FileNotFoundError where there is none."""
        storage, name = fsspec.core.url_to_fs(os.fspath(path))
        size = storage.info(name)["size"]
        start = max(0, size - _TAIL)
        # Mostly zeros, up to the end of a block.
        tail = zlib.compress(storage.cat_file(name, start=start, end=size)) if size else b""
        return cls(os.fspath(path), size, tail, tuple(spans))

    def num_records(self) -> int:
        """How many records its index has."""
        with self._local([]) as reader:
            return reader.num_records()

    def read(self, places: Sequence[int]) -> list[bytes]:
        """Records by their place in the shard."""
        if self.spans:
            with contextlib.suppress(RuntimeError, ValueError, IndexError):  # they lie elsewhere
                with self._local([self.spans[i] for i in places]) as reader:
                    return reader.read(places)
        with self._local([(0, self.size)]) as reader:
            return reader.read(places)

    def close(self) -> None:
        """Nothing is open."""

    @contextlib.contextmanager
    def _local(self, wanted: Sequence[Span]) -> Iterator[Any]:
        storage, name = fsspec.core.url_to_fs(self.path)
        with tempfile.NamedTemporaryFile() as local:
            local.truncate(self.size)
            tail = zlib.decompress(self.tail) if self.tail else b""
            parts = {self.size - len(tail): tail}
            parts |= {a: storage.cat_file(name, start=a, end=b) for a, b in wanted}
            for start, part in parts.items():
                local.seek(start)
                local.write(part)
            local.flush()
            reader = _local_reader(local.name)
            try:
                yield reader
            finally:
                reader.close()


def open_shard(path: epath.PathLike, spans: Sequence[Span] = ()) -> Any:
    """A shard opened for reading by number: `read(places)`, `num_records()`, `close()`.

    spans: where in a bucket's its records lie. Raises OSError, and BadInput where the process has
    no more file handles.
    """
    if files.is_remote(path):
        return BucketShard.open(path, spans)
    check_opens(path)  # the reader gives no reason: no handle looks like damage
    return _local_reader(os.fspath(path))


def _local_reader(path: str) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    # Neither threads nor a buffer that reads ahead: records are asked for in any order. Of the end,
    # where the index lies, no more than that: by default opening reads a megabyte.
    how = "readahead_buffer_size:0,max_parallelism:0,footer_prefetch_bytes:0"
    return ArrayRecordReader(path, how, file_reader_buffer_size=2**15)


def check_opens(path: epath.PathLike) -> None:
    """Raises OSError where a local file cannot be opened, BadInput for want of a file handle."""
    try:
        with open(path, "rb"):
            pass
    except OSError as e:
        if e.errno in (errno.EMFILE, errno.ENFILE):
            raise BadInput(
                f"{path}: too many open files; allow more (ulimit -n 4096) and start again"
            ) from e
        raise


def count(path: epath.PathLike) -> int:
    """Records in a shard. A cut file reads as 0 records, or does not open at all.

    Raises OSError or Stopped where it cannot be opened, which says nothing of its content.
    """
    try:
        reader = open_shard(path)
        found = reader.num_records()
        reader.close()
    except (OSError, Stopped):
        raise
    except Exception as e:  # the wheel raises RuntimeError or ValueError by version
        if failed := storage.failure(e, os.fspath(path)):
            raise failed from e
        return 0
    return found


def is_cut(path: epath.PathLike, expected: int) -> bool:
    """Whether a shard that is there has another number of records, which a warning says. Of one in
    a bucket nobody asks: an object is whole. Raises as `count`."""
    if files.is_remote(path):
        return False
    found = count(path)
    if found != expected:
        logging.warning("%s: damaged, %d records instead of %d; made again", path, found, expected)
    return found != expected
