"""What an example and a batch are: the one interface between data and model.

An `Example` is a sequence of items (text, pictures for the understanding tower, latents, question
branches). `data/packing.py` turns examples into a `Batch`: rows of fixed shape whose tokens live in
two lanes, und (text, special and ViT tokens) and gen (latent tokens).

Axes: B rows, U und lane, G gen lane, P ViT patches (in a `Coverage`: points), Y labels,
N latent images, R regions.
"""

import dataclasses
from typing import Literal

import jax
import numpy as np
from flax import struct

# How the tokens of a split see their own split, and whether later splits see them.
CAUSAL = 0  # causal inside, visible to later splits: text
FULL = 1  # bidirectional inside, visible: clean images
NOISE = 2  # bidirectional inside, hidden from every other split: noisy images
BRANCH = 3  # causal inside, hidden: one of several questions about the same prefix

PAD_SEGMENT = 0  # segments of real samples count from 1

Sampling = Literal["centre", "area"]  # what a latent token reads of a map of its image's pixels


@dataclasses.dataclass(frozen=True)
class LayoutSizes:
    """What of a model decides how words and pixels become tokens; a model's config makes one.

    Positions of tokens are ids into square tables of the sides given here, row by row.
    """

    vocab: int  # token ids: 0 … vocab - 1
    bos: int  # ids of the marks around a text and around an image's tokens
    eos: int
    start_of_image: int
    end_of_image: int
    vit_patch: int  # side of one patch of the understanding tower, in pixels
    vit_side: int  # patches a side of the tower's own position table
    vit_positions: int  # patches a side of the position table that ids count in
    token_pixels: int  # side of the square of pixels that one latent token stands for
    token_dim: int  # numbers in one latent token: p·p·Z
    max_latent: int  # latent tokens a side of their position table
    interpolate_pos: bool = False  # grids are spread over a whole table, not laid in its corner
    square: bool = False  # every picture is fitted into the tower's square, its rest gray


@dataclasses.dataclass(frozen=True)
class Text:
    """Token ids without bos/eos. `loss`: every id and the eos are targets."""

    ids: np.ndarray
    loss: bool = False


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture for the understanding tower: patches [n, p·p·3] float32 in [-1, 1], ids [n]."""

    patches: np.ndarray
    positions: np.ndarray


@dataclasses.dataclass(frozen=True)
class Regions:
    """Rewards of one image: boxes [R, 4] (x0, y0, x1, y1 pixels), scores [R], and the image's.

    `masks`: where there are any, one a box, bool [H, W] of the image or None (the box counts).
    An objective reads scores, or the advantages [R] and the image's that were made of them: one of
    the two is there, the other None.
    """

    boxes: np.ndarray
    scores: np.ndarray | None
    image_score: float | None
    masks: tuple[np.ndarray | None, ...] | None = None
    advantages: np.ndarray | None = None
    image_advantage: float | None = None


@dataclasses.dataclass(frozen=True)
class Transition:
    """A step by noise (`flow.noisy_step`) from an image's latents.

    after: what came out, [h, w, p·p·Z] · times: before and after it · deviation: of its noise ·
    log_prob: of what came out, a mean over numbers, by the model that drew.
    """

    after: np.ndarray
    times: tuple[float, float]
    deviation: float
    log_prob: float


@dataclasses.dataclass(frozen=True)
class Latent:
    """Latent tokens [h, w, p·p·Z] of an image of `size` (H, W) pixels.

    `noisy`: a training target, noised in the loss; otherwise a clean condition. `noise_id` names
    its noise and timestep draw. `target`: the clean latents of L_con where they differ from
    `tokens` (the SRUM "good" image). `transition`: of a stepwise objective, whose `tokens` are the
    latents before it.
    """

    tokens: np.ndarray
    size: tuple[int, int]
    noisy: bool = True
    noise_id: int = 0
    target: np.ndarray | None = None
    regions: Regions | None = None
    transition: Transition | None = None


@dataclasses.dataclass(frozen=True)
class Branch:
    """Texts in one split that later splits cannot see: many questions share one prefix."""

    texts: tuple[Text, ...]


@dataclasses.dataclass(frozen=True)
class Example:
    """A training or scoring sample: items in order; RoPE positions start at 0."""

    items: tuple[Text | Picture | Latent | Branch, ...]


@dataclasses.dataclass(frozen=True)
class Lanes:
    """Fixed sizes of one row, in the axes above; what no sample fills is computed all the same."""

    und: int
    gen: int
    vit: int
    labels: int
    images: int
    regions: int


@struct.dataclass
class Tokens:
    """Per token of a lane, [B, S] int32: what the mask and RoPE need.

    segment: sample number in the row from 1 (0: padding) · split: number of the item within its
    sample · mode: CAUSAL, FULL, NOISE or BRANCH · position: RoPE position · index: place in
    packed order within the row (-1: padding).
    """

    segment: jax.Array
    split: jax.Array
    mode: jax.Array
    position: jax.Array
    index: jax.Array


@struct.dataclass
class Coverage:
    """Where the regions of a batch with masks lie, per latent token (`data/masks.py`, cover).

    inside [B,G,P,R] float32: the share of each of the P points a token reads that each region of
    the token's image covers · weights [B,G,P] float32: of the points, sum 1 (0: padding)
    """

    inside: jax.Array
    weights: jax.Array


@struct.dataclass
class Rewards:
    """Per latent image of a row, padded to R regions.

    boxes [B,N,R,4] float32 pixels · valid [B,N,R] bool · scores [B,N,R] and image_score [B,N], or
    advantages [B,N,R] and image_advantage [B,N], the other two None · coverage: stands in for the
    boxes; None where no region has a mask
    """

    boxes: jax.Array
    scores: jax.Array | None
    valid: jax.Array
    image_score: jax.Array | None
    coverage: Coverage | None = None
    advantages: jax.Array | None = None
    image_advantage: jax.Array | None = None


@struct.dataclass
class Transitions:
    """Of each latent image a step by noise, `Batch.latents` being what stood before it.

    after [B,G,p·p·Z] · times [B,N,2] before and after · deviation, log_prob [B,N]; 0 of no image
    """

    after: jax.Array
    times: jax.Array
    deviation: jax.Array
    log_prob: jax.Array


@struct.dataclass
class Batch:
    """Rows of packed samples. Float arrays are float32, ids and indices int32.

    text_ids [B,U] (0 at ViT tokens) · vit_patches [B,P,p·p·3] · vit_positions [B,P] ·
    vit_images [B,P] (image number in the row, -1 padding) · vit_slots [B,P] (slot in the und lane,
    U for padding) · label_slots, label_ids [B,Y] · label_weights [B,Y] (0: padding) ·
    latents [B,G,p·p·Z] · targets (same shape; None when equal to latents) ·
    latent_positions [B,G] · latent_images [B,G] · latent_cells [B,G,2] (row, column) ·
    noisy [B,N] bool · noise_ids [B,N] uint32 · grids [B,N,2] (h, w) · sizes [B,N,2] (H, W pixels)
    """

    und: Tokens
    gen: Tokens
    text_ids: jax.Array
    vit_patches: jax.Array
    vit_positions: jax.Array
    vit_images: jax.Array
    vit_slots: jax.Array
    label_slots: jax.Array
    label_ids: jax.Array
    label_weights: jax.Array
    latents: jax.Array
    latent_positions: jax.Array
    latent_images: jax.Array
    latent_cells: jax.Array
    noisy: jax.Array
    noise_ids: jax.Array
    grids: jax.Array
    sizes: jax.Array
    targets: jax.Array | None = None
    rewards: Rewards | None = None
    transitions: Transitions | None = None
