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
from srum_jax.data.schema import Batch, Example, Lanes, LayoutSizes, Regions, Transition
from srum_jax.data.shards import ShardRecords
from srum_jax.objectives import srum
from srum_jax.stages import replay, trajectories
from srum_jax.stages.replay import ReplaySet
from srum_jax.stages.selection import Candidate, regions_of

# `generate` leaves the first alone, or with what it keeps of steps by noise (`trajectories.py`).
LATENTS = ("latent", "target", "latent_std", "target_std", *trajectories.FIELDS)


@dataclasses.dataclass(frozen=True)
class Latents:
    """Arrays float32 [h, w, p·p·Z] of a candidate.

    target: the latent of the good picture, if it is another; the stds, of latents that are sampled
    anew at each use: the posterior's deviation around them · trajectory, log_probs, times,
    deviations: of S steps by noise, as `NoisySteps.records` has them · transition: the one of them
    that is trained on, `latent` what stood before it.
    """

    latent: np.ndarray
    target: np.ndarray | None = None
    latent_std: np.ndarray | None = None
    target_std: np.ndarray | None = None
    trajectory: np.ndarray | None = None
    log_probs: np.ndarray | None = None
    times: np.ndarray | None = None
    deviations: np.ndarray | None = None
    transition: Transition | None = None

    def resampled(self, seed: int, use: int) -> "Latents":
        """Latents sampled from their posteriors, or a step of their trajectory, for use number
        `use` of the endless sequence.

        Unchanged where there are neither deviations nor steps.
        """
        if self.trajectory is not None:
            step = int(np.random.default_rng((seed, use, 3)).integers(len(self.log_probs)))
            return self.at(step)
        if self.latent_std is None:
            return self
        rng = np.random.default_rng((seed, use, 2))

        def sample(mean, std):
            return mean + std * rng.standard_normal(mean.shape, np.float32)

        target = None if self.target is None else sample(self.target, self.target_std)
        return Latents(sample(self.latent, self.latent_std), target)

    def at(self, step: int) -> "Latents":
        """The step of this number, from 0, and what stood before it."""
        transition = Transition(
            after=self.trajectory[step + 1],
            times=(float(self.times[step]), float(self.times[step + 1])),
            deviation=float(self.deviations[step]),
            log_prob=float(self.log_probs[step]),
        )
        return Latents(self.trajectory[step], transition=transition)


@dataclasses.dataclass(frozen=True)
class StoredArrays:
    """Where the arrays of candidates lie: fetched by number when a row is packed, none is held.

    drawn and scored: the records that `selection.candidates` was given · proposer: of the regions.
    """

    drawn: ShardRecords
    scored: ShardRecords | None
    proposer: str

    @property
    def targets(self) -> bool:
        """Whether candidates have the latent of a good picture."""
        return "target" in self.drawn.features

    def latents(self, c: Candidate) -> Latents:
        """The candidate's latents."""
        names = tuple(name for name in LATENTS if name in self.drawn.features)
        return Latents(**self.drawn.fields(c.place, names))

    def masks(self, c: Candidate) -> tuple[np.ndarray | None, ...] | None:
        """Masks of its regions, bool [H, W], None for a region without; None without any.

        Raises ValueError for a mask that is damaged or not of the image's size.
        """
        if not c.masked:
            return None
        regions = regions_of(self.scored.fields(c.judged, ("regions",)), self.proposer)
        found = tuple(
            masks.decode(r["mask"], c.size, name=f"candidate {c.id}, region {i}: mask")
            if r.get("mask")
            else None
            for i, r in enumerate(regions)
        )
        return found + (None,) * (len(c.scores) - len(found))  # of missing objects: boxes alone


def example(
    c: Candidate,
    latents: Latents,
    number: int,
    *,
    prompts: sources.Prompts,
    regions: int,
    dilation: int = 0,
    dropped: bool = False,
    region_masks: tuple[np.ndarray | None, ...] | None = None,
) -> Example:
    """Candidate number `number`, which names its noise, with its `regions` strongest regions.

    Those have the largest scores or advantages, whichever sign, and grow by `dilation` pixels. If
    `dropped`, without its prompt. region_masks: one for each of its regions, or None.
    """
    values = c.scores if c.advantages is None else c.advantages
    strongest = strongest_regions(c, regions)
    shown = None if region_masks is None else tuple(region_masks[i] for i in strongest)
    boxes, shown = masks.dilated(c.boxes[strongest], shown, c.size, dilation)
    if c.advantages is None:
        rewards = Regions(boxes, values[strongest], c.image_score, shown)
    else:
        rewards = Regions(
            boxes,
            None,
            None,
            shown,
            advantages=values[strongest],
            image_advantage=c.image_advantage,
        )
    return sources.behind(
        prompts.items(c.prompt, dropped),
        latents.latent,
        size=c.size,
        noise_id=number,
        regions=rewards,
        target=latents.target,
        transition=latents.transition,
    )


def strongest_regions(c: Candidate, count: int) -> np.ndarray:
    """Places of the `count` regions with the largest scores or advantages, whichever sign."""
    values = c.scores if c.advantages is None else c.advantages
    return np.argsort(-np.abs(values), kind="stable")[:count]


def together(c: TrainConfig) -> int:
    """How many candidates, one behind the other, always share a row and their noise: the two of a
    pair, where the objective compares pairs."""
    return 2 if c.objective == "dpo" else 1


def check_lanes(
    prompts: Sequence[tuple[str, str]],
    reads: sources.Prompts,
    lanes: Lanes,
    layout: LayoutSizes,
    size: tuple[int, int],
    count: int = 1,
) -> None:
    """Raises ValueError naming every prompt that, with `count` images of `size` pixels, each behind
    the prompt, fits no row.

    prompts: the text of each, and where it stands · reads: as the model reads it · size: (height,
    width).
    """
    height, width = (side // layout.token_pixels for side in size)
    latent = np.broadcast_to(np.float32(0), (height, width, layout.token_dim))
    alone = sources.behind((), latent, size=size, noise_id=0)
    what = "an image" if count == 1 else f"{count} images"
    what = f"train.lanes: {what} of sample.size"
    packing.check_fits(count * packing.size(alone), lanes, what=what)
    faults = []
    for text, where in prompts:
        try:
            whole = sources.behind(reads.items(text), latent, size=size, noise_id=0)
            packing.check_fits(count * packing.size(whole), lanes, what=where)
        except ValueError as e:
            faults.append(str(e))
    records.refuse(faults, "train.lanes has no room for these prompts")


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """Candidates to train on, all with advantages or none, and how rows are made of them; such as
    `together` says follow each other.

    stored: where their arrays lie · prompts: how the model reads theirs · c: the train section ·
    lanes: sizes of a row · layout: sizes of tokens · seed: of order, dropped prompts and resampled
    latents · own_edits: what the last rows of a step hold in place of candidates.
    """

    candidates: Sequence[Candidate]
    stored: StoredArrays
    prompts: sources.Prompts
    lanes: Lanes
    layout: LayoutSizes
    c: TrainConfig
    seed: int
    own_edits: ReplaySet | None = None

    @property
    def kinds(self) -> list[tuple[int, np.ndarray, int]]:
        """Of each kind of rows: how many a step has, what its examples take of each lane [E, 6] of
        `packing.size`, and in how many rows these are packed."""
        edits = 0 if self.own_edits is None else replay.rows(self.c)
        found = [(self.c.rows - edits, self.sizes, len(self.order.first))]
        if self.own_edits is not None:
            found.append((edits, self.own_edits.sizes, len(self.own_edits.order.first)))
        return found

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """What each candidate takes of each lane, [E, 6] of `packing.size`.

        With its prompt: without, it only takes less.
        """
        found = np.empty((len(self.candidates), len(packing.LANES)), np.int64)
        for i, c in enumerate(self.candidates):
            found[i] = packing.size(self._example(c, _shape_alone(c), i))
        return found

    @functools.cached_property
    def order(self) -> pipeline.EpochRows:
        """Which candidates share a row, by the number of the first where several are `together`;
        raises ValueError where one fits none."""
        grouped = self.sizes.reshape(-1, together(self.c), len(packing.LANES))
        sizes, regions = grouped.sum(axis=1), packing.LANES.index("regions")
        sizes[:, regions] = grouped[:, :, regions].max(axis=1, initial=0)
        return pipeline.EpochRows(sizes, self.lanes, seed=self.seed)

    @property
    def left_out(self) -> int:
        """Regions that no row has room for."""
        return sum(max(0, len(x.scores) - self.lanes.regions) for x in self.candidates)

    @functools.cached_property
    def _packed(self) -> dict:
        # One answer for the whole run: arrays that come and go would compile anew.
        masked = any(x.masked for x in self.candidates)
        return {
            "rewards": True,
            "advantages": self.candidates[0].advantages is not None,
            "coverage": self.c.map_sampling if masked else None,
            "targets": self.stored.targets,
            "transitions": self.c.objective in srum.STEPWISE,
        }

    def _example(self, c: Candidate, latents: Latents, number: int, **more) -> Example:
        how = dict(prompts=self.prompts, regions=self.lanes.regions, dilation=self.c.dilation)
        return example(c, latents, number, **how, **more)

    def row(self, number: int) -> list[Example]:
        """The samples of row `number` of the endless sequence."""
        epoch, members = self.order(number)
        return [example for i in members for example in self._group(i, epoch)]

    def _group(self, i: int, epoch: int) -> list[Example]:
        """The samples of group `i` of those that are `together`, in an epoch."""
        first, examples = together(self.c) * i, []
        begun = epoch * len(self.candidates)
        dropped = sources.dropped(self.seed, begun + first, self.c.text_dropout)
        for j in range(first, first + together(self.c)):
            c = self.candidates[j]
            latents = self.stored.latents(c).resampled(self.seed, begun + j)
            more = {"dropped": dropped, "region_masks": self.stored.masks(c)}
            examples.append(self._example(c, latents, first, **more))
        return examples

    def alone(self, i: int) -> tuple[Batch, int]:
        """(candidate `i` as training packs it, in a row with nothing but those that it is
        `together` with, and its number among the row's images)."""
        count = together(self.c)
        first = i - i % count
        made = [
            self._example(c, self.stored.latents(c), first, region_masks=self.stored.masks(c))
            for c in (self.candidates[j] for j in range(first, first + count))
        ]
        return packing.pack([made], self.lanes, self.layout, **self._packed), i - first

    def _of_step(self, step: int, place: int) -> list[Example]:
        """The samples of row `place` of a step: of own edits the last ones."""
        edits = 0 if self.own_edits is None else replay.rows(self.c)
        first = self.c.rows - edits  # of those of edits
        if place < first:
            return self.row(step * first + place)
        return self.own_edits.row(step * edits + place - first)

    def batch(self, step: int, at: jax.sharding.Sharding) -> Batch:
        """This host's rows of the batch of `step`, whose rows `at` lays over the devices."""
        numbers = pipeline.local_rows(step, self.c.rows, at)
        rows = [self._of_step(step, number - step * self.c.rows) for number in numbers]
        return packing.pack(rows, self.lanes, self.layout, **self._packed)


def _shape_alone(c: Candidate) -> Latents:
    """Latents of the candidate's shape that take no memory."""
    return Latents(np.broadcast_to(np.float32(0), c.grid))
