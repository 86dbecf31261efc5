"""The sampler: equal to the training forward step by step, whatever shares its batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from einops import rearrange

from srum_jax import flow
from srum_jax.config import SampleConfig
from srum_jax.data import packing, shapes
from srum_jax.data.schema import Example, Lanes, Latent, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.inference import image
from srum_jax.models import bagel

SETTINGS = SampleConfig(
    size=(32, 32),
    steps=3,
    shift=4.0,
    guidance=2.5,
    renorm="none",
    guidance_interval=(0.0, 1.0),
    renorm_min=0.0,
    batch=4,
)
PROMPTS = [
    "a red circle",
    "a red circle , a blue square and a green cross",
    "two blue squares",
    "a red circle above a blue square",
    "a green cross",
    "three red triangles",
]
SEEDS = [image.candidate_seed(0, i, 0) for i in range(len(PROMPTS))]
CFG = tiny.MODEL


@pytest.fixture(scope="module")
def model():
    return tiny.weights()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(shapes.write_tokenizer(tmp_path_factory.mktemp("words")).parent)


@functools.lru_cache
def program(settings):
    return jax.jit(
        functools.partial(image.sample, cfg=CFG, settings=settings, grid=(4, 4), dtype=jnp.float32)
    )


def rows(tokenizer, prompts, width=16):
    texts = [[CFG.bos, *tokenizer.encode(p), CFG.eos] for p in prompts]
    ids = np.zeros((len(texts), width), np.int32)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    return ids, np.array([len(text) for text in texts], np.int32)


def noise(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 16, CFG.token_dim)).astype(np.float32)


def velocity(params, tokenizer, prompt, x, t):
    """v_theta by the training forward: one packed sample, the prompt None for an empty context."""
    latent = Latent(rearrange(np.asarray(x), "(h w) d -> h w d", h=4), (32, 32))
    text = () if prompt is None else (Text(np.array(tokenizer.encode(prompt), np.int32)),)
    lanes = Lanes(und=24, gen=16, vit=0, labels=0, images=1, regions=0)
    batch = packing.pack([[Example((*text, latent))]], lanes, CFG)
    return np.asarray(forward(params, batch, np.full((1, 1), t, np.float32)))


@jax.jit
def forward(params, batch, t):
    _, gen, _ = bagel.forward(params, CFG, batch, batch.latents, t, remat=False)
    return bagel.velocity(params, gen)[0]


@pytest.mark.parametrize(
    "guidance, interval", [(1.0, (0.0, 1.0)), (2.5, (0.0, 1.0)), (2.5, (0.9, 1.0))]
)
def test_every_step_is_the_training_forward(model, tokenizer, guidance, interval):
    settings = dataclasses.replace(SETTINGS, guidance=guidance, guidance_interval=interval)
    start = noise(2)
    got = program(settings)(model[0], *rows(tokenizer, PROMPTS[:2]), start)
    times = flow.sampling_times(settings.steps, settings.shift)
    for prompt, x, found in zip(PROMPTS[:2], start, got, strict=True):
        for t, after in zip(times[:-1], times[1:], strict=True):
            v = velocity(model[0], tokenizer, prompt, x, t)
            if guidance > 1 and interval[0] < t <= interval[1]:
                empty = velocity(model[0], tokenizer, None, x, t)
                v = empty + guidance * (v - empty)
            x = x - v * (t - after)
        np.testing.assert_allclose(found, x, atol=2e-5)


def test_an_interval_without_guidance_is_plain(model, tokenizer):
    ids, lengths = rows(tokenizer, PROMPTS[:2])
    plain = dataclasses.replace(SETTINGS, guidance=1.0)
    never = dataclasses.replace(SETTINGS, guidance_interval=(0.0, 0.0))
    a, b, guided = (program(s)(model[0], ids, lengths, noise(2)) for s in (plain, never, SETTINGS))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - guided).max() > 1e-2


@pytest.mark.parametrize("settings", [SETTINGS, dataclasses.replace(SETTINGS, renorm="global")])
def test_company_changes_nothing(model, tokenizer, settings):
    start = noise(6)
    whole = program(settings)(model[0], *rows(tokenizer, PROMPTS[:4]), start[:4])
    order = [2, 4, 5, 0]
    ids, lengths = rows(tokenizer, [PROMPTS[i] for i in order])
    other = program(settings)(model[0], ids, lengths, start[order])
    np.testing.assert_allclose(other[0], whole[2], atol=1e-5)
    np.testing.assert_allclose(other[3], whole[0], atol=1e-5)


def test_padding_changes_nothing(model, tokenizer):
    whole, wide = (
        program(SETTINGS)(model[0], *rows(tokenizer, PROMPTS[:4], width), noise(4))
        for width in (16, 32)
    )
    np.testing.assert_allclose(wide, whole, atol=1e-5)


def test_the_prompt_and_the_noise_both_matter(model, tokenizer):
    ids, lengths = rows(tokenizer, [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    start = noise(4)
    start[2:] = start[0]
    found = np.asarray(program(SETTINGS)(model[0], ids, lengths, start))
    np.testing.assert_allclose(found[3], found[0], atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 0.1 and np.abs(found[0] - found[2]).max() > 1e-3


def test_guided_runs_group_like_steps():
    times = np.array([1.0, 0.8, 0.5, 0.2, 0.0], np.float32)
    assert image.guided_runs(times, (0.0, 1.0), 2.5) == [(True, 0, 4)]
    assert image.guided_runs(times, (0.0, 1.0), 1.0) == [(False, 0, 4)]
    assert image.guided_runs(times, (0.3, 0.9), 2.5) == [(False, 0, 1), (True, 1, 3), (False, 3, 4)]
    assert image.guided_runs(times, (0.5, 0.8), 2.5) == [(False, 0, 1), (True, 1, 2), (False, 2, 4)]


def test_a_painter_works_through_any_number(model, tokenizer):
    paint = image.painter(*model, CFG, tokenizer, SETTINGS)
    images, latents = paint(PROMPTS, SEEDS)
    assert images.shape == (6, 32, 32, 3) and images.dtype == np.uint8
    assert latents.shape == (6, 4, 4, CFG.token_dim) and latents.dtype == np.float32
    order = [5, 1, 0]
    again, kept = paint([PROMPTS[i] for i in order], [SEEDS[i] for i in order])
    np.testing.assert_allclose(kept, latents[order], atol=1e-5)
    assert np.abs(again.astype(int) - images[order]).max() <= 1
    same, _ = paint(PROMPTS, SEEDS)
    np.testing.assert_array_equal(same, images)


def test_a_painter_refuses_what_it_cannot_draw(model, tokenizer):
    def make(size):
        return image.painter(*model, CFG, tokenizer, dataclasses.replace(SETTINGS, size=size))

    with pytest.raises(ValueError, match="multiples of 8 pixels"):
        make((32, 36))
    with pytest.raises(ValueError, match="9.*positions for 8 a side"):
        make((32, 72))
    with pytest.raises(ValueError, match="'pink'"):
        make((32, 32))(["a pink circle"], [0])
    with pytest.raises(ValueError, match="exceeds the context of 512"):
        make((32, 32))(["a " * 600], [0])


def test_seeds_are_their_own():
    seeds = {image.candidate_seed(s, p, k) for s in range(3) for p in range(40) for k in range(4)}
    assert len(seeds) == 480 and all(0 <= s < 2**32 for s in seeds)
    assert image.candidate_seed(1, 12, 3) != image.candidate_seed(11, 2, 3)
