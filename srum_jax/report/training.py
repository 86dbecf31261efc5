"""What the model was trained on, and how training went.

Owns how the "train" part of a round, the manifest of the stage and its metrics are said and drawn,
with what the monitor saw on the way.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from srum_jax.report import charts
from srum_jax.report.candidates import ScoredPictures
from srum_jax.report.numbers import count, short, words

# key in the metrics, title, remark, whether a running mean is drawn
LOGGED = (
    ("loss", "Loss", "", True),
    ("learning_rate", "Learning rate", "", False),
    ("grad_norm", "Gradient norm", "before clipping, ", True),
    ("entropy", "Entropy of drawn tokens", "nats, ", True),  # of models that draw token by token
)
# key in a row of the monitor, how the line looks, its name
AGAINST = (
    ("own_score", "trained", "own score, \u22121 to 1 drawn as 0 to 1"),
    ("verified", "oracle", "right by the checker"),
    ("counts_right", "base", "as many regions as objects"),
)
KEPT = (
    ("diversity", "trained", "diversity, of the first"),
    ("agreement", "oracle", "answers as at the first"),
)
SELECTED = {
    "best_of_k": "each prompt's best by the model's own score",
    "all": "all that had a score",
}
LEFT_OUT = {  # counts of the manifest
    "unscored": "{} pictures without a score",
    "prompts of too little gain": "{} prompts whose best picture hardly beats the others",
    "best scored too low": "{} pictures whose score is too low",
}
# What an objective does, in words; the weights are those of train/examples.json.
OBJECTIVES = {
    "sft": "the plain loss on the chosen pictures, every token alike",
    "srum_release": "SRUM as its code is released: a token counts by the score of its region times "
    "that of the whole picture, never against it",
    "srum_positive": "right regions alone are learned, of all candidates, each token by its score",
    "srum_paper": "SRUM as in its paper: a token counts by the signed score of its region, so bad "
    "regions are pushed away, up to a cap",
    "srum_advantage": "a loss that counts more or less by how a region scores against those of the "
    "prompt's other candidates",
    "nft": "towards regions that score above those of the prompt's other candidates, away from "
    "those below",
    "dpo": "pairs of a prompt's pictures: towards the better one, away from the worse one, where "
    "regions count towards what is right in the one and away from what is wrong in the other",
    "flow_grpo": "FlowGRPO: the steps by which a picture was drawn become more or less probable, "
    "by how it scores against the prompt's other candidates",
}
RELEASED = "srum_release"  # the objective with the weight rule that score/examples.json shows

Metrics = Mapping[str, tuple[np.ndarray, np.ndarray]]  # name -> (steps [N], values float [N])


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Some of what was trained on, with the weights it really had.

    objective, rewards: of the config · regions: whether the objective reads them.
    """

    pictures: ScoredPictures = ScoredPictures()
    objective: str = ""
    rewards: str = "both"
    regions: bool = False

    def __bool__(self) -> bool:
        return bool(self.pictures)

    @property
    def said(self) -> str:
        """How the scores of regions and pictures became weights, in words."""
        if self.regions:
            acting = {"regions": " Scores of whole pictures are not read."}.get(self.rewards, "")
            return (
                "A weight above 0 draws the model to this picture at that place, a weight below 0 "
                f"pushes it away.{acting}"
            )
        if self.objective == "sft":
            return (
                "This objective ignores regions: every token of a chosen picture has the weight 1. "
                "Scores decide which pictures are chosen, and nothing else."
            )
        return (
            "Regions were not read (the config says so): every token of a picture has the one "
            "weight that the score of the whole picture gives."
        )


@dataclasses.dataclass(frozen=True)
class TrainingSummary:
    """Sentences and curves of one round's training; `facts` is its part of results.json."""

    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    selection: str = ""
    chosen: Chosen = Chosen()
    curves: tuple[charts.Curve, ...] = ()
    monitored: tuple[charts.Curve, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.facts or self.curves)

    @property
    def stopped(self) -> bool:
        """Whether the training monitor ended the run."""
        return "stopped_at" in self.facts

    @property
    def collapse(self) -> Sequence[str]:
        """How drawings lost what makes them unlike each other, in clauses."""
        return self.facts.get("collapse", ())

    @property
    def objective(self) -> str:
        """What it was trained by, in words."""
        name = str(self.facts.get("objective", ""))
        return OBJECTIVES.get(name, words(name))

    @property
    def said(self) -> str:
        """Steps, losses and skipped steps in one sentence."""
        parts = [
            form.format(short(value) if isinstance(value, float) else count(value))
            for key, form in (
                ("steps", "{} steps"),
                ("loss_first", "loss {} at the start"),
                ("loss_last", "{} at the end"),
                ("skipped_steps", "{} steps skipped"),
            )
            if (value := self.facts.get(key)) is not None
        ]
        return f"{', '.join(parts)}." if parts else ""


def training(
    facts: Mapping[str, Any],
    manifest: Mapping[str, Any],
    metrics: Metrics,
    chosen: Chosen = Chosen(),
) -> TrainingSummary:
    """Args: "train" of the round, the manifest of the stage, its metrics, and some of what was
    trained on; each may be empty.

    Raises ValueError where a row of the monitor has no step.
    """
    if "monitor" not in facts and "probe" in facts:  # for one version
        logging.warning('results.json: "probe" is the former name of "monitor"; it is still read')
    rows = facts.get("monitor", facts.get("probe", []))
    if not all(isinstance(row, Mapping) and "step" in row for row in rows):
        raise ValueError('results.json: a row of train.monitor has no "step"; run train again')
    drawn = (
        charts.curve(title, remark, *metrics[key], smooth)
        for key, title, remark, smooth in LOGGED
        if key in metrics
    )
    seen = (
        _monitored("What it says, and what is so", rows, AGAINST),
        _monitored("What is kept", rows, KEPT),
    )
    return TrainingSummary(
        facts, selection(manifest), chosen, tuple(drawn), tuple(c for c in seen if c is not None)
    )


def series(rows: Sequence[Mapping[str, Any]]) -> Metrics:
    """Rows of metrics.jsonl by name; a step that is there twice (a resumed run) counts as last."""
    by_step: dict[int, dict[str, Any]] = {}
    for row in rows:
        by_step.setdefault(int(row["step"]), {}).update(row)
    found = {}
    for name in sorted({key for row in by_step.values() for key in row}):
        points = [
            (step, row[name])
            for step, row in sorted(by_step.items())
            if isinstance(row.get(name), int | float)
        ]
        if points:
            steps, values = zip(*points, strict=True)
            found[name] = np.array(steps), np.array(values, np.float64)
    return found


def selection(manifest: Mapping[str, Any]) -> str:
    """What was trained on and what was left out, in a sentence or two; "" of no manifest."""
    counts = manifest.get("counts", {})
    if "candidates" not in counts:
        return ""
    select = manifest.get("sections", {}).get("train", {}).get("select")
    chosen = f"Trained on {count(counts['candidates'])} pictures"
    if select:
        chosen += f": {SELECTED.get(select, select)}"
    left = [_counted(counts[name], form) for name, form in LEFT_OUT.items() if counts.get(name)]
    return f"{chosen}." + (f" Left out: {', '.join(left)}." if left else "")


def _counted(n: int, form: str) -> str:
    one = form.replace("pictures ", "picture ").replace("prompts ", "prompt ")
    return (one if n == 1 else form).format(count(n))


def _monitored(
    title: str, rows: Sequence[Mapping], what: Sequence[tuple[str, str, str]]
) -> charts.Curve | None:
    """None where nothing of it was measured."""
    steps = np.array([row["step"] for row in rows])
    series = []
    for key, kind, name in what:
        values = np.array([row.get(key, np.nan) for row in rows], np.float64)
        if np.isfinite(values).any():
            series.append((kind, name, (values + 1) / 2 if key == "own_score" else values))
    return charts.curves(title, steps, series) if series else None
