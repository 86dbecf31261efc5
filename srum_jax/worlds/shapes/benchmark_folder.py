"""A folder in a benchmark's official form: how its files, pictures and clips are written.

Owns encodings alone; what stands in the files is the business of `benchmark_questions`,
`benchmark_choices` and `benchmark_drawings`. The same content gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from srum_jax.core import files
from srum_jax.data import images

FRAME_MS = 200  # that a clip shows each of its frames


@dataclass(frozen=True)
class OfficialFolder:
    """Where a benchmark's files are written; names of files are relative to `path`."""

    path: pathlib.Path

    def json(self, name: str, value: Any) -> None:
        """A JSON file of lists, objects, texts and numbers."""
        self.text(name, json.dumps(value, indent=1, allow_nan=False) + "\n")

    def lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """A file with one JSON object a line."""
        self.text(name, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], delimiter: str) -> None:
        """A table with a line of names, which are the keys of the first row."""
        out = io.StringIO()
        writer = csv.DictWriter(out, rows[0], delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.text(name, out.getvalue())

    def text(self, name: str, text: str) -> None:
        """A text file in UTF-8."""
        self._bytes(name, text.encode())

    def picture(self, name: str, image: np.ndarray) -> None:
        """A picture uint8 [H,W,3]: a JPEG with whole colours if `name` ends so, else a PNG."""
        self._bytes(name, jpeg(image) if name.endswith(".jpg") else images.encode_png(image))

    def clip(self, name: str, frames: Sequence[np.ndarray]) -> None:
        """A GIF of frames uint8 [H,W,3], each of 256 colours at most, which it keeps exactly."""
        first, *others = map(_indexed, frames)
        out = io.BytesIO()
        how = dict(duration=FRAME_MS, loop=0, disposal=1, optimize=False)
        first.save(out, "GIF", save_all=True, append_images=others, **how)
        self._bytes(name, out.getvalue())

    def _bytes(self, name: str, data: bytes) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, [data])


def jpeg(image: np.ndarray) -> bytes:
    """uint8 [H,W,3] as a JPEG whose pixels are a few levels off, colours not halved in size."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=97, subsampling=0)
    return out.getvalue()


def _indexed(frame: np.ndarray) -> Image.Image:
    colors, index = np.unique(frame.reshape(-1, 3), axis=0, return_inverse=True)
    if len(colors) > 256:
        raise ValueError(f"a frame has {len(colors)} colours; a GIF keeps 256")
    image = Image.fromarray(index.reshape(frame.shape[:2]).astype(np.uint8), "P")
    image.putpalette(colors.tobytes())
    return image


def sentence(words: str) -> str:
    """The world's words as a sentence is written: "Is there a red circle?" """
    for mark in "?.,":
        words = words.replace(f" {mark}", mark)
    return words[:1].upper() + words[1:]
