"""Convolution blocks of autoencoders in the FLUX family: residual, attention, middle; NHWC.

Owns the blocks that BAGEL's autoencoder and Janus's quantised one are made of, with the names of
their files; the networks are `models/bagel/vae.py` and `models/janus/vq.py`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import struct

from srum_jax.core.param_tree import Params, ParamSpec, Specs, norm

GROUPS = 32
EPS = 1e-6


def level_widths(ch: int, multipliers: Sequence[int]) -> list[int]:
    """Channels of each level. Raises ValueError for a width that groups do not divide."""
    widths = [ch * m for m in multipliers]
    if any(w % GROUPS for w in (ch, *widths)):
        raise ValueError(f"autoencoder widths {[ch, *widths]} must be multiples of {GROUPS}")
    return widths


def conv_specs(inputs: int, outputs: int, kernel: int = 3) -> Specs:
    """A convolution: kernel HWIO and bias."""
    return {
        "w": ParamSpec(
            (kernel, kernel, inputs, outputs),
            (None, None, "conv_in", "conv_out"),
            fan_in=(0, 1, 2),
        ),
        "b": ParamSpec((outputs,), ("conv_out",), init="zeros"),
    }


def block_specs(inputs: int, outputs: int) -> Specs:
    """A residual block; only one that changes channels has a shortcut."""
    specs = {
        "norm1": norm(inputs, "conv_in", bias=True),
        "conv1": conv_specs(inputs, outputs),
        "norm2": norm(outputs, "conv_out", bias=True),
        "conv2": conv_specs(outputs, outputs),
    }
    if inputs != outputs:
        specs["nin_shortcut"] = conv_specs(inputs, outputs, 1)
    return specs


def attention_specs(width: int) -> Specs:
    """Norm and projections of attention over places."""
    maps = {name: conv_specs(width, width, 1) for name in ("q", "k", "v", "proj_out")}
    return {"norm": norm(width, "conv_in", bias=True), **maps}


def mid_specs(width: int) -> Specs:
    """The middle of a network: block, attention, block."""
    return {
        "block_1": block_specs(width, width),
        "attn_1": attention_specs(width),
        "block_2": block_specs(width, width),
    }


def level_specs(width: int, outputs: int, blocks: int) -> Specs:
    """The residual blocks of one resolution, keyed "0", "1", …."""
    return {str(i): block_specs(width if i == 0 else outputs, outputs) for i in range(blocks)}


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


def conv(
    p: Params,
    x: jax.Array,
    padded: Padded | None = None,
    stride: int = 1,
    padding: str | Sequence[tuple[int, int]] = "SAME",
) -> jax.Array:
    """Convolution with bias, [N,H,W,I] -> [N,H/stride,W/stride,O]."""
    if padded is not None:
        x = padded.cleared(x)
    y = jax.lax.conv_general_dilated(
        x, p["w"], (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + rearrange(p["b"], "c -> 1 1 1 c")


def group_norm(p: Params, x: jax.Array, padded: Padded | None = None) -> jax.Array:
    """GroupNorm with gain and bias, over real places alone."""
    g = rearrange(x, "n h w (g c) -> n h w g c", g=GROUPS)
    real = None if padded is None else padded.real(x)[..., None, None]
    mean = g.mean((1, 2, 4), keepdims=True, where=real)
    var = jnp.square(g - mean).mean((1, 2, 4), keepdims=True, where=real)
    g = (g - mean) * jax.lax.rsqrt(var + EPS)
    scale, bias = (rearrange(p[name], "c -> 1 1 1 c") for name in ("scale", "bias"))
    return rearrange(g, "n h w g c -> n h w (g c)") * scale + bias


def block(p: Params, x: jax.Array, padded: Padded | None = None) -> jax.Array:
    """norm, swish, convolution, twice, and the input added."""
    y = conv(p["conv1"], jax.nn.silu(group_norm(p["norm1"], x, padded)), padded)
    y = conv(p["conv2"], jax.nn.silu(group_norm(p["norm2"], y, padded)), padded)
    return y + (conv(p["nin_shortcut"], x, padded) if "nin_shortcut" in p else x)


def attention(p: Params, x: jax.Array, padded: Padded | None = None) -> jax.Array:
    """Every place attends to all real places of its picture; the input added."""
    y = group_norm(p["norm"], x, padded)
    q, k, v = (conv(p[name], y, padded) for name in ("q", "k", "v"))
    seen = None if padded is None else rearrange(padded.real(x), "n h w -> n 1 (h w)")
    k, v = (rearrange(t, "n h w c -> n (h w) c") for t in (k, v))

    def row(q_row):  # one row of queries: a 1024-pixel picture has 16384² logits at once
        logits = jnp.einsum("nwc,ntc->nwt", q_row, k) / jnp.sqrt(q_row.shape[-1])
        return jnp.einsum("nwt,ntc->nwc", jax.nn.softmax(logits, where=seen), v)

    out = jax.lax.map(row, rearrange(q, "n h w c -> h n w c"), batch_size=8)
    return x + conv(p["proj_out"], rearrange(out, "h n w c -> n h w c"), padded)


def mid(p: Params, x: jax.Array, padded: Padded | None = None) -> jax.Array:
    """Block, attention, block."""
    x = attention(p["attn_1"], block(p["block_1"], x, padded), padded)
    return block(p["block_2"], x, padded)


def out(p: Params, x: jax.Array, padded: Padded | None = None) -> jax.Array:
    """norm, swish, the last convolution."""
    return conv(p["conv_out"], jax.nn.silu(group_norm(p["norm_out"], x, padded)), padded)


def in_order(levels: Params) -> list:
    """The members of a dict keyed "0", "1", …."""
    return [levels[str(i)] for i in range(len(levels))]


def downsampled(p: Params, x: jax.Array, padded: Padded | None = None) -> jax.Array:
    """Half the sides; the official code pads right and bottom only."""
    return conv(p, x, padded, 2, ((0, 1), (0, 1)))


def upsampled(p: Params, x: jax.Array, padded: Padded | None = None) -> jax.Array:
    """Twice the sides: the nearest place, then a convolution."""
    return conv(p, x.repeat(2, axis=1).repeat(2, axis=2), padded)


def to_uint8(images: jax.Array) -> jax.Array:
    """[-1, 1] float -> uint8, any shape: clamped, then truncated (not rounded) as officially."""
    return (jnp.clip(images * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(jnp.uint8)
