"""The image encoder of Segment Anything: an image -> its embeddings.

A ViT whose layers attend within windows of patches, with a few global ones between, all with
relative positions decomposed into rows and columns, and a neck of two convolutions
(facebookresearch/segment-anything, `modeling/image_encoder.py`).
"""

import functools
import math

import jax
import jax.numpy as jnp
from einops import rearrange

from srum_jax.core.param_tree import Params, ParamSpec, Specs, norm
from srum_jax.core.param_tree import linear as linear_specs
from srum_jax.models.layers import layer_norm, linear
from srum_jax.rewards.boxes.sam.sizes import ACTIVATIONS, VisionConfig

EPS = 1e-6  # of the norms whose epsilon is no option
_SCORES = 2**27  # that attention holds at once; more are computed in parts


def norm_specs(size: int) -> Specs:
    """Layer norm over `size` features."""
    return norm(size, "conv_out", bias=True)


def kernel_specs(size: int, inputs: int, outputs: int, *, bias: bool = True) -> Specs:
    """Convolution of a square kernel, HWIO."""
    shape, axes = (size, size, inputs, outputs), (None, None, "conv_in", "conv_out")
    w = ParamSpec(shape, axes, fan_in=(0, 1, 2))
    return {"w": w, "b": ParamSpec((outputs,), ("conv_out",), init="zeros")} if bias else {"w": w}


def _block_specs(cfg: VisionConfig, window: int, stack: int) -> Specs:
    d, mlp = {"vit_embed": cfg.hidden}, {"vit_mlp": cfg.ffn}
    heads = {"vit_heads": cfg.heads, "head_dim": cfg.hidden // cfg.heads}
    stacked = functools.partial(linear_specs, bias=True, stack=stack)
    specs = {
        "ln1": norm(cfg.hidden, "vit_embed", bias=True, stack=stack),
        "qkv": linear_specs(d, {None: 3, **heads}, bias=cfg.qkv_bias, stack=stack),
        "o": stacked(heads, d),
        "ln2": norm(cfg.hidden, "vit_embed", bias=True, stack=stack),
        "fc1": stacked(d, mlp),
        "fc2": stacked(mlp, d),
    }
    if cfg.relative:
        shape = (stack, 2 * (window or cfg.grid) - 1, heads["head_dim"])
        for name in ("rows", "columns"):
            specs[name] = ParamSpec(shape, ("layers", "positions", "head_dim"), scale=0.02)
    return specs


def specs(cfg: VisionConfig) -> Specs:
    """Parameter tree; layers are stacked by runs of equal kind, "blocks" keyed by the run."""
    tree = {
        "patch": kernel_specs(cfg.patch, cfg.channels, cfg.hidden),
        "blocks": {str(i): _block_specs(cfg, *run) for i, run in enumerate(cfg.runs)},
        "neck": {
            "conv1": kernel_specs(1, cfg.hidden, cfg.out, bias=False),
            "ln1": norm_specs(cfg.out),
            "conv2": kernel_specs(3, cfg.out, cfg.out, bias=False),
            "ln2": norm_specs(cfg.out),
        },
    }
    if cfg.absolute:
        shape = (1, cfg.grid, cfg.grid, cfg.hidden)
        tree["positions"] = ParamSpec(shape, (None, None, None, "vit_embed"), scale=0.02)
    return tree


def patches(x: jax.Array, p: Params) -> jax.Array:
    """Convolution whose stride is its kernel: [..., H, W, I] -> [..., H/k, W/k, O]."""
    k = p["w"].shape[0]
    x = rearrange(x, "... (h p) (w q) c -> ... h w (p q c)", p=k, q=k)
    return linear(x, {**p, "w": rearrange(p["w"], "p q c d -> (p q c) d")})


def _into_windows(x: jax.Array, window: int) -> jax.Array:
    """[N, h, w, D] -> [windows, window, window, D], zeros below and to the right."""
    below, right = -x.shape[1] % window, -x.shape[2] % window
    x = jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0)))
    return rearrange(x, "n (i a) (j b) d -> (n i j) a b d", a=window, b=window)


def _out_of_windows(x: jax.Array, like: jax.Array) -> jax.Array:
    n, h, w, _ = like.shape
    rows = math.ceil(h / x.shape[1])
    return rearrange(x, "(n i j) a b d -> n (i a) (j b) d", n=n, i=rows)[:, :h, :w]


def _relative(table: jax.Array, size: int) -> jax.Array:
    """[2·size − 1, C] by distance -> [size, size, C] by query and key."""
    at = jnp.arange(size)
    return table[at[:, None] - at[None, :] + size - 1]


def _attention(x: jax.Array, p: Params) -> jax.Array:
    """Full attention of [N, h, w, D] with decomposed relative positions, in parts of query rows.

    The added scores are products of the unscaled query with a vector per row distance and one per
    column distance.
    """
    n, h, w, _ = x.shape
    q, k, v = rearrange(linear(x, p["qkv"]), "n h w three m c -> three n m h w c")
    scaled_k = k * k.shape[-1] ** -0.5
    if "rows" in p:
        by_row, by_column = _relative(p["rows"], h), _relative(p["columns"], w)

    def attend(at: jax.Array) -> jax.Array:  # rows of queries -> [n, m, r, w, c]
        rows = q[:, :, at]
        scores = jnp.einsum("nmrwc,nmijc->nmrwij", rows, scaled_k)
        if "rows" in p:
            above = jnp.einsum("nmrwc,ric->nmrwi", rows, by_row[at])
            beside = jnp.einsum("nmrwc,wjc->nmrwj", rows, by_column)
            scores = scores + above[..., None] + beside[..., None, :]
        weights = jax.nn.softmax(rearrange(scores, "n m r w i j -> n m r w (i j)"))
        return jnp.einsum("nmrwt,nmtc->nmrwc", weights, rearrange(v, "n m i j c -> n m (i j) c"))

    row = n * q.shape[1] * w * h * w  # scores of one row of queries
    divisors = (k for k in range(1, h + 1) if h % k == 0)
    parts = next(k for k in divisors if h // k * row <= _SCORES or k == h)
    if parts == 1:
        o = attend(jnp.arange(h))
    else:
        o = jax.lax.map(attend, rearrange(jnp.arange(h), "(k r) -> k r", k=parts))
        o = rearrange(o, "k n m r w c -> n m (k r) w c")
    o = rearrange(o, "n m h w c -> n h w (m c)")
    return linear(o, {**p["o"], "w": rearrange(p["o"]["w"], "m c d -> (m c) d")})


def _block(x: jax.Array, p: Params, cfg: VisionConfig, window: int) -> jax.Array:
    y = layer_norm(x, p["ln1"], cfg.eps)
    if window:
        y = _out_of_windows(_attention(_into_windows(y, window), p), like=y)
    else:
        y = _attention(y, p)
    x = x + y
    y = ACTIVATIONS[cfg.act](linear(layer_norm(x, p["ln2"], cfg.eps), p["fc1"]))
    return x + linear(y, p["fc2"])


def layers(params: Params, cfg: VisionConfig, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`encode`, and what goes in and comes out of the layers, [layers + 1, N, g, g, D]."""
    if pixels.ndim != 4 or pixels.shape[1:] != (cfg.image, cfg.image, cfg.channels):
        raise ValueError(
            f"pixels are {list(pixels.shape)}; this model reads "
            f"[N, {cfg.image}, {cfg.image}, {cfg.channels}]"
        )
    side = cfg.grid * cfg.patch
    x = patches(pixels[:, :side, :side], params["patch"])
    if cfg.absolute:
        x = x + params["positions"]
    hidden = [x[None]]
    for run, (window, _) in enumerate(cfg.runs):

        def step(x, p, window=window):
            x = _block(x, p, cfg, window)
            return x, x

        x, outputs = jax.lax.scan(step, x, params["blocks"][str(run)])
        hidden.append(outputs)
    neck = params["neck"]
    x = layer_norm(patches(x, neck["conv1"]), neck["ln1"], EPS)
    x = jax.lax.conv_general_dilated(
        x, neck["conv2"]["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return layer_norm(x, neck["ln2"], EPS), jnp.concatenate(hidden)


def encode(params: Params, cfg: VisionConfig, pixels: jax.Array) -> jax.Array:
    """Image embeddings [N, g, g, C].

    pixels: float32 [N, S, S, channels], S the model's image size; normalised, zeros where padded.
    Raises ValueError for another shape.
    """
    return layers(params, cfg, pixels)[0]
