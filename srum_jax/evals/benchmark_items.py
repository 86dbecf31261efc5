"""Items of a benchmark to look at: what was asked, what each model said, what that is worth.

Owns the records that the report reads (`suite.Findings`), their order, and which of them are kept
with pictures.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from srum_jax.evals.suite import ModelOutputs, Record, Requests, Scored

SHOWN = 24  # items that are kept with their pictures


def rows(
    score: Callable[[Sequence[Record]], Scored], outputs: Mapping[str, ModelOutputs]
) -> list[dict[str, Any]]:
    """Every item with what each model said and what that is worth: those on which the models differ
    come first, then those that the last one gets wrong."""
    records = {name: first_judge(one.verdicts) for name, one in outputs.items()}
    marks = {name: score(some).items for name, some in records.items()}
    first, *others = marks.values()
    last = others[-1] if others else first
    if len(first) != len(last):
        return []
    said = {name: {r.id: r for r in some} for name, some in records.items()}
    drawn = drawn_for(next(iter(outputs.values())).requests)
    order = sorted(
        range(len(first)), key=lambda i: (worth(first[i]) == worth(last[i]), worth(last[i]))
    )
    found = []
    for i in order:
        row = {"id": first[i]["id"], "kind": first[i]["category"]}
        for name, items in marks.items():
            record = said[name].get(items[i]["id"])
            asked = _of_request(first[i]["id"], drawn) or (record.asked if record else "")
            row |= {"question": asked} if asked else {}
            if record and isinstance(record.truth, str):
                row["expected"] = record.truth
            row |= _item_fields(name, items[i], record)
        found.append(row)
    return found


def shown(
    suite: str, several: Sequence[Mapping[str, Any]], outputs: Mapping[str, ModelOutputs]
) -> dict[str, list[dict[str, Any]]]:
    """{"examples-<suite>": some of the `rows` with their pictures, in turn of what became of them:
    gained, lost, as before}."""
    turns: collections.Counter = collections.Counter()
    ranked = []
    for i, row in enumerate(several):
        outcome = _outcome(row, list(outputs))
        ranked.append((turns[outcome], i))
        turns[outcome] += 1
    chosen = [several[i] for _, i in sorted(ranked)[:SHOWN]]
    places = request_places(next(iter(outputs.values())).requests)
    found = [dict(row) | _pictures(row["id"], places, outputs) for row in chosen]
    return {f"examples-{suite}": found} if found else {}


def _outcome(row: Mapping[str, Any], models: Sequence[str]) -> tuple:
    right = tuple(row.get(f"{name}_correct") for name in models)
    values = [row.get(f"{name}_value") for name in models]
    if len(values) < 2 or None in values:
        return right
    return ((values[-1] > values[0]) - (values[-1] < values[0]),)


def drawn_for(requests: Requests) -> dict[str, str]:
    """{id: what a picture was drawn or changed for}: a judge is asked in other words."""
    found = {one.id: one.prompt.text for one in requests.images}
    for one in _unread(requests.edits):
        found[str(one.id)] = getattr(one, "instruction", "")
    return found


def _of_request(id: str, found: Mapping[str, Any]) -> Any:
    """What stands behind a colon in an id is a judge's."""
    return found.get(id) or found.get(id.partition(":")[0])


def request_places(requests: Requests) -> dict[str, tuple[str, int]]:
    """{id: (kind of request, its place)}. No request with pictures is made: the items of a
    `LazySequence` have the ids."""
    found = {}
    for kind in ("images", "answers", "texts", "edits"):
        items = _unread(getattr(requests, kind))
        found |= {str(one.id): (kind, i) for i, one in enumerate(items)}
    return found


def _unread(requests: Sequence[Any]) -> Sequence[Any]:
    """What a `benchmark.LazySequence` makes its requests of."""
    return getattr(requests, "items", requests)


def _pictures(
    id: str, places: Mapping[str, tuple[str, int]], outputs: Mapping[str, ModelOutputs]
) -> dict[str, np.ndarray]:
    """What was shown and what was drawn."""
    kind, place = _of_request(id, places) or ("", 0)
    if not kind:
        return {}
    request = getattr(next(iter(outputs.values())).requests, kind)[place]
    if kind in ("answers", "texts"):
        return {"image": request.images[0]} if request.images else {}
    drawn = {name: getattr(one.replies, kind)[place] for name, one in outputs.items()}
    if kind == "images":
        return {f"{name}_image": one["image"] for name, one in drawn.items()}
    edit = {"instruction": request.instruction, "image": request.image}
    return edit | {f"{name}_image": one for name, one in drawn.items()}


def first_judge(records: Sequence[Record]) -> list[Record]:
    """Those of the judge that counts."""
    return [r for r in records if r.judge == records[0].judge]


def worth(item: Mapping[str, Any]) -> float:
    """Of one of `Scored.items`: its value, or whether it is right; 0 for neither."""
    value = item["right"] if "right" in item else item.get("value")
    return 0.0 if value is None else float(value)


def _item_fields(name: str, item: Mapping[str, Any], record: Record | None) -> dict[str, Any]:
    found = {f"{name}_answer": record.reply} if record else {}
    for field, key in (("right", "correct"), ("value", "value"), ("reason", "reason")):
        if item.get(field) not in (None, ""):
            found[f"{name}_{key}"] = item[field]
    return found
