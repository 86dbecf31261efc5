"""Boxes and scores to one weight a latent token; no map of H×W pixels is made on the device.

Owns the released reward law (SRUM code, `regional_reward_dataset.py` and the bilinear sample of
`bagel.py`; `release_map` is its NumPy reference), the centring of scores into advantages, and how
either lands on latent tokens. A bilinear sample without antialias reads four known pixels of the
map, so testing box membership at those four is exact and costs O(tokens × regions).

Boxes are (x0, y0, x1, y1) in pixels of the image that the latent was made from, upper ends
excluded, fractions cut towards zero. Axes: N images, R regions, G tokens.
"""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

UNCOVERED = 0.5  # the released weight where no box lies, before the image's factor
GLOBAL_ENTRY = "global_layout_reward"  # the published record that scores the whole image
_FAR = 2**24  # a coordinate beyond this lies outside any image; float32 is exact below it


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


def _membership(boxes, valid, sizes, grids, images, cells):
    """Which boxes hold the four pixels that each token reads: (bool [G,2,2,R], weights [G,2,2])."""
    size, grid = sizes[images], grids[images]
    rows, row_weights = _read_points(cells[:, 0], grid[:, 0], size[:, 0])
    cols, col_weights = _read_points(cells[:, 1], grid[:, 1], size[:, 1])
    x0, y0, x1, y1 = jnp.moveaxis(jnp.trunc(boxes.astype(jnp.float32)), -1, 0)
    drawn = (valid & (x0 < x1) & (y0 < y1))[images]
    in_rows = (y0[images][:, None] <= rows[..., None]) & (rows[..., None] < y1[images][:, None])
    in_cols = (x0[images][:, None] <= cols[..., None]) & (cols[..., None] < x1[images][:, None])
    inside = in_rows[:, :, None] & in_cols[:, None] & drawn[:, None, None]
    return inside, row_weights[:, :, None] * col_weights[:, None]


def _on_tokens(values: jax.Array, weights: jax.Array, known: jax.Array) -> jax.Array:
    """Weighted sum of the four pixels' values, 0 for padding tokens, without gradient."""
    mixed = jnp.sum(values * weights, axis=(1, 2))
    return jax.lax.stop_gradient(jnp.where(known, mixed, 0.0))


def _locate(images: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Image numbers safe to index with, and which tokens have a real one."""
    return jnp.clip(images, 0, count - 1), (images >= 0) & (images < count)


def release_token_weights(
    boxes: jax.Array,
    scores: jax.Array,
    valid: jax.Array,
    image_scores: jax.Array,
    sizes: jax.Array,
    grids: jax.Array,
    images: jax.Array,
    cells: jax.Array,
) -> jax.Array:
    """The released weight of each latent token, float32 [G], in [0, 1] for scores in [-1, 1].

    boxes [N,R,4] float · scores [N,R] · valid [N,R] bool (False: ignored) · image_scores [N] ·
    sizes [N,2] (H, W pixels) · grids [N,2] (h, w tokens) · images [G] (image of each token;
    outside 0..N-1 is padding and weighs 0) · cells [G,2] (row, column in that image's grid).
    The law: 0.5 everywhere; inside a box at least (score+1)/2; all times (image_score+1)/2; sampled
    at the tokens' centres. Scores are not clamped, as released. For rows of a batch, vmap.
    """
    images, known = _locate(images, boxes.shape[0])
    inside, weights = _membership(boxes, valid, sizes, grids, images, cells)
    level = (jnp.where(valid, scores, 0.0).astype(jnp.float32) + 1.0) / 2.0
    values = jnp.where(inside, level[images][:, None, None], UNCOVERED)
    values = values.max(axis=-1, initial=UNCOVERED)
    factor = (image_scores.astype(jnp.float32) + 1.0) / 2.0
    return _on_tokens(values * factor[images][:, None, None], weights, known)


def advantage_token_weights(
    boxes: jax.Array,
    valid: jax.Array,
    image_advantages: jax.Array,
    region_advantages: jax.Array,
    sizes: jax.Array,
    grids: jax.Array,
    images: jax.Array,
    cells: jax.Array,
    *,
    region_share: float = 0.5,
) -> jax.Array:
    """The advantage A of each latent token, float32 [G] in [-1, 1]; arguments as above.

    Outside every box a token takes its image's advantage, because background is neither right nor
    wrong on its own: a centred map that includes it teaches the model to avoid it. Inside, it
    takes (1-share)·image + share·region advantage. Where boxes overlap, the region part is the mean
    over them: bounded, and independent of their order. `region_advantages` [N,R] and
    `image_advantages` [N] are clipped to [-1, 1]; NaN of an image stays NaN (leave it out of the
    batch), that of an invalid region is not read.
    """
    images, known = _locate(images, boxes.shape[0])
    inside, weights = _membership(boxes, valid, sizes, grids, images, cells)
    whole = jnp.clip(image_advantages.astype(jnp.float32), -1.0, 1.0)[images][:, None, None]
    local = jnp.clip(jnp.where(valid, region_advantages, 0.0).astype(jnp.float32), -1.0, 1.0)
    covering = inside.sum(axis=-1)
    region = jnp.where(inside, local[images][:, None, None], 0.0).sum(-1)
    mixed = (1.0 - region_share) * whole + region_share * region / jnp.maximum(covering, 1)
    return _on_tokens(jnp.where(covering > 0, mixed, whole), weights, known)


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

    boxes [R,4], scores [R], valid [R] as in `release_token_weights`.
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
