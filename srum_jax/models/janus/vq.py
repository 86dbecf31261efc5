"""The quantised autoencoder of Janus (VQ-16 of LlamaGen): pictures <-> codes; NHWC, float32.

Owns the network and how a vector becomes a code. Codes are compared by direction: vectors and
codebook are normalised before the search, as the original does. transformers searches without
(`normalised=False`), which gives other codes (`docs/differences.md`).
"""

import jax
import jax.numpy as jnp

from srum_jax.core.param_tree import Params, ParamSpec, Specs, norm
from srum_jax.models import autoencoder_blocks as blocks
from srum_jax.models.janus.model_config import VQConfig

_EPS = 1e-12  # of a norm that vectors are divided by


def _level(width: int, outputs: int, count: int, attends: bool) -> Specs:
    level = {"block": blocks.level_specs(width, outputs, count)}
    if attends:
        level["attn"] = {str(i): blocks.attention_specs(outputs) for i in range(count)}
    return level


def specs(cfg: VQConfig) -> Specs:
    """Parameter tree in the structure of Hugging Face's names; lists are keyed "0", "1", ….

    At the lowest resolution every residual block is followed by attention. Raises ValueError if a
    width is not a multiple of the normalisation groups.
    """
    widths = blocks.level_widths(cfg.ch, cfg.ch_mult)
    last = len(widths) - 1
    down, width = {}, cfg.ch
    for i, outputs in enumerate(widths):
        down[str(i)] = _level(width, outputs, cfg.res_blocks, i == last)
        if i != last:
            down[str(i)]["downsample"] = {"conv": blocks.conv_specs(outputs, outputs)}
        width = outputs
    up = {}
    for i, outputs in enumerate(reversed(widths)):  # the lowest resolution is the first
        up[str(i)] = _level(width, outputs, cfg.res_blocks + 1, i == 0)
        if i != last:
            up[str(i)]["upsample"] = {"conv": blocks.conv_specs(outputs, outputs)}
        width = outputs
    ends = dict(norm_out=norm(widths[-1], "conv_in", bias=True), mid=blocks.mid_specs(widths[-1]))
    return {
        "encoder": {
            "conv_in": blocks.conv_specs(3, cfg.ch),
            "down": down,
            **ends,
            "conv_out": blocks.conv_specs(widths[-1], cfg.z),
        },
        "quant_conv": blocks.conv_specs(cfg.z, cfg.code_dim, 1),
        "quantize": {"embedding": ParamSpec((cfg.codes, cfg.code_dim), (None, None))},
        "post_quant_conv": blocks.conv_specs(cfg.code_dim, cfg.z, 1),
        "decoder": {
            "conv_in": blocks.conv_specs(cfg.z, widths[-1]),
            "mid": blocks.mid_specs(widths[-1]),
            "up": up,
            "norm_out": norm(width, "conv_in", bias=True),
            "conv_out": blocks.conv_specs(width, 3),
        },
    }


def unit(x: jax.Array) -> jax.Array:
    """Vectors [...,E] of length 1 in the direction of x."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), _EPS)


def _through(level: Params, x: jax.Array) -> jax.Array:
    for i, block in enumerate(blocks.in_order(level["block"])):
        x = blocks.block(block, x)
        if "attn" in level:
            x = blocks.attention(level["attn"][str(i)], x)
    return x


@jax.named_scope("vq_encode")
def features(params: Params, cfg: VQConfig, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pictures float32 [N,H,W,3] in [-1, 1] -> (what the encoder gives [N,h,w,Z], the vectors that
    become codes [N,h,w,E]). Raises ValueError for sides that are no multiple of `cfg.downsample`.
    """
    height, width = images.shape[1:3]
    if height % cfg.downsample or width % cfg.downsample:
        raise ValueError(
            f"an image of {height}x{width} cannot be encoded: sides must be multiples of "
            f"{cfg.downsample}"
        )
    p = params["encoder"]
    x = blocks.conv(p["conv_in"], images)
    for level in blocks.in_order(p["down"]):
        x = _through(level, x)
        if "downsample" in level:
            x = blocks.downsampled(level["downsample"]["conv"], x)
    encoded = blocks.out(p, blocks.mid(p["mid"], x))
    return encoded, blocks.conv(params["quant_conv"], encoded)


def nearest(params: Params, vectors: jax.Array, *, normalised: bool = True) -> jax.Array:
    """The code int32 [...] nearest to each vector float32 [...,E]; normalised: by direction."""
    codes = params["quantize"]["embedding"]
    if normalised:
        vectors, codes = unit(vectors), unit(codes)
    scores = jnp.einsum("...e,ce->...c", vectors, codes, precision=jax.lax.Precision.HIGHEST)
    size = jnp.sum(jnp.square(codes), axis=-1).reshape((1,) * (scores.ndim - 1) + (-1,))
    return jnp.argmin(size - 2 * scores, axis=-1).astype(jnp.int32)


def encode(
    params: Params, cfg: VQConfig, images: jax.Array, *, normalised: bool = True
) -> jax.Array:
    """Pictures float32 [N,H,W,3] in [-1, 1] -> codes int32 [N,H/d,W/d]."""
    return nearest(params, features(params, cfg, images)[1], normalised=normalised)


def vectors(params: Params, codes: jax.Array, *, normalised: bool = True) -> jax.Array:
    """The codebook's vectors float32 [...,E] of codes int32 [...]."""
    found = jnp.take(params["quantize"]["embedding"], codes, axis=0)
    return unit(found) if normalised else found


def decode(params: Params, cfg: VQConfig, codes: jax.Array) -> jax.Array:
    """Pictures float32 [N,h·d,w·d,3], nominally in [-1, 1] but not clamped, of codes int32 [N,h,w].

    The codes' vectors are normalised, in the original and in transformers alike.
    """
    return picture(params, vectors(params, codes))


@jax.named_scope("vq_decode")
def picture(params: Params, vectors: jax.Array) -> jax.Array:
    """As `decode`, of vectors float32 [N,h,w,E] in place of codes."""
    p = params["decoder"]
    x = blocks.conv(params["post_quant_conv"], vectors)
    x = blocks.mid(p["mid"], blocks.conv(p["conv_in"], x))
    for level in blocks.in_order(p["up"]):
        x = _through(level, x)
        if "upsample" in level:
            x = blocks.upsampled(level["upsample"]["conv"], x)
    return blocks.out(p, x)
