"""The picture parts of the report: before and after, captions, edits, scored candidates.

Owns how evaluate/pairs.json, evaluate/examples-*.json and score/examples.json are read and drawn.
Picture paths in them are relative to the file that names them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from srum_jax.core.files import read_json
from srum_jax.stages import report_html as page
from srum_jax.stages.report_html import Html, h, join

MAX_PAIRS = 16  # pictures shown of each outcome
MAX_EXAMPLES = 24  # scored candidates shown
VIEW = 160  # width of a drawn candidate in SVG units, about its width on the screen


def _records(path: epath.Path | None, fields: Sequence[str]) -> list[dict]:
    """The JSON list in `path`, each record with all `fields`; [] if there is no such file."""
    if path is None or not path.exists():
        return []
    records = read_json(path)
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a list, found {type(records).__name__}")
    for i, record in enumerate(records):
        missing = [f for f in fields if not isinstance(record, dict) or f not in record]
        if missing:
            raise ValueError(f"{path}: record {i} has no field {missing[0]!r}; run its stage again")
    return records


def _picture(path: epath.Path) -> page.Picture | None:
    """None if the file is not there; the page then says so in its place."""
    if not path.exists():
        return None
    try:
        return page.picture(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _mark(right: bool) -> Html:
    text, kind = ("\u2713 right", "right") if right else ("\u2717 wrong", "wrong")
    return h("span", text, class_=kind)


def pairs(path: epath.Path | None) -> Html:
    """Base and trained picture of every kept prompt, in groups by what became of it.

    Args:
      path: evaluate/pairs.json; empty markup if it is None or not there.

    Raises:
      ValueError: the file or a picture is there but broken; the message names it.
    """
    kept = _records(
        path, ("prompt", "base_image", "trained_image", "base_correct", "trained_correct")
    )
    parts = []
    for title, was, now in (
        ("Right only when trained", False, True),
        ("Right only in the base", True, False),
        ("Right both times", True, True),
        ("Wrong both times", False, False),
    ):
        found = [
            p for p in kept if (bool(p["base_correct"]), bool(p["trained_correct"])) == (was, now)
        ]
        if found:
            shown = found[:MAX_PAIRS]
            note = f"{len(found)} of the {len(kept)} kept" + (
                f", the first {len(shown)} shown" if len(shown) < len(found) else ""
            )
            parts += [
                h("h3", title, " ", h("small", note)),
                h("div", *[_pair_card(path.parent, p) for p in shown], class_="cards"),
            ]
    return join(*parts)


def _figure(path: epath.Path, alt: str, *caption) -> Html:
    shown = _picture(path)
    image = (
        h("div", "picture missing", class_="lost-picture")
        if shown is None
        else h(
            "img", src=shown.uri, style=shown.style, alt=alt, width=shown.width, height=shown.height
        )
    )
    return h("figure", image, h("figcaption", *caption) if caption else None)


def _first(cards: Sequence[Html], size: str) -> Html:
    if not cards:
        return Html("")
    note = h("small", "in the order of the test, none is chosen by its looks")
    return join(h("h3", f"The first {len(cards)} ", note), h("div", *cards, class_=size))


def _pair_card(folder: epath.Path, pair: Mapping[str, Any]) -> Html:
    kind = h("small", f" {pair['category']}") if "category" in pair else None
    sides = [
        _figure(
            folder / pair[f"{name}_image"],
            f"{name}: {pair['prompt']}",
            f"{name} ",
            _mark(pair[f"{name}_correct"]),
        )
        for name in ("base", "trained")
    ]
    return h(
        "article", h("p", pair["prompt"], kind), h("div", *sides, class_="pair"), class_="card"
    )


def _arms(record: Mapping[str, Any]) -> list[str]:
    return [name for name in ("base", "trained") if f"{name}_correct" in record]


def edits(path: epath.Path | None) -> Html:
    """What was to be changed, and the picture before and after it by each model.

    Args:
      path: evaluate/examples-edits.json; empty markup if it is None or not there.

    Raises:
      ValueError: the file or a picture is there but broken; the message names it.
    """
    kept = _records(path, ("instruction", "image", "base_image", "base_correct"))
    cards = []
    for record in kept:
        said = record["instruction"]
        figures = [_figure(path.parent / record["image"], f"before: {said}", "before")]
        figures += [
            _figure(
                path.parent / record[f"{name}_image"],
                f"{name}: {said}",
                f"{name} ",
                _mark(record[f"{name}_correct"]),
            )
            for name in _arms(record)
        ]
        cards.append(h("article", h("p", said), h("div", *figures, class_="pair"), class_="card"))
    return _first(cards, "cards big")


def captions(path: epath.Path | None) -> Html:
    """Pictures and what each model wrote of them.

    Args:
      path: evaluate/examples-captions.json; empty markup if it is None or not there.

    Raises:
      ValueError: the file or a picture is there but broken; the message names it.
    """
    kept = _records(path, ("image", "base_caption", "base_correct"))
    cards = []
    for record in kept:
        said = [
            h(
                "p",
                h("small", f"{name} "),
                _mark(record[f"{name}_correct"]),
                h("br"),
                record[f"{name}_caption"],
            )
            for name in _arms(record)
        ]
        seen = _figure(path.parent / record["image"], "to be described")
        cards.append(h("article", h("div", seen, h("div", *said), class_="pair"), class_="card"))
    return _first(cards, "cards")


def examples(path: epath.Path | None) -> Html:
    """Scored candidates by prompt: boxes with scores, and the token weights as a heat map.

    Args:
      path: score/examples.json; empty markup if it is None or not there.

    Raises:
      ValueError: the file or a picture is there but broken; the message names it.
    """
    kept = _records(path, ("id", "prompt", "image", "boxes"))
    records = kept[:MAX_EXAMPLES]
    if not records:
        return Html("")
    maps = [_weights(record, path) for record in records]
    finite = [m[np.isfinite(m)] for m in maps if m is not None and np.isfinite(m).any()]
    scale = (min(m.min() for m in finite), max(m.max() for m in finite)) if finite else (0.0, 1.0)
    ramp = None
    if finite:
        ramp = join(
            h("div", class_="ramp", aria_hidden="true"),
            h(
                "div",
                h("span", f"weight {page.short(scale[0])}"),
                h("span", page.short(scale[1])),
                class_="axis-text",
            ),
        )
    parts = []
    numbered = zip(records, maps, strict=True)
    for _, group in itertools.groupby(numbered, lambda pair: _prompt_id(pair[0])):
        group = list(group)
        scores = [_number(record.get("image_score")) for record, _ in group]
        known = [s for s in scores if s is not None]
        top = max(known) if len(group) > 1 and known else None
        cards = [
            _example_card(path, record, weights, scale, score is not None and score == top)
            for (record, weights), score in zip(group, scores, strict=True)
        ]
        parts += [h("h3", group[0][0]["prompt"]), h("div", *cards, class_="cards big")]
    if len(records) < len(kept):
        parts.append(h("p", h("small", f"The first {len(records)} of the {len(kept)} kept.")))
    return join(ramp, *parts)


def _prompt_id(record: Mapping[str, Any]) -> tuple[str, str]:
    """Candidates are named <prompt id>-<k>."""
    return str(record["id"]).rpartition("-")[0], str(record["prompt"])


def _number(x: Any) -> float | None:
    return float(x) if isinstance(x, (int, float)) and np.isfinite(x) else None


def _weights(record: Mapping[str, Any], path: epath.Path) -> np.ndarray | None:
    if record.get("token_weights") is None:
        return None
    try:
        weights = np.array(record["token_weights"], np.float64)
    except (TypeError, ValueError):
        weights = np.zeros(0)
    if weights.ndim != 2 or not weights.size:
        raise ValueError(f"{path}: {record['id']}: 'token_weights' must be rows of equal length")
    return weights


def _example_card(
    path: epath.Path,
    record: Mapping[str, Any],
    weights: np.ndarray | None,
    scale: tuple[float, float],
    picked: bool,
) -> Html:
    where = f"{path}: {record['id']}"
    shown = _picture(path.parent / record["image"])
    boxes = list(enumerate((_box(b, where) for b in record["boxes"]), 1))
    proposers = list(dict.fromkeys(b.get("proposer", "") for _, b in boxes)) or [""]
    if shown is None:
        panels = [h("div", "picture missing", class_="lost-picture")]
    else:
        panels = [
            h(
                "figure",
                _drawn_boxes(shown, [(i, b) for i, b in boxes if b.get("proposer", "") == name]),
                h("figcaption", name or "regions"),
            )
            for name in proposers
        ]
        if weights is not None:
            panels.append(
                h("figure", _drawn_weights(shown, weights, scale), h("figcaption", "token weights"))
            )
    lines = [
        h(
            "li",
            f"{b.get('label') or 'region'}: ",
            h("b", page.signed(b["score"]))
            if b["score"] is not None
            else f"no score ({b.get('status', 'unknown')})",
        )
        for _, b in boxes
    ]
    score = _number(record.get("image_score"))
    whole = (
        h("b", page.signed(score))
        if score is not None
        else (f"no score ({record.get('image_status', 'unknown')})")
    )
    return h(
        "article",
        h(
            "p",
            f"Candidate {str(record['id']).rpartition('-')[2]}. Whole picture: ",
            whole,
            h("small", " \u00b7 highest here") if picked else None,
        ),
        h("div", *panels, class_="pair"),
        h("ol", *lines, class_="regions") if lines else None,
        class_="card picked" if picked else "card",
    )


def _box(box: Mapping[str, Any], where: str) -> dict:
    corners = box.get("bbox") if isinstance(box, Mapping) else None
    if (
        not isinstance(corners, list)
        or len(corners) != 4
        or any(_number(c) is None for c in corners)
    ):
        raise ValueError(f"{where}: a box needs 'bbox' with the 4 numbers x0, y0, x1, y1")
    return {**box, "score": _number(box.get("score"))}


def _canvas(shown: page.Picture, name: str, *marks, grey: bool = False) -> Html:
    height = f"{VIEW * shown.height / shown.width:.1f}"
    style = ";".join(filter(None, (shown.style, "filter:grayscale(1)" if grey else None)))
    image = h(
        "image",
        href=shown.uri,
        width=VIEW,
        height=height,
        style=style or None,
        preserveAspectRatio="none",
    )
    return h(
        "svg",
        image,
        *marks,
        viewBox=f"0 0 {VIEW} {height}",
        class_="drawn",
        role="img",
        aria_label=name,
    )


def _drawn_boxes(shown: page.Picture, boxes: Sequence[tuple[int, dict]]) -> Html:
    scale = VIEW / shown.width
    frames, texts = [], []
    for i, box in boxes:
        x0, y0, x1, y1 = (scale * c for c in box["bbox"])
        score = box["score"]
        kind = "mute" if score is None else "plus" if score >= 0 else "minus"
        place = {
            "x": f"{x0 + 1:.1f}",
            "y": f"{y0 + 1:.1f}",
            "width": f"{max(x1 - x0 - 2, 1):.1f}",
            "height": f"{max(y1 - y0 - 2, 1):.1f}",
        }
        frames += [h("rect", **place, class_="halo"), h("rect", **place, class_=kind)]
        text = str(i) if score is None else f"{i}: {page.signed(score)}"
        x = max(min(x0 + 4, VIEW - 7 * len(text)), 2)
        texts.append(h("text", text, x=f"{x:.1f}", y=f"{y0 - 4 if y0 > 16 else y0 + 14:.1f}"))
    return _canvas(shown, f"picture with {len(boxes)} scored regions", *frames, *texts)


def _drawn_weights(shown: page.Picture, weights: np.ndarray, scale: tuple[float, float]) -> Html:
    over = page.heat(weights, *scale)
    rows, columns = weights.shape
    height = VIEW * shown.height / shown.width
    marks = [
        h(
            "image",
            href=over.uri,
            width=VIEW,
            height=f"{height:.1f}",
            style="image-rendering:pixelated",
            preserveAspectRatio="none",
        )
    ]
    if weights.size <= 36:  # more numbers than that could not be read
        marks += [
            h(
                "text",
                page.two_digits(weights[i, j]),
                x=f"{VIEW * (j + 0.5) / columns:.1f}",
                y=f"{height * (i + 0.5) / rows:.1f}",
                dy="0.35em",
                text_anchor="middle",
                class_="cell",
            )
            for i in range(rows)
            for j in range(columns)
        ]
    return _canvas(shown, "weight of each token in training", *marks, grey=True)
