"""Pretraining both sides at once: cross-entropy on text plus flow matching on latents (BAGEL)."""

import dataclasses

import jax

from srum_jax import flow
from srum_jax.config import PackedConfig
from srum_jax.core.loss import LossOut
from srum_jax.core.param_tree import Params
from srum_jax.data.schema import Batch
from srum_jax.objectives import terms
from srum_jax.objectives.srum import sft


@dataclasses.dataclass(frozen=True)
class JointLoss(terms.Objective):
    """L = text_weight·CE + MSE; cfg holds the timestep distribution."""

    cfg: PackedConfig
    predict: terms.Predictor
    text_weight: float

    def __call__(
        self, params: Params, reference: Params | None, batch: Batch, key: jax.Array
    ) -> LossOut:
        """Terms and metrics of a batch; there is no reference to compare with."""
        cfg = self.cfg
        draws = flow.draw(
            batch, key, mean=cfg.timestep_mean, std=cfg.timestep_std, shift=cfg.timestep_shift
        )
        out = self.predict(params, batch, draws)
        ce, accuracy = terms.cross_entropy(params, out.und, batch)
        return LossOut(
            terms={"ce": ce, "mse": sft(out.velocity, batch, draws, out.trained)},
            metrics={"accuracy": accuracy},
            coefficients=(("ce", self.text_weight), ("mse", 1.0)),
        )
