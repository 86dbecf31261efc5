"""bfloat16: the error of our forward is not above that of the original's order of rounding.

That order is written out in NumPy from the original's code: `modeling/bagel/bagel.py`,
`modeling/bagel/qwen2_navit.py` and `modeling/qwen2/modeling_qwen2.py` of BAGEL 056b5fd as its
`inferencer.py` runs them, weights in bfloat16 under autocast. There every product sums in float32
and is rounded once, with its bias; flash attention rounds as `rounding.py` says; every other
operation rounds as its operands' dtype says.
"""

import dataclasses
import functools

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import Round, attended, bf16, error, exact, linear
from samples import jit

from srum_jax.data.schema import CAUSAL, FULL, Tokens
from srum_jax.models import int8, layers
from srum_jax.models.attention import dense
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import mot
from srum_jax.models.bagel.model_config import BagelConfig

# ---------------------------------------------------------------- the original's order of rounding


def normed(x, gain, eps, r: Round):
    """Qwen2RMSNorm: rounded before its gain and after it."""
    return r(gain * r(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)))


def turned(x, position, theta, r: Round, angles: Round):
    """apply_rotary_pos_emb of x [S,H,C] at position [S]; `angles` rounds cos and sin."""
    half = x.shape[-1] // 2
    angle = position[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = (angles(f(np.concatenate([angle, angle], -1)))[:, None] for f in (np.cos, np.sin))
    rotated = np.concatenate([-x[..., half:], x[..., :half]], -1)
    return r(r(x * cos) + r(rotated * sin))


@dataclasses.dataclass(frozen=True)
class Released:
    """The original's stack: `r` rounds to bfloat16; `exact` in its place gives the reference."""

    params: dict
    cfg: BagelConfig
    r: Round

    def linear(self, x, p):
        return linear(x, p, self.r)

    def heads(self, x, p, gain, position, drawing):
        """Queries or keys [S,H,C]: rounded once where a picture is drawn, five times elsewhere."""
        llm, each = self.cfg.llm, exact if drawing else self.r
        x = self.linear(x, p).reshape(len(x), -1, llm.head_dim)
        x = normed(x, gain["scale"], llm.rms_eps, each)
        return self.r(turned(x, position, llm.rope_theta, each, self.r))

    def project(self, p, x, position, drawing):
        y = normed(x, p["ln1"]["scale"], self.cfg.llm.rms_eps, self.r)
        q, k = (self.heads(y, p[n], p[f"{n}_norm"], position, drawing) for n in "qk")
        return q, k, self.linear(y, p["v"]).reshape(k.shape)

    def finish(self, p, x, o):
        r = self.r
        flat = {"w": p["o"]["w"].reshape(-1, x.shape[-1])}
        x = r(x + self.linear(o.reshape(len(o), -1), flat))
        y = normed(x, p["ln2"]["scale"], self.cfg.llm.rms_eps, r)
        gate = self.linear(y, p["gate"])
        gate = r(r(gate / (1 + np.exp(-gate))) * self.linear(y, p["up"]))
        return r(x + self.linear(gate, p["down"]))

    def stack(self, lanes, position, past=None):
        """Lanes {expert: [S,D]} at positions [S] behind nothing, as a text, or as a picture behind
        `past`, every layer's (keys, values); returns (lanes after the norms, every layer's own)."""
        drawing, kept = past is not None, []
        ends = np.cumsum([len(x) for x in lanes.values()])
        allowed = True if drawing else np.tri(ends[-1], dtype=bool)
        for i in range(self.cfg.llm.layers):
            layer = jax.tree.map(lambda a, i=i: a[i], self.params["blocks"])
            made = [self.project(layer[e], x, position[e], drawing) for e, x in lanes.items()]
            q, k, v = (np.concatenate(part) for part in zip(*made, strict=True))
            kept.append((k, v))
            if drawing:
                k, v = (np.concatenate(pair) for pair in zip(past[i], (k, v), strict=True))
            q = q / np.sqrt(q.shape[-1])  # of the scores, which are float32
            parts = np.split(attended(q, k, v, allowed, self.r), ends[:-1])
            lanes = {
                e: self.finish(layer[e], x, o)
                for (e, x), o in zip(lanes.items(), parts, strict=True)
            }
        norms, eps = self.params["norm"], self.cfg.llm.rms_eps
        return {e: normed(x, norms[e]["scale"], eps, self.r) for e, x in lanes.items()}, kept


# ------------------------------------------------------------------------------- part after part


def test_queries_and_keys_are_rounded_once():
    """Norm, RoPE and the scale of scores, of heads as wide as BAGEL's, from the same numbers."""
    rng, wide, count = np.random.default_rng(0), 128, 96
    x = bf16(rng.normal(size=(2, count, 4, wide)))  # of queries, of keys
    gain, position = bf16(1 + 0.3 * rng.normal(size=wide)), np.arange(count)

    def released(norm, angles):
        return [turned(normed(one, gain, 1e-6, norm), position, 1e6, norm, angles) for one in x]

    @jit
    def ours(x):
        cos, sin = layers.rope_angles(jnp.asarray(position)[None], wide, 1e6)
        x = layers.rms_norm(x, {"scale": jnp.asarray(gain, jnp.bfloat16)}, 1e-6, jnp.float32)
        x = layers.rope(x, cos, sin)
        return dense.scaled(x[:1], jnp.bfloat16)[0], x[1].astype(jnp.bfloat16)

    def scores(q, k):
        return np.einsum("shc,thc->hst", q, k)

    q, k = (np.asarray(one, np.float64) for one in ours(jnp.asarray(x, jnp.bfloat16)))
    wanted = released(exact, exact)
    wanted[0] = wanted[0] / np.sqrt(wide)
    drawn, read = [bf16(one) for one in released(exact, bf16)], released(bf16, bf16)
    for other in (drawn, read):
        other[0] = other[0] / np.sqrt(wide)  # flash attention scales the scores, in float32
    for i, found in enumerate((q, k)):
        assert error(found, wanted[i]) <= error(drawn[i], wanted[i]) < error(read[i], wanted[i])
        assert error(found, wanted[i]) <= 1.001 * error(bf16(wanted[i]), wanted[i])
    least = error(scores(*drawn), scores(*wanted))
    assert error(scores(q, k), scores(*wanted)) <= least < error(scores(*read), scores(*wanted))


@pytest.fixture(scope="module")
def case():
    return next(c for c in golden_cases.found()[0] if c.folder.name == "caseA")


def sure(logits, spread):
    """P of a word against another [..., 100], of 100 pairs of words, logits grown by `spread`."""
    first, second = np.split(np.asarray(logits, np.float64)[..., :200] * spread, 2, axis=-1)
    return 1 / (1 + np.exp(second - first))


@pytest.mark.parametrize("as_int8", [False, True])
def test_what_is_read_from_the_hidden_states_is_never_rounded(case, as_int8):
    """Logits, an answer's probability and velocities are the float32 sums of their products."""
    rng = np.random.default_rng(0)
    x = bf16(rng.normal(size=(1, 40, case.cfg.llm.hidden)))
    heads = {name: case.params[0][name] for name in ("lm_head", "llm2vae")}
    weights = {name: {k: bf16(v) for k, v in p.items()} for name, p in heads.items()}
    given = jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), weights)
    if as_int8:
        spec = bagel.specs(case.cfg)["lm_head"]["w"]
        head = int8.quantize_leaf("lm_head/w", spec, given["lm_head"]["w"])
        given["lm_head"] = {path.split("/")[1]: leaf for path, leaf in head.items()}
        values, scale = (np.asarray(leaf, np.float64) for leaf in head.values())
        weights["lm_head"] = {"w": values * scale}

    @jit
    def read(params, x):
        slots = jnp.arange(x.shape[1])[None]
        return bagel.logits(params, x, slots), bagel.velocity(params, x)

    logits, velocity = read(given, jnp.asarray(x, jnp.bfloat16))
    assert logits.dtype == velocity.dtype == jnp.float32
    wanted = x @ weights["lm_head"]["w"]
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    spread = 8 / wanted.std()
    found, rounded, same = (sure(x, spread) for x in (logits, bf16(wanted), wanted))
    assert np.abs(found - same).mean() < 0.01 * np.abs(rounded - same).mean()
    wanted = x @ weights["llm2vae"]["w"] + weights["llm2vae"]["b"]
    np.testing.assert_allclose(velocity, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_product_with_int8_weights_is_rounded_once():
    """After its scale and its bias; adapters beside it are added in float32."""
    rng = np.random.default_rng(0)
    x, bias = bf16(rng.normal(size=(40, 64))), bf16(rng.normal(size=96))
    a, b = bf16(0.1 * rng.normal(size=(64, 4))), bf16(rng.normal(size=(4, 96)))
    values, scale = rng.integers(-127, 128, (64, 96)), np.float32(rng.uniform(1e-3, 2e-3, 96))
    half = functools.partial(jnp.asarray, dtype=jnp.bfloat16)
    p = {"w": jnp.asarray(values, jnp.int8), "scale": jnp.asarray(scale), "b": half(bias)}
    wanted = x @ (values * np.float64(scale)) + bias
    for more, least in ({}, 0), ({"lora": {"a": half(a), "b": half(b)}}, bf16(x @ a) @ b):
        found = jit(layers.linear)(half(x), p | more)
        once = error(bf16(wanted + least), wanted + least)
        assert found.dtype == jnp.bfloat16 and error(found, wanted + least) <= 1.02 * once


# ----------------------------------------------------------------------------------- all of them

ROWS, TEXT, CELLS, LAYERS = 3, 12, 12, 28


def tokens(first, count, mode):
    """`count` tokens of every row from place `first`: a text, or a picture at one position."""
    place = np.tile(first + np.arange(count, dtype=np.int32), (ROWS, 1))
    split = np.full_like(place, int(mode == FULL))
    position = place if mode == CAUSAL else np.full_like(place, TEXT)
    return Tokens(np.ones_like(place), split, np.full_like(place, mode), position, place)


def released(params, cfg, und, gen, r: Round):
    """(keys [B,L,S,K,C], logits of the text [B,TEXT,V], velocities [B,CELLS,·], twice) by
    `Released`."""
    model, found = Released(params, cfg, r), []
    at = {"und": np.full(2, TEXT), "gen": np.full(CELLS, TEXT)}
    for row_und, row_gen in zip(und, gen, strict=True):
        read, past = model.stack({"und": row_und[:TEXT]}, {"und": np.arange(TEXT)})
        drawn, own = model.stack({"und": row_und[TEXT:], "gen": row_gen}, at, past)
        logits = model.linear(read["und"], params["lm_head"])
        keys = [np.concatenate([a, b]) for (a, _), (b, _) in zip(past, own, strict=True)]
        velocity = model.linear(drawn["gen"], params["llm2vae"])
        found.append((np.array(keys), logits, velocity, velocity))
    return [np.array(part) for part in zip(*found, strict=True)]


@functools.partial(jit, static_argnames="llm")
def ours(params, und, gen, *, llm):
    """The same by our code, in the dtype of its inputs; the second velocities behind a cache of the
    text, as a picture is drawn."""
    text, marks = tokens(0, TEXT, CAUSAL), tokens(TEXT, 2, FULL)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), text, marks)
    cells = tokens(TEXT + 2, CELLS, FULL)
    run = functools.partial(mot.stack, params, llm, remat="none")
    read, drawn, (k, v) = run(und, gen, both, cells, keep="kv")
    length = jnp.full(ROWS, TEXT)
    cache = mot.Cache(k[:, :, :TEXT], v[:, :, :TEXT], length, length)
    _, behind = mot.stack_behind(params, llm, und[:, TEXT:], gen, [cache])
    slots = jnp.tile(jnp.arange(TEXT), (ROWS, 1))
    velocities = bagel.velocity(params, drawn), bagel.velocity(params, behind)
    return jnp.swapaxes(k, 0, 1), bagel.logits(params, read, slots), *velocities


def test_the_whole_stack_errs_no_more_than_the_original(case):
    """A text is read and a picture drawn behind it, on the goldens' layers, again and again."""
    llm, rng = dataclasses.replace(case.cfg.llm, layers=LAYERS), np.random.default_rng(0)
    cfg = dataclasses.replace(case.cfg, llm=llm)
    names = ("blocks", "norm", "lm_head", "llm2vae")
    params = jax.tree.map(bf16, {name: case.params[0][name] for name in names})
    again = np.arange(LAYERS) % case.cfg.llm.layers
    params["blocks"] = jax.tree.map(lambda x: x[again], params["blocks"])
    und = bf16(rng.normal(size=(ROWS, TEXT + 2, llm.hidden)))  # with the marks of the picture
    gen = bf16(rng.normal(size=(ROWS, CELLS, llm.hidden)))

    def run(dtype):
        given = jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, und, gen))
        return [np.asarray(part, np.float64) for part in ours(*given, llm=llm)]

    wanted = released(params, cfg, und, gen, exact)
    for found, same in zip(run(jnp.float32), wanted, strict=True):
        np.testing.assert_allclose(found, same, rtol=0, atol=1e-5 * np.abs(same).max())

    spread = 8 / wanted[1].std()

    def parts(keys, logits, velocities, behind):
        return {
            "keys of the text": keys[:, :, :TEXT],
            "keys of the picture": keys[:, :, TEXT:],
            "an answer's P": sure(logits, spread),
            "velocities": velocities,
            "velocities behind a cache": behind,
        }

    theirs, wanted = parts(*released(params, cfg, und, gen, bf16)), parts(*wanted)
    for name, found in parts(*run(jnp.bfloat16)).items():
        most = error(theirs[name], wanted[name])
        assert error(found, wanted[name]) <= most, (name, error(found, wanted[name]), most)
