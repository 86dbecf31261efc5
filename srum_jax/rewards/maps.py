"""Regions and scores to one weight a latent token; no map of H×W pixels is made on the device.

Owns the rules by which region and image scores become token weights (`WeightRule`,
`token_weights`), the released map in NumPy as their reference (SRUM code,
`regional_reward_dataset.py` and the bilinear sample of `bagel.py`), and the centring of scores into
advantages. A bilinear sample without antialias reads four known pixels of the map, and a box covers
a known part of a token's cell, so either is exact at O(tokens × regions). Masks come as their
coverage of the tokens (`data/masks.py`).

Boxes are (x0, y0, x1, y1) in pixels of the image that the latent was made from, upper ends
excluded, fractions cut towards zero. Axes: N images, R regions, G tokens, P points a token reads.
"""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from srum_jax.data.masks import POINTS
from srum_jax.data.schema import Rewards, Sampling

UNCOVERED = 0.5  # the released weight where no box lies, before the image's factor
STD_FLOOR = 0.2  # least deviation that advantages are divided by


@dataclasses.dataclass(frozen=True)
class WeightRule:
    """How the scores of regions and image, in [-1, 1], become the weight of a token.

    range: the weight of a score s is (s+1)/2 ("unit") or s ("signed").
    background: the weight where no region lies: 0.5 ("half"), 0 ("zero"), the image's ("image").
    overlap: of the regions that share a point: the largest weight ("max") or their "mean".
    image: the image's score g multiplies all by (g+1)/2 ("factor"), counts for 1 - region_share
        inside regions ("blend"), or is not read, but as background ("ignore").
    negative: a score below 0 counts as it is ("keep") or as 0 ("clip").
    bounded: scores are clipped to [-1, 1] first, so weights stay in their range; not as released.
    sampling: a token reads the four pixels of a bilinear sample at its centre, as released, where
        thin regions vanish ("centre"), or its whole cell ("area"): there a region that covers the
        share c of it has the weight c·(its own) + (1-c)·background, before overlap and image.
    Raises ValueError for another value.
    """

    range: Literal["unit", "signed"]
    background: Literal["half", "zero", "image"]
    overlap: Literal["max", "mean"]
    image: Literal["factor", "blend", "ignore"]
    negative: Literal["keep", "clip"] = "keep"
    region_share: float = 0.5
    bounded: bool = True
    sampling: Sampling = "centre"

    def __post_init__(self):
        for name, kind in typing.get_type_hints(type(self)).items():
            value, known = getattr(self, name), typing.get_args(kind)
            if known and value not in known:
                raise ValueError(
                    f"{name} = {value!r} of a weight rule: known are {', '.join(known)}"
                )
        if not 0 <= self.region_share <= 1:
            raise ValueError(
                f"region_share = {self.region_share!r} of a weight rule: give a number in [0, 1]"
            )


# The authors' code. Its maximum with a background of 0.5 is that a negative score counts as 0.
RELEASED = WeightRule("unit", "half", "max", "factor", negative="clip", bounded=False)
# The paper, which leaves open what lies in no region (here 0: the reference term alone) and
# overlaps (here the mean).
PAPER = WeightRule("signed", "zero", "mean", "factor")
# Right regions alone are learned, and what lies in none only of a picture that is right.
POSITIVE = WeightRule("signed", "image", "mean", "ignore", negative="clip")
# Scores are advantages, centred among regions only: background is neither right nor wrong on its
# own, so it takes the image's; a centred map that includes it teaches the model to avoid it.
ADVANTAGE = WeightRule("signed", "image", "mean", "blend")


# --------------------------------------------------------------------- on the device, per token


def _read_points(token: jax.Array, tokens: jax.Array, pixels: jax.Array):
    """The two pixels [..., 2] int32 that a token's sample reads along one axis, and their weights.

    The rule of a bilinear resize from `pixels` to `tokens` with align_corners=False, as
    `data.masks.bilinear_points` has it on the host; here sizes are traced, and float32 is as
    released.
    """
    scale = jnp.float32(pixels) / jnp.maximum(tokens, 1)
    source = jnp.maximum(scale * (token + jnp.float32(0.5)) - 0.5, 0.0)
    low = jnp.minimum(jnp.floor(source), pixels - 1).astype(jnp.int32)
    high = jnp.minimum(low + 1, pixels - 1).astype(jnp.int32)
    upper = jnp.minimum(source - low, 1.0)
    return jnp.stack([low, high], -1), jnp.stack([1.0 - upper, upper], -1)


def _locate(images: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Image numbers safe to index with, and which tokens have a real one."""
    return jnp.clip(images, 0, count - 1), (images >= 0) & (images < count)


def _whole_boxes(boxes: jax.Array, valid: jax.Array):
    """Ends of the boxes in whole pixels, float32, and which of them are not empty."""
    x0, y0, x1, y1 = jnp.moveaxis(jnp.trunc(boxes.astype(jnp.float32)), -1, 0)
    return (x0, y0, x1, y1), valid & (x0 < x1) & (y0 < y1)


def _read_pixels(boxes, valid, sizes, grids, images, cells):
    """Which boxes hold the four pixels that each token reads: (bool [G,4,R], weights [G,4])."""
    size, grid = sizes[images], grids[images]
    rows, row_weights = _read_points(cells[:, 0], grid[:, 0], size[:, 0])
    cols, col_weights = _read_points(cells[:, 1], grid[:, 1], size[:, 1])
    (x0, y0, x1, y1), usable = _whole_boxes(boxes, valid)
    in_rows = (y0[images][:, None] <= rows[..., None]) & (rows[..., None] < y1[images][:, None])
    in_cols = (x0[images][:, None] <= cols[..., None]) & (cols[..., None] < x1[images][:, None])
    inside = in_rows[:, :, None] & in_cols[:, None] & usable[images][:, None, None]
    weights = row_weights[:, :, None] * col_weights[:, None]
    return rearrange(inside, "g a b r -> g (a b) r"), rearrange(weights, "g a b -> g (a b)")


def _read_cells(boxes, valid, sizes, grids, images, cells):
    """The share of each token's cell that each box covers, [G,1,R], and weights 1 [G,1].

    Counted in whole numbers of 1/h × 1/w pixels, so exact up to one division.
    """
    size, grid = sizes[images], grids[images]
    (x0, y0, x1, y1), usable = _whole_boxes(boxes, valid)

    def shared(low, high, axis):
        """How far each token's cell and box [low, high) overlap along one axis, int32 [G,R]."""
        pixels, tokens, cell = (v[:, axis, None] for v in (size, grid, cells))
        low, high = (jnp.clip(end[images], 0, pixels).astype(jnp.int32) for end in (low, high))
        low, high = (
            jnp.maximum(low * tokens, cell * pixels),
            jnp.minimum(high * tokens, (cell + 1) * pixels),
        )
        return jnp.maximum(high - low, 0)

    pixels = jnp.where(usable[images], shared(y0, y1, 0) * shared(x0, x1, 1), 0)
    area = jnp.maximum(size[:, 0] * size[:, 1], 1)[:, None]
    inside = pixels.astype(jnp.float32) / area.astype(jnp.float32)
    return inside[:, None], jnp.ones((len(images), 1), jnp.float32)


_READ = {"centre": _read_pixels, "area": _read_cells}


def _level(rule: WeightRule, scores: jax.Array) -> jax.Array:
    """The weight of a score where it counts alone."""
    scores = scores.astype(jnp.float32)
    if rule.bounded:
        scores = jnp.clip(scores, -1.0, 1.0)
    if rule.negative == "clip":
        scores = jnp.maximum(scores, 0.0)
    return (scores + 1.0) / 2.0 if rule.range == "unit" else scores


def _overlapping(rule: WeightRule, values: jax.Array, here: jax.Array) -> jax.Array:
    """One of the values [G,P,R] of the regions `here`, [G,P]; where none is, not to be read."""
    if rule.overlap == "max":
        return jnp.where(here, values, -jnp.inf).max(axis=-1, initial=-jnp.inf)
    return jnp.where(here, values, 0.0).sum(axis=-1) / jnp.maximum(here.sum(axis=-1), 1)


def token_weights(
    rule: WeightRule,
    rewards: Rewards,
    sizes: jax.Array,
    grids: jax.Array,
    images: jax.Array,
    cells: jax.Array,
) -> jax.Array:
    """The weight of each latent token of one row by `rule`, float32 [G], without gradient.

    rewards: boxes [N,R,4] · scores [N,R] · valid [N,R] (False: the region is not read) ·
    image_score [N] · coverage None, or inside [G,P,R] and weights [G,P] in place of the boxes, made
    for the rule's sampling · sizes [N,2] (H, W pixels) · grids [N,2] (h, w tokens) ·
    images [G] (image of each token; outside 0..N-1 is padding and weighs 0) · cells [G,2] (row,
    column in that image's grid). In [0, 1] or [-1, 1], the rule's range, for a bounded rule or
    scores in [-1, 1]. NaN of an image's score or of a valid region's reaches the tokens that read
    it (leave it out of the batch). For rows of a batch, vmap. Raises ValueError for a coverage of
    the other sampling.
    """
    images, known = _locate(images, rewards.boxes.shape[0])
    valid = rewards.valid
    if rewards.coverage is None:
        inside, weights = _READ[rule.sampling](rewards.boxes, valid, sizes, grids, images, cells)
    else:
        inside, weights = rewards.coverage.inside, rewards.coverage.weights
        if inside.shape[1] != POINTS[rule.sampling]:
            raise ValueError(
                f"coverage of {inside.shape[1]} points a token, the rule samples by "
                f"{rule.sampling!r}"
            )
        inside = jnp.where(valid[images][:, None], inside, 0)
    whole = _level(rule, rewards.image_score)[images][:, None]
    constant = {"half": UNCOVERED, "zero": 0.0}.get(rule.background)
    background = whole if constant is None else jnp.full_like(whole, constant)
    local = _level(rule, jnp.where(valid, rewards.scores, 0.0))[images][:, None]
    share = inside.astype(jnp.float32)
    mixed = share * local + (1.0 - share) * background[..., None]
    here = inside > 0
    values = _overlapping(rule, mixed, here)
    if rule.image == "blend":
        values = (1.0 - rule.region_share) * whole + rule.region_share * values
    values = jnp.where(here.any(axis=-1), values, background)
    if rule.image == "factor":
        g = rewards.image_score.astype(jnp.float32)
        g = jnp.clip(g, -1.0, 1.0) if rule.bounded else g
        values = values * ((g + 1.0) / 2.0)[images][:, None]
    summed = jnp.where(known, jnp.sum(values * weights, axis=-1), 0.0)
    return jax.lax.stop_gradient(summed)


def sample_map(dense: jax.Array, h: int, w: int) -> jax.Array:
    """A dense map [..., H, W] sampled at the centres of h×w tokens, float32 [..., h, w].

    Bilinear, align_corners=False, no antialias; `h`, `w` static. Accepts NumPy or jnp.
    """
    dense = jnp.asarray(dense, jnp.float32)
    height, width = dense.shape[-2:]
    rows, row_weights = _read_points(jnp.arange(h), h, height)
    cols, col_weights = _read_points(jnp.arange(w), w, width)
    across = jnp.einsum("...hjb,jb->...hj", dense[..., cols], col_weights, precision="highest")
    down = across[..., rows, :]  # [..., h, 2, w]
    return jnp.einsum("...iaj,ia->...ij", down, row_weights, precision="highest")


# --------------------------------------------------------------------------- on the host, NumPy


def release_map(
    boxes: np.ndarray,
    scores: np.ndarray,
    valid: np.ndarray,
    image_score: float,
    size: tuple[int, int],
) -> np.ndarray:
    """The released reward map of one image of `size` (H, W), float32 [H, W]: the NumPy reference.

    boxes [R,4], scores [R], valid [R] as `token_weights` reads them of each image.
    """
    dense = np.full(size, UNCOVERED, np.float32)
    for (x0, y0, x1, y1), score, usable in zip(np.trunc(boxes), scores, valid, strict=True):
        if usable and x0 < x1 and y0 < y1:
            # Only lower ends need clamping, to keep negative ones from counting from the far side.
            part = np.s_[max(int(y0), 0) : max(int(y1), 0), max(int(x0), 0) : max(int(x1), 0)]
            dense[part] = np.maximum(dense[part], np.float32((float(score) + 1.0) / 2.0))
    return dense * np.float32((image_score + 1.0) / 2.0)


def centred(values: np.ndarray) -> np.ndarray:
    """clip((value - mean) / max(std, STD_FLOOR), ±1) over the finite values; NaN stays NaN."""
    known = values[np.isfinite(values)]
    if not known.size:
        return np.full_like(values, np.nan)
    return np.clip((values - known.mean()) / max(known.std(), STD_FLOOR), -1.0, 1.0)


def group_advantages(
    image_scores: np.ndarray,
    region_scores: Sequence[Sequence[np.ndarray]],
) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Scores to advantages within each prompt's group of K candidates.

    image_scores [P,K]; region_scores[p][k] float [R]; all in [-1, 1], NaN for a failed score or an
    absent candidate. Image scores are centred among the prompt's images, region scores among the
    prompt's regions alone (never with background), each divided by its standard deviation, at
    least STD_FLOOR so that a group without contrast stays near 0, and clipped.
    Returns float32 advantages in [-1, 1] of the same structure, NaN where the score is.
    """
    image_scores = np.asarray(image_scores, np.float64)
    counts = [len(group) for group in region_scores]
    if image_scores.ndim != 2 or counts != [image_scores.shape[1]] * image_scores.shape[0]:
        raise ValueError(
            f"image scores of shape {image_scores.shape} do not match region scores of {counts} "
            "candidates: give [P,K] and P lists of K arrays"
        )
    image = np.stack([centred(row) for row in image_scores]).astype(np.float32)
    regions = []
    for group in region_scores:
        parts = [np.asarray(scores, np.float64).reshape(-1) for scores in group]
        pooled = centred(np.concatenate(parts)).astype(np.float32)
        regions.append(np.split(pooled, np.cumsum([len(part) for part in parts])[:-1]))
    return image, regions
