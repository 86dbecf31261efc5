"""BAGEL's training step in plain PyTorch, to measure against; nothing in the package imports it.

Written for the benchmark from the specification, the way the official code trains text-to-image:
samples lie end to end in one packed sequence without a batch axis, each expert's rows are taken out
and put back by index at every projection, attention is SDPA, one call a sample, under a dense
additive mask that the data loader made, keys and values repeated to all heads; AdamW, gradients
clipped by their global norm. Below float32 the model computes in a copy of float32 masters, which
the optimiser holds, as under FSDP's mixed precision. `train_step.py` holds its losses to ours.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torch_bagel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_autoencoder import Named
from torch_bagel import Table, TimeEmbedder, rotate, routed

from srum_jax.models.bagel import model_config
from srum_jax.models.bagel.model_config import BagelConfig


class Pack(NamedTuple):
    """Samples end to end, S tokens of which G are latent: what the data loader hands over."""

    text_ids: Tensor  # [U]
    und: Tensor  # [U] slots of the understanding expert's rows
    gen: Tensor  # [G] of the generation expert's
    position: Tensor  # [S] RoPE positions
    lengths: tuple[int, ...]  # tokens of each sample
    masks: tuple[Tensor, ...]  # [n,n] of each: 0 or -inf
    latents: Tensor  # [G,p·p·Z] clean
    places: Tensor  # [G] position ids
    times: Tensor  # [G] t of the token's image
    weights: Tensor  # [G] that the squared error of a token counts


def pack(samples: Sequence[tuple], times, cfg: BagelConfig, *, device, dtype, weights=None) -> Pack:
    """Samples (text ids, latents [h,w,p·p·Z]) with a noisy image each, at times [samples].

    weights [G]: of all their latent tokens; None: 1.
    """
    ids, und, gen, position, masks, places, lengths = [], [], [], [], [], [], []
    start = 0
    for text, latent in samples:
        h, w = latent.shape[:2]
        read, size = len(text) + 2, h * w + 2
        ids += [cfg.bos, *text, cfg.eos, cfg.start_of_image, cfg.end_of_image]
        und += [*range(start, start + read + 1), start + read + size - 1]
        gen += range(start + read + 1, start + read + size - 1)
        position += [*range(read), *[read] * size]
        mask = np.tril(np.ones((read + size, read + size), bool))
        mask[read:] = True
        masks.append(torch.zeros(mask.shape).masked_fill(torch.as_tensor(~mask), -torch.inf))
        places.append((np.arange(h)[:, None] * cfg.max_latent + np.arange(w)).ravel())
        lengths.append(read + size)
        start += read + size
    counts = [latent.shape[0] * latent.shape[1] for _, latent in samples]

    def whole(values):
        return torch.as_tensor(np.asarray(values, np.int64), device=device)

    def real(values):
        return torch.as_tensor(np.array(values, np.float32), device=device)

    return Pack(
        *map(whole, (ids, und, gen, position)),
        tuple(lengths),
        tuple(m.to(device, dtype) for m in masks),
        real(np.concatenate([x.reshape(-1, x.shape[-1]) for _, x in samples])),
        whole(np.concatenate(places)),
        real(np.repeat(times, counts)),
        real(np.ones(sum(counts)) if weights is None else weights),
    )


def put(und: Tensor, gen: Tensor, pack: Pack) -> Tensor:
    """Rows of both experts, back in packed order."""
    out = und.new_zeros((len(und) + len(gen), *und.shape[1:]))
    out[pack.und] = und
    out[pack.gen] = gen
    return out


def attend(q: Tensor, k: Tensor, v: Tensor, pack: Pack) -> Tensor:
    """Packed attention: q [S,H,C], k, v [S,K,C] -> [S,H·C], one call a sample."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    parts = (x.transpose(0, 1).split(pack.lengths, dim=1) for x in (q, k, v))
    out = [
        F.scaled_dot_product_attention(*(x[None] for x in qkv), mask[None, None])[0]
        for *qkv, mask in zip(*parts, pack.masks, strict=True)
    ]
    return torch.cat(out, dim=1).transpose(0, 1).flatten(1)


class Attention(torch_bagel.Attention):
    def forward(self, x, pack, angles):
        und, gen = x[pack.und], x[pack.gen]
        q = put(self.q_proj(und), self.q_proj_moe_gen(gen), pack).unflatten(-1, (self.heads, -1))
        k = put(self.k_proj(und), self.k_proj_moe_gen(gen), pack).unflatten(-1, (self.kv_heads, -1))
        v = put(self.v_proj(und), self.v_proj_moe_gen(gen), pack).unflatten(-1, (self.kv_heads, -1))
        q = rotate(routed(self.q_norm, self.q_norm_moe_gen, q, pack), *angles)
        k = rotate(routed(self.k_norm, self.k_norm_moe_gen, k, pack), *angles)
        return routed(self.o_proj, self.o_proj_moe_gen, attend(q, k, v, pack), pack)


class Layer(torch_bagel.Layer):
    def __init__(self, c: model_config.LLMConfig):
        super().__init__(c)
        self.self_attn = Attention(c)

    def forward(self, x, pack, angles):
        y = routed(self.input_layernorm, self.input_layernorm_moe_gen, x, pack)
        x = x + self.self_attn(y, pack, angles)
        und = self.mlp(self.post_attention_layernorm(x[pack.und]))
        gen = self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(x[pack.gen]))
        return x + put(und, gen, pack)


class Stack(torch_bagel.Stack):
    def __init__(self, c: model_config.LLMConfig, remat: bool):
        super().__init__(c)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.remat = remat

    def forward(self, x, pack: Pack):
        angle = pack.position[:, None].float() * self.frequency
        angle = torch.cat([angle, angle], dim=-1)[:, None]
        angles = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        for layer in self.layers:
            if self.remat:
                x = checkpoint(layer, x, pack, angles, use_reentrant=False)
            else:
                x = layer(x, pack, angles)
        return routed(self.norm, self.norm_moe_gen, x, pack)


class Model(nn.Module):
    """What text-to-image training runs of BAGEL; the forward pass ends in the loss."""

    def __init__(self, cfg: BagelConfig, remat: bool):
        super().__init__()
        dim = cfg.llm.hidden
        self.language_model = Named(model=Stack(cfg.llm, remat))
        self.time_embedder = TimeEmbedder(dim)
        self.vae2llm, self.llm2vae = nn.Linear(cfg.token_dim, dim), nn.Linear(dim, cfg.token_dim)
        self.latent_pos_embed = Table(cfg.max_latent, dim)

    def forward(self, pack: Pack, noise: Tensor | None) -> Tensor:
        """Mean of weights · (v − (noise − x_0))² over tokens and channels; None: noise is drawn."""
        noise = torch.randn_like(pack.latents) if noise is None else noise
        text = self.language_model.model.embed_tokens(pack.text_ids)
        t = pack.times[:, None]
        x_t = ((1 - t) * pack.latents + t * noise).to(text.dtype)
        tokens = self.vae2llm(x_t) + self.time_embedder(pack.times)
        tokens = tokens + self.latent_pos_embed(pack.places)
        hidden = self.language_model.model(put(text, tokens, pack), pack)
        velocity = self.llm2vae(hidden[pack.gen]).float()
        error = (velocity - (noise - pack.latents)).square()
        return (pack.weights[:, None] * error).mean()


@dataclasses.dataclass
class Trainer:
    """A model with its float32 masters and their optimiser; a call is a training step."""

    model: nn.Module  # a batch and noise, or None, in; the loss out
    masters: list[nn.Parameter]  # the model's own parameters where those are float32
    optimizer: torch.optim.Optimizer
    clip_norm: float

    def __call__(self, pack, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(loss, norm of the gradients) of the step."""
        self.optimizer.zero_grad()
        loss = self.model(pack, noise)
        loss.backward()
        used = trained(self.model)
        apart = [(m, p) for m, p in zip(self.masters, used, strict=True) if m is not p]
        for master, p in apart:
            master.grad, p.grad = p.grad.float(), None
        norm = nn.utils.clip_grad_norm_(self.masters, self.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            for master, p in apart:
                p.copy_(master)
        return loss.detach(), norm


def used(weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Of a whole model's weights under official names those that `Model` has."""
    other = ("vit_", "connector", "language_model.lm_head")
    return {name: w.numpy() for name, w in weights.items() if not name.startswith(other)}


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def trainer(
    cfg: BagelConfig, weights: Mapping[str, np.ndarray], optim, *, device, dtype, remat, compiled
) -> Trainer:
    """A trainer from float32 `weights` under official names; optim: an OptimConfig of AdamW."""
    with torch.device("meta"):
        model = Model(cfg, remat)
    tensors = {name: torch.tensor(w, device=device) for name, w in weights.items()}
    model.load_state_dict(tensors, assign=True)
    half = torch.arange(0, cfg.llm.head_dim, 2, device=device).float()
    model.language_model.model.frequency = cfg.llm.rope_theta ** (-half / cfg.llm.head_dim)
    model.latent_pos_embed.requires_grad_(False)
    masters = trained(model)
    if dtype != torch.float32:
        model.load_state_dict({k: w.to(dtype) for k, w in tensors.items()}, assign=True)
    return optimised(model, masters, optim, compiled)


def optimised(model: nn.Module, masters: list[nn.Parameter], optim, compiled: bool) -> Trainer:
    """A trainer of `masters`; optim: an OptimConfig of AdamW."""
    optimizer = torch.optim.AdamW(
        masters,
        lr=optim.learning_rate,
        betas=(optim.b1, optim.b2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
    )
    if compiled:
        model.forward = torch.compile(model.forward, dynamic=False)
    return Trainer(model, masters, optimizer, optim.clip_norm)
