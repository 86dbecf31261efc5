"""What an exact verifier says of what a run's judge and its training monitor said.

Owns the section "scores" of results.json, and the column "verified" of the monitor's curve. Which
world the verifier belongs to is not known here; images and prompts it cannot judge are passed over.
"""

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
    images: list[tuple[float, bool, str]] = []
    regions: dict[str, list[tuple[float, bool, str]]] = {name: [] for name in proposers}
    prompts = []
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
        images.append((result["image_score"], right, result["image_status"]))
        for region in result["regions"]:
            if region["proposer"] not in regions:
                continue  # scored when the config named other proposers
            right = verifier.region_right(image, region["bbox"], prompt)
            regions[region["proposer"]].append((region["score"], right, region["status"]))
    if not images:
        return {}
    found = {name: _scored(rows) for name, rows in regions.items()}
    section = sections.scores_section(found, proposers[0], _scored(images), prompts)
    for what, rows in (("image", images), ("region", regions[proposers[0]])):
        section[f"{what}_histogram"] = {
            name: calibration.histogram([score for score, right, _ in rows if right == wanted])
            for name, wanted in (("right", True), ("wrong", False))
        }
    return section


def _scored(rows: Sequence[tuple[float, bool, str]]) -> sections.ScoredItems:
    scores, labels, status = zip(*rows, strict=True) if rows else ((), (), ())
    return sections.ScoredItems(np.array(scores, np.float64), np.array(labels, bool), status)


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
