"""The sampler: equal to the training forward step by step, whatever shares its batch."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from drawing_requests import REQUESTS
from samples import CFG, jit, latent, picture, text, weights

from srum_jax import flow
from srum_jax.config import SampleConfig
from srum_jax.core import preemption
from srum_jax.core.errors import BadInput, Preempted
from srum_jax.data import packing
from srum_jax.data.schema import Example, Lanes, Latent, Text
from srum_jax.data.tokenizer import Tokenizer
from srum_jax.generation import context, denoising, image_codec, image_request, image_sampler
from srum_jax.generation.guidance import Guidance, GuidanceCaches, SamplingParams, guided_runs
from srum_jax.generation.image_codec import ImageDecoder
from srum_jax.generation.image_sampler import ImageSampler
from srum_jax.models.bagel import model as bagel
from srum_jax.worlds.shapes import examples

SETTINGS = SampleConfig(size=(16, 16), steps=3, shift=3.0, guidance=2.5, batch=4)
WINDOW = 64


DRAWN = ("draw", "longer", "thought", "nothing")  # no images to read
EDITED = ("edit", "two", "thought edit", "only seen")


@pytest.fixture(scope="module")
def model():
    """(model, autoencoder); velocities large enough for guidance to matter."""
    params = weights()
    params["llm2vae"]["w"] *= 3
    return params, tiny.weights()[1]


@pytest.fixture(scope="module")
def sampler(model):
    """Rows are a multiple of 4 unless told otherwise."""

    @functools.cache
    def make(settings, min_rows=4):
        how = dict(window=WINDOW, min_rows=min_rows)
        return ImageSampler(*model, CFG, None, settings, **how)

    return make


def changed(**values):
    """SETTINGS with other values."""
    return dataclasses.replace(SETTINGS, **values)


# --------------------------------------------------------------- the same by the training forward


@jit
def forward(params, batch, t):
    _, gen, _ = bagel.forward(params, CFG, batch, batch.latents, t, remat="none")
    return bagel.velocity(params, gen)


ROWS = 12
LANES = Lanes(und=64, gen=24, vit=16, labels=0, images=3, regions=0)


def velocities(params, contexts, xs, t):
    """v_theta of x [h,w,·] after each context, each an ordinary training sample."""
    rows = [[Example((*c, Latent(x, (1, 1))))] for c, x in zip(contexts, xs, strict=True)]
    rows += [[]] * (ROWS - len(rows))
    batch = packing.pack(rows, LANES, CFG.layout)
    v = np.asarray(forward(params, batch, np.where(batch.noisy, t, 0).astype(np.float32)))
    found = []
    for row, x in zip(range(ROWS), xs, strict=False):
        tokens = np.flatnonzero(
            (batch.gen.segment[row] > 0) & batch.noisy[row][batch.latent_images[row]]
        )
        found.append(v[row, tokens].reshape(x.shape))
    return found


def guided(settings, v, v_text, v_image, norms):
    """Guidance and renorm, written out; `norms` are the lengths renorm compares, (|v|, |u|)."""
    u = v_text + settings.guidance * (v - v_text)
    if settings.renorm == "text_channel":
        size = np.linalg.norm(v, axis=-1, keepdims=True), np.linalg.norm(u, axis=-1, keepdims=True)
        u = u * np.clip(size[0] / size[1], settings.renorm_min, 1)
    u = v_image + settings.image_guidance * (u - v_image)
    if settings.renorm in ("global", "batch"):
        norms.append((np.linalg.norm(v), np.linalg.norm(u)))
    return u


def reference(params, settings, asked):
    """Latents of requests that share one call, by the training forward and Euler steps."""
    shapes_ = [(r.size[0] // 4, r.size[1] // 4, CFG.token_dim) for r in asked]
    xs = [
        np.asarray(jax.random.normal(jax.random.key(r.seed), (s[0] * s[1], s[2]))).reshape(s)
        for r, s in zip(asked, shapes_, strict=True)
    ]
    contexts = [
        *(r.context for r in asked),
        *(r.context[: r.plain] for r in asked),
        *(r.texts for r in asked),
    ]
    times = flow.sampling_times(settings.steps, settings.shift)
    low, high = settings.guidance_interval
    for t, after in zip(times[:-1], times[1:], strict=True):
        found = velocities(params, contexts, xs * 3, t)
        branches = [found[i :: len(asked)] for i in range(len(asked))]
        moves, norms = [found[i] for i in range(len(asked))], []
        if low < t <= high:
            moves = [guided(settings, *branch, norms) for branch in branches]
        if settings.renorm == "batch" and norms:
            whole = np.sqrt(np.square(norms).sum(axis=0))
            norms = [whole] * len(norms)
        for i, (v, u) in enumerate(norms):
            moves[i] = moves[i] * np.clip(v / u, settings.renorm_min, 1)
        xs = [x - v * (t - after) for x, v in zip(xs, moves, strict=True)]
    return xs


def check(found, want, atol=3e-5):
    for i, (drawn, x) in enumerate(zip(found, want, strict=True)):
        np.testing.assert_allclose(drawn.latent, x, atol=atol, err_msg=str(i))


def pick(names):
    return [REQUESTS[name] for name in names]


@pytest.mark.parametrize(
    "settings, names",
    [
        (changed(guidance=1.0), DRAWN),
        (SETTINGS, DRAWN),
        (changed(renorm="global", guidance_interval=(0.8, 1.0)), DRAWN),
        pytest.param(
            changed(renorm="global", renorm_min=0.9, guidance_interval=(0.3, 0.9)),
            EDITED,
            marks=pytest.mark.slow,
        ),
        (changed(image_guidance=1.8, renorm="text_channel"), EDITED),
        pytest.param(
            changed(image_guidance=1.8, guidance=1.0, renorm="global"),
            EDITED,
            marks=pytest.mark.slow,
        ),
        (changed(image_guidance=1.8, renorm="text_channel"), ("draw", "longer")),
        (changed(image_guidance=1.8, renorm="text_channel"), ("thought", "nothing")),
    ],
    ids=["plain", "text", "late", "edit", "edit-image", "image-alone", "condition", "part"],
)
def test_an_image_is_the_training_forwards(model, sampler, settings, names):
    """Every guidance branch is a sample of its own there, every step a forward pass."""
    asked = pick(names)
    want = reference(model[0], settings, asked)
    check(sampler(settings).sample(asked), want)
    if Guidance.of(settings).text or Guidance.of(settings).image:
        plain = reference(model[0], changed(guidance=1.0), asked)
        for name, a, b in zip(names, want, plain, strict=True):
            # What read no text has nothing to be guided by.
            assert np.abs(a - b).max() > 1e-2 or name in ("nothing", "only seen"), name


def test_batch_renorm_is_joint_over_real_tokens(model, sampler):
    """As the original; padding tokens and the empty fourth row count for nothing."""
    settings, asked = changed(renorm="batch"), pick(("draw", "thought", "longer"))
    want = reference(model[0], settings, asked)
    check(sampler(settings).sample(asked), want)
    alone = reference(model[0], settings, asked[:1])
    assert np.abs(alone[0] - want[0]).max() > 1e-3


def test_image_guidance_without_text_guidance_is_a_choice():
    alone = changed(guidance=1.0, image_guidance=2.0)
    assert Guidance.of(alone) == Guidance(False, True, ((True, 0, 3),), "none")
    assert Guidance.of(alone, True) == Guidance(False, False, ((False, 0, 3),), "none")
    for official in (False, True):
        found = Guidance.of(changed(image_guidance=2.0), official)
        assert found == Guidance(True, True, ((True, 0, 3),), "none")
    assert Guidance.of(changed(renorm="global"), True).renorm == "batch"


def test_each_step_can_be_traced(model):
    """A trace holds x before each step, every branch's velocity and the guided one, a run each."""
    packed = context.pack([REQUESTS["draw"].context], 1, CFG.layout)
    settings = changed(guidance_interval=(0.0, 0.9))
    blank = denoising.empty_grid([(2, 3)], 1, CFG.layout)
    noise = np.random.default_rng(0).normal(size=blank.noise.shape).astype(np.float32)
    guidance = Guidance.of(settings)

    @jit
    def run(params):
        cond = context.prefill(
            params, packed, cfg=CFG, slots=context.capacity(packed), dtype=jnp.float32
        )
        empty = context.shortened(cond, *jnp.zeros((2, 1), jnp.int32))
        how = dict(cfg=CFG, guidance=guidance, dtype=jnp.float32, trace=True)
        given = blank.replace(noise=noise)
        caches = GuidanceCaches(cond, empty)
        return denoising.sample_latents(params, caches, given, SamplingParams.of(settings), **how)

    last, traces = run(model[0])
    assert [t[1].shape[:2] for t in traces] == [(1, 1), (2, 2)]  # steps, branches
    x, u = (np.concatenate([t[i] for t in traces]) for i in (0, 2))
    np.testing.assert_array_equal(x[0], noise)
    times = flow.sampling_times(3, 3.0)
    for i, after in enumerate((*x[1:], last)):
        np.testing.assert_allclose(after, x[i] - u[i] * (times[i] - times[i + 1]), atol=1e-6)
    v, v_text = traces[1][1][:, 0], traces[1][1][:, 1]
    np.testing.assert_allclose(traces[1][2], v_text + 2.5 * (v - v_text), atol=1e-5)


# ------------------------------------------------------------------------------ company and padding


@pytest.mark.parametrize(
    "names", [DRAWN, pytest.param(EDITED, marks=pytest.mark.slow)], ids=["draw", "edit"]
)
def test_alone_in_other_order_and_in_other_batches_the_same(sampler, names):
    """Images of several sizes share a call; alone, nothing is padded as it was there."""
    guided = changed(image_guidance=1.8, renorm="text_channel")
    settings = SETTINGS if names is DRAWN else guided
    asked = pick(names)
    together = sampler(settings).sample(asked)
    for drawn, request in zip(together, asked, strict=True):
        assert drawn.image.shape == (*request.size, 3) and drawn.image.dtype == np.uint8
        assert drawn.latent.shape == (request.size[0] // 4, request.size[1] // 4, CFG.token_dim)
    check(sampler(settings).sample(asked[::-1]), [d.latent for d in together[::-1]], atol=1e-5)
    check(sampler(settings, min_rows=1).sample(asked[1:2]), [together[1].latent], atol=1e-5)


def test_kinds_are_kept_apart_and_results_in_order(sampler):
    """Requests with and without images to read need different programs."""
    draw = sampler(changed(image_guidance=1.8, renorm="text_channel")).sample
    names = ["edit", "longer", "two", "thought edit", "draw", "only seen"]
    found = dict(zip(names, draw(pick(names)), strict=True))
    assert {n: found[n].image.shape[:2] for n in names} == {n: REQUESTS[n].size for n in names}
    for kind in (EDITED, ("draw", "longer")):
        check([found[n] for n in kind], [d.latent for d in draw(pick(kind))], atol=1e-5)
    assert draw([]) == []


def test_the_seed_the_context_and_the_size_all_matter(sampler):
    one = REQUESTS["draw"]
    asked = [
        one,
        dataclasses.replace(one, seed=9),
        dataclasses.replace(one, context=REQUESTS["longer"].context),
        dataclasses.replace(one, size=(12, 8)),
    ]
    found = [d.latent for d in sampler(SETTINGS).sample(asked)]
    assert np.abs(found[1] - found[0]).max() > 0.1
    assert np.abs(found[2] - found[0]).max() > 1e-3
    assert np.abs(found[3].reshape(found[0].shape) - found[0]).max() > 1e-3
    same = [d.latent for d in sampler(SETTINGS).sample([one] * 4)]
    for again in same:
        np.testing.assert_allclose(again, found[0], atol=1e-5)


def test_requests_that_do_not_fit_are_refused(sampler):
    one = REQUESTS["draw"]
    for size, message in {
        (8, 10): "an image of 8x10: sides must be multiples of 4",
        (0, 8): "multiples of 4",
        (36, 8): "36x8 pixels is 9x2 latent tokens; the model has positions for 8 a side (32 ",
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            sampler(SETTINGS).sample([one, dataclasses.replace(one, size=size)])
    long = (Text(np.full(WINDOW - 1, 7, np.int32)),)
    with pytest.raises(ValueError, match="takes 65 tokens.*window is 64"):
        sampler(SETTINGS).sample([one, dataclasses.replace(one, context=long)])


# ------------------------------------------------------------------------------- plans of a request


def test_guided_runs_group_like_steps():
    times = np.array([1.0, 0.8, 0.5, 0.2, 0.0], np.float32)
    assert guided_runs(times, (0.0, 1.0)) == ((True, 0, 4),)
    assert guided_runs(times, (0.0, 1.0), False) == ((False, 0, 4),)
    assert guided_runs(times, (0.0, 0.0)) == ((False, 0, 4),)
    assert guided_runs(times, (0.3, 0.9)) == (
        (False, 0, 1),
        (True, 1, 3),
        (False, 3, 4),
    )
    assert guided_runs(times, (0.5, 0.8)) == (
        (False, 0, 1),
        (True, 1, 2),
        (False, 2, 4),
    )


def test_what_each_guidance_compares_with():
    """The contexts that the original's inferencer reads, by hand."""
    rng = np.random.default_rng(1)
    a, b, system, thought = (text(rng, 2) for _ in range(4))
    see, clean = picture(rng, 1, 1), latent(rng, 1, 1, noisy=False)

    def of(*items, **how):
        made = image_request.guidance_contexts(items, **how)
        return made["context"], made["context"][: made["plain"]], made["texts"]

    assert of(a) == ((a,), (), (a,))
    assert of(clean, see, a) == ((clean, see, a), (clean, see), (a,))
    assert of(see, a, b) == ((see, a, b), (see, a), (a, b))
    assert of(a, see) == ((a, see), (a, see), (a,))
    assert of(see) == ((see,), (see,), ())
    assert of(clean, a, system=system, thought=thought) == (
        (system, clean, a, thought),
        (system, clean),
        (system, a),
    )
    assert of(a, see, thought=thought) == ((a, see, thought), (a, see), (a,))


def test_a_canvas_marks_what_is_real():
    made = denoising.empty_grid([(2, 3), (5, 4)], 3, CFG.layout)
    assert made.noise.shape == (3, 24, CFG.token_dim) and not made.noise.any()
    assert made.valid.sum(axis=1).tolist() == [6, 20, 0]
    assert made.positions[0, :6].tolist() == [0, 1, 2, 8, 9, 10]


def test_seeds_are_their_own():
    seeds = {
        image_sampler.candidate_seed(s, p, k) for s in range(3) for p in range(40) for k in range(4)
    }
    assert len(seeds) == 480 and all(0 <= s < 2**32 for s in seeds)
    assert image_sampler.candidate_seed(1, 12, 3) != image_sampler.candidate_seed(11, 2, 3)


# ------------------------------------------------------------------------------------ for a trainer

PROMPTS = [
    "a red circle",
    "a red circle , a blue square and a green cross",
    "two blue squares",
    "a red circle above a blue square",
    "a green cross",
    "three red triangles",
]
SEEDS = [image_sampler.candidate_seed(0, i, 0) for i in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def prompted(model, tmp_path_factory):
    """`sample_prompts` of a sampler with these settings."""
    words = examples.write_tokenizer(tmp_path_factory.mktemp("words")).parent
    tokenizer = Tokenizer.from_folder(words)

    def make(settings):
        how = dict(window=CFG.max_text, min_rows=settings.batch)
        return ImageSampler(*model, CFG, tokenizer, settings, **how).sample_prompts

    return make


def test_prompts_are_worked_through_in_any_number(prompted):
    sample = prompted(SETTINGS)
    images, latents = sample(PROMPTS, SEEDS)
    assert images.shape == (6, 16, 16, 3) and images.dtype == np.uint8
    assert latents.shape == (6, 4, 4, CFG.token_dim) and latents.dtype == np.float32
    assert len({x.tobytes() for x in images}) == 6
    order = [5, 1, 0]
    again, kept = sample([PROMPTS[i] for i in order], [SEEDS[i] for i in order])
    np.testing.assert_allclose(kept, latents[order], atol=1e-5)
    assert np.abs(again.astype(int) - images[order]).max() <= 1
    same, _ = sample(PROMPTS, SEEDS)
    np.testing.assert_array_equal(same, images)


def test_prompts_and_sizes_that_do_not_fit_are_refused(prompted):
    with pytest.raises(ValueError, match="multiples of 4"):
        prompted(changed(size=(16, 18)))(PROMPTS, SEEDS)
    with pytest.raises(ValueError, match="9x4 latent tokens.*positions for 8 a side"):
        prompted(changed(size=(36, 16)))(PROMPTS, SEEDS)
    with pytest.raises(ValueError, match="'orange'"):
        prompted(SETTINGS)(["a orange circle"], [0])
    with pytest.raises(ValueError, match="602 tokens.*window is 512"):
        prompted(SETTINGS)(["a " * 600], [0])


def test_settings_and_weights_of_a_call_stand_in_for_the_samplers(model, prompted):
    sampler = prompted(SETTINGS).__self__
    asked = pick(("draw", "longer"))
    other = changed(guidance=1.5, steps=2)
    own = dataclasses.replace(sampler, settings=other).sample(asked)
    bare = dataclasses.replace(sampler, params=None)
    for found in (
        sampler.sample(asked, settings=other),
        bare.sample(asked, settings=other, params=model[0]),
    ):
        for a, b in zip(found, own, strict=True):
            np.testing.assert_array_equal(a.latent, b.latent)


def test_samplers_of_one_model_share_their_programs(prompted):
    """A program is compiled once a process, whoever asks for it and with whatever scale."""
    sampler = prompted(changed(guidance=2.125)).__self__
    sampler.sample(pick(("draw",)))
    before = denoising.generate_latents._cache_size()
    other = dataclasses.replace(sampler, settings=changed(guidance=3.5), params=weights(seed=1))
    other.sample(pick(("draw",)))
    assert denoising.generate_latents._cache_size() == before


def test_traces_name_the_parts_of_the_model(model):
    """What profilers show: the scopes of a lowered program."""
    request, guidance = REQUESTS["edit"], Guidance.of(SETTINGS)
    grid, packed = (
        denoising.empty_grid([(2, 2)], 1, CFG.layout),
        context.pack([request.context], 1, CFG.layout),
    )
    how = dict(cfg=CFG, guidance=guidance, image_by_cond=False, dtype=np.dtype("float32"))
    lengths, seeds = np.zeros((2, 2, 1), np.int32), np.zeros(1, np.uint32)
    given = (packed, lengths, None, seeds, grid, SamplingParams.of(SETTINGS))
    drawn = denoising.generate_latents.lower(model[0], *given, **how)
    tokens = np.zeros((1, 2, 2, CFG.token_dim), np.float32)
    decoded = image_codec.decode_latents.lower(model[1], tokens, cfg=CFG)
    text = drawn.as_text(debug_info=True)
    for part in ("embed_text", "vit", "guided_step", "attention", "mlp", "velocity"):
        assert re.search(rf"[/\"]{part}/", text), part
    assert "vae_decode/" in decoded.as_text(debug_info=True)


def test_told_to_stop_it_draws_no_further_batch(sampler, monkeypatch):
    told, drawn = functools.partial(next, iter([False, True])), []
    nothing = jnp.zeros((4, 16, CFG.token_dim))
    monkeypatch.setattr(ImageSampler, "_call", lambda *_: drawn.append(1) or nothing)
    with preemption.agreeing(told), pytest.raises(Preempted):
        sampler(changed(batch=1)).sample([REQUESTS["draw"], REQUESTS["draw"]])
    assert len(drawn) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_give_no_picture(model, sampler, value):
    params, coder = model
    request = REQUESTS["draw"]
    broken = params | {"llm2vae": params["llm2vae"] | {"b": params["llm2vae"]["b"] * value}}
    with pytest.raises(BadInput, match="for an image are NaN or infinite"):
        sampler(SETTINGS).sample([request], params=broken)
    latents = np.zeros((2, 3, CFG.token_dim), np.float32)
    latents[1, 1, 0] = value
    with pytest.raises(BadInput, match="for an image are NaN or infinite"):
        ImageDecoder(coder, CFG).decode([latents])
