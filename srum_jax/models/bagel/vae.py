"""The FLUX-family autoencoder: pictures <-> latents, NHWC, float32.

Owns the network (`specs`, `encode_moments`, `decode`), the latent's affine scale and the official
conversion of a decoded picture to bytes. Structure and names follow `ae.safetensors` of
BAGEL-7B-MoT (modeling/autoencoder.py of the official code), so `models/bagel/hf.py` needs one rule.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import struct

from srum_jax.core.param_tree import Params, ParamSpec, Specs, norm
from srum_jax.models.bagel.model_config import VAEConfig

GROUPS = 32
EPS = 1e-6


def _conv_specs(inputs: int, outputs: int, kernel: int = 3) -> Specs:
    return {
        "w": ParamSpec(
            (kernel, kernel, inputs, outputs),
            (None, None, "conv_in", "conv_out"),
            fan_in=(0, 1, 2),
        ),
        "b": ParamSpec((outputs,), ("conv_out",), init="zeros"),
    }


def _block_specs(inputs: int, outputs: int) -> Specs:
    specs = {
        "norm1": norm(inputs, "conv_in", bias=True),
        "conv1": _conv_specs(inputs, outputs),
        "norm2": norm(outputs, "conv_out", bias=True),
        "conv2": _conv_specs(outputs, outputs),
    }
    if inputs != outputs:
        specs["nin_shortcut"] = _conv_specs(inputs, outputs, 1)
    return specs


def _mid_specs(width: int) -> Specs:
    attention = {name: _conv_specs(width, width, 1) for name in ("q", "k", "v", "proj_out")}
    return {
        "block_1": _block_specs(width, width),
        "attn_1": {"norm": norm(width, "conv_in", bias=True), **attention},
        "block_2": _block_specs(width, width),
    }


def _level_specs(width: int, outputs: int, blocks: int) -> Specs:
    return {str(i): _block_specs(width if i == 0 else outputs, outputs) for i in range(blocks)}


def specs(cfg: VAEConfig) -> Specs:
    """Parameter tree {"encoder", "decoder"}; lists are dicts keyed "0", "1", …; kernels HWIO.

    Raises ValueError if a width is not a multiple of the 32 normalisation groups.
    """
    widths = [cfg.ch * m for m in cfg.ch_mult]
    if any(w % GROUPS for w in (cfg.ch, *widths)):
        raise ValueError(f"autoencoder widths {[cfg.ch, *widths]} must be multiples of {GROUPS}")
    last = len(widths) - 1

    down, width = {}, cfg.ch
    for i, outputs in enumerate(widths):
        down[str(i)] = {"block": _level_specs(width, outputs, cfg.res_blocks)}
        if i != last:
            down[str(i)]["downsample"] = {"conv": _conv_specs(outputs, outputs)}
        width = outputs
    encoder = {
        "conv_in": _conv_specs(3, cfg.ch),
        "down": down,
        "mid": _mid_specs(width),
        "norm_out": norm(width, "conv_in", bias=True),
        "conv_out": _conv_specs(width, 2 * cfg.z),
    }

    up = {}
    for i in reversed(range(len(widths))):
        up[str(i)] = {"block": _level_specs(width, widths[i], cfg.res_blocks + 1)}
        if i != 0:
            up[str(i)]["upsample"] = {"conv": _conv_specs(widths[i], widths[i])}
        width = widths[i]
    decoder = {
        "conv_in": _conv_specs(cfg.z, widths[-1]),
        "mid": _mid_specs(widths[-1]),
        "up": up,
        "norm_out": norm(width, "conv_in", bias=True),
        "conv_out": _conv_specs(width, 3),
    }
    return {"encoder": encoder, "decoder": decoder}


@struct.dataclass
class Padded:
    """Pictures of several sizes in arrays of one, each in the upper left corner.

    sides: (rows, columns) of each that are real, int32 [N, 2], in latents · height: of the arrays,
    in latents too. Whatever stands in the other places changes nothing in the real ones.
    """

    sides: jax.Array
    height: int = struct.field(pytree_node=False)

    def real(self, x: jax.Array) -> jax.Array:
        """Which places of x [N, H, W, …] are real, bool [N, H, W]."""
        rows, columns = (
            jnp.arange(x.shape[1 + i])[None] < x.shape[1] // self.height * self.sides[:, i, None]
            for i in range(2)
        )
        return rows[:, :, None] & columns[:, None, :]

    def cleared(self, x: jax.Array) -> jax.Array:
        """x [N, H, W, C], 0 where it is not real, as it is around a picture."""
        return jnp.where(self.real(x)[..., None], x, 0)


def _conv(
    p: Params, x: jax.Array, padded: Padded | None, stride: int = 1, padding="SAME"
) -> jax.Array:
    if padded is not None:
        x = padded.cleared(x)
    y = jax.lax.conv_general_dilated(
        x, p["w"], (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + rearrange(p["b"], "c -> 1 1 1 c")


def _group_norm(p: Params, x: jax.Array, padded: Padded | None) -> jax.Array:
    g = rearrange(x, "n h w (g c) -> n h w g c", g=GROUPS)
    real = None if padded is None else padded.real(x)[..., None, None]
    mean = g.mean((1, 2, 4), keepdims=True, where=real)
    var = jnp.square(g - mean).mean((1, 2, 4), keepdims=True, where=real)
    g = (g - mean) * jax.lax.rsqrt(var + EPS)
    scale, bias = (rearrange(p[name], "c -> 1 1 1 c") for name in ("scale", "bias"))
    return rearrange(g, "n h w g c -> n h w (g c)") * scale + bias


def _block(p: Params, x: jax.Array, padded: Padded | None) -> jax.Array:
    y = _conv(p["conv1"], jax.nn.silu(_group_norm(p["norm1"], x, padded)), padded)
    y = _conv(p["conv2"], jax.nn.silu(_group_norm(p["norm2"], y, padded)), padded)
    return y + (_conv(p["nin_shortcut"], x, padded) if "nin_shortcut" in p else x)


def _attention(p: Params, x: jax.Array, padded: Padded | None) -> jax.Array:
    y = _group_norm(p["norm"], x, padded)
    q, k, v = (_conv(p[name], y, padded) for name in ("q", "k", "v"))
    seen = None if padded is None else rearrange(padded.real(x), "n h w -> n 1 (h w)")
    k, v = (rearrange(t, "n h w c -> n (h w) c") for t in (k, v))

    def row(q_row):  # one row of queries: a 1024-pixel picture has 16384² logits at once
        logits = jnp.einsum("nwc,ntc->nwt", q_row, k) / jnp.sqrt(q_row.shape[-1])
        return jnp.einsum("nwt,ntc->nwc", jax.nn.softmax(logits, where=seen), v)

    out = jax.lax.map(row, rearrange(q, "n h w c -> h n w c"), batch_size=8)
    return x + _conv(p["proj_out"], rearrange(out, "h n w c -> n h w c"), padded)


def _mid(p: Params, x: jax.Array, padded: Padded | None) -> jax.Array:
    x = _attention(p["attn_1"], _block(p["block_1"], x, padded), padded)
    return _block(p["block_2"], x, padded)


def _out(p: Params, x: jax.Array, padded: Padded | None) -> jax.Array:
    return _conv(p["conv_out"], jax.nn.silu(_group_norm(p["norm_out"], x, padded)), padded)


def _in_order(levels: Params) -> list:
    return [levels[str(i)] for i in range(len(levels))]


@jax.named_scope("vae_encode")
def encode_moments(
    params: Params, cfg: VAEConfig, images: jax.Array, padded: Padded | None = None
) -> tuple[jax.Array, jax.Array]:
    """Posterior of unscaled latents.

    images: float32 [N, H, W, 3] in [-1, 1], H and W multiples of `cfg.downsample` (ValueError
    otherwise). Returns mean and log-variance, float32 [N, H/d, W/d, Z] each; not clamped. padded:
    which parts of them are pictures, None: all.
    """
    height, width = images.shape[1:3]
    if height % cfg.downsample or width % cfg.downsample:
        raise ValueError(
            f"an image of {height}x{width} cannot be encoded: sides must be multiples of "
            f"{cfg.downsample}; pad or resize it"
        )
    p = params["encoder"]
    x = _conv(p["conv_in"], images, padded)
    for level in _in_order(p["down"]):
        for block in _in_order(level["block"]):
            x = _block(block, x, padded)
        if "downsample" in level:  # the official code pads right and bottom only
            x = _conv(level["downsample"]["conv"], x, padded, 2, ((0, 1), (0, 1)))
    mean, logvar = jnp.split(_out(p, _mid(p["mid"], x, padded), padded), 2, axis=-1)
    return mean, logvar


def encode(
    params: Params,
    cfg: VAEConfig,
    images: jax.Array,
    noise: jax.Array | None = None,
    padded: Padded | None = None,
) -> jax.Array:
    """Scaled latents, float32 [N, H/d, W/d, Z].

    Without `noise` the posterior's mean; with `noise` (standard normal, shape of the result) a
    sample of it, as the official code always draws. padded: as of `encode_moments`.
    """
    mean, logvar = encode_moments(params, cfg, images, padded)
    z = mean if noise is None else mean + jnp.exp(0.5 * logvar) * noise
    return cfg.scale * (z - cfg.shift)


@jax.named_scope("vae_decode")
def decode(
    params: Params, cfg: VAEConfig, latents: jax.Array, padded: Padded | None = None
) -> jax.Array:
    """Pictures, float32 [N, h·d, w·d, 3], nominally in [-1, 1] but not clamped.

    latents: scaled, float32 [N, h, w, Z] · padded: which parts of them are pictures, None: all.
    """
    p = params["decoder"]
    x = _mid(p["mid"], _conv(p["conv_in"], latents / cfg.scale + cfg.shift, padded), padded)
    for level in reversed(_in_order(p["up"])):
        for block in _in_order(level["block"]):
            x = _block(block, x, padded)
        if "upsample" in level:
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            x = _conv(level["upsample"]["conv"], x, padded)
    return _out(p, x, padded)


def to_uint8(images: jax.Array) -> jax.Array:
    """[-1, 1] float -> uint8, any shape: clamped, then truncated (not rounded) as officially."""
    return (jnp.clip(images * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(jnp.uint8)
