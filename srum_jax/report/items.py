"""Single items of the report: what was asked, what each model gave, and what was said of it.

Owns how a record of pairs.json, of examples-<name>.json or of evaluation.json is read, whichever
suite wrote it: "<model>_correct" says whether that model was right, or "<model>_value" what its
reply is worth, "<model>_reason" why, and every other "<model>_..." field holds what it gave.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from srum_jax.report.pictures import Thumbnail

ASKED = ("prompt", "instruction", "question")
KIND = ("category", "kind")
RIGHT, VALUE = "_correct", "_value"
MARKS = (RIGHT, VALUE, "_image")  # of a field that names a model
NO_REASON = "no reason was given"


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a model gave: a picture, a text, or (of an item not kept) neither.

    right: None where only its `value` was judged; value: None where there is none. Both None: it
    was not judged.
    """

    model: str
    right: bool | None
    picture: Thumbnail | None = None
    text: str = ""
    reason: str = ""
    value: float | None = None

    @property
    def verdict(self) -> str:
        """ "right", "wrong", "value" or "none"."""
        if self.right is not None:
            return "right" if self.right else "wrong"
        return "none" if self.value is None else "value"


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
        """ "both", "second", "first" or "neither" of two models, "right" or "wrong" of one; of
        values "up", "down" or "even", and "value" of one; "unknown" where a reply is not judged."""
        verdicts = {reply.verdict for reply in self.replies}
        if verdicts == {"value"}:
            return "value" if len(self.replies) != 2 else _direction(self.change)
        if not verdicts <= {"right", "wrong"}:
            return "unknown"
        right = [bool(reply.right) for reply in self.replies]
        if len(right) != 2:
            return "right" if all(right) else "wrong"
        return {(1, 1): "both", (0, 1): "second", (1, 0): "first"}.get(tuple(right), "neither")

    @property
    def change(self) -> float:
        """The last reply's value minus the first's; 0 where values are unknown."""
        values = [reply.value for reply in self.replies]
        return 0.0 if None in values or not values else values[-1] - values[0]

    @property
    def failed(self) -> bool:
        """Whether some reply is not right, or worth less than the first model's."""
        return any(reply.right is False for reply in self.replies) or self.change < 0

    @property
    def marks(self) -> str:
        """What a filter can tell it by: "m<i>-<verdict>" of each model, and its outcome."""
        found = [f"m{i}-{reply.verdict}" for i, reply in enumerate(self.replies)]
        return " ".join([*found, self.outcome])

    def reason(self, reply: Reply) -> str:
        """Why a reply is right or wrong, in words."""
        if reply.reason or reply.right is None:
            return reply.reason
        if reply.right and reply.picture:
            return "shows what was asked for"
        if reply.right:
            return f"{self.expected} is right" if self.expected else "accepted as right"
        if self.expected:
            return f"said {reply.text or 'nothing'}; {self.expected} is right"
        return NO_REASON


def _direction(change: float) -> str:
    return "up" if change > 0 else "down" if change < 0 else "even"


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
    models = _models(fields)
    if not models:
        raise ValueError(
            f"{where} has no field '<model>{RIGHT}' or '<model>{VALUE}'; run its stage again"
        )
    if not any(name in fields for name in (*ASKED, "image", *KIND)):
        raise ValueError(f"{where} has no field {ASKED[0]!r} or 'image'; run its stage again")
    return Item(
        asked=_first(fields, ASKED) or _other_text(fields, models),
        kind=_first(fields, KIND),
        given=picture(fields["image"]) if "image" in fields else None,
        expected=str(fields.get("expected", "")),
        replies=tuple(_reply(fields, model, picture) for model in models),
    )


def _models(fields: Mapping[str, Any]) -> list[str]:
    """In the order of the record. A picture of a model alone is a reply that was not judged."""
    named = (key.removesuffix(mark) for key in fields for mark in MARKS if key.endswith(mark))
    return list(dict.fromkeys(named))


def _first(fields: Mapping[str, Any], names: Iterable[str]) -> str:
    return next((str(fields[name]) for name in names if name in fields), "")


def _other_text(fields: Mapping[str, Any], models: Sequence[str]) -> str:
    """What a record says beside its picture, kind, answer and what models gave."""
    own = {"id", "image", "expected", *KIND}
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
    right, value = own.pop("correct", None), own.pop("value", None)
    reason, path = own.pop("reason", ""), own.pop("image", None)
    return Reply(
        model=model,
        right=None if right is None else bool(right),
        picture=None if path is None else picture(path),
        text="; ".join(str(one) for one in own.values()),
        reason=str(reason),
        value=None if value is None else float(value),
    )


def with_reasons(shown: Sequence[Item], everything: Sequence[Item]) -> tuple[Item, ...]:
    """`shown`, with the reasons that `everything` has for the same requests and these lack."""
    known = {(item.asked, item.kind): item.replies for item in everything if item.asked}
    found = []
    for item in shown:
        reasons = {r.model: r.reason for r in known.get((item.asked, item.kind), ())}
        replies = tuple(
            r
            if r.right is not False or r.reason
            else dataclasses.replace(r, reason=reasons.get(r.model, ""))
            for r in item.replies
        )
        found.append(dataclasses.replace(item, replies=replies))
    return tuple(found)
