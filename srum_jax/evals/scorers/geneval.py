"""GenEval: what detected objects say of a prompt's clauses, and the summary over images.

Owns the rules on boxes and colours, which files of a folder are images of prompts, and the text
that the official summary prints. Source: djghosh13/geneval at af4902f, `evaluation/`. No detector:
boxes and colours come from the official one, which writes `results.jsonl`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
CONFIDENCE, COUNTING_CONFIDENCE = 0.3, 0.9
MOST_OBJECTS = 16
POSITION_THRESHOLD = 0.1
AXIS_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Result:
    """One image of `results.jsonl`: `metadata` is the clause line as its text, by which images
    belong to a prompt."""

    filename: str
    tag: str
    prompt: str
    correct: bool
    metadata: str
    reason: str = ""


def kept(boxes: Sequence[Sequence[float]], tag: str) -> list[int]:
    """Which detections of one class count, most confident first: over .3 (tag "counting": .9), at
    most 16.

    Args:
      boxes: [n] of (x0, y0, x1, y1, confidence) in pixels, in the detector's order.
    """
    confidence = np.asarray([box[4] for box in boxes], np.float64)
    least = COUNTING_CONFIDENCE if tag == "counting" else CONFIDENCE
    order = np.argsort(confidence)[::-1]
    return [int(i) for i in order if confidence[i] > least][:MOST_OBJECTS]


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of boxes (x0, y0, x1, y1, ...) whose last pixel is inside."""
    shared = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = _area(a) + _area(b) - shared
    return shared / union if union else 0.0


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)


def relative_position(a: Sequence[float], b: Sequence[float]) -> frozenset[str]:
    """Where box a lies from box b, (x0, y0, x1, y1, ...): of "left of", "right of", "above",
    "below" none, one or two.

    The offset of the centres loses a tenth of both sizes an axis; what is left, as a share of the
    whole offset, must pass one half.
    """
    corners = np.asarray([a[:4], b[:4]], np.float64).reshape(2, 2, 2)
    centres, sizes = corners.mean(axis=1), np.abs(corners[:, 1] - corners[:, 0])
    offset = centres[0] - centres[1]
    shrunk = np.maximum(np.abs(offset) - POSITION_THRESHOLD * sizes.sum(axis=0), 0)
    if (shrunk < 1e-3).all():
        return frozenset()
    dx, dy = np.sign(offset) * shrunk / np.linalg.norm(offset)
    held = {
        "left of": dx < -AXIS_SHARE,
        "right of": dx > AXIS_SHARE,
        "above": dy < -AXIS_SHARE,
        "below": dy > AXIS_SHARE,
    }
    return frozenset(name for name, true in held.items() if true)


def verdict(
    metadata: Mapping[str, Any],
    detections: Mapping[str, Sequence[Sequence[float]]],
    colors: Mapping[str, Mapping[int, str]],
) -> tuple[bool, str]:
    """Whether an image shows what its clauses say, and what is wrong, a line a fault.

    Args:
      metadata: a line of `evaluation_metadata.jsonl`, with tag, include and perhaps exclude.
      detections: {class: boxes [n] of (x0, y0, x1, y1, confidence)}, in the detector's order.
      colors: {class: {index of a detection: one of COLORS}}; read where a clause has a colour.

    Where a box stands on two sides of its target, the reason names the sides in the order of the
    alphabet (the official one in any order).
    """
    found = {name: kept(boxes, metadata["tag"]) for name, boxes in detections.items()}
    faults: list[str] = []
    groups: list[list[Sequence[float]] | None] = []
    for clause in metadata.get("include", []):
        name = clause["class"]
        indices = found.get(name, [])[: clause["count"]]
        boxes = [detections[name][i] for i in indices]
        fault = _count_fault(clause, boxes)
        if "color" in clause:
            fault = fault or _color_fault(clause, [colors[name][i] for i in indices])
        fault = fault or _position_fault(clause, boxes, groups)
        groups.append(None if fault else boxes)
        faults += [fault] if fault else []
    for clause in metadata.get("exclude", []):
        seen = len(found.get(clause["class"], []))
        if seen >= clause["count"]:
            faults.append(f"expected {clause['class']}<{clause['count']}, found {seen}")
    return not faults, "\n".join(faults)


def _count_fault(clause: Mapping[str, Any], boxes: Sequence) -> str:
    if len(boxes) >= clause["count"]:
        return ""
    return f"expected {clause['class']}>={clause['count']}, found {len(boxes)}"


def _color_fault(clause: Mapping[str, Any], colors: Sequence[str]) -> str:
    color, count = clause["color"], clause["count"]
    if colors.count(color) >= count:
        return ""
    seen = ", ".join(f"{colors.count(one)} {one}" for one in COLORS if one in colors)
    return (
        f"expected {color} {clause['class']}>={count}, "
        f"found {colors.count(color)} {color}; and {seen}"
    )


def _position_fault(clause: Mapping[str, Any], boxes: Sequence, groups: Sequence) -> str:
    if "position" not in clause:
        return ""
    relation, target = clause["position"]
    if groups[target] is None:
        return f"no target for {clause['class']} to be {relation}"
    for box in boxes:
        for other in groups[target]:
            held = relative_position(box, other)
            if relation not in held:
                seen = " and ".join(sorted(held))
                return f"expected {clause['class']} {relation} target, found {seen} target"
    return ""


def scanned(files: Iterable[str]) -> list[str]:
    """Those of a folder's files, relative paths with `/`, that the official program takes for
    images, in order: `<all digits>/samples/<digits>.png` and whatever begins so."""
    return [path for path in files if _is_image(path.split("/"))]


def _is_image(parts: Sequence[str]) -> bool:
    if len(parts) != 3 or parts[1] != "samples":
        return False
    return parts[0].isdigit() and re.match(r"\d+\.png", parts[2]) is not None


def tag_means(results: Sequence[Result]) -> dict[str, float]:
    """{tag: share of its images that are correct}, tags as they first appear."""
    tags = dict.fromkeys(one.tag for one in results)
    return {tag: _share([one.correct for one in results if one.tag == tag]) for tag in tags}


def overall(results: Sequence[Result]) -> float:
    """The plain mean of the tags' means: not the share of images. NaN of nothing."""
    return _share(list(tag_means(results).values()))


def _share(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def correct_prompts(results: Sequence[Result]) -> float:
    """The share of prompts with any correct image; equal metadata is one prompt."""
    any_right: dict[str, bool] = {}
    for one in results:
        any_right[one.metadata] = any_right.get(one.metadata, False) or one.correct
    return _share(list(any_right.values()))


def summary(results: Sequence[Result]) -> str:
    """What `summary_scores.py` prints."""
    lines = [
        "Summary",
        "=======",
        f"Total images: {len(results)}",
        f"Total prompts: {len({one.metadata for one in results})}",
        f"% correct images: {_share([one.correct for one in results]):.2%}",
        f"% correct prompts: {correct_prompts(results):.2%}",
        "",
        "Task breakdown",
        "==============",
    ]
    for tag, mean in tag_means(results).items():
        right = [one.correct for one in results if one.tag == tag]
        lines.append(f"{tag:<16} = {mean:.2%} ({sum(right)} / {len(right)})")
    lines += ["", f"Overall score (avg. over tasks): {overall(results):.5f}"]
    return "\n".join(lines) + "\n"


def short_table(results: Sequence[Result]) -> str:
    """BAGEL's and SRUM's `geneval_results.txt`. Its header is fixed while its numbers follow the
    order in which tags appear: only the last column is sure to be what it says."""
    numbers = [*tag_means(results).values(), overall(results)]
    return "SO   TO   CT   CL   POS  ATTR ALL\n" + " ".join(f"{x:.2f}" for x in numbers) + "\n"
