"""Packing: which examples share a row (`plan`), and a row's arrays (`pack`).

Both are pure NumPy functions. `plan` is the whole order of an epoch, the same on every host;
`pack` lays samples into the two lanes with their segments, splits, modes and RoPE positions
(BAGEL `data/dataset_base.py`, section 3 of the specification).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from srum_jax.core.patches import position_ids
from srum_jax.data import masks
from srum_jax.data.schema import (
    BRANCH,
    CAUSAL,
    FULL,
    NOISE,
    Batch,
    Branch,
    Coverage,
    Example,
    Lanes,
    Latent,
    LayoutSizes,
    Picture,
    Regions,
    Rewards,
    Sampling,
    Text,
    Tokens,
    Transitions,
)

LANES = tuple(f.name for f in dataclasses.fields(Lanes))

# Weight of a label by the number of labels of its text: every label counts the same, every text
# does, or the geometric mean of both (BAGEL `data/data_utils.py`, len2weight).
LABEL_WEIGHTS = {"token": lambda n: 1.0, "sample": lambda n: 1 / n, "square": lambda n: n**-0.5}


def size(example: Example) -> np.ndarray:
    """What an example takes of each lane: [und, gen, vit, labels, images, regions] int64."""
    und = gen = vit = labels = images = regions = 0
    for item in example.items:
        if isinstance(item, Picture):
            und, vit = und + len(item.positions) + 2, vit + len(item.positions)
        elif isinstance(item, Latent):
            h, w = item.tokens.shape[:2]
            und, gen, images = und + 2, gen + h * w, images + 1
            regions = max(regions, 0 if item.regions is None else len(item.regions.boxes))
        else:
            for text in item.texts if isinstance(item, Branch) else (item,):
                und += len(text.ids) + 2
                labels += (len(text.ids) + 1) * text.loss
    return np.array([und, gen, vit, labels, images, regions])


def total(sizes: Sequence[np.ndarray]) -> np.ndarray:
    """What several examples take of one row: sums, but of regions the widest."""
    together = np.sum(sizes, axis=0)
    together[LANES.index("regions")] = max(s[LANES.index("regions")] for s in sizes)
    return together


def check_fits(example_size: np.ndarray, lanes: Lanes, *, what: str) -> None:
    """Raises ValueError naming every lane of a row that `what` overflows, and the size to set."""
    limit = dataclasses.astuple(lanes)
    problems = [
        f"{name} needs {need}, the config has {have}"
        for name, need, have in zip(LANES, example_size, limit, strict=True)
        if need > have
    ]
    if problems:
        raise ValueError(f"{what} does not fit one row: " + "; ".join(problems))


def plan(sizes: np.ndarray, lanes: Lanes, *, seed: int, epoch: int) -> list[list[int]]:
    """Rows of example numbers for one epoch: first fit over a seeded permutation.

    sizes [E, 6] as `size` gives. Every example appears exactly once. Deterministic in its
    arguments, so every host computes the same rows. Raises ValueError if an example fits no row.
    """
    limit = np.array(dataclasses.astuple(lanes))
    for i in np.flatnonzero((sizes > limit).any(axis=1))[:1]:
        check_fits(sizes[i], lanes, what=f"example {i}")
    # Regions is a width, not a sum: it is checked above and never accumulates.
    need = sizes.copy()
    need[:, LANES.index("regions")] = 0
    rows: list[list[int]] = []
    places = _OpenRows(limit, need.min(axis=0) if len(sizes) else limit)
    for i in np.random.default_rng((seed, epoch)).permutation(len(sizes)).tolist():
        row = places.take(need[i])
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
    return rows


class _OpenRows:
    """The rows of a plan that have room for something, with what is free in each lane.

    limit [6]: of an empty row · smallest [6]: what is less than this is no room. Rows without room
    are let go as they come to be the half, so an example costs what rows are open, not what there
    are.
    """

    def __init__(self, limit: np.ndarray, smallest: np.ndarray):
        self.limit, self.smallest = limit, smallest
        self.free = np.zeros((len(limit), 64), np.int32)
        self.numbers = np.zeros(64, np.int64)  # of the rows, ascending
        self.open = self.full = self.rows = 0  # columns in use, those without room, rows in all

    def take(self, need: np.ndarray) -> int:
        """The number of the first row that has room for `need` [6], which it then takes; of a new
        row where none has."""
        fits = self.free[0, : self.open] >= need[0]
        for lane in range(1, len(need)):
            if need[lane]:
                fits &= self.free[lane, : self.open] >= need[lane]
        at = int(fits.argmax()) if self.open else 0
        if not self.open or not fits[at]:
            at = self._new()
        self.free[:, at] -= need
        number = int(self.numbers[at])
        if (self.free[:, at] < self.smallest).any():
            self.free[:, at] = -1
            self.full += 1
            if 2 * self.full > self.open:
                self._let_go()
        return number

    def _new(self) -> int:
        if self.open == len(self.numbers):
            self.free = np.concatenate([self.free, np.zeros_like(self.free)], axis=1)
            self.numbers = np.concatenate([self.numbers, np.zeros_like(self.numbers)])
        self.free[:, self.open], self.numbers[self.open] = self.limit, self.rows
        self.open, self.rows = self.open + 1, self.rows + 1
        return self.open - 1

    def _let_go(self) -> None:
        kept = np.flatnonzero(self.free[0, : self.open] >= 0)
        self.open, self.full = len(kept), 0
        self.free[:, : self.open], self.numbers[: self.open] = (
            self.free[:, kept],
            self.numbers[kept],
        )


def fill(sizes: np.ndarray, rows: Sequence[Sequence[int]], lanes: Lanes) -> dict[str, float]:
    """Share of the und and gen lanes that real tokens take, over the rows of a plan."""
    used = sum(sizes[list(r)].sum(axis=0) for r in rows)
    return {
        name: float(used[i] / (len(rows) * getattr(lanes, name)))
        for i, name in enumerate(LANES)
        if name in ("und", "gen") and getattr(lanes, name)
    }


class _Row:
    """Arrays of one row under construction; `add` appends one sample."""

    def __init__(
        self,
        lanes: Lanes,
        layout: LayoutSizes,
        targets: bool,
        coverage: Sampling | None,
        advantages: bool,
        label_weights: str,
        transitions: bool,
    ):
        self.lanes, self.layout, self.targets, self.coverage = lanes, layout, targets, coverage
        self.advantages = advantages
        self.weight = LABEL_WEIGHTS[label_weights]
        u, g, p, y, n, r = dataclasses.astuple(lanes)
        dim = layout.token_dim
        self.und = np.zeros((5, u), np.int32)
        self.gen = np.zeros((5, g), np.int32)
        self.und[4], self.gen[4] = -1, -1
        self.text_ids = np.zeros(u, np.int32)
        self.vit_patches = np.zeros((p, layout.vit_patch**2 * 3), np.float32)
        self.vit_positions = np.zeros(p, np.int32)
        self.vit_images = np.full(p, -1, np.int32)
        self.vit_slots = np.full(p, u, np.int32)
        self.label_slots = np.zeros(y, np.int32)
        self.label_ids = np.zeros(y, np.int32)
        self.label_weights = np.zeros(y, np.float32)
        self.latents = np.zeros((g, dim), np.float32)
        self.target_latents = np.zeros((g, dim), np.float32) if targets else None
        self.latent_positions = np.zeros(g, np.int32)
        self.latent_images = np.zeros(g, np.int32)
        self.latent_cells = np.zeros((g, 2), np.int32)
        self.noisy = np.zeros(n, bool)
        self.noise_ids = np.zeros(n, np.uint32)
        self.grids = np.ones((n, 2), np.int32)
        self.sizes = np.ones((n, 2), np.int32)
        self.boxes = np.zeros((n, r, 4), np.float32)
        self.values = np.zeros((n, r), np.float32)  # scores or advantages
        self.valid = np.zeros((n, r), bool)
        self.image_values = np.zeros(n, np.float32)
        self.after = np.zeros((g, dim) if transitions else (), np.float32)
        self.times = np.zeros((n, 2), np.float32)
        self.deviation, self.log_prob = np.zeros((2, n), np.float32)
        if coverage:
            points = masks.POINTS[coverage]
            self.inside = np.zeros((g, points, r), np.float32)
            self.point_weights = np.zeros((g, points), np.float32)
        self.u = self.g = self.p = self.y = self.n = self.index = 0
        self.segment = self.picture = 0

    def _place(self, lane: np.ndarray, at: int, count: int, split: int, mode: int, position):
        where = slice(at, at + count)
        lane[0, where], lane[1, where] = self.segment, split
        lane[2, where], lane[3, where] = mode, position
        lane[4, where] = np.arange(self.index, self.index + count)
        self.index += count

    def _label(self, slot: int, ids, weight: float):
        count = len(ids)
        where = slice(self.y, self.y + count)
        self.label_slots[where] = np.arange(slot, slot + count)
        self.label_ids[where] = ids
        self.label_weights[where] = weight
        self.y += count

    def _text(self, text: Text, split: int, mode: int, position: int) -> int:
        count = len(text.ids) + 2
        at = self.u
        self._place(self.und, at, count, split, mode, np.arange(position, position + count))
        self.text_ids[at] = self.layout.bos
        self.text_ids[at + 1 : at + count - 1] = text.ids
        self.text_ids[at + count - 1] = self.layout.eos
        if text.loss:
            self._label(at, self.text_ids[at + 1 : at + count], self.weight(count - 1))
        self.u += count
        return position + count

    def _special(self, token: int, split: int, mode: int, position: int):
        self._place(self.und, self.u, 1, split, mode, position)
        self.text_ids[self.u] = token
        self.u += 1

    def _picture(self, item: Picture, split: int, position: int) -> int:
        count = len(item.positions)
        self._special(self.layout.start_of_image, split, FULL, position)
        self._place(self.und, self.u, count, split, FULL, position)
        where = slice(self.p, self.p + count)
        self.vit_patches[where] = item.patches
        self.vit_positions[where] = item.positions
        self.vit_images[where] = self.picture
        self.vit_slots[where] = np.arange(self.u, self.u + count)
        self.u, self.p, self.picture = self.u + count, self.p + count, self.picture + 1
        self._special(self.layout.end_of_image, split, FULL, position)
        return position + 1

    def _latent(self, item: Latent, split: int, position: int) -> int:
        h, w = item.tokens.shape[:2]
        count, n = h * w, self.n
        mode = NOISE if item.noisy else FULL
        self._special(self.layout.start_of_image, split, mode, position)
        self._place(self.gen, self.g, count, split, mode, position)
        where = slice(self.g, self.g + count)
        self.latents[where] = item.tokens.reshape(count, -1)
        if self.targets:
            good = item.tokens if item.target is None else item.target
            self.target_latents[where] = good.reshape(count, -1)
        row, col = np.divmod(np.arange(count), w)
        self.latent_positions[where] = position_ids(
            h, w, self.layout.max_latent, self.layout.interpolate_pos
        )
        self.latent_images[where] = n
        self.latent_cells[where] = np.stack([row, col], axis=-1)
        self._special(self.layout.end_of_image, split, mode, position)
        self.noisy[n] = item.noisy
        self.noise_ids[n] = np.uint32(item.noise_id)
        self.grids[n], self.sizes[n] = (h, w), item.size
        if item.regions is not None:
            k = len(item.regions.boxes)
            self.boxes[n, :k] = item.regions.boxes
            self.valid[n, :k] = True
            self.values[n, :k], self.image_values[n] = _values(item.regions, self.advantages)
        if self.coverage:
            r = item.regions or Regions(np.zeros((0, 4)), np.zeros(0), 0.0)
            inside, weights = masks.cover(r.boxes, r.masks, item.size, (h, w), self.coverage)
            self.inside[where, :, : len(r.boxes)], self.point_weights[where] = inside, weights
        if step := item.transition:
            self.after[where] = step.after.reshape(count, -1)
            self.times[n], self.deviation[n] = step.times, step.deviation
            self.log_prob[n] = step.log_prob
        self.g, self.n = self.g + count, n + 1
        return position if item.noisy else position + 1

    def add(self, example: Example):
        """Lays one sample; its segment is the next number, its positions start at 0."""
        self.segment += 1
        position = 0
        for split, item in enumerate(example.items):
            if isinstance(item, Text):
                position = self._text(item, split, CAUSAL, position)
            elif isinstance(item, Picture):
                position = self._picture(item, split, position)
            elif isinstance(item, Latent):
                position = self._latent(item, split, position)
            else:  # a Branch: positions go on inside it, and are given back after it
                inner = position
                for text in item.texts:
                    inner = self._text(text, split, BRANCH, inner)


def _values(regions: Regions, advantages: bool) -> tuple[np.ndarray, float]:
    """(what is known of regions, of their image): advantages or scores; ValueError if not there."""
    kind = "advantages" if advantages else "scores"
    found = (
        (regions.advantages, regions.image_advantage)
        if advantages
        else (regions.scores, regions.image_score)
    )
    if any(values is None for values in found):
        raise ValueError(f"the batch is to hold {kind}, and a sample's regions have none")
    return found


def _masked(example: Example) -> bool:
    regions = (item.regions for item in example.items if isinstance(item, Latent))
    return any(mask is not None for r in regions if r for mask in r.masks or ())


def pack(
    rows: Sequence[Sequence[Example]],
    lanes: Lanes,
    layout: LayoutSizes,
    *,
    targets: bool = False,
    rewards: bool = False,
    advantages: bool = False,
    coverage: Sampling | None = None,
    label_weights: str = "token",
    transitions: bool = False,
) -> Batch:
    """Rows of examples -> a Batch of NumPy arrays, one row each.

    `targets` adds the separate clean latents of L_con, `rewards` the region arrays (with
    `advantages` in place of scores) and, of the given sampling, the `coverage` that regions with
    masks need (of all rows or of none: arrays that come and go compile anew), `transitions` the
    steps of a stepwise objective; `label_weights` names
    one of LABEL_WEIGHTS ("square" is BAGEL's ce_loss_reweighting). Raises ValueError, naming lane
    and sizes, for a row that does not fit, for masks without coverage or of another size than their
    image, and for regions with advantages where scores are wanted, or the other way round.
    """
    if rewards and not coverage and any(_masked(e) for examples in rows for e in examples):
        raise ValueError("a region has a mask: pack the rewards with coverage")
    built = []
    for examples in rows:
        if examples:
            check_fits(total([size(e) for e in examples]), lanes, what="a row")
        row = _Row(lanes, layout, targets, coverage, advantages, label_weights, transitions)
        for example in examples:
            row.add(example)
        built.append(row)

    def stack(name):
        return np.stack([getattr(r, name) for r in built])

    def tokens(name):
        return Tokens(*stack(name).transpose(1, 0, 2))

    plain = (
        "text_ids vit_patches vit_positions vit_images vit_slots label_slots label_ids "
        "label_weights latents latent_positions latent_images latent_cells noisy noise_ids "
        "grids sizes"
    ).split()
    return Batch(
        und=tokens("und"),
        gen=tokens("gen"),
        **{name: stack(name) for name in plain},
        targets=stack("target_latents") if targets else None,
        rewards=Rewards(
            boxes=stack("boxes"),
            scores=None if advantages else stack("values"),
            valid=stack("valid"),
            image_score=None if advantages else stack("image_values"),
            coverage=Coverage(stack("inside"), stack("point_weights")) if coverage else None,
            advantages=stack("values") if advantages else None,
            image_advantage=stack("image_values") if advantages else None,
        )
        if rewards
        else None,
        transitions=Transitions(*map(stack, ("after", "times", "deviation", "log_prob")))
        if transitions
        else None,
    )
