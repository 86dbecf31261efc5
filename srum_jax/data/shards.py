"""Shards: a stage's records in fixed groups, one ArrayRecord file each, readable by TFDS.

A shard is written under a temporary name and renamed, so it is whole or absent: a stage that was
killed goes on with the first shard that is absent. When all are there, `finish` counts their
records and writes TFDS metadata beside them. ArrayRecord opens local files only: for a bucket a
shard is written to a local folder and copied, and read from a local copy.

Beside each shard lies a file of summaries: what its records are without their pictures and latents,
so that nobody reads gigabytes to learn prompts and sizes. It holds nothing of its own; where it is
missing or damaged the shard is read.
"""

import bisect
import errno
import functools
import io
import itertools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from srum_jax.core import files
from srum_jax.core.errors import BadInput

SPLIT = "train"  # TFDS wants a split name; a folder of shards holds one
UNFINISHED = ".shard-"  # begins the names of folders that a killed writer leaves behind
OPEN_READERS = 32  # shards of a folder that are open at a time, a file handle each


def candidate_features(
    latent_shape: tuple[int | None, int | None, int], *, also: Sequence[str] = ()
) -> Any:
    """TFDS features of a `generate` record; `latent_shape` is (h, w, numbers in a token).

    h and w may be None: they are then the record's own. `also` names further arrays like the
    latent, which `ingest` adds. Written: `image` as PNG bytes. Read: uint8 [H, W, 3].
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
                name: f.Tensor(shape=latent_shape, dtype=np.float32, encoding="bytes")
                for name in ("latent", *also)
            },
        }
    )


def score_features(*, masks: bool = False, answers: bool = False) -> Any:
    """TFDS features of a `score` record. Scores lie in [-1, 1] and are NaN unless status is "ok".

    `bbox` is x0, y0, x1, y1 in pixels of the image, ends excluded. With `masks` a region also has
    `mask`: bytes by `masks.encode`, b"" for none. Records without the field are records without
    masks. With `answers` a record has all that was said to its questions: JSON rows
    [region (-1: the whole), kind of question, object it is about, p or null, status].
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
            **({"answers": f.Text()} if answers else {}),
        }
    )


def image_features() -> Any:
    """TFDS features of a record that is an image alone: `id` and `image`, as above."""
    from tensorflow_datasets import features as f

    return f.FeaturesDict(
        {"id": f.Text(), "image": f.Image(shape=(None, None, 3), encoding_format="png")}
    )


def shard_sizes(records: int, size: int) -> list[int]:
    """Records in each shard when `records` are cut into shards of `size` (the last may be
    short)."""
    return [min(size, records - start) for start in range(0, records, size)]


def shard_name(name: str, index: int, total: int) -> str:
    """The file name of shard `index` (from 0) of `total`, as TFDS names shards."""
    return f"{name}-{SPLIT}.array_record-{index:05d}-of-{total:05d}"


def unit_path(folder: epath.PathLike, name: str, index: int, total: int) -> epath.Path:
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

    A record that does not fit `features` raises ValueError naming it; no shard is then left behind.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    final = unit_path(folder, name, index, total)
    final.parent.mkdir(parents=True, exist_ok=True)
    where = None if _remote(final) else final.parent
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=where) as local:
        temporary = pathlib.Path(local) / final.name
        writer = ArrayRecordWriter(os.fspath(temporary), "group_size:1")
        try:
            for i, record in enumerate(records):
                writer.write(_serialise(features, record, f"{final.name}, record {i}"))
        finally:
            writer.close()
        count = _count(temporary)
        if count != len(records):
            raise OSError(f"{final}: {count} of {len(records)} records written; is the disk full?")
        # Before the shard, so that there is none beside summaries of another one.
        lines = (json.dumps(_summary(features, record)) + "\n" for record in records)
        files.write_bytes(summaries_path(final), map(str.encode, lines))
        if _remote(final):
            _upload(temporary, final)
        else:
            temporary.replace(final)
    return count


def shard_done(folder: epath.PathLike, name: str, index: int, total: int, count: int) -> bool:
    """Whether shard `index` exists. Raises ValueError where it does not hold `count` records."""
    path = unit_path(folder, name, index, total)
    if not path.exists():
        return False
    if not _remote(path):  # counting needs the file at hand; `finish` counts the remote ones
        _check_count(path.parent, path.name, _count(path), count)
    return True


def finish(folder: epath.PathLike, name: str, features: Any, counts: Sequence[int]) -> None:
    """Checks that every shard is there with `counts[i]` records and writes TFDS metadata.

    TFDS itself checks neither: a count too small would silently drop records. Raises
    FileNotFoundError or ValueError naming the shard and what to do.
    """
    import tensorflow_datasets as tfds

    folder = epath.Path(folder)
    paths = [unit_path(folder, name, i, len(counts)) for i in range(len(counts))]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: this shard is missing; run its stage again to make it"
            )
    size = 0
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        for path, expected in zip(paths, counts, strict=True):
            local = _download(path, scratch) if _remote(path) else path
            _check_count(folder, path.name, _count(local), expected)
            size += os.path.getsize(local)
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
            epath.Path(scratch / made).copy(folder / made, overwrite=True)


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
        import tensorflow_datasets as tfds

        self._copy, self._local = None, self.folder
        if not (self.folder / "dataset_info.json").exists():
            raise FileNotFoundError(
                f"{self.folder}: no finished records (dataset_info.json is missing); "
                "run the stage that writes them to its end"
            )
        if _remote(self.folder):
            self._copy = tempfile.TemporaryDirectory()
            self._local = epath.Path(self._copy.name)
            for path in self.folder.iterdir():
                if path.suffix == ".json" or ".array_record-" in path.name:
                    _download(path, self._local)
        _check_opens(self._local / "dataset_info.json")
        try:
            info = tfds.builder_from_directory(self._local).info
            self.features, self.counts = info.features, tuple(info.splits[SPLIT].shard_lengths)
            # TFDS sorts its names as text, which past 99,999 shards is not their order.
            total = len(self.counts)
            self._names = [shard_name(info.name, i, total) for i in range(total)]
        except Exception as e:  # any fault in hand-edited or damaged metadata
            raise ValueError(
                f"{self.folder}: dataset_info.json or features.json is damaged ({e}); delete both "
                "and run the stage that wrote them again"
            ) from e
        self._ends = list(itertools.accumulate(self.counts))
        for name, expected in zip(self._names, self.counts, strict=True):
            try:
                count = _count(os.path.join(self._local, name))
            except FileNotFoundError:
                path = self.folder / name
                raise FileNotFoundError(f"{path}: this shard is missing; {REDO}") from None
            _check_count(self.folder, name, count, expected)
        # A reader that is dropped closes when the last thread that reads from it is done.
        self._reader = functools.lru_cache(OPEN_READERS)(_reader)
        self._kept = functools.lru_cache(None)(self._features_of)

    def __reduce__(self):
        return ShardRecords, (self.folder,)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
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
            found = _read_summaries(summaries_path(self.folder / self._names[shard]), count)
            yield from found or map(self._summary_of, self._places(shard))

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
        name, place = self._names[shard], index - self._places(shard).start
        kept = self._kept(names)
        try:
            (raw,) = self._reader(os.path.join(self._local, name)).read([place])
            record = kept.deserialize_example_np(raw, decoders=how or None)
        except (OSError, BadInput):  # of the machine, not of what was read
            raise
        except Exception as e:  # ArrayRecord reports a flipped bit as whatever its decoder meets
            raise ValueError(f"{self.folder / name}: damaged ({e}); {REDO}") from e
        return {key: _tidy(kept[key], value) for key, value in record.items()}

    def _features_of(self, names: tuple[str, ...]) -> Any:
        from tensorflow_datasets import features as f

        return f.FeaturesDict({name: self.features[name] for name in names})


REDO = (
    "delete it and its stage's manifest.json, then run the stage again: only this shard is redone"
)


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


def _read_summaries(path: epath.Path, count: int) -> list[dict[str, Any]]:
    """What `write_shard` wrote at `path`; [] where it is not there or not whole."""
    try:
        found = [json.loads(line) for line in path.read_text().splitlines()]
    except (FileNotFoundError, ValueError):
        return []
    return found if len(found) == count else []


def _check_opens(path: epath.PathLike) -> None:
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


def _reader(path: str) -> Any:
    """A local shard opened for reading by number.

    Raises OSError, and BadInput where the process has no more file handles.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    _check_opens(path)  # the reader below gives no reason: no handle looks like damage
    # Neither threads nor a buffer that reads ahead: records are asked for in any order.
    how = "readahead_buffer_size:0,max_parallelism:0"
    return ArrayRecordReader(path, how, file_reader_buffer_size=2**15)


def _count(path: epath.PathLike) -> int:
    """Records in a local shard. A truncated file reads as 0 records, or does not open at all.

    Raises OSError or BadInput where it cannot be opened, which says nothing of its content.
    """
    try:
        reader = _reader(os.fspath(path))
        count = reader.num_records()
        reader.close()
    except (OSError, BadInput):
        raise
    except Exception:  # the wheel raises RuntimeError or ValueError by version
        return 0
    return count


def _check_count(folder: epath.Path, name: str, count: int, expected: int) -> None:
    if count != expected:
        raise ValueError(f"{folder / name}: damaged, {count} records instead of {expected}; {REDO}")


def _remote(path: epath.PathLike) -> bool:
    return "://" in os.fspath(path)


def _upload(local: pathlib.Path, final: epath.Path) -> None:
    # An object in a bucket appears whole when its upload ends, so this needs no rename.
    epath.Path(local).copy(final, overwrite=True)


def _download(path: epath.Path, folder: epath.PathLike) -> pathlib.Path:
    local = pathlib.Path(folder) / path.name
    with path.open("rb") as source, local.open("wb") as target:
        shutil.copyfileobj(source, target)
    return local
