"""BAGEL's table of names (`models/name_table.py`), for model and autoencoder.

The two sin-cos position tables are computed, not learned: they have official names and no leaf.
"""

import numpy as np

from srum_jax.core import param_tree
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import vae
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.models.name_table import TableEntry, entries

MODEL_FILE = "ema.safetensors"
VAE_FILE = "ae.safetensors"

_LLM = "language_model.model."
_LAYER = _LLM + "layers.{}."
_VIT = "vit_model.vision_model."
_VIT_LAYER = _VIT + "encoder.layers.{}."

# Our path -> (official name, pattern). {} is the layer.
_TOP = {
    "embed": (_LLM + "embed_tokens.weight", "v d -> v d"),
    "lm_head/w": ("language_model.lm_head.weight", "v d -> d v"),
    "time/fc1/w": ("time_embedder.mlp.0.weight", "o i -> i o"),
    "time/fc1/b": ("time_embedder.mlp.0.bias", "o -> o"),
    "time/fc2/w": ("time_embedder.mlp.2.weight", "o i -> i o"),
    "time/fc2/b": ("time_embedder.mlp.2.bias", "o -> o"),
    "vae2llm/w": ("vae2llm.weight", "o i -> i o"),
    "vae2llm/b": ("vae2llm.bias", "o -> o"),
    "llm2vae/w": ("llm2vae.weight", "o i -> i o"),
    "llm2vae/b": ("llm2vae.bias", "o -> o"),
    "connector/fc1/w": ("connector.fc1.weight", "o i -> i o"),
    "connector/fc1/b": ("connector.fc1.bias", "o -> o"),
    "connector/fc2/w": ("connector.fc2.weight", "o i -> i o"),
    "connector/fc2/b": ("connector.fc2.bias", "o -> o"),
    "vit/patch/w": (_VIT + "embeddings.patch_embedding.weight", "o i -> i o"),
    "vit/patch/b": (_VIT + "embeddings.patch_embedding.bias", "o -> o"),
    "vit/positions": (_VIT + "embeddings.position_embedding.weight", "n d -> n d"),
    "vit/post_norm/scale": (_VIT + "post_layernorm.weight", "d -> d"),
    "vit/post_norm/bias": (_VIT + "post_layernorm.bias", "d -> d"),
}
# Below "blocks/<expert>/"; <moe> is "" for und and "_moe_gen" for gen.
_BLOCK = {
    "ln1/scale": ("input_layernorm<moe>.weight", "d -> d"),
    "ln2/scale": ("post_attention_layernorm<moe>.weight", "d -> d"),
    "q/w": ("self_attn.q_proj<moe>.weight", "(h c) d -> d h c"),
    "q/b": ("self_attn.q_proj<moe>.bias", "(h c) -> h c"),
    "k/w": ("self_attn.k_proj<moe>.weight", "(h c) d -> d h c"),
    "k/b": ("self_attn.k_proj<moe>.bias", "(h c) -> h c"),
    "v/w": ("self_attn.v_proj<moe>.weight", "(h c) d -> d h c"),
    "v/b": ("self_attn.v_proj<moe>.bias", "(h c) -> h c"),
    "o/w": ("self_attn.o_proj<moe>.weight", "d (h c) -> h c d"),
    "q_norm/scale": ("self_attn.q_norm<moe>.weight", "c -> c"),
    "k_norm/scale": ("self_attn.k_norm<moe>.weight", "c -> c"),
    "gate/w": ("mlp<moe>.gate_proj.weight", "f d -> d f"),
    "up/w": ("mlp<moe>.up_proj.weight", "f d -> d f"),
    "down/w": ("mlp<moe>.down_proj.weight", "d f -> f d"),
}
# Below "vit/blocks/".
_VIT_BLOCK = {
    "ln1/scale": ("layer_norm1.weight", "d -> d"),
    "ln1/bias": ("layer_norm1.bias", "d -> d"),
    "q/w": ("self_attn.q_proj.weight", "(h c) d -> d h c"),
    "q/b": ("self_attn.q_proj.bias", "(h c) -> h c"),
    "k/w": ("self_attn.k_proj.weight", "(h c) d -> d h c"),
    "k/b": ("self_attn.k_proj.bias", "(h c) -> h c"),
    "v/w": ("self_attn.v_proj.weight", "(h c) d -> d h c"),
    "v/b": ("self_attn.v_proj.bias", "(h c) -> h c"),
    "o/w": ("self_attn.out_proj.weight", "d (h c) -> h c d"),
    "o/b": ("self_attn.out_proj.bias", "d -> d"),
    "ln2/scale": ("layer_norm2.weight", "d -> d"),
    "ln2/bias": ("layer_norm2.bias", "d -> d"),
    "fc1/w": ("mlp.fc1.weight", "f d -> d f"),
    "fc1/b": ("mlp.fc1.bias", "f -> f"),
    "fc2/w": ("mlp.fc2.weight", "d f -> f d"),
    "fc2/b": ("mlp.fc2.bias", "d -> d"),
}


def _model_rules() -> dict[str, tuple[str, str]]:
    """Our path -> (official name, pattern) for a whole model."""
    rules = dict(_TOP)
    for expert, moe in (("und", ""), ("gen", "_moe_gen")):
        rules[f"norm/{expert}/scale"] = (f"{_LLM}norm{moe}.weight", "d -> d")
        for path, (name, pattern) in _BLOCK.items():
            rules[f"blocks/{expert}/{path}"] = (_LAYER + name.replace("<moe>", moe), pattern)
    for path, (name, pattern) in _VIT_BLOCK.items():
        rules[f"vit/blocks/{path}"] = (_VIT_LAYER + name, pattern)
    return rules


def _vae_rule(path: str, spec: param_tree.ParamSpec) -> tuple[str, str]:
    """The autoencoder's tree has the official structure: only leaf names and kernels differ."""
    head, leaf = path.rsplit("/", 1)
    suffix = {"w": "weight", "scale": "weight", "b": "bias", "bias": "bias"}[leaf]
    pattern = "o i h w -> h w i o" if len(spec.shape) == 4 else "o -> o"
    return f"{head.replace('/', '.')}.{suffix}", pattern


def table(cfg: BagelConfig) -> dict[str, list[TableEntry]]:
    """File name -> its entries, for every leaf of the spec trees; nothing is allocated."""
    model, autoencoder = (
        param_tree.flatten(bagel.specs(cfg)),
        param_tree.flatten(vae.specs(cfg.vae)),
    )
    rules = _model_rules()
    return {
        MODEL_FILE: [e for path, s in model.items() for e in entries(path, *rules[path], s)],
        VAE_FILE: [
            e for path, s in autoencoder.items() for e in entries(path, *_vae_rule(path, s), s)
        ],
    }


def computed_tables(cfg: BagelConfig) -> dict[str, tuple[int, int]]:
    """Official names of the fixed position tables -> (side, features): shape [side², features]."""
    return {
        "latent_pos_embed.pos_embed": (cfg.max_latent, cfg.llm.hidden),
        "vit_pos_embed.pos_embed": (cfg.max_vit, cfg.llm.hidden),
    }


def position_table(side: int, dim: int) -> np.ndarray:
    """The official values of such a table, float32 [side², dim], computed in float64.

    NumPy rather than `layers.sincos_2d`, so that the same bytes are written on every device.
    """
    frequency = 10000.0 ** (-np.arange(dim // 4) / (dim / 4))
    angle = np.arange(side)[:, None] * frequency
    half = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)
    column, row = np.tile(half, (side, 1)), np.repeat(half, side, axis=0)
    return np.concatenate([column, row], axis=-1)
