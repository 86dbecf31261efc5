"""An anchor to the model that the first round started from, beside the model of the round."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from objectives.test_srum import PREDICT, batch, mean  # noqa: F401
from samples import as_advantages, weights

from configs import base
from srum_jax import config as run_config
from srum_jax.core import loss as losses
from srum_jax.core.errors import BadInput
from srum_jax.objectives import autoregressive, srum


def test_the_anchor_pulls_to_the_first_model_and_the_rest_compares_with_the_round_s(batch):  # noqa: F811
    cfg = dataclasses.replace(run_config.load(base.get_config()).train, objective="nft")
    params, old, first = (weights(seed=seed) for seed in range(3))
    key, scored = jax.random.key(1), as_advantages(batch)

    @jax.jit
    def found(params, old, first):
        anchored = dataclasses.replace(cfg, anchor=0.5)
        both = srum.SrumLoss(anchored, PREDICT)(params, old, scored, key, first=first)
        alone = srum.SrumLoss(cfg, PREDICT)(params, old, scored, key)
        pulled = srum.SrumLoss(dataclasses.replace(anchored, objective="sft"), PREDICT)
        to_first = pulled(params, first, batch, key)
        return losses.total(both), losses.total(alone), both, alone, to_first

    total, plain, both, alone, to_first = found(params, old, first)
    drift = mean(to_first.metrics["drift"])
    assert mean(both.terms["nft"]) == pytest.approx(mean(alone.terms["nft"]), rel=1e-5)
    assert mean(both.metrics["drift"]) == pytest.approx(drift, rel=1e-5)
    assert abs(drift - mean(alone.metrics["drift"])) > 0.01 * drift  # the two models differ
    assert float(total) == pytest.approx(float(plain) + 0.5 * drift, rel=1e-5)


def test_a_model_that_draws_token_by_token_has_none():
    cfg = dataclasses.replace(run_config.load(base.get_config()).train, anchor_to="first")
    with pytest.raises(BadInput, match='anchored to the model of its "round"'):
        autoregressive.loss(cfg, None, dtype=jnp.float32, remat="none")
