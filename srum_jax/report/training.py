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
from srum_jax.report.numbers import count, short

# key in the metrics, title, remark, whether a running mean is drawn
LOGGED = (
    ("loss", "Loss", "", True),
    ("learning_rate", "Learning rate", "", False),
    ("grad_norm", "Gradient norm", "before clipping, ", True),
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
RELEASED = "srum_release"  # the objective with the weight rule that score/examples.json shows

Metrics = Mapping[str, tuple[np.ndarray, np.ndarray]]  # name -> (steps [N], values float [N])


@dataclasses.dataclass(frozen=True)
class TrainingSummary:
    """Sentences and curves of one round's training; `facts` is its part of results.json."""

    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    selection: str = ""
    curves: tuple[charts.Curve, ...] = ()
    monitored: tuple[charts.Curve, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.facts or self.curves)

    @property
    def stopped(self) -> bool:
        """Whether the training monitor ended the run."""
        return "stopped_at" in self.facts

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
    facts: Mapping[str, Any], manifest: Mapping[str, Any], metrics: Metrics
) -> TrainingSummary:
    """Args: "train" of the round, the manifest of the stage, its metrics; each may be empty.

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
        facts, selection(manifest), tuple(drawn), tuple(c for c in seen if c is not None)
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
    left = [form.format(count(counts[name])) for name, form in LEFT_OUT.items() if counts.get(name)]
    return f"{chosen}." + (f" Left out: {', '.join(left)}." if left else "")


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
