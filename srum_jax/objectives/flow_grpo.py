"""`flow_grpo`: policy gradient over the steps by which candidates were drawn, clipped as PPO's.

Reads steps of stored trajectories in place of noised latents, and advantages of whole images.
"""

import dataclasses

import jax
import jax.numpy as jnp

from srum_jax import flow
from srum_jax.config import TrainConfig
from srum_jax.core.loss import LossOut, ratio
from srum_jax.core.param_tree import Params
from srum_jax.data.schema import Batch
from srum_jax.objectives import terms


def surrogate(log_ratio: jax.Array, advantages: jax.Array, clip: float) -> jax.Array:
    """min(ρA, clip(ρ, 1 ± ε)A), ρ = exp(log_ratio), of any shape: what is to grow.

    Source: PPO (arXiv 1707.06347, equation 7), FlowGRPO (arXiv 2505.05470). Beyond the clip,
    on the side that the advantage pulls to, its gradient is 0.
    """
    rho = jnp.exp(log_ratio)
    return jnp.minimum(rho * advantages, jnp.clip(rho, 1 - clip, 1 + clip) * advantages)


def log_probs(velocity: jax.Array, batch: Batch, mask: jax.Array) -> jax.Array:
    """Log-densities of the stored steps under a model, float32 [B,N]: means over an image's tokens
    `mask` [B,G] and their numbers; 0 of no image. velocity [B,G,·]: of the latents before."""
    moved = batch.transitions
    times = jnp.take_along_axis(moved.times, batch.latent_images[..., None], axis=1)
    t, after = times[..., :1], times[..., 1:]
    deviation = jnp.take_along_axis(moved.deviation, batch.latent_images, axis=1)[..., None]
    mask = mask[..., None]
    # Padding has no step: 1 in place of what would be divided by.
    t, deviation = (jnp.where(mask, x, 1.0) for x in (t, deviation))
    mean = flow.noisy_step(batch.latents, velocity, t, after, deviation)
    densities = jnp.where(mask, flow.log_density(moved.after, mean, deviation), 0.0)
    mine = jax.nn.one_hot(batch.latent_images, batch.noisy.shape[1]) * mask
    count = jnp.maximum(jnp.sum(mine, axis=1), 1.0) * velocity.shape[-1]
    return jnp.einsum("bgn,bgd->bn", mine, densities) / count


@dataclasses.dataclass(frozen=True)
class FlowGrpo(terms.Objective):
    """−surrogate, a mean over images, anchored by `cfg.anchor` (velocities at the stored latents).

    Source: FlowGRPO (arXiv 2505.05470). Its Kullback-Leibler distance between the two models'
    steps is ‖v − v₀‖²·Δ/2·(σ(1 − t)/(2t) + 1/σ)²; here the anchor weighs all times alike.
    """

    cfg: TrainConfig
    predict: terms.Predictor

    def __call__(
        self,
        params: Params,
        reference: Params | None,
        batch: Batch,
        key: jax.Array,
        first: Params | None = None,
    ) -> LossOut:
        """Terms and metrics of a batch with transitions and advantages; `reference` and `first` as
        of `SrumLoss`, read by the anchor alone. Nothing is drawn by `key`.

        Reports "ratio" (ρ: 1 for the model that drew), "clip_fraction" and, anchored, "drift" as
        `SrumLoss`, in units of that model's own velocity. Raises ValueError for another batch.
        """
        if batch.transitions is None or batch.rewards.image_advantage is None:
            raise ValueError("flow_grpo reads steps by noise, and advantages of their images")
        cfg, moved = self.cfg, batch.transitions
        out = self.predict.at(params, batch, batch.latents, moved.times[..., 0])
        found = log_probs(out.velocity, batch, out.trained)
        there = batch.noisy.astype(jnp.float32)
        log_ratio = jnp.where(batch.noisy, found - moved.log_prob, 0.0)
        advantages = jax.lax.stop_gradient(batch.rewards.image_advantage)
        gained = surrogate(log_ratio, advantages, cfg.clip)
        count = jnp.sum(there)
        rho = jnp.exp(log_ratio)
        beyond = (jnp.abs(rho - 1) > cfg.clip) & batch.noisy
        result = LossOut(
            terms={"policy": ratio(-jnp.sum(gained * there), count)},
            metrics={
                "ratio": ratio(jnp.sum(rho * there), count),
                "clip_fraction": ratio(jnp.sum(beyond), count),
                "advantage_size": ratio(jnp.sum(jnp.abs(advantages) * there), count),
            },
            coefficients=(("policy", 1.0),),
        )
        origin = reference if first is None else first
        if not cfg.anchor:
            return result
        start = self.predict.at(origin, batch, batch.latents, moved.times[..., 0]).velocity
        start = jax.lax.stop_gradient(start)
        drift = terms.squared_error(out.velocity, start, out.trained)
        size = terms.squared_error(start, jnp.zeros_like(start), out.trained)
        return result.replace(
            terms=result.terms | {"anchor": drift},
            metrics=result.metrics | {"drift": drift, "relative_drift": (drift[0], size[0])},
            coefficients=(*result.coefficients, ("anchor", cfg.anchor)),
        )
