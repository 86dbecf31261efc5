"""Contexts and caches: padding, order and company mean nothing, and programs stay few."""

import functools
import logging as python_logging
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from samples import CFG, jit, latent, picture, text, weights

from srum_jax.config import SampleConfig
from srum_jax.data.schema import Text
from srum_jax.generation import context, denoising, image_codec, image_request, image_sampler
from srum_jax.generation import text_generator as writing
from srum_jax.models.bagel import mot, vae


def items(seed=0):
    """One of everything: text, picture, clean latent, picture, text."""
    rng = np.random.default_rng(seed)
    return (
        text(rng, 3),
        picture(rng, 2, 3),
        latent(rng, 2, 1, noisy=False),
        picture(rng, 1, 2),
        text(rng, 5),
    )


LONG = items()
CONTEXTS = [LONG, LONG[:4], LONG[:3], LONG[:2], LONG[:1], (), items(1)[1:4]]


@functools.partial(jit, static_argnames="slots")
def prefill(params, packed, slots):
    return context.prefill(params, packed, cfg=CFG, slots=slots, dtype=jnp.float32)


@pytest.fixture(scope="module")
def params():
    return weights()


@pytest.fixture(scope="module")
def cache(params):
    """Of CONTEXTS and an empty row; 16 slots more than the lanes."""
    packed = context.pack(CONTEXTS, len(CONTEXTS) + 1, CFG.layout)
    return prefill(params, packed, context.capacity(packed, 16))


def first(cache, row, count):
    return cache.k[:, row, :count], cache.v[:, row, :count]


# ------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("least", [1, 16, 32])
def test_rungs_are_few_and_near(least):
    counts = range(1, 4097)
    buckets = [context.bucket(n, least) for n in counts]
    assert buckets == sorted(buckets) and context.bucket(0, least) == 0
    assert all(n <= r <= max(least, 1.5 * n) for n, r in zip(counts, buckets, strict=True))
    assert len(set(buckets)) <= 2 * math.log2(4096 / least) + 1
    assert all(context.bucket(r, least) == r for r in set(buckets))


@pytest.mark.parametrize("least", [1, 2, 4, 8])
def test_rows_are_enough_and_cut_evenly(least):
    for batch in range(1, 41):
        most = math.ceil(batch / least) * least
        rows = [context.rows_for(count, batch, least) for count in range(1, batch + 1)]
        assert all(count <= r <= most for count, r in enumerate(rows, start=1))
        assert all(r % least == 0 for r in rows) and rows == sorted(rows)
        assert len(set(rows)) <= math.ceil(math.log2(most / least)) + 1
        assert context.rows_for(1, batch, least) == least


def test_capacity_leaves_room_behind_the_fullest_row(cache):
    packed = context.pack(CONTEXTS, 8, CFG.layout)
    fullest = max(context.extent(c)[0] for c in CONTEXTS)
    for more in (0, 1, 16, 40):
        assert context.capacity(packed, more) >= fullest + more
    assert context.capacity(context.pack([()], 1, CFG.layout)) >= 1
    assert cache.k.shape[:3] == (CFG.llm.layers, 8, context.capacity(packed, 16))


def test_the_window_is_kept():
    slots, position = context.extent(LONG)
    assert (slots, position) == (5 + 8 + 4 + 4 + 7, 5 + 3 + 7)
    context.check_window(LONG, 4, window=slots + 4, max_text=CFG.max_text)
    with pytest.raises(ValueError, match=r"28 tokens \(3 of its items are images.*window is 31"):
        context.check_window(LONG, 4, window=slots + 3, max_text=CFG.max_text)
    many = (Text(np.zeros(CFG.max_text - 10, np.int32)),)
    context.check_window(many, 8, window=10_000, max_text=CFG.max_text)
    with pytest.raises(ValueError, match="position 513 of a text, and the model knows 512"):
        context.check_window(many, 9, window=10_000, max_text=CFG.max_text)


# ------------------------------------------------------------------------------------------ caches


def test_length_and_position_are_the_extent(cache):
    found = list(zip(cache.length.tolist(), cache.position.tolist(), strict=True))
    assert found == [*map(context.extent, CONTEXTS), (0, 0)]


def test_a_context_cut_short_is_a_prefix(cache):
    """In packed order, so what `shortened` gives is exactly the cache of the shorter context."""
    for row, shorter in enumerate(CONTEXTS[1:6], start=1):
        count = context.extent(shorter)[0]
        for a, b in zip(first(cache, row, count), first(cache, 0, count), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    lengths = np.array([context.extent(CONTEXTS[2])] * 8).T
    short = context.shortened(cache, *lengths)
    assert short.k is cache.k and (short.length == lengths[0]).all()
    assert (short.position == lengths[1]).all()


def test_company_order_and_padding_change_nothing(params, cache):
    rng = np.random.default_rng(5)
    longer = (text(rng, 30), picture(rng, 4, 4), latent(rng, 5, 4, noisy=False))
    order = [6, 0, 5, 2]
    packed = context.pack([longer, *(CONTEXTS[i] for i in order)], 6, CFG.layout)
    found = prefill(params, packed, context.capacity(packed))
    assert found.k.shape[2] > cache.k.shape[2]
    for row, i in enumerate(order, start=1):
        count = int(cache.length[i])
        assert (found.length[row], found.position[row]) == (count, cache.position[i])
        for a, b in zip(first(found, row, count), first(cache, i, count), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        assert not found.k[:, row, count:].any() and not found.v[:, row, count:].any()


def test_a_part_of_a_cache_has_the_slots_it_needs(cache):
    short = context.shortened(cache, cache.length * 0 + 4, cache.position * 0 + 2, 4)
    np.testing.assert_array_equal(short.v, cache.v[:, :, :4])
    assert short.length.tolist() == [4] * 8 and short.position.tolist() == [2] * 8
    assert context.shortened(cache, cache.length, cache.position).k.shape == cache.k.shape


def test_slots_are_those_of_the_fullest_context():
    rng = np.random.default_rng(0)
    clean = latent(rng, 20, 16, noisy=False)
    contexts = [(text(rng, 3),), (clean, text(rng, 20))]
    assert context.slots(contexts, context.fine_bucket) == 24 + 320
    assert context.slots(contexts) == 24 + 384
    assert context.slots([(), ()]) == context.slots([]) == 0


def test_fine_buckets_pad_pictures_little():
    sizes = (64 * 64, 64 * 36, 28 * 28, 70 * 70, 256, 257, 10)
    assert [context.fine_bucket(n) for n in sizes] == [4096, 2304, 832, 4992, 256, 320, 16]
    for count in range(257, 20000, 7):
        assert count <= context.fine_bucket(count) <= count + max(63, count / 32)


# ---------------------------------------------------------------------------------------- programs


@pytest.fixture
def traced(monkeypatch):
    """What is compiled, while the model itself is replaced by nearly nothing."""
    traces = []

    def empty(params, batch, *, cfg, slots, dtype):
        zero = jnp.zeros(len(batch.text_ids), jnp.int32)
        return mot.Cache(*[jnp.zeros((1, len(zero), slots, 1, 1))] * 2, zero, zero)

    def decode(params, cache, seeds, temperature, limit, *, max_tokens, **how):
        traces.append("text generator")
        return jnp.full((len(seeds), max_tokens), -1), limit * 0

    def sample(params, caches, grid, sampling, **how):
        traces.append("image sampler")
        return grid.noise

    def pixels(params, cfg, latents, padded=None):
        traces.append("decoder")
        rows, h, w, _ = latents.shape
        return jnp.zeros((rows, h * cfg.downsample, w * cfg.downsample, 3))

    monkeypatch.setattr(context, "prefill", empty)
    monkeypatch.setattr(writing, "decode", decode)
    monkeypatch.setattr(denoising, "sample_latents", sample)
    monkeypatch.setattr(vae, "decode", pixels)
    programs = (writing.generate_text, denoising.generate_latents, image_codec.decode_latents)
    for program in programs:  # those of the real model are not these
        program.clear_cache()
    yield traces
    for program in programs:
        program.clear_cache()


NONE = {"blocks": ()}  # the parameters of the model that stands in


def buckets(most):
    return math.ceil(2 * math.log2(most / 16)) + 1


def some(rng, window):
    """A random context of at most `window` tokens."""
    while True:
        kinds = [text, picture, functools.partial(latent, noisy=False)]
        made = []
        for kind in rng.choice(3, rng.integers(1, 4)):
            size = (rng.integers(0, window),) if kind == 0 else rng.integers(1, 5, 2)
            made.append(kinds[kind](rng, *size))
        if context.extent(tuple(made))[0] <= window:
            return tuple(made)


def test_random_requests_compile_few_programs_and_all_are_noted(traced):
    rng, window, batch = np.random.default_rng(0), 64, 4
    programs = context.Programs()
    rows = math.log2(batch) + 1
    write = writing.TextGenerator(
        NONE,
        CFG,
        types.SimpleNamespace(decode=str),
        batch=batch,
        window=window + 9,
        programs=programs,
    ).generate
    for _ in range(100):
        contexts = [some(rng, window) for _ in range(rng.integers(1, 4))]
        assert len(write(contexts, max_tokens=8)) == len(contexts)
    few = len(programs.seen)
    assert traced == ["text generator"] * few
    assert few <= rows * buckets(window) * (buckets(window) + 1) ** 2 * 3  # 3: latents 0, 1, 2 or 3
    assert few < 60
    write([LONG], max_tokens=8)
    write([LONG], max_tokens=16)  # the same bucket
    before = len(programs.seen)
    write([LONG], max_tokens=17)
    write([LONG], max_tokens=17, stop="first")
    assert len(programs.seen) == before + 2 == len(traced)


@pytest.mark.slow
def test_random_images_compile_few_programs_and_all_are_noted(traced):
    rng, window, batch = np.random.default_rng(1), 24, 2
    programs = context.Programs()
    settings = SampleConfig(
        size=(8, 8), steps=2, shift=1.0, guidance=2.0, image_guidance=2.0, batch=batch
    )
    how = dict(window=window, programs=programs)
    draw = image_sampler.ImageSampler(NONE, {}, CFG, None, settings, **how).sample
    for _ in range(60):
        requests = []
        for _ in range(rng.integers(1, 4)):
            thought = text(rng, 3) if rng.random() < 0.5 else None
            made = image_request.guidance_contexts(some(rng, window - 5), thought=thought)
            size = tuple(4 * rng.integers(1, 4, 2))
            requests.append(
                image_request.ImageRequest(**made, size=size, seed=int(rng.integers(2**32)))
            )
        for request, drawn in zip(requests, draw(requests), strict=True):
            assert drawn.image.shape == (*request.size, 3)
    kinds = [what for what, *_ in programs.seen]
    for what, name in (("image sampler", "image sampler"), ("decoder", "decoder of pictures")):
        assert traced.count(what) == kinds.count(f"the {name}") > 5
    assert kinds.count("the decoder of pictures") <= 2 * 3 * 3
    # One bucket of canvas; image guidance by texts of their own, by the condition, by a part of it.
    contexts = buckets(window) * (buckets(window) + 1) ** 2 * 3
    assert kinds.count("the image sampler") <= min(60, 2 * contexts * (buckets(window) + 2))


class Clock:
    """A timer whose time is over at once, or never comes."""

    def __init__(self, seconds, call, arguments, *, over):
        assert seconds == context.SOON
        self.start = (lambda: call(*arguments)) if over else (lambda: None)
        self.cancel = lambda: None


@pytest.mark.parametrize("over", [True, False])
def test_a_first_call_that_takes_long_is_announced_and_what_was_compiled_is_told(
    monkeypatch, caplog, over
):
    monkeypatch.setattr(context.threading, "Timer", functools.partial(Clock, over=over))
    now = [0.0]
    monkeypatch.setattr(context.time, "monotonic", lambda: now[0])
    programs, sizes = context.Programs(), {"pictures": 4, "latent tokens": 0, "size": (8, 8)}
    with caplog.at_level(python_logging.INFO):
        with programs.first("the encoder", sizes):
            before = caplog.text
            jax.jit(lambda x: x * 1.375)(1.0)
            now[0] += 41.0 if over else 0.25
        assert ("compiling the encoder (pictures 4, size (8, 8)): seconds" in before) == over
        (made,) = programs.compiled
        assert made.said() in caplog.text if over else not caplog.text
        assert (made.what, made.sizes, made.seconds) == ("the encoder", sizes, now[0])
        caplog.clear()
        with programs.first("the encoder", sizes):  # it is compiled
            now[0] += 41.0
        assert caplog.text == "" and len(programs.compiled) == 1


def test_whether_a_program_was_compiled_or_found_in_the_folder_is_known(tmp_path):
    def call(programs):
        with programs.first("a sum", {"numbers": 3}):
            jax.jit(lambda x: x + 1.0625)(np.zeros(3, np.float32))

    first, later, before = context.Programs(), context.Programs(), None
    try:
        before = jax.config.jax_compilation_cache_dir
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        for programs in (first, first, later):
            call(programs)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
    assert [[one.cached for one in programs.compiled] for programs in (first, later)] == [
        [False],
        [True],
    ]
    (made,) = later.compiled
    assert re.fullmatch(r"a sum \(numbers 3\): found in the cache, \d+\.\d s", made.said())
