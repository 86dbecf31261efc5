"""Clips that a benchmark asks about: films and folders of frames, read when they are looked at.

Owns where they lie and which frames are taken: evenly spread, first and last among them.
"""

import collections.abc
import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from srum_jax.core.errors import BadInput, quoted
from srum_jax.data import images, records, video
from srum_jax.evals import official_files
from srum_jax.evals.official_files import Row

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_HELD = 2  # clips whose frames are kept: a request's length and pictures are asked for apart


@dataclasses.dataclass(frozen=True)
class Clip(collections.abc.Sequence):
    """Up to `count` frames uint8 [H,W,3] of the film or the folder of frames at `path`.

    Raises ValueError naming the file where it cannot be read.
    """

    path: epath.Path
    count: int

    def __len__(self) -> int:
        return len(_frames(self.path, self.count))

    def __getitem__(self, index: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        return _frames(self.path, self.count)[index]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(_frames(self.path, self.count))


@functools.lru_cache(_HELD)
def _frames(path: epath.Path, count: int) -> tuple[np.ndarray, ...]:
    if not path.is_dir():
        return tuple(frame for _, frame in video.frames(path, count))
    names = frame_names(path)
    if not names:
        raise BadInput(f"{path}: holds no frames ({', '.join(PICTURES)})")
    wanted = video.spread(range(len(names)), count)
    return tuple(images.load(path / names[i]) for i in wanted)


def frame_names(folder: epath.Path) -> list[str]:
    """The pictures in a folder, in the order of the numbers in their names."""
    names = [one.name for one in folder.iterdir() if one.suffix.lower() in PICTURES]
    return sorted(names, key=_in_order)


def _in_order(name: str) -> list[str | int]:
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def found(
    folder: epath.Path,
    names: Sequence[str],
    rows: Sequence[Row],
    places: Sequence[str],
    suffixes: Sequence[str] = ("",),
) -> list[epath.Path]:
    """Where the named clips lie: in `folder` or the first of its sub-folders `places` that has one,
    with one of the `suffixes`; a folder of frames may stand for a film.

    Raises BadInput listing those that are missing.
    """
    known = {name: _first(folder, name, places, suffixes) for name in dict.fromkeys(names)}
    faults = [
        f"{row.where}: the clip {quoted(name)} is not there"
        for name, row in zip(names, rows, strict=True)
        if known[name] is None
    ]
    try:
        looked = ", ".join(place or "the folder itself" for place in places)
        records.refuse(faults, f"{folder}: looked in {looked}")
    except ValueError as e:
        raise BadInput(str(e)) from e
    return [known[name] for name in names]


def _first(
    folder: epath.Path, name: str, places: Sequence[str], suffixes: Sequence[str]
) -> epath.Path | None:
    if official_files.leads_out(name):
        return None
    for place in places:
        for suffix in suffixes:
            path = folder.joinpath(*filter(None, (place, f"{name}{suffix}")))
            if path.exists():
                return path
    return None
