"""The stack: who influences whom by gradients, scan and remat, the cache, the experts' lanes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import CFG, jit, rule, weights

from srum_jax.data.schema import BRANCH, CAUSAL, FULL, NOISE, Tokens
from srum_jax.models.bagel import mot

U, G = 10, 8


@pytest.fixture(scope="module")
def params():
    return {k: v for k, v in weights().items() if k in ("blocks", "norm")}


def stack(params, und, gen, und_tokens, gen_tokens, *, keep="none", remat="full"):
    return mot.stack(params, CFG.llm, und, gen, und_tokens, gen_tokens, keep=keep, remat=remat)


run = jit(stack, static_argnames=("keep", "remat"))


def embeddings(seed, rows=2, u=U, g=G):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(rows, n, CFG.llm.hidden)).astype(np.float32) for n in (u, g))


def lanes(seed, rows=2, segments=2, modes=(CAUSAL, NOISE, BRANCH, FULL, CAUSAL)):
    """Tokens of both lanes in random order; a split has one mode, wherever its tokens lie."""
    rng = np.random.default_rng(seed)

    def lane(count):
        segment = rng.integers(1, segments + 1, (rows, count), np.int32)
        split = rng.integers(0, len(modes), (rows, count), np.int32)
        mode = np.array(modes, np.int32)[(split + segment - 1) % len(modes)]
        position = 2 * split + rng.integers(0, 6, (rows, count), np.int32)
        return Tokens(segment, split, mode, position.astype(np.int32), index=np.zeros_like(split))

    return lane(U), lane(G)


def both(a, b):
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), a, b)


def at(tree, slots):
    return jax.tree.map(lambda x: x[:, slots], tree)


def test_outputs_depend_on_exactly_what_the_mask_allows(params):
    """Through two layers: the rule is transitive, so depth opens no way around it."""
    tokens = lanes(0)
    probe = np.random.default_rng(5).normal(size=CFG.llm.hidden).astype(np.float32)

    @jit
    def influence(und, gen):
        def hidden(und, gen):
            u, g, _ = stack(params, und, gen, *tokens)
            return jnp.concatenate([u, g], axis=1) @ probe

        _, back = jax.vjp(hidden, und, gen)

        def moved(query):
            by = jnp.concatenate(back(jnp.broadcast_to(query, (2, U + G))), axis=1)
            return jnp.any(by != 0, axis=-1)

        # One query after the other: jaxlib 0.10 gets such gradients wrong under vmap on CPU.
        return jax.lax.map(moved, jnp.eye(U + G)[:, None])

    found = np.asarray(influence(*embeddings(1))).transpose(1, 0, 2)
    tokens = both(*tokens)
    np.testing.assert_array_equal(found, rule(tokens, tokens))
    assert 0.1 < found.mean() < 0.6


def test_order_of_tokens_within_a_lane_means_nothing(params):
    (und, gen), (und_tokens, gen_tokens) = embeddings(1), lanes(0)
    u, g, _ = run(params, und, gen, und_tokens, gen_tokens)
    rng = np.random.default_rng(3)
    a, b = rng.permutation(U), rng.permutation(G)
    moved = run(params, und[:, a], gen[:, b], at(und_tokens, a), at(gen_tokens, b))
    np.testing.assert_allclose(moved[0], u[:, a], atol=1e-5)
    np.testing.assert_allclose(moved[1], g[:, b], atol=1e-5)


@pytest.mark.slow
def test_scan_with_remat_equals_the_unrolled_stack(params):
    lane, tokens = embeddings(1), lanes(0)
    pull = embeddings(2)

    @functools.partial(jit, static_argnums=1)
    def gradients(params, remat):
        def loss(params, lane):
            found = stack(params, *lane, *tokens, remat=remat)
            return sum(jnp.vdot(a, b) for a, b in zip(found[:2], pull, strict=True)), found[:2]

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, lane)

    kept = gradients(params, "none")
    for remat in ("full", "dots"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            gradients(params, remat),
            kept,
        )
    with pytest.raises(KeyError, match="some"):
        gradients(params, "some")


def test_every_layer_can_be_kept(params):
    lane, tokens = embeddings(1), lanes(0)
    u, g, (every_u, every_g) = run(params, *lane, *tokens, keep="hidden")
    assert every_u.shape == (2, 2, U, 16) and every_g.shape == (2, 2, G, 16)
    assert run(params, *lane, *tokens)[2] is None
    for last, out, name in ((every_u[-1], u, "und"), (every_g[-1], g, "gen")):
        size = np.sqrt(np.square(last).mean(-1, keepdims=True) + CFG.llm.rms_eps)
        scale = params["norm"][name]["scale"][None, None]
        np.testing.assert_allclose(out, last / size * scale, atol=1e-5)


def test_each_expert_computes_its_own_lane_only(params):
    """The other lane's outputs owe an expert nothing unless they see its tokens."""
    lane, (und_tokens, gen_tokens) = embeddings(1), lanes(0)
    apart = gen_tokens.replace(segment=gen_tokens.segment * 0 + 7)

    def changes(expert, gen_tokens):
        """How far the other weights of one expert move each lane."""
        blocks = params["blocks"] | {expert: weights(seed=1)["blocks"][expert]}
        both = (
            run(p, *lane, und_tokens, gen_tokens)[:2] for p in (params, params | {"blocks": blocks})
        )
        return [float(np.abs(a - b).max()) for a, b in zip(*both, strict=True)]

    und, gen = changes("gen", apart)
    assert und == 0 and gen > 0.1
    und, gen = changes("und", apart)
    assert und > 0.1 and gen == 0
    assert min(changes("gen", gen_tokens)) > 0.01 and min(changes("und", gen_tokens)) > 0.01


def test_a_lane_may_be_empty(params):
    (und, gen), (und_tokens, gen_tokens) = embeddings(1), lanes(0)
    none = at(gen_tokens, slice(0))
    u, g, _ = run(params, und, gen[:, :0], und_tokens, none)
    assert g.shape == (2, 0, 16)
    apart = gen_tokens.replace(segment=gen_tokens.segment * 0 + 7)
    np.testing.assert_allclose(u, run(params, und, gen, und_tokens, apart)[0], atol=1e-5)


READ = np.array([2, 5, 0])  # tokens that rows have read; caches of 5 slots, the second is full


def texts(read):
    """The first `read` tokens of a text a row, the others padding: (embeddings [3,6,D], tokens)."""
    x = embeddings(6, rows=3, u=6)[0]
    place = np.tile(np.arange(6, dtype=np.int32), (3, 1))
    real = (place < np.asarray(read)[:, None]).astype(np.int32)
    return x, Tokens(real, 0 * place, 0 * place + CAUSAL, place, place)


def cache(params, rubbish=0.0):
    """Of texts, with `rubbish` in slots that are free."""
    x, tokens = texts(READ)
    _, _, kv = run(params, x, x[:, :0], tokens, at(tokens, slice(0)), keep="kv")
    free = np.arange(5)[None, :, None, None] >= READ[:, None, None, None]
    k, v = (jnp.where(free, rubbish, x[:, :, :5]) for x in kv)
    return mot.Cache(k, v, jnp.array(READ), jnp.array(READ))


def test_a_token_is_read_as_the_stack_reads_it(params):
    """Behind its row's cache, the next token of the text; a full row neither keeps nor sees it."""
    x, tokens = texts(READ + 1)
    want, _, (k, v) = run(params, x, x[:, :0], tokens, at(tokens, slice(0)), keep="kv")
    step = jit(functools.partial(mot.next_token, cfg=CFG.llm))
    new = x[np.arange(3), READ][:, None]
    read = mot.WritingCache.of(cache(params))
    found, grown = step(params, x=new, cache=read)
    for row in (0, 2):
        np.testing.assert_allclose(found[row, 0], want[row, READ[row]], atol=1e-5)
    assert grown.length.tolist() == [3, 5, 1] and grown.position.tolist() == [3, 5, 1]
    for now, old, given in ((grown.k, read.k, k), (grown.v, read.v, v)):
        for layer, kept in enumerate(now):
            np.testing.assert_array_equal(kept[1], old[layer][1])
            for row in (0, 2):
                known = given[layer, row, : READ[row] + 1].swapaxes(0, 1)
                np.testing.assert_allclose(kept[row, :, : READ[row] + 1], known, atol=1e-5)


def test_a_token_of_stacked_layers_is_read_alike(params):
    """The same numbers where layers are scanned behind a stacked cache, token after token."""
    step = jit(functools.partial(mot.next_token, cfg=CFG.llm))
    new, read = texts(READ)[0][:, :1], cache(params)
    apart, stacked = mot.WritingCache.of(read), mot.WritingCache.of(read, stacked=True)
    for _ in range(2):  # the second row is full
        want, apart = step(params, x=new, cache=apart)
        found, stacked = step(params, x=new, cache=stacked)
        np.testing.assert_allclose(found, want, atol=1e-6)
        for one, other in zip(
            jax.tree.leaves(stacked),
            (np.stack(apart.k), np.stack(apart.v), apart.length, apart.position),
            strict=True,
        ):
            np.testing.assert_allclose(one, other, atol=1e-6)


def behind(params, read):
    """A picture of 3 real cells of 4 with its marks, behind a cache: (marks, cells)."""
    marks, cells = embeddings(7, rows=3, u=2, g=4)
    real = jnp.tile(jnp.arange(4) < 3, (3, 1))
    draw = jit(functools.partial(mot.stack_behind, cfg=CFG.llm))
    return draw(params, und=marks, gen=cells, caches=[read], valid=real)


def test_behind_a_cache_equals_one_pass(params):
    """Rows of different length: a text, then what all sees each other at the position after it."""
    (x, text), (marks, cells) = texts(READ), embeddings(7, rows=3, u=2, g=4)

    def after(count, real):
        ones = np.ones((3, count), np.int32)
        return Tokens(ones * real, ones, ones * NOISE, ones * READ[:, None].astype(np.int32), ones)

    und, tokens = np.concatenate([x, marks], axis=1), both(text, after(2, 1))
    want = run(params, und, cells, tokens, after(4, np.arange(4) < 3))
    found = behind(params, cache(params))
    np.testing.assert_allclose(found[0], want[0][:, 6:], atol=1e-5)
    np.testing.assert_allclose(found[1][:, :3], want[1][:, :3], atol=1e-5)


def test_free_slots_change_nothing(params):
    clean, filled = (behind(params, cache(params, rubbish)) for rubbish in (0.0, 1e4))
    np.testing.assert_array_equal(filled[0], clean[0])
    np.testing.assert_array_equal(filled[1][:, :3], clean[1][:, :3])


def test_layers_apart_are_the_same_stack(params):
    lane, tokens = embeddings(1), lanes(0)
    apart = mot.unstacked(params, CFG.llm)
    assert len(apart["blocks"]) == CFG.llm.layers
    assert mot.unstacked(apart, CFG.llm) is apart
    many = dataclasses.replace(CFG.llm, layers=mot._UNROLLED + 1)
    assert mot.unstacked(params, many) is params
    for keep in ("none", "kv", "hidden"):
        whole, found = (run(p, *lane, *tokens, keep=keep) for p in (params, apart))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, whole)
