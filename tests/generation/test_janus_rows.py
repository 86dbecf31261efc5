"""Janus's texts and images that join running work: each is what it is alone."""

import numpy as np
import pytest
import tiny_janus

from srum_jax import api
from srum_jax.core.errors import BadInput
from srum_jax.data import images
from srum_jax.generation import janus
from srum_jax.generation.image_request import ImageRequest
from srum_jax.generation.text_rows import LIKELIEST, TextRequest

RNG = np.random.default_rng(0)
SIDE = tiny_janus.CFG.image_side


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return api.load(tiny_janus.save(tmp_path_factory.mktemp("janus")), precision="float32")


def asked(loaded, count):
    """Contexts of different lengths, every second with a picture."""
    shown = images.picture(RNG.integers(0, 256, (20, 33, 3), np.uint8), loaded.cfg.layout)
    words = [loaded.tokenizer.text("what is it ? " * (1 + i)) for i in range(count)]
    return [(shown, text) if i % 2 else (text,) for i, text in enumerate(words)]


@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.slow), 1.3])
def test_texts_are_what_they_are_alone(loaded, temperature):
    contexts, eos = asked(loaded, 4), loaded.cfg.eos
    requests = [
        TextRequest(one, 7 - i, temperature, seed=i, probabilities=i == 2)
        for i, one in enumerate(contexts)
    ]
    generator = loaded.generator
    slots = max(janus.TextRows.slots_for(generator, one) for one in requests)
    rows = janus.TextRows(generator, slots, most=4)
    writing = janus.writing_params(generator, loaded.sampler)
    waiting, found = list(requests), {one: [] for one in requests}
    while waiting or rows.requests:
        if waiting:
            rows.join([waiting.pop(0)])
        done = []
        for one, token in rows.step(writing):
            found[one].append(token)
            if token.id == eos or rows.written(one) == one.max_tokens:
                done.append(one)
        rows.leave(done)
    for one, tokens in found.items():
        how = dict(max_tokens=one.max_tokens, temperature=temperature, seeds=[one.seed])
        (alone,) = generator.generate([one.context], **how)
        assert tuple(token.id for token in tokens if token.id != eos) == alone.ids
        assert all(bool(token.likeliest) == one.probabilities for token in tokens)
    listed = [token for token in found[requests[2]] if token.likeliest]
    assert listed and all(len(token.likeliest) == LIKELIEST for token in listed)
    assert all(i < len(loaded.tokenizer) for token in listed for i, _ in token.likeliest)


def jobs_of(loaded, several):
    made = []
    for seed, (prompt, negative, settings) in enumerate(several):
        text = (loaded.tokenizer.text(prompt),)
        against = negative and (loaded.tokenizer.text(negative),)
        request = ImageRequest(text, (SIDE, SIDE), seed, texts=text, negative=against)
        default = loaded.generation_config.generate
        made.append(janus.Job(request, default.__class__(**{**vars(default), **settings})))
    return made


def drawn(sampler, jobs):
    """Codes of each job: they come one a step, each to the group of its kind."""
    waiting, groups, found = list(jobs), {}, {}
    while waiting or any(group.requests for group in groups.values()):
        if waiting:
            kind = waiting[0].kind(sampler, 0)
            groups.setdefault(kind, janus.DrawingRows(sampler, kind, 4)).join([waiting.pop(0)])
        for group in groups.values():
            if group.requests:
                group.step()
            done = [job for job in group.requests if group.number[job] == group.steps(job)]
            found |= dict(zip(done, group.latents(done), strict=True))
            group.leave(done)
    return found, groups


def test_images_are_what_they_are_alone(loaded):
    several = [
        ("a red circle", None, {}),
        ("a blue square above a green one", "a dog", {"guidance": 2.0}),
        ("two cats", None, {"temperature": 0.0, "guidance": 3.0}),
        ("a dog", None, {"guidance": 1.0}),
        ("a cat", None, {"top_k": 3}),
    ]
    sampler, jobs = loaded.sampler, jobs_of(loaded, several)
    found, groups = drawn(sampler, jobs)
    assert len(groups) == 3  # without guidance, and with another top_k, another program
    for job in jobs:
        (alone,) = sampler.sample([job.request], settings=job.settings)
        np.testing.assert_array_equal(found[job], alone.latent)


def test_an_unfinished_image_is_grey_where_it_is_not_drawn(loaded):
    (job,), sampler = jobs_of(loaded, [("a red circle", None, {})]), loaded.sampler
    rows = janus.DrawingRows(sampler, job.kind(sampler, 0), 4)
    rows.join([job])
    for _ in range(6):
        (codes,) = rows.step([job])
    assert (codes.ravel() >= 0).tolist() == [True] * 6 + [False] * 10
    decoder = janus.ImageDecoder(loaded.vae_params, loaded.cfg)
    (image,) = decoder.decode([codes])
    cell = SIDE // tiny_janus.CFG.grid
    assert image.shape == (SIDE, SIDE, 3) and (image[2 * cell :] == 127).all()
    assert (image[cell : 2 * cell, 2 * cell :] == 127).all() and (image[:cell] != 127).any()


def test_pictures_are_decoded_as_the_sampler_does(loaded):
    drawings = loaded.generate("a red circle", n=3, seed=1)
    decoder = janus.ImageDecoder(loaded.vae_params, loaded.cfg)
    for one, image in zip(drawings, decoder.decode([d.latents for d in drawings]), strict=True):
        np.testing.assert_array_equal(image, one.image)
    with pytest.raises(BadInput, match="NaN"):
        decoder.decode([np.full_like(drawings[0].latents, np.nan)])
