"""Pictures with captions in Parquet files, as those BAGEL's text-to-image training reads.

A row has `image` (the bytes of a picture file, or a struct with them under `bytes`) and a text:
`captions` (JSON: a text, a list or an object of texts; or a list), `prompt` or `caption`. Of
several captions one is drawn by the seed and the row's number. pyarrow is needed only here.
"""

import bisect
import glob
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from srum_jax.core import files
from srum_jax.data import images, records
from srum_jax.data.records import FileRecord, Reject
from srum_jax.data.srum_dataset import ImageSample

TEXTS = ("captions", "prompt", "caption")  # the first of these columns that a file has


class Parquet:
    """The rows of the files that match `pattern`, `source[place]` an ImageSample without scores.

    Rows are numbered through all files, which are taken by name. Getting a sample raises ValueError
    naming the column of a row that cannot be used. One row group is held in memory at a time, with
    those of earlier ones that `expect` announced.
    """

    judged = False

    def __init__(self, pattern: str, seed: int = 0):
        """Raises ValueError without pyarrow, for files that are damaged or lack a column."""
        try:
            import pyarrow.parquet
        except ImportError as e:
            raise ValueError(
                f'{pattern}: Parquet files need pyarrow: pip install "srum_jax[parquet]"'
            ) from e
        self.seed = seed
        self.paths = _matching(pattern)
        if not self.paths:
            raise FileNotFoundError(f"{pattern}: no file matches")
        self._open = pyarrow.parquet.ParquetFile
        self._groups: list[tuple[epath.Path, int, int]] = []  # file, row group, its first row there
        sizes = []
        for path in self.paths:
            with path.open("rb") as file, images.readable(str(path), "Parquet file"):
                metadata = self._open(file).metadata
                columns = set(metadata.schema.to_arrow_schema().names)
                rows = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
            if "image" not in columns or not columns & set(TEXTS):
                raise ValueError(
                    f"{path}: must have the columns image and one of {', '.join(TEXTS)}; it has "
                    f"{', '.join(sorted(columns))}"
                )
            starts = list(itertools.accumulate(rows, initial=0))[:-1]
            self._groups += [(path, g, start) for g, start in enumerate(starts)]
            sizes += rows
        self._ends = list(itertools.accumulate(sizes))
        self._held: tuple[int, Any] = (-1, None)
        self._turns: dict[int, int] = {}  # row -> when it will be asked for
        self._kept: dict[int, dict[str, Any]] = {}  # rows read before their turn

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, place: int) -> ImageSample:
        row = self._row(place)
        image = row["image"]
        if isinstance(image, dict):
            image = image.get("bytes")
        if not isinstance(image, bytes) or not image:
            raise ValueError('no bytes in the column "image"')
        text = self._text(row, place)
        return ImageSample(text, "parquet", images.decode(image, name="image"))

    def reject(self, place: int, error: Exception | str) -> Reject:
        """Row `place` as a Reject; its line is its row in its file, from 1."""
        group = bisect.bisect_right(self._ends, place)
        path, _, start = self._groups[group]
        line = start + place - (self._ends[group - 1] if group else 0) + 1
        try:
            row = self._row(place)
            text = json.dumps({key: row[key] for key in TEXTS if key in row}, default=str)
        except ValueError:
            text = ""
        return records.reject(path, FileRecord(line, None, text), error)

    def expect(self, places: Sequence[int]) -> None:
        """Tells which rows will be asked for, in this order, once each.

        Where it differs from the rows' own order, a group is read once all the same: rows whose
        turn comes later are kept until then.
        """
        self._turns, self._kept = {place: turn for turn, place in enumerate(places)}, {}

    def digest(self, kept: epath.Path) -> str:
        """Of the files, by `files.fingerprint`; a file at `kept` remembers it."""
        return files.remembered_fingerprint(self.paths, [], kept)

    def _row(self, place: int) -> dict[str, Any]:
        if place in self._kept:
            return self._kept.pop(place)
        group = bisect.bisect_right(self._ends, place)
        first = self._ends[group - 1] if group else 0
        if self._held[0] != group:
            path, number, _ = self._groups[group]
            with path.open("rb") as file, images.readable(f"{path}, row group {number}", "part"):
                opened = self._open(file)
                names = [n for n in ("image", *TEXTS) if n in opened.schema_arrow.names]
                self._held = (group, opened.read_row_group(number, columns=names))
            if self._turns:
                self._keep(range(first, self._ends[group]), self._turns.get(place, 0))
                self._kept.pop(place, None)
        return self._held[1].slice(place - first, 1).to_pylist()[0]

    def _keep(self, places: range, turn: int) -> None:
        """Keeps the rows of the group that is held whose turn comes after `turn`, and lets go of
        those whose turn has passed."""
        self._kept = {p: row for p, row in self._kept.items() if self._turns[p] > turn}
        for offset, place in enumerate(places):
            if self._turns.get(place, -1) > turn:
                self._kept[place] = self._held[1].slice(offset, 1).to_pylist()[0]

    def _text(self, row: dict[str, Any], place: int) -> str:
        name = next(key for key in TEXTS if key in row)
        value = row[name]
        if name == "captions" and isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise ValueError('"captions" is not JSON') from None
        if isinstance(value, dict):
            value = list(value.values())
        texts = [t for t in (value if isinstance(value, list) else [value]) if _is_text(t)]
        if not texts:
            raise ValueError(f'no text in the column "{name}"')
        drawn = np.random.default_rng((self.seed, place)).integers(len(texts))
        return records.usable_text(texts[drawn], f'column "{name}"')


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _matching(pattern: str) -> list[epath.Path]:
    if "://" in pattern:
        return sorted(epath.Path(pattern).parent.glob(epath.Path(pattern).name))
    return [epath.Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
