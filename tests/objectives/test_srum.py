"""Identities of the self-reward losses, and what must not reach them."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import CFG, edit, jit, pack, talk, text_to_image, weights

from srum_jax import flow
from srum_jax.core import loss as losses
from srum_jax.core.params import flatten
from srum_jax.objectives import srum, terms

SCALE, ANCHOR = 2.0, 0.5


@pytest.fixture(scope="module")
def batch():
    """Clean and noisy images, and padding in every lane."""
    rows = [[edit(1, 5, boxes=2), text_to_image(2, 6, boxes=3)], [text_to_image(3, 7), talk(4)]]
    return pack(rows, spare=2, rewards=True)


@pytest.fixture(scope="module")
def case(batch):
    """(draws, mask, v, v₀, u) with random velocities everywhere, padding included."""
    rng = np.random.default_rng(0)
    shape = batch.latents.shape
    noise, v, start = rng.normal(size=(3, *shape)).astype(np.float32)
    draws = flow.Draws(t=np.full(batch.noisy.shape, 0.5, np.float32), noise=noise)
    mask = np.asarray(terms.trained(batch))
    return draws, mask, v, start, noise - batch.latents


def mean(ratio):
    sum_, weight = ratio
    return float(sum_ / weight)


def expected(values, mask):
    """Mean over trained tokens and channels, written out."""
    return float(np.asarray(values, np.float64)[mask].mean())


def some_advantages(batch, seed=3):
    return np.random.default_rng(seed).uniform(-1, 1, batch.latent_images.shape).astype(np.float32)


def advantage(batch, case, v, a, scale=SCALE, anchor=ANCHOR):
    draws, mask, _, start, _ = case
    return srum.advantage(v, start, batch, draws, mask, a, scale=scale, anchor=anchor)


def test_trained_tokens_are_those_of_noisy_images(batch, case):
    mask = case[1]
    assert mask.sum() == 6 + 4 + 4  # of 2 clean ones and padding none
    assert not mask[batch.gen.segment == 0].any()


def test_sft_is_the_plain_mean(batch, case):
    draws, mask, v, _, u = case
    found = srum.sft(v, batch, draws, mask)
    assert mean(found) == pytest.approx(expected(np.square(v - u), mask), rel=1e-5)
    assert float(found[1]) == mask.sum() * CFG.token_dim


def test_release_weights_tokens_and_keeps_the_mean_unweighted(batch, case):
    draws, mask, v, _, u = case
    weights = np.random.default_rng(1).uniform(0, 1, mask.shape).astype(np.float32)
    reward, constraint = srum.release(v, batch, draws, mask, weights)
    want = expected(weights[..., None] * np.square(v - u), mask)
    assert mean(reward) == pytest.approx(want, rel=1e-5)
    plain = srum.sft(v, batch, draws, mask)
    assert mean(constraint) == pytest.approx(mean(plain), rel=1e-6)
    ones = srum.release(v, batch, draws, mask, np.ones_like(weights))[0]
    assert mean(ones) == pytest.approx(mean(plain), rel=1e-6)
    assert mean(srum.release(v, batch, draws, mask, 0 * weights)[0]) == 0


def test_release_pulls_towards_the_good_image_where_there_is_one(batch, case):
    draws, mask, v, _, _ = case
    good = np.random.default_rng(2).normal(size=batch.latents.shape).astype(np.float32)
    ones = np.ones(mask.shape, np.float32)
    reward, constraint = srum.release(v, batch.replace(targets=good), draws, mask, ones)
    assert mean(reward) == pytest.approx(mean(srum.sft(v, batch, draws, mask)), rel=1e-6)
    want = expected(np.square(v - (draws.noise - good)), mask)
    assert mean(constraint) == pytest.approx(want, rel=1e-5)


def test_no_advantage_is_sft_with_an_anchor(batch, case):
    draws, mask, v, start, u = case
    found = mean(advantage(batch, case, v, np.zeros(mask.shape, np.float32)))
    want = np.square(v - u) + ANCHOR * np.square(v - start) - np.square(start - u)
    assert found == pytest.approx(expected(want, mask), rel=1e-4)


def test_at_the_start_the_step_goes_along_alpha_times_the_error(batch, case):
    draws, mask, _, start, u = case
    a = some_advantages(batch)
    gradient = jax.grad(lambda v: advantage(batch, case, v, a)[0])(start)
    want = 2 * (1 + SCALE * a[..., None]) * (start - u) * mask[..., None]
    np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=1e-5)
    # Good tokens move towards their own image, bad ones away from it.
    towards = np.sum(-gradient * (u - start), axis=-1)
    assert (towards[mask & (a > -0.5)] > 0).all() and (towards[mask & (a < -0.5)] < 0).all()
    assert (mask & (a < -0.5)).any()


def test_advantage_is_bounded_below_and_reaches_its_minimum(batch, case):
    draws, mask, v, start, u = case
    worst = -((1 + SCALE) ** 2) * np.square(start - u) / (1 + ANCHOR)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        a = rng.uniform(-1, 1, mask.shape).astype(np.float32)
        alpha = 1 + SCALE * a[..., None]
        best = start - alpha * (start - u) / (1 + ANCHOR)
        least = expected(-np.square(alpha * (start - u)) / (1 + ANCHOR), mask)
        assert mean(advantage(batch, case, best, a)) == pytest.approx(least, rel=1e-4)
        for size in (0.1, 1.0, 30.0):
            v = best + size * rng.normal(size=best.shape).astype(np.float32)
            found = mean(advantage(batch, case, v, a))
            assert found > least >= expected(worst, mask)


def test_advantage_gives_the_start_and_the_advantages_no_gradient(batch, case):
    draws, mask, v, start, _ = case
    gradients = jax.grad(
        lambda start, a: srum.advantage(
            v, start, batch, draws, mask, a, scale=SCALE, anchor=ANCHOR
        )[0],
        argnums=(0, 1),
    )(start, some_advantages(batch))
    assert all(np.abs(g).max() == 0 for g in gradients)


@pytest.mark.parametrize("name", ["sft", "release", "advantage"])
def test_clean_images_and_padding_contribute_nothing(batch, case, name):
    draws, mask, v, start, _ = case
    a = some_advantages(batch)
    values = {
        "sft": lambda v, draws: srum.sft(v, batch, draws, mask)[0],
        "release": lambda v, draws: sum(
            r[0] for r in srum.release(v, batch, draws, mask, jnp.abs(a))
        ),
        "advantage": lambda v, draws: srum.advantage(
            v, start, batch, draws, mask, a, scale=SCALE, anchor=ANCHOR
        )[0],
    }
    by_v, by_draws = jax.grad(values[name], argnums=(0, 1))(v, draws)
    for gradient in (by_v, by_draws.noise):
        assert np.abs(gradient[~mask]).max() == 0
        assert (np.abs(gradient[mask]).max(-1) > 0).all()


# ------------------------------------------------------------------------------ through the model


def config(objective, **values):
    return types.SimpleNamespace(
        **dict(
            objective=objective,
            timestep_mean=0.0,
            timestep_std=1.0,
            timestep_shift=2.0,
            lambda_constraint=0.5,
            advantage_scale=SCALE,
            anchor=ANCHOR,
        )
        | values
    )


def whole(objective, **values):
    """jitted (params, reference, batch) -> LossOut."""
    loss = srum.make(config(objective, **values), CFG, dtype=jnp.float32, remat=True)
    return jit(lambda params, reference, batch: loss(params, reference, batch, jax.random.key(1)))


def with_score(batch, score):
    """No regions and one score everywhere: every token of the released law weighs (score+1)/4."""
    r = batch.rewards
    return batch.replace(
        rewards=r.replace(
            valid=np.zeros_like(r.valid), image_score=np.full_like(r.image_score, score)
        )
    )


def test_release_with_all_weights_1_is_sft_and_with_0_the_constraint(batch):
    params = weights()
    run = whole("srum_release", lambda_constraint=0.25)
    plain = losses.total(whole("sft")(params, None, batch))
    out = run(params, None, with_score(batch, 3.0))
    assert float(out.metrics["token_weight"][0] / out.metrics["token_weight"][1]) == 1
    assert losses.total(out) == pytest.approx(1.25 * float(plain), rel=1e-5)
    assert out.terms["reward"][0] == pytest.approx(float(out.terms["constraint"][0]), rel=1e-6)
    out = run(params, None, with_score(batch, -1.0))
    assert losses.total(out) == pytest.approx(0.25 * float(plain), rel=1e-5)
    assert dict(out.coefficients) == {"reward": 1.0, "constraint": 0.25}


def test_reference_is_compared_with_and_not_trained(batch):
    params, other = weights(), weights(seed=1)
    loss = srum.make(config("srum_advantage"), CFG, dtype=jnp.float32, remat=True)

    @jit
    def both(params, reference):
        def total(params, reference):
            out = loss(params, reference, batch, jax.random.key(1))
            return losses.total(out), out

        return jax.grad(total, argnums=(0, 1), has_aux=True)(params, reference)

    (trained, reference), out = both(params, other)
    assert all(np.abs(g).max() == 0 for g in jax.tree.leaves(reference))
    assert max(np.abs(g).max() for g in jax.tree.leaves(trained)) > 0
    assert out.metrics["drift"][0] > 0
    # The head of words is no part of it.
    assert np.abs(flatten(trained)["lm_head/w"]).max() == 0
    (_, _), out = both(params, params)
    assert out.metrics["drift"][0] == 0 == out.terms["advantage"][0]
    assert out.metrics["token_advantage_size"][0] > 0


@pytest.mark.parametrize("objective", ["srum_release", "srum_advantage"])
def test_sums_add_up_over_rows(batch, objective):
    """Row 0 twice and row 1 twice, against both rows: sums and weights of every term add."""
    params, other = weights(), weights(seed=1)
    run = whole(objective)

    def rows(which):
        return jax.tree.map(lambda x: x[which], batch)

    first, second = (run(params, other, rows([b, b])) for b in (0, 1))
    mixed = run(params, other, rows([0, 1]))
    for kind in ("terms", "metrics"):
        for name, value in getattr(mixed, kind).items():
            parts = zip(getattr(first, kind)[name], getattr(second, kind)[name], strict=True)
            for found, (a, b) in zip(value, parts, strict=True):
                assert 2 * float(found) == pytest.approx(float(a + b), rel=1e-4, abs=1e-4), name


def test_the_right_objectives_ask_for_a_reference():
    assert set(srum.NEED_REFERENCE) <= set(srum.OBJECTIVES)
    assert "srum_advantage" in srum.NEED_REFERENCE
