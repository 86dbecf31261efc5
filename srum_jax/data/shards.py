"""Shards: a stage's records in fixed groups, one ArrayRecord file each, readable by TFDS.

A shard is written under a temporary name and renamed, so it is whole or absent: a stage that was
killed goes on with the first shard that is absent. When all are there, `finish` counts their
records and writes TFDS metadata beside them. ArrayRecord opens local files only: for a bucket a
shard is written to a local folder and copied, and read from a local copy.
"""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

SPLIT = "train"  # TFDS wants a split name; a folder of shards holds one
UNFINISHED = ".shard-"  # begins the names of folders that a killed writer leaves behind


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


def unit_path(folder: epath.PathLike, name: str, index: int, total: int) -> epath.Path:
    """The file of shard `index` (from 0) of `total`, as TFDS names shards."""
    if not 0 <= index < total:
        raise ValueError(f"{name}: there is no shard {index} of {total}")
    return epath.Path(folder) / f"{name}-{SPLIT}.array_record-{index:05d}-of-{total:05d}"


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
        _check_count(path, _count(path), count)
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
            _check_count(path, _count(local), expected)
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
    of dicts. Pickles by its folder, so that loader processes can open it again.
    """

    def __init__(self, folder: epath.PathLike):
        self.folder = epath.Path(folder)
        self._open()

    def _open(self):
        import tensorflow_datasets as tfds

        self._copy = None
        local = self.folder
        if not (self.folder / "dataset_info.json").exists():
            raise FileNotFoundError(
                f"{self.folder}: no finished records (dataset_info.json is missing); "
                "run the stage that writes them to its end"
            )
        if _remote(self.folder):
            self._copy = tempfile.TemporaryDirectory()
            local = pathlib.Path(self._copy.name)
            for path in self.folder.iterdir():
                if path.suffix == ".json" or ".array_record-" in path.name:
                    _download(path, local)
        try:
            builder = tfds.builder_from_directory(local)
            self.features = builder.info.features
            split = builder.info.splits[SPLIT]
            self.counts = tuple(split.shard_lengths)
            self._names = [os.path.basename(name) for name in split.filenames]
        except Exception as e:  # any fault in hand-edited or damaged metadata
            raise ValueError(
                f"{self.folder}: dataset_info.json or features.json is damaged ({e}); delete both "
                "and run the stage that wrote them again"
            ) from e
        for name, expected in zip(self._names, self.counts, strict=True):
            if not (local / name).exists():
                raise FileNotFoundError(f"{self.folder / name}: this shard is missing; {REDO}")
            _check_count(self.folder / name, _count(local / name), expected)
        self._source = builder.as_data_source(SPLIT)

    def __reduce__(self):
        return ShardRecords, (self.folder,)

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: record {index} of {len(self)}")
        try:
            record = self._source[index]
        except Exception as e:  # ArrayRecord reports a flipped bit as whatever its decoder meets
            raise ValueError(f"{self.folder / self._unit_of(index)}: damaged ({e}); {REDO}") from e
        return {key: _tidy(self.features[key], value) for key, value in record.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def _unit_of(self, index: int) -> str:
        ends = np.cumsum(self.counts)
        return self._names[int(np.searchsorted(ends, index, side="right"))]


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


def _count(path: epath.PathLike) -> int:
    """Records in a local shard. A truncated file reads as 0 records, or does not open at all."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(os.fspath(path))
        count = reader.num_records()
        reader.close()
    except Exception:  # the wheel raises RuntimeError or ValueError by version
        return 0
    return count


def _check_count(path: epath.Path, count: int, expected: int) -> None:
    if count != expected:
        raise ValueError(f"{path}: damaged, {count} records instead of {expected}; {REDO}")


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
