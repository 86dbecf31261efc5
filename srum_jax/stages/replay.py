"""Replay against forgetting: rows of the model's own edits among those of a step.

Owns how the edits that the stage `generate` drew (`own_edits.py`) become rows of the stage `train`,
a share `train.replay` of each step's, where the model in training is held to the velocity of the
model that the round started from (`objectives/srum.py`).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from srum_jax.config import Config, TrainConfig
from srum_jax.data import packing, pipeline, shards, sources
from srum_jax.data.schema import Example, Lanes, LayoutSizes
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.stages.loading import LoadedModel
from srum_jax.stages.manifest import Workdir
from srum_jax.stages.preflight import Checks

NAME = "edits"  # of their folder in the stage `generate`, and of the shards in it
FIRST_NOISE = 2**31  # noise ids of edits; those of candidates lie below


def check(cfg: Config, work: Workdir, found: Checks) -> None:
    """Edits to replay, and rows for both kinds in a step."""
    c = cfg.train
    if not c.replay:
        return
    if not cfg.generate.edits or "ingest" in cfg.stages:
        found.problems.append(
            f"train.replay = {c.replay} trains on own edits beside the candidates, and the stage "
            "generate draws none: name their list in generate.edits"
        )
    elif not found.made_later(work, "generate"):
        with found.noting():
            shards.read(work.stage("generate") / NAME)
    if not 0 < rows(c) < c.rows:
        found.problems.append(
            f"train.replay = {c.replay} of train.rows = {c.rows} is {rows(c)} rows: there must be "
            "at least one of edits and one of candidates"
        )


def edits_of(cfg: Config, work: Workdir, loaded: LoadedModel, lanes: Lanes) -> "ReplaySet | None":
    """What the model drew in this round to be trained on; None where nothing is."""
    if not cfg.train.replay:
        return None
    return ReplaySet(
        drawn=shards.read(work.stage("generate") / NAME),
        tokenizer=loaded.tokenizer,
        lanes=lanes,
        layout=loaded.cfg.layout,
        dropout=cfg.train.text_dropout,
        seed=cfg.seed,
    )


def rows(c: TrainConfig) -> int:
    """How many rows of a step are of own edits, its last ones."""
    return round(c.replay * c.rows)


@dataclasses.dataclass(frozen=True)
class ReplaySet:
    """Own edits as packed rows: row i of the endless sequence is a function of them, the config and
    i alone.

    drawn: their records · lanes, layout: sizes of a row and of tokens · dropout: the share of
    samples without their instruction · seed: of order and dropped instructions.
    """

    drawn: shards.ShardRecords
    tokenizer: Tokenizer
    lanes: Lanes
    layout: LayoutSizes
    dropout: float
    seed: int

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """What each edit takes of each lane, [E, 6] of `packing.size`, with its instruction."""
        hollow = map(_hollow, self.drawn.summaries())
        return np.stack([packing.size(self._sample(one, 0)) for one in hollow])

    @functools.cached_property
    def order(self) -> pipeline.EpochRows:
        """Which edits share a row; raises ValueError where one fits none."""
        return pipeline.EpochRows(self.sizes, self.lanes, seed=self.seed)

    def row(self, number: int) -> list[Example]:
        """The samples of row `number` of the endless sequence."""
        epoch, members = self.order(number)
        examples = []
        for i in members:
            use = epoch * len(self.drawn) + i
            dropped = sources.dropped(self.seed, use, self.dropout)
            examples.append(self._sample(self.drawn[i], FIRST_NOISE + i, dropped))
        return examples

    def _sample(self, one: Mapping[str, Any], noise_id: int, dropped: bool = False) -> Example:
        return sources.edit(
            self.tokenizer,
            self.layout,
            one["source"],
            one["source_latent"],
            None if dropped else one["instruction"],
            one["latent"],
            size=one["image"].shape[:2],
            noise_id=noise_id,
        )


def _hollow(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A record of a summary's shapes, for what it takes of a row."""
    pictures = {name: np.zeros(summary[name], np.uint8) for name in ("source", "image")}
    latents = {
        name: np.broadcast_to(np.float32(0), summary[name]) for name in ("source_latent", "latent")
    }
    return {"instruction": summary["instruction"], **pictures, **latents}
