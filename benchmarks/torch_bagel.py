"""BAGEL's inference in plain PyTorch, to measure against; nothing in the package imports it.

Written for the benchmark from the specification, the way the official code works: requests lie end
to end in one packed sequence, each expert's rows are selected by index, cached and new keys are
merged by index at every call, every guidance branch is a forward pass of its own. Attention is
SDPA, one call per request, or a single one if all requests have equal lengths. Modules carry the
official names, so weights load by name.
`torch_check.py` holds it to the goldens.
"""

import math
import pathlib
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch_autoencoder import Decoder, Named, pixels

from srum_jax.models.bagel import model_config
from srum_jax.models.bagel.model_config import BagelConfig

TIME_FEATURES = 256


class Block(NamedTuple):
    """New tokens of all requests, end to end, and where their keys go among the cached ones."""

    position: Tensor  # [S] RoPE positions
    und: Tensor | None  # rows of each expert; None: all rows are und
    gen: Tensor | None
    own: Tensor  # [S] slots of the new keys in the merged sequence
    past: Tensor  # slots of the cached keys
    requests: int
    segments: tuple | None  # (new tokens, cached and new ones) of each request; None: all equal
    causal: bool


class Context(NamedTuple):
    """What the requests have read: packed keys and values [T,K,C] of each layer."""

    keys: list[Tensor]
    values: list[Tensor]
    lengths: tuple[int, ...]
    positions: tuple[int, ...]  # the RoPE position that comes next

    def grown(self, keys, values, lengths, positions) -> "Context":
        """With so many more tokens and positions a request."""
        return Context(
            keys,
            values,
            tuple(a + b for a, b in zip(self.lengths, lengths, strict=True)),
            tuple(a + b for a, b in zip(self.positions, positions, strict=True)),
        )


def segments(new, total) -> tuple | None:
    """Lengths for `Block`; constants to a compiled program, so left out where it can do without."""
    if len(set(new)) == len(set(total)) == 1:
        return None
    return tuple(new), tuple(total)


def routed(und: nn.Module, gen: nn.Module, x: Tensor, block: Block) -> Tensor:
    """Every row of x through its expert's module."""
    if block.gen is None:
        return und(x)
    first = und(x[block.und])
    out = x.new_zeros((len(x), *first.shape[1:]))
    out[block.und] = first
    out[block.gen] = gen(x[block.gen])
    return out


def attend(q: Tensor, k: Tensor, v: Tensor, block: Block) -> Tensor:
    """Packed attention: q [S,H,C], k, v [T,K,C] -> [S,H·C]; a query sees its own request."""

    def one(q, k, v):  # [B,S,H,C], [B,T,K,C]
        s, t = q.shape[1], k.shape[1]
        mask = None
        if block.causal and 1 < s < t:
            mask = torch.ones(s, t, dtype=torch.bool, device=q.device).tril(t - s)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=block.causal and s == t, enable_gqa=True
        )
        return out.transpose(1, 2).flatten(2)

    if block.segments is None:
        return one(*(x.unflatten(0, (block.requests, -1)) for x in (q, k, v))).flatten(0, 1)
    new, total = block.segments
    parts = zip(q.split(new), k.split(total), v.split(total), strict=True)
    return torch.cat([one(*(x[None] for x in part))[0] for part in parts])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split RoPE of x [S,H,C] by angles [S,1,C]."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(dim)), eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


class MLP(nn.Module):
    def __init__(self, dim: int, ffn: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, ffn, bias=False)
        self.up_proj = nn.Linear(dim, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, dim, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Attention(nn.Module):
    def __init__(self, c: model_config.LLMConfig):
        super().__init__()
        self.heads, self.kv_heads = c.heads, c.kv_heads
        for moe in ("", "_moe_gen"):
            self.add_module(f"q_proj{moe}", nn.Linear(c.hidden, c.heads * c.head_dim))
            self.add_module(f"k_proj{moe}", nn.Linear(c.hidden, c.kv_heads * c.head_dim))
            self.add_module(f"v_proj{moe}", nn.Linear(c.hidden, c.kv_heads * c.head_dim))
            self.add_module(f"o_proj{moe}", nn.Linear(c.heads * c.head_dim, c.hidden, bias=False))
            self.add_module(f"q_norm{moe}", RMSNorm(c.head_dim, c.rms_eps))
            self.add_module(f"k_norm{moe}", RMSNorm(c.head_dim, c.rms_eps))

    def forward(self, x, block, angles, past):
        q = routed(self.q_proj, self.q_proj_moe_gen, x, block).unflatten(-1, (self.heads, -1))
        k = routed(self.k_proj, self.k_proj_moe_gen, x, block).unflatten(-1, (self.kv_heads, -1))
        v = routed(self.v_proj, self.v_proj_moe_gen, x, block).unflatten(-1, (self.kv_heads, -1))
        q = rotate(routed(self.q_norm, self.q_norm_moe_gen, q, block), *angles)
        k = rotate(routed(self.k_norm, self.k_norm_moe_gen, k, block), *angles)
        if past is not None:
            k, v = (self._merge(new, old, block) for new, old in zip((k, v), past, strict=True))
        out = routed(self.o_proj, self.o_proj_moe_gen, attend(q, k, v, block), block)
        return out, k, v

    @staticmethod
    def _merge(new, old, block):
        merged = new.new_zeros((len(new) + len(old), *new.shape[1:]))
        merged[block.own] = new
        merged[block.past] = old
        return merged


class Layer(nn.Module):
    def __init__(self, c: model_config.LLMConfig):
        super().__init__()
        self.self_attn = Attention(c)
        for moe in ("", "_moe_gen"):
            self.add_module(f"mlp{moe}", MLP(c.hidden, c.ffn))
            self.add_module(f"input_layernorm{moe}", RMSNorm(c.hidden, c.rms_eps))
            self.add_module(f"post_attention_layernorm{moe}", RMSNorm(c.hidden, c.rms_eps))

    def forward(self, x, block, angles, past):
        y = routed(self.input_layernorm, self.input_layernorm_moe_gen, x, block)
        y, k, v = self.self_attn(y, block, angles, past)
        x = x + y
        y = routed(self.post_attention_layernorm, self.post_attention_layernorm_moe_gen, x, block)
        return x + routed(self.mlp, self.mlp_moe_gen, y, block), k, v


class Stack(nn.Module):
    def __init__(self, c: model_config.LLMConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = RMSNorm(c.hidden, c.rms_eps)
        self.norm_moe_gen = RMSNorm(c.hidden, c.rms_eps)
        frequency = c.rope_theta ** (-torch.arange(0, c.head_dim, 2).float() / c.head_dim)
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, x, block: Block, keys, values):
        """[S,D] -> last hidden states [S,D] and each layer's merged keys and values."""
        angle = block.position[:, None].float() * self.frequency.float()
        angle = torch.cat([angle, angle], dim=-1)[:, None]
        angles = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        merged = [], []
        for i, layer in enumerate(self.layers):
            past = (keys[i], values[i]) if keys else None
            x, k, v = layer(x, block, angles, past)
            merged[0].append(k)
            merged[1].append(v)
        return routed(self.norm, self.norm_moe_gen, x, block), *merged


class LanguageModel(nn.Module):
    def __init__(self, c: model_config.LLMConfig):
        super().__init__()
        self.model = Stack(c)
        self.lm_head = nn.Linear(c.hidden, c.vocab, bias=False)


class Table(nn.Module):
    def __init__(self, side: int, dim: int):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(side * side, dim))

    def forward(self, ids):
        return self.pos_embed[ids]


class TimeEmbedder(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t):
        half = TIME_FEATURES // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angle = t[:, None].float() * torch.exp(-math.log(10000.0) / half * steps)
        features = torch.cat([angle.cos(), angle.sin()], dim=-1)
        return self.mlp(features.to(self.mlp[0].weight.dtype))


class VisionLayer(nn.Module):
    def __init__(self, c: model_config.ViTConfig):
        super().__init__()
        self.heads = c.heads
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(c.hidden, c.eps) for _ in range(2))
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = Named(**{n: nn.Linear(c.hidden, c.hidden) for n in names})
        self.mlp = Named(fc1=nn.Linear(c.hidden, c.ffn), fc2=nn.Linear(c.ffn, c.hidden))

    def forward(self, x, block):
        a, y = self.self_attn, self.layer_norm1(x)
        q, k, v = (p(y).unflatten(-1, (self.heads, -1)) for p in (a.q_proj, a.k_proj, a.v_proj))
        x = x + a.out_proj(attend(q, k, v, block))
        y = F.gelu(self.mlp.fc1(self.layer_norm2(x)), approximate="tanh")
        return x + self.mlp.fc2(y)


class Vision(nn.Module):
    def __init__(self, c: model_config.ViTConfig):
        super().__init__()
        self.embeddings = Named(
            patch_embedding=nn.Linear(c.patch**2 * 3, c.hidden),
            position_embedding=nn.Embedding(c.positions**2, c.hidden),
        )
        self.encoder = Named(layers=nn.ModuleList(VisionLayer(c) for _ in range(c.layers)))
        self.post_layernorm = nn.LayerNorm(c.hidden, c.eps)

    def forward(self, patches, ids, lengths):
        e = self.embeddings
        x = e.patch_embedding(patches) + e.position_embedding(ids)
        same = segments(lengths, lengths)
        block = Block(None, None, None, None, None, len(lengths), same, causal=False)
        for layer in self.encoder.layers:
            x = layer(x, block)
        return self.post_layernorm(x)


class Bagel(nn.Module):
    """The whole model; the functions that take lists work on a list of requests."""

    def __init__(self, cfg: BagelConfig):
        super().__init__()
        self.cfg, dim = cfg, cfg.llm.hidden
        self.language_model = LanguageModel(cfg.llm)
        self.vit_model = Named(vision_model=Vision(cfg.vit))
        self.connector = Named(fc1=nn.Linear(cfg.vit.hidden, dim), fc2=nn.Linear(dim, dim))
        self.time_embedder = TimeEmbedder(dim)
        self.vae2llm, self.llm2vae = nn.Linear(cfg.token_dim, dim), nn.Linear(dim, cfg.token_dim)
        self.latent_pos_embed = Table(cfg.max_latent, dim)
        self.vit_pos_embed = Table(cfg.max_vit, dim)

    @property
    def device(self):
        return self.llm2vae.weight.device

    def indices(self, values) -> Tensor:
        return torch.as_tensor(np.asarray(values, np.int64), device=self.device)

    def empty(self, requests: int) -> Context:
        return Context([], [], (0,) * requests, (0,) * requests)

    def block(self, context: Context, lengths, positions, *, causal=False, gen=None) -> Block:
        """New tokens behind a context; `gen` numbers the rows of the generation expert."""
        own, past, start = [], [], 0
        for old, new in zip(context.lengths, lengths, strict=True):
            past.append(np.arange(start, start + old))
            own.append(np.arange(start + old, start + old + new))
            start += old + new
        und = None
        if gen is not None:
            und = self.indices(np.setdiff1d(np.arange(sum(lengths)), gen))
            gen = self.indices(gen)
        return Block(
            position=self.indices(np.concatenate(positions)),
            und=und,
            gen=gen,
            own=self.indices(np.concatenate(own)),
            past=self.indices(np.concatenate(past)),
            requests=len(lengths),
            segments=segments(lengths, np.add(context.lengths, lengths).tolist()),
            causal=causal,
        )

    def read_text(self, context: Context, texts) -> Context:
        """Appends ids (bos … eos) of each request."""
        lengths = [len(t) for t in texts]
        positions = [np.arange(p, p + n) for p, n in zip(context.positions, lengths, strict=True)]
        block = self.block(context, lengths, positions, causal=True)
        x = self.language_model.model.embed_tokens(self.indices(np.concatenate(texts)))
        _, keys, values = self.language_model.model(x, block, context.keys, context.values)
        return context.grown(keys, values, lengths, lengths)

    def read_pictures(self, context: Context, patches, ids) -> Context:
        """Appends a picture to each request: ViT patches [P,p·p·3] and their position ids [P]."""
        counts = tuple(len(p) for p in patches)
        lengths = [n + 2 for n in counts]
        starts = np.cumsum([0, *lengths[:-1]])
        slots = np.concatenate([s + 1 + np.arange(n) for s, n in zip(starts, counts, strict=True)])
        marks = np.concatenate([(s, s + n + 1) for s, n in zip(starts, counts, strict=True)])
        positions = [np.full(n, p) for p, n in zip(context.positions, lengths, strict=True)]
        block = self.block(context, lengths, positions)

        pixels = torch.as_tensor(np.concatenate(patches), device=self.device)
        pixels, places = pixels.to(self.llm2vae.weight.dtype), self.indices(np.concatenate(ids))
        y = self.vit_model.vision_model(pixels, places, counts)
        y = self.connector.fc2(F.gelu(self.connector.fc1(y), approximate="tanh"))
        y = y + self.vit_pos_embed(places)
        x = y.new_zeros((sum(lengths), y.shape[-1]))
        x[self.indices(marks)] = self._marks(len(counts))
        x[self.indices(slots)] = y
        _, keys, values = self.language_model.model(x, block, context.keys, context.values)
        return context.grown(keys, values, lengths, [1] * len(lengths))

    def _marks(self, requests: int) -> Tensor:
        ids = [self.cfg.start_of_image, self.cfg.end_of_image] * requests
        return self.language_model.model.embed_tokens(self.indices(ids))

    def _step(self, x, t, after, marks, places, branches, guidance, renorm, renorm_min):
        """One Euler step of packed latent tokens x; one forward pass a branch."""
        dtype = self.llm2vae.weight.dtype
        block = branches[0][0]
        tokens = self.vae2llm(x.to(dtype)) + self.time_embedder(t.expand(len(x)))
        tokens = tokens + self.latent_pos_embed(places)
        packed = tokens.new_zeros((len(marks) + len(tokens), tokens.shape[-1]))
        packed[block.und] = marks
        packed[block.gen] = tokens
        v = []
        for block, keys, values in branches:
            hidden, _, _ = self.language_model.model(packed, block, keys, values)
            v.append(self.llm2vae(hidden[block.gen]).float())
        u = v[0]
        if len(v) == 2:
            u = v[1] + guidance * (v[0] - v[1])
            if renorm == "global":  # over all requests, as officially
                u = u * (v[0].norm() / (u.norm() + 1e-8)).clamp(renorm_min, 1.0)
        return x - u * (t - after)

    def latents(self, context: Context, noise: Tensor, grid, settings) -> list[Tensor]:
        """Every x_t of a run; noise [R,G,p·p·Z] float32, text guidance against an empty context.

        settings: steps, shift, guidance, guidance_interval, renorm ("none", "global"), renorm_min.
        """
        requests, count = noise.shape[:2]
        starts = np.arange(requests)[:, None] * (count + 2)
        gen = (starts + 1 + np.arange(count)).ravel()

        def branch(c):
            positions = [np.full(count + 2, p) for p in c.positions]
            return self.block(c, [count + 2] * requests, positions, gen=gen), c.keys, c.values

        branches = [branch(context), branch(self.empty(requests))]
        place = np.arange(grid[0])[:, None] * self.cfg.max_latent + np.arange(grid[1])
        places = self.indices(np.tile(place.ravel(), requests))
        marks = self._marks(requests)
        times = torch.linspace(1, 0, settings.steps + 1)
        times = settings.shift * times / (1 + (settings.shift - 1) * times)
        low, high = settings.guidance_interval
        guided = [settings.guidance > 1 and low < t <= high for t in times.tolist()]
        times = times.to(self.device)
        path = [noise.flatten(0, 1)]
        for i in range(settings.steps):
            path.append(
                self._step(
                    path[-1],
                    times[i],
                    times[i + 1],
                    marks,
                    places,
                    branches if guided[i] else branches[:1],
                    settings.guidance,
                    settings.renorm,
                    settings.renorm_min,
                )
            )
        return [x.unflatten(0, (requests, count)) for x in path]

    def _token(self, ids, block, keys, values):
        x = self.language_model.model.embed_tokens(ids)
        hidden, keys, values = self.language_model.model(x, block, keys, values)
        logits = self.language_model.lm_head(hidden)
        return logits.argmax(-1), logits, keys, values

    @torch.inference_mode()
    def greedy(self, context: Context, count: int) -> tuple[Tensor, Tensor]:
        """`count` tokens after bos, eos ignored: ids [R,count] and logits [R,count,V]."""
        requests = len(context.lengths)
        ids, found, logits = self.indices([self.cfg.bos] * requests), [], []
        for _ in range(count):
            block = self.block(context, [1] * requests, [[p] for p in context.positions])
            ids, scores, keys, values = self._token(ids, block, context.keys, context.values)
            context = context.grown(keys, values, [1] * requests, [1] * requests)
            found.append(ids)
            logits.append(scores)
        return torch.stack(found, 1), torch.stack(logits, 1)


@torch.inference_mode()
def images(model: Bagel, decoder: Decoder, prompts, noise: Tensor, grid, settings) -> Tensor:
    """The whole path: prompts (ids, bos … eos) and noise -> uint8 [R,H,W,3]."""
    context = model.read_text(model.empty(len(prompts)), prompts)
    path = model.latents(context, noise, grid, settings)
    return pixels(decoder, model.cfg, path[-1], grid)


@torch.inference_mode()
def answers(model: Bagel, patches, ids, questions, count: int) -> Tensor:
    """A picture and a question each, then `count` greedy tokens [R,count]."""
    context = model.read_pictures(model.empty(len(patches)), patches, ids)
    return model.greedy(model.read_text(context, questions), count)[0]


def load(folder, *, device="cpu", dtype=torch.float32) -> tuple[Bagel, Decoder]:
    """A checkpoint folder in the Hugging Face layout; the decoder stays float32."""
    folder = pathlib.Path(folder)
    cfg = model_config.from_folder(folder)
    with torch.device("meta"):
        model, decoder = Bagel(cfg), Decoder(cfg.vae)
    weights = {k: v.to(device, dtype) for k, v in load_file(folder / "ema.safetensors").items()}
    model.load_state_dict(weights, assign=True)
    half = torch.arange(0, cfg.llm.head_dim, 2, device=device).float()
    model.language_model.model.frequency = cfg.llm.rope_theta ** (-half / cfg.llm.head_dim)
    autoencoder = load_file(folder / "ae.safetensors")
    inside = {k.removeprefix("decoder."): v for k, v in autoencoder.items() if "decoder." in k}
    decoder.load_state_dict(
        {k: v.to(device, torch.float32) for k, v in inside.items()}, assign=True
    )
    return model.eval().requires_grad_(False), decoder.eval().requires_grad_(False)


def compile_model(model: Bagel, decoder: Decoder, **options) -> None:
    """`torch.compile` of what repeats: a sampling step, a decoding step, the decoder."""
    model._step = torch.compile(model._step, dynamic=False, **options)
    model._token = torch.compile(model._token, dynamic=True, **options)
    decoder.forward = torch.compile(decoder.forward, dynamic=False, **options)


class Settings(NamedTuple):
    steps: int
    shift: float
    guidance: float
    guidance_interval: tuple[float, float]
    renorm: str
    renorm_min: float
