"""The FLUX-family autoencoder's decoder in plain PyTorch, under the names of `ae.safetensors`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srum_jax.models.bagel import model_config
from srum_jax.models.bagel.model_config import BagelConfig


class Named(nn.Module):
    """Modules under names of one's own, for trees that are only names."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def group_norm(width: int) -> nn.Module:
    return nn.GroupNorm(32, width, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1, self.norm2 = group_norm(inputs), group_norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class PixelAttention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = group_norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (p(y).flatten(2).transpose(1, 2)[:, None] for p in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(y[:, 0].transpose(1, 2).unflatten(2, x.shape[2:]))


class Decoder(nn.Module):
    """The autoencoder's decoder: scaled latents [N,Z,h,w] -> pictures [N,3,H,W], not clamped."""

    def __init__(self, c: model_config.VAEConfig):
        super().__init__()
        self.scale, self.shift = c.scale, c.shift
        widths = [c.ch * m for m in c.ch_mult]
        width = widths[-1]
        self.conv_in = nn.Conv2d(c.z, width, 3, padding=1)
        self.mid = Named(
            block_1=ResBlock(width, width),
            attn_1=PixelAttention(width),
            block_2=ResBlock(width, width),
        )
        levels = {}
        for i in reversed(range(len(widths))):
            blocks = []
            for _ in range(c.res_blocks + 1):
                blocks.append(ResBlock(width, widths[i]))
                width = widths[i]
            levels[i] = Named(block=nn.ModuleList(blocks))
            if i:
                levels[i].upsample = Named(conv=nn.Conv2d(width, width, 3, padding=1))
        self.up = nn.ModuleList(levels[i] for i in range(len(widths)))
        self.norm_out, self.conv_out = group_norm(width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z):
        x = self.conv_in(z / self.scale + self.shift)
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        for level in reversed(self.up):
            for block in level.block:
                x = block(x)
            if hasattr(level, "upsample"):
                x = level.upsample.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


def pixels(decoder: Decoder, cfg: BagelConfig, tokens: Tensor, grid) -> Tensor:
    """Latent tokens [R,G,p·p·Z] -> uint8 [R,H,W,3], truncated as officially."""
    p, (h, w) = cfg.latent_patch, grid
    z = tokens.reshape(-1, h, w, p, p, cfg.vae.z).permute(0, 5, 1, 3, 2, 4)
    x = decoder(z.reshape(len(tokens), cfg.vae.z, h * p, w * p))
    return ((x * 0.5 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)
