"""What the report shows of what was trained on: chosen candidates with the weights they really had.

Owns `examples.json` in the stage's folder, and its pictures. The weights are those of the run's own
objective, of the very regions that a packed row held, after the choice and every cap.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from srum_jax.config import TrainConfig
from srum_jax.core import files
from srum_jax.data import images as pictures
from srum_jax.objectives import srum
from srum_jax.stages.selection import Candidate, regions_of
from srum_jax.stages.training_set import TrainingSet, strongest_regions

NAME = "examples.json"
COUNT = 8  # candidates shown


def places(candidates: Sequence[Candidate], count: int = COUNT) -> list[int]:
    """Of at most `count` candidates, evenly from the highest image score to the lowest: none is
    taken for its looks."""
    scores = np.array([c.image_score for c in candidates])
    order = np.argsort(-scores, kind="stable")
    picked = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return order[picked].tolist()


def write(folder: epath.Path, examples: TrainingSet) -> None:
    """Writes `examples.json`: {"objective", "rewards", "regions": whether it reads them,
    "candidates": [{"id", "prompt", "image", "image_score", "image_advantage", "boxes",
    "token_weights"}]}.

    A box has "bbox", "label", "score", with advantages "advantage", and "used": whether the row had
    room for it. token_weights: rows [h][w], see `srum.attraction`.
    """
    c = examples.c
    rows = [_row(folder, examples, i) for i in places(examples.candidates)]
    about = {"objective": c.objective, "rewards": c.rewards, "regions": reads_regions(c)}
    files.write_json(folder / NAME, about | {"candidates": rows})


def reads_regions(c: TrainConfig) -> bool:
    """Whether the weight of a token depends on where in the picture it lies."""
    return c.objective != "sft" and c.rewards != "image"


def _row(folder: epath.Path, examples: TrainingSet, i: int) -> dict[str, Any]:
    one = examples.candidates[i]
    image = f"examples/{one.id}.png"
    (folder / "examples").mkdir(parents=True, exist_ok=True)
    pixels = examples.stored.drawn.fields(one.place, ("image",))["image"]
    files.write_bytes(folder / image, [pictures.encode_png(pixels)])
    row = {"id": one.id, "prompt": one.prompt, "image": image}
    row |= {"image_score": float(one.image_score), "image_status": "ok"}
    if one.image_advantage is not None:
        row["image_advantage"] = float(one.image_advantage)
    return row | {"boxes": _boxes(examples, one), "token_weights": weights(examples, i)}


def weights(examples: TrainingSet, i: int) -> list[list[float]]:
    """Rows of the weights of candidate `i`'s tokens, packed alone as training packs it."""
    batch, image = examples.alone(i)
    found = np.asarray(srum.attraction(examples.c, batch))[0]
    there = (np.asarray(batch.gen.segment)[0] > 0) & (batch.latent_images[0] == image)
    grid = np.zeros(examples.candidates[i].grid[:2], np.float64)
    grid[tuple(np.asarray(batch.latent_cells)[0][there].T)] = found[there]
    return grid.round(4).tolist()


def _boxes(examples: TrainingSet, one: Candidate) -> list[dict[str, Any]]:
    if one.judged is None:
        return []
    record = examples.stored.scored.fields(one.judged, ("regions",))
    used = set(strongest_regions(one, examples.lanes.regions).tolist())
    found = []
    for i, region in enumerate(regions_of(record, examples.stored.proposer)):
        box = {key: region[key] for key in ("status", "label", "proposer")}
        box |= {"bbox": [float(x) for x in region["bbox"]], "score": float(one.scores[i])}
        if one.advantages is not None:
            box["advantage"] = float(one.advantages[i])
        found.append(box | {"used": i in used})
    return found
