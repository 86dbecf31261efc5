"""The self-reward family: `srum_release` (as the released code), `srum_advantage`, and `sft`.

With v the model's velocity, u = noise − x_0, v₀ the velocity of the starting model, all of them
are L = κ‖v − v₀‖² + 2⟨α(v − v₀), v₀ − u⟩ up to a constant: sft has α = κ = 1, the released loss
with x_gt = x_bad has α = κ = R + λ, the advantage form α = 1 + 2A and constant κ = 1 + λ, which
stays bounded below whatever the sign of A.
"""

import jax
import jax.numpy as jnp

from srum_jax import flow
from srum_jax.core.loss import LossOut, Ratio, ratio
from srum_jax.data.schema import Batch
from srum_jax.models.config import BagelConfig
from srum_jax.objectives import terms
from srum_jax.rewards import maps


def sft(velocity: jax.Array, batch: Batch, draws: flow.Draws, mask: jax.Array) -> Ratio:
    """Plain flow matching: ‖v − (noise − x_0)‖², mean over trained tokens and channels."""
    return terms.squared_error(velocity, flow.target(batch.latents, draws.noise), mask)


def release(
    velocity: jax.Array,
    batch: Batch,
    draws: flow.Draws,
    mask: jax.Array,
    weights: jax.Array,
) -> tuple[Ratio, Ratio]:
    """(L_reward, L_con) of the released code (`bagel.py` 185-297; specification section 6).

    L_reward = mean R‖v − (noise − x_bad)‖² with token weights R [B,G]; L_con = the same without
    R towards `batch.targets` (x_gt), or towards x_bad where there is none. The loss is
    L_reward + λ·L_con.
    """
    good = batch.latents if batch.targets is None else batch.targets
    return (
        terms.squared_error(
            velocity,
            flow.target(batch.latents, draws.noise),
            mask,
            jax.lax.stop_gradient(weights),
        ),
        terms.squared_error(velocity, flow.target(good, draws.noise), mask),
    )


def advantage(
    velocity: jax.Array,
    start: jax.Array,
    batch: Batch,
    draws: flow.Draws,
    mask: jax.Array,
    advantages: jax.Array,
    *,
    scale: float,
    anchor: float,
) -> Ratio:
    """κ‖v − v₀‖² + 2⟨α(v − v₀), v₀ − u⟩ with α = 1 + scale·A, κ = 1 + anchor.

    `start` is v₀ [B,G,·] (no gradient), `advantages` A [B,G] in [−1, 1]. Bounded below by
    −(1 + scale)²‖v₀ − u‖²/κ; its minimum is v = v₀ − α(v₀ − u)/κ.
    """
    start = jax.lax.stop_gradient(start)
    step = velocity - start
    error = start - flow.target(batch.latents, draws.noise)
    alpha = 1 + scale * jax.lax.stop_gradient(advantages)[..., None]
    return terms.token_mean((1 + anchor) * jnp.square(step) + 2 * alpha * step * error, mask)


def release_weights(batch: Batch) -> jax.Array:
    """Token weights R [B,G] of the released law from the batch's boxes and scores."""
    r = batch.rewards
    return jax.vmap(maps.release_token_weights)(
        r.boxes,
        r.scores,
        r.valid,
        r.image_score,
        batch.sizes,
        batch.grids,
        batch.latent_images,
        batch.latent_cells,
    )


def advantage_weights(batch: Batch) -> jax.Array:
    """Token advantages A [B,G]; the batch's scores are advantages already (`stages/train.py`)."""
    r = batch.rewards
    return jax.vmap(maps.advantage_token_weights)(
        r.boxes,
        r.valid,
        r.image_score,
        r.scores,
        batch.sizes,
        batch.grids,
        batch.latent_images,
        batch.latent_cells,
    )


def _masked(values: jax.Array, mask: jax.Array) -> Ratio:
    mask = mask.astype(jnp.float32)
    return ratio(jnp.sum(values * mask), jnp.sum(mask))


def _sft(out: terms.Predicted, start, batch: Batch, draws: flow.Draws, cfg) -> LossOut:
    mse = sft(out.velocity, batch, draws, out.trained)
    return LossOut(terms={"mse": mse}, coefficients=(("mse", 1.0),))


def _srum_release(out: terms.Predicted, start, batch: Batch, draws: flow.Draws, cfg) -> LossOut:
    weights = release_weights(batch)
    reward, constraint = release(out.velocity, batch, draws, out.trained, weights)
    return LossOut(
        terms={"reward": reward, "constraint": constraint},
        metrics={
            "mse": sft(out.velocity, batch, draws, out.trained),
            "token_weight": _masked(weights, out.trained),
        },
        coefficients=(("reward", 1.0), ("constraint", cfg.lambda_constraint)),
    )


def _srum_advantage(out: terms.Predicted, start, batch: Batch, draws: flow.Draws, cfg) -> LossOut:
    a = advantage_weights(batch)
    value = advantage(
        out.velocity,
        start,
        batch,
        draws,
        out.trained,
        a,
        scale=cfg.advantage_scale,
        anchor=cfg.anchor,
    )
    return LossOut(
        terms={"advantage": value},
        metrics={
            "mse": sft(out.velocity, batch, draws, out.trained),
            "drift": terms.squared_error(out.velocity, start, out.trained),
            "token_advantage": _masked(a, out.trained),
            "token_advantage_size": _masked(jnp.abs(a), out.trained),
        },
        coefficients=(("advantage", 1.0),),
    )


OBJECTIVES = {"sft": _sft, "srum_release": _srum_release, "srum_advantage": _srum_advantage}
NEED_REFERENCE = ("srum_advantage",)  # compare with the velocity of the starting model


def make(cfg, model_cfg: BagelConfig, *, dtype, remat: bool) -> terms.LossFn:
    """The objective that `cfg.objective` names, as a loss function.

    cfg is the train section: objective, time law, lambda_constraint, advantage_scale, anchor.
    """
    objective = OBJECTIVES[cfg.objective]

    def loss(params, reference, batch: Batch, key) -> LossOut:
        draws = flow.draw(
            batch, key, mean=cfg.timestep_mean, std=cfg.timestep_std, shift=cfg.timestep_shift
        )

        def predict(params):
            return terms.predict(params, model_cfg, batch, draws, dtype=dtype, remat=remat)

        start = None
        if cfg.objective in NEED_REFERENCE:
            start = jax.lax.stop_gradient(predict(reference).velocity)
        return objective(predict(params), start, batch, draws, cfg)

    return loss
