"""The suite "shapes": drawing, questions, captions and edits of the shapes world, judged exactly.

Both models draw the same prompts from the same noise. The base also draws further candidates of the
first prompts and scores them itself: what choosing the best of K by that score gives. Prompts that
the verifier cannot read are left out, and another model than the world's is asked no questions; a
sentence in the log says so.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from einops import rearrange

from srum_jax.config import Config, EvaluateConfig
from srum_jax.core import registry
from srum_jax.core.errors import quoted
from srum_jax.data import prompts as prompt_lists
from srum_jax.data.prompt_reader import PromptReader
from srum_jax.data.prompts import Prompt
from srum_jax.evals import sections
from srum_jax.evals.scorers import metrics
from srum_jax.evals.suite import (
    DrawRequest,
    Findings,
    Metric,
    ModelOutputs,
    Replies,
    Requests,
    Suite,
    Verdict,
)
from srum_jax.worlds.shapes import exam
from srum_jax.worlds.shapes.setting import SETTINGS, SMALL, Setting, of_model

PAIRS = 24  # prompts whose two pictures are kept to look at
SHOWN = 6  # edits and captions kept to look at: the first ones
PARTS = {
    "qa": ("Answering questions", "answers"),
    "captions": ("Describing pictures", "texts"),
    "edits": ("Editing pictures", "edits"),
}  # of results.json, with their titles and the requests they are about


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """By kind of request; one verdict a reply."""

    images: Sequence[Verdict]
    answers: Sequence[Verdict]
    texts: Sequence[Verdict]
    edits: Sequence[Verdict]


@dataclasses.dataclass(frozen=True)
class ShapesSuite(Suite):
    """cfg: what is asked, and how much · drawn: the prompts that the verifier can read · asked:
    whether questions, captions and edits are asked · split: of which they are · setting: the
    world's, of which they are too."""

    cfg: EvaluateConfig
    drawn: tuple[Prompt, ...]
    asked: bool
    prompts: tuple[Prompt, ...]
    split: str = "test"
    setting: Setting = SMALL
    name = "shapes"
    verifier = exam.ShapesVerifier()
    measured_by = {"t2i": ("images",)} | {key: (kind,) for key, (_, kind) in PARTS.items()}

    @property
    def digest(self) -> str:
        """Of the prompts; all else is a function of the config."""
        return prompt_lists.digest(self.prompts)

    def requests(self, model: str) -> Requests:
        """The split's; the base draws `best_of` candidates of the first prompts."""
        c = self.cfg
        first = self.drawn[: c.best_of_prompts] if model == "base" else ()
        images = [DrawRequest(prompt, k) for prompt in first for k in range(c.best_of)]
        scored = len(images)
        images += [DrawRequest(prompt) for prompt in self.drawn[len(first) :]]
        if not self.asked:
            return Requests(images=images, scored=scored)
        return Requests(
            images=images,
            answers=exam.questions(self.split, c.questions, c.multi_image_questions, self.setting),
            texts=exam.captions(self.split, c.captions, self.setting),
            edits=exam.edits(self.split, c.edits, self.setting),
            scored=scored,
        )

    def verdicts(self, requests: Requests, replies: Replies) -> Verdicts:
        """What the verifier says of each reply."""
        return Verdicts(
            images=exam.judge_drawings(replies.images),
            answers=exam.judge_answers(requests.answers, replies.answers),
            texts=exam.judge_captions(requests.texts, replies.texts),
            edits=exam.judge_edits(requests.edits, replies.edits),
        )

    def metrics(self, outputs: ModelOutputs) -> dict[str, Metric]:
        """The share that is right of drawings ("t2i"), answers, captions and edits."""
        found = {"t2i": first_candidates(outputs)[1]}
        found |= {key: getattr(outputs.verdicts, kind) for key, (_, kind) in PARTS.items()}
        return {key: metrics.mean([v.right for v in some]) for key, some in found.items() if some}

    def findings(self, outputs: Mapping[str, ModelOutputs]) -> Findings:
        """Sections of drawing and, inside, of the rest; "t2i", "qa", "captions" and "edits" of the
        contract; every item's verdicts; pairs of drawings, captions and edits to look at."""
        firsts = {name: first_candidates(one) for name, one in outputs.items()}
        drawing = sections.section("Drawing", {name: v for name, (_, v) in firsts.items()})
        parts = {
            key: sections.section(title, {n: getattr(o.verdicts, kind) for n, o in outputs.items()})
            for key, (title, kind) in PARTS.items()
        }
        parts = {key: part for key, part in parts.items() if part}
        fields = {key: _by_model(part) for key, part in parts.items()}
        if drawing:
            best = best_of_k(outputs["base"], self.cfg.best_of)
            fields["t2i"] = _by_model(drawing) | {"best_of_k": best}
        items = item_records(outputs) if self.asked else {}
        section = drawing or ({"title": "Drawing"} if parts else {})
        return Findings(
            section=section | ({"sections": parts} if parts else {}),
            fields=fields,
            details={"prompts": drawing_records(firsts), "items": items},
            examples=pairs(firsts) | shown(outputs, items),
        )


def make(cfg: Config, data: str = "", language: str = "") -> ShapesSuite:
    """The suite of a run; it has no data of its own: `data` is the split that questions, captions
    and edits are of, "" for test.

    language: into which the prompts of `evaluate.prompts` are put. Raises FileNotFoundError or
    ValueError where the prompts cannot be used.
    """
    if data not in ("", *registry.SPLITS):
        entry, splits = quoted(f"shapes:{data}"), " | ".join(registry.SPLITS)
        raise ValueError(f'evaluate.suites: {entry}: it reads no data, say "shapes[:{splits}]"')
    c, reader = cfg.evaluate, PromptReader(language)
    wanted = prompt_lists.load(c.prompts, c.count, c.first, reader=reader)
    drawn = tuple(p for p in wanted if exam.readable(cfg.sample.size, p.text))
    if len(drawn) < len(wanted):
        logging.info(
            "evaluate: %d of %d prompts are left out: the verifier reads prompts of the shapes "
            "world at %s pixels, and there is no other",
            len(wanted) - len(drawn),
            len(wanted),
            " or ".join(f"{one.side}x{one.side}" for one in SETTINGS.values()),
        )
    setting = of_model(cfg.model)
    asked = setting is not None
    if not asked:
        logging.info("evaluate: no questions are asked: those at hand are about the shapes world")
    return ShapesSuite(c, drawn, asked, tuple(wanted), data or "test", setting or SMALL)


# ---------------------------------------------------------------------------------- the measuring


def first_candidates(outputs: ModelOutputs) -> tuple[list[Mapping[str, Any]], list[Verdict]]:
    """Records and verdicts of candidate 0 of every prompt: what models are compared by.

    A verdict's id is the prompt's, as models may have drawn different numbers of candidates.
    """
    records, verdicts = outputs.replies.images, outputs.verdicts.images
    pairs = [(r, v) for r, v in zip(records, verdicts, strict=True) if r["k"] == 0]
    return [r for r, _ in pairs], [dataclasses.replace(v, id=str(r["prompt_id"])) for r, v in pairs]


def best_of_k(base: ModelOutputs, candidates: int) -> dict[str, Any]:
    """ "best_of_k" of results.json: the base's choice among `candidates` of each first prompt."""
    own = [record["image_score"] for record in base.replies.scores]
    verdicts = base.verdicts.images[: len(own)]
    right, scores = (
        rearrange(np.asarray(x), "(p k) -> p k", k=candidates)
        for x in ([v.right for v in verdicts], own)
    )
    categories = [v.category for v in verdicts[::candidates]]
    return sections.best_of_k_section(right, scores, categories=categories)


def _by_model(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section in the form of "t2i", "qa", "captions" and "edits"."""
    paired = {k: v for k, v in section.get("paired", {}).items() if k != "metric"}
    return {**section["models"], **({"paired": paired} if paired else {})}


# ------------------------------------------------------------------------------- item by item


def drawing_records(firsts: Mapping[str, tuple[Sequence, Sequence]]) -> list[dict[str, Any]]:
    """Per prompt what the verifier said of each model's picture."""
    rows = []
    for i, record in enumerate(firsts["base"][0]):
        row = {name: record[name] for name in ("prompt_id", "prompt", "category")}
        for name, (_, verdicts) in firsts.items():
            row |= {f"{name}_correct": verdicts[i].right, f"{name}_reason": verdicts[i].reason}
        rows.append(row)
    return rows


def item_records(outputs: Mapping[str, ModelOutputs]) -> dict[str, list[dict[str, Any]]]:
    """Per question, caption and edit what each model replied, and whether that is right."""
    asked = outputs["base"].requests
    found: dict[str, list[dict[str, Any]]] = {
        "qa": [
            {"kind": r.category, "question": r.question, "expected": r.truth} for r in asked.answers
        ],
        "captions": [{"kind": r.category} for r in asked.texts],
        "edits": [{"kind": r.category, "instruction": r.instruction} for r in asked.edits],
    }
    for name, one in outputs.items():
        for key, (_, kind) in PARTS.items():
            for row, verdict in zip(found[key], getattr(one.verdicts, kind), strict=True):
                row |= {f"{name}_correct": verdict.right, f"{name}_reason": verdict.reason}
        for row, reply in zip(found["qa"], one.replies.answers, strict=True):
            row[f"{name}_answer"] = reply
        for row, reply in zip(found["captions"], one.replies.texts, strict=True):
            row[f"{name}_caption"] = reply
    return found


def shown(
    outputs: Mapping[str, ModelOutputs], items: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """The first captions and edits with their pictures."""
    asked = outputs["base"].requests
    captions = [
        {**row, "image": request.images[0]}
        for row, request in zip(items.get("captions", ()), asked.texts[:SHOWN], strict=False)
    ]
    edits = [
        {**row, "image": request.image}
        | {f"{name}_image": one.replies.edits[i] for name, one in outputs.items()}
        for i, (row, request) in enumerate(
            zip(items.get("edits", ()), asked.edits[:SHOWN], strict=False)
        )
    ]
    found = {"examples-captions": captions, "examples-edits": edits}
    return {name: rows for name, rows in found.items() if rows}


def pairs(firsts: Mapping[str, tuple[Sequence, Sequence]]) -> dict[str, list[dict[str, Any]]]:
    """Chosen prompts with the pictures of both models; nothing of one model alone."""
    if "trained" not in firsts:
        return {}
    (records, base), (_, trained) = firsts["base"], firsts["trained"]
    categories = [record["category"] for record in records]
    kept = []
    for i in choose_pairs([v.right for v in base], [v.right for v in trained], categories):
        pair = {"prompt": records[i]["prompt"], "category": categories[i]}
        for name, (drawn, verdicts) in firsts.items():
            pair |= {f"{name}_image": drawn[i]["image"], f"{name}_correct": verdicts[i].right}
            pair[f"{name}_reason"] = verdicts[i].reason
        kept.append(pair)
    return {"pairs": kept}


def choose_pairs(
    base: Sequence[bool], trained: Sequence[bool], categories: Sequence[str], count: int = PAIRS
) -> list[int]:
    """Places of `count` prompts: the first of each outcome and category, then the second, ..."""
    turns: collections.Counter[tuple] = collections.Counter()
    ordered = []
    for i, key in enumerate(zip(base, trained, categories, strict=True)):
        ordered.append((turns[key], i))
        turns[key] += 1
    return sorted(i for _, i in sorted(ordered)[:count])
