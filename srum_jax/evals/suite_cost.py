"""What an evaluation will cost, before it starts: pictures, answers, and questions to judges."""

from collections.abc import Iterator, Sequence

import numpy as np

from srum_jax.evals import suite_judges
from srum_jax.evals.benchmark import LazySequence
from srum_jax.evals.suite import Replies, Requests, Suite

BLANK = np.zeros((1024, 1024, 3), np.uint8)  # stands for a picture that is not drawn yet


def lines(
    suite: Suite, judges: Sequence[str], models: int, seeds: int = 1, think_tokens: int = 0
) -> Iterator[str]:
    """A line on what `models` models are asked, from so many seeds, behind thoughts of so many
    tokens, and one on what each judge is asked about it."""
    asked = suite.requests("model")
    parts = [
        f"{count * models * seeds:,} {what}"
        for what, count in (
            ("pictures drawn", len(asked.images)),
            ("pictures edited", len(asked.edits)),
            ("questions answered", len(asked.texts) + len(asked.answers)),
        )
        if count
    ]
    behind = f", each behind a thought of up to {think_tokens} tokens" if think_tokens else ""
    yield f"{suite.name}: {', '.join(parts)} by {models} model{'s' if models > 1 else ''}{behind}"
    if server := getattr(suite, "server", ""):
        yield f"{suite.name}: this split has no answers: no score, but a file for {server}"
    yield from of_judges(suite, judges, models * seeds)


def of_judges(suite: Suite, judges: Sequence[str], times: int) -> Iterator[str]:
    """A line on what each judge is asked about the replies of `times` models."""
    names = [name for name in judges if suite.judged and suite.asks(name)]
    asked = suite.requests("model")
    questions = suite.judge_requests(asked, blank(asked)) if names else ()
    for name in names:
        yield f"{suite.name}, judge {name}: {suite_judges.cost(questions, times)}"


def blank(asked: Requests) -> Replies:
    """Replies to requests to draw and to edit, every picture blank."""
    drawn = LazySequence(
        asked.images,
        lambda one: {"image": BLANK, "seed": 0, "prompt": one.prompt.text, "k": one.k},
    )
    return Replies(images=drawn, edits=LazySequence(range(len(asked.edits)), lambda _: BLANK))
