"""Pretraining both sides at once: cross-entropy on text plus flow matching on latents (BAGEL)."""

from srum_jax import flow
from srum_jax.core.loss import LossOut
from srum_jax.data.schema import Batch
from srum_jax.objectives import terms
from srum_jax.objectives.srum import sft


def make(cfg, model_cfg, *, dtype, remat: str) -> terms.LossFn:
    """L = text_weight·CE + MSE; cfg holds the timestep distribution and the weight."""

    def loss(params, reference, batch: Batch, key) -> LossOut:
        draws = flow.draw(
            batch, key, mean=cfg.timestep_mean, std=cfg.timestep_std, shift=cfg.timestep_shift
        )
        out = terms.predict(params, model_cfg, batch, draws, dtype=dtype, remat=remat)
        ce, accuracy = terms.cross_entropy(params, out.und, batch)
        return LossOut(
            terms={"ce": ce, "mse": sft(out.velocity, batch, draws, out.trained)},
            metrics={"accuracy": accuracy},
            coefficients=(("ce", cfg.text_weight), ("mse", 1.0)),
        )

    return loss
