"""What an exact verifier says of what a run's judge and its training monitor said.

Owns the section "scores" of results.json, and the column "verified" of the monitor's curve. Which
world the verifier belongs to is not known here; images and prompts it cannot judge are passed over.
"""

import array
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from srum_jax.core import console
from srum_jax.evals import sections
from srum_jax.evals.suite import Verifier
from srum_jax.stages import calibration, monitor
from srum_jax.stages.manifest import Workdir


def scores_section(
    records: Sequence[Mapping[str, Any]],
    scored: Sequence[Mapping[str, Any]],
    proposers: Sequence[str],
    verifier: Verifier,
) -> dict[str, Any]:
    """ "scores" of results.json: the judge's scores of candidates against the verifier.

    records and scored: candidate and score records, one to one. The first proposer is the one whose
    regions the run trains on. Empty if the verifier can judge none.
    """
    images, regions, prompts = _Items(), {name: _Items() for name in proposers}, array.array("q")
    bar = console.progress(
        zip(records, scored, strict=True),
        total=len(scored),
        desc="evaluate, scores checked",
        unit="img",
        shown=jax.process_index() == 0,
    )
    for record, result in bar:
        image, prompt = record["image"], record["prompt"]
        right = verifier.right(image, prompt)
        if right is None:
            continue
        prompts.append(record["prompt_id"])
        images.add(result["image_score"], right, result["image_status"])
        for region in result["regions"]:
            if region["proposer"] not in regions:
                continue  # scored when the config named other proposers
            right = verifier.region_right(image, region["bbox"], prompt)
            regions[region["proposer"]].add(region["score"], right, region["status"])
    if not prompts:
        return {}
    of_images, found = images.scored, {name: items.scored for name, items in regions.items()}
    section = sections.scores_section(found, proposers[0], of_images, np.array(prompts))
    for what, items in (("image", of_images), ("region", found[proposers[0]])):
        section[f"{what}_histogram"] = {
            name: calibration.histogram(items.scores[items.labels == wanted])
            for name, wanted in (("right", True), ("wrong", False))
        }
    return section


@dataclasses.dataclass(frozen=True)
class _Items:
    """Judged items as they come, in 17 bytes each: a run may have millions."""

    scores: array.array = dataclasses.field(default_factory=lambda: array.array("d"))
    labels: array.array = dataclasses.field(default_factory=lambda: array.array("b"))
    status: list[str] = dataclasses.field(default_factory=list)

    def add(self, score: float, right: bool, status: str) -> None:
        self.scores.append(score)
        self.labels.append(bool(right))
        self.status.append(sys.intern(status))

    @property
    def scored(self) -> sections.ScoredItems:
        """All of them."""
        return sections.ScoredItems(np.array(self.scores), np.array(self.labels, bool), self.status)


def monitor_rows(work: Workdir, verifier: Verifier) -> list[dict[str, Any]]:
    """The training monitor's rows of this round as results.json has them, each with the verifier's
    accuracy.

    "verified" is the share of right images among those that the verifier can judge; absent where
    there are none, and, with a warning, where the images that were judged are damaged.
    """
    train = work.stage("train")
    rows = monitor.curve(monitor.read(train))
    for row in rows:
        try:
            records = list(monitor.sampled_images(train, row["step"]))
        except (ValueError, FileNotFoundError) as e:
            logging.warning("%s; the verifier says nothing of step %d", e, row["step"])
            continue
        said = [verifier.right(record["image"], record["prompt"]) for record in records]
        if right := [one for one in said if one is not None]:
            row["verified"] = float(np.mean(right))
    return rows
