"""The released SRUM data set: JSON lines beside a folder of pictures, read and written.

A line is {"bad_image_file", "good_image_file", "prompt", "vlm_rewards"}; the rewards are a list of
{"object", "bbox", "score"} and one {"object": "global_layout_reward", "score"} of the whole
picture. The reward is of the bad picture; the good one is what training is pulled back to, most
often the same. Boxes are (x0, y0, x1, y1) in pixels of the picture's file, ends excluded.

Where the released reader drops a sample silently `SrumDataset` says why. What it takes for
granted, a missing score as 0 and a box that is none as no region, stays so: see `rewards`.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from srum_jax.core import files
from srum_jax.core.errors import quoted
from srum_jax.data import images, records
from srum_jax.data.records import Reject

GLOBAL_ENTRY = "global_layout_reward"  # names the score of the whole picture among the rewards
PICTURES, LINES = "images", "data.jsonl"  # what `write` makes


@dataclasses.dataclass(frozen=True)
class ScoredBox:
    """A scored box (x0, y0, x1, y1) in whole pixels; None: the reward has no usable box."""

    bbox: tuple[int, int, int, int] | None
    score: float
    label: str


@dataclasses.dataclass(frozen=True)
class ImageSample:
    """A picture to learn from, uint8 [H,W,3], with its prompt and, if it was judged, its scores.

    `target`: the picture training is pulled back to where that is another one. Scores lie in
    [-1, 1]; `image_score` None: nobody judged it. Boxes are in pixels of `image`.
    """

    prompt: str
    category: str
    image: np.ndarray
    target: np.ndarray | None = None
    regions: tuple[ScoredBox, ...] = ()
    image_score: float | None = None


class SrumDataset:
    """The lines of a released file, `source[place]` an ImageSample with its pictures loaded.

    Getting a sample raises ValueError naming the field of a line that cannot be used: it is not
    JSON, lacks a field or has another type in it, names a picture that is missing, damaged or
    outside the folder, or has a score that is no number in [-1, 1] or a box outside the picture. A
    box that reaches over the edge is cut, as the released reader does.
    """

    judged = True

    def __init__(self, file: epath.PathLike, folder: epath.PathLike):
        """Raises FileNotFoundError or ValueError where `file` or `folder` is not there."""
        self.file, self.folder = epath.Path(file), epath.Path(folder)
        if self.file.suffix != ".jsonl":
            raise ValueError(f"{self.file}: must be a .jsonl file")
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: no such folder of pictures")
        self.lines = records.JsonLines(self.file)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, place: int) -> ImageSample:
        line = self.lines[place].value
        if isinstance(line, ValueError):
            raise line
        if not isinstance(line, dict):
            raise ValueError("not an object with fields")
        prompt = records.usable_text(line.get("prompt"), 'field "prompt"')
        names = [file_name(line, key) for key in ("bad_image_file", "good_image_file")]
        regions, score = rewards(line.get("vlm_rewards"))
        bad, *good = (self._picture(name) for name in dict.fromkeys(names))
        height, width = bad.shape[:2]
        regions = {
            i: _cut(region, width, height, f"vlm_rewards[{i}].bbox")
            for i, region in regions.items()
        }
        return ImageSample(
            prompt=prompt,
            category="published",
            image=bad,
            target=good[0] if good and not np.array_equal(good[0], bad) else None,
            regions=tuple(regions.values()),
            image_score=score,
        )

    def reject(self, place: int, error: Exception | str) -> Reject:
        """Line `place` as a Reject."""
        return records.reject(self.file, self.lines[place], error)

    def digest(self, kept: epath.Path) -> str:
        """Of the file and of every picture it names that is there, by `files.fingerprint`; a file
        at `kept` remembers it."""
        found: dict[str, None] = {}  # names: paths take several times their room
        for line in self.lines:
            for key in ("bad_image_file", "good_image_file"):
                with contextlib.suppress(ValueError, TypeError, AttributeError):
                    found[file_name(line.value, key)] = None
        pictures = _Pictures(self.folder, [n for n in found if (self.folder / n).is_file()])
        return files.remembered_fingerprint(pictures, [self.file], kept)

    def _picture(self, name: str) -> np.ndarray:
        try:
            # As the released reader sees it: boxes were found on pixels that EXIF had not turned.
            return images.load(self.folder / name, released=True)
        except FileNotFoundError as e:
            raise ValueError(str(e)) from e


@dataclasses.dataclass(frozen=True)
class _Pictures:
    """The paths of files in a folder, made as they are gone through."""

    folder: epath.Path
    names: Sequence[str]

    def __iter__(self) -> Iterator[epath.Path]:
        return (self.folder / name for name in self.names)


def file_name(line: Mapping[str, Any], key: str) -> str:
    """A picture's path inside the folder. ValueError for one that leads out of it."""
    name = line.get(key)
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f'no file name in the field "{key}"')
    pure = pathlib.PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name:
        raise ValueError(f'"{key}" = {quoted(name)} leads out of the folder of pictures')
    return str(pure)


def rewards(entries: Any) -> tuple[dict[int, ScoredBox], float]:
    """({place: region}, score of the whole picture) of a line's `vlm_rewards`.

    As the released reader: a missing score, also that of the picture, is 0; a box that is missing
    or empty is none. Raises ValueError naming the entry and its field for anything else.
    """
    if not isinstance(entries, list):
        raise ValueError('"vlm_rewards" must be a list of objects')
    found, image_score = {}, 0.0
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"vlm_rewards[{i}] must be an object with fields, got {quoted(entry)}")
        score = _score(entry.get("score", 0.0), f"vlm_rewards[{i}].score")
        label = entry.get("object", "")
        if not isinstance(label, str):
            raise ValueError(f"vlm_rewards[{i}].object must be a text, got {quoted(label)}")
        if label == GLOBAL_ENTRY:
            image_score = score
        else:
            found[i] = ScoredBox(_box(entry.get("bbox"), f"vlm_rewards[{i}].bbox"), score, label)
    return found, image_score


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**63  # of NaN this is False


def _score(value: Any, what: str) -> float:
    if not _number(value) or not -1 <= value <= 1:
        raise ValueError(f"{what} must be a number in [-1, 1], got {quoted(value)}")
    return float(value)


def _box(value: Any, what: str) -> tuple[int, int, int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4 or not all(map(_number, value)):
        raise ValueError(f"{what} must be four finite numbers x0, y0, x1, y1, got {quoted(value)}")
    x0, y0, x1, y1 = map(int, value)  # towards zero, as released
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _cut(region: ScoredBox, width: int, height: int, what: str) -> ScoredBox:
    """The region inside its picture. ValueError where nothing of it is."""
    if region.bbox is None:
        return region
    x0, y0, x1, y1 = region.bbox
    box = (max(x0, 0), max(y0, 0), min(x1, width), min(y1, height))
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(
            f"{what} = {list(region.bbox)} lies outside its picture of {width}x{height}"
        )
    return dataclasses.replace(region, bbox=box)


# ---------------------------------------------------------------------------------------- writing


def write(
    folder: epath.PathLike,
    candidates: Iterable[Mapping[str, Any]],
    scores: Sequence[Mapping[str, Any]],
    proposer: str,
) -> dict[str, int]:
    """Writes a run's candidates with their scores as a released data set into `folder`.

    candidates and scores: the records of `generate` and `score`, joined by id; regions of
    `proposer` with status "ok". Makes `data.jsonl` and `images/<id>.png`; the good picture is the
    bad one. Boxes are cut to whole pixels inside the picture, which is all that the weight rule
    reads of them. Returns counts: written, and images and regions left out for want of a score or
    of a pixel. Raises ValueError for a candidate without a score record.
    """
    folder = epath.Path(folder)
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    counts = {"written": 0, "images left out": 0, "regions left out": 0}
    lines = _lines(folder, candidates, scores, proposer, counts)
    files.write_bytes(folder / LINES, map(str.encode, lines))
    return counts


def _lines(
    folder: epath.Path,
    candidates: Iterable[Mapping[str, Any]],
    scores: Sequence[Mapping[str, Any]],
    proposer: str,
    counts: dict[str, int],
) -> Iterator[str]:
    """Lines of the data set, each once its picture is written; `counts` goes on as they do."""
    places = {record["id"]: place for place, record in enumerate(scores)}
    for candidate in candidates:
        name = candidate["id"]
        if name not in places:
            raise ValueError(f"candidate {name} has no score record: run the score stage again")
        score = scores[places[name]]
        if score["image_status"] != "ok":
            counts["images left out"] += 1
            continue
        height, width = candidate["image"].shape[:2]
        of_proposer = [r for r in score["regions"] if r["proposer"] == proposer]
        entries = [_entry(r, width, height) for r in of_proposer]
        counts["regions left out"] += entries.count(None)
        file = f"{name}.png"
        (folder / PICTURES / file).write_bytes(images.encode_png(candidate["image"]))
        whole = {"object": GLOBAL_ENTRY, "score": float(score["image_score"])}
        line = {
            "bad_image_file": file,
            "good_image_file": file,
            "prompt": candidate["prompt"],
            "vlm_rewards": [*(e for e in entries if e is not None), whole],
        }
        counts["written"] += 1
        yield json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def _entry(region: Mapping[str, Any], width: int, height: int) -> dict[str, Any] | None:
    """A region as a published entry; None without a score or a pixel inside the picture."""
    limits = (width, height, width, height)
    box = [min(max(int(v), 0), limit) for v, limit in zip(region["bbox"], limits, strict=True)]
    if region["status"] != "ok" or box[0] >= box[2] or box[1] >= box[3]:
        return None
    return {"object": region["label"], "bbox": box, "score": float(region["score"])}
