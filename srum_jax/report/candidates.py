"""Scored pictures of the report: a candidate with its boxes, their scores, and token weights.

Owns how score/examples.json is read and where its marks lie.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from srum_jax.report import numbers
from srum_jax.report.pictures import Thumbnail, heat

MAX_EXAMPLES = 24  # scored candidates shown
VIEW = 160  # width of a scored candidate in SVG units, about its width on the screen
NUMBERED = 36  # tokens up to which the weights are written as numbers, too


@dataclasses.dataclass(frozen=True)
class Box:
    """A scored region, in the units of the drawing; score None: status says why there is none;
    note: what training made of it."""

    number: int
    label: str
    score: float | None
    status: str
    proposer: str
    x: float
    y: float
    width: float
    height: float
    note: str = ""

    @property
    def kind(self) -> str:
        """Its style: of a good, a bad or no score."""
        return "mute" if self.score is None else "plus" if self.score >= 0 else "minus"

    @property
    def text(self) -> str:
        """Its number and score, as they stand beside it."""
        number = str(self.number)
        return number if self.score is None else f"{number}: {numbers.signed(self.score)}"

    @property
    def text_at(self) -> tuple[float, float]:
        """Where its text stands: inside the picture, above the box if there is room."""
        x = max(min(self.x + 3, VIEW - 7 * len(self.text)), 2)
        return x, self.y - 5 if self.y > 17 else self.y + 13


@dataclasses.dataclass(frozen=True)
class Weights:
    """Token weights as a picture over the candidate; numbers: (text, x, y) of few tokens."""

    over: Thumbnail
    numbers: tuple[tuple[str, float, float], ...]


@dataclasses.dataclass(frozen=True)
class ShownCandidate:
    """A drawn picture with what was said of it; score None: status says why there is none.

    same: the weight of all of its tokens, None where they differ or are unknown · advantage: its
    score against those of its prompt, where training read that.
    """

    number: str
    picture: Thumbnail
    score: float | None
    status: str
    boxes: tuple[Box, ...]
    weights: Weights | None
    highest: bool = False
    prompt: str = ""
    advantage: float | None = None
    same: float | None = None

    @property
    def height(self) -> float:
        """Of its drawing, which is VIEW wide."""
        return VIEW * self.picture.height / self.picture.width

    @property
    def proposers(self) -> tuple[str, ...]:
        """Who found its boxes, in order; one without a name where there are none."""
        return tuple(dict.fromkeys(box.proposer for box in self.boxes)) or ("",)


@dataclasses.dataclass(frozen=True)
class ScoredPictures:
    """Candidates by prompt; scale: the least and the largest token weight, or None without any;
    left_out: how many more were kept."""

    prompts: tuple[tuple[str, tuple[ShownCandidate, ...]], ...] = ()
    scale: tuple[float, float] | None = None
    left_out: int = 0

    def __bool__(self) -> bool:
        return bool(self.prompts)


def scored_pictures(
    records: Sequence[Mapping[str, Any]], where: str, picture: Callable[[str], Thumbnail]
) -> ScoredPictures:
    """Of score/examples.json. `picture` opens a path that a record names.

    Raises ValueError naming `where`, the candidate and the field.
    """
    shown = records[:MAX_EXAMPLES]
    for i, record in enumerate(shown):
        for name in ("id", "prompt", "image", "boxes"):
            if not isinstance(record, Mapping) or name not in record:
                raise ValueError(f"{where}: record {i} has no field {name!r}; run its stage again")
    maps = [_map(record, where) for record in shown]
    finite = [m[np.isfinite(m)] for m in maps if m is not None and np.isfinite(m).any()]
    scale = (min(m.min() for m in finite), max(m.max() for m in finite)) if finite else None
    made = [_candidate(r, m, scale, where, picture) for r, m in zip(shown, maps, strict=True)]
    pairs = itertools.groupby(zip(shown, made, strict=True), lambda pair: _prompt(pair[0]))
    prompts = tuple((key[1], _ranked([c for _, c in group])) for key, group in pairs)
    return ScoredPictures(prompts, scale, len(records) - len(shown))


def _prompt(record: Mapping[str, Any]) -> tuple[str, str]:
    """Candidates are named <prompt id>-<k>."""
    return str(record["id"]).rpartition("-")[0], str(record["prompt"])


def _ranked(group: Sequence[ShownCandidate]) -> tuple[ShownCandidate, ...]:
    """The candidates of a prompt, the highest of several marked."""
    known = [c.score for c in group if c.score is not None]
    if len(group) < 2 or not known:
        return tuple(group)
    top = max(known)
    return tuple(dataclasses.replace(c, highest=c.score == top) for c in group)


def _candidate(
    record: Mapping[str, Any],
    weights: np.ndarray | None,
    scale: tuple[float, float] | None,
    where: str,
    picture: Callable[[str], Thumbnail],
) -> ShownCandidate:
    shown = picture(record["image"])
    units = VIEW / shown.width
    boxes = [
        _box(b, i, units, f"{where}: {record['id']}") for i, b in enumerate(record["boxes"], 1)
    ]
    candidate = ShownCandidate(
        number=str(record["id"]).rpartition("-")[2],
        prompt=str(record["prompt"]),
        advantage=_number(record.get("image_advantage")),
        same=_same(weights),
        picture=shown,
        score=_number(record.get("image_score")),
        status=str(record.get("image_status", "unknown")),
        boxes=tuple(boxes),
        weights=None,
    )
    if weights is None or not shown.uri:
        return candidate
    over = heat(weights, *(scale or (0.0, 1.0)))
    return dataclasses.replace(
        candidate, weights=Weights(over, _written(weights, candidate.height))
    )


def _written(weights: np.ndarray, height: float) -> tuple[tuple[str, float, float], ...]:
    rows, columns = weights.shape
    if weights.size > NUMBERED:
        return ()
    return tuple(
        (
            numbers.two_digits(weights[i, j]),
            VIEW * (j + 0.5) / columns,
            height * (i + 0.5) / rows,
        )
        for i in range(rows)
        for j in range(columns)
    )


def _number(x: Any) -> float | None:
    return float(x) if isinstance(x, int | float) and np.isfinite(x) else None


def _map(record: Mapping[str, Any], where: str) -> np.ndarray | None:
    """Its token weights float [h, w], or None."""
    if record.get("token_weights") is None:
        return None
    try:
        weights = np.array(record["token_weights"], np.float64)
    except (TypeError, ValueError):
        weights = np.zeros(0)
    if weights.ndim != 2 or not weights.size:
        raise ValueError(f"{where}: {record['id']}: 'token_weights' must be rows of equal length")
    return weights


def _box(box: Any, number: int, units: float, where: str) -> Box:
    corners = box.get("bbox") if isinstance(box, Mapping) else None
    if (
        not isinstance(corners, list)
        or len(corners) != 4
        or any(_number(c) is None for c in corners)
    ):
        raise ValueError(f"{where}: a box needs 'bbox' with the 4 numbers x0, y0, x1, y1")
    x0, y0, x1, y1 = (units * c for c in corners)
    return Box(
        number=number,
        label=str(box.get("label") or "region"),
        score=_number(box.get("score")),
        status=str(box.get("status", "unknown")),
        proposer=str(box.get("proposer", "")),
        x=x0 + 1,
        y=y0 + 1,
        width=max(x1 - x0 - 2, 1),
        height=max(y1 - y0 - 2, 1),
        note=_note(box),
    )


def _note(box: Mapping[str, Any]) -> str:
    """Of a box of train/examples.json."""
    if box.get("used") is False:
        return "not trained on: its row had no room for more regions"
    advantage = _number(box.get("advantage"))
    return "" if advantage is None else f"{numbers.signed(advantage)} against its group"


def _same(weights: np.ndarray | None) -> float | None:
    if weights is None or np.ptp(weights) > 1e-6:
        return None
    return float(weights.flat[0])
