"""Shards: a stage's records in fixed groups, one ArrayRecord file each, readable by TFDS.

A shard is written under a temporary name and renamed, so it is whole or absent: a stage that was
killed goes on with the first shard that is absent. When all are there, `finish` counts their
records and writes TFDS metadata beside them. One that a loss of power left empty or cut counts as
absent. For a bucket a shard is written to a local folder and uploaded; of one in a bucket only the
records that are asked for are fetched (`shard_file.py`).

Beside each shard lies a file of summaries: what its records are without their pictures and latents,
so that nobody reads gigabytes to learn prompts and sizes, and where in the shard they lie. It holds
nothing of its own; where it is missing or damaged the shard is read.
"""

import bisect
import dataclasses
import errno
import functools
import io
import itertools
import json
import os
import pathlib
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from PIL import Image

from srum_jax.core import files, storage
from srum_jax.core.errors import Damaged, Stopped, in_a_line
from srum_jax.data import shard_file

SPLIT = "train"  # TFDS wants a split name; a folder of shards holds one
_OF_ANSWERS = dict.fromkeys(("coverage", "image_rank"), np.float32)  # of a judgement
UNFINISHED = ".shard-"  # begins the names of folders that a killed writer leaves behind
OPEN_READERS = 32  # shards of a folder that are open at a time, a file handle each
KEPT_ENDS = 4096  # shards in a bucket whose index is kept, some kilobytes each
SPAN = "_bytes"  # in a summary: the first of the record's bytes and the one after the last
CRC = "crc32"  # of the lines of a file of summaries, in its last one
AT_ONCE = 16  # shards in a bucket that are looked at side by side


def candidate_features(
    latent_shape: tuple[int | None, ...], *, also: Mapping[str, tuple] | None = None
) -> Any:
    """TFDS features of a `generate` record; `latent_shape` is (h, w, numbers in a token).

    h and w may be None: they are then the record's own. `also`: further float32 arrays and their
    shapes. Written: `image` as PNG bytes. Read: uint8 [H, W, 3].
    """
    from tensorflow_datasets import features as f

    return f.FeaturesDict(
        {
            "id": f.Text(),  # "<prompt_id>-<k>"
            "prompt_id": np.int64,
            "prompt": f.Text(),
            "category": f.Text(),
            "k": np.int64,
            "seed": np.int64,
            "image": f.Image(shape=(None, None, 3), encoding_format="png"),
            # Raw bytes: the default encoding is a hundred times slower.
            **{
                name: f.Tensor(shape=shape, dtype=np.float32, encoding="bytes")
                for name, shape in {"latent": latent_shape, **(also or {})}.items()
            },
        }
    )


def score_features(*, masks: bool = False, answers: bool = False) -> Any:
    """TFDS features of a `score` record. Scores lie in [-1, 1] and are NaN unless status is "ok".

    `bbox` is x0, y0, x1, y1 in pixels of the image, ends excluded. With `masks` a region also has
    `mask`: bytes by `masks.encode`, b"" or no field for none. With `answers` a record has all that
    was said to its questions: JSON rows [region (-1: the whole), kind of question, object it is
    about, p or null, status, of several judges whose]; and a `Judgement`'s coverage and rank.
    """
    from tensorflow_datasets import features as f

    region = {
        "bbox": f.Tensor(shape=(4,), dtype=np.float32),
        "score": np.float32,
        "status": f.Text(),
        "label": f.Text(),
        "proposer": f.Text(),
    }
    if masks:
        region["mask"] = f.Tensor(shape=(), dtype=np.bytes_)
    return f.FeaturesDict(
        {
            "id": f.Text(),
            "prompt_id": np.int64,
            "k": np.int64,
            "regions": f.Sequence(region),
            "image_score": np.float32,
            "image_status": f.Text(),
            **(dict(answers=f.Text(), **_OF_ANSWERS) if answers else {}),
        }
    )


def reply_features(field: str) -> Any:
    """TFDS features of a record with an `id` and an "image", as above, or a "text"."""
    from tensorflow_datasets import features as f

    kinds = {"image": f.Image(shape=(None, None, 3), encoding_format="png"), "text": f.Text()}
    return f.FeaturesDict({"id": f.Text(), field: kinds[field]})


def shard_sizes(records: int, size: int) -> list[int]:
    """Records in each shard when `records` are cut into shards of `size` (the last may be
    short)."""
    return [min(size, records - start) for start in range(0, records, size)]


def shard_name(name: str, index: int, total: int) -> str:
    """The file name of shard `index` (from 0) of `total`, as TFDS names shards."""
    return f"{name}-{SPLIT}.array_record-{index:05d}-of-{total:05d}"


def shard_path(folder: epath.PathLike, name: str, index: int, total: int) -> epath.Path:
    """The file of shard `index` (from 0) of `total`."""
    if not 0 <= index < total:
        raise ValueError(f"{name}: there is no shard {index} of {total}")
    return epath.Path(folder) / shard_name(name, index, total)


def summaries_path(shard: epath.Path) -> epath.Path:
    """The file of the summaries of a shard's records, one JSON line each."""
    return shard.parent / shard.name.replace(".array_record-", ".summaries-")


def write_shard(
    folder: epath.PathLike,
    name: str,
    features: Any,
    records: Sequence[Mapping[str, Any]],
    index: int,
    total: int,
) -> int:
    """Writes one shard and returns the number of records in it, read back from the file.

    A record that does not fit `features` raises ValueError naming it, a disk without room OSError;
    no shard is then left behind.
    """
    final = shard_path(folder, name, index, total)
    final.parent.mkdir(parents=True, exist_ok=True)
    where = None if files.is_remote(final) else final.parent
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=where) as local:
        temporary = pathlib.Path(local) / final.name
        made = (
            _serialise(features, record, f"{final.name}, record {i}")
            for i, record in enumerate(records)
        )
        shard_file.write(temporary, made)
        count = shard_file.count(temporary)
        if count != len(records):
            said = f"{count} of {len(records)} records written; is the disk full?"
            raise OSError(errno.ENOSPC, said, os.fspath(final))
        # Before the shard, so that there is none beside summaries of another one.
        spans = shard_file.spans(temporary, count)
        lines = [
            json.dumps(_summary(features, record) | {SPAN: span}) + "\n"
            for record, span in zip(records, spans, strict=True)
        ]
        _write_summaries(summaries_path(final), "".join(lines).encode())
        if files.is_remote(final):
            with temporary.open("rb") as whole:
                files.write_bytes(final, iter(lambda: whole.read(2**24), b""))
        else:
            files.sync(temporary)
            files.move(temporary, final)
    return count


def shards_left(
    folder: epath.PathLike, name: str, counts: Sequence[int], among: Iterable[int]
) -> list[int]:
    """Which shards of `among` are not there with their `counts[i]` records, by one listing; a
    warning names one that is cut."""
    try:
        there = {path.name for path in epath.Path(folder).iterdir()}
    except FileNotFoundError:
        there = set()
    paths = {i: shard_path(folder, name, i, len(counts)) for i in among}
    return [i for i, p in paths.items() if p.name not in there or shard_file.is_cut(p, counts[i])]


def is_whole(folder: epath.PathLike) -> bool:
    """Whether every shard that the metadata of a folder announces is there, uncut.

    A warning names what is not. Of a bucket, whose objects are whole, names alone are looked at.
    True for a folder without metadata.
    """
    folder = epath.Path(folder)
    if not (folder / "dataset_info.json").exists():
        return True
    try:
        read(folder).check_names()
    except (ValueError, FileNotFoundError) as e:
        logging.warning("%s", str(e).removesuffix(f"; {REDO}"))
        return False
    return True


def finish(folder: epath.PathLike, name: str, features: Any, counts: Sequence[int]) -> None:
    """Checks that every shard is there with `counts[i]` records and writes TFDS metadata.

    TFDS itself checks neither: a count too small would silently drop records. Raises
    FileNotFoundError or ValueError naming the shard and what to do.
    """
    import tensorflow_datasets as tfds

    folder = epath.Path(folder)
    paths = [shard_path(folder, name, i, len(counts)) for i in range(len(counts))]
    size = 0
    with tempfile.TemporaryDirectory() as scratch, futures.ThreadPoolExecutor(AT_ONCE) as threads:
        scratch = pathlib.Path(scratch)
        for path, expected, found in zip(paths, counts, threads.map(_look, paths), strict=True):
            if found is None:
                raise _missing(path)
            _check_count(folder, path.name, found[0], expected)
            size += found[1]
            # TFDS wants to see the names of the shards beside its metadata, not their content.
            (scratch / path.name).write_bytes(b"")
        template = tfds.core.ShardedFileTemplate(
            data_dir=scratch, dataset_name=name, split=SPLIT, filetype_suffix="array_record"
        )
        split = tfds.core.SplitInfo(
            name=SPLIT, shard_lengths=list(counts), num_bytes=size, filename_template=template
        )
        # check_data reads through TensorFlow; the counts above are the check.
        tfds.folder_dataset.write_metadata(
            data_dir=scratch,
            features=features,
            split_infos=[split],
            version="1.0.0",
            check_data=False,
        )
        for made in ("features.json", "dataset_info.json"):  # `read` looks for the second
            files.write_bytes(folder / made, [(scratch / made).read_bytes()])


def _look(path: epath.Path) -> tuple[int, int] | None:
    """Records and bytes of a shard; None where it is missing."""
    try:
        return shard_file.count(path), files.length(path)
    except FileNotFoundError:
        return None


class ShardRecords(Sequence):
    """Random access to the records of finished shards, in shard order; see `read`.

    A record is a dict of NumPy arrays and scalars, str for text, and for a sequence of dicts a list
    of dicts. Threads may share it. Pickles by its folder, so that loader processes can open it
    again.
    """

    def __init__(self, folder: epath.PathLike):
        self.folder = epath.Path(folder)
        self._open()

    def _open(self):
        try:
            info = _metadata(self.folder)
            self.features, self.counts = info.features, tuple(info.splits[SPLIT].shard_lengths)
            # TFDS sorts its names as text, which past 99,999 shards is not their order.
            total = len(self.counts)
            self._names = [shard_name(info.name, i, total) for i in range(total)]
        except (OSError, Stopped):
            raise
        except Exception as e:  # any fault in hand-edited or damaged metadata
            raise storage.failure(e, str(self.folder)) or ValueError(
                f"{self.folder}: dataset_info.json or features.json is damaged ({e}); run the "
                "stage that wrote them again"
            ) from e
        self._ends = list(itertools.accumulate(self.counts))
        self._remote = files.is_remote(self.folder)
        if not self._remote:  # what lies in a bucket is looked at when it is needed
            for shard in range(total):
                self._check(shard)
        # A reader that is dropped closes when the last thread that reads from it is done.
        kept = KEPT_ENDS if self._remote else OPEN_READERS
        self._reader = functools.lru_cache(kept)(self._opened)
        self._kept = functools.lru_cache(None)(self._features_of)

    def _path(self, shard: int) -> epath.Path:
        return self.folder / self._names[shard]

    def check_names(self) -> None:
        """Raises FileNotFoundError, naming it, where a shard is missing: one listing."""
        there = {path.name for path in self.folder.iterdir()}
        for name in self._names:
            if name not in there:
                raise _missing(self.folder / name)

    def _check(self, shard: int) -> None:
        path = self._path(shard)
        try:
            found = shard_file.count(path)
        except FileNotFoundError:
            raise _missing(path) from None
        _check_count(self.folder, path.name, found, self.counts[shard])

    def _opened(self, shard: int) -> Any:
        path = self._path(shard)
        if not self._remote:
            return shard_file.open_shard(path)
        self._check(shard)
        lines = _read_summaries(summaries_path(path), self.counts[shard])
        return shard_file.open_shard(path, [line[SPAN] for line in lines if SPAN in line])

    def __reduce__(self):
        return ShardRecords, (self.folder,)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        if isinstance(index, slice):
            return RecordsView(self, range(len(self))[index])
        return self.fields(index, tuple(self.features))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def fields(self, index: int, names: Sequence[str]) -> dict[str, Any]:
        """Record `index` without its other fields, which are not decoded."""
        return self._decoded(index, tuple(names), {})

    def summaries(self) -> Iterator[dict[str, Any]]:
        """Every record in brief: numbers and texts as they are, of an array its shape (of a picture
        [H, W, 3]); no sequences. No picture is decoded."""
        for shard, count in enumerate(self.counts):
            found = _read_summaries(summaries_path(self._path(shard)), count)
            for line in found:
                line.pop(SPAN, None)
            yield from found or map(self._summary_of, self._places(shard))

    def column(self, name: str) -> "RecordsView":
        """One field of every record."""
        return RecordsView(self, range(len(self)), name)

    def _places(self, shard: int) -> range:
        return range(self._ends[shard] - self.counts[shard], self._ends[shard])

    def _summary_of(self, index: int) -> dict[str, Any]:
        from tensorflow_datasets import decode
        from tensorflow_datasets import features as f

        images = [key for key, kind in self.features.items() if isinstance(kind, f.Image)]
        raw = {key: decode.SkipDecoding() for key in images}
        return _summary(self.features, self._decoded(index, tuple(self.features), raw))

    def _decoded(self, index: int, names: tuple[str, ...], how: Mapping[str, Any]) -> dict:
        """Fields of a record by TFDS's decoders `how`, by default each feature's own."""
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: record {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        place = index - self._places(shard).start
        kept = self._kept(names)
        try:
            (raw,) = self._reader(shard).read([place])
            record = kept.deserialize_example_np(raw, decoders=how or None)
        except (OSError, Stopped):  # of the machine, not of what was read
            raise
        except Exception as e:  # a flipped bit, which is found by the record's own digest
            path = self._path(shard)
            raise storage.failure(e, str(path)) or Damaged(path, in_a_line(e)) from e
        return {key: _tidy(kept[key], value) for key, value in record.items()}

    def _features_of(self, names: tuple[str, ...]) -> Any:
        from tensorflow_datasets import features as f

        return f.FeaturesDict({name: self.features[name] for name in names})


@dataclasses.dataclass(frozen=True)
class RecordsView(Sequence):
    """Some records, or one field of them, each read when it is asked for; none is held.

    field: whose value stands for a record; "": the record itself.
    """

    records: ShardRecords
    places: range
    field: str = ""

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        if isinstance(index, slice):
            return dataclasses.replace(self, places=self.places[index])
        place = self.places[index]
        return (
            self.records.fields(place, (self.field,))[self.field]
            if self.field
            else self.records[place]
        )


REDO = "run its stage again: only this shard is made again"


def _metadata(folder: epath.Path) -> Any:
    """TFDS's description of a folder. Raises FileNotFoundError where it is not finished."""
    import tensorflow_datasets as tfds

    if not (folder / "dataset_info.json").exists():
        raise FileNotFoundError(
            f"{folder}: no finished records (dataset_info.json is missing); "
            "run the stage that writes them to its end"
        )
    if not files.is_remote(folder):
        shard_file.check_opens(folder / "dataset_info.json")
        return tfds.builder_from_directory(folder).info
    with tempfile.TemporaryDirectory() as local:
        for name in ("features.json", "dataset_info.json"):
            (pathlib.Path(local) / name).write_bytes((folder / name).read_bytes())
        return tfds.builder_from_directory(local).info


def read(folder: epath.PathLike) -> ShardRecords:
    """The records of a folder that `finish` completed.

    Raises FileNotFoundError or ValueError naming the damaged or missing file and what to do.
    """
    return ShardRecords(folder)


def _serialise(features: Any, record: Mapping[str, Any], where: str) -> bytes:
    missing, unknown = set(features) - set(record), set(record) - set(features)
    if missing or unknown:
        raise ValueError(f"{where}: missing {sorted(missing)}, unknown {sorted(unknown)}")
    try:
        return features.serialize_example(record)
    except Exception as e:  # the encoders raise many types; each means the record is wrong
        raise ValueError(f"{where}: does not fit its features: {e}") from e


def _tidy(feature: Any, value: Any) -> Any:
    """Text as str, a sequence of dicts as a list of dicts; everything else as TFDS decodes it."""
    from tensorflow_datasets import features as f

    if isinstance(feature, f.Text):
        return value.decode()
    if isinstance(feature, f.Sequence) and isinstance(value, dict):
        inner = feature.feature
        columns = [[_tidy(inner[key], v) for v in column] for key, column in value.items()]
        return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    return value


def _summary(features: Any, record: Mapping[str, Any]) -> dict[str, Any]:
    """A record's summary; its images are PNG bytes."""
    from tensorflow_datasets import features as f

    brief = {}
    for key, kind in features.items():
        value = record[key]
        if isinstance(kind, f.Image):
            width, height = Image.open(io.BytesIO(value)).size
            brief[key] = [height, width, 3]
        elif isinstance(kind, f.Text):
            brief[key] = value
        elif isinstance(kind, f.Tensor):
            brief[key] = list(np.shape(value)) if kind.shape else np.asarray(value).item()
    return brief


def _write_summaries(path: epath.Path, lines: bytes) -> None:
    files.write_bytes(path, [lines, json.dumps({CRC: zlib.crc32(lines)}).encode() + b"\n"])


def _read_summaries(path: epath.Path, count: int) -> list[dict[str, Any]]:
    """What `_write_summaries` wrote of `count` records; [] where it is not there or not whole."""
    try:
        *lines, end = path.read_bytes().splitlines(keepends=True)
        whole = len(lines) == count and json.loads(end) == {CRC: zlib.crc32(b"".join(lines))}
    except (FileNotFoundError, ValueError):
        return []
    return [json.loads(line) for line in lines] if whole else []


def _missing(path: epath.Path) -> FileNotFoundError:
    return FileNotFoundError(f"{path}: this shard is missing; {REDO}")


def _check_count(folder: epath.Path, name: str, count: int, expected: int) -> None:
    if count != expected:
        raise Damaged(folder / name, f"{count} records instead of {expected}; {REDO}")
