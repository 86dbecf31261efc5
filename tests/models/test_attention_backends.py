"""Every back-end against plain softmax on packed rows, forward and backward; intervals; choice."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rounding
from samples import CFG, edit, jit, latent, pack, picture, questions, rule, talk, text, weights
from samples import text_to_image as small

from srum_jax.data import packing
from srum_jax.data.schema import Example, Lanes, Tokens
from srum_jax.models import attention
from srum_jax.models.attention import choice, chunked, cudnn, intervals, splash
from srum_jax.models.bagel import model as bagel

HEADS, KV_HEADS, SIZE = 4, 2, 8


def redraw(seed):
    """A picture, its clean latents, an instruction, and the noisy result at the end."""
    rng = np.random.default_rng(seed)
    clean = latent(rng, 4, 3, noisy=False)
    return Example((picture(rng, 3, 3), clean, text(rng, 9), latent(rng, 6, 7)))


def draw(seed):
    rng = np.random.default_rng(seed)
    return Example((text(rng, int(rng.integers(3, 30))), latent(rng, 8, int(rng.integers(5, 9)))))


def many():
    """Rows of several samples of one interval each, and one that is nearly empty."""
    rows = [[draw(0), redraw(1), talk(2), draw(3), redraw(4)], [talk(5), draw(6)]]
    return pack(rows, spare=3)


def mixed():
    """Every kind of mask: noisy images in mid-sample, branches of questions."""
    return pack([[edit(0), questions(1)], [redraw(2), small(3), edit(4)]], spare=2)


def arrays(batch, seed=0, scale=2.0):
    """(q, k, v, what the output is multiplied with), each a lane's pair."""
    rng = np.random.default_rng(seed)

    def lanes(heads):
        shapes = [(*lane.segment.shape, heads, SIZE) for lane in (batch.und, batch.gen)]
        return tuple(jnp.asarray(rng.normal(size=s) * scale, jnp.float32) for s in shapes)

    return (*(lanes(n) for n in (HEADS, KV_HEADS, KV_HEADS)), lanes(HEADS))


def joined(parts):
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)


@jit
def plain(q, k, v, pull, allowed):
    """(output, gradients) with the kv heads repeated; a query that sees nothing gives 0."""

    def value(q, k, v):
        q, k, v = (joined(x) for x in (q, k, v))
        k, v = (jnp.repeat(x, HEADS // KV_HEADS, axis=2) for x in (k, v))
        s = jnp.einsum("bshc,bthc->bhst", q, k, precision="highest") / SIZE**0.5
        p = jnp.where(allowed[:, None], jnp.exp(s - jnp.max(s, axis=-1, keepdims=True)), 0)
        total = jnp.sum(p, axis=-1, keepdims=True)
        p = p / jnp.where(total > 0, total, 1)
        o = jnp.einsum("bhst,bthc->bshc", p, v, precision="highest")
        return tuple(jnp.split(o, [pull[0].shape[1]], axis=1))

    o, back = jax.vjp(value, q, k, v)
    return o, back(pull)


def found(name, batch, q, k, v, pull):
    """(output, gradients) of a back-end."""

    @jit
    def run(lanes, q, k, v, pull):
        attend = attention.over(lanes, name)

        def scaled(q, k, v):
            return attend([attention.scaled(x, x.dtype) for x in q], k, v)

        o, back = jax.vjp(scaled, q, k, v)
        return o, back(tuple(g.astype(x.dtype) for g, x in zip(pull, o, strict=True)))

    return run((batch.und, batch.gen), q, k, v, pull)


@pytest.fixture
def backends(monkeypatch):
    """As they run without their machines: small chunks, kernels interpreted, plain cuDNN."""
    monkeypatch.setattr(chunked, "_QUERIES", 16)
    monkeypatch.setattr(chunked, "_KEYS", 24)
    monkeypatch.setattr(splash, "_INTERPRET", True)
    monkeypatch.setattr(cudnn, "_IMPLEMENTATION", "xla")


def close(a, b, tolerance=3e-5):
    """Beside it twenty roundings of float32: gradients reach 25, and CPUs add in other orders."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance, rtol=20 * 2**-23)


@pytest.mark.parametrize(
    "name, rows",
    [
        ("dense", mixed),
        ("chunked", mixed),
        ("cudnn", mixed),
        ("dense", many),
        ("chunked", many),
        pytest.param("splash", many, marks=pytest.mark.slow),
    ],
)
def test_a_back_end_is_softmax_attention_under_the_law(backends, name, rows):
    """Forward and backward, grouped keys, padding queries in both lanes, odd lengths."""
    batch = rows()
    given = arrays(batch)
    tokens = joined((batch.und, batch.gen))
    allowed = rule(tokens, tokens) & (tokens.segment > 0)[:, :, None]
    if name == "splash":
        assert tokens.segment.shape[1] > 2 * splash._LANES
    got = found(name, batch, *given)
    close(got, plain(*given, allowed))
    (o, (dq, dk, dv)) = got
    for lane, *parts in ((batch.und, o[0], dq[0], dk[0], dv[0]), (batch.gen, o[1], dq[1], dk[1])):
        padding = lane.segment == 0
        assert padding.any() and all(np.abs(x[padding]).max() == 0 for x in map(np.asarray, parts))
        assert all(np.abs(x[~padding]).max() > 0.1 for x in map(np.asarray, parts))


@pytest.mark.parametrize("name", ["dense", "chunked", "splash", "cudnn"])
def test_packing_changes_nothing(backends, name):
    """A sample's outputs and gradients are those it has alone."""
    batch = many()
    given = arrays(batch)
    together = found(name, batch, *given)
    for row, segment in ((0, 2), (0, 5), (1, 2)):
        slots = [np.flatnonzero(x.segment[row] == segment) for x in (batch.und, batch.gen)]

        def alone(parts, row=row, slots=slots):
            return tuple(
                jax.tree.map(lambda a, at=at: a[row : row + 1, at], x)
                for x, at in zip(parts, slots, strict=True)
            )

        lanes = alone((batch.und, batch.gen))
        sample = types.SimpleNamespace(und=lanes[0], gen=lanes[1])
        o, gradients = together
        want = alone(o), tuple(map(alone, gradients))
        close(found(name, sample, *map(alone, given)), want)


# What stands in for cuDNN rounds the softmax after its division: twice what cuDNN does once.
@pytest.mark.parametrize("name, slack", [("chunked", 1.02), ("splash", 1.02), ("cudnn", 1.3)])
def test_back_ends_in_bfloat16_err_no_more_than_the_original(backends, name, slack):
    batch = many()
    *half, pull = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arrays(batch, scale=1.0))

    @jit
    def run(lanes, q, k, v, pull):
        o, back = jax.vjp(attention.over(lanes, name), q, k, v)
        return o, *back(pull)

    made = run((batch.und, batch.gen), *half, pull)
    assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype("bfloat16")}
    parts = dict(zip(("o", "dq", "dk", "dv"), map(joined, made), strict=True))
    tokens = joined((batch.und, batch.gen))
    allowed = rule(tokens, tokens) & (tokens.segment > 0)[:, :, None]
    q, k, v, pull = (np.asarray(joined(x), np.float64) for x in (*half, pull))
    rounding.assert_errs_no_more(parts, (q, k, v, allowed, pull), slack)


@pytest.mark.parametrize("empty", ["und", "gen"])
def test_a_lane_may_be_empty(backends, empty):
    batch = pack([[talk(0), talk(1)]], spare=2)
    if empty == "und":
        tokens = batch.und
        batch = batch.replace(und=batch.gen, gen=tokens)
    batch = batch.replace(**{empty: jax.tree.map(lambda x: x[:, :0], getattr(batch, empty))})
    given = arrays(batch)
    want = found("dense", batch, *given)
    for name in ("chunked", "splash"):
        close(found(name, batch, *given), want)


def test_a_row_of_padding_alone_is_zero(backends):
    batch = packing.pack([[talk(0)], []], Lanes(40, 8, 0, 10, 1, 0), CFG.layout)
    for name in ("dense", "chunked", "splash", "cudnn"):
        o, gradients = found(name, batch, *arrays(batch))
        for x in jax.tree.leaves((o, gradients)):
            assert np.abs(x[1]).max(initial=0) == 0


@pytest.mark.slow
def test_the_whole_model_is_the_same_through_any_back_end(backends):
    """Loss and gradients of every parameter, the vision tower's too."""
    batch = pack([[redraw(0), talk(1)], [redraw(2)]], spare=1)
    t = np.full(batch.noisy.shape, 0.4, np.float32)

    @functools.partial(jit, static_argnums=0)
    def gradients(cfg, params):
        def loss(params):
            und, gen, _ = bagel.forward(params, cfg, batch, batch.latents, t, remat="none")
            real = (batch.und.segment > 0)[:, :, None], (batch.gen.segment > 0)[:, :, None]
            return jnp.sum((und * real[0]) ** 3) + jnp.sum((gen * real[1]) ** 3)

        return jax.value_and_grad(loss)(params)

    want_loss, want = gradients(CFG, weights())
    loss, got = gradients(dataclasses.replace(CFG, attention="chunked"), weights())
    assert float(loss) == pytest.approx(float(want_loss), rel=1e-5)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(want))
    close(got, want, tolerance=1e-5 * largest)
    assert np.abs(want["vit"]["blocks"]["q"]["w"]).max() > 1e-4 * largest


# ---------------------------------------------------------------------------------- as intervals


EXAMPLES = [edit, questions, small, talk, redraw, draw]


def random_example(seed):
    """Items in any order, from examples of every kind."""
    rng = np.random.default_rng(seed)
    items = [item for make in EXAMPLES for item in make(seed).items]
    chosen = rng.choice(len(items), int(rng.integers(1, 5)), replace=False)
    return Example(tuple(items[i] for i in chosen))


def test_intervals_say_whether_they_say_everything():
    examples = [random_example(seed) for seed in range(80)]
    need = np.max([packing.size(e) for e in examples], axis=0) + 1
    batch = packing.pack([[e] for e in examples], Lanes(*map(int, need)), CFG.layout)
    tokens = joined((batch.und, batch.gen))
    order = jit(intervals.order)(tokens)
    place = np.where(tokens.index < 0, 999, tokens.index)
    np.testing.assert_array_equal(order, np.argsort(place, axis=1, kind="stable"))

    keys = jit(intervals.take)(tokens, order)
    first, end, whole = map(np.asarray, jit(intervals.bounds)(tokens, keys))
    allowed = np.asarray(attention.seen(tokens, keys))
    slot = np.arange(allowed.shape[-1])[None, None]
    inside = (slot >= first[:, :, None]) & (slot < end[:, :, None])
    np.testing.assert_array_equal((inside == allowed).all(axis=2), whole)
    assert 15 < sum(~whole.all(axis=1)) < 65


def test_what_no_interval_says_is_never_guessed(backends):
    """A row with a gap: NaN at the tokens concerned, and at no others."""
    batch = pack([[edit(0), redraw(1)]], spare=1)
    tokens = joined((batch.und, batch.gen))
    o = joined(found("splash", batch, *arrays(batch))[0])
    broken = np.isnan(o).any(axis=(2, 3))
    want = joined(found("dense", batch, *arrays(batch))[0])
    assert 0 < broken.sum() < 10 and np.all(tokens.segment[broken] == 1)
    np.testing.assert_allclose(o[~broken], want[~broken], atol=3e-5)


def test_rows_too_long_for_the_kernel_are_refused():
    tokens = Tokens(*np.zeros((5, 1, splash.LONGEST + 1), np.int32))
    with pytest.raises(ValueError, match="65535 tokens, not 65536"):
        jax.eval_shape(splash.prepare, tokens, tokens)


def test_an_interval_fits_the_kernels_one_number():
    code = jnp.full((1, 1), 5, jnp.int32) | (jnp.full((1, 1), splash.LONGEST, jnp.int32) << 16)
    key = jnp.asarray([[0, 4, 5, 40000, 65534, 65535]], jnp.int32)
    np.testing.assert_array_equal(splash._within(code, key), [[0, 0, 1, 1, 1, 0]])


def test_chunked_meets_only_blocks_that_are_seen(backends):
    """Each pair of blocks with a visible pair of tokens, once; also where masks have gaps. First
    those of which everything is seen: they are met without a mask."""
    entire = 0
    for batch in (many(), mixed()):
        tokens = joined((batch.und, batch.gen))
        queries, keys = jit(chunked.prepare)(tokens, tokens)
        allowed = np.asarray(attention.seen(tokens, tokens))
        (rows, blocks), others = queries.count.shape, keys.segment.shape[1]
        size = blocks * chunked._QUERIES, others * chunked._KEYS
        spare = [(0, whole - n) for whole, n in zip(size, allowed.shape[1:], strict=True)]
        allowed = np.pad(allowed, [(0, 0), *spare])
        pairs = allowed.reshape(rows, blocks, chunked._QUERIES, others, -1)
        met, whole = pairs.any(axis=(2, 4)), pairs.all(axis=(2, 4))
        assert 0.1 < met.mean() < 0.7
        entire += whole.sum()
        for b, i in np.ndindex(rows, blocks):
            first, end = queries.whole[b, i], queries.count[b, i]
            found = np.split(queries.others[b, i], [first, end])
            np.testing.assert_array_equal(found[0], np.flatnonzero(whole[b, i]))
            np.testing.assert_array_equal(found[1], np.flatnonzero(met[b, i] & ~whole[b, i]))
    assert entire > 0


def test_chunked_makes_no_mask_of_a_whole_row():
    """Not in a loop over layers either, out of which compilers move what does not change."""
    tokens = Tokens(*(np.zeros((1, 4096), np.int32) for _ in range(5)))

    @jax.jit
    @jax.grad
    def loss(x):
        attend = attention.over((tokens,), "chunked")

        def layer(x, _):
            return attend((x,), (x,), (x,))[0], None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, length=3)[0])

    x = jax.ShapeDtypeStruct((1, 4096, 2, 8), jnp.float32)
    assert loss.lower(x).compile().memory_analysis().temp_size_in_bytes < 4096**2


def test_blocks_that_nobody_sees_are_not_computed():
    batch = many()
    tokens = joined((batch.und, batch.gen))
    queries, _ = jit(splash.prepare)(tokens, tokens)
    runs = np.asarray(queries.runs)
    assert runs.shape[1:] == (3, 3) and runs.any(axis=2).all()
    assert runs[1].sum() == 3 and 3 < runs[0].sum() < 9  # the second row is nearly empty
    i, j = np.indices(runs.shape[1:])
    for b in range(2):
        np.testing.assert_array_equal(np.asarray(queries.next_keys)[b][runs[b] > 0], j[runs[b] > 0])
        np.testing.assert_array_equal(
            np.asarray(queries.next_queries)[b][runs[b] > 0], i[runs[b] > 0]
        )


# --------------------------------------------------------------------------------------- choice


def test_the_choice_and_its_reason(caplog):
    run = dict(tokens=8192, head_dim=128, dtype="bfloat16")
    for platform, changed, want in (
        ("cpu", dict(tokens=255), "dense"),
        ("cpu", dict(tokens=256), "chunked"),
        ("gpu", dict(tokens=600, dtype="float32"), "dense"),
        ("cpu", {}, "chunked"),
        ("tpu", {}, "splash"),
        ("tpu", dict(gap="candidate 2: item 4 …"), "chunked"),
        ("tpu", dict(tokens=70_000), "chunked"),
        ("gpu", {}, "cudnn"),
        ("gpu", dict(dtype="float32"), "chunked"),
    ):
        caplog.clear()
        choice._say.cache_clear()
        with caplog.at_level("INFO"):
            for _ in range(2):
                assert attention.choose("auto", platform=platform, **run | changed) == want
        (line,) = caplog.messages
        assert line.startswith(f"attention: {want}, ")
        for word in changed.values():
            assert not isinstance(word, str) or word in line


@pytest.mark.parametrize(
    "name, platform, changed, message",
    [
        ("splash", "cpu", {}, "runs on TPUs, and this is a cpu"),
        ("splash", "tpu", dict(gap="candidate 2: item 4"), "one interval. candidate 2: item 4"),
        ("splash", "tpu", dict(tokens=70_000), "at most 65535 tokens"),
        ("cudnn", "tpu", {}, "runs on NVIDIA GPUs"),
        ("cudnn", "gpu", dict(dtype="float32"), "compute.dtype is float32"),
        ("cudnn", "gpu", dict(head_dim=100), "these have 100"),
    ],
)
def test_what_cannot_run_is_refused_by_name(name, platform, changed, message):
    run = {**dict(tokens=8192, head_dim=128, dtype="bfloat16"), **changed}
    with pytest.raises(ValueError, match=message):
        attention.choose(name, platform=platform, **run)


def test_an_unknown_back_end_is_refused():
    batch = pack([[talk(0)]])
    with pytest.raises(ValueError, match="'flash' is not known: one of dense, chunked"):
        attention.over((batch.und, batch.gen), "flash")


def test_the_kernel_for_gpus_refuses_float32():
    batch = pack([[talk(0)]])
    with pytest.raises(ValueError, match="bfloat16 or float16, not float32"):
        jax.eval_shape(attention.over((batch.und, batch.gen), "cudnn"), *arrays(batch)[:3])


# ------------------------------------------------------------- programs for machines not at hand


def lowered(name, platform, dtype=jnp.bfloat16):
    """The program text of a back-end's forward and backward pass for a platform."""
    batch = pack([[draw(0)], [redraw(1)]], spare=1)
    *qkv, _ = jax.tree.map(lambda x: jnp.repeat(x, 16, axis=3).astype(dtype), arrays(batch))

    def loss(q, k, v):
        o = attention.over((batch.und, batch.gen), name)(q, k, v)
        return sum(jnp.sum(x.astype(jnp.float32)) for x in o)

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*qkv)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_splash_lowers_for_tpus():
    text = lowered("splash", "tpu")
    assert text.count("tpu_custom_call") >= 3  # forward, and backward for queries and for keys


def test_cudnn_lowers_for_gpus(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as fused

    there = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr(fused, "cuda_versions", there)
    text = lowered("cudnn", "cuda")
    assert "__cudnn$fmha" in text and "Backward" in text
