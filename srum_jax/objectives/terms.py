"""Pieces every objective is made of: the noised forward, and errors as (sum, weight).

Sums run over real tokens only; weights count numbers (tokens × channels) or labels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct

from srum_jax import flow
from srum_jax.core.loss import Ratio, ratio
from srum_jax.core.params import Params
from srum_jax.data.schema import PAD_SEGMENT, Batch
from srum_jax.models import bagel
from srum_jax.models.config import BagelConfig

# What the trainer is handed: (params, reference, batch, key) -> LossOut. `reference` are the
# parameters the run started from, or None where the objective needs none.
LossFn = Callable[..., object]


@struct.dataclass
class Predicted:
    """One noised forward: velocity [B,G,p·p·Z], und hidden states [B,U,D], trained tokens [B,G]."""

    velocity: jax.Array
    und: jax.Array
    trained: jax.Array


def predict(
    params: Params, cfg: BagelConfig, batch: Batch, draws: flow.Draws, *, dtype, remat: bool
) -> Predicted:
    """Runs the model on x_t made from `batch.latents` and the draws."""
    x_t = flow.interpolate(batch.latents, draws.noise, flow.token_time(batch, draws.t))
    und, gen, _ = bagel.forward(params, cfg, batch, x_t, draws.t, dtype=dtype, remat=remat)
    return Predicted(velocity=bagel.velocity(params, gen), und=und, trained=trained(batch))


def trained(batch: Batch) -> jax.Array:
    """Latent tokens of noisy images: bool [B,G]."""
    noisy = jnp.take_along_axis(batch.noisy, batch.latent_images, axis=1)
    return noisy & (batch.gen.segment != PAD_SEGMENT)


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
    """(cross-entropy, accuracy) over the labels of a batch, weighted by `label_weights`."""
    logits = bagel.logits(params, und, batch.label_slots)
    ce = optax.softmax_cross_entropy_with_integer_labels(logits, batch.label_ids)
    w = batch.label_weights
    right = (jnp.argmax(logits, axis=-1) == batch.label_ids).astype(jnp.float32)
    return ratio(jnp.sum(ce * w), jnp.sum(w)), ratio(jnp.sum(right * w), jnp.sum(w))
