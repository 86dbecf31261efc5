"""Drawing by noise: its steps are kept, and without noise it is the sampler's."""

import dataclasses

import numpy as np
import pytest
import tiny

from srum_jax import flow
from srum_jax.config import SampleConfig
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation.bagel import ImageSampler
from srum_jax.generation.stochastic import NoisySteps
from srum_jax.worlds.shapes import examples

SETTINGS = SampleConfig(steps=4, guidance=1.0, batch=2)
PROMPTS = ["a red circle", "two blue squares", "a red circle and a green cross"]
SEEDS = [5, 6, 7]
STEPS = 3


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    words = Tokenizer.from_folder(examples.write_tokenizer(tmp_path_factory.mktemp("words")).parent)
    model, coder = tiny.weights()
    how = dict(window=tiny.MODEL.max_text, min_rows=SETTINGS.batch)
    return ImageSampler(model, coder, tiny.MODEL, words, SETTINGS, **how)


def drawn(sampler, scale, order=(0, 1, 2)):
    """(latents, records) of the prompts in this order."""
    drawing = NoisySteps(STEPS, scale)
    asked = sampler.plain([PROMPTS[i] for i in order], [SEEDS[i] for i in order])
    found = sampler.sample(asked, denoiser=drawing)
    return [one.latent for one in found], drawing.records(tiny.GRID[:2])


@pytest.fixture(scope="module")
def noisy(sampler):
    return drawn(sampler, 0.7)


def test_what_is_kept_of_each_image(noisy):
    latents, records = noisy
    times = flow.sampling_times(SETTINGS.steps, SETTINGS.shift)[: STEPS + 1]
    assert len(latents) == len(records) == 3
    for one in records:
        assert one["trajectory"].shape == (STEPS + 1, *tiny.GRID)
        assert one["log_probs"].shape == one["deviations"].shape == (STEPS,)
        np.testing.assert_array_equal(one["times"], times)
        assert all(x.dtype == np.float32 for x in one.values())
        # Of normal noise the mean log-density is about −1/2 − log σ − log √(2π).
        wanted = -0.5 - np.log(one["deviations"] * np.sqrt(2 * np.pi))
        np.testing.assert_allclose(one["log_probs"], wanted, atol=0.2)


def test_an_image_is_its_own_whatever_shares_its_call(sampler, noisy):
    latents, records = noisy
    again, others = drawn(sampler, 0.7, (2, 0))
    for place, i in enumerate((2, 0)):
        np.testing.assert_allclose(again[place], latents[i], atol=1e-4)
        for name, value in others[place].items():
            np.testing.assert_allclose(value, records[i][name], atol=1e-4, err_msg=name)


def test_noise_of_other_steps_is_other_noise(noisy):
    _, records = noisy
    one = records[0]
    moved = np.diff(one["trajectory"], axis=0).reshape(STEPS, -1)
    between = np.corrcoef(np.concatenate([moved, one["trajectory"][:1].reshape(1, -1)]))
    assert np.abs(between[~np.eye(STEPS + 1, dtype=bool)]).max() < 0.9


def test_without_noise_it_draws_what_the_sampler_draws(sampler, noisy):
    quiet, records = drawn(sampler, 1e-6)
    plain = sampler.sample(sampler.plain(PROMPTS, SEEDS))
    for one, other, record, far in zip(quiet, plain, records, noisy[0], strict=True):
        np.testing.assert_allclose(one, other.latent, atol=1e-4)
        assert np.abs(far - other.latent).max() > 0.1
        t, after = record["times"][-1], 0.0  # one step of the ODE is left
        assert t > after and np.abs(record["trajectory"][-1] - one).max() > 1e-3
    # The same start, whatever the noise of the steps.
    np.testing.assert_array_equal(records[0]["trajectory"][0], noisy[1][0]["trajectory"][0])


def test_guidance_is_refused(sampler):
    guided = dataclasses.replace(SETTINGS, guidance=2.0)
    asked = sampler.plain(PROMPTS[:1], SEEDS[:1])
    with pytest.raises(ValueError, match="steps by noise are drawn without guidance"):
        sampler.sample(asked, settings=guided, denoiser=NoisySteps(1, 0.7))
