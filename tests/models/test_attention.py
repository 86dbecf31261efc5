"""The mask rule against one written out by hand, and attention against plain softmax."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rounding
from samples import rule

from srum_jax.data.schema import BRANCH, CAUSAL, FULL, NOISE, Tokens
from srum_jax.models import attention
from srum_jax.models.attention.keys import Keys

COMMON = pathlib.Path(__file__).parents[1] / "goldens" / "common"


def random_tokens(rng, rows, count):
    fields = [rng.integers(0, n, (rows, count), np.int32) for n in (3, 3, 4, 4)]
    return Tokens(*fields, index=np.zeros((rows, count), np.int32))


def test_mask_is_the_law_for_every_pair():
    rng = np.random.default_rng(0)
    queries, keys = random_tokens(rng, 3, 40), random_tokens(rng, 3, 50)
    found = np.asarray(attention.mask(queries, keys))
    assert found.shape == (3, 40, 50) and found.dtype == bool

    np.testing.assert_array_equal(found, rule(queries, keys))
    assert 0.02 < found.mean() < 0.5


def test_mask_is_the_official_one():
    """All cases of the original's mask builder: apart, and packed into one row with padding."""
    cases = json.loads((COMMON / "common.json").read_text())["masks"]
    arrays = np.load(COMMON / "common.npz")
    modes = {"causal": CAUSAL, "full": FULL, "noise": NOISE}
    columns = []
    for segment, case in enumerate(cases, start=1):
        parts = zip(case["split_lens"], case["attn_modes"], strict=True)
        mine = np.array(
            [
                (segment, split, modes[mode], 0)
                for split, (n, mode) in enumerate(parts)
                for _ in range(n)
            ]
        ).T
        mine[3] = np.arange(mine.shape[1])
        columns.append(mine)
        tokens = Tokens(*mine[:, None], index=None)
        np.testing.assert_array_equal(
            attention.mask(tokens, tokens)[0], arrays[f"mask/{segment - 1}"]
        )
    fields = np.pad(np.concatenate(columns, axis=1), ((0, 0), (0, 7)))
    together = Tokens(*fields[:, None], index=None)
    packed = np.asarray(attention.mask(together, together)[0])
    np.testing.assert_array_equal(packed[:75], arrays["mask/packed_all_with_7_pad"][:75])
    assert not packed[75:, :75].any() and packed.diagonal().all()


def test_questions_are_hidden_from_one_another_but_read_the_picture():
    segment, position = np.ones((1, 5), np.int32), np.array([[0, 0, 1, 1, 2]])
    split, mode = np.array([[0, 0, 1, 2, 2]]), np.array([[FULL, FULL, BRANCH, BRANCH, BRANCH]])
    tokens = Tokens(segment, split, mode, position, index=None)
    np.testing.assert_array_equal(
        attention.mask(tokens, tokens)[0].astype(int),
        [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]],
    )


def plain(q, k, v, allowed):
    """Softmax attention with the kv heads repeated and nothing folded."""
    group = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, group, axis=2), jnp.repeat(v, group, axis=2)
    s = jnp.einsum("bshc,bthc->bhst", q, k, precision="highest") / q.shape[-1] ** 0.5
    p = jax.nn.softmax(jnp.where(allowed[:, None], s, -jnp.inf), axis=-1)
    return jnp.einsum("bhst,bthc->bshc", p, v, precision="highest")


def inputs(heads, kv_heads, seed=1):
    rng = np.random.default_rng(seed)
    shapes = ((2, 5, heads, 8), (2, 7, kv_heads, 8), (2, 7, kv_heads, 8))
    q, k, v = (rng.normal(size=s).astype(np.float32) * 2 for s in shapes)
    allowed = rng.random((2, 5, 7)) < 0.5
    allowed[:, :, 3], allowed[:, :, 5] = True, False
    return q, k, v, allowed


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(function, q, k, v, allowed, pull):
    value, back = jax.vjp(lambda *x: function(*x, allowed), q, k, v)
    return value, back(pull.astype(value.dtype))


def scaled(q, k, v, allowed):
    return attention.attend(attention.scaled(q, k.dtype), k, v, allowed)


@pytest.mark.parametrize("heads, kv_heads", [(4, 2), (4, 1), (2, 2)])
def test_attend_is_softmax_attention(heads, kv_heads):
    q, k, v, allowed = inputs(heads, kv_heads)
    pull = np.random.default_rng(2).normal(size=q.shape).astype(np.float32)
    found, gradients = value_and_gradients(scaled, q, k, v, allowed, pull)
    want, expected = value_and_gradients(plain, q, k, v, allowed, pull)
    np.testing.assert_allclose(found, want, atol=1e-5)
    for name, a, b in zip("qkv", gradients, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=name)
    for gradient in gradients[1:]:
        assert np.abs(gradient[:, 5]).max() == 0 < np.abs(gradient[:, 3]).max()


def test_attend_in_bfloat16_errs_no_more_than_the_original():
    q, k, v, allowed = inputs(4, 2)
    pull = np.random.default_rng(2).normal(size=q.shape)
    q, k, v, pull = map(rounding.bf16, (q / 2, k, v, pull))
    half = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    found, gradients = value_and_gradients(attention.attend, *half, allowed, jnp.asarray(pull))
    parts = dict(zip(("o", "dq", "dk", "dv"), (found, *gradients), strict=True))
    assert {x.dtype for x in parts.values()} == {jnp.dtype("bfloat16")}
    rounding.assert_errs_no_more(parts, (q, k, v, allowed, pull), slack=1.02)


def test_a_query_that_sees_nothing_harms_nobody():
    """Padding patches see nothing: finite, and no part of the others' gradients."""
    q, k, v, allowed = inputs(4, 2)
    pull = np.random.default_rng(2).normal(size=q.shape).astype(np.float32)
    blind = allowed.copy()
    blind[0, 2] = False
    pull[0, 2] = 0
    found, gradients = value_and_gradients(attention.attend, q, k, v, blind, pull)
    want, expected = value_and_gradients(attention.attend, q, k, v, allowed, pull)
    assert np.isfinite(found).all()
    keep = np.arange(5) != 2
    np.testing.assert_allclose(found[0][keep], want[0][keep], atol=1e-6)
    for a, b in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_long_rows_are_computed_in_parts(monkeypatch):
    q, k, v, allowed = inputs(4, 2)

    def run():
        def square(q, k, v):
            return jnp.sum(attention.attend(q, k, v, allowed) ** 2)

        return (
            attention.attend(q, k, v, allowed),
            attention.dense.read(q, [Keys(k, v, allowed[:, 0])]),
            *jax.grad(square, (0, 1, 2))(q, k, v),
        )

    whole = run()
    parts = []
    real = jax.lax.map
    monkeypatch.setattr(attention.dense, "_SCORES", 45)
    monkeypatch.setattr(jax.lax, "map", lambda f, xs: parts.append(len(xs[0])) or real(f, xs))
    for a, b in zip(run(), whole, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert len(parts) >= 3 and min(parts) > 1
