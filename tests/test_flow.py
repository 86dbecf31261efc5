"""The timestep distribution against the official one, draws that do not know their place, Euler,
guidance."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import edit, jit, pack, talk, text_to_image

from srum_jax import flow

COMMON = np.load(pathlib.Path(__file__).parent / "goldens" / "common" / "common.npz")


@pytest.mark.parametrize("shift", [1.0, 3.0, 4.0])
def test_training_time_is_the_official_one(shift):
    found = flow.training_time(COMMON["timestep/raw"], shift)
    np.testing.assert_allclose(found, COMMON[f"timestep/train_shift{shift}"], atol=1e-6)
    assert flow.training_time(jnp.float32(-jnp.inf), shift) == 0


@pytest.mark.parametrize("points, shift", [(8, 3.0), (50, 3.0), (24, 1.0)])
def test_sampling_times_are_the_official_ones(points, shift):
    found = flow.sampling_times(points - 1, shift)
    np.testing.assert_allclose(found, COMMON[f"timestep/infer_n{points}_shift{shift}"], atol=1e-6)
    assert found.dtype == np.float32 and found[0] == 1 and found[-1] == 0
    assert (np.diff(found) < 0).all()


draw = jit(flow.draw, static_argnames=("mean", "std", "shift"))


def drawn(rows, seed=0, spare=0, **rule):
    """The batch, and {noise id: (time, noise [tokens, ·])} of its noisy images."""
    batch = pack(rows, spare=spare)
    draws = draw(batch, jax.random.key(seed), **dict(mean=0.5, std=1.0, shift=2.0) | rule)
    found = {}
    for b, n in np.argwhere(batch.noisy):
        mine = (batch.latent_images[b] == n) & (batch.gen.segment[b] > 0)
        noise = np.asarray(draws.noise)[b][mine]
        found[int(batch.noise_ids[b, n])] = (float(draws.t[b, n]), noise)
    return batch, draws, found


def test_draws_do_not_depend_on_the_place():
    _, _, apart = drawn([[text_to_image(1, 5)], [edit(2, 6)], [text_to_image(3, 7)]])
    _, _, together = drawn(
        [[talk(0), edit(2, 6), text_to_image(1, 5), text_to_image(3, 7)]], spare=3
    )
    assert apart.keys() == together.keys() == {5, 6, 7}
    for i, (t, noise) in apart.items():
        assert together[i][0] == t
        np.testing.assert_array_equal(together[i][1], noise)
    numbers = np.concatenate([noise.reshape(-1) for _, noise in apart.values()])
    assert len(np.unique(numbers)) == numbers.size  # no token or image repeats another's noise
    assert len({t for t, _ in apart.values()}) == 3
    _, _, other = drawn([[text_to_image(1, 5)], [edit(2, 6)], [text_to_image(3, 7)]], seed=1)
    assert all(other[i][0] != t and (other[i][1] != noise).all() for i, (t, noise) in apart.items())


def test_clean_images_have_time_0_and_stay_as_they_are():
    batch, draws, _ = drawn([[edit(2, 6)]])
    assert draws.t.shape == (1, 2) and draws.t[0, 0] == 0 < draws.t[0, 1] < 1
    x_t = flow.interpolate(batch.latents, draws.noise, flow.token_time(batch, draws.t))
    clean = batch.latent_images == 0
    np.testing.assert_array_equal(np.asarray(x_t)[clean], batch.latents[clean])
    assert (np.asarray(x_t)[~clean] != batch.latents[~clean]).all()


def test_drawn_times_follow_the_law():
    rows = [[text_to_image(0, 16 * b + n) for n in range(16)] for b in range(64)]
    _, draws, found = drawn(rows, mean=1.6, std=1.4, shift=1.0)
    t = np.array([t for t, _ in found.values()])
    raw = np.log(t / (1 - t))
    assert len(raw) == 1024
    assert raw.mean() == pytest.approx(1.6, abs=4 * 1.4 / 32)
    assert raw.std() == pytest.approx(1.4, abs=0.15)
    assert float(draws.noise.mean()) == pytest.approx(0, abs=0.03)
    assert float(draws.noise.std()) == pytest.approx(1, abs=0.03)


def test_euler_on_the_exact_velocity_recovers_the_image():
    x_0, noise = np.random.default_rng(0).normal(size=(2, 1, 4, 3)).astype(np.float32)
    times = flow.sampling_times(7, 3.0)
    x = flow.interpolate(x_0, noise, jnp.full((1, 4), times[0]))
    np.testing.assert_array_equal(x, noise)
    for t, after in zip(times[:-1], times[1:], strict=True):
        x = flow.euler(x, flow.target(x_0, noise), t, after)
        np.testing.assert_allclose(
            x, flow.interpolate(x_0, noise, jnp.full((1, 4), after)), atol=1e-5
        )
    np.testing.assert_allclose(x, x_0, atol=1e-5)


# --------------------------------------------------------------------------------------- guidance

RENORMS = ("none", "global", "channel", "text_channel")  # of each image by itself
VELOCITIES = np.random.default_rng(1).normal(size=(3, 2, 5, 4)).astype(np.float32)


def guide(velocities=VELOCITIES, renorm="none", **how):
    scales = dict(text_scale=3.0, image_scale=1.0, renorm_min=0.0) | how
    v, v_text, v_image = velocities
    return np.asarray(flow.guide(v, v_text, v_image, renorm=renorm, **scales))


@pytest.mark.parametrize("renorm", flow.RENORMS)
def test_scale_1_and_no_branches_are_the_model_itself(renorm):
    v, v_text, v_image = VELOCITIES
    np.testing.assert_allclose(guide(renorm=renorm, text_scale=1.0), v, atol=1e-6)
    np.testing.assert_array_equal(guide((v, None, None), renorm, text_scale=4.0), v)


@pytest.mark.parametrize("renorm", flow.RENORMS)
def test_a_branch_left_out_is_a_scale_of_1(renorm):
    v, v_text, v_image = VELOCITIES
    scales = dict(image_scale=2.0)
    by_text = guide((v, v_text, None), renorm, **scales)
    np.testing.assert_allclose(by_text, guide(renorm=renorm), rtol=1e-5, atol=1e-6)
    by_image = guide((v, None, v_image), renorm, **scales)
    same = guide(renorm=renorm, text_scale=1.0, **scales)
    np.testing.assert_allclose(by_image, same, rtol=1e-5, atol=1e-6)


def test_guidance_by_text_and_image():
    v, v_text, v_image = VELOCITIES
    by_text = v_text + 3 * (v - v_text)
    np.testing.assert_allclose(guide(), by_text, rtol=1e-5)
    np.testing.assert_allclose(
        guide(image_scale=2.0), v_image + 2 * (by_text - v_image), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("renorm, axes", [("global", (1, 2)), ("channel", 2)])
@pytest.mark.parametrize("image_scale", [1.0, 2.0])
def test_renorm_bounds_the_norm(renorm, axes, image_scale):
    norm = np.linalg.norm
    plain = guide(image_scale=image_scale)
    found = guide(renorm=renorm, image_scale=image_scale)
    limit = norm(VELOCITIES[0], axis=axes)
    assert (norm(plain, axis=axes) > limit).any()
    assert (norm(found, axis=axes) <= limit * (1 + 1e-5)).all()
    scale = found / plain  # only the length changes, never beyond the guided one
    np.testing.assert_allclose(
        scale, scale.mean(axes, keepdims=True) * np.ones_like(scale), rtol=1e-4
    )
    assert scale.max() <= 1 + 1e-6
    least = guide(renorm=renorm, image_scale=image_scale, renorm_min=0.9) / plain
    assert 0.9 - 1e-5 <= least.min() <= least.max() <= 1 + 1e-6


def test_text_channel_rescales_before_the_image():
    v, _, v_image = VELOCITIES
    by_text = guide(renorm="channel")
    np.testing.assert_allclose(
        guide(renorm="text_channel", image_scale=2.0),
        v_image + 2 * (by_text - v_image),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("renorm", RENORMS)
def test_rows_do_not_mix(renorm):
    whole = guide(renorm=renorm, image_scale=2.0)
    for row in range(2):
        alone = guide(VELOCITIES[:, row : row + 1], renorm=renorm, image_scale=2.0)
        np.testing.assert_allclose(alone[0], whole[row], rtol=1e-5)


def test_batch_renorm_is_one_norm_over_all_rows():
    """As if the rows were one image."""
    for image_scale in (1.0, 2.0):
        found = guide(renorm="batch", image_scale=image_scale)
        joined = np.concatenate(VELOCITIES.transpose(1, 0, 2, 3), axis=1)[:, None]
        want = guide(joined, "global", image_scale=image_scale)[0]
        np.testing.assert_allclose(np.concatenate(found), want, rtol=1e-5)
        apart = guide(renorm="global", image_scale=image_scale)
        assert np.abs(found - apart).max() > 0.01


def test_an_unknown_renorm_is_refused():
    with pytest.raises(ValueError, match="none, global, channel, text_channel, batch, not 'gobal'"):
        guide(renorm="gobal")
    with pytest.raises(ValueError, match="not 'gobal'"):
        guide((VELOCITIES[0], None, None), "gobal")
