"""Losses of drawn tokens: bounds, where they push, and what a packed row is read as."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_janus

from srum_jax.config import TrainConfig
from srum_jax.core import loss as losses
from srum_jax.core.errors import BadInput
from srum_jax.data import packing
from srum_jax.data.schema import Example, Lanes, Latent, Regions, Text
from srum_jax.models.janus import model
from srum_jax.objectives import autoregressive
from srum_jax.objectives.autoregressive import clipped, k3, unlikelihood
from srum_jax.rewards import maps

CFG = tiny_janus.sizes(bos=256, eos=257, start_of_image=258, end_of_image=259, pad=260)
RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 64, (3, 4, 4))
WORDS = [RNG.integers(0, 256, n) for n in (5, 3, 8)]
LANES = Lanes(und=40, gen=40, vit=0, labels=0, images=3, regions=2)


@pytest.fixture(scope="module")
def params():
    return tiny_janus.weights()[0]


def sample(i, *, dropped=False, advantages=False):
    ids = np.full_like(WORDS[i], 260) if dropped else WORDS[i]
    boxes = np.array([[0, 0, 4, 4], [4, 0, 8, 8]], np.float32)
    values = np.array([-0.8, 0.5], np.float32)
    given = dict(scores=values, image_score=0.4)
    if advantages:
        given = dict(scores=None, image_score=None, advantages=values, image_advantage=-0.3)
    tokens = CODES[i][..., None].astype(np.float32)
    latent = Latent(tokens, size=(8, 8), noise_id=i, regions=Regions(boxes, **given))
    return Example((Text(ids), latent))


def batch(rows, **how):
    more = dict(rewards=True, advantages=how.get("advantages", False))
    return packing.pack(
        [[sample(i, **how) for i in row] for row in rows], LANES, CFG.layout, **more
    )


def predicted(params, rows, **how):
    predict = autoregressive.Predictor(CFG, jnp.float32, "full")
    packed = batch(rows, **how)
    return packed, jax.jit(predict)(params, packed)


def test_samples_of_a_row_are_read_as_each_alone(params):
    packed, out = predicted(params, [[0, 1], [2]])
    for row, segment, i in ((0, 1, 0), (0, 2, 1), (1, 1, 2)):
        at = packed.gen.segment[row] == segment
        prompt = np.array([[256, *WORDS[i], 258]])
        codes = CODES[i].reshape(1, -1)
        logits, _ = model.predict_image_tokens(
            params, CFG, prompt, np.ones_like(prompt, bool), codes, dtype=jnp.float32
        )
        want = autoregressive.log_probs(logits, codes)[0]
        np.testing.assert_allclose(out.log_probs[row][at], want, rtol=1e-4, atol=1e-5)
        assert out.trained[row][at].all() and not out.wordless[row][at].any()
    assert int(out.trained.sum()) == 3 * 16
    _, alone = predicted(params, [[2]], dropped=True)
    assert int(alone.wordless.sum()) == 16
    assert not np.allclose(alone.log_probs[0][:16], out.log_probs[1][:16])


@pytest.fixture(scope="module")
def points():
    """ℓ, ℓ₀ and A in all combinations."""
    grid = np.meshgrid(np.linspace(-12, -0.01, 25), np.linspace(-12, -0.01, 25), [-1, -0.3, 0.4, 1])
    return [jnp.asarray(x.reshape(-1), jnp.float32) for x in grid]


def test_the_clipped_ratio_is_bounded_and_stops_pushing(points):
    log_p, start, a = points
    loss, _ = clipped(log_p, start, a, clip=0.2)
    assert float(loss.min()) >= -1.2 - 1e-6 and float(loss.max()) <= 3 + 1e-6
    slope = jax.vmap(jax.grad(lambda x, s, a: clipped(x, s, a, clip=0.2)[0]))(*points)
    rho = jnp.exp(log_p - start)
    assert not slope[(a > 0) & (rho > 1.2 + 1e-4)].any()
    assert not slope[(a < 0) & (rho < 0.8 - 1e-4)].any()
    assert not slope[(a < 0) & (rho > 3.0 + 1e-4)].any()
    near = (jnp.abs(rho - 1) < 0.15).nonzero()[0]
    np.testing.assert_allclose(slope[near], -(rho * a)[near], rtol=1e-4)


def test_at_the_start_the_push_is_the_policy_gradient(points):
    log_p, _, a = points
    slope = jax.vmap(jax.grad(lambda x, a: clipped(x, x, a, clip=0.2)[0]))(log_p, a)
    np.testing.assert_allclose(slope, -a, rtol=1e-6)
    assert not clipped(log_p, log_p, a, clip=0.2)[1].any()


def test_unlikelihood_has_a_lower_bound_and_fades(points):
    log_p, _, a = points
    assert float(unlikelihood(log_p, a).min()) >= -1e-5
    slope = jax.vmap(jax.grad(unlikelihood))(log_p, a)
    p = jnp.exp(log_p)
    bad = a < 0
    # As a gradient on the logit of the token itself: times 1 − p, at most |A|·p.
    assert (np.abs(slope * (1 - p))[bad] <= (np.abs(a) * p)[bad] + 1e-5).all()
    np.testing.assert_allclose(slope[~bad], -a[~bad])


def test_the_distance_is_never_negative_and_nothing_at_the_start(points):
    log_p, start, _ = points
    assert float(k3(log_p, start).min()) >= 0
    assert float(jnp.abs(k3(log_p, log_p)).max()) == 0
    slope = jax.vmap(jax.grad(k3))(log_p, log_p)
    assert not slope.any()


def loss_of(params, cfg, packed, reference=None):
    made = autoregressive.loss(cfg, CFG, dtype=jnp.float32, remat="full")
    return made(params, reference, packed, jax.random.key(0))


@pytest.mark.slow
def test_the_released_weights_are_in_zero_to_one_and_sft_is_the_cross_entropy(params):
    packed, out = predicted(params, [[0, 1], [2]])
    ce = float(-(out.log_probs * out.trained).sum() / out.trained.sum())
    plain = loss_of(params, TrainConfig(objective="sft"), packed)
    assert float(losses.total(plain)) == pytest.approx(ce, rel=1e-5)
    values = losses.means(plain.metrics)
    assert float(values["ce"]) == pytest.approx(ce, rel=1e-5) and values["ce_wordless"] == 0
    assert 0 < float(values["entropy"]) <= np.log(64) + 1e-5
    cfg = TrainConfig(objective="srum_release", lambda_constraint=0.5)
    found = loss_of(params, cfg, packed)
    weights = np.zeros(packed.gen.segment.shape, np.float32)
    regions = sample(0).items[1].regions
    dense = maps.release_map(regions.boxes, regions.scores, np.ones(2, bool), 0.4, (8, 8))
    for row, segment in ((0, 1), (0, 2), (1, 1)):
        at = packed.gen.segment[row] == segment
        weights[row, at] = np.asarray(maps.sample_map(dense, 4, 4)).reshape(-1)
    assert len(np.unique(weights)) > 2
    want = -(out.log_probs * weights).sum() / out.trained.sum() + 0.5 * ce
    assert float(losses.total(found)) == pytest.approx(float(want), rel=1e-4)


@pytest.mark.slow
def test_signed_advantages_go_through_the_model(params):
    packed = batch([[0, 1], [2]], advantages=True)
    cfg = TrainConfig(objective="srum_advantage", anchor=0.02)
    found = loss_of(params, cfg, packed, params)
    values = losses.means(found.metrics)
    assert float(values["drift"]) == float(values["clip_fraction"]) == 0
    assert float(losses.total(found)) == pytest.approx(-float(values["token_advantage"]), rel=1e-4)
    assert 0 < float(values["repelled"]) < 1
    other = loss_of(tiny_janus.weights(seed=1)[0], cfg, packed, params)
    moved = losses.means(other.metrics)
    assert float(moved["relative_drift"]) == pytest.approx(
        float(moved["drift"]) / np.log(64), rel=1e-5
    )
    assert float(moved["clip_fraction"]) > 0.3
    away = dataclasses.replace(cfg, repulsion="unlikelihood", anchor=0.0)
    assert float(losses.total(loss_of(params, away, packed, params))) > 0


def test_an_objective_of_flow_matching_is_refused():
    with pytest.raises(BadInput, match="token by token has sft, srum_release, srum_advantage"):
        autoregressive.loss(TrainConfig(objective="nft"), CFG, dtype=jnp.float32, remat="full")
