"""Attention of new tokens that see each other behind caches, against plain softmax under a mask."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rounding
from samples import jit

from srum_jax.core import sharding
from srum_jax.models import attention
from srum_jax.models.attention import chunked, cudnn, splash
from srum_jax.models.attention.behind import Past

ROWS, NEW, HEADS, KV_HEADS, SIZE = 2, 150, 4, 2, 8
SLOTS = (140, 0, 12)  # of the branches' caches
NAMES = ("dense", "chunked", "splash", "cudnn")


@pytest.fixture
def backends(monkeypatch):
    """As they run without their machines: small chunks, kernels interpreted, plain cuDNN."""
    monkeypatch.setattr(chunked, "_QUERIES", 40)
    monkeypatch.setattr(chunked, "_KEYS", 48)
    monkeypatch.setattr(splash, "_INTERPRET", True)
    monkeypatch.setattr(cudnn, "_IMPLEMENTATION", "xla")


def given(dtype=np.float32, padded=True):
    """(q, k, v, real, pasts): rows b·n + i; one cache is full in a row, one empty in another."""
    rng = np.random.default_rng(0)

    def draw(rows, count, heads):
        return jnp.asarray(rng.normal(size=(rows, count, heads, SIZE)) * 1.5, dtype)

    rows = ROWS * len(SLOTS)
    q, k, v = (draw(rows, NEW, heads) for heads in (HEADS, KV_HEADS, KV_HEADS))
    q = attention.scaled(q, dtype)
    real = np.arange(NEW)[None] < np.repeat([NEW, NEW - 17], len(SLOTS))[:, None]
    lengths = [(SLOTS[0], 5), (0, 0), (SLOTS[2], 0)]
    pasts = [
        Past(draw(ROWS, n, KV_HEADS), draw(ROWS, n, KV_HEADS), np.array(length, np.int32))
        for n, length in zip(SLOTS, lengths, strict=True)
    ]
    return q, k, v, real if padded else None, pasts


def plain(q, k, v, real, pasts):
    """Row by row, with a dense mask and the kv heads repeated; float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    found = np.zeros(q.shape)
    for row in range(len(q)):
        past, b = pasts[row % len(pasts)], row // len(pasts)
        keys, values = (
            np.concatenate([np.asarray(old[b], np.float64), new[row]])
            for old, new in ((past.k, k), (past.v, v))
        )
        own = np.ones(NEW, bool) if real is None else real[row]
        allowed = np.concatenate([np.arange(past.k.shape[1]) < past.length[b], own])
        mask = np.broadcast_to(allowed, (NEW, len(allowed)))
        for head in range(HEADS):
            of = head // (HEADS // KV_HEADS)
            s = np.where(mask, q[row, :, head] @ keys[:, of].T, -np.inf)
            p = np.exp(s - s.max(axis=-1, keepdims=True))
            found[row, :, head] = p / p.sum(axis=-1, keepdims=True) @ values[:, of]
    return found


def found(name, q, k, v, real, pasts):
    return np.asarray(jit(functools.partial(attention.behind, name=name))(q, k, v, real, pasts))


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_new_tokens_read_what_is_real_and_their_own_branchs_past(backends, name, padded):
    args = given(padded=padded)
    got, want = found(name, *args), plain(*args)
    real = np.ones(got.shape[:2], bool) if args[3] is None else args[3]
    np.testing.assert_allclose(got[real], want[real], atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_in_bfloat16_it_stays_as_close_as_one_rounding_allows(backends, name):
    args = given(jnp.bfloat16)
    got, real = found(name, *args), args[3]
    assert got.dtype == jnp.bfloat16
    want = plain(*args)[real]
    error = np.linalg.norm(got[real].astype(np.float64) - want) / np.linalg.norm(want)
    assert 1e-4 < error < 0.01, error


def test_dense_in_bfloat16_errs_no_more_than_the_original():
    args = given(jnp.bfloat16)
    got, (q, k, v, real, pasts) = found("dense", *args), args
    theirs, wanted = [], []
    for row in range(len(q)):
        b, past = row // len(pasts), pasts[row % len(pasts)]
        used = int(past.length[b])
        keys, values = (
            np.concatenate([old[b, :used], new[row][real[row]]]).astype(np.float64)
            for old, new in ((past.k, k), (past.v, v))
        )
        query = np.asarray(q[row], np.float64)
        for made, r in ((theirs, rounding.bf16), (wanted, rounding.exact)):
            made.append(rounding.attended(query, keys, values, True, r))
    most = rounding.error(np.array(theirs)[real], np.array(wanted)[real])
    assert 0 < rounding.error(got[real], np.array(wanted)[real]) <= 1.02 * most


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_real_is_never_read(backends, name):
    q, k, v, real, pasts = given()
    want = found(name, q, k, v, real, pasts)
    hidden = ~real[:, :, None, None]
    k, v = (np.where(hidden, np.float32(1e4), x) for x in (k, v))

    def spoiled(past):
        free = np.arange(past.k.shape[1])[None] >= past.length[:, None]
        k, v = (np.where(free[:, :, None, None], np.float32(1e4), x) for x in (past.k, past.v))
        return Past(k, v, past.length)

    got = found(name, q, k, v, real, [spoiled(past) for past in pasts])
    np.testing.assert_array_equal(got[real], want[real])


@pytest.mark.parametrize("name", NAMES)
def test_devices_have_their_rows_and_heads(backends, name):
    """On a mesh the same, whatever divides: rows over 2 devices, heads over 2."""
    sizes = types.SimpleNamespace(data=1, fsdp=2, tensor=2, context=1)
    args = given()
    want, real = found(name, *args), args[3]
    with jax.set_mesh(sharding.make_mesh(sizes, jax.devices()[:4])):
        got = found(name, *args)
    np.testing.assert_allclose(got[real], want[real], atol=1e-6)


def test_blocks_of_the_kernel_pad_little():
    assert [splash._fitting(n) for n in (4098, 9128, 4096, 128, 150)] == [384, 512, 512, 128, 256]


# ------------------------------------------------------------- programs for machines not at hand


def lowered(name, platform, tokens=2048, past=512):
    """The program text of attention in each of two layers, of BAGEL's heads."""

    def shape(rows, count, heads):
        return jax.ShapeDtypeStruct((rows, count, heads, 128), jnp.bfloat16)

    def layers(q, k, v, real, pasts):
        def layer(x, _):
            return attention.behind(x, k, v, real, pasts, name), None

        return jax.lax.scan(layer, q, length=2)[0]

    cache, length = shape(1, past, 4), jax.ShapeDtypeStruct((1,), jnp.int32)
    real = jax.ShapeDtypeStruct((2, tokens), jnp.bool)
    own = shape(2, tokens, 28), shape(2, tokens, 4), shape(2, tokens, 4)
    pasts = [Past(cache, cache, length), Past(shape(1, 0, 4), shape(1, 0, 4), length)]
    traced = jax.jit(layers).trace(*own, real, pasts)
    return traced.lower(lowering_platforms=(platform,))


def pairs(text, tokens=2048):
    """Arrays of a program with two axes of so many tokens and more: scores or a mask."""
    shapes = re.findall(r"(?:tensor<|\[)((?:\d+[x,])+\d+)", text)
    axes = ([int(n) for n in re.split("[x,]", shape)] for shape in set(shapes))
    return [a for a in axes if sum(n >= tokens for n in a) > 1]


def test_no_back_end_holds_scores_or_a_mask_of_a_row(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as fused

    there = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr(fused, "cuda_versions", there)
    text = lowered("cudnn", "cuda").as_text()
    assert "__cudnn$fmhaSoftmax" in text and not pairs(text)
    text = lowered("splash", "tpu").as_text()
    assert "tpu_custom_call" in text and not pairs(text)
    text = lowered("chunked", "cpu").compile().as_text()
    assert not pairs(text)
    assert pairs(lowered("dense", "cpu").as_text())  # so they are found where there are any


@pytest.mark.parametrize("dtype, most", [(np.float32, 1e-6), (jnp.bfloat16, 1e-2)])
def test_a_token_beside_its_cache_is_read_as_in_it(dtype, most):
    """Behind a cache, an empty one, and a full one, whose row neither keeps nor sees it."""
    rng, length = np.random.default_rng(1), jnp.array([5, 0, 7])

    def draw(*shape):
        return jnp.asarray(rng.normal(size=(3, *shape, SIZE)), dtype)

    q, key, value = draw(HEADS), draw(KV_HEADS), draw(KV_HEADS)
    k, v = draw(KV_HEADS, 7), draw(KV_HEADS, 7)
    found = attention.attend_new(q, key, value, k, v, length, length < 7)
    row = jnp.arange(3)
    k, v = (x.at[row, :, length].set(y, mode="drop") for x, y in ((k, key), (v, value)))
    want = attention.attend_one(q, k, v, jnp.minimum(length + 1, 7))
    assert found.dtype == want.dtype == dtype
    np.testing.assert_allclose(found.astype(np.float32), want.astype(np.float32), atol=most)
