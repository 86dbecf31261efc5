"""Janus's table of names (`models/name_table.py`) in the Hugging Face layout.

The original's names follow from these (`models/janus/original.py`).
"""

from srum_jax.core import param_tree
from srum_jax.models.janus import model as janus
from srum_jax.models.janus import vq
from srum_jax.models.janus.model_config import JanusConfig
from srum_jax.models.name_table import TableEntry, entries

_LLM = "model.language_model."
_VIT = "model.vision_model."
_VQ = "model.vqmodel."

# Our path -> (official name, pattern). {} is the layer.
_TOP = {
    "embed": (_LLM + "embed_tokens.weight", "v d -> v d"),
    "lm_head/w": ("lm_head.weight", "v d -> d v"),
    "norm/scale": (_LLM + "norm.weight", "d -> d"),
    "gen_embed": ("model.generation_embeddings.weight", "v d -> v d"),
    "gen_head/fc1/w": ("model.generation_head.proj_out.weight", "o i -> i o"),
    "gen_head/fc1/b": ("model.generation_head.proj_out.bias", "o -> o"),
    "gen_head/fc2/w": ("model.generation_head.vision_head.weight", "o i -> i o"),
    "gen_head/fc2/b": ("model.generation_head.vision_head.bias", "o -> o"),
    "vit/patch/w": (_VIT + "embeddings.patch_embedding.weight", "o i h w -> h w i o"),
    "vit/patch/b": (_VIT + "embeddings.patch_embedding.bias", "o -> o"),
    "vit/positions": (_VIT + "embeddings.position_embedding.weight", "n d -> n d"),
    "vit/post_norm/scale": (_VIT + "post_layernorm.weight", "d -> d"),
    "vit/post_norm/bias": (_VIT + "post_layernorm.bias", "d -> d"),
}
_BLOCK = {  # below "blocks/"
    "ln1/scale": ("input_layernorm.weight", "d -> d"),
    "ln2/scale": ("post_attention_layernorm.weight", "d -> d"),
    "q/w": ("self_attn.q_proj.weight", "(h c) d -> d h c"),
    "k/w": ("self_attn.k_proj.weight", "(h c) d -> d h c"),
    "v/w": ("self_attn.v_proj.weight", "(h c) d -> d h c"),
    "o/w": ("self_attn.o_proj.weight", "d (h c) -> h c d"),
    "gate/w": ("mlp.gate_proj.weight", "f d -> d f"),
    "up/w": ("mlp.up_proj.weight", "f d -> d f"),
    "down/w": ("mlp.down_proj.weight", "d f -> f d"),
}
_VIT_BLOCK = {  # below "vit/blocks/"; each has a weight and a bias
    "ln1": ("layer_norm1", "scale", "d -> d", "d -> d"),
    "ln2": ("layer_norm2", "scale", "d -> d", "d -> d"),
    "q": ("self_attn.q_proj", "w", "(h c) d -> d h c", "(h c) -> h c"),
    "k": ("self_attn.k_proj", "w", "(h c) d -> d h c", "(h c) -> h c"),
    "v": ("self_attn.v_proj", "w", "(h c) d -> d h c", "(h c) -> h c"),
    "o": ("self_attn.projection_layer", "w", "d (h c) -> h c d", "d -> d"),
    "fc1": ("mlp.fc1", "w", "f d -> d f", "f -> f"),
    "fc2": ("mlp.fc2", "w", "d f -> f d", "d -> d"),
}
_ALIGNERS = {"aligner": "model.aligner", "gen_aligner": "model.generation_aligner"}


def _model_rules(cfg: JanusConfig) -> dict[str, tuple[str, str]]:
    rules = dict(_TOP)
    for path, (name, pattern) in _BLOCK.items():
        rules[f"blocks/{path}"] = (f"{_LLM}layers.{{}}.{name}", pattern)
    for path, (name, weight, of_weight, of_bias) in _VIT_BLOCK.items():
        head, bias = f"{_VIT}encoder.layers.{{}}.{name}", "b" if weight == "w" else "bias"
        rules[f"vit/blocks/{path}/{weight}"] = (f"{head}.weight", of_weight)
        rules[f"vit/blocks/{path}/{bias}"] = (f"{head}.bias", of_bias)
    for path, name in _ALIGNERS.items():
        maps = {"fc1": "fc1"}
        depth = getattr(cfg, path)
        maps |= {f"hidden/{i}": f"hidden_layers.{i}" for i in range(depth - 1)}
        for ours, official in maps.items():
            rules[f"{path}/{ours}/w"] = (f"{name}.{official}.weight", "o i -> i o")
            rules[f"{path}/{ours}/b"] = (f"{name}.{official}.bias", "o -> o")
    return rules


def _vq_rule(path: str, spec: param_tree.ParamSpec) -> tuple[str, str]:
    """The autoencoder's tree has the official structure: only leaf names and kernels differ."""
    head, leaf = path.rsplit("/", 1)
    if leaf == "embedding":
        return f"{_VQ}quantize.embedding.weight", "v d -> v d"
    suffix = {"w": "weight", "scale": "weight", "b": "bias", "bias": "bias"}[leaf]
    pattern = "o i h w -> h w i o" if len(spec.shape) == 4 else "o -> o"
    return f"{_VQ}{head.replace('/', '.')}.{suffix}", pattern


def table(cfg: JanusConfig) -> dict[str, list[TableEntry]]:
    """{"model", "vq"}: the entries of every leaf of each spec tree; nothing is allocated."""
    rules = _model_rules(cfg)
    model, coder = (param_tree.flatten(x) for x in (janus.specs(cfg), vq.specs(cfg.vq)))
    return {
        "model": [e for path, s in model.items() for e in entries(path, *rules[path], s)],
        "vq": [e for path, s in coder.items() for e in entries(path, *_vq_rule(path, s), s)],
    }
