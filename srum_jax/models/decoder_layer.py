"""A layer of a language model of Llama's kind, as the families' stacks have it: RMSNorm, attention
with grouped keys, whose queries and keys each family makes in its own way, and a gated MLP."""

import functools

import jax

from srum_jax.core import param_tree
from srum_jax.core.param_tree import Params, Specs
from srum_jax.models.bagel.model_config import LLMConfig
from srum_jax.models.janus.model_config import LlamaConfig
from srum_jax.models.layers import linear, merge_heads, rms_norm


def specs(cfg: LLMConfig | LlamaConfig, *, bias: bool) -> Specs:
    """Stacked layers; bias: of queries, keys and values."""
    d, q = {"embed": cfg.hidden}, {"heads": cfg.heads, "head_dim": cfg.head_dim}
    kv, f = {"kv_heads": cfg.kv_heads, "head_dim": cfg.head_dim}, {"mlp": cfg.ffn}
    norm = param_tree.norm(cfg.hidden, "embed", bias=False, stack=cfg.layers)
    read, rest = (
        functools.partial(param_tree.linear, bias=one, stack=cfg.layers) for one in (bias, False)
    )
    return {
        **{"ln1": norm, "ln2": norm, "q": read(d, q), "k": read(d, kv), "v": read(d, kv)},
        **{"o": rest(q, d), "gate": rest(d, f), "up": rest(d, f), "down": rest(f, d)},
    }


def finish(p: Params, x: jax.Array, attended: jax.Array, eps: float) -> jax.Array:
    """What a layer makes of its input x [B,S,D] once its heads have read `attended` [B,S,H,C]."""
    with jax.named_scope("attention_out"):
        x = x + merge_heads(attended, p["o"])
    with jax.named_scope("mlp"):
        y = rms_norm(x, p["ln2"], eps)
        return x + linear(jax.nn.silu(linear(y, p["gate"])) * linear(y, p["up"]), p["down"])
