"""The training set: chosen candidates as packed rows, batch after batch without end.

Row i of the endless sequence is a function of the set, the config and i alone, so a resumed run
sees the same batches.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from srum_jax.config import TrainConfig
from srum_jax.data import masks, packing, pipeline, records, sources
from srum_jax.data.schema import Batch, Example, Lanes, LayoutSizes, Regions
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.stages.selection import Candidate


def example(
    c: Candidate, number: int, *, tokenizer: Tokenizer | None, regions: int, dropped: bool
) -> Example:
    """Candidate number `number`, which names its noise, with its `regions` strongest regions.

    Those have the largest scores or advantages, whichever sign. If `dropped`, without its prompt.
    Raises ValueError for a mask that is damaged or not of the image's size.
    """
    values = c.scores if c.advantages is None else c.advantages
    strongest = np.argsort(-np.abs(values), kind="stable")[:regions]
    if c.advantages is None:
        rewards = Regions(c.boxes[strongest], values[strongest], c.image_score)
    else:
        rewards = Regions(
            c.boxes[strongest],
            None,
            None,
            advantages=values[strongest],
            image_advantage=c.image_advantage,
        )
    if any(c.masks):
        rewards = dataclasses.replace(rewards, masks=tuple(_mask(c, i) for i in strongest))
    return sources.text_to_image(
        tokenizer,
        None if dropped else c.prompt,
        c.latent,
        size=c.size,
        noise_id=number,
        regions=rewards,
        target=c.target,
    )


def check_lanes(
    prompts: Sequence[tuple[str, str]],
    tokenizer: Tokenizer,
    lanes: Lanes,
    layout: LayoutSizes,
    size: tuple[int, int],
) -> None:
    """Raises ValueError naming every prompt that, with an image of `size` pixels, fits no row.

    prompts: the text of each, and where it stands · size: (height, width).
    """
    height, width = (side // layout.token_pixels for side in size)
    latent = np.broadcast_to(np.float32(0), (height, width, layout.token_dim))
    alone = sources.text_to_image(tokenizer, None, latent, size=size, noise_id=0)
    packing.check_fits(packing.size(alone), lanes, what="train.lanes: an image of sample.size")
    faults = []
    for text, where in prompts:
        try:
            whole = sources.text_to_image(tokenizer, text, latent, size=size, noise_id=0)
            packing.check_fits(packing.size(whole), lanes, what=where)
        except ValueError as e:
            faults.append(str(e))
    records.refuse(faults, "train.lanes has no room for these prompts")


def _mask(c: Candidate, region: int) -> np.ndarray | None:
    name = f"candidate {c.id}, region {region}: mask"
    return masks.decode(c.masks[region], c.size, name=name) if c.masks[region] else None


def resampled(c: Candidate, seed: int, use: int) -> Candidate:
    """`c` with latents sampled from their posteriors for use number `use` of the endless sequence.

    Unchanged where the records hold no deviations.
    """
    if c.latent_std is None:
        return c
    rng = np.random.default_rng((seed, use, 2))

    def sample(mean, std):
        return mean + std * rng.standard_normal(mean.shape, np.float32)

    target = None if c.target is None else sample(c.target, c.target_std)
    return dataclasses.replace(c, latent=sample(c.latent, c.latent_std), target=target)


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """Candidates to train on, all with advantages or none, and how rows are made of them.

    c: the train section · lanes: sizes of a row · layout: sizes of tokens · seed: of order, dropped
    prompts and resampled latents.
    """

    candidates: Sequence[Candidate]
    tokenizer: Tokenizer
    lanes: Lanes
    layout: LayoutSizes
    c: TrainConfig
    seed: int

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """What each candidate takes of each lane, [E, 6] of `packing.size`.

        With its prompt: without, it only takes less.
        """
        return np.stack([packing.size(self._example(i, c)) for i, c in enumerate(self.candidates)])

    @functools.cached_property
    def order(self) -> pipeline.EpochRows:
        """Which candidates share a row; raises ValueError where one fits none."""
        return pipeline.EpochRows(self.sizes, self.lanes, seed=self.seed)

    @property
    def left_out(self) -> int:
        """Regions that no row has room for."""
        return sum(max(0, len(x.scores) - self.lanes.regions) for x in self.candidates)

    @functools.cached_property
    def _packed(self) -> dict:
        # One answer for the whole run: arrays that come and go would compile anew.
        masked = any(any(x.masks) for x in self.candidates)
        return {
            "rewards": True,
            "advantages": self.candidates[0].advantages is not None,
            "coverage": self.c.map_sampling if masked else None,
            "targets": any(x.target is not None for x in self.candidates),
        }

    def _example(self, number: int, c: Candidate, dropped: bool = False) -> Example:
        regions = self.lanes.regions
        return example(c, number, tokenizer=self.tokenizer, regions=regions, dropped=dropped)

    def row(self, number: int) -> list[Example]:
        """The samples of row `number` of the endless sequence."""
        epoch, members = self.order(number)
        examples = []
        for i in members:
            use = epoch * len(self.candidates) + i
            c = resampled(self.candidates[i], self.seed, use)
            dropped = sources.dropped(self.seed, use, self.c.text_dropout)
            examples.append(self._example(i, c, dropped))
        return examples

    def batch(self, step: int, at: jax.sharding.Sharding) -> Batch:
        """This host's rows of the batch of `step`, whose rows `at` lays over the devices."""
        rows = [self.row(number) for number in pipeline.local_rows(step, self.c.rows, at)]
        return packing.pack(rows, self.lanes, self.layout, **self._packed)
