"""The sampler working through lists: what is on the device when, how many programs there are."""

import dataclasses
import functools

import numpy as np
import pytest
import tiny
from samples import CFG, text, weights

from srum_jax.config import SampleConfig
from srum_jax.core import in_flight, preemption
from srum_jax.core.errors import Preempted
from srum_jax.generation import denoising, image_codec, image_request
from srum_jax.generation.image_request import ImageRequest
from srum_jax.generation.image_sampler import ImageSampler

SETTINGS = SampleConfig(size=(16, 16), steps=3, shift=3.0, guidance=2.5, batch=4)


@pytest.fixture(scope="module")
def sampler():
    """Of any number of rows."""
    parts = weights(), tiny.weights()[1], CFG, None

    @functools.cache
    def make(settings=SETTINGS):
        return ImageSampler(*parts, settings, window=64)

    return make


def asked_for(size, seed):
    """A picture behind a few words."""
    words = (text(np.random.default_rng(seed), 3),)
    return ImageRequest(**image_request.guidance_contexts(words), size=size, seed=seed)


def test_ten_pictures_in_calls_of_four_are_one_program_for_drawing_and_one_for_showing(sampler):
    """The last call has two of them, and the rows of the others; decoders are shared."""
    draw, show = denoising.generate_latents, image_codec.decode_latents
    before = draw._cache_size(), show._cache_size()
    size, settings = (20, 12), dataclasses.replace(SETTINGS, steps=5)  # of no other test
    asked = [asked_for(size, seed) for seed in range(10)]
    drawn = sampler(settings).sample(asked)
    assert (draw._cache_size(), show._cache_size()) == (before[0] + 1, before[1] + 1)
    sampler(dataclasses.replace(settings, steps=2)).sample(asked)
    assert (draw._cache_size(), show._cache_size()) == (before[0] + 2, before[1] + 1)
    alone = sampler(settings).sample([asked[0], *asked[8:]])  # with other companions, as many rows
    for one, again in zip((drawn[0], *drawn[8:]), alone, strict=True):
        np.testing.assert_array_equal(one.latent, again.latent)
        np.testing.assert_array_equal(one.image, again.image)


def lists(count, then=lambda number: None):
    """So many lists of two requests; `then` is called before each is given."""
    for number in range(count):
        then(number)
        yield [asked_for(size, number) for size in ((8, 12), (16, 8))]


def test_the_next_list_is_on_the_device_before_the_pictures_of_the_last_are_there(sampler):
    asked, draw = [], sampler()
    for number, found in enumerate(draw.stream(lists(3, asked.append))):
        assert len(asked) == min(3, number + 1 + 2 * in_flight.AHEAD)
        for one, want in zip(found, draw.sample(list(lists(3))[number]), strict=True):
            np.testing.assert_array_equal(one.latent, want.latent)
            np.testing.assert_array_equal(one.image, want.image)
    assert number == 2 and draw.sample([]) == []


def test_told_to_stop_it_gives_the_lists_that_are_on_the_device(sampler):
    found = []
    try:
        with pytest.raises(Preempted):
            drawn = sampler().stream(lists(3, lambda number: number == 1 and preemption.stop.set()))
            found.extend(drawn)
    finally:
        preemption.stop.clear()
    assert [len(pictures) for pictures in found] == [2]
