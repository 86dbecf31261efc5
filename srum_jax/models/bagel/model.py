"""BAGEL: the towers and the MoT stack put together (original: `modeling/bagel/bagel.py`).

Owns how tokens are embedded and what is read from the last hidden states: velocities from the gen
lane, logits from the und lane. The autoencoder is apart (`models/bagel/vae.py`): training needs
none.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from srum_jax.core import param_tree
from srum_jax.data.schema import Batch
from srum_jax.models.bagel import mot, vit
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.models.layers import linear, sincos_2d, timestep_sinusoid

TIME_FEATURES = 256


def specs(cfg: BagelConfig) -> param_tree.Specs:
    """The whole model's parameters, the autoencoder's excepted."""
    d = {"embed": cfg.llm.hidden}
    token, vit_d = {"token": cfg.token_dim}, {"vit_embed": cfg.vit.hidden}
    return {
        "embed": param_tree.ParamSpec(
            (cfg.llm.vocab, cfg.llm.hidden), ("vocab", "embed"), scale=cfg.llm.hidden**-0.5
        ),
        "lm_head": param_tree.linear(d, {"vocab": cfg.llm.vocab}, bias=False),
        **mot.specs(cfg.llm),
        "time": {
            "fc1": param_tree.linear({"time": TIME_FEATURES}, d, bias=True),
            "fc2": param_tree.linear(d, d, bias=True),
        },
        "vae2llm": param_tree.linear(token, d, bias=True),
        "llm2vae": param_tree.linear(d, token, bias=True, zero=True),
        "connector": {
            "fc1": param_tree.linear(vit_d, d, bias=True),
            "fc2": param_tree.linear(d, d, bias=True),
        },
        "vit": vit.specs(cfg.vit),
    }


@jax.named_scope("embed_text")
def embed_text(params: param_tree.Params, ids: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Token ids [B,U] -> [B,U,D]."""
    return jnp.take(params["embed"], ids, axis=0).astype(dtype)


@jax.named_scope("embed_pictures")
def embed_pictures(
    params: param_tree.Params,
    cfg: BagelConfig,
    patches: jax.Array,
    positions: jax.Array,
    images: jax.Array,
    *,
    dtype: DTypeLike,
    remat: str,
) -> jax.Array:
    """ViT, connector and connector positions: patches [B,P,p·p·3] -> [B,P,D]."""
    x = vit.encode(
        params["vit"],
        cfg.vit,
        patches.astype(dtype),
        positions,
        images,
        remat=remat,
        backend=cfg.attention,
    )
    x = linear(x, params["connector"]["fc1"], jnp.float32)
    x = jax.nn.gelu(x, approximate=True).astype(dtype)
    x = linear(x, params["connector"]["fc2"], jnp.float32)
    return (x + sincos_2d(positions, cfg.max_vit, cfg.llm.hidden)).astype(dtype)


@jax.named_scope("embed_time")
def embed_time(params: param_tree.Params, t: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Times [...] in [0, 1] -> [..., D]."""
    fc1, fc2 = params["time"]["fc1"], params["time"]["fc2"]
    h = linear(timestep_sinusoid(t, TIME_FEATURES).astype(dtype), fc1, jnp.float32)
    return linear(jax.nn.silu(h).astype(dtype), fc2, jnp.float32).astype(dtype)


def embed_cells(cfg: BagelConfig, positions: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Position ids of latent tokens [B,G] -> [B,G,D]."""
    return sincos_2d(positions, cfg.max_latent, cfg.llm.hidden).astype(dtype)


@jax.named_scope("embed_latents")
def embed_latents(
    params: param_tree.Params, x_t: jax.Array, time: jax.Array, cells: jax.Array
) -> jax.Array:
    """Latent tokens x_t [B,G,p·p·Z] with embedded times and cells, [B,G,D] each -> [B,G,D]."""
    x = linear(x_t.astype(cells.dtype), params["vae2llm"], jnp.float32)
    return (x + time + cells).astype(cells.dtype)


def forward(
    params: param_tree.Params,
    cfg: BagelConfig,
    batch: Batch,
    x_t: jax.Array,
    t: jax.Array,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: str = "full",
    keep: str = "none",
) -> tuple[jax.Array, jax.Array, Any]:
    """Hidden states after the final norms: (und [B,U,D], gen [B,G,D], kept as in `mot.stack`).

    x_t [B,G,p·p·Z] float32: the latents as the model sees them; t [B,N]: time per latent image
    (0 for clean ones).
    """
    und = embed_text(params, batch.text_ids, dtype)
    if batch.vit_patches.shape[1]:
        pictures = embed_pictures(
            params,
            cfg,
            batch.vit_patches,
            batch.vit_positions,
            batch.vit_images,
            dtype=dtype,
            remat=remat,
        )
        rows = jnp.arange(und.shape[0])[:, None]
        und = und.at[rows, batch.vit_slots].set(pictures, mode="drop")
    time = jnp.take_along_axis(
        embed_time(params, t, dtype), batch.latent_images[:, :, None], axis=1
    )
    gen = embed_latents(params, x_t, time, embed_cells(cfg, batch.latent_positions, dtype))
    return mot.stack(
        params,
        cfg.llm,
        und,
        gen,
        batch.und,
        batch.gen,
        keep=keep,
        remat=remat,
        backend=cfg.attention,
    )


@jax.named_scope("velocity")
def velocity(params: param_tree.Params, gen: jax.Array) -> jax.Array:
    """v_theta of the gen lane: [B,G,D] -> [B,G,p·p·Z] float32."""
    return linear(gen, params["llm2vae"], jnp.float32)


@jax.named_scope("lm_head")
def logits(params: param_tree.Params, und: jax.Array, slots: jax.Array) -> jax.Array:
    """Next-token logits at chosen slots of the und lane: [B,U,D], [B,Y] -> [B,Y,V] float32."""
    picked = jnp.take_along_axis(und, slots[:, :, None], axis=1)
    return linear(picked, params["lm_head"], jnp.float32)
