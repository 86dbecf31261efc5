"""Held-back prompts, drawn by both models from the same noise and scored by one judge.

For runs without an exact verifier: the prompts of `evaluate.prompts`, which nothing was trained on,
an image each. The score is the model's own (`score` of the config), and the judge is the model that
the round starts from for both: what training pulled up, in the eyes of what it was trained by. That
is no proof of better pictures; judges of `evaluate.judges` that are not the model itself are asked
for a mark beside it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srum_jax.config import Config
from srum_jax.data import prompts as prompt_lists
from srum_jax.data.prompt_reader import PromptReader
from srum_jax.data.prompts import Prompt
from srum_jax.evals import benchmark, drawn
from srum_jax.evals.scorers import compbench_srum, metrics
from srum_jax.evals.suite import (
    DrawRequest,
    Findings,
    JudgeRequest,
    Metric,
    ModelOutputs,
    Replies,
    Requests,
    Scored,
    Suite,
)

PAIRS = 24  # prompts whose pictures are kept to look at
OK = "ok"
POLICY = "a picture that the judge gave no score is left out and counted in failed"
ABOUT_OWN = (
    "Mean score, from −1 to 1, that the model before training gives both models' pictures of "
    "held-back prompts. A judge that was trained on is pleased easily: no proof of better pictures."
)
ABOUT_MARK = "Mean mark from 0 to 100 that this judge gives both models' pictures of the prompts."
QUESTION = """\
This picture was drawn for the prompt: "{prompt}"
How well does it show what the prompt says: things, their attributes, their places, what they do? \
Give a whole number from 0 (nothing of it) to 100 (all of it, without a flaw). Answer with JSON \
alone, of this form: {{"score": NUMBER, "explanation": "at most 20 words"}}"""


@dataclasses.dataclass(frozen=True)
class OwnScore(Suite):
    """prompts: those that are drawn · judges: of `evaluate.judges`, without the model itself."""

    prompts: tuple[Prompt, ...] = ()
    judges: tuple[str, ...] = ()
    name = "own_score"
    measured_by = {"own_score": ("images", "scored"), "mark": ()}

    @property
    def digest(self) -> str:
        """Of the prompts."""
        return prompt_lists.digest(self.prompts)

    @property
    def judged(self) -> bool:
        """Whether another judge is asked."""
        return bool(self.judges)

    def asks(self, judge: str) -> bool:
        """Not the model itself: its own score is there."""
        return judge in self.judges

    def requests(self, model: str) -> Requests:
        """An image of each prompt, all scored."""
        return Requests(images=[DrawRequest(one) for one in self.prompts], scored=len(self.prompts))

    def judge_requests(self, requests: Requests, replies: Replies) -> Sequence[JudgeRequest]:
        """A mark for each picture."""
        return [
            JudgeRequest(
                id=f"{one.prompt.id}-{one.k}",
                category=one.prompt.category,
                images=drawn.of(replies, place),
                text=QUESTION.format(prompt=one.prompt.text),
            )
            for place, one in enumerate(requests.images)
        ]

    def verdicts(self, requests: Requests, replies: Replies) -> dict[str, Scored]:
        """{judge: what the pictures are worth}, "" for the own score."""
        own = [
            score["image_score"] if score["image_status"] == OK else float("nan")
            for score in replies.scores
        ]
        found = {"": scored(self.prompts, own, "score")}
        for judge, said in replies.judged.items():
            marks = [_mark(one.text) if one.status == OK else float("nan") for one in said]
            found[judge] = scored(self.prompts, marks, "mark")
        return found

    def metrics(self, outputs: ModelOutputs) -> dict[str, Metric]:
        """The mean own score and, of 100, the mean "mark" of the first other judge."""
        if not self.prompts:
            return {}
        own, *marks = (one.strict for one in outputs.verdicts.values())
        found = {"own_score": own["score"]}
        if marks:
            found["mark"] = metrics.scaled(marks[0]["mark"], 1 / 100)
        return found

    def findings(self, outputs: Mapping[str, ModelOutputs]) -> Findings:
        """The section, those of other judges inside, and pairs of pictures."""
        if not self.prompts:
            return Findings({})
        judges = list(next(iter(outputs.values())).verdicts)
        sections = {
            judge: _section(judge, {n: one.verdicts[judge] for n, one in outputs.items()})
            for judge in judges
        }
        own = sections.pop("")
        inner = {f"mark-{i}": one for i, one in enumerate(sections.values(), start=1)}
        return Findings(
            own | ({"sections": inner} if inner else {}),
            examples={f"examples-{self.name}": pairs(outputs)},
        )


def make(cfg: Config, data: str, language: str) -> OwnScore:
    """The suite of a run; `data`: a source of prompts in place of `evaluate.prompts`.

    Raises FileNotFoundError or ValueError where the prompts cannot be used.
    """
    c, reader = cfg.evaluate, PromptReader(language)
    wanted = prompt_lists.load(data or c.prompts, c.count, c.first, reader=reader)
    others = tuple(one for one in c.judges if one != "self")
    return OwnScore(tuple(wanted), others)


def scored(prompts: Sequence[Prompt], values: Sequence[float], metric: str) -> Scored:
    """The mean of a value a prompt, NaN for none, in all and by category."""
    values = np.asarray(values, np.float64)
    there = ~np.isnan(values)
    groups = np.array([one.category for one in prompts], object)
    by_category = {}
    for name in dict.fromkeys(groups):
        some = values[(groups == name) & there]
        mean = {metric: float(some.mean())} if len(some) else {}
        by_category[str(name)] = {"n": int((groups == name).sum()), **mean}
    return Scored(
        n=len(prompts),
        failed=int((~there).sum()),
        as_released={},
        strict={metric: metrics.mean(values)},
        units=tuple(str(one.id) for one in prompts),
        by_category=by_category,
        items=tuple(
            {"id": f"{one.id}-0", "category": one.category, "value": float(value)}
            for one, value in zip(prompts, values, strict=True)
            if value == value
        ),
        policy=POLICY,
    )


def _mark(reply: str) -> float:
    found = compbench_srum.strict_score(reply)
    return float("nan") if found is None else found


def _section(judge: str, by_model: Mapping[str, Scored]) -> dict[str, Any]:
    title = f"Held-back prompts, marked by {judge}" if judge else "Held-back prompts, own score"
    told = {"title": title, "about": ABOUT_MARK if judge else ABOUT_OWN, "unit": "pictures"}
    best = {"best": 1.0, "worst": -1.0}
    if judge:
        best = {"best": 100.0, "judge": {"name": judge}}
    return told | best | benchmark.compared(by_model)


def pairs(outputs: Mapping[str, ModelOutputs]) -> list[dict[str, Any]]:
    """Prompts with all models' pictures and scores: those with the largest changes, up and down in
    turn, and between them some that stayed."""
    values = {
        name: [s["image_score"] if s["image_status"] == OK else None for s in one.replies.scores]
        for name, one in outputs.items()
    }
    first, last = (values[name] for name in (list(values)[0], list(values)[-1]))
    change = [0.0 if None in pair else pair[1] - pair[0] for pair in zip(first, last, strict=True)]
    order = list(np.argsort(change, kind="stable"))
    middle = len(order) // 2
    turns = [x for three in zip(order[::-1], order, order[middle:], strict=False) for x in three]
    images = next(iter(outputs.values())).requests.images
    rows = []
    for place in list(dict.fromkeys([*turns, *order]))[:PAIRS]:
        prompt = images[place].prompt
        row: dict[str, Any] = {"prompt": prompt.text, "category": prompt.category}
        for name, one in outputs.items():
            row[f"{name}_image"] = one.replies.images[int(place)]["image"]
            if values[name][place] is not None:
                row[f"{name}_value"] = float(values[name][place])
        rows.append(row)
    return rows
