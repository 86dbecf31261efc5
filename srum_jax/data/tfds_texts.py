"""The texts of one field of a TFDS data set, as records like those of a file.

Owns the way such a source is written, "tfds:<name>[/<config>][:<version>]?split=<split>&
text=<field>[&max=<number>]". A dotted field goes through nested features; a list of texts, as the
captions of a picture, gives a record each. `max` ends the reading after so many texts.

A data set is found by TFDS's own rules (TFDS_DATA_DIR, ~/tensorflow_datasets, folders it was told
of) and opened from its files alone: its code does not run, and nothing is downloaded. Records are
read one by one, and of each the field's own feature alone is decoded.
"""

import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from srum_jax.core.errors import quoted
from srum_jax.data.records import NOT_UTF8, FileRecord

PREFIX = "tfds:"
FORM = f"{PREFIX}<name>[/<config>][:<version>]?split=<split>&text=<field>[&max=<number>]"


def read(source: str) -> Iterator[FileRecord]:
    """The field's texts; a record's "line" is its number in the split, from 1.

    Raises FileNotFoundError for a data set that is not on this machine, and ValueError for another
    form, a field or split it has not, and files without random access; each says what to do.
    """
    name, split, field, most = parse(source)
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import naming, read_only_builder

    try:
        found, options = naming.parse_builder_name_kwargs(name)
        builder = read_only_builder.builder_from_files(str(found), **options)
    except (tfds.core.DatasetNotFoundError, ValueError) as e:
        raise FileNotFoundError(
            f"{source}: {_first_line(e)} Nothing is downloaded on its own: make the data set once "
            f'by tfds.builder("{name}", file_format="array_record").download_and_prepare(), or set '
            "TFDS_DATA_DIR to the folder that holds it"
        ) from e
    _check_field(builder.info.features, field, source)
    try:
        raw = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
    except NotImplementedError as e:
        raise ValueError(
            f"{source}: its files cannot be read record by record; make the data set again with "
            'file_format="array_record"'
        ) from e
    except ValueError as e:
        raise ValueError(f"{source}: split {split!r} cannot be read: {_first_line(e)}") from e
    first = field[0]
    feature = tfds.features.FeaturesDict({first: builder.info.features[first]})
    rows = (lambda i=i: feature.deserialize_example_np(raw[i]) for i in range(len(raw)))
    return _texts(rows, field, most)


def parse(source: str) -> tuple[str, str, list[str], int | None]:
    """(name, split, path of the field, largest number or None); ValueError for another form."""
    name, _, query = source.removeprefix(PREFIX).partition("?")
    try:
        options = dict(urllib.parse.parse_qsl(query, strict_parsing=True))
    except ValueError:
        options = {}
    most = options.get("max", "1")
    right = {"split", "text"} <= set(options) <= {"split", "text", "max"}
    if not name or not right or not most.isdecimal() or int(most) < 1:
        raise ValueError(f"{quoted(source)} must have the form {FORM}")
    most = int(most) if "max" in options else None
    return name, options["split"], options["text"].split("."), most


def _first_line(e: Exception) -> str:
    return str(e).strip().split("\n")[0]


def _check_field(features: Any, field: Sequence[str], source: str) -> None:
    """Raises ValueError naming the known fields where `field` leads to no text."""
    from tensorflow_datasets import features as f

    def inside(feature):
        while isinstance(feature, f.Sequence):
            feature = feature.feature
        return feature

    at = features
    for depth, key in enumerate(field):
        known = sorted(at.keys()) if isinstance(at, f.FeaturesDict) else []
        if key not in known:
            place = f"field {'.'.join(field[:depth])!r}" if depth else "a record"
            raise ValueError(f"{source}: {place} has no field {key!r}; known: {', '.join(known)}")
        at = inside(at[key])
    if not isinstance(at, f.Text) and getattr(at, "np_dtype", None) not in (object, str, bytes):
        raise ValueError(f"{source}: field {'.'.join(field)!r} is no text but {at}")


def _texts(
    rows: Iterable[Callable[[], Any]], field: Sequence[str], most: int | None
) -> Iterator[FileRecord]:
    """Records of the texts at `field` of the rows, each of which is read when it is called."""
    count = 0
    for number, row in enumerate(rows, 1):
        try:
            value = row()
            for key in field:
                value = value[key]
            found = list(_flat(value))
        except Exception as e:  # a damaged record raises whatever its decoder meets
            found = [ValueError(f"cannot be read ({e})")]
        for value in found:
            yield _record(number, value)
            count += 1
            if count == most:
                return


def _flat(value: Any) -> Iterable[Any]:
    """The single values of nested lists and arrays."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list):
        return [value]
    return [one for inner in value for one in _flat(inner)]


def _record(line: int, value: Any) -> FileRecord:
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return FileRecord(line, ValueError(NOT_UTF8), repr(value))
    return FileRecord(line, value, str(value))
