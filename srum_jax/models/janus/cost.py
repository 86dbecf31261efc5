"""What a Janus takes: bytes of weights, of a token in a cache, of what writing holds besides."""

import math

import jax.numpy as jnp

from srum_jax.core import param_tree
from srum_jax.models import int8
from srum_jax.models.bagel.cost import Memory
from srum_jax.models.janus import model, vq
from srum_jax.models.janus.model_config import JanusConfig


def memory(cfg: JanusConfig, precision: str) -> Memory:
    """What a model takes in a `precision`, float32 | bfloat16 | int8 (matrices; the cache is
    bfloat16); the autoencoder is float32 in all of them."""
    dtype = jnp.dtype("float32" if precision == "float32" else "bfloat16")
    specs, coder = model.specs(cfg), vq.specs(cfg.vq)
    made = int8.specs(specs, dtype) if precision == "int8" else specs
    sizes = {
        path: math.prod(s.shape) * jnp.dtype(s.dtype if precision == "int8" else dtype).itemsize
        for path, s in param_tree.flatten(made).items()
    }
    return Memory(
        weights=sum(sizes.values()) + 4 * param_tree.count(coder),
        token=2 * cfg.llm.layers * cfg.llm.kv_heads * cfg.llm.head_dim * dtype.itemsize,
        writing=sum(size for path, size in sizes.items() if path.startswith("blocks/")),
    )
