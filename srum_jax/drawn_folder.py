"""A folder of drawings: images and, a line each, how they were drawn, kept as each batch is done.

What the shell draws goes through it: the same work goes on from what is there, other work is
refused.
"""

import errno
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import logging

from srum_jax import config_history
from srum_jax.core import console, files
from srum_jax.core.errors import BadInput, quoted

RECORDS = "records.jsonl"
# Of a record: where something lay, not what it was.
PATHS = ("model", "base", "adapter", "images", "from_image")


def kept(
    folder: pathlib.Path,
    jobs: Sequence[dict[str, Any]],
    batch: int,
    draw: Callable[[Sequence[dict]], Sequence],
) -> Iterator[dict[str, Any]]:
    """Records of `jobs` in `folder`: those that are there, then what `draw` draws of the others,
    `batch` at a time."""
    wanted = json.loads(json.dumps(jobs))  # as records are read
    done = _done(folder / RECORDS, wanted)
    for job in wanted:
        if _key(job) in done:
            yield done[_key(job)] | {"file": str(folder / file_name(job))}
    left = [job for job in wanted if _key(job) not in done]
    if len(left) < len(wanted):
        logging.info("%d images are there already", len(wanted) - len(left))
    with console.progress(total=len(left), unit="image", shown=len(left) > batch) as bar:
        for first in range(0, len(left), batch):
            part = left[first : first + batch]
            for job, drawing in zip(part, draw(part), strict=True):
                drawing.save(folder / file_name(job))
                record = job | {"file": file_name(job), "size": list(drawing.image.shape[:2])}
                if drawing.thought:
                    record["thought"] = drawing.thought
                if drawing.score:
                    record |= _chosen(drawing)
                _append(folder / RECORDS, json.dumps(record) + "\n")
                yield record | {"file": str(folder / file_name(job))}
                bar.update()


def _chosen(drawing) -> dict[str, Any]:
    """Of an image that is the best of several: its own seed and score, null where it has none."""
    score, status = drawing.score.score, drawing.score.status
    score = score if status == "ok" else None
    return {"chosen_seed": drawing.seed, "image_score": score, "image_status": status}


def _append(path: pathlib.Path, line: str) -> None:
    """Adds a whole line or, where there is no room for it, nothing."""
    data = line.encode()
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(data) < len(data):  # the disk became full on the way
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as e:
            file.truncate(before)
            raise OSError(e.errno, e.strerror, str(path)) from e


def file_name(record: dict[str, Any]) -> str:
    """Of the image of a record, or of a job."""
    return f"{record['id']}-{record['k']}.png"


def _key(record: dict[str, Any]) -> tuple:
    return record["id"], record["k"]


def _done(path: pathlib.Path, wanted: Sequence[dict]) -> dict[tuple, dict[str, Any]]:
    """Records of finished images by (id, k). Raises BadInput where the folder has other work.

    Lines that a killed run or a disk left in part go: their images are drawn again.
    """
    if not path.exists():
        return {}
    by_key = {_key(job): job for job in wanted}
    *lines, torn = path.read_bytes().split(b"\n")
    parsed = [_parsed(line) for line in lines]
    ours = any(isinstance(record, dict) and _FIELDS <= set(record) for record in parsed)
    found, whole = {}, []
    for number, (line, record) in enumerate(zip(lines, parsed, strict=True), start=1):
        if isinstance(record, ValueError) and ours:
            logging.warning("%s, line %d: damaged; that image is drawn again", path, number)
            continue
        whole.append(line)
        try:
            if isinstance(record, ValueError):
                raise record
            key = _key(record)
            asked = key in by_key
        except (ValueError, KeyError, TypeError) as e:
            raise BadInput(f"{path}, line {number}: not a record of an image ({e!r})") from e
        for name, value in by_key.get(key, {}).items():
            was = _today(name, record.get(name))
            if name not in PATHS and was != value:
                raise BadInput(
                    f"{path}, line {number}: image {key[0]}-{key[1]} was drawn with {name} = "
                    f"{quoted(was)}, not {quoted(value)}; name another folder with -o"
                )
        if asked and _ends(path.parent / file_name(record)):
            found[key] = record
    if torn or len(whole) < len(lines):
        files.write_bytes(path, (line + b"\n" for line in whole))
    return found


def _today(name: str, value: Any) -> Any:
    """A field of a record as it is written today: settings without keys that are gone."""
    if name != "settings" or not isinstance(value, dict):
        return value
    gone = {key for key in value if config_history.REMOVED.get(f"sample.{key}") == value[key]}
    return {key: kept for key, kept in value.items() if key not in gone}


_FIELDS = {"id", "k", "file", "size"}  # of every record that is written here


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as e:
        return e if isinstance(e, ValueError) else ValueError("it nests too deeply")


def _ends(picture: pathlib.Path) -> bool:
    """Whether a PNG is there, to its end."""
    try:
        with picture.open("rb") as file:
            file.seek(-12, os.SEEK_END)
            return file.read() == b"\0\0\0\0IEND\xaeB`\x82"
    except OSError:
        return False
