"""Pieces every objective is made of: the noised forward, and errors as (sum, weight).

Sums run over real tokens only; weights count numbers (tokens × channels) or labels.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import struct
from jax.typing import DTypeLike

from srum_jax import flow
from srum_jax.core.loss import LossOut, Ratio, ratio
from srum_jax.core.param_tree import Params
from srum_jax.data.schema import PAD_SEGMENT, Batch
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.model_config import BagelConfig

_LOGITS = 2**26  # of one row that are held at once; more are computed in parts


class Objective(Protocol):
    """What training minimises: a frozen dataclass of its settings."""

    def __call__(
        self, params: Params, reference: Params | None, batch: Batch, key: jax.Array
    ) -> LossOut:
        """Terms and metrics of a batch. `reference`: the parameters the run started from, or None
        where the objective needs none."""


@struct.dataclass
class Predicted:
    """One noised forward: velocity [B,G,p·p·Z], und hidden states [B,U,D], trained tokens [B,G]."""

    velocity: jax.Array
    und: jax.Array
    trained: jax.Array


@dataclasses.dataclass(frozen=True)
class Predictor:
    """The model as an objective asks it: dtype of matrix products, `remat` what is kept for the
    backward pass. Called with a batch and draws, or `at` latents and times."""

    model: BagelConfig
    dtype: DTypeLike
    remat: str

    def __call__(self, params: Params, batch: Batch, draws: flow.Draws) -> Predicted:
        """Runs the model on x_t made from `batch.latents` and the draws."""
        x_t = flow.interpolate(batch.latents, draws.noise, flow.token_time(batch, draws.t))
        return self.at(params, batch, x_t, draws.t)

    def at(self, params: Params, batch: Batch, x_t: jax.Array, t: jax.Array) -> Predicted:
        """Runs the model on latents x_t [B,G,p·p·Z] at times t [B,N]."""
        how = dict(dtype=self.dtype, remat=self.remat)
        und, gen, _ = bagel.forward(params, self.model, batch, x_t, t, **how)
        return Predicted(velocity=bagel.velocity(params, gen), und=und, trained=trained(batch))


def trained(batch: Batch) -> jax.Array:
    """Latent tokens of noisy images: bool [B,G]."""
    noisy = jnp.take_along_axis(batch.noisy, batch.latent_images, axis=1)
    return noisy & (batch.gen.segment != PAD_SEGMENT)


def edited(batch: Batch) -> jax.Array:
    """Latent tokens of rows in which pictures are edited, that is read as clean latents: bool
    [B,G]."""
    noisy = jnp.take_along_axis(batch.noisy, batch.latent_images, axis=1)
    clean = ~noisy & (batch.gen.segment != PAD_SEGMENT)
    return jnp.broadcast_to(clean.any(axis=1, keepdims=True), clean.shape)


def token_mean(values: jax.Array, mask: jax.Array, weights: jax.Array | None = None) -> Ratio:
    """values [B,G,Z] over masked tokens [B,G] and channels, optionally times weights [B,G].

    The weight of the ratio counts numbers and ignores `weights`, as the original's mean does.
    """
    mask = mask.astype(jnp.float32)
    per_token = jnp.sum(values, axis=-1) * mask
    if weights is not None:
        per_token = per_token * weights
    return ratio(jnp.sum(per_token), jnp.sum(mask) * values.shape[-1])


def squared_error(
    velocity: jax.Array, target: jax.Array, mask: jax.Array, weights: jax.Array | None = None
) -> Ratio:
    """(Weighted) squared error of a velocity, as `token_mean`."""
    return token_mean(jnp.square(velocity - target), mask, weights)


def cross_entropy(params: Params, und: jax.Array, batch: Batch) -> tuple[Ratio, Ratio]:
    """(cross-entropy, accuracy) over the labels of a batch, weighted by `label_weights`.

    Labels go in parts where a row has more than `_LOGITS` logits; the backward pass computes each
    part's logits again, so those of one part are all that is ever held.
    """
    labels = batch.label_slots, batch.label_ids, batch.label_weights
    count, vocab = labels[0].shape[1], params["lm_head"]["w"].shape[-1]
    parts = min(count, math.ceil(count * vocab / _LOGITS))
    if parts <= 1:
        ce, right = _label_sums(params, und, *labels)
    else:
        ce, right = _in_parts(params, und, labels, parts)
    weight = jnp.sum(batch.label_weights)
    return ratio(ce, weight), ratio(right, weight)


def _label_sums(params: Params, und: jax.Array, slots, ids, weights) -> tuple[jax.Array, jax.Array]:
    """Weighted sums over labels [B,Y]: of cross-entropies, and of those that are the likeliest."""
    logits = bagel.logits(params, und, slots)
    ce = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
    right = (jnp.argmax(logits, axis=-1) == ids).astype(jnp.float32)
    return jnp.sum(ce * weights), jnp.sum(right * weights)


def _in_parts(params: Params, und: jax.Array, labels, parts: int) -> tuple[jax.Array, jax.Array]:
    """`_label_sums` of `parts` equal parts of every row's labels, the last one filled up."""

    def cut(x):
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % parts)))
        return rearrange(x, "b (n y) -> n b y", n=parts)

    @jax.checkpoint
    def add(sums, part):
        return jax.tree.map(jnp.add, sums, _label_sums(params, und, *part)), None

    zero = jnp.zeros((), jnp.float32)
    sums, _ = jax.lax.scan(add, (zero, zero), tuple(cut(x) for x in labels))
    return sums
