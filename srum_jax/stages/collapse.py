"""Whether a model that draws token by token stops drawing unlike pictures, by the metrics of a run.

Two signs, for any objective, without a reference and without the monitor. The metrics are those of
`objectives/autoregressive.py`; a run of another family has neither.

 · entropy: that of the drawn tokens falls below a share of its value in the first logged step, that
   of the starting model;
 · gap: "ce_wordless" − "ce", how much the words of a prompt tell of its drawing, falls below that
   share. In one step these are of different drawings and by chance unlike, so that means over the
   last and the first quarter of the logged steps are compared, of at least `FEWEST`, and both the
   first gap and its loss must exceed twice their standard error.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from srum_jax.training import metrics

FEWEST = 4  # logged steps whose gaps make a mean
_SURE = 2.0  # standard errors

Row = Mapping[str, Any]  # of metrics.jsonl


def signs(rows: Sequence[Row], least: float) -> dict[str, str]:
    """{"entropy" or "gap": a clause that says how far it fell}, of those below the share `least`;
    {} of 0.0."""
    found: dict[str, str] = {}
    if not least:
        return found
    entropy = [row["entropy"] for row in rows if _numbers(row, "entropy")]
    if entropy and entropy[-1] < least * entropy[0]:
        found["entropy"] = (
            f"the entropy of drawn tokens fell from {entropy[0]:.3g} to {entropy[-1]:.3g} nats: "
            "drawings grow alike, or are learned by heart"
        )
    # 0 where a step has no prompt without its words.
    pairs = [(r["ce"], r["ce_wordless"]) for r in rows if _numbers(r, "ce", "ce_wordless")]
    gaps = np.array([wordless - ce for ce, wordless in pairs if wordless > 0])
    part = max(FEWEST, len(gaps) // 4)
    if len(gaps) < 2 * part:
        return found
    (first, first_error), (last, last_error) = map(_mean, (gaps[:part], gaps[-part:]))
    sure = first > _SURE * first_error
    if sure and last < least * first and first - last > _SURE * math.hypot(first_error, last_error):
        found["gap"] = (
            "the gap between prompts and prompts without their words fell from "
            f"{first:.3g} to {last:.3g} nats: what a prompt says hardly counts any more"
        )
    return found


def _numbers(row: Row, *names: str) -> bool:
    return all(isinstance(row.get(name), float) for name in names)


def _mean(values: np.ndarray) -> tuple[float, float]:
    """(mean, its standard error)."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


class Watch(metrics.Sink):
    """Warns of each sign once, as soon as the rows show it.

    path: metrics.jsonl of the run · start: the step that it goes on from.
    """

    def __init__(self, path: epath.PathLike, start: int, least: float):
        before = metrics.read(path) if epath.Path(path).exists() else []
        self.rows = [row for row in before if row["step"] <= start]
        self.least, self.said = least, set(signs(self.rows, least))

    def write(self, step: int, row: Mapping[str, float]) -> None:
        self.rows.append(row)
        for name, clause in signs(self.rows, self.least).items():
            if name not in self.said:
                logging.warning(
                    "train: at step %d %s. Fewer steps, a lower train.optim.learning_rate, a "
                    "train.anchor or more train.text_dropout may keep it",
                    *(step, clause),
                )
                self.said.add(name)

    def close(self) -> None:
        pass
