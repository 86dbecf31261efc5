"""Right regions alone, and how much of the credit tells one place from another."""

import dataclasses

import numpy as np
import pytest
from objectives.test_srum import batch, case, expected, mean, some_advantages  # noqa: F401

from configs import base
from srum_jax import config as run_config
from srum_jax.core import loss as losses
from srum_jax.objectives import srum, terms


def test_right_regions_alone_are_learned(batch, case):  # noqa: F811
    """The tokens of wrong regions weigh nothing, right ones what plain flow matching gives them."""
    draws, mask, v, _, u = case
    cfg = dataclasses.replace(run_config.load(base.get_config()).train, objective="srum_positive")
    out = terms.Predicted(v, None, mask)
    r = batch.rewards

    def loss(scores, image):
        rewards = r.replace(scores=scores, image_score=np.full_like(r.image_score, image))
        found = srum.OBJECTIVES["srum_positive"](
            out, None, batch.replace(rewards=rewards), draws, cfg
        )
        return losses.total(found), found.metrics

    plain = mean(srum.sft(v, batch, draws, mask))
    right, measured = loss(np.ones_like(r.scores), 1.0)
    np.testing.assert_allclose(right, plain, rtol=1e-5)  # all of it right: plain flow matching
    assert mean(measured["token_weight"]) == pytest.approx(1)
    assert float(loss(-np.ones_like(r.scores), -1.0)[0]) == 0
    # A score counts by how far it is right: of half the weight half the loss.
    np.testing.assert_allclose(loss(np.full_like(r.scores, 0.5), 0.5)[0], plain / 2, rtol=1e-5)
    weights = np.asarray(srum.positive_weights(batch))
    wanted = expected(weights[..., None] * np.square(v - u), mask)
    given = srum.OBJECTIVES["srum_positive"](out, None, batch, draws, cfg)
    assert float(losses.total(given)) == pytest.approx(wanted, rel=1e-5)


def test_the_variance_within_images_and_between_them_is_all_of_it(batch):  # noqa: F811
    mask = np.asarray(terms.trained(batch))
    values = some_advantages(batch)
    within, total = map(float, srum.within_image_variance(values, batch, mask))
    images = np.asarray(batch.latent_images) + 100 * np.arange(len(mask))[:, None]
    groups = [values[mask & (images == i)] for i in set(images[mask].tolist())]
    everything = values[mask].astype(np.float64)
    assert within == pytest.approx(sum(((g - g.mean()) ** 2).sum() for g in groups), rel=1e-5)
    assert total == pytest.approx((everything**2).sum(), rel=1e-5)
    between = sum(len(g) * g.mean() ** 2 for g in groups)
    assert within + between == pytest.approx(total, rel=1e-5)
    alike = np.asarray(batch.latent_images, np.float32)
    assert float(srum.within_image_variance(alike, batch, mask)[0]) == pytest.approx(0, abs=1e-5)
