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


@dataclasses.dataclass(frozen=True)
class AnswerRequest:
    """A question about images, uint8 [H,W,3] each, answered by the likeliest first token.

    What a suite knows of the right answer stands in `truth`; no model sees it.
    """

    id: str
    category: str
    images: tuple[np.ndarray, ...]
    question: str
    truth: Any = None


@dataclasses.dataclass(frozen=True)
class TextRequest:
    """At most `max_tokens` tokens about images, uint8 [H,W,3] each: a caption, a free answer."""

    id: str
    category: str
    images: tuple[np.ndarray, ...]
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
    was said · edits: uint8 [H,W,3] · scores: score records of the first `Requests.scored` images.
    """

    images: Sequence[Mapping[str, Any]] = ()
    answers: Sequence[str] = ()
    texts: Sequence[str] = ()
    edits: Sequence[np.ndarray] = ()
    scores: Sequence[Mapping[str, Any]] = ()


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
    details: further parts of evaluation.json.
    examples: {file name without its ending: records to look at}; images in them, uint8 [H,W,3], are
      written beside the file, which then names them. The report reads what was asked ("prompt",
      "question" or "instruction", "image"), and of each model "<model>_correct", "<model>_image",
      "<model>_reason", and any other "<model>_…" as what it said.
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
    then held against it.
    """

    name: str
    digest: str = ""
    prompts: Sequence[Prompt] = ()
    verifier: Verifier | None = None

    def requests(self, model: str) -> Requests:
        """What the named model is asked: always the same, in the same order."""
        ...

    def verdicts(self, requests: Requests, replies: Replies) -> Any:
        """What the replies are worth, in whatever form `findings` takes it. A pure function."""
        ...

    def findings(self, outputs: Mapping[str, ModelOutputs]) -> Findings:
        """Sections with intervals from the verdicts on all models. A pure function."""
        ...
