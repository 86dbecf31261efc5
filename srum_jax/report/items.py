"""Single items of the report: what was asked, what each model gave, and what was said of it.

Owns how a record of pairs.json, of examples-<name>.json or of evaluation.json is read, whichever
suite wrote it: "<model>_correct" says whether that model was right, "<model>_reason" why not, and
every other "<model>_..." field holds what it gave.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from srum_jax.report.pictures import Thumbnail

ASKED = ("prompt", "instruction", "question")
KIND = ("category", "kind")
RIGHT = "_correct"


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a model gave: a picture, a text, or (of an item not kept) neither."""

    model: str
    right: bool
    picture: Thumbnail | None = None
    text: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Item:
    """asked: the words of the request; given: the picture that came with it; expected: the right
    answer, where it is one text."""

    asked: str
    kind: str
    given: Thumbnail | None
    expected: str
    replies: tuple[Reply, ...]

    @property
    def outcome(self) -> str:
        """ "both", "second", "first" or "neither" of two models; "right" or "wrong" of one."""
        right = [reply.right for reply in self.replies]
        if len(right) != 2:
            return "right" if all(right) else "wrong"
        return {(1, 1): "both", (0, 1): "second", (1, 0): "first"}.get(tuple(right), "neither")

    @property
    def failed(self) -> bool:
        """Whether some reply is not right."""
        return not all(reply.right for reply in self.replies)


def items(
    records: Any, where: str, picture: Callable[[str], Thumbnail | None] = lambda path: None
) -> tuple[Item, ...]:
    """The items of a JSON list. `picture` opens a path that a record names.

    Raises ValueError naming `where`, the record and the field that it lacks.
    """
    if not isinstance(records, list):
        raise ValueError(f"{where}: expected a list, found {type(records).__name__}")
    return tuple(_item(record, f"{where}: record {i}", picture) for i, record in enumerate(records))


def _item(record: Any, where: str, picture: Callable[[str], Thumbnail | None]) -> Item:
    fields = record if isinstance(record, Mapping) else {}
    models = [key.removesuffix(RIGHT) for key in fields if key.endswith(RIGHT)]
    if not models:
        raise ValueError(f"{where} has no field '<model>{RIGHT}'; run its stage again")
    if not any(name in fields for name in (*ASKED, "image", *KIND)):
        raise ValueError(f"{where} has no field {ASKED[0]!r} or 'image'; run its stage again")
    return Item(
        asked=_first(fields, ASKED) or _other_text(fields, models),
        kind=_first(fields, KIND),
        given=picture(fields["image"]) if "image" in fields else None,
        expected=str(fields.get("expected", "")),
        replies=tuple(_reply(fields, model, picture) for model in models),
    )


def _first(fields: Mapping[str, Any], names: Iterable[str]) -> str:
    return next((str(fields[name]) for name in names if name in fields), "")


def _other_text(fields: Mapping[str, Any], models: Sequence[str]) -> str:
    """What a record says beside its picture, kind, answer and what models gave."""
    own = {"image", "expected", *KIND}
    said = (
        value
        for key, value in fields.items()
        if isinstance(value, str) and key not in own and not _of_model(key, models)
    )
    return "; ".join(said)


def _of_model(key: str, models: Sequence[str]) -> bool:
    return any(key.startswith(f"{model}_") for model in models)


def _reply(
    fields: Mapping[str, Any], model: str, picture: Callable[[str], Thumbnail | None]
) -> Reply:
    own = {
        key.removeprefix(f"{model}_"): value
        for key, value in fields.items()
        if key.startswith(f"{model}_")
    }
    right, reason, path = own.pop("correct"), own.pop("reason", ""), own.pop("image", None)
    return Reply(
        model=model,
        right=bool(right),
        picture=None if path is None else picture(path),
        text="; ".join(str(value) for value in own.values()),
        reason="" if right else str(reason),
    )


def with_reasons(shown: Sequence[Item], everything: Sequence[Item]) -> tuple[Item, ...]:
    """`shown`, with the reasons that `everything` has for the same requests and these lack."""
    known = {(item.asked, item.kind): item.replies for item in everything if item.asked}
    found = []
    for item in shown:
        reasons = {r.model: r.reason for r in known.get((item.asked, item.kind), ())}
        replies = tuple(
            r if r.right or r.reason else dataclasses.replace(r, reason=reasons.get(r.model, ""))
            for r in item.replies
        )
        found.append(dataclasses.replace(item, replies=replies))
    return tuple(found)
