"""bfloat16 where pictures are read and made: our errors are not above the original's.

Its order of rounding is written out in NumPy from its code, as in `test_bf16.py`:
`modeling/bagel/siglip_navit.py`, the embeddings of `modeling/bagel/bagel.py` and
`modeling/autoencoder.py` of BAGEL 056b5fd as its `inferencer.py` runs them. The tower's weights are
bfloat16, the autoencoder's float32, both under autocast: products and convolutions take factors of
bfloat16, sum in float32 and round once, with their bias; norms, and the autoencoder's swish, are
float32 to the next product; sums of two paths round.
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

from srum_jax.models.bagel import hf, vae, vit
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.model_config import BagelConfig

# ------------------------------------------------------------------------- the tower of the ViT

ROWS, PICTURES, LAYERS = 8, (20, 28), 26  # patches of a row's pictures; layers that BAGEL runs


def normed(x, p, eps, r: Round):
    """LayerNorm."""
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + eps)
    return r(x * p["scale"] + p["bias"])


def gelu(x, r: Round):
    return r(x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


def table(ids, side, dim):
    """Sines and cosines of columns, then of rows, [S,dim]."""
    frequency = 10000 ** (-np.arange(dim // 4) / (dim // 4))
    angles = [place[:, None] * frequency for place in (ids % side, ids // side)]
    return np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=-1)


def tower(params, cfg, patches, ids, image, r: Round, also: Round):
    """A row's (features [S,Dv], tokens of the language model [S,D]); `also` rounds what the
    original rounds too, and ours does not."""
    p, eps = params["vit"], cfg.vit.eps
    x = r(linear(patches, p["patch"], also) + p["positions"][ids])
    for i in range(cfg.vit.layers):
        layer = jax.tree.map(lambda a, i=i: a[i], p["blocks"])
        y = normed(x, layer["ln1"], eps, r)
        q, k, v = (linear(y, layer[n], r).reshape(len(x), cfg.vit.heads, -1) for n in "qkv")
        o = attended(q / np.sqrt(q.shape[-1]), k, v, image[:, None] == image, r)
        out = {"w": layer["o"]["w"].reshape(-1, x.shape[-1]), "b": layer["o"]["b"]}
        x = r(x + linear(o.reshape(len(x), -1), out, also))
        y = gelu(linear(normed(x, layer["ln2"], eps, r), layer["fc1"], also), r)
        x = r(x + linear(y, layer["fc2"], also))
    x, p = normed(x, p["post_norm"], eps, r), params["connector"]
    y = linear(gelu(linear(x, p["fc1"], also), r), p["fc2"], also)
    return x, r(y + also(table(ids, cfg.max_vit, cfg.llm.hidden)))


@dataclasses.dataclass(frozen=True)
class Tower:
    """A case's, of bfloat16 weights and its layers again and again, and two pictures a row."""

    cfg: BagelConfig
    params: dict
    patches: np.ndarray
    ids: np.ndarray
    image: np.ndarray

    def in_numpy(self, r, also):
        rows = zip(self.patches, self.ids, self.image, strict=True)
        found = [tower(self.params, self.cfg, *row, r, also) for row in rows]
        return [np.array(part) for part in zip(*found, strict=True)]

    def ours(self, dtype):
        where = self.ids, self.image

        @jit
        def run(params, x):
            read = bagel.embed_pictures(params, self.cfg, x, *where, dtype=dtype, remat="none")
            return vit.encode(params["vit"], self.cfg.vit, x, *where), read

        found = run(*jax.tree.map(lambda x: jnp.asarray(x, dtype), (self.params, self.patches)))
        assert {part.dtype for part in found} == {jnp.dtype(dtype)}
        return [np.asarray(part, np.float64) for part in found]


def deep(case, layers):
    cfg = dataclasses.replace(case.cfg, vit=dataclasses.replace(case.cfg.vit, layers=layers))
    params = jax.tree.map(bf16, {name: case.params[0][name] for name in ("vit", "connector")})
    again = np.arange(layers) % case.cfg.vit.layers
    params["vit"]["blocks"] = jax.tree.map(lambda x: x[again], params["vit"]["blocks"])
    rng = np.random.default_rng(0)
    image = np.tile(np.repeat(np.arange(2, dtype=np.int32), PICTURES), (ROWS, 1))
    ids = rng.integers(0, cfg.vit.positions**2, image.shape, dtype=np.int32)
    patches = bf16(rng.uniform(-1, 1, (*image.shape, 3 * cfg.vit.patch**2)))
    return Tower(cfg, params, patches, ids, image)


@pytest.fixture(scope="module")
def case():
    return next(c for c in golden_cases.found()[0] if c.folder.name == "caseA")


def test_the_tower_errs_no_more_than_the_original(case):
    whole = deep(case, LAYERS)
    wanted = whole.in_numpy(exact, exact)
    for found, same in zip(whole.ours(jnp.float32), wanted, strict=True):
        np.testing.assert_allclose(found, same, rtol=0, atol=2e-6 * np.abs(same).max())
    ours, released = whole.ours(jnp.bfloat16), whole.in_numpy(bf16, bf16)
    for found, theirs, same in zip(ours, released, wanted, strict=True):
        assert error(found, same) <= error(theirs, same)


def test_a_layer_of_the_tower_rounds_where_it_must_and_nowhere_else(case):
    """Nearly all of its numbers are those of its order of rounding in NumPy; a few sums lie so near
    the middle of two that float32's error decides. Any rounding more changes an eighth at least."""
    one = deep(case, 1)
    ours, wanted = one.ours(jnp.bfloat16), one.in_numpy(bf16, exact)
    shares = [float(np.mean(found != same)) for found, same in zip(ours, wanted, strict=True)]
    assert max(shares) < 0.02, shares


# ------------------------------------------------------------------------- what is drawn from


def released_cells(params, cfg, t, x_t, ids, r: Round):
    """(embedded times [S,D], latent tokens [S,D])."""
    frequency = 10000 ** (-np.arange(128) / 128)
    angle = np.float64(t)[:, None] * frequency
    h = linear(r(np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)), params["time"]["fc1"], r)
    time = linear(r(h / (1 + np.exp(-h))), params["time"]["fc2"], r)
    place = r(table(ids, cfg.max_latent, cfg.llm.hidden))
    return time, r(r(linear(r(x_t), params["vae2llm"], r) + time) + place)


def test_latent_tokens_and_times_err_less_than_the_original(case):
    cfg, rng, count = case.cfg, np.random.default_rng(0), 400
    params = jax.tree.map(bf16, {name: case.params[0][name] for name in ("time", "vae2llm")})
    t = rng.uniform(size=count).astype(np.float32)
    x_t = rng.normal(size=(count, cfg.token_dim)).astype(np.float32)
    ids = rng.integers(0, cfg.max_latent**2, count, dtype=np.int32)

    @functools.partial(jit, static_argnames="dtype")
    def ours(params, *, dtype):
        time = bagel.embed_time(params, t[None], dtype)
        cells = bagel.embed_cells(cfg, ids[None], dtype)
        return time, bagel.embed_latents(params, x_t[None], time, cells)

    def run(dtype):
        found = ours(jax.tree.map(lambda x: jnp.asarray(x, dtype), params), dtype=dtype)
        assert {part.dtype for part in found} == {jnp.dtype(dtype)}
        return [np.asarray(part[0], np.float64) for part in found]

    wanted = released_cells(params, cfg, t, x_t, ids, exact)
    for found, same in zip(run(jnp.float32), wanted, strict=True):
        np.testing.assert_allclose(found, same, rtol=0, atol=3e-6 * np.abs(same).max())
    released = released_cells(params, cfg, t, x_t, ids, bf16)
    for found, theirs, same in zip(run(jnp.bfloat16), released, wanted, strict=True):
        assert error(found, same) < 0.8 * error(theirs, same)


# ---------------------------------------------------------------------------- the autoencoder

BLOCKS = 2  # a level of BAGEL's, and one more where it decodes


def convolved(p, x, r: Round, stride=1, padding=None):
    """x [H,W,I], padded by nothing or on all sides by half the kernel."""
    kernel = r(np.float64(p["w"]))
    size = len(kernel)
    x = np.pad(r(x), padding or [(size // 2, size // 2)] * 2 + [(0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(0, 1))
    windows = windows[::stride, ::stride]
    return r(np.einsum("hwiyx,yxio->hwo", windows, kernel) + r(np.float64(p["b"])))


def active(p, x):
    """GroupNorm of 32 groups, and swish."""
    x = grouped(p, x)
    return x / (1 + np.exp(-x))


def grouped(p, x):
    groups = x.reshape(*x.shape[:2], 32, -1)
    groups = groups - groups.mean(axis=(0, 1, 3), keepdims=True)
    groups = groups / np.sqrt(np.square(groups).mean(axis=(0, 1, 3), keepdims=True) + 1e-6)
    return groups.reshape(x.shape) * p["scale"] + p["bias"]


def residual(p, x, r: Round):
    y = convolved(p["conv1"], active(p["norm1"], x), r)
    return r(x + convolved(p["conv2"], active(p["norm2"], y), r))


def middle(p, x, r: Round):
    x, attn = residual(p["block_1"], x, r), p["attn_1"]
    y = grouped(attn["norm"], x)
    q, k, v = (convolved(attn[n], y, r).reshape(-1, 1, x.shape[-1]) for n in "qkv")
    o = attended(q / np.sqrt(x.shape[-1]), k, v, True, r).reshape(x.shape)
    return residual(p["block_2"], r(x + convolved(attn["proj_out"], o, r)), r)


def released_encoder(p, x, r: Round):
    """A picture [H,W,3] -> mean and log-variance [H/8,W/8,2·Z]."""
    x = convolved(p["conv_in"], x, r)
    for i in range(len(p["down"])):
        level = p["down"][str(i)]
        for j in range(len(level["block"])):
            x = residual(level["block"][str(j)], x, r)
        if "downsample" in level:
            below = [(0, 1), (0, 1), (0, 0)]
            x = convolved(level["downsample"]["conv"], x, r, stride=2, padding=below)
    return convolved(p["conv_out"], active(p["norm_out"], middle(p["mid"], x, r)), r)


def released_decoder(p, x, r: Round):
    """Unscaled latents [h,w,Z] -> a picture [8·h,8·w,3]."""
    x = middle(p["mid"], convolved(p["conv_in"], x, r), r)
    for i in reversed(range(len(p["up"]))):
        level = p["up"][str(i)]
        for j in range(len(level["block"])):
            x = residual(level["block"][str(j)], x, r)
        if "upsample" in level:
            x = convolved(level["upsample"]["conv"], x.repeat(2, axis=0).repeat(2, axis=1), r)
    return convolved(p["conv_out"], active(p["norm_out"], x), r)


def deeper(levels, count):
    """Levels with their only block `count` times."""
    blocks = {n: {str(i): level["block"]["0"] for i in range(count)} for n, level in levels.items()}
    return {n: level | {"block": blocks[n]} for n, level in levels.items()}


def test_the_autoencoder_stays_float32_where_the_original_rounds(case):
    """A model opened in bfloat16 encodes and decodes at float32's error, far below bfloat16's."""
    params = hf.load(case.folder, case.cfg, dtype=jnp.bfloat16)[1]
    params["encoder"]["down"] = deeper(params["encoder"]["down"], BLOCKS)
    params["decoder"]["up"] = deeper(params["decoder"]["up"], BLOCKS + 1)
    rng, c = np.random.default_rng(0), case.cfg.vae
    pictures = rng.uniform(-1, 1, (2, 48, 64, 3)).astype(np.float32)
    latents = rng.normal(size=(2, 6, 8, c.z)).astype(np.float32)

    def released(r):
        moments = [released_encoder(params["encoder"], np.float64(x), r) for x in pictures]
        unscaled = np.float64(latents) / c.scale + c.shift
        drawn = [released_decoder(params["decoder"], x, r) for x in unscaled]
        return np.array(moments), np.array(drawn)

    moments = jnp.concatenate(jit(vae.encode_moments, static_argnums=1)(params, c, pictures), -1)
    found = moments, jit(vae.decode, static_argnums=1)(params, c, latents)
    for ours, theirs, same in zip(found, released(bf16), released(exact), strict=True):
        assert ours.dtype == jnp.float32
        assert error(ours, same) <= 1e-3 * error(theirs, same)
