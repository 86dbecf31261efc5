"""The monitor's part of the report: the model's own score beside the verifier, over training.

Owns how `train.monitor` and an early stop in results.json are said and drawn.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srum_jax.stages import report_curves
from srum_jax.stages import report_html as page
from srum_jax.stages.report_html import Html, h, join

# key in a check of the monitor's row, how the line looks, its name
AGAINST = (
    ("own_score", "trained", "own score, \u22121 to 1 drawn as 0 to 1"),
    ("verified", "oracle", "right by the checker"),
    ("counts_right", "base", "as many regions as objects"),
)
KEPT = (
    ("diversity", "trained", "diversity, of the first"),
    ("agreement", "oracle", "answers as at the first"),
)


def section(train: Mapping[str, Any]) -> Html:
    """The curves and the sentence of an early stop, of the "train" part of a round.

    Empty without monitor checks. Raises ValueError where a monitor has no step.
    """
    rows = train.get("monitor", [])
    if not all(isinstance(row, Mapping) and "step" in row for row in rows):
        raise ValueError('results.json: a row of train.monitor has no "step"; run train again')
    curves = [
        drawn
        for title, what in (("What it says, and what is so", AGAINST), ("What is kept", KEPT))
        if (drawn := _lines(title, rows, what))
    ]
    if not curves:
        return Html("")
    how = (
        "The averaged weights drew the same prompts from the same noise each time. A score that "
        "rises while the checker's share or the counts do not is being pleased, not earned."
    )
    return join(
        h("h3", "The training monitor"),
        h("p", stop_sentence(train)) if "stopped_at" in train else None,
        h("p", how),
        h("div", *curves, class_="curves"),
    )


def stop_sentence(train: Mapping[str, Any]) -> Html:
    """Where and why training ended early, and which weights it left."""
    return join(
        h("b", f"Stopped early at step {page.count(train['stopped_at'])}"),
        f", with the weights of step {page.count(train['weights_of'])}: {train['stopped_why']}.",
    )


def _lines(title: str, rows: Sequence[Mapping], what: Sequence[tuple[str, str, str]]) -> Html:
    steps = np.array([row["step"] for row in rows])
    series = []
    for key, kind, name in what:
        values = np.array([row.get(key, np.nan) for row in rows], np.float64)
        if np.isfinite(values).any():
            series.append((kind, name, (values + 1) / 2 if key == "own_score" else values))
    return report_curves.lines(title, steps, series) if series else Html("")
