"""`dpo`: Diffusion-DPO, which learns from pairs of a prompt's candidates, the better against the
worse, and says which images of a batch are a pair and which of their tokens count.

A pair is two noisy images of one row with one noise id, the better one first: so both have the same
noise and time, which is what makes their errors comparable. Images without a partner count nothing.
"""

import jax
import jax.numpy as jnp
from flax import struct

from srum_jax import flow
from srum_jax.core.loss import TINY, Ratio, ratio
from srum_jax.data.schema import Batch


@struct.dataclass
class Preferences:
    """The loss of a batch's pairs, and of them: `margin`, by how much the implicit reward
    −β·error of the better one lies above the worse one's; `preferred`, how many rightly do."""

    loss: Ratio
    margin: Ratio
    preferred: Ratio


def partners(batch: Batch) -> jax.Array:
    """Which images are pairs, bool [B,N,N]: the first index is the better one's."""
    alike = batch.noise_ids[:, :, None] == batch.noise_ids[:, None, :]
    both = batch.noisy[:, :, None] & batch.noisy[:, None, :]
    return jnp.triu(alike & both, 1)


def sides(batch: Batch) -> jax.Array:
    """Of each latent token [B,G], float32: 1 of the better image of a pair, −1 of the worse one,
    0 of an image without a partner. Padding's value means nothing."""
    pairs = partners(batch)
    of_images = pairs.any(axis=2).astype(jnp.float32) - pairs.any(axis=1)
    return jnp.take_along_axis(of_images, batch.latent_images, axis=1)


def shares(weights: jax.Array, batch: Batch, mask: jax.Array) -> jax.Array:
    """The share of each latent token in its image's mean by `weights` [B,G] over masked tokens,
    float32 [B,N,G]: of an image's tokens they add up to 1, without any weight to 0."""
    mine = jax.nn.one_hot(batch.latent_images, batch.noisy.shape[1], axis=1)
    weighed = mine * (weights * mask)[:, None]
    return weighed / jnp.maximum(jnp.sum(weighed, axis=-1, keepdims=True), TINY)


def pull(weights: jax.Array, batch: Batch, mask: jax.Array) -> jax.Array:
    """How strongly each token [B,G] is drawn to its own image where training starts, in units of β:
    its side times its weight, the mean of its image's tokens being 1. Below 0 it is repelled."""
    share = shares(weights, batch, mask)
    count = jnp.sum(shares(jnp.ones_like(weights), batch, mask) > 0, axis=-1, keepdims=True)
    return sides(batch) * jnp.sum(share * count, axis=1)


def dpo(
    velocity: jax.Array,
    start: jax.Array,
    batch: Batch,
    draws: flow.Draws,
    mask: jax.Array,
    weights: jax.Array,
    *,
    beta: float,
) -> Preferences:
    """−log σ(−β(e_better − e_worse)) of each pair, e = ‖v − u‖² − ‖v₀ − u‖² of an image.

    Source: Diffusion-DPO (arXiv 2311.12908, equation 14) with flow matching's error; β is there
    βTω. e is the mean over channels and, by `weights` [B,G] ≥ 0, over the image's tokens (there all
    alike). A side without any weight counts e = 0, a pair without is left out. `start` is v₀
    [B,G,·] (no gradient). At least 0; log 2 at v = v₀, where its gradient is β/2 times that of
    ‖v_better − u‖² − ‖v_worse − u‖².
    """
    target = flow.target(batch.latents, draws.noise)
    start = jax.lax.stop_gradient(start)
    gained = jnp.mean(jnp.square(velocity - target) - jnp.square(start - target), axis=-1)
    share = shares(jax.lax.stop_gradient(weights), batch, mask)
    there = jnp.any(share > 0, axis=-1)
    errors = jnp.sum(share * gained[:, None], axis=-1)
    margin = -beta * (errors[:, :, None] - errors[:, None, :])
    pairs = partners(batch) & (there[:, :, None] | there[:, None, :])
    count = jnp.sum(pairs)

    def over_pairs(values: jax.Array) -> Ratio:
        return ratio(jnp.sum(jnp.where(pairs, values, 0.0)), count)

    return Preferences(
        loss=over_pairs(jax.nn.softplus(-margin)),
        margin=over_pairs(margin),
        preferred=over_pairs((margin > 0).astype(jnp.float32)),
    )
