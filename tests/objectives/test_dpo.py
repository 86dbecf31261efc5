"""Pairs of images: who is whose partner, what a pair's loss is, and which of its tokens count."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives.test_srum import config, mean
from samples import as_advantages, edit, pack, text_to_image

from srum_jax import flow
from srum_jax.objectives import dpo, srum, terms
from srum_jax.training import step
from srum_jax.training.state import FrozenParams

BETA = 3.0


def rows(swapped=False):
    """Two pairs in a row, behind one without a partner; one pair behind an edit."""

    def pair(noise_id, *seeds):
        seeds = seeds[::-1] if swapped else seeds
        return [text_to_image(seed, noise_id, boxes=3) for seed in seeds]

    first = [text_to_image(1, 5, boxes=2), *pair(6, 2, 3), *pair(7, 4, 5)]
    return [first, [edit(6, 8, boxes=2), *pair(9, 7, 8)]]


def packed(swapped=False):
    return as_advantages(pack(rows(swapped), spare=2, rewards=True))


@pytest.fixture(scope="module")
def batch():
    return packed()


@pytest.fixture(scope="module")
def case(batch):
    """(draws, mask, v, v₀, u), the noise that of the batch's ids."""
    v, start = np.random.default_rng(0).normal(size=(2, *batch.latents.shape)).astype(np.float32)
    draws = flow.draw(batch, jax.random.key(3), mean=0.0, std=1.0, shift=1.0)
    mask = np.asarray(terms.trained(batch))
    return draws, mask, v, start, np.asarray(draws.noise) - batch.latents


def preferences(batch, case, v, weights=None, beta=BETA):
    draws, mask, _, start, _ = case
    weights = np.ones(mask.shape, np.float32) if weights is None else weights
    return dpo.dpo(v, start, batch, draws, mask, weights, beta=beta)


def loss(*args, **how):
    sum_, count = preferences(*args, **how).loss
    return sum_ / count


def tokens(batch, row, image):
    """Places of an image's tokens in a row."""
    return np.asarray((batch.latent_images[row] == image) & (batch.gen.segment[row] > 0))


PAIRS = ((0, 1, 2), (0, 3, 4), (1, 2, 3))  # (row, better, worse); the edit has two images


def test_partners_have_one_noise_and_the_better_one_is_first(batch, case):
    assert np.argwhere(dpo.partners(batch)).tolist() == [list(pair) for pair in PAIRS]
    draws = case[0]
    for row, better, worse in PAIRS:
        assert draws.t[row, better] == draws.t[row, worse] > 0
        noise = [draws.noise[row][tokens(batch, row, image)] for image in (better, worse)]
        np.testing.assert_array_equal(*noise)
    side = np.asarray(dpo.sides(batch))
    assert side[0][tokens(batch, 0, 0)].tolist() == [0] * 4
    assert [side[0][tokens(batch, 0, n)][0] for n in (1, 2, 3, 4)] == [1, -1, 1, -1]


def test_it_is_the_written_form(batch, case):
    """Pair for pair in float64, β as large as training has it, and as small."""
    _, mask, v, start, u = case

    def error(row, image):
        at = tokens(batch, row, image)
        return (np.square(v - u) - np.square(start - u))[row][at].astype(np.float64).mean()

    for beta in (0.01, BETA, 100.0):
        margins = np.array([-beta * (error(r, b) - error(r, w)) for r, b, w in PAIRS])
        found = preferences(batch, case, v, beta=beta)
        assert mean(found.loss) == pytest.approx(np.logaddexp(0, -margins).mean(), rel=1e-4)
        assert mean(found.margin) == pytest.approx(margins.mean(), rel=1e-3, abs=1e-5)
        assert mean(found.preferred) == pytest.approx((margins > 0).mean())
        assert float(found.loss[1]) == len(PAIRS)


def test_where_training_starts_it_is_log_2_and_half_beta_times_the_sides_difference(batch, case):
    draws, mask, _, start, u = case
    assert float(loss(batch, case, start)) == pytest.approx(math.log(2), rel=1e-6)

    def difference(v):
        """Of plain flow matching on the better ones and on the worse ones, mean over pairs."""
        error = jnp.square(v - u)
        sums = [
            error[row][tokens(batch, row, b)].mean() - error[row][tokens(batch, row, w)].mean()
            for row, b, w in PAIRS
        ]
        return sum(sums) / len(PAIRS)

    found = jax.grad(lambda v: loss(batch, case, v))(start)
    np.testing.assert_allclose(found, BETA / 2 * jax.grad(difference)(start), rtol=1e-4, atol=1e-7)
    assert np.abs(found[0][tokens(batch, 0, 1)]).max() > 0.01
    # Neither who has no partner, nor clean images and padding.
    paired = np.asarray(dpo.sides(batch)) != 0
    assert np.abs(np.asarray(found)[~(paired & mask)]).max() == 0


def test_swapping_the_sides_turns_the_sign(batch, case):
    """The same images the other way round: of each token the gradient at the start is the
    opposite, and the margin is wherever training is."""
    draws, mask, v, start, _ = case
    other = packed(swapped=True)
    order = np.tile(np.arange(mask.shape[1]), (len(mask), 1))
    for row, better, worse in PAIRS:
        at = [np.flatnonzero(tokens(batch, row, image)) for image in (better, worse)]
        order[row, at[0]], order[row, at[1]] = at[1], at[0]

    def moved(x):
        return np.take_along_axis(np.asarray(x), order[..., None], axis=1)

    np.testing.assert_array_equal(moved(batch.latents), other.latents)
    swapped = (draws, mask, moved(v), moved(start), None)
    assert mean(preferences(other, swapped, moved(v)).margin) == pytest.approx(
        -mean(preferences(batch, case, v).margin), rel=1e-4
    )
    here = jax.grad(lambda v: loss(batch, case, v))(start)
    there = jax.grad(lambda v: loss(other, swapped, v))(moved(start))
    np.testing.assert_allclose(there, -moved(here), rtol=1e-4, atol=1e-7)


def test_regions_say_which_tokens_count(batch, case):
    """Of the better image those with a positive advantage, of the worse one with a negative one;
    the error of a side is the mean over these."""
    draws, mask, v, start, u = case
    a = np.asarray(srum.advantage_weights(batch, "regions"))
    found = np.asarray(srum.preference_weights(batch, "regions"))
    counted = [found[row][tokens(batch, row, n)] for row, *pair in PAIRS for n in pair]
    assert any((w > 0).any() and (w == 0).any() for w in counted)
    errors = np.mean(np.square(v - u) - np.square(start - u), axis=-1, dtype=np.float64)
    margins = []
    for row, better, worse in PAIRS:
        sides = []
        for image, sign in ((better, 1), (worse, -1)):
            at = tokens(batch, row, image)
            w = np.clip(sign * a[row][at], 0, None)
            np.testing.assert_allclose(found[row][at], w, rtol=1e-6)
            sides.append((w * errors[row][at]).sum() / max(w.sum(), 1e-12))
        if found[row][tokens(batch, row, better) | tokens(batch, row, worse)].any():
            margins.append(-BETA * (sides[0] - sides[1]))
    value = preferences(batch, case, v, found)
    assert float(value.loss[1]) == len(margins) > 0
    assert mean(value.loss) == pytest.approx(np.logaddexp(0, -np.array(margins)).mean(), rel=1e-4)
    gradient = np.abs(jax.grad(lambda v: loss(batch, case, v, found))(start)).max(axis=-1)
    assert (gradient[mask] > 0).tolist() == (found[mask] > 0).tolist()


def test_a_side_without_tokens_counts_0_and_a_pair_without_is_left_out(batch, case):
    _, mask, v, start, _ = case
    side = np.asarray(dpo.sides(batch))
    better = (side > 0).astype(np.float32)
    gradient = np.asarray(jax.grad(lambda v: loss(batch, case, v, better))(v))
    assert np.abs(gradient[mask & (side < 0)]).max() == 0
    assert np.abs(gradient[mask & (side > 0)]).min() > 0
    alone = better.copy()
    alone[1] = 0
    assert float(preferences(batch, case, v, alone).loss[1]) == 2
    none = preferences(batch, case, v, 0 * better)
    assert (float(none.loss[0]), float(none.loss[1])) == (0, 0)
    gradient = jax.grad(lambda v: preferences(batch, case, v, 0 * better).loss[0])(v)
    assert np.abs(gradient).max() == 0


def test_of_the_image_alone_every_token_counts(batch):
    weights = np.asarray(srum.preference_weights(batch, "image"))
    at = tokens(batch, 0, 1) | tokens(batch, 0, 2) | tokens(batch, 0, 3) | tokens(batch, 0, 4)
    assert set(weights[0][at]) == {1} and set(weights[0][tokens(batch, 0, 0)]) == {0}


def test_it_is_bounded_and_the_start_has_no_gradient(batch, case):
    draws, mask, v, start, _ = case
    for size in (1.0, 30.0, 1e4):
        found = loss(batch, case, size * v, beta=100.0)
        assert np.isfinite(found) and found >= 0
    ones = np.ones(mask.shape, np.float32)

    def value(start, weights):
        return dpo.dpo(v, start, batch, draws, mask, weights, beta=BETA).loss[0]

    gradients = jax.grad(value, argnums=(0, 1))(start, ones)
    assert all(np.abs(g).max() == 0 for g in gradients)


@dataclasses.dataclass(frozen=True)
class Linear:
    """A model of one matrix in the place of the predictor."""

    def __call__(self, params, batch, draws):
        x_t = flow.interpolate(batch.latents, draws.noise, flow.token_time(batch, draws.t))
        return terms.Predicted(x_t @ params["w"], None, terms.trained(batch))


@pytest.mark.parametrize("rewards", ["image", "regions"])
def test_parts_of_a_step_add_up_to_it(rewards):
    """Rows with one pair, two pairs and none: in two parts, or in four, the same step."""
    one, two = rows()
    none = [text_to_image(11, 20, boxes=2)]
    batch = as_advantages(pack([one, none, two, one[:3]], spare=1, rewards=True))
    cfg = types.SimpleNamespace(
        **vars(config("dpo", rewards=rewards, anchor=0.5)) | {"dpo_beta": BETA}
    )
    objective = srum.SrumLoss(cfg, Linear())
    dim = batch.latents.shape[-1]
    w, start = np.random.default_rng(1).normal(size=(2, dim, dim)).astype(np.float32)
    fixed = FrozenParams({}, {"w": start})

    def run(parts):
        return step.gradients(objective, {"w": w}, fixed, batch, jax.random.key(0), parts)

    want, means, gradients = run(1)
    assert np.abs(gradients["w"]).max() > 0.01
    for parts in (2, 4):
        found, others, pieces = run(parts)
        assert float(found) == pytest.approx(float(want), rel=1e-5)
        np.testing.assert_allclose(pieces["w"], gradients["w"], rtol=1e-4, atol=1e-5)
        for name, value in means.items():
            assert float(others[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
