"""Texts and images that join running work: each is what it is alone, whoever comes and goes."""

import dataclasses

import jax
import numpy as np
import pytest
import samples
import tiny
from drawing_requests import REQUESTS

from srum_jax.config import SampleConfig
from srum_jax.core import sharding
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import bagel, row_group, text_generator, text_rows, text_stream
from srum_jax.generation.drawing_rows import DrawingRows, Job
from srum_jax.generation.image_sampler import ImageSampler
from srum_jax.generation.text_generator import TextGenerator
from srum_jax.generation.text_rows import TextRequest, TextRows
from srum_jax.worlds.shapes import examples

WINDOW = 64


@pytest.fixture(scope="module")
def params():
    made = samples.weights()
    made["llm2vae"]["w"] *= 3
    made["lm_head"]["w"] *= 3
    return made


@pytest.fixture(scope="module")
def generator(params, tmp_path_factory):
    words = Tokenizer.from_folder(examples.write_tokenizer(tmp_path_factory.mktemp("w")).parent)
    return TextGenerator(params, samples.CFG, words, batch=4, window=WINDOW)


@pytest.fixture(scope="module")
def sampler(params):
    how = dict(vae_params=tiny.weights()[1], tokenizer=None, settings=SampleConfig(batch=4))
    return ImageSampler(params, model=samples.CFG, window=WINDOW, **how)


def written(rows, writing, requests):
    """Tokens of each request: they come one a step, and leave after their last one."""
    waiting, found = list(requests), {one: [] for one in requests}
    while waiting or rows.requests:
        if waiting and len(rows.requests) < 3:
            rows.join([waiting.pop(0)])
        done = []
        for one, token in rows.step(writing):
            found[one].append(token)
            if token.id == samples.CFG.eos or len(found[one]) == one.max_tokens:
                done.append(one)
        rows.leave(done)
    return found


@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.slow), 1.3])
def test_texts_are_what_they_are_alone(generator, temperature):
    rng = np.random.default_rng(3)
    contexts = [(samples.picture(rng, 2, 2), samples.text(rng, 3 + i)) for i in range(5)]
    asked = [
        TextRequest(one, 9 - i, temperature, seed=i, probabilities=i % 2 == 1)
        for i, one in enumerate(contexts)
    ]
    rows = TextRows(generator, TextRows.slots_for(generator, asked[0]), most=4)
    found = written(rows, text_rows.writing_params(generator), asked)
    for one, tokens in found.items():
        how = dict(max_tokens=one.max_tokens, temperature=temperature, seeds=[one.seed])
        (alone,) = generator.generate([one.context], **how)
        ids = tuple(token.id for token in tokens if token.id != samples.CFG.eos)
        assert ids == alone.ids
        for token in tokens:
            assert bool(token.likeliest) == one.probabilities
        if one.probabilities and not temperature:
            assert all(t.likeliest[0] == (t.id, pytest.approx(t.logprob)) for t in tokens)
            assert all(len(t.likeliest) == text_rows.LIKELIEST for t in tokens)
    assert rows.held == [] and rows.state is None


def test_texts_are_the_same_where_layers_have_no_room_apart(generator, monkeypatch):
    """Alone, together, and streamed: scanned, on a device whose memory holds no second copy."""
    rng = np.random.default_rng(4)
    asked = [
        TextRequest((samples.picture(rng, 2, 2), samples.text(rng, 3 + i)), 9 - i, 1.3, seed=i)
        for i in range(3)
    ]

    def alone():
        return [
            generator.generate([one.context], max_tokens=9, temperature=1.3, seeds=[one.seed])[0]
            for one in asked
        ]

    want = alone()
    held = sum(x.nbytes for x in jax.tree.leaves(generator.params))
    assert not text_generator.stays_stacked(generator.params, 2 * held)
    monkeypatch.setattr(sharding, "memory", lambda device: held)
    assert text_generator.stays_stacked(generator.params)
    assert alone() == want
    rows = TextRows(generator, TextRows.slots_for(generator, asked[0]), most=4)
    found = written(rows, text_rows.writing_params(generator), asked)
    for one, text in zip(asked, want, strict=True):
        ids = tuple(token.id for token in found[one] if token.id != samples.CFG.eos)
        assert ids == text.ids[: one.max_tokens]
    longer = dataclasses.replace(asked[1], max_tokens=9)
    assert "".join(text_stream.stream(bagel, generator, None, longer)) == want[1].text


def drawn(sampler, jobs):
    """Latents of each job: they come one a step, and move between groups as guidance ends."""
    waiting, groups, found = list(jobs), {}, {}
    while waiting or any(group.requests for group in groups.values()):
        if waiting:
            job = waiting.pop(0)
            kind = job.kind(sampler, 0)
            groups.setdefault(kind, DrawingRows(sampler, kind, 4)).join([job])
        for group in [g for g in groups.values() if g.requests]:
            group.step()
        for group in list(groups.values()):
            for job in group.requests:
                if group.number[job] == job.settings.steps:
                    (found[job],) = group.latents([job])
                    group.leave([job])
                elif (kind := job.kind(sampler, group.number[job])) != group.kind:
                    group.moved([job], groups.setdefault(kind, DrawingRows(sampler, kind, 4)))
    return found


SETTINGS = {
    "text": SampleConfig(size=(16, 16), steps=4, shift=3.0, guidance=2.5, renorm="global"),
    "both": SampleConfig(steps=4, guidance=2.5, image_guidance=1.5, renorm="text_channel", batch=4),
    "middle": SampleConfig(steps=5, guidance=3.0, guidance_interval=(0.3, 0.9), renorm="channel"),
    "none": SampleConfig(steps=3, guidance=1.0),
}


@pytest.mark.parametrize(
    "name, asked",
    [
        ("both", ["edit", "thought edit"]),
        pytest.param("text", ["draw", "longer", "thought"], marks=pytest.mark.slow),
        pytest.param("middle", ["draw", "longer", "only seen"], marks=pytest.mark.slow),
        pytest.param("none", ["draw", "edit"], marks=pytest.mark.slow),
    ],
)
def test_images_are_what_they_are_alone(sampler, name, asked):
    settings = SETTINGS[name]
    jobs = [Job(REQUESTS[one], settings) for one in asked]
    found = drawn(sampler, jobs)
    for job in jobs:
        (alone,) = sampler.sample([job.request], settings=settings)
        assert found[job] == pytest.approx(alone.latent, abs=1e-5)


def test_scales_and_steps_are_each_rows_own(sampler):
    """Requests of one kind that share nothing but the shapes of their arrays."""
    jobs = [
        Job(REQUESTS["draw"], SampleConfig(steps=s, guidance=g, renorm="none", shift=h))
        for s, g, h in ((2, 1.5, 1.0), (4, 4.0, 3.0), (3, 2.0, 2.0))
    ]
    assert len({job.kind(sampler, 0) for job in jobs}) == 1
    found = drawn(sampler, jobs)
    for job in jobs:
        (alone,) = sampler.sample([job.request], settings=job.settings)
        assert found[job] == pytest.approx(alone.latent, abs=1e-5)


def test_numbers_of_rows_and_slots_are_few():
    assert row_group.row_numbers(16) == (1, 2, 4, 8, 16)
    assert row_group.row_numbers(16, finely=True) == (1, 2, 3, 4, 6, 8, 12, 16)
    assert row_group.row_numbers(5, finely=True) == (1, 2, 3, 4, 5)
    assert row_group.row_numbers(6, 4) == (4, 8)
    assert row_group.row_numbers(1) == (1,)
    assert [row_group.capacity(n, 300) for n in (1, 64, 65, 200, 300)] == [64, 64, 128, 256, 300]
