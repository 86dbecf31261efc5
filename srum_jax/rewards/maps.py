"""Regions and scores to one weight a latent token; no map of H×W pixels is made on the device.

Owns the weight rules by which region and image scores become token weights (`WeightRule`,
`token_weights`), the released map in NumPy as their reference (SRUM code,
`regional_reward_dataset.py` and the bilinear sample of `bagel.py`), and the centring of scores
into advantages. A bilinear sample without antialias reads four known pixels of the map, and a box
covers a known part of a token's cell, so either is exact at O(tokens × regions). Masks come as
their coverage of the tokens (`data/masks.py`).

Boxes are (x0, y0, x1, y1) in pixels of the image that the latent was made from, upper ends
excluded, fractions cut towards zero. Axes: N images, R regions, G tokens, P points a token reads.
"""

import dataclasses
import numbers
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from srum_jax.data.masks import POINTS
from srum_jax.data.schema import Rewards, Sampling

UNCOVERED = 0.5  # the released weight where no box lies, before the image's factor
GLOBAL_ENTRY = "global_layout_reward"  # the published record that scores the whole image
_FAR = 2**24  # a coordinate beyond this lies outside any image; float32 is exact below it


@dataclasses.dataclass(frozen=True)
class WeightRule:
    """How the scores of regions and image, in [-1, 1], become the weight of a token.

    range: the weight of a score s is (s+1)/2 ("unit") or s ("signed").
    negative: a score below 0 counts as it is ("keep"), as 0 ("clip"), as at least -cap ("cap").
    background: the weight where no region lies: 0.5 ("half"), 0 ("zero"), the image's ("image").
    overlap: of the regions that share a point: the largest weight, the smallest, the mean; that of
        the region of the smallest area; or the one farthest from a score of 0 ("extreme"; of two
        equally far the positive one). None depends on the order of the regions: of several of the
        smallest area the mean counts.
    image: the image's score g multiplies all by (g+1)/2 ("factor"), counts for 1 - region_share
        inside regions ("blend"), or is not read, but as background ("ignore").
    sampling: a token reads the four pixels of a bilinear sample at its centre, as released, where
        thin regions vanish ("centre"), or its whole cell ("area"): there a region that covers the
        share c of it has the weight c·(its own) + (1-c)·background, before overlap and image.
    bounded: scores are clipped to [-1, 1] first, so weights stay in their range; not as released.
    Raises ValueError for another value.
    """

    range: Literal["unit", "signed"]
    background: Literal["half", "zero", "image"]
    overlap: Literal["max", "min", "mean", "smallest", "extreme"]
    image: Literal["factor", "blend", "ignore"]
    negative: Literal["keep", "clip", "cap"] = "keep"
    cap: float = 1.0
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
            if kind is float and not 0 <= value <= 1:
                raise ValueError(f"{name} = {value!r} of a weight rule: give a number in [0, 1]")


# The authors' code. Its maximum with a background of 0.5 is that a negative score counts as 0.
RELEASED = WeightRule("unit", "half", "max", "factor", negative="clip", bounded=False)
# The paper, which leaves open what lies in no region (here 0: the reference term alone) and
# overlaps (here the mean).
PAPER = WeightRule("signed", "zero", "mean", "factor")
# Scores are advantages, centred among regions only: background is neither right nor wrong on its
# own, so it takes the image's; a centred map that includes it teaches the model to avoid it.
ADVANTAGE = WeightRule("signed", "image", "mean", "blend")


# --------------------------------------------------------------------- on the device, per token


def _read_points(token: jax.Array, tokens: jax.Array, pixels: jax.Array):
    """The two pixels [..., 2] int32 that a token's sample reads along one axis, and their weights.

    The rule of a bilinear resize from `pixels` to `tokens` with align_corners=False.
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
    (x0, y0, x1, y1), drawn = _whole_boxes(boxes, valid)
    in_rows = (y0[images][:, None] <= rows[..., None]) & (rows[..., None] < y1[images][:, None])
    in_cols = (x0[images][:, None] <= cols[..., None]) & (cols[..., None] < x1[images][:, None])
    inside = in_rows[:, :, None] & in_cols[:, None] & drawn[images][:, None, None]
    weights = row_weights[:, :, None] * col_weights[:, None]
    return rearrange(inside, "g a b r -> g (a b) r"), rearrange(weights, "g a b -> g (a b)")


def _read_cells(boxes, valid, sizes, grids, images, cells):
    """The share of each token's cell that each box covers, [G,1,R], and weights 1 [G,1].

    Counted in whole numbers of 1/h × 1/w pixels, so exact up to one division.
    """
    size, grid = sizes[images], grids[images]
    (x0, y0, x1, y1), drawn = _whole_boxes(boxes, valid)

    def shared(low, high, axis):
        """How far each token's cell and box [low, high) overlap along one axis, int32 [G,R]."""
        pixels, tokens, cell = (v[:, axis, None] for v in (size, grid, cells))
        low, high = (jnp.clip(end[images], 0, pixels).astype(jnp.int32) for end in (low, high))
        low, high = (
            jnp.maximum(low * tokens, cell * pixels),
            jnp.minimum(high * tokens, (cell + 1) * pixels),
        )
        return jnp.maximum(high - low, 0)

    pixels = jnp.where(drawn[images], shared(y0, y1, 0) * shared(x0, x1, 1), 0)
    area = jnp.maximum(size[:, 0] * size[:, 1], 1)[:, None]
    inside = pixels.astype(jnp.float32) / area.astype(jnp.float32)
    return inside[:, None], jnp.ones((len(images), 1), jnp.float32)


_READ = {"centre": _read_pixels, "area": _read_cells}


def _areas(boxes: jax.Array, valid: jax.Array, sizes: jax.Array) -> jax.Array:
    """Pixels of its image that each box holds, int32 [N,R]."""
    (x0, y0, x1, y1), drawn = _whole_boxes(boxes, valid)

    def length(low, high, axis):
        pixels = sizes[:, axis, None]
        return (jnp.clip(high, 0, pixels) - jnp.clip(low, 0, pixels)).astype(jnp.int32)

    return jnp.where(drawn, length(y0, y1, 0) * length(x0, x1, 1), 0)


def _level(rule: WeightRule, scores: jax.Array) -> jax.Array:
    """The weight of a score where it counts alone."""
    scores = scores.astype(jnp.float32)
    if rule.bounded:
        scores = jnp.clip(scores, -1.0, 1.0)
    if rule.negative != "keep":
        scores = jnp.maximum(scores, 0.0 if rule.negative == "clip" else -rule.cap)
    return (scores + 1.0) / 2.0 if rule.range == "unit" else scores


def _overlapping(
    rule: WeightRule, values: jax.Array, here: jax.Array, areas: jax.Array
) -> jax.Array:
    """One of the values [G,P,R] of the regions `here`, [G,P]; where none is, not to be read."""
    most = jnp.where(here, values, -jnp.inf).max(axis=-1, initial=-jnp.inf)
    least = jnp.where(here, values, jnp.inf).min(axis=-1, initial=jnp.inf)
    if rule.overlap == "max":
        return most
    if rule.overlap == "min":
        return least
    if rule.overlap == "extreme":
        neutral = 0.5 if rule.range == "unit" else 0.0
        return jnp.where(most - neutral >= neutral - least, most, least)
    if rule.overlap == "smallest":
        large = np.iinfo(np.int32).max
        here &= areas == jnp.where(here, areas, large).min(axis=-1, keepdims=True, initial=large)
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
    image_score [N] · coverage None, or inside [G,P,R], weights [G,P], areas [N,R] in place of the
    boxes, made for the rule's sampling · sizes [N,2] (H, W pixels) · grids [N,2] (h, w tokens) ·
    images [G] (image of each token; outside 0..N-1 is padding and weighs 0) · cells [G,2] (row,
    column in that image's grid). In [0, 1] or [-1, 1], the rule's range, for a bounded rule or
    scores in [-1, 1]. NaN of an image's score or of a valid region's reaches the tokens that read it
    (leave it out of the batch). For rows of a batch, vmap. Raises ValueError for a coverage of the
    other sampling.
    """
    images, known = _locate(images, rewards.boxes.shape[0])
    valid = rewards.valid
    if rewards.coverage is None:
        inside, weights = _READ[rule.sampling](rewards.boxes, valid, sizes, grids, images, cells)
        areas = _areas(rewards.boxes, valid, sizes)
    else:
        inside, weights = rewards.coverage.inside, rewards.coverage.weights
        areas = rewards.coverage.areas
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
    values = _overlapping(rule, mixed, here, areas[images][:, None])
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


@dataclasses.dataclass(frozen=True)
class ParsedRewards:
    """Published records of one image: boxes [R,4] float32, scores [R] float64, valid [R] bool."""

    boxes: np.ndarray
    scores: np.ndarray
    valid: np.ndarray
    image_score: float


def _number(value: Any, what: str) -> float:
    if not isinstance(value, numbers.Real) or not np.isfinite(value):
        raise ValueError(f"{what} is {value!r}: give a finite number or leave the record out")
    return float(value)


def _box(raw: Any) -> list[int] | None:
    """Whole pixels of a published box, or None where the released reader skips it."""
    if not isinstance(raw, list | tuple) or len(raw) != 4:
        return None
    try:
        x0, y0, x1, y1 = (max(-_FAR, min(_FAR, int(value))) for value in raw)
    except OverflowError:
        raise ValueError(f"bbox {raw!r} holds an infinite number") from None
    except (TypeError, ValueError):
        return None
    return [x0, y0, x1, y1] if x0 < x1 and y0 < y1 else None


def parse_vlm_rewards(records: Sequence[Mapping[str, Any]] | None) -> ParsedRewards:
    """Published `vlm_rewards` ({"object", "bbox", "score"} each) as arrays, R = number of regions.

    As released: a box that is missing, not four numbers (numeric strings count), or empty is
    skipped (`valid` False); a missing score is 0; the entry "global_layout_reward" is no region
    but the image's score (0 if absent). Raises ValueError, naming the record, where the released
    code raises: an infinite coordinate, a score that is no number; and for NaN scores.
    """
    boxes, scores, image_score = [], [], 0.0
    for place, record in enumerate(records or ()):
        if not isinstance(record, Mapping):
            raise ValueError(f"vlm_rewards[{place}] is {record!r}: expected an object with fields")
        score = record.get("score", 0.0)
        if record.get("object") == GLOBAL_ENTRY:
            image_score = _number(score, f"vlm_rewards[{place}].score of {GLOBAL_ENTRY}")
            continue
        box = _box(record.get("bbox"))
        boxes.append(box)
        scores.append(0.0 if box is None else _number(score, f"vlm_rewards[{place}].score"))
    return ParsedRewards(
        boxes=np.array([box or [0] * 4 for box in boxes], np.float32).reshape(-1, 4),
        scores=np.array(scores, np.float64),
        valid=np.array([box is not None for box in boxes], bool),
        image_score=image_score,
    )


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
    for (x0, y0, x1, y1), score, drawn in zip(np.trunc(boxes), scores, valid, strict=True):
        if drawn and x0 < x1 and y0 < y1:
            # Only lower ends need clamping, to keep negative ones from counting from the far side.
            part = np.s_[max(int(y0), 0) : max(int(y1), 0), max(int(x0), 0) : max(int(x1), 0)]
            dense[part] = np.maximum(dense[part], np.float32((float(score) + 1.0) / 2.0))
    return dense * np.float32((image_score + 1.0) / 2.0)


def _centred(values: np.ndarray, std_floor: float) -> np.ndarray:
    """clip((value - mean) / max(std, floor), ±1) over the finite values; NaN stays NaN."""
    known = values[np.isfinite(values)]
    if not known.size:
        return np.full_like(values, np.nan)
    return np.clip((values - known.mean()) / max(known.std(), std_floor), -1.0, 1.0)


def group_advantages(
    image_scores: np.ndarray,
    region_scores: Sequence[Sequence[np.ndarray]],
    *,
    std_floor: float = 0.2,
) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Scores to advantages within each prompt's group of K candidates.

    image_scores [P,K]; region_scores[p][k] float [R]; all in [-1, 1], NaN for a failed score or an
    absent candidate. Image scores are centred among the prompt's images, region scores among the
    prompt's regions alone (never with background), each divided by its standard deviation, at
    least `std_floor` so that a group without contrast stays near 0, and clipped.
    Returns float32 advantages in [-1, 1] of the same structure, NaN where the score is.
    """
    image_scores = np.asarray(image_scores, np.float64)
    counts = [len(group) for group in region_scores]
    if image_scores.ndim != 2 or counts != [image_scores.shape[1]] * image_scores.shape[0]:
        raise ValueError(
            f"image scores of shape {image_scores.shape} do not match region scores of {counts} "
            "candidates: give [P,K] and P lists of K arrays"
        )
    image = np.stack([_centred(row, std_floor) for row in image_scores]).astype(np.float32)
    regions = []
    for group in region_scores:
        parts = [np.asarray(scores, np.float64).reshape(-1) for scores in group]
        pooled = _centred(np.concatenate(parts), std_floor).astype(np.float32)
        regions.append(np.split(pooled, np.cumsum([len(part) for part in parts])[:-1]))
    return image, regions
