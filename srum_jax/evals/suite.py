"""What an evaluation suite is: requests put to a model, verdicts on its replies, and findings.

Owns the forms that pass between a suite and the stage `evaluate`. A suite says what is asked, one
kind of request a modality, and turns replies into verdicts and verdicts into sections by pure
functions. The stage has the models reply and keeps what they replied. A new suite is one module
with `make(cfg, data, language)`, and one line in `core/registry.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from srum_jax.data.prompts import Prompt


@dataclasses.dataclass(frozen=True)
class DrawRequest:
    """An image of a prompt, candidate `k`; the prompt's id and k make the seed of its noise."""

    prompt: Prompt
    k: int = 0

    @property
    def id(self) -> str:
        """The prompt's id and which of its images this is."""
        return f"{self.prompt.id}-{self.k}"


@dataclasses.dataclass(frozen=True)
class AnswerRequest:
    """A question about images, uint8 [H,W,3] each, answered by the likeliest first token. The
    images may be read when they are looked at (`benchmark.LazySequence`), here and below.

    What a suite knows of the right answer stands in `truth`; no model sees it.
    """

    id: str
    category: str
    images: Sequence[np.ndarray]
    question: str
    truth: Any = None


@dataclasses.dataclass(frozen=True)
class TextRequest:
    """At most `max_tokens` tokens about images, uint8 [H,W,3] each: a caption, a free answer."""

    id: str
    category: str
    images: Sequence[np.ndarray]
    instruction: str
    max_tokens: int
    truth: Any = None


@dataclasses.dataclass(frozen=True)
class EditRequest:
    """An image uint8 [H,W,3] changed by an instruction, from the noise of `seed`, 32 bits."""

    id: str
    category: str
    image: np.ndarray
    instruction: str
    seed: int
    truth: Any = None


@dataclasses.dataclass(frozen=True)
class Requests:
    """All that one model is asked, by modality. A sequence may make its items when they are read.

    scored: of so many of the first images the model's own judge also gives the scores.
    """

    images: Sequence[DrawRequest] = ()
    answers: Sequence[AnswerRequest] = ()
    texts: Sequence[TextRequest] = ()
    edits: Sequence[EditRequest] = ()
    scored: int = 0


@dataclasses.dataclass(frozen=True)
class Replies:
    """One reply a request, in order.

    images: candidate records of `data/shards.py`, with "image" uint8 [H,W,3] · answers, texts: what
    was said · edits: uint8 [H,W,3] · scores: score records of the first `Requests.scored` images ·
    judged: by a judge's name its replies to `Suite.judge_requests`; the judge that counts is first
    · thoughts: of a model that thinks first, {"images", "texts", "edits": what it thought before
    each}; None is a thought that did not end, behind which nothing was said.
    """

    images: Sequence[Mapping[str, Any]] = ()
    answers: Sequence[str] = ()
    texts: Sequence[str] = ()
    edits: Sequence[np.ndarray] = ()
    scores: Sequence[Mapping[str, Any]] = ()
    judged: Mapping[str, Sequence[JudgeReply]] = dataclasses.field(default_factory=dict)
    thoughts: Mapping[str, Sequence[str | None]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class JudgeRequest:
    """What a judge is asked about images, uint8 [H,W,3] each, which come before the text.

    id: unique among those of a suite and a model · system: a system prompt, "" for none ·
    max_tokens: of the reply, which is greedy · first_token: texts whose probability as the reply's
    first token is wanted; nothing more is then written · truth: JSON that scoring needs beside the
    reply · file: of the image that is judged, relative to the folder of results.
    """

    id: str
    category: str
    images: Sequence[np.ndarray]
    text: str
    system: str = ""
    max_tokens: int = 512
    first_token: tuple[str, ...] = ()
    truth: Any = None
    file: str = ""


NO_LOGPROBS = "no logprobs"  # status: a judge's words, but no probabilities of the first token


@dataclasses.dataclass(frozen=True)
class JudgeReply:
    """What a judge said.

    text: its words; with `first_token` the likeliest first token as a text · status: "ok", else why
    there is no reply · p: {text: probability} of the request's `first_token` · bound: what the true
    probability is at most where p says 0, as a server lists the likeliest tokens alone · served:
    as what a server named the model that replied.
    """

    text: str = ""
    status: str = "ok"
    p: Mapping[str, float] = dataclasses.field(default_factory=dict)
    bound: float = 0.0
    served: str = ""


@dataclasses.dataclass(frozen=True)
class Record:
    """A reply as `replies.jsonl` keeps it: scores are a function of records, and of nothing else.

    asked: the exact text · truth: JSON that scoring compares with · p: a judge's first-token
    probabilities · judge: who replied, "" for the examined model itself · file: of the image that
    is judged, relative to the folder of results · seed: of the noise, where there are several ·
    thought: of the model, before it replied.
    """

    id: str
    category: str
    asked: str
    reply: str
    status: str = "ok"
    truth: Any = None
    p: Mapping[str, float] = dataclasses.field(default_factory=dict)
    judge: str = ""
    file: str = ""
    seed: int = 0
    thought: str = ""


class SumFunction(Protocol):
    """A number from sums over units; NaN where it is not defined."""

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        """Sums float64 [..., K] to numbers [...]."""
        ...


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number with what its interval needs: `value` of the sum of `columns`, float64 [N, K], in
    which row i is what unit i (a prompt, an image, a base question) adds."""

    columns: np.ndarray
    value: SumFunction

    @property
    def number(self) -> float:
        """The metric of all units."""
        return float(self.value(self.columns.sum(axis=0)))


@dataclasses.dataclass(frozen=True)
class Scored:
    """What the records of one model are worth.

    n: requests · failed: those of them without a usable reply · as_released: {metric: number} as
    the official code gives it, in its own scale; what it cannot give is absent · strict: {metric:
    Metric} by `policy`; the first is the one that models are compared by · units: ids of the rows
    of all strict metrics, the same for every model · by_category: {category: {"n", metric: number}}
    · items: to look at, {"id", "category", "right" (bool) or "value" (number), "reason"} · policy:
    how strict metrics treat failures, in a sentence · seeds: where pictures were drawn from several
    seeds, {seed: {metric: number}} of each.
    """

    n: int
    failed: int
    as_released: Mapping[str, float]
    strict: Mapping[str, Metric]
    units: tuple[str, ...]
    by_category: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    items: tuple[Mapping[str, Any], ...] = ()
    policy: str = ""
    seeds: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether the reply to one request is right; `reason`: why not, as far as is known."""

    id: str
    category: str
    right: bool
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class ModelOutputs:
    """What one model was asked, what it replied, and the suite's verdicts on that."""

    requests: Requests
    replies: Replies
    verdicts: Any


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a suite found out about all models.

    section: of results.json, `rounds[].suites.<name>`, as `sections.section` makes it; it may have
      "sections" of the same form inside, and is empty where nothing was measured.
    fields: further parts of the round's entry in results.json, of the suite's own contract.
    details: further parts of evaluation.json; "items" there, {name of a section: every item}, are
      records as below without pictures.
    examples: {file name without its ending: records to look at}; images in them, uint8 [H,W,3], are
      written beside the file, which then names them. The report reads what was asked ("prompt",
      "question" or "instruction", "image", "expected"), and of each model "<model>_correct" or, of
      a mark, "<model>_value", "<model>_image", "<model>_reason", and any other "<model>_…" as what
      it said.
    """

    section: Mapping[str, Any]
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    examples: Mapping[str, Sequence[Mapping[str, Any]]] = dataclasses.field(default_factory=dict)


class Verifier(Protocol):
    """A program that sees in pixels what a judge is asked about: exact, or silent."""

    def right(self, image: np.ndarray, prompt: str) -> bool | None:
        """Whether an image uint8 [H,W,3] shows what the prompt says; None: it cannot be said."""
        ...

    def region_right(self, image: np.ndarray, box: Sequence[float], prompt: str) -> bool:
        """The same of the box (x0, y0, x1, y1 in pixels) of an image that `right` can judge."""
        ...


class Suite(Protocol):
    """An examination of models; the models are named "base" and, after training, "trained".

    name: its own, as in `registry.SUITES` · digest: names the content of what is asked, beyond the
    config's `evaluate` section · prompts: those whose words the model must know, checked before
    anything is asked · verifier: of images, where there is an exact one; the judge's scores are
    then held against it · judged: whether it asks a judge about the replies · measured_by: {name of
    one of `metrics`: the fields of `Requests` that it is measured by}, () for all.
    """

    name: str
    digest: str = ""
    prompts: Sequence[Prompt] = ()
    verifier: Verifier | None = None
    judged: bool = False
    measured_by: Mapping[str, tuple[str, ...]] = {}

    def requests(self, model: str) -> Requests:
        """What the named model is asked: always the same, in the same order."""
        ...

    def asks(self, judge: str) -> bool:
        """Whether a judge of `evaluate.judges` is asked, where any is."""
        return True

    def judge_requests(self, requests: Requests, replies: Replies) -> Sequence[JudgeRequest]:
        """What a judge is asked about the replies, where the suite wants one."""
        return ()

    def verdicts(self, requests: Requests, replies: Replies) -> Any:
        """What the replies are worth, in whatever form `findings` takes it. A pure function."""
        ...

    def metrics(self, outputs: ModelOutputs) -> Mapping[str, Metric]:
        """What one model is worth, by the names of `measured_by`, each a share of its highest
        value; without what nothing was asked for. A pure function."""
        return {}

    def findings(self, outputs: Mapping[str, ModelOutputs]) -> Findings:
        """Sections with intervals from the verdicts on all models. A pure function."""
        ...
