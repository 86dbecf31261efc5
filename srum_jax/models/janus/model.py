"""Janus: vision tower, language model and the head and table of image tokens put together.

Owns how words, pictures and image tokens are embedded, and what is read from the last hidden
states: logits of words, logits of image tokens. An image token is embedded by its own table, not by
the autoencoder's codebook (`models/janus/vq.py`). What drawing and writing repeat is in
`models/janus/decoding.py`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike

from srum_jax.core import param_tree
from srum_jax.models.bagel import vit
from srum_jax.models.janus import llama
from srum_jax.models.janus.model_config import JanusConfig
from srum_jax.models.layers import linear

GUIDANCE = 5.0  # the original's scale


def _mlp(into: int, width: int, depth: int) -> param_tree.Specs:
    """Linear, then (gelu, linear) depth − 1 times: {"fc1", "hidden": {"0", …}}."""
    d = {"embed": width}
    hidden = {str(i): param_tree.linear(d, d, bias=True) for i in range(depth - 1)}
    first = {"fc1": param_tree.linear({"token": into}, d, bias=True)}
    return first | ({"hidden": hidden} if hidden else {})


def specs(cfg: JanusConfig) -> param_tree.Specs:
    """The whole model's parameters, the autoencoder's excepted."""
    width = cfg.llm.hidden
    tower = vit.specs(cfg.vit)
    tower["patch"]["w"] = param_tree.ParamSpec(
        (cfg.vit.patch, cfg.vit.patch, 3, cfg.vit.hidden),
        (None, None, None, "vit_embed"),
        fan_in=(0, 1, 2),
    )
    return {
        "embed": param_tree.ParamSpec(
            (cfg.llm.vocab, width), ("vocab", "embed"), scale=width**-0.5
        ),
        "lm_head": param_tree.linear({"embed": width}, {"vocab": cfg.llm.vocab}, bias=False),
        **llama.specs(cfg.llm),
        "vit": tower,
        "aligner": _mlp(cfg.vit.hidden, width, cfg.aligner),
        "gen_embed": param_tree.ParamSpec((cfg.vq.codes, cfg.vq.code_dim), (None, None), scale=1.0),
        "gen_aligner": _mlp(cfg.vq.code_dim, width, cfg.gen_aligner),
        "gen_head": {
            "fc1": param_tree.linear({"embed": width}, {"mlp": cfg.head_hidden}, bias=True),
            "fc2": param_tree.linear(
                {"embed": cfg.head_hidden}, {"codes": cfg.vq.codes}, bias=True
            ),
        },
    }


_gelu = functools.partial(jax.nn.gelu, approximate=False)


def _aligned(x: jax.Array, p: param_tree.Params) -> jax.Array:
    x = linear(x, p["fc1"])
    hidden = p.get("hidden", {})
    for i in range(len(hidden)):
        x = linear(_gelu(x), hidden[str(i)])
    return x


@jax.named_scope("embed_text")
def embed_text(params: param_tree.Params, ids: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Token ids [...] -> [...,D]."""
    return jnp.take(params["embed"], ids, axis=0).astype(dtype)


@jax.named_scope("embed_image_tokens")
def embed_image_tokens(params: param_tree.Params, codes: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Image tokens [...] -> [...,D]."""
    return _aligned(
        jnp.take(params["gen_embed"], codes, axis=0).astype(dtype), params["gen_aligner"]
    )


def vision(
    params: param_tree.Params,
    cfg: JanusConfig,
    patches: jax.Array,
    *,
    dtype: DTypeLike,
    remat: str = "none",
) -> jax.Array:
    """The tower's features after its last norm, [N,P,Dv], of pictures' patches [N,P,p·p·3], pixels
    in [-1, 1] (`core/patches.py`)."""
    tower, kernel = params["vit"], params["vit"]["patch"]["w"]
    patch = {**tower["patch"], "w": rearrange(kernel, "h w c d -> (h w c) d")}
    place = jnp.broadcast_to(jnp.arange(patches.shape[1])[None], patches.shape[:2])
    how = dict(remat=remat, backend=cfg.attention)
    return vit.encode(
        {**tower, "patch": patch},
        cfg.vit,
        patches.astype(dtype),
        place,
        jnp.zeros_like(place),
        **how,
    )


@jax.named_scope("embed_pictures")
def embed_pictures(
    params: param_tree.Params,
    cfg: JanusConfig,
    patches: jax.Array,
    *,
    dtype: DTypeLike,
    remat: str = "none",
) -> jax.Array:
    """Pictures' patches [N,P,p·p·3] -> [N,P,D]."""
    return _aligned(vision(params, cfg, patches, dtype=dtype, remat=remat), params["aligner"])


def embed(
    params: param_tree.Params,
    cfg: JanusConfig,
    ids: jax.Array,
    patches: jax.Array | None,
    *,
    dtype: DTypeLike,
) -> jax.Array:
    """Token ids [B,S] -> [B,S,D], the places of `cfg.image_token` filled with the features of
    pictures' `patches` [N,P,p·p·3] in order: the first row's first.

    Places and features must be as many; what is left over of either is passed by.
    """
    x = embed_text(params, ids, dtype)
    if patches is None:
        return x
    found = rearrange(embed_pictures(params, cfg, patches, dtype=dtype), "n p d -> (n p) d")
    here = ids.reshape(-1) == cfg.image_token
    order = jnp.clip(jnp.cumsum(here) - 1, 0, len(found) - 1)
    filled = jnp.where(here[:, None], found[order], x.reshape(-1, x.shape[-1]))
    return filled.reshape(x.shape)


@jax.named_scope("lm_head")
def logits(params: param_tree.Params, hidden: jax.Array) -> jax.Array:
    """Next-token logits float32 [...,V] of hidden states [...,D]."""
    return linear(hidden, params["lm_head"], jnp.float32)


@jax.named_scope("gen_head")
def image_logits(params: param_tree.Params, hidden: jax.Array) -> jax.Array:
    """Logits of the next image token, float32 [...,codes], of hidden states [...,D]."""
    head = params["gen_head"]
    return linear(_gelu(linear(hidden, head["fc1"])), head["fc2"], jnp.float32)


def unconditional(ids: jax.Array, real: jax.Array, pad: int) -> jax.Array:
    """Prompts int32 [B,P] without their words: all between the first and the last real token is
    `pad`. These pads are seen and have positions; the padding around a prompt, which `real` bool
    [B,P] excludes, stays as it is."""
    place = jnp.arange(ids.shape[1])[None]
    first = jnp.argmax(real, axis=1)[:, None]
    last = ids.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)[:, None]
    return jnp.where((place > first) & (place < last), pad, ids)


def predict_image_tokens(
    params: param_tree.Params,
    cfg: JanusConfig,
    prompts: jax.Array,
    real: jax.Array,
    codes: jax.Array,
    *,
    dtype: DTypeLike,
    remat: str = "full",
) -> tuple[jax.Array, jax.Array]:
    """One pass over prompts and the images drawn after them: (logits float32 [B,n,codes] of every
    image token given those before it, hidden states [B,P+n−1,D]).

    prompts int32 [B,P] padded on the left, the last one the mark that begins an image · real bool
    [B,P] · codes int32 [B,n]; the last one is predicted and never read.
    """
    drawn = embed_image_tokens(params, codes[:, :-1], dtype)
    x = jnp.concatenate([embed_text(params, prompts, dtype), drawn], axis=1)
    seen = jnp.concatenate([real.astype(bool), jnp.ones(drawn.shape[:2], bool)], axis=1)
    how = dict(remat=remat, backend=cfg.attention)
    hidden, _ = llama.stack(params, cfg.llm, x, llama.tokens(seen), **how)
    return image_logits(params, hidden[:, prompts.shape[1] - 1 :]), hidden


def guided(branches: Sequence[jax.Array], scale: jax.Array | float) -> jax.Array:
    """Logits guided away from the unconditional ones: u + scale · (c − u) of (c, u)."""
    conditional, other = branches
    return other + scale * (conditional - other)
