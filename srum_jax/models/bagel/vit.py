"""The SigLIP-NaViT tower: patches of several pictures in one row -> features.

Pictures of any size share a row; a patch attends only to its own picture. Linear patch embedding,
learned positions, pre-norm blocks, a last norm (original: `modeling/bagel/siglip_navit.py`).
Connector and connector positions belong to `models/bagel/model.py`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from srum_jax.core.param_tree import Params, ParamSpec, Specs, norm
from srum_jax.core.param_tree import linear as linear_specs
from srum_jax.data.schema import FULL, Tokens
from srum_jax.models import attention
from srum_jax.models.bagel.model_config import ViTConfig
from srum_jax.models.layers import layer_norm, linear, merge_heads, rematerialised


def specs(cfg: ViTConfig) -> Specs:
    """Parameter tree; block leaves are stacked over layers.

    Raises ValueError if the hidden size is not a multiple of the number of heads.
    """
    if cfg.hidden % cfg.heads:
        raise ValueError(f"ViT hidden size {cfg.hidden} is not a multiple of {cfg.heads} heads")
    d, mlp = {"vit_embed": cfg.hidden}, {"vit_mlp": cfg.ffn}
    heads = {"vit_heads": cfg.heads, "head_dim": cfg.hidden // cfg.heads}
    stacked = functools.partial(linear_specs, bias=True, stack=cfg.layers)
    stacked_norm = functools.partial(norm, cfg.hidden, "vit_embed", bias=True, stack=cfg.layers)
    return {
        "patch": linear_specs({"patch": cfg.patch**2 * 3}, d, bias=True),
        "positions": ParamSpec(
            (cfg.positions**2, cfg.hidden), ("positions", "vit_embed"), scale=0.02
        ),
        "blocks": {
            "ln1": stacked_norm(),
            "q": stacked(d, heads),
            "k": stacked(d, heads),
            "v": stacked(d, heads),
            "o": stacked(heads, d),
            "ln2": stacked_norm(),
            "fc1": stacked(d, mlp),
            "fc2": stacked(mlp, d),
        },
        "post_norm": norm(cfg.hidden, "vit_embed", bias=True),
    }


def _tokens(image_index: jax.Array) -> Tokens:
    """The patches of each image as a sample of their own that all see each other."""
    zero = jnp.zeros_like(image_index)
    place = jnp.arange(image_index.shape[1], dtype=image_index.dtype)[None]
    return Tokens(
        segment=image_index + 1,
        split=zero,
        mode=zero + FULL,
        position=zero,
        index=jnp.where(image_index < 0, -1, place),
    )


def _block(x: jax.Array, p: Params, attend: Callable, cfg: ViTConfig) -> jax.Array:
    with jax.named_scope("attention"):
        y = layer_norm(x, p["ln1"], cfg.eps)
        q, k, v = (linear(y, p[name], jnp.float32) for name in "qkv")
        q, k, v = attention.scaled(q, x.dtype), k.astype(x.dtype), v.astype(x.dtype)
        (o,) = attend([q], [k], [v])
        x = (x + merge_heads(o, p["o"], jnp.float32)).astype(x.dtype)
    with jax.named_scope("mlp"):
        y = linear(layer_norm(x, p["ln2"], cfg.eps), p["fc1"], jnp.float32)
        y = jax.nn.gelu(y, approximate=not cfg.exact_gelu).astype(x.dtype)
        return (x + linear(y, p["fc2"], jnp.float32)).astype(x.dtype)


@jax.named_scope("vit")
def encode(
    params: Params,
    cfg: ViTConfig,
    patches: jax.Array,
    position_ids: jax.Array,
    image_index: jax.Array,
    *,
    remat: str = "full",
    backend: str = "dense",
) -> jax.Array:
    """Features after the last norm, [B, P, Dv] in the dtype of `patches`.

    patches: [B, P, p·p·3] float, pixels in [-1, 1], inner order (ph, pw, channel);
    position_ids: [B, P] int32 into the learned table (row·positions + column);
    image_index: [B, P] int32, patches attend within equal index; negative marks padding, whose
    features mean nothing. `remat`: what the backward pass finds kept, a name of `layers.REMAT`.
    `backend`: of attention, as `attention.over` names them.
    """
    x = linear(patches, params["patch"], jnp.float32)
    x = x + jnp.take(params["positions"], position_ids, axis=0, mode="clip")
    x = x.astype(patches.dtype)
    (x,) = attention.shard_tokens(x)
    attend = attention.over([_tokens(image_index)], backend)

    def step(carry, p):
        (x,) = attention.shard_tokens(_block(carry, p, attend, cfg))
        return x, None

    x, _ = jax.lax.scan(rematerialised(step, remat), x, params["blocks"])
    return layer_norm(x, params["post_norm"], cfg.eps)
