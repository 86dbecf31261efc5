"""The FLUX-family autoencoder: pictures <-> latents, NHWC, float32.

Owns the network (`specs`, `encode_moments`, `decode`), the latent's affine scale and the official
conversion of a decoded picture to bytes. Structure and names follow `ae.safetensors` of
BAGEL-7B-MoT (modeling/autoencoder.py of the official code), so `models/bagel/hf.py` needs one rule.
"""

import jax
import jax.numpy as jnp

from srum_jax.core.param_tree import Params, Specs, norm
from srum_jax.models import autoencoder_blocks as blocks
from srum_jax.models.autoencoder_blocks import Padded, to_uint8
from srum_jax.models.bagel.model_config import VAEConfig

__all__ = ["Padded", "decode", "encode", "encode_moments", "specs", "to_uint8"]


def specs(cfg: VAEConfig) -> Specs:
    """Parameter tree {"encoder", "decoder"}; lists are dicts keyed "0", "1", …; kernels HWIO.

    Raises ValueError if a width is not a multiple of the 32 normalisation groups.
    """
    widths = blocks.level_widths(cfg.ch, cfg.ch_mult)
    last = len(widths) - 1

    down, width = {}, cfg.ch
    for i, outputs in enumerate(widths):
        down[str(i)] = {"block": blocks.level_specs(width, outputs, cfg.res_blocks)}
        if i != last:
            down[str(i)]["downsample"] = {"conv": blocks.conv_specs(outputs, outputs)}
        width = outputs
    encoder = {
        "conv_in": blocks.conv_specs(3, cfg.ch),
        "down": down,
        "mid": blocks.mid_specs(width),
        "norm_out": norm(width, "conv_in", bias=True),
        "conv_out": blocks.conv_specs(width, 2 * cfg.z),
    }

    up = {}
    for i in reversed(range(len(widths))):
        up[str(i)] = {"block": blocks.level_specs(width, widths[i], cfg.res_blocks + 1)}
        if i != 0:
            up[str(i)]["upsample"] = {"conv": blocks.conv_specs(widths[i], widths[i])}
        width = widths[i]
    decoder = {
        "conv_in": blocks.conv_specs(cfg.z, widths[-1]),
        "mid": blocks.mid_specs(widths[-1]),
        "up": up,
        "norm_out": norm(width, "conv_in", bias=True),
        "conv_out": blocks.conv_specs(width, 3),
    }
    return {"encoder": encoder, "decoder": decoder}


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
    x = blocks.conv(p["conv_in"], images, padded)
    for level in blocks.in_order(p["down"]):
        for block in blocks.in_order(level["block"]):
            x = blocks.block(block, x, padded)
        if "downsample" in level:
            x = blocks.downsampled(level["downsample"]["conv"], x, padded)
    mean, logvar = jnp.split(blocks.out(p, blocks.mid(p["mid"], x, padded), padded), 2, axis=-1)
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
    x = blocks.conv(p["conv_in"], latents / cfg.scale + cfg.shift, padded)
    x = blocks.mid(p["mid"], x, padded)
    for level in reversed(blocks.in_order(p["up"])):
        for block in blocks.in_order(level["block"]):
            x = blocks.block(block, x, padded)
        if "upsample" in level:
            x = blocks.upsampled(level["upsample"]["conv"], x, padded)
    return blocks.out(p, x, padded)
