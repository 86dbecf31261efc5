"""Questions about a picture that a word or a few answer: what such benchmarks share.

Owns the form of a question, how it is asked, and how the values of replies become `Scored`.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from srum_jax.config import Config
from srum_jax.core.errors import BadInput, listed, quoted
from srum_jax.data import images
from srum_jax.evals import benchmark
from srum_jax.evals.benchmark import Benchmark, Data, LazySequence
from srum_jax.evals.official_files import Row
from srum_jax.evals.scorers import metrics
from srum_jax.evals.suite import Record, Replies, Requests, Scored, TextRequest

SUFFIX = "\nAnswer the question using a single word or phrase."
MAX_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Question:
    """A question of an official file.

    asked: the exact text · truth: JSON, what a reply is compared with · row: what the official
    results file says of it beside the reply.
    """

    id: str
    category: str
    asked: str
    picture: epath.Path
    truth: Any
    row: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ShortAnswers(Benchmark):
    """questions: those that are asked, each for at most `max_tokens` tokens · server: as
    `Benchmark.server`."""

    questions: Sequence[Question]
    data: Data
    server: str = dataclasses.field(default="", kw_only=True)
    max_tokens = MAX_TOKENS

    def requests(self, model: str) -> Requests:
        """The questions, their pictures read when they are looked at."""
        return Requests(texts=[self._request(q) for q in self.questions])

    def _request(self, q: Question) -> TextRequest:
        pictures = LazySequence((q.picture,), images.load)
        return TextRequest(q.id, q.category, pictures, q.asked, self.max_tokens, q.truth)

    def results(self, replies: Replies, field: str) -> list[dict[str, Any]]:
        """Each question's `row` with the reply under `field`."""
        pairs = zip(self.questions, replies.texts, strict=True)
        return [{**q.row, field: reply} for q, reply in pairs]


def asked(
    cfg: Config, questions: Sequence[Question], folder: epath.PathLike, *paths: epath.PathLike
) -> tuple[list[Question], Data]:
    """Those of the questions that are asked, and what was read: `paths` in `folder`."""
    c = cfg.evaluate
    some = benchmark.sampled(questions, [q.category for q in questions], c.limit, c.seed)
    return some, Data(str(folder), benchmark.sha256(*paths), len(some), len(questions))


def unanswered(rows: Sequence[Row], field: str) -> bool:
    """Whether a split was published without the answers in `field`: no row has any."""
    return not any(row.value.get(field) for row in rows)


def texts(row: Row, name: str) -> list[str]:
    """The field `name`, a list of at least one text. Raises BadInput."""
    found = row.get(name, list)
    if not found or not all(isinstance(one, str) for one in found):
        raise BadInput(
            f"{row.where}: {quoted(name)} is {quoted(found)}; it must be a list of texts"
        )
    return found


def every(faulty: Callable[[Row], Any], rows: Sequence[Row], what: object) -> list[Any]:
    """`faulty` of each row. Raises BadInput that lists the faults of all rows."""
    found, faults = [], []
    for row in rows:
        try:
            found.append(faulty(row))
        except BadInput as e:
            faults.append(str(e))
    if faults:
        raise BadInput(f"{what} cannot be used:{listed(faults, 10)}")
    return found


def scored(
    records: Sequence[Record],
    metric: str,
    values: Sequence[float],
    released: Mapping[str, float],
    *,
    scale: float = 1.0,
    groups: Sequence[Sequence[str]] = (),
    reasons: Sequence[str],
    policy: str,
) -> Scored:
    """What replies are worth whose strict values in [0, 1] are `values`.

    Args:
      released: the official numbers, `Scored.as_released`.
      scale: what the strict metric, the mean of the values, is multiplied by.
      groups: the categories that each record counts in; by default its own.
      reasons: why each is not worth 1, "" where that is plain.
    """
    groups = groups or [(r.category,) for r in records]
    return Scored(
        n=len(records),
        failed=sum(r.status != benchmark.OK for r in records),
        as_released=dict(released) if records else {},
        strict={metric: metrics.mean(values, scale)},
        units=tuple(r.id for r in records),
        by_category={
            name: {"n": len(some), metric: scale * float(np.mean([values[i] for i in some]))}
            for name, some in places(groups).items()
        },
        items=tuple(
            {"id": r.id, "category": r.category, **_worth(float(value)), "reason": reason}
            for r, value, reason in zip(records, values, reasons, strict=True)
        ),
        policy=policy,
    )


def places(groups: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """{name: numbers of the records whose groups have it}, by name."""
    found: dict[str, list[int]] = {}
    for i, names in enumerate(groups):
        for name in dict.fromkeys(names):
            found.setdefault(name, []).append(i)
    return dict(sorted(found.items()))


def people_said(answers: Sequence[str]) -> str:
    """What people answered, the most frequent first, with how many where it was more than one."""
    counted = collections.Counter(answers).most_common(4)
    told = [f"{one} ({n} people)" if n > 1 else one for one, n in counted]
    return f"people say {', '.join(told)}"


def _worth(value: float) -> dict[str, Any]:
    return {"right": bool(value)} if value in (0.0, 1.0) else {"value": value}
