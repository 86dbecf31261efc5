"""Identities of the self-reward losses, and what must not reach them."""

import dataclasses
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import CFG, as_advantages, edit, jit, pack, talk, text_to_image, weights

from configs import base
from srum_jax import config as run_config
from srum_jax import flow
from srum_jax.config import TrainConfig
from srum_jax.core import loss as losses
from srum_jax.core.param_tree import flatten
from srum_jax.objectives import srum, terms
from srum_jax.objectives.nft import nft

SCALE, ANCHOR, CAP = 2.0, 0.5, 0.75
PREDICT = terms.Predictor(CFG, jnp.float32, "full")


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


def advantage(batch, case, v, a, scale=SCALE):
    draws, mask, _, start, _ = case
    return srum.advantage(v, start, batch, draws, mask, a, scale=scale)


def paper(batch, case, v, weights, lambda_=0.5, cap=CAP):
    """The whole loss of the paper's form, its two terms added."""
    draws, mask, _, start, _ = case
    reward, constraint = srum.paper(v, start, batch, draws, mask, weights, cap=cap)
    return reward[0] / reward[1] + lambda_ * constraint[0] / constraint[1]


def family(case, v, alpha, kappa):
    """κ‖v − v₀‖² + 2α⟨v − v₀, v₀ − u⟩, written out: alpha and kappa [B,G]."""
    _, mask, _, start, u = case
    step = np.asarray(v - start, np.float64)
    values = kappa[..., None] * np.square(step) + 2 * alpha[..., None] * step * (start - u)
    return expected(values, mask)


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


def test_no_advantage_is_sft(batch, case):
    draws, mask, v, start, u = case
    none = np.zeros(mask.shape, np.float32)
    want = np.square(v - u) - np.square(start - u)
    assert mean(advantage(batch, case, v, none)) == pytest.approx(expected(want, mask), rel=1e-4)
    by_advantage = jax.grad(lambda v: advantage(batch, case, v, none)[0])(v)
    by_sft = jax.grad(lambda v: srum.sft(v, batch, draws, mask)[0])(v)
    np.testing.assert_allclose(by_advantage, by_sft, rtol=1e-4, atol=1e-5)


def test_release_of_one_image_is_of_the_family(batch, case):
    draws, mask, v, start, u = case
    weights, lambda_ = np.abs(some_advantages(batch)), 0.3
    reward, constraint = srum.release(v, batch, draws, mask, weights)
    at_start = [mean(r) for r in srum.release(start, batch, draws, mask, weights)]
    found = mean(reward) + lambda_ * mean(constraint) - at_start[0] - lambda_ * at_start[1]
    both = weights + lambda_
    assert found == pytest.approx(family(case, v, both, both), rel=1e-4)


def test_paper_of_positive_weights_is_as_written(batch, case):
    draws, mask, v, start, u = case
    weights, lambda_ = np.abs(some_advantages(batch)), 0.5
    want = expected((weights + lambda_)[..., None] * np.square(v - u), mask)
    assert paper(batch, case, v, weights) == pytest.approx(want, rel=1e-5)
    gradient = jax.grad(lambda v: paper(batch, case, v, weights))(v)
    other = jax.grad(
        lambda v: sum(
            r[0] / r[1] * c
            for r, c in zip(srum.release(v, batch, draws, mask, weights), (1, lambda_), strict=True)
        )
    )(v)
    np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-7)


def test_paper_is_of_the_family_and_meets_the_written_form_at_the_start(batch, case):
    draws, mask, v, start, u = case
    weights, lambda_ = some_advantages(batch), 0.5
    assert (weights[mask] < -CAP).any() and (weights[mask] > 0).any()
    capped = np.maximum(weights, -CAP)
    found = paper(batch, case, v, weights) - paper(batch, case, start, weights)
    want = family(case, v, capped + lambda_, np.maximum(weights, 0) + lambda_)
    assert found == pytest.approx(want, rel=1e-4)

    def written(v):
        return ((capped + lambda_)[..., None] * jnp.square(v - u))[mask].mean()

    assert paper(batch, case, start, weights) == pytest.approx(float(written(start)), rel=1e-4)
    np.testing.assert_allclose(
        jax.grad(lambda v: paper(batch, case, v, weights))(start),
        jax.grad(written)(start),
        rtol=1e-4,
        atol=1e-7,
    )
    assert paper(batch, case, v, weights) > written(v)  # from above, away from the start


def test_paper_is_bounded_below_where_the_written_form_is_not(batch, case):
    draws, mask, _, start, u = case
    worst, lambda_ = np.full(mask.shape, -1, np.float32), 0.5
    alpha = lambda_ - CAP
    best = start - alpha * (start - u) / lambda_
    least = float(paper(batch, case, best, worst))
    rng = np.random.default_rng(0)
    for size in (0.1, 1.0, 30.0, 1e4):
        v = best + size * rng.normal(size=best.shape).astype(np.float32)
        assert paper(batch, case, v, worst) > least
        assert expected((lambda_ - 1) * np.square(v - u), mask) < 0
    np.testing.assert_allclose(jax.grad(lambda v: paper(batch, case, v, worst))(best), 0, atol=1e-6)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_nft_is_of_the_family_and_bounded(batch, case, beta):
    draws, mask, v, start, u = case
    a = some_advantages(batch)

    def loss(v, a=a):
        return nft(v, start, batch, draws, mask, a, beta=beta)

    constant = expected(np.square(start - u), mask)
    square = np.full(mask.shape, beta**2)
    want = constant + family(case, v, beta * a, square)
    assert mean(loss(v)) == pytest.approx(want, rel=1e-4)
    gradient = jax.grad(lambda v: loss(v)[0])(v)
    by_hand = 2 * (beta**2 * (v - start) + (beta * a)[..., None] * (start - u)) * mask[..., None]
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-3, atol=1e-4)
    for bad in (v, 1e3 * v):
        assert mean(loss(bad, np.full_like(a, -1))) >= 0
    reflected = start - (u - start) / beta
    assert mean(loss(reflected, np.full_like(a, -1))) == pytest.approx(0, abs=1e-8)
    towards = start + (u - start) / beta
    assert mean(loss(towards, np.full_like(a, 1))) == pytest.approx(0, abs=1e-8)


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
    worst = -((1 + SCALE) ** 2) * np.square(start - u)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        a = rng.uniform(-1, 1, mask.shape).astype(np.float32)
        alpha = 1 + SCALE * a[..., None]
        best = start - alpha * (start - u)
        least = expected(-np.square(alpha * (start - u)), mask)
        assert mean(advantage(batch, case, best, a)) == pytest.approx(least, rel=1e-4)
        for size in (0.1, 1.0, 30.0):
            v = best + size * rng.normal(size=best.shape).astype(np.float32)
            found = mean(advantage(batch, case, v, a))
            assert found > least >= expected(worst, mask)


@pytest.mark.parametrize("name", ["paper", "advantage", "nft"])
def test_the_start_and_the_weights_get_no_gradient(batch, case, name):
    draws, mask, v, _, _ = case
    rules = {
        "paper": lambda *args: srum.paper(*args, cap=CAP)[0],
        "advantage": lambda *args: srum.advantage(*args, scale=SCALE),
        "nft": lambda *args: nft(*args, beta=0.5),
    }

    def value(start, a):
        return rules[name](v, start, batch, draws, mask, a)[0]

    gradients = jax.grad(value, argnums=(0, 1))(case[3], some_advantages(batch))
    assert all(np.abs(g).max() == 0 for g in gradients)


@pytest.mark.parametrize("name", ["sft", "release", "paper", "advantage", "nft"])
def test_clean_images_and_padding_contribute_nothing(batch, case, name):
    draws, mask, v, start, _ = case
    a = some_advantages(batch)
    values = {
        "sft": lambda v, draws: srum.sft(v, batch, draws, mask)[0],
        "release": lambda v, draws: sum(
            r[0] for r in srum.release(v, batch, draws, mask, jnp.abs(a))
        ),
        "paper": lambda v, draws: sum(
            r[0] for r in srum.paper(v, start, batch, draws, mask, a, cap=CAP)
        ),
        "advantage": lambda v, draws: srum.advantage(v, start, batch, draws, mask, a, scale=SCALE)[
            0
        ],
        "nft": lambda v, draws: nft(v, start, batch, draws, mask, a, beta=0.5)[0],
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
            rewards="both",
            map_sampling="centre",
            timestep_mean=0.0,
            timestep_std=1.0,
            timestep_shift=2.0,
            lambda_constraint=0.5,
            repulsion_cap=CAP,
            advantage_scale=SCALE,
            nft_beta=0.5,
            dpo_beta=2.0,
            anchor=0.0,
            replay=0.0,
        )
        | values
    )


def whole(objective, **values):
    """jitted (params, reference, batch) -> LossOut."""
    loss = srum.SrumLoss(config(objective, **values), PREDICT)
    return jit(lambda params, reference, batch: loss(params, reference, batch, jax.random.key(1)))


def with_score(batch, score):
    """No regions and one score everywhere: every token of the released weight rule weighs
    (score+1)/4."""
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
    cfg = config("srum_advantage", anchor=ANCHOR)
    scores, batch = batch, as_advantages(batch)
    loss = srum.SrumLoss(cfg, PREDICT)

    @jit
    def both(params, reference, batch):
        def total(params, reference):
            out = loss(params, reference, batch, jax.random.key(1))
            return losses.total(out), out

        return jax.grad(total, argnums=(0, 1), has_aux=True)(params, reference)

    (trained, reference), out = both(params, other, batch)
    assert all(np.abs(g).max() == 0 for g in jax.tree.leaves(reference))
    assert max(np.abs(g).max() for g in jax.tree.leaves(trained)) > 0
    drift, advantage = (mean(r) for r in (out.metrics["drift"], out.terms["advantage"]))
    assert drift > 0
    assert losses.total(out) == pytest.approx(advantage + ANCHOR * drift, rel=1e-5)
    draws = flow.draw(batch, jax.random.key(1), mean=0.0, std=1.0, shift=2.0)
    size = expected(np.square(draws.noise - batch.latents), np.asarray(terms.trained(batch)))
    assert mean(out.metrics["relative_drift"]) == pytest.approx(drift / size, rel=1e-4)
    assert mean(out.metrics["repelled"]) == 0
    _, bad = both(params, other, as_advantages(with_score(scores, -1.0)))
    assert mean(bad.metrics["repelled"]) == 1
    # The head of words is no part of it.
    assert np.abs(flatten(trained)["lm_head/w"]).max() == 0
    (_, _), out = both(params, params, batch)
    assert out.metrics["drift"][0] == 0 == out.terms["advantage"][0]
    assert out.metrics["token_advantage_size"][0] > 0


@pytest.mark.parametrize("objective", ["srum_release", "srum_advantage"])
def test_sums_add_up_over_rows(batch, objective):
    """Row 0 twice and row 1 twice, against both rows: sums and weights of every term add."""
    params, other = weights(), weights(seed=1)
    run = whole(objective)
    if objective in srum.BY_ADVANTAGE:
        batch = as_advantages(batch)

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
    without = {name for name in srum.OBJECTIVES if not srum.needs_reference(name, 0.0)}
    assert without == {"sft", "srum_release", "srum_positive"}
    assert all(srum.needs_reference(name, 0.1) for name in srum.OBJECTIVES)


@pytest.mark.parametrize("objective", [name for name in srum.OBJECTIVES if name != "sft"])
def test_scores_and_advantages_are_never_taken_for_each_other(batch, objective):
    loss = srum.SrumLoss(config(objective), PREDICT)
    other = as_advantages(batch)
    good, bad = (other, batch) if objective in srum.BY_ADVANTAGE else (batch, other)
    what = "advantages, and" if objective in srum.BY_ADVANTAGE else "scores, and"
    shapes = jax.eval_shape(weights)
    jax.eval_shape(loss, shapes, shapes, good, jax.random.key(0))
    with pytest.raises(ValueError, match=f"the objective reads {what} the batch holds"):
        jax.eval_shape(loss, shapes, shapes, bad, jax.random.key(0))


def test_an_objective_is_a_value():
    """Equal settings are one objective, for whatever caches by it."""
    cfg = run_config.load(base.get_config())
    one, same = (
        srum.SrumLoss(cfg.train, terms.Predictor(CFG, jnp.dtype("float32"), "full"))
        for _ in range(2)
    )
    assert one == same and hash(one) == hash(same)
    assert one != dataclasses.replace(one, predict=dataclasses.replace(one.predict, remat="none"))


def test_names_are_those_of_the_config():
    hints = typing.get_type_hints(TrainConfig)
    names = (*srum.OBJECTIVES, *srum.STEPWISE)
    assert names == typing.get_args(hints["objective"])
    assert set(srum.BY_ADVANTAGE) < set(names)


# --------------------------------------------------------------------------------- token weights


def per_token(batch, values):
    """values [B,N] of the images at their tokens [B,G]."""
    return np.take_along_axis(np.asarray(values), np.asarray(batch.latent_images), axis=1)


def with_image_score(batch, value):
    scores = np.full_like(batch.rewards.image_score, value)
    return batch.replace(rewards=batch.rewards.replace(image_score=scores))


def test_scores_of_the_image_or_of_regions_alone(batch, case):
    mask = case[1]
    image = per_token(batch, batch.rewards.image_score)
    factor = (image + 1) / 2

    def close(found, want):
        np.testing.assert_allclose(np.asarray(found)[mask], want[mask], atol=1e-6)

    both = np.asarray(srum.release_weights(batch))
    close(srum.release_weights(batch, "image"), 0.5 * factor)
    regions = np.asarray(srum.release_weights(batch, "regions"))
    close(regions * factor, both)
    assert (regions[mask] > 0.5).any() and (regions[mask] == 0.5).any()

    centred = as_advantages(batch)
    close(srum.advantage_weights(centred, "image"), image)
    local = np.asarray(srum.advantage_weights(centred, "regions"))
    without = as_advantages(with_image_score(batch, 0.0))
    close(local, 2 * np.asarray(srum.advantage_weights(without)))
    assert (local[mask] == 0).any() and (local[mask] < 0).any() and (local[mask] > 0).any()
    assert np.abs(srum.advantage_weights(centred) - image)[mask].max() > 0.1

    # The paper: signed regions times the image's factor, neutral outside every box.
    close(srum.paper_weights(batch, "regions"), local)
    close(srum.paper_weights(batch), local * factor)
    close(srum.paper_weights(batch, "image"), image)
    assert np.isfinite(srum.paper_weights(batch)).all()  # padding too


@pytest.mark.parametrize("sampling", ["centre", "area"])
def test_masks_stand_in_for_boxes(batch, case, sampling):
    """Coverage of the boxes themselves changes nothing; that of an empty mask unmakes a region."""
    rows = [[edit(1, 5, boxes=2), text_to_image(2, 6, boxes=3)], [text_to_image(3, 7), talk(4)]]
    covered = pack(rows, spare=2, rewards=True, coverage=sampling)
    mask, emptied = case[1], covered.rewards.coverage
    emptied = emptied.replace(inside=np.zeros_like(emptied.inside))
    emptied = covered.replace(rewards=covered.rewards.replace(coverage=emptied))
    rules = (
        srum.release_weights,
        srum.paper_weights,
        lambda batch, **how: srum.advantage_weights(as_advantages(batch), **how),
    )
    for rule in rules:
        want = np.asarray(rule(batch, sampling=sampling))
        np.testing.assert_allclose(rule(covered, sampling=sampling)[mask], want[mask], atol=1e-6)
        bare = np.asarray(rule(emptied, sampling=sampling))
        none = batch.rewards.replace(valid=np.zeros_like(batch.rewards.valid))
        alone = np.asarray(rule(batch.replace(rewards=none), sampling=sampling))
        np.testing.assert_allclose(bare[mask], alone[mask], atol=1e-6)
        assert np.abs(bare - want)[mask].max() > 0.05


def test_the_config_says_what_a_token_reads(batch):
    """Thin boxes at a token's rim: no gain of the image's weight, unless cells are read whole."""
    r = batch.rewards
    thin = np.tile(np.array([0, 0, 1, 99], np.float32), (*r.scores.shape, 1))
    batch = batch.replace(rewards=r.replace(boxes=thin, scores=np.ones_like(r.scores)))
    params = weights()
    means = {}
    for sampling in ("centre", "area"):
        out = whole("srum_release", map_sampling=sampling)(params, None, batch)
        means[sampling] = mean(out.metrics["token_weight"])
    assert means["centre"] == pytest.approx(
        float(np.mean(srum.release_weights(batch, "image")[np.asarray(terms.trained(batch))]))
    )
    assert means["area"] > means["centre"] + 0.005
