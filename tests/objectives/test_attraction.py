"""How strongly each token is drawn to its own image is what the losses pull with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import as_advantages, pack, text_to_image

from configs import base
from srum_jax import config as run_config
from srum_jax import flow
from srum_jax.core import loss as losses
from srum_jax.objectives import srum, terms


@pytest.mark.parametrize("rewards", ["both", "image", "regions"])
@pytest.mark.parametrize("objective", list(srum.OBJECTIVES))
def test_it_is_the_gradient_of_the_loss_where_training_starts(objective, rewards):
    """Of every loss that is 2α(v₀ − u) at v = v₀, a mean over tokens and channels."""
    rows = [[text_to_image(2, 6, boxes=3), text_to_image(4, 6, boxes=3)]]
    rows.append([text_to_image(3, 7, boxes=2), text_to_image(5, 7, boxes=2)])  # two pairs
    batch = pack(rows, spare=2, rewards=True)
    if objective in srum.BY_ADVANTAGE:
        batch = as_advantages(batch)
    noise, start = np.random.default_rng(0).normal(size=(2, *batch.latents.shape))
    noise, start = noise.astype(np.float32), start.astype(np.float32)
    draws = flow.Draws(t=np.full(batch.noisy.shape, 0.5, np.float32), noise=noise)
    mask, u = np.asarray(terms.trained(batch)), noise - batch.latents
    cfg = dataclasses.replace(
        run_config.load(base.get_config()).train,
        objective=objective,
        rewards=rewards,
        repulsion_cap=0.25,
        nft_beta=0.75,
        dpo_beta=1.5,
    )

    def loss(v):
        out = terms.Predicted(v, None, mask)
        return losses.total(srum.OBJECTIVES[objective](out, start, batch, draws, cfg))

    gradient = np.asarray(jax.grad(loss)(jnp.asarray(start)))[mask]
    alpha = np.asarray(srum.attraction(cfg, batch))[mask]
    assert objective == "sft" or len(set(alpha.tolist())) > 1
    wanted = 2 * alpha[:, None] * (start - u)[mask] / gradient.size
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)
